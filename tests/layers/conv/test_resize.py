"""Resizing against the loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fnn
from fnn import errors
from tests.layers.conv import oracles
from tests.layers.conv.support import FLOATS, assert_unary
from tests.layers.support import leading, rounded, seeds, wide
from tests.support import asarray, assert_close


@given(
    method=st.sampled_from(["nearest", "linear", "cubic"]),
    spatial=st.lists(st.integers(1, 4), min_size=1, max_size=2),
    scale=st.lists(st.integers(1, 4), min_size=2, max_size=2),
    lead=leading,
    dtype=st.sampled_from(FLOATS),
    seed=seeds,
)
def test_upsample_is_the_loop(method, spatial, scale, lead, dtype, seed):
    scale = tuple(scale[: len(spatial)])
    x = np.random.default_rng(seed).normal(size=(*lead, *spatial, 1))
    rule = {"nearest": oracles.nearest, "linear": oracles.linear, "cubic": oracles.cubic}[method]
    assert_unary(fnn.upsample(scale, method), x, dtype, lambda x: oracles.upsample(x, scale, rule))


def test_one_scale_stands_for_all_axes_whose_number_is_said():
    x = jnp.arange(12.0).reshape(1, 2, 3, 2)
    for method in ("nearest", "linear"):
        y = fnn.upsample(2, method, spatial_axes=2)({}, x)
        np.testing.assert_array_equal(y, fnn.upsample((2, 2), method)({}, x))
    with pytest.raises(errors.OptionError, match="spatial_axes=2 for images, or scale=.3, 3."):
        fnn.upsample(3)
    for wrong in (0, 2.5, True):
        with pytest.raises(errors.OptionError):
            fnn.upsample(2, spatial_axes=wrong)
    with pytest.raises(errors.OptionError, match="3 ints"):
        fnn.upsample((2, 2), spatial_axes=3)


def test_upsample_is_torchs_and_jaxs():
    """PyTorch's nearest and bilinear; jax.image's cubic away from the border, which it weighs."""
    x = np.float32(np.random.default_rng(6).normal(size=(2, 6, 7, 3)))
    for method, theirs in [("nearest", "nearest"), ("linear", "linear"), ("cubic", "cubic")]:
        y = np.asarray(fnn.upsample((3, 2), method)({}, asarray(x)))
        want = jax.image.resize(x, (2, 18, 14, 3), theirs)
        inner = (slice(None), slice(6, -6), slice(4, -4))
        assert_close(y[inner], np.asarray(want)[inner])
    torch = pytest.importorskip("torch")
    for method, theirs in [("nearest", "nearest"), ("linear", "bilinear")]:
        y = fnn.upsample((3, 2), method)({}, asarray(x))
        want = torch.nn.functional.interpolate(
            torch.tensor(x.transpose(0, 3, 1, 2)), scale_factor=(3, 2), mode=theirs
        )
        assert_close(y, want.numpy().transpose(0, 2, 3, 1))


@pytest.mark.parametrize("method, reach", [("nearest", 0), ("linear", 1), ("cubic", 2)])
def test_upsample_keeps_an_infinity_where_it_is(method, reach):
    x = jnp.zeros((9, 1)).at[4].set(jnp.inf)
    bad = ~np.isfinite(fnn.upsample((3,), method)({}, x)[:, 0])
    assert bad[12:15].all() and not bad[: 12 - 3 * reach].any() and not bad[15 + 3 * reach :].any()


@given(
    lead=leading,
    size=st.tuples(*[st.integers(0, 3)] * 3),
    r=st.integers(1, 3),
    dtype=st.sampled_from(FLOATS),
)
def test_pixel_shuffle_is_the_loop_and_unshuffle_its_inverse(lead, size, r, dtype):
    height, width, channels = size
    x = np.arange(np.prod((*lead, *size, r, r)), dtype="float64")
    x = x.reshape(*lead, height, width, channels * r * r)
    with wide(dtype):
        x, exact = rounded(x, dtype)
        y = fnn.pixel_shuffle(r)({}, x)
        assert y.dtype == x.dtype
        np.testing.assert_array_equal(np.float64(y), oracles.pixel_shuffle(exact, r))
        np.testing.assert_array_equal(fnn.pixel_unshuffle(r)({}, y), x)


def test_pixel_shuffle_is_torchs():
    torch = pytest.importorskip("torch")
    x = np.float32(np.random.default_rng(7).normal(size=(2, 12, 3, 4)))
    theirs = torch.nn.functional.pixel_shuffle(torch.tensor(x), 2).numpy()
    y = fnn.pixel_shuffle(2)({}, asarray(x.transpose(0, 2, 3, 1)))
    np.testing.assert_array_equal(y, theirs.transpose(0, 2, 3, 1))
