"""A row for every leaf layer: a builder, legal options and a legal input."""

import jax
import jax.numpy as jnp

import fnn

TABLE = {
    "dense": (fnn.dense, {"features": 3}, (2, 5)),
    "conv": (fnn.conv, {"features": 4, "kernel_size": (3, 3), "groups": 2}, (2, 5, 5, 4)),
    "conv_valid": (
        fnn.conv,
        {"features": 3, "kernel_size": (3,), "strides": 2, "padding": "VALID", "dilation": 2},
        (2, 6, 3),
    ),
    "conv_matmul": (
        fnn.conv,
        {"features": 3, "kernel_size": (2,), "weight_grad": "matmul"},
        (2, 4, 3),
    ),
    "max_pool": (fnn.max_pool, {"window": (2, 2), "strides": 2, "padding": "VALID"}, (2, 4, 4, 3)),
    "avg_pool": (fnn.avg_pool, {"window": (2,), "strides": 1, "padding": 1}, (2, 4, 3)),
    "conv_transpose": (
        fnn.conv_transpose,
        {"features": 3, "kernel_size": (2,), "strides": 2, "padding": "SAME", "dilation": 2},
        (2, 4, 3),
    ),
    "depthwise_conv": (
        fnn.depthwise_conv,
        {"kernel_size": (2,), "multiplier": 2, "strides": 2, "padding": "VALID", "dilation": 1},
        (2, 4, 3),
    ),
    "local_conv": (
        fnn.local_conv,
        {"features": 3, "kernel_size": (2,), "strides": 2, "padding": "SAME", "dilation": 1},
        (2, 4, 3),
    ),
    "min_pool": (fnn.min_pool, {"window": (2,), "strides": 2, "padding": "VALID"}, (2, 4, 3)),
    "sum_pool": (fnn.sum_pool, {"window": (2,), "strides": 1, "padding": 1}, (2, 4, 3)),
    "lp_pool": (fnn.lp_pool, {"window": (2,), "p": 2.0, "strides": 2}, (2, 4, 3)),
    "global_avg_pool": (fnn.global_avg_pool, {"spatial_axes": 2}, (2, 4, 4, 3)),
    "global_max_pool": (fnn.global_max_pool, {"spatial_axes": 1}, (2, 4, 3)),
    "adaptive_avg_pool": (fnn.adaptive_avg_pool, {"output_size": (3,)}, (2, 4, 3)),
    "upsample": (fnn.upsample, {"scale": (2,), "method": "linear"}, (2, 4, 3)),
    "pixel_shuffle": (fnn.pixel_shuffle, {"r": 2}, (2, 3, 3, 4)),
    "pixel_unshuffle": (fnn.pixel_unshuffle, {"r": 2}, (2, 4, 4, 3)),
    "flatten": (fnn.flatten, {"feature_axes": 2}, (2, 3, 4)),
    "positional_encoding": (fnn.positional_encoding, {"base": 10.0}, (2, 3, 4)),
    "dropout": (fnn.dropout, {"rate": 0.5}, (2, 3)),
    "batch_norm": (fnn.batch_norm, {"momentum": 0.9, "eps": 1e-5}, (2, 3)),
    "layer_norm": (fnn.layer_norm, {"eps": 1e-5}, (2, 3)),
    "rms_norm": (fnn.rms_norm, {"eps": 1e-5}, (2, 3)),
    "group_norm": (fnn.group_norm, {"groups": 2, "spatial_axes": 1, "eps": 1e-5}, (2, 3, 4)),
    "instance_norm": (fnn.instance_norm, {"spatial_axes": 2, "eps": 1e-5}, (2, 3, 4, 2)),
    "spatial_dropout": (fnn.spatial_dropout, {"rate": 0.5, "spatial_axes": 1}, (2, 3, 4)),
    "drop_path": (fnn.drop_path, {"rate": 0.5, "feature_axes": 2}, (2, 3, 4)),
    "alpha_dropout": (fnn.alpha_dropout, {"rate": 0.5}, (2, 3)),
    "gaussian_noise": (fnn.gaussian_noise, {"stddev": 0.5}, (2, 3)),
    "prelu": (fnn.prelu, {"init": 0.25}, (2, 3)),
}


ELEMENTWISE = ("dropout", "alpha_dropout", "gaussian_noise")  # which take any shape


NOISY = (*ELEMENTWISE, "spatial_dropout", "drop_path")  # which need a key in training


def build(name, **changed):
    builder, options, shape = TABLE[name]
    return builder(**{**options, **changed}), shape


def placed(name):
    """The layer two levels down, where errors must say `inner/layer`."""
    layer, shape = build(name)
    net = fnn.serial(inner=fnn.serial(layer=layer))
    params, state = net.init(jax.random.key(0), shape)
    return net, params, state, jnp.ones(shape)
