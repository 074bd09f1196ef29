"""Metrics against the NumPy oracles."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import assert_close

import fnn

leading = st.sampled_from([(), (0,), (1,), (3,), (2, 3)])
seeds = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int8, jnp.uint16, jnp.int16, jnp.uint32])
def test_labels_of_any_integer_dtype(dtype):
    """The number of classes need not fit the labels' dtype."""
    for classes in (100, 128, 256, 257):
        logits = jax.random.normal(jax.random.key(0), (3, classes))
        labels = jnp.array([0, 1, 99])
