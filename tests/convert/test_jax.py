"""Attention and deep chains of Flax, Haiku and Keras themselves compute in fnn what they did."""

import os

import jax
import numpy as np
import pytest

import fnn
from fnn import convert, tree
from tests.support import assert_close

B, T, C, HEADS = 2, 5, 6, 2
RNG = np.random.default_rng(0)


def draw(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def drawn(arrays):
    return jax.tree.map(lambda a: draw(*a.shape), arrays)


def deep():
    """An attention, and more dense layers of one shape than there are digits."""
    layers = [layer for _ in range(11) for layer in (fnn.dense(C), jax.nn.silu)]
    return fnn.serial(attention=fnn.attention(C, HEADS), layers=fnn.serial(*layers))


def keras():
    os.environ.setdefault("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras")
    if keras.backend.backend() != "jax":
        pytest.skip("Keras on another backend")
    return keras


def test_attention_of_linen():
    linen = pytest.importorskip("flax.linen")

    class Model(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.MultiHeadDotProductAttention(HEADS)(x)
            for _ in range(11):
                x = linen.silu(linen.Dense(C)(x))
            return x

    model, x, net = Model(), draw(B, T, C), deep()
    variables = drawn(jax.eval_shape(model.init, jax.random.key(0), x))
    params, _ = convert.from_flax(net, variables, x)
    assert_close(net(params, x), model.apply(variables, x), tolerance=1e-4)


def test_attention_of_nnx():
    nnx = pytest.importorskip("flax.nnx")

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.attn = nnx.MultiHeadAttention(HEADS, C, decode=False, rngs=rngs)
            self.layers = nnx.List([nnx.Linear(C, C, rngs=rngs) for _ in range(11)])

        def __call__(self, x):
            x = self.attn(x)
            for layer in self.layers:
                x = nnx.silu(layer(x))
            return x

    model, x, net = Model(nnx.Rngs(0)), draw(B, T, C), deep()
    state = nnx.state(model, nnx.Param)
    pure = drawn(nnx.to_pure_dict(state))
    nnx.replace_by_pure_dict(state, pure)
    nnx.update(model, state)
    params, _ = convert.from_nnx(net, pure, x)
    assert_close(net(params, x), model(x), tolerance=1e-4)


def test_attention_of_haiku():
    hk = pytest.importorskip("haiku")

    def forward(x):
        init = hk.initializers.RandomNormal()
        x = hk.MultiHeadAttention(HEADS, C // HEADS, w_init=init)(x, x, x)
        for _ in range(11):
            x = jax.nn.silu(hk.Linear(C)(x))
        return x

    model, x, net = hk.without_apply_rng(hk.transform(forward)), draw(B, T, C), deep()
    theirs = drawn(jax.eval_shape(model.init, jax.random.key(0), x))
    params, _ = convert.from_haiku(net, theirs, {}, x)
    assert_close(net(params, x), model.apply(theirs, x), tolerance=1e-4)


def orders(weights):
    """{path: array} in the order of the model, sorted, reversed and shuffled."""
    paths = [w.path for w in weights]
    arrays = {w.path: w.numpy() for w in weights}
    shuffled = RNG.permutation(paths).tolist()
    return [{p: arrays[p] for p in some} for some in (paths, sorted(paths), paths[::-1], shuffled)]


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of Keras itself
def test_attention_of_keras():
    layers = keras().layers
    x = draw(B, T, C)
    tokens = h = layers.Input((T, C))
    h = layers.MultiHeadAttention(HEADS, C // HEADS)(h, h)
    for _ in range(11):
        h = layers.Dense(C, activation="silu")(h)
    model = keras().Model(tokens, h)
    model.set_weights(drawn(model.get_weights()))
    net, found = deep(), []
    for weights in (model.weights, model.get_weights(), *orders(model.weights)):
        found.append(convert.from_keras(net, weights, x))
    assert not any(tree.compare(found[0], other) for other in found[1:])
    assert_close(net(found[0][0], x), np.asarray(model(x)), tolerance=1e-4)


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of Keras itself
def test_convolutions_of_keras():
    layers = keras().layers
    model = keras().Sequential(
        [
            layers.Input((6, 6, 3)),
            *[layers.SeparableConv2D(3, 3, padding="same") for _ in range(11)],
            layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same"),
            layers.BatchNormalization(),
            layers.Conv2D(6, 3, padding="same"),
            layers.Conv2DTranspose(6, 3, padding="same"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(6, name="first"),
            layers.Dense(6, name="head"),
        ]
    )
    model.set_weights([np.abs(a) * 0.3 for a in drawn(model.get_weights())])
    net = fnn.serial(
        *[fnn.separable_conv(3, (3, 3)) for _ in range(11)],
        fnn.depthwise_conv((3, 3), multiplier=2),
        fnn.batch_norm(eps=1e-3),
        fnn.conv(6, (3, 3)),
        fnn.conv_transpose(6, (3, 3), padding=1),
        fnn.global_avg_pool(2),
        first=fnn.dense(6),
        head=fnn.dense(6),
    )
    x, found = draw(B, 6, 6, 3), []
    for weights in (model.weights, model.get_weights(), *orders(model.weights)):
        found.append(convert.from_keras(net, weights, x))
    assert not any(tree.compare(found[0], other) for other in found[1:])
    params, state = found[0]
    y = jax.jit(net)(params, x, state=state)
    assert_close(y, np.asarray(model(x, training=False)), tolerance=1e-4)
