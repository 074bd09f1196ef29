"""Attention and convolutions of Keras compute in fnn what they did."""

import os

import jax
import numpy as np
import pytest

import fnn
from fnn import convert, tree
from tests.convert.support import HEADS, RNG, B, C, T, deep, draw, drawn
from tests.support import assert_close


def keras():
    os.environ.setdefault("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras")
    if keras.backend.backend() != "jax":
        pytest.skip("Keras on another backend")
    return keras


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
