"""What conversions refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import convert
from tests.convert.support import draw, draw_var
from tests.support import assert_teaches, refused

SMALL = fnn.serial(fnn.conv(2, (3, 3)), fnn.batch_norm(), fnn.dense(3))


SMALL_SHAPE = (1, 4, 4, 2)


GOOD = {
    "a.weight": draw(2, 2, 3, 3),
    "a.bias": draw(2),
    "b.weight": draw(2),
    "b.bias": draw(2),
    "b.running_mean": draw(2),
    "b.running_var": draw_var(2),
    "c.weight": draw(3, 2),
    "c.bias": draw(3),
}


PARAMS, STATE = convert.from_torch(SMALL, GOOD, SMALL_SHAPE)


def without(*names):
    return {name: array for name, array in GOOD.items() if name not in names}


def load(state_dict, *xs, net=SMALL, **options):
    return convert.from_torch(net, state_dict, *(xs or (SMALL_SHAPE,)), **options)


def store(params, state=None, **options):
    return convert.to_torch(
        SMALL, params, STATE if state is None else state, SMALL_SHAPE, **options
    )


WRONG = {
    "missing bias": (lambda: load(without("a.bias")), "conv1", "a.bias for bias"),
    "missing statistic": (lambda: load(without("b.running_var")), "batch_norm1", "b.running_var"),
    "missing layer": (
        lambda: load(without("c.weight", "c.bias")),
        "from_torch",
        "dense1 (bias (3,), weight (3, 2))",
    ),
    "extra entry": (lambda: load(GOOD | {"c.weight_g": draw(3)}), "from_torch", "c.weight_g"),
    "extra layer": (lambda: load(GOOD | {"d.weight": draw(3)}), "from_torch", "d (weight (3,))"),
    "extra array of a layer": (
        lambda: load(GOOD | {"c.running_mean": draw(3)}),
        "dense1",
        "also c.running_mean",
    ),
    "wrong shape": (
        lambda: load(GOOD | {"a.weight": draw(2, 3, 3, 3)}),
        "conv1",
        "a.weight (2, 2, 3, 3) for kernel (3, 3, 2, 2), got a.weight (2, 3, 3, 3)",
    ),
    "untransposed": (lambda: load(GOOD | {"c.weight": draw(2, 3)}), "dense1", "c.weight (3, 2)"),
    "wrong dtype": (
        lambda: load(GOOD | {"c.bias": np.zeros(3)}),
        "dense1",
        "c.bias of float32 for bias, got c.bias of float64",
    ),
    "no array": (lambda: load(GOOD | {"c.bias": [1.0, 2.0, 3.0]}), "dense1", "c.bias to be"),
    "objects": (lambda: load(GOOD | {"c.bias": None}), "dense1", "c.bias to be an array"),
    "no dict": (lambda: load(list(GOOD.items())), "from_torch", "state_dict to be a dict"),
    "names of no string": (lambda: load({1: draw(2)}), "from_torch", "names that are strings"),
    "no layer": (lambda: load(GOOD, net=jnp.tanh), "from_torch", "a layer"),
    "names without a layer": (
        lambda: load(GOOD, names={"conv2": "a"}),
        "from_torch",
        "did you mean conv1",
    ),
    "names of no layer there": (lambda: load(GOOD, names={"conv1": "aa"}), "from_torch", "got aa"),
    "names twice": (
        lambda: load(GOOD, names={"conv1": "a", "dense1": "a"}),
        "from_torch",
        "two for a",
    ),
    "names that are no dict": (lambda: load(GOOD, names=["a"]), "from_torch", "names to be"),
    "names that are no strings": (
        lambda: load(GOOD, names={"conv1": 0}),
        "from_torch",
        "names to be",
    ),
    "traced": (lambda: jax.eval_shape(load, GOOD), "conv1", "outside jit"),
    "unknown kind": (
        lambda: load(GOOD, net=fnn.serial(fnn.local_conv(2, (3, 3)))),
        "local_conv1",
        "a layer of a kind",
    ),
    "stacked": (
        lambda: load(GOOD, (1, 2), net=fnn.serial(fnn.repeat(fnn.serial(fnn.dense(2)), 3))),
        "from_torch",
        "repeat1/2/dense1 (bias (2,), weight (2, 2))",
    ),
    "a stack without a name": (
        lambda: load(GOOD, (1, 2), net=fnn.repeat(fnn.dense(2), 3)),
        "repeat",
        "put it in fnn.serial",
    ),
    "to: missing": (lambda: store({"conv1": PARAMS["conv1"]}), "to_torch", "dense1"),
    "to: no state": (lambda: store(PARAMS, {}), "to_torch", "state"),
    "to: extra": (lambda: store(PARAMS | {"more": {"bias": draw(2)}}), "to_torch", "more"),
    "to: shape": (
        lambda: store(PARAMS | {"dense1": {"kernel": draw(3, 2), "bias": draw(3)}}),
        "dense1/kernel",
        "(3, 2)",
    ),
    "to: names twice": (
        lambda: store(PARAMS, names={"conv1": "dense1"}),
        "to_torch",
        "two of dense1",
    ),
    "to: names without a layer": (lambda: store(PARAMS, names={"c": "x"}), "to_torch", "got c"),
    "to: traced": (lambda: jax.eval_shape(store, PARAMS), "to_torch", "outside jit"),
    "keras: too few": (
        lambda: convert.from_keras(SMALL, [draw(3, 3, 2, 2)], SMALL_SHAPE),
        "from_keras",
        "8 weights, for conv1/kernel, conv1/bias",
    ),
    "keras: order": (
        lambda: convert.from_keras(fnn.serial(fnn.dense(2)), [draw(2), draw(3, 2)], (1, 3)),
        "dense1",
        "(3, 2)",
    ),
    "keras: no list": (lambda: convert.from_keras(SMALL, 3, SMALL_SHAPE), "from_keras", "a list"),
    "keras: names": (
        lambda: convert.from_keras(SMALL, [], SMALL_SHAPE, names={"conv1": "a"}),
        "from_keras",
        "no names",
    ),
    "flax: not variables": (
        lambda: convert.from_flax(SMALL, {"Dense_0": {}}, SMALL_SHAPE),
        "from_flax",
        "also Dense_0",
    ),
    "flax: shape": (
        lambda: convert.from_flax(
            fnn.serial(fnn.dense(2)), {"params": {"D": {"kernel": draw(2, 3)}}}, (1, 3)
        ),
        "dense1",
        "D/bias for bias, got D/kernel",
    ),
    "haiku: no state": (
        lambda: convert.from_haiku(
            fnn.serial(fnn.batch_norm(use_bias=False)), {"bn": {"scale": draw(1, 2)}}, {}, (1, 2)
        ),
        "batch_norm1",
        "mean_ema",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_inputs(name):
    call, where, said = WRONG[name]
    error = refused(call)
    assert_teaches(error, where)
    assert said in str(error)
