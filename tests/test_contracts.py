"""One contract over all layers: each row of the table goes through check_layer."""

import jax
import jax.numpy as jnp
import pytest

import fnn
from fnn.testing import check_layer


@fnn.compose(conv1=fnn.conv(4, (3, 3)), bn1=fnn.batch_norm(), drop=fnn.dropout(0.3))
def block(f, x):  # [..., H, W, 4]
    return x + jax.nn.silu(f.bn1(f.drop(f.conv1(x))))


@fnn.compose(left=fnn.dense(3), right=fnn.dense(3))
def two_inputs(f, x, y):  # [..., A], [..., B]
    return jnp.tanh(f.left(x)) * f.right(y)


@fnn.compose(shared=fnn.dense(4))
def twice(f, x):  # [..., 4]
    return f.shared(jnp.tanh(f.shared(x)))


LAYERS = {
    "dense": (fnn.dense(3), (4, 5)),
    "dense without bias": (fnn.dense(3, use_bias=False), (2, 3, 5)),
    "conv": (fnn.conv(3, (3, 3)), (2, 5, 4, 2)),
    "conv valid, strides": (fnn.conv(3, (2, 3), strides=(2, 1), padding="VALID"), (2, 5, 4, 2)),
    "conv causal, dilated": (fnn.conv(3, (3,), padding="CAUSAL", dilation=2), (2, 6, 2)),
    "conv circular": (fnn.conv(2, (3, 3), padding="CIRCULAR"), (2, 4, 4, 1)),
    "conv reflect, groups": (fnn.conv(4, (3,), padding="REFLECT", groups=2), (2, 5, 4)),
    "conv 3d": (fnn.conv(2, (2, 2, 2), padding=1), (2, 2, 3, 2, 1)),
    "conv matmul": (fnn.conv(4, (3, 2), groups=2, strides=2, weight_grad="matmul"), (2, 5, 4, 2)),
    "conv one axis": (fnn.conv(3, (1, 1)), (2, 1, 1, 2)),
    "max_pool": (fnn.max_pool((2, 2)), (2, 4, 5, 3)),
    "max_pool large": (fnn.max_pool((6, 7), padding=((1, 0), (0, 2))), (2, 11, 12, 2)),
    "max_pool overlapping": (fnn.max_pool((3, 3), strides=2, padding="SAME"), (2, 5, 5, 2)),
    "max_pool padded": (fnn.max_pool((2,), padding=((1, 0),)), (2, 5, 2)),
    "avg_pool": (fnn.avg_pool((2, 2)), (2, 4, 4, 3)),
    "avg_pool padded": (fnn.avg_pool((3, 3), strides=1, padding="SAME"), (2, 4, 4, 2)),
    "flatten": (fnn.flatten(2), (2, 3, 4)),
    "dropout": (fnn.dropout(0.4), (4, 6)),
    "batch_norm": (fnn.batch_norm(), (6, 2, 3)),
    "batch_norm bare": (fnn.batch_norm(use_scale=False, use_bias=False), (6, 3)),
    "serial": (
        fnn.serial(
            fnn.conv(4, (3, 3)), jax.nn.gelu, fnn.avg_pool((2, 2)), fnn.flatten(3), fnn.dense(2)
        ),
        (2, 4, 4, 1),
    ),
    "compose": (block, (2, 4, 4, 4)),
    "compose nested": (fnn.serial(fnn.dense(4), twice, out=fnn.dense(1)), (3, 2)),
    "two inputs": (two_inputs, (4, 2), (4, 3)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_contract(name):
    layer, *shapes = LAYERS[name]
    check_layer(layer, *shapes)
