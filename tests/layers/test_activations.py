"""Activations with parameters."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import fnn
from tests.layers import oracles
from tests.layers.support import DTYPES, KEY, drawn, run_and_pull_all, seeds, wide
from tests.support import asarray, assert_close, numeric_vjp

PRELU = fnn.prelu()


@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.sampled_from([(0, 2), (2, 1, 2)]),
    seed=seeds,
)
def test_prelu_is_the_loop(dtype, shape, seed):
    with wide(dtype):
        (x, alpha, dy), (exact_x, exact_alpha, exact_dy) = drawn(
            dtype, seed, shape, shape[-1:], shape
        )
        y, dparams, (dx,) = run_and_pull_all(PRELU, {"alpha": alpha}, (x,), dy)
        assert_close(y, oracles.prelu(exact_x, exact_alpha), dtype=dtype)
        assert_close(dx, exact_dy * np.where(exact_x > 0, 1, exact_alpha), dtype=dtype)
        want = numeric_vjp(lambda alpha: oracles.prelu(exact_x, alpha), exact_alpha, exact_dy)
        tolerance = 1e-8 if dtype == "float64" else None
        assert_close(dparams["alpha"], want, dtype=dtype, tolerance=tolerance)


def test_prelu_at_zero_and_infinity():
    x = asarray([-jnp.inf, -0.0, 0.0, jnp.inf])[:, None]
    params, _ = PRELU.init(KEY, x)
    np.testing.assert_array_equal(params["alpha"], [0.25])
    y, dparams, (dx,) = run_and_pull_all(PRELU, params, (x,), asarray([0.0, 1, 1, 1])[:, None])
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(dx[1:, 0], [0.25, 0.25, 1])
    y, dparams, _ = run_and_pull_all(PRELU, params, (x[1:],), jnp.ones((3, 1)))
    np.testing.assert_array_equal(dparams["alpha"], [0])


def test_prelu_init_may_be_a_tracer():
    drawn = jax.vmap(lambda a: fnn.prelu(a).init(KEY, (1, 2))[0]["alpha"])(asarray([0.1, 0.5]))
    np.testing.assert_array_equal(drawn, np.float32([[0.1, 0.1], [0.5, 0.5]]))
