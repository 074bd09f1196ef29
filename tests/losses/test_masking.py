"""Means of what a mask leaves."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fnn import errors, losses
from tests.losses.support import NOT_ARRAYS, seeds, shape_mutations
from tests.support import asarray, assert_close, assert_teaches, outcome, same_when_traced


@given(seed=seeds, kept=st.sampled_from([0, 1, 5]))
def test_masked_mean(seed, kept):
    rng = np.random.default_rng(seed)
    values, mask = rng.normal(size=(2, 3)), np.zeros(6, bool)
    mask[rng.permutation(6)[:kept]] = True
    mask = mask.reshape(2, 3)
    spoilt = asarray(np.where(mask, values, np.nan), "float32")
    got, gradient = jax.value_and_grad(losses.masked_mean)(spoilt, asarray(mask))
    assert_close(got, values[mask].sum() / max(kept, 1), dtype="float32")
    assert_close(gradient, mask / max(kept, 1), dtype="float32")
    assert losses.masked_mean(jnp.zeros(0), jnp.zeros(0, bool)) == 0


def test_a_masked_mean_is_counted_in_float32():
    """In bfloat16 a sum of ones would stop at 256."""
    got = losses.masked_mean(jnp.ones(1000, jnp.bfloat16), jnp.arange(1000) < 900)
    assert got == 1 and got.dtype == jnp.float32


def test_wrong_masks_of_a_mean():
    for wrong in NOT_ARRAYS:
        assert_teaches(outcome(losses.masked_mean, jnp.ones(2), wrong), "masked_mean")
        assert_teaches(outcome(losses.masked_mean, wrong, jnp.ones(2, bool)), "masked_mean")
    for shape in shape_mutations((4,)):
        error = same_when_traced(losses.masked_mean, jnp.ones(4), jnp.ones(shape, bool))
        assert error is None if shape == () else isinstance(error, errors.ShapeError)
