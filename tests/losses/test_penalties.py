"""Penalties of selected parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import errors, losses
from tests.losses.support import within
from tests.support import asarray, assert_close, assert_teaches, outcome

PARAMS = {
    "conv1": {"kernel": np.array([[1.0, -2.0], [0.0, 3.0]]), "bias": np.array([5.0, -6.0])},
    "block": {"norm": {"scale": np.array([7.0])}, "embed": {"embedding": np.array([[8.0]])}},
}


@pytest.mark.parametrize(
    ("select", "leaves"),
    [
        ("kernel", [1, -2, 0, 3]),
        (("kernel", "embedding"), [1, -2, 0, 3, 8]),
        ("*", [1, -2, 0, 3, 5, -6, 7, 8]),
        ("[bs]*", [5, -6, 7]),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_penalties(select, leaves, dtype):
    with within(dtype):
        params = jax.tree.map(lambda a: asarray(a, dtype), PARAMS)
        wide = "float64" if dtype == "float64" else "float32"
        assert_close(losses.l1(params, select), np.float64(sum(map(abs, leaves))), dtype=wide)
        assert_close(losses.l2(params, select), np.float64(sum(w * w for w in leaves)), dtype=wide)
        slopes = jax.jit(jax.grad(losses.l1))(params)
        np.testing.assert_array_equal(np.float64(slopes["conv1"]["kernel"]), [[1, -1], [0, 1]])
        assert not np.asarray(slopes["conv1"]["bias"]).any()
        slopes = jax.jit(jax.grad(losses.l2))(params)
        np.testing.assert_array_equal(np.float64(slopes["conv1"]["kernel"]), [[2, -4], [0, 6]])


def test_penalties_of_a_network():
    params, _ = fnn.serial(fnn.dense(3), fnn.dense(2)).init(jax.random.key(0), (1, 4))
    kernels = [np.float64(params[name]["kernel"]) for name in ("dense1", "dense2")]
    assert_close(losses.l2(params), sum((k**2).sum() for k in kernels), dtype="float32")
    many = {"kernel": jnp.full(1000, 1, jnp.bfloat16)}
    assert losses.l1(many) == 1000  # which bfloat16 sums do not reach


def test_wrong_params_and_selections():
    for penalty in (losses.l1, losses.l2):
        said = penalty.__name__
        for params in ({}, {"dense": {"bias": jnp.ones(2)}}, None, jnp.ones(2), 3.0):
            error = outcome(penalty, params)
            assert isinstance(error, errors.ParamsError)
            assert_teaches(error, said)
        assert "bias" in str(outcome(penalty, {"dense": {"bias": jnp.ones(2)}}))
        for leaf in ("text", 1.5, jnp.ones(2, int), jnp.ones(2, complex)):
            error = outcome(penalty, {"dense": {"kernel": leaf}})
            assert isinstance(error, (errors.InputError, errors.DtypeError))
            assert "dense/kernel" in str(error)
        for select in (None, (), 3, ["kernel"], (1,)):
            assert isinstance(outcome(penalty, PARAMS, select), errors.OptionError)
