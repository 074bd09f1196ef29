"""Networks and values that several frameworks share."""

import jax
import jax.numpy as jnp
import numpy as np

import fnn
from fnn import tree
from tests.support import asarray

RNG = np.random.default_rng(0)


def draw(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def draw_var(*shape):
    return RNG.uniform(0.5, 2.0, shape).astype(np.float32)


def same(a, b):
    assert not tree.compare(a, b), tree.compare(a, b)


def run(net):
    return jax.jit(net)


def conv_transpose_chw(x, weight, bias, stride=2):
    """Each x[i, j] adds its multiple of the kernel at y[i s, j s]: (I, O, k, k), no padding."""
    k = weight.shape[-1]
    _, _, height, width = x.shape
    size = (height - 1) * stride + k, (width - 1) * stride + k
    y = np.zeros((len(x), weight.shape[1], *size))
    for i in range(height):
        for j in range(width):
            for c in range(weight.shape[0]):
                spread = x[:, c, i, j][:, None, None, None] * np.float64(weight[c])
                y[:, :, i * stride : i * stride + k, j * stride : j * stride + k] += spread
    return y + bias[:, None, None]


NET = fnn.serial(
    stem=fnn.conv(4, (3, 3)),
    block=fnn.serial(fnn.batch_norm(), jax.nn.relu, fnn.conv(4, (3, 3), use_bias=False)),
    pool=fnn.avg_pool((2, 2)),
    flat=fnn.flatten(3),
    norm=fnn.layer_norm(),
    head=fnn.dense(3),
)


NET_SHAPE = (1, 4, 4, 2)


def values(net, *xs, seed=1):
    """Random params and state; variances are positive."""
    params, state = net.init(jax.random.key(0), *xs)
    rng = np.random.default_rng(seed)

    def drawn(a):
        return asarray(rng.uniform(0.5, 2, a.shape).astype(a.dtype))

    return jax.tree.map(drawn, (params, state))


FNN_NET = fnn.serial(
    fnn.conv(4, (3, 3)),
    fnn.batch_norm(),
    jax.nn.relu,
    fnn.conv(4, (3, 3), strides=2),
    fnn.batch_norm(),
    jax.nn.relu,
    fnn.conv_transpose(4, (3, 3), strides=2),
    fnn.flatten(3),
    fnn.layer_norm(eps=1e-5),
    fnn.dense(3),
)


FNN_SHAPE = (2, 4, 4, 2)


def values_like(trees):
    rng = np.random.default_rng(2)

    def drawn(a):
        if not jnp.issubdtype(a.dtype, jnp.floating):
            return np.zeros(a.shape, a.dtype)
        return rng.uniform(0.5, 2, a.shape).astype(a.dtype)

    return jax.tree.map(drawn, trees)


B, T, C, HEADS = 2, 5, 6, 2  # of attention


def drawn(arrays):
    return jax.tree.map(lambda a: draw(*a.shape), arrays)


def deep():
    """An attention, and more dense layers of one shape than there are digits."""
    layers = [layer for _ in range(11) for layer in (fnn.dense(C), jax.nn.silu)]
    return fnn.serial(attention=fnn.attention(C, HEADS), layers=fnn.serial(*layers))
