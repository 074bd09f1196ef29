"""What all layers with windows refuse, empty images, and ranks."""

import jax
import jax.numpy as jnp
import pytest

import fnn
from fnn import errors
from tests.layers.support import run_and_pull

BUILDERS = {
    "conv_transpose": (fnn.conv_transpose(2, (3,), strides=2), (4, 2)),
    "depthwise_conv": (fnn.depthwise_conv((3,)), (4, 2)),
    "separable_conv": (fnn.separable_conv(2, (3,)), (4, 2)),
    "local_conv": (fnn.local_conv(2, (3,)), (4, 2)),
    "min_pool": (fnn.min_pool((2,)), (4, 2)),
    "sum_pool": (fnn.sum_pool((2,)), (4, 2)),
    "lp_pool": (fnn.lp_pool((2,), 2), (4, 2)),
    "global_avg_pool": (fnn.global_avg_pool(1), (4, 2)),
    "global_max_pool": (fnn.global_max_pool(1), (4, 2)),
    "adaptive_avg_pool": (fnn.adaptive_avg_pool((3,)), (4, 2)),
    "upsample": (fnn.upsample((2,), "cubic"), (4, 2)),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_empty_batches_and_empty_images(name):
    layer, shape = BUILDERS[name]
    params, _ = layer.init(jax.random.key(0), shape)
    full = jax.eval_shape(layer, params, jax.ShapeDtypeStruct((3, *shape), jnp.float32))
    y, dparams, dx = run_and_pull(
        layer, params, jnp.zeros((0, *shape)), jnp.zeros((0, *full.shape[1:]))
    )
    assert y.shape == (0, *full.shape[1:]) and dx.shape == (0, *shape)
    assert all(not leaf.any() for leaf in jax.tree.leaves(dparams))
    with pytest.raises(errors.ShapeError, match="spatial axes of at least"):
        layer.specs((3, 0, 2))


def test_layers_say_what_is_wrong():
    wrong = [
        (fnn.conv_transpose(1, (2,), padding=2), (3, 2, 1), "spatial axes of at least 4"),
        (fnn.depthwise_conv((1,)), (3, 2, 0), "at least one channel"),
        (fnn.pixel_shuffle(2), (3, 2, 6), "divisible by r\\^2 = 4"),
        (fnn.pixel_unshuffle(2), (3, 2, 6), "divisible by r = 2"),
    ]
    for layer, shape, text in wrong:
        with pytest.raises(errors.ShapeError, match=text):
            layer.specs(shape)
    for padding in ("CAUSAL", "REFLECT"):
        with pytest.raises(errors.OptionError, match="conv_transpose: expected padding"):
            fnn.conv_transpose(1, (2,), padding=padding)
    with pytest.raises(errors.OptionError, match="no window lies in it wholly"):
        fnn.lp_pool((2,), 2, padding=2)


SPATIAL = [
    fnn.conv(2, (3, 3), groups=2),
    fnn.conv_transpose(2, (3, 3), strides=2),
    fnn.separable_conv(2, (3, 3)),
    fnn.local_conv(2, (3, 3)),
    fnn.max_pool((2, 2), padding=1),
    fnn.avg_pool((3, 3), strides=1, padding="SAME"),
    fnn.lp_pool((2, 2), 3),
    fnn.global_max_pool(2),
    fnn.adaptive_avg_pool((2, 2)),
    fnn.upsample((2, 2), "cubic"),
]


@pytest.mark.parametrize("layer", SPATIAL, ids=lambda layer: layer.name)
def test_no_rank_is_promoted(layer):
    x = jax.ShapeDtypeStruct((2, 5, 5, 2), jnp.float32)
    params = jax.eval_shape(lambda: layer.init(jax.random.key(0), x)[0])

    def loss(params, x):
        return jnp.sum(layer(params, x) ** 2)

    with jax.numpy_rank_promotion("raise"):
        gradients = jax.grad(loss, (0, 1))
        jax.eval_shape(lambda *a: jax.jvp(gradients, a, a), params, x)
