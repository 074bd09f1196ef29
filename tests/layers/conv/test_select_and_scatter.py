"""The maximum of slices against `reduce_window`, in every mode."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import fnn
from fnn.layers.conv import pool
from fnn.layers.conv.select_and_scatter import max_of_slices
from tests.layers.conv import oracles
from tests.layers.conv.support import special_values
from tests.layers.support import run_and_pull
from tests.support import asarray, assert_close, but_full

POOLS = [  # window, strides, spatial shape: apart, not dividing the axis, overlapping, with gaps
    ((2, 2), None, (4, 6)),
    ((2, 3), None, (5, 7)),
    ((3, 2), (2, 1), (5, 4)),
    ((2, 1), (3, 2), (7, 3)),
    ((4,), None, (8,)),
    ((2, 2, 2), None, (2, 4, 3)),
    ((3, 2), (1, 1), (4, 5)),
]


@cache
def pool_layer(window, strides):
    """One layer a case, so that each is compiled once."""
    return fnn.max_pool(window, strides=strides)


@partial(jax.jit, static_argnums=(0, 1))
def lax_run_and_pull(window, strides, x, dy):
    y, vjp = jax.vjp(lambda x: lax_max_pool(x, window, strides), x)
    return y, *vjp(dy)


def lax_max_pool(x, window, strides):
    strides = strides or window
    return jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (1, *window, 1), (1, *strides, 1), "VALID"
    )


@pytest.mark.parametrize("window, strides, spatial", POOLS)
@pytest.mark.parametrize(
    "values",
    [[3.0], [0.0, -0.0], [0, 1], [-np.inf], [np.inf, 0, -np.inf], [np.nan], [np.nan, 0, 1, np.inf]],
    ids=["one tie", "signed zeros", "ties", "-inf", "infinities", "nan", "nan among others"],
)
def test_max_pool_of_special_values_is_reduce_window(window, strides, spatial, values):
    x = special_values((3, *spatial, 2), values)
    want, _ = oracles.max_pool(x, window, strides=strides)
    dy = np.float32(np.random.default_rng(1).integers(1, 9, want.shape))
    want_dx = oracles.max_pool_backward(x, dy, window, strides=strides)
    y, _, dx = run_and_pull(pool_layer(window, strides), {}, x, dy)
    lax_y, lax_dx = lax_run_and_pull(window, strides, x, dy)
    for got, lax, oracle in [(y, lax_y, want), (dx, lax_dx, want_dx)]:
        np.testing.assert_array_equal(got, oracle)
        np.testing.assert_array_equal(got, lax)


@pytest.mark.parametrize("window, strides, spatial", POOLS)
def test_max_pool_jvp_is_the_transpose_of_its_vjp(window, strides, spatial):
    """<dy, J dx> = <J' dy, dx>, where ties, infinities and NaN sit, and dy, dx are integers."""
    x = special_values((3, *spatial, 2), [0, 1, 1, np.inf, -np.inf, np.nan], 3)
    rng = np.random.default_rng(4)
    layer = pool_layer(window, strides)
    winner = oracles.max_pool(x, window, strides=strides)[1]
    dx, dy = (np.float32(rng.integers(-9, 9, shape)) for shape in (x.shape, winner.shape))
    _, tangent = jax.jit(lambda x, dx: jax.jvp(partial(layer, {}), (x,), (dx,)))(x, dx)
    _, _, pulled = run_and_pull(layer, {}, x, dy)
    assert np.vdot(dy, tangent) == np.vdot(pulled, dx)
    np.testing.assert_array_equal(tangent, dx.ravel()[winner])


@pytest.mark.parametrize("case", but_full(POOLS, [POOLS[i] for i in (1, 4, 6)]), ids=str)
def test_max_pool_second_derivatives(case):
    """f = sum c y^3 has the Hessian P' diag(6 c y) P, where row o of P picks the winner of o."""
    window, strides, spatial = case
    shape = (*spatial, 1)
    rng = np.random.default_rng(5)
    x = rng.permutation(np.prod(shape)).reshape(shape) / 8
    y, winner = oracles.max_pool(x, window, strides=strides)
    c = rng.normal(size=y.shape)
    picks = np.eye(x.size)[winner.ravel()]
    want = picks.T @ np.diag((6 * c * y).ravel()) @ picks
    layer = fnn.max_pool(window, strides=strides)
    with jax.enable_x64(True):
        x, c = asarray(x.ravel()), asarray(c)

        def loss(x):
            return jnp.sum(c * layer({}, x.reshape(shape)) ** 3)

        f, r = jax.jacfwd, jax.jacrev
        hessians = jax.jit(lambda x: [f(r(loss))(x), r(f(loss))(x), r(r(loss))(x), f(f(loss))(x)])
        for hessian in hessians(x):
            assert_close(hessian, want, dtype="float64")


@pytest.mark.parametrize("strides", [None, (1, 2)])
def test_max_pool_gradients_are_numeric(strides):
    layer = fnn.max_pool((2, 2), strides=strides, padding="SAME")
    x = np.random.default_rng(6).permutation(15).reshape(5, 3, 1) / 8
    with jax.enable_x64(True):
        f = jax.jit(lambda x: jnp.sin(layer({}, x)))
        check_grads(f, (asarray(x),), order=2, modes=("fwd", "rev"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window, strides, spatial", [p for p in POOLS if p[1] is None])
def test_max_pool_of_windows_apart_needs_no_select_and_scatter(window, strides, spatial):
    x = jnp.zeros((2, *spatial, 3))
    ours = jax.grad(lambda x: fnn.max_pool(window)({}, x).sum())
    theirs = jax.grad(lambda x: lax_max_pool(x, window, strides).sum())
    assert "select_and_scatter" in str(jax.make_jaxpr(theirs)(x))  # what we look for exists
    assert "select_and_scatter" not in str(jax.make_jaxpr(ours)(x))
    assert "select_and_scatter" not in jax.jit(ours).lower(x).as_text()
    assert "select_and_scatter" not in str(jax.make_jaxpr(jax.vmap(ours))(x))


def pulled(f, x, dy):
    """f(x), and dy pulled back to x."""

    @jax.jit
    def both(x, dy):
        y, pull = jax.vjp(f, x)
        return y, pull(dy)[0]

    return both(x, dy)


def test_large_max_pools_are_first_maxima_too():
    """Windows too large to be unrolled are pooled axis by axis: values, ties and padding agree."""
    for shape, window, padding in (
        ((2, 14, 21, 2), (7, 7), "VALID"),
        ((2, 13, 12, 2), (6, 8), ((1, 0), (0, 4))),
        ((1, 28, 28, 1), (28, 28), "VALID"),
    ):
        pool = fnn.max_pool(window, padding=padding)
        x = np.random.default_rng(0).integers(-3, 3, shape).astype(np.float32)  # many ties
        known = oracles.max_pool(x, window, padding=padding)[0]
        dy = np.random.default_rng(1).normal(size=known.shape).astype(np.float32)
        y, dx = pulled(lambda x, pool=pool: pool({}, x), x, dy)
        np.testing.assert_array_equal(y, known)
        wanted = oracles.max_pool_backward(x, dy, window, padding=padding)
        np.testing.assert_allclose(dx, wanted, rtol=1e-6)


def test_tangents_of_overlapping_windows_are_not_rounded_on_a_gpu():
    """JAX's own are rounded in 64 bits; it warns while lowering, and a warning is an error here."""
    layer = fnn.max_pool((3, 3), strides=2, padding="SAME")
    with jax.enable_x64(True):
        x = jnp.ones((2, 7, 6, 3))
        tangent = jax.jit(lambda x: jax.jvp(partial(layer, {}), (x,), (x,)))
        assert "slice" in tangent.trace(x).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("padding", ["VALID", "SAME", 1])
@pytest.mark.parametrize("size", [2, 3, 7])
def test_overlapping_windows_as_slices_are_those_of_reduce_window(size, padding):
    """With ties, and the gradient of each."""
    win = pool.pool_window((size, size), 2, padding)
    x = np.random.default_rng(7).integers(0, 9, (2, 11, 8, 3)).astype(np.float32)
    lowest = np.float32(-np.inf)
    shape = jax.eval_shape(lambda x: max_of_slices(x, win), x).shape
    dy = np.random.default_rng(8).integers(-9, 9, shape).astype(np.float32)
    ours = pulled(lambda x: max_of_slices(x, win), x, dy)
    known = pulled(lambda x: pool._reduce(x, lowest, jax.lax.max, win), x, dy)
    for one, other in zip(ours, known, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.cpu
def test_overlapping_windows_need_no_select_and_scatter_on_cpu():
    x, layer = jnp.zeros((2, 7, 6, 3)), fnn.max_pool((3, 3), strides=2, padding="SAME")
    ours = jax.jit(jax.grad(lambda x: layer({}, x).sum()))
    assert "select_and_scatter" not in ours.lower(x).as_text()
    assert "select_and_scatter" in ours.trace(x).lower(lowering_platforms=("tpu",)).as_text()


def test_gradients_of_windows_that_share_a_maximum_are_summed_in_float32():
    """1 + 2^-8 + 2^-8: added one after the other, bfloat16 keeps 1."""
    x = jnp.array([0, 0, 5, 0, 0], jnp.bfloat16)[:, None]
    dy = jnp.array([1, 2**-8, 2**-8], jnp.bfloat16)[:, None]
    layer = fnn.max_pool((3,), strides=1)
    _, dx = pulled(lambda x: layer({}, x), x, dy)
    assert dx.dtype == jnp.bfloat16
    assert dx[:, 0].tolist() == [0, 0, 1 + 2**-7, 0, 0]


def test_a_window_too_long_to_be_written_out_is_reduced():
    x = np.random.default_rng(9).integers(0, 50, (2, 300, 2)).astype(np.float32)
    layer = fnn.max_pool((150,), strides=50)
    dy = np.random.default_rng(8).integers(-9, 9, (2, 4, 2)).astype(np.float32)
    y, dx = pulled(lambda x: layer({}, x), x, dy)
    np.testing.assert_array_equal(y, oracles.max_pool(x, (150,), strides=(50,))[0])
    np.testing.assert_array_equal(dx, oracles.max_pool_backward(x, dy, (150,), strides=(50,)))


def test_in_64_bits_a_gpu_takes_slices_of_a_long_window_too():
    """More places than a byte counts; the program is only lowered, as compiling takes a minute."""
    layer = fnn.max_pool((300,), strides=100)
    with jax.enable_x64(True):
        grad = jax.jit(jax.grad(lambda x: layer({}, x).sum()))
        lowered = grad.trace(jnp.ones((1, 600, 1))).lower(lowering_platforms=("cuda",))
        assert "select_and_scatter" not in lowered.as_text()
