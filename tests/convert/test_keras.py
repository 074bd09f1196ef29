"""Keras' weights, by lists and by paths."""

import jax
import numpy as np
import pytest

import fnn
from fnn import convert, errors, tree
from tests.convert.naming import C, dense, orders
from tests.convert.support import conv_transpose_chw, draw, draw_var, same
from tests.layers import oracles
from tests.layers.conv import oracles as conv_oracles
from tests.support import assert_close


def keras_net():
    return fnn.serial(
        fnn.conv(4, (3, 3)),
        fnn.batch_norm(eps=1e-3),
        jax.nn.relu,
        fnn.depthwise_conv((3, 3), multiplier=2),
        fnn.flatten(3),
        fnn.dense(3),
    )


def keras_weights():
    return [
        draw(3, 3, 2, 4), draw(4),
        draw(4), draw(4), draw(4), draw_var(4),
        draw(3, 3, 4, 2), draw(8),
        draw(96, 3), draw(3),
    ]  # fmt: skip


KERAS_SHAPE = (1, 4, 3, 2)


KERAS_PATHS = (
    "net/conv2d/kernel", "net/conv2d/bias",
    "net/batch_normalization/gamma", "net/batch_normalization/beta",
    "net/batch_normalization/moving_mean", "net/batch_normalization/moving_variance",
    "net/depthwise_conv2d/kernel", "net/depthwise_conv2d/bias",
    "net/dense/kernel", "net/dense/bias",
)  # fmt: skip


def keras_oracle(x, w):
    y = conv_oracles.conv(x, w[0], w[1])
    y = np.maximum(oracles.batch_norm_eval(y, *w[2:6], eps=1e-3), 0)
    each = [
        # one channel, one multiple
        conv_oracles.conv(y[..., c, None], w[6][:, :, c, None, m, None])
        for c in range(4)
        for m in range(2)
    ]
    y = np.concatenate(each, -1) + w[7]
    return oracles.dense(y.reshape(len(y), -1), w[8], w[9])


def test_keras_weights_compute_what_they_should():
    net, weights, x = keras_net(), keras_weights(), draw(2, 4, 3, 2)
    params, state = convert.from_keras(net, weights, KERAS_SHAPE)
    y = net(params, x, state=state)
    assert_close(y, keras_oracle(x, weights), dtype="float32", tolerance=1e-5)
    same(convert.to_keras(net, params, state, KERAS_SHAPE), weights)
    by_path = dict(zip(KERAS_PATHS, weights, strict=True))
    same(convert.from_keras(net, by_path, KERAS_SHAPE), (params, state))
    moved = dict(sorted(by_path.items()))
    names = {
        "conv1": "net/conv2d",
        "batch_norm1": "net/batch_normalization",
        "depthwise_conv1": "net/depthwise_conv2d",
    }
    same(convert.from_keras(net, moved, KERAS_SHAPE, names=names), (params, state))


def test_a_transposed_convolution_of_keras_and_haiku():
    weight, bias, x = draw(3, 3, 4, 2), draw(4), draw(2, 3, 2, 2)  # (kH, kW, out, in)
    theirs = conv_transpose_chw(np.moveaxis(x, -1, 1), np.transpose(weight, (3, 2, 0, 1)), bias)
    for transpose_kernel in (False, True):
        net = fnn.conv_transpose(4, (3, 3), strides=2, padding=0, transpose_kernel=transpose_kernel)
        params, state = convert.from_keras(net, [weight, bias], (1, 3, 2, 2))
        assert_close(net(params, x), np.moveaxis(theirs, 1, -1), tolerance=1e-5)
        same(convert.to_keras(net, params, state, (1, 3, 2, 2)), [weight, bias])
        slides = {"w": np.flip(weight, (0, 1)), "b": bias}  # over the spread input, in Haiku
        same(convert.from_haiku(net, slides, {}, (1, 3, 2, 2)), (params, state))
        same(convert.to_haiku(net, params, state, (1, 3, 2, 2))[0], {"~": slides})


def test_keras_by_path():
    net = dense(12)
    kernels = [np.full((C, C), i, "f") for i in range(12)]
    given = {}
    for i, kernel in enumerate(kernels):
        name = f"net/dense_{i + 3}"
        given |= {f"{name}/kernel": kernel, f"{name}/bias": kernel[0]}
    for some in orders(given):
        params, _ = convert.from_keras(net, some, (1, C))
        assert [params[f"dense{i + 1}"]["kernel"][0, 0] for i in range(12)] == list(range(12))
    unknown = {k.replace("dense_3", "first"): v for k, v in given.items()}
    with pytest.raises(errors.ParamsError, match="which is which"):
        convert.from_keras(net, unknown, (1, C))


def test_a_separable_convolution_of_keras_by_path():
    net = fnn.serial(*[fnn.separable_conv(C, (3, 3)) for _ in range(2)])
    given = {}
    for i, name in enumerate(("separable_conv2d", "separable_conv2d_1")):
        given |= {
            f"net/{name}/depthwise_kernel": np.full((3, 3, C, 1), i, "f"),
            f"net/{name}/pointwise_kernel": np.full((1, 1, C, C), i, "f"),
            f"net/{name}/bias": np.full(C, i, "f"),
        }
    shape = (1, 5, 5, C)
    whole = {"separable_conv1": "net/separable_conv2d", "separable_conv2": "net/separable_conv2d_1"}
    for names in (None, whole):
        for some in orders(given):
            params, _ = convert.from_keras(net, some, shape, names=names)
            for i in (0, 1):
                layer = params[f"separable_conv{i + 1}"]
                assert all((a == i).all() for a in jax.tree.leaves(layer))
                assert set(layer) == {"depthwise", "pointwise"}
    listed = convert.to_keras(net, params, {}, shape)
    assert not tree.compare(listed, list(given.values()))
    of_keras_2 = {"d/depthwise_kernel": np.ones((3, 3, C, 2), "f"), "d/bias": np.ones(2 * C, "f")}
    layer = fnn.depthwise_conv((3, 3), multiplier=2)
    assert convert.from_keras(layer, of_keras_2, shape)[0]["bias"].all()
