"""Pools over the whole image against the loop."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fnn
from tests.layers.conv import oracles
from tests.layers.conv.support import FLOATS, assert_unary
from tests.layers.support import leading, seeds
from tests.support import asarray, assert_close


@given(
    largest=st.booleans(),
    n=st.integers(1, 3),
    lead=leading,
    dtype=st.sampled_from(FLOATS),
    seed=seeds,
)
def test_global_pools_are_the_loops(largest, n, lead, dtype, seed):
    """The pools over windows as large as the image, ties to the first."""
    spatial = (3, 2, 2)[:n]
    x = np.round(np.random.default_rng(seed).normal(size=(*lead, *spatial, 2)))
    at = tuple(range(len(lead), len(lead) + n))
    layer = (fnn.global_max_pool if largest else fnn.global_avg_pool)(n)
    pull = oracles.max_pool_backward if largest else oracles.avg_pool_backward

    def want(x):
        y = oracles.max_pool(x, spatial)[0] if largest else oracles.avg_pool(x, spatial)
        return y.squeeze(at)

    assert_unary(layer, x, dtype, want, lambda x, dy: pull(x, np.expand_dims(dy, at), spatial))


def test_global_max_pool_of_special_values():
    x = jnp.float32([[-np.inf, 1, np.nan], [-np.inf, np.inf, 2], [-np.inf, np.inf, 3]])
    y, pull = jax.vjp(partial(fnn.global_max_pool(1), {}), x)
    np.testing.assert_array_equal(y, [-np.inf, np.inf, np.nan])
    np.testing.assert_array_equal(pull(jnp.ones(3))[0], [[1, 0, 1], [0, 1, 0], [0, 0, 0]])


@given(
    spatial=st.lists(st.integers(1, 5), min_size=1, max_size=2),
    bins=st.lists(st.integers(1, 6), min_size=2, max_size=2),
    lead=leading,
    dtype=st.sampled_from(FLOATS),
    seed=seeds,
)
def test_adaptive_avg_pool_is_the_loop(spatial, bins, lead, dtype, seed):
    output_size = tuple(bins[: len(spatial)])
    x = np.random.default_rng(seed).normal(size=(*lead, *spatial, 1))
    layer = fnn.adaptive_avg_pool(output_size)
    assert_unary(layer, x, dtype, lambda x: oracles.adaptive_avg_pool(x, output_size))


def test_adaptive_avg_pool_is_torchs():
    torch = pytest.importorskip("torch")
    x = np.float32(np.random.default_rng(5).normal(size=(2, 3, 7, 5)))
    for size in [(3, 2), (7, 5), (1, 1), (10, 4)]:
        theirs = torch.nn.functional.adaptive_avg_pool2d(torch.tensor(x), size)
        y = fnn.adaptive_avg_pool(size)({}, asarray(x.transpose(0, 2, 3, 1)))
        assert_close(y, theirs.numpy().transpose(0, 2, 3, 1))
