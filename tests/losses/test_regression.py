"""Losses of numbers where they curve, and of large counts."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from fnn import losses


def test_second_derivatives_at_no_error():
    """Of huber and log cosh the curvature at 0 is 1, where |r| has none."""
    for loss in (losses.huber, losses.log_cosh):
        one = jnp.float32(1)
        assert jax.jit(jax.grad(jax.grad(loss)))(one, one) == 1


def test_likelihoods_of_large_counts_and_small_chances():
    """Terms of 1e7 leave 7, and 1 - q leaves nothing of a q of 1e-9."""
    counts = np.float32([0, 1, 9, 10, 11, 50, 1e3, 1e6])
    log_rate = np.log(counts + np.sqrt(counts) + 1).astype("float32")
    want = -stats.poisson.logpmf(np.float64(counts), np.exp(np.float64(log_rate)))
    got, slope = jax.vmap(jax.value_and_grad(losses.poisson_nll))(log_rate, counts)
    np.testing.assert_allclose(got, want, rtol=3e-4)
    np.testing.assert_allclose(slope, np.exp(np.float64(log_rate)) - counts, rtol=3e-3)
    q = jnp.float32([1e-9, 1e-5, 0.5])
    got = losses.binary_log_loss(q, jnp.zeros(3, int))
    np.testing.assert_allclose(got, -np.log1p(-np.float64(q)), rtol=1e-6)
