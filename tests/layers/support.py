"""Drawn arrays and one-program derivatives, for the tests of layers."""

from contextlib import nullcontext
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

import fnn
from tests.support import asarray, assert_close

DTYPES = ("float64", "float32", "bfloat16")
leading = st.lists(st.integers(0, 2), max_size=2).map(tuple)
KEY = jax.random.key(0)
seeds = st.integers(0, 2**32 - 1)


def wide(dtype):
    """The context in which `dtype` exists."""
    return jax.enable_x64(True) if dtype == "float64" else nullcontext()


def rounded(tree, dtype):
    """NumPy arrays as jax arrays of `dtype`, and the same values in float64 for the oracle."""
    arrays = jax.tree.map(lambda a: asarray(a, dtype), tree)
    return arrays, jax.tree.map(lambda a: np.asarray(a, np.float64), arrays)


def assert_trees_close(actual, expected, dtype, tolerance=None):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for got, want in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert_close(got, want, dtype=dtype, tolerance=tolerance)


def spec_shapes(layer, x):
    params, state = layer.specs(jax.ShapeDtypeStruct(x.shape, jnp.float32))

    def shape(spec):
        return tuple(spec.shape)

    def is_spec(node):
        return hasattr(node, "init")

    return (
        jax.tree.map(shape, params, is_leaf=is_spec),
        jax.tree.map(shape, state, is_leaf=is_spec),
    )


@partial(jax.jit, static_argnums=0)
def run_and_pull(layer, params, x, dy):
    """y and the gradients of sum(y * dy), as one program: compiling is what these tests cost."""
    y, vjp = jax.vjp(layer, params, x)
    return y, *vjp(dy)


def assert_linear_layer(layer, arrays, dtype, forward, backward):
    """y, dx, dkernel and dbias of dense or conv are the oracle's."""
    assert spec_shapes(layer, arrays["x"])[0] == {k: v.shape for k, v in arrays["params"].items()}
    with wide(dtype):
        (arrays, exact) = rounded(arrays, dtype)
        want = forward(exact["x"], **exact["params"])
        dy, dy_exact = rounded(np.random.default_rng(7).normal(size=want.shape), dtype)
        y, dparams, dx = run_and_pull(layer, arrays["params"], arrays["x"], dy)
        assert_close(y, want, dtype=dtype)
        want_dx, want_dkernel, want_dbias = backward(
            exact["x"], exact["params"]["kernel"], dy_exact
        )
        want = {"kernel": want_dkernel, "bias": want_dbias}
        assert_close(dx, want_dx, dtype=dtype)
        assert_trees_close(dparams, {k: want[k] for k in exact["params"]}, dtype)


def drawn(dtype, seed, *shapes):
    """Standard normal jax arrays of `dtype`, and the same values in float64 for the oracle."""
    rng = np.random.default_rng(seed)
    arrays = [asarray(rng.normal(size=shape), dtype) for shape in shapes]
    return arrays, [np.asarray(a, np.float64) for a in arrays]


@partial(jax.jit, static_argnums=0)
def run_and_pull_all(layer, params, xs, dy):
    y, vjp = jax.vjp(lambda params, xs: layer(params, *xs), params, xs)
    return y, *vjp(dy)


def key(i=0):
    return jax.random.key(i)


def normal(*shape, seed=1):
    return jax.random.normal(key(seed), shape)


def member(tree, i):
    return jax.tree.map(lambda a: a[i], tree)


def assert_trees_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def inner():
    return fnn.serial(fnn.dense(4), fnn.batch_norm(), jnp.tanh, fnn.dropout(0.5))


def biased(params, seed):
    """Params whose biases are not zero."""
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return jax.tree.unflatten(
        treedef,
        [a + 0.3 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)],
    )
