"""Colours, noise and boxes: their formulas, with the draws read from what they do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fnn.data import augment
from tests.data.augment.support import images, keys, mapped, noise
from tests.data.augment.test_geometry import covers


def test_brightness_adds_one_uniform_number():
    x = noise((3, 4, 2))
    added = mapped(augment.brightness(0.4), keys(300), x) - x
    assert np.ptp(added, axis=(1, 2, 3)).max() < 1e-5
    covers(added[:, 0, 0, 0], -0.4, 0.4)


def test_contrast_scales_each_channel_about_its_mean():
    x = noise((2, 3, 4, 2)) + np.float32([1000, 0])  # a video of two images
    mean = np.float64(x).mean((1, 2), keepdims=True)
    ys = np.float64(mapped(augment.contrast(0.5, 1.5), keys(300), x))
    factors = ((ys - mean) * (x - mean)).sum((2, 3)) / np.square(x - mean).sum((1, 2))
    np.testing.assert_allclose(
        factors, np.broadcast_to(factors[:, :1, :1], factors.shape), rtol=2e-3
    )
    covers(factors[:, 1, 1], 0.5, 1.5)
    np.testing.assert_allclose(
        ys.mean((2, 3)), np.tile(mean[:, 0, 0], (300, 1, 1)), rtol=1e-5, atol=1e-4
    )


def test_noise_is_normal_and_of_every_value():
    x = noise((40, 50, 5))
    added = mapped(augment.noise(0.3), keys(2), x) - x
    assert abs(added.mean()) < 5 * 0.3 / np.sqrt(20_000)
    z = np.sort(added.ravel() / 0.3)
    np.testing.assert_allclose(z[[500, 10_000, -500]], [-1.96, 0, 1.96], atol=0.08)
    assert len(np.unique(added)) > 19_000


def boxes(ys, x):
    """(top, left, height, width, share) of the box in each image, which must be one."""
    found = []
    for changed in (np.asarray(ys) != x).any(-1):
        rows, cols = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        if not len(rows):
            found.append((0, 0, 0, 0))
            continue
        box = (rows[0], cols[0], np.ptp(rows) + 1, np.ptp(cols) + 1)
        assert changed.sum() == box[2] * box[3]
        found.append(box)
    return np.array(found)


@given(
    h=st.integers(1, 9), w=st.integers(1, 9), size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    seed=st.integers(0, 9),
)  # fmt: skip
def test_cutouts_are_boxes_around_a_pixel(h, w, size, seed):
    x = np.ones((h, w, 2), np.uint8)
    found = boxes(mapped(augment.cutout(size, fill=5), keys(200, seed), x), x)
    want = {
        (max(r - size[0] // 2, 0), max(c - size[1] // 2, 0),
         min(r - size[0] // 2 + size[0], h) - max(r - size[0] // 2, 0),
         min(c - size[1] // 2 + size[1], w) - max(c - size[1] // 2, 0))
        for r in range(h) for c in range(w)
    }  # fmt: skip
    came = set(map(tuple, found))
    assert came <= want
    if h * w <= 12:
        assert came == want


def test_cutouts_blot_out_pixels_by_their_size_and_corners_less_often():
    x = np.ones((8, 8, 1), np.float32)
    share = (mapped(augment.cutout(3), keys(2000), x)[..., 0] == 0).mean(0)
    inner = share[1:-1, 1:-1]
    assert abs(inner.mean() - 9 / 64) < 0.01 and np.abs(inner - 9 / 64).max() < 0.04
    assert abs(share[0, 0] - 4 / 64) < 0.03


def test_erased_boxes_have_the_shares_and_shapes_asked_for():
    x = np.ones((60, 50, 1), np.float32)
    found = boxes(mapped(augment.erase((0.05, 0.3), (0.5, 2.0)), keys(300), x), x)
    top, left, h, w = found.T
    covers_roughly(h * w / 3000, 0.05, 0.3, 0.01)
    covers_roughly(np.log(h / w), np.log(0.5), np.log(2), 0.08)
    assert (top >= 0).all() and (top + h <= 60).all() and (left + w <= 50).all()
    rest = np.stack([top / (60 - h), left / (50 - w)])
    assert np.abs(rest.mean(1) - 0.5).max() < 0.08 and rest.min() < 0.03 and rest.max() > 0.97


def covers_roughly(values, low, high, slack):
    """Uniform, but for the rounding of sides to pixels."""
    assert values.min() > low - slack and values.max() < high + slack
    even = low + (high - low) * (np.arange(len(values)) + 0.5) / len(values)
    assert np.abs(np.sort(values) - even).max() < 1.7 / np.sqrt(len(values)) * (high - low) + slack


@pytest.mark.parametrize("shape", [(1, 12, 1), (12, 1, 2), (2, 30, 1), (1, 1, 1)])
def test_erased_boxes_of_narrow_images_keep_their_share(shape):
    """No box of the asked shape fits; the nearest that does is taken."""
    x = np.ones(shape, np.float32)
    found = boxes(mapped(augment.erase((0.5, 0.5)), keys(40), x), x)
    share = found[:, 2] * found[:, 3] / (shape[0] * shape[1])
    if shape == (1, 1, 1):
        assert set(share) <= {0.0, 1.0}
    else:
        np.testing.assert_allclose(share, 0.5, atol=0.1)


def test_erasing_nothing_and_everything():
    x = images((5, 4, 1), "int32") + 1
    for share, want in ((0.0, x), (1.0, jnp.zeros_like(x))):
        for y in mapped(augment.erase((share, share)), keys(20), x):
            np.testing.assert_array_equal(y, want)


def test_strengths_have_slopes():
    x, key = noise((4, 5, 2)), jax.random.key(0)

    @jax.jit
    @jax.grad
    def slope(strength):
        y = augment.brightness(strength)(key, x)
        y = augment.contrast(1 - strength, 1 + strength)(key, y)
        return jnp.square(augment.noise(strength)(key, y)).sum()

    assert np.isfinite(slope(0.3)) and slope(0.3) != 0
