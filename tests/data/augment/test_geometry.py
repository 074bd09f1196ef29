"""Geometric augmentations against SciPy and NumPy, with the draws read from what they do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given
from hypothesis import strategies as st

from fnn.data import augment
from tests.data.augment.support import (
    images,
    keys,
    mapped,
    noise,
    offset_for,
    ramps,
    read_affine,
    read_places,
)
from tests.support import QUICK

AFFINE = {
    "rotate": augment.rotate(60, fill=0.5),
    "zoom": augment.zoom(0.6, 1.7, fill=0.5),
    "shear": augment.shear(25, fill=0.5),
    "affine": augment.affine(40, (2.5, 0.5), (0.8, 1.2), 15, fill=0.5),
}
DRAWS = 150
KEY = jax.random.key(0)


@functools.cache
def drawn(name):
    """(A [n, 2, 2], t [n, 2]) of many draws."""
    options = {
        "rotate": augment.rotate(60),
        "zoom": augment.zoom(0.6, 1.7),
        "shear": augment.shear(25),
        "affine": augment.affine(40, (2.5, 0.5), (0.8, 1.2), 15),
    }
    ys = mapped(options[name], keys(DRAWS), ramps(15, 12))
    a, t = zip(*map(read_affine, ys), strict=True)
    return np.stack(a), np.stack(t)


@functools.cache
def of_all(shape):
    """All of AFFINE on one random image, by one program: {name: [3, H, W, C]}."""
    x = noise(shape)
    run = jax.jit(lambda ks: {n: jax.vmap(f, (0, None))(ks, x) for n, f in AFFINE.items()})
    return x, run(keys(DRAWS)[:3])


SHAPES = [(1, 6, 2), (7, 4, 1)] if QUICK else [(1, 1, 1), (1, 6, 2), (7, 4, 1), (8, 8, 3)]


@pytest.mark.parametrize("shape", SHAPES)
def test_affine_maps_are_scipys(shape):
    x, ys = of_all(shape)
    for name, some in ys.items():
        a, t = drawn(name)
        for i, y in enumerate(np.asarray(some)):
            for channel in range(shape[-1]):
                want = scipy.ndimage.affine_transform(
                    np.float64(x[..., channel]), a[i], offset_for(a[i], t[i], shape[:2]),
                    order=1, mode="grid-constant", cval=0.5,
                )  # fmt: skip
                np.testing.assert_allclose(y[..., channel], want, atol=2e-4, err_msg=name)


def test_rotations_turn_by_all_angles_and_counterclockwise():
    a, t = drawn("rotate")
    np.testing.assert_allclose(
        a @ np.swapaxes(a, 1, 2), np.tile(np.eye(2), (DRAWS, 1, 1)), atol=1e-4
    )
    np.testing.assert_allclose(np.linalg.det(a), 1, atol=1e-4)
    np.testing.assert_allclose(t, 0, atol=1e-3)
    covers(np.degrees(np.arctan2(a[:, 0, 1], a[:, 0, 0])), -60, 60)
    x = np.zeros((5, 5, 1), np.float32)
    x[2, 4] = 1  # to the right of the middle; turned by a right angle it is above
    turned = mapped(augment.rotate(90), keys(200), x)[..., 0]
    left_of_the_top = turned[:, :2, 3:].sum((1, 2))
    below = turned[:, 3:, 3:].sum((1, 2))
    assert (left_of_the_top > 0.5).any() and (below > 0.5).any()


def covers(values, low, high):
    """Uniform numbers from low to high."""
    slack = 1e-3 * (high - low)
    assert values.min() > low - slack and values.max() < high + slack
    share = np.sort((values - low) / (high - low))
    even = (np.arange(len(share)) + 0.5) / len(share)
    assert np.abs(share - even).max() < 1.7 / np.sqrt(len(share))  # Kolmogorov and Smirnov


def test_zooms_and_shears_cover_their_ranges():
    a, t = drawn("zoom")
    np.testing.assert_allclose(a[:, [0, 1], [1, 0]], 0, atol=1e-4)
    np.testing.assert_allclose(a[:, 0, 0], a[:, 1, 1], atol=1e-4)
    covers(1 / a[:, 0, 0], 0.6, 1.7)
    a, _ = drawn("shear")
    np.testing.assert_allclose(a[:, [0, 1, 0], [0, 1, 1]], [[1, 1, 0]] * DRAWS, atol=1e-4)
    covers(-np.degrees(np.arctan(a[:, 1, 0])), -25, 25)


def test_the_parts_of_an_affine_map():
    """A^-1 = z R S, so z is the root of its determinant, and R S its shape."""
    a, t = drawn("affine")
    forward = np.linalg.inv(a)
    z = np.sqrt(np.linalg.det(forward))
    covers(z, 0.8, 1.2)
    cos, sin = -forward[:, 0, 1], forward[:, 1, 1]  # the second column of R, which S leaves
    angle = np.degrees(np.arctan2(cos, sin))
    covers(angle, -40, 40)
    turned = np.radians(angle)
    r = np.stack([[np.cos(turned), -np.sin(turned)], [np.sin(turned), np.cos(turned)]])
    s = np.swapaxes(np.moveaxis(r, -1, 0), 1, 2) @ forward / z[:, None, None]
    np.testing.assert_allclose(s[:, [0, 1, 0], [0, 1, 1]], [[1, 1, 0]] * DRAWS, atol=1e-3)
    covers(np.degrees(np.arctan(s[:, 1, 0])), -15, 15)
    covers(t[:, 0], -2.5, 2.5)
    covers(t[:, 1], -0.5, 0.5)
    parts = np.stack([z, angle, s[:, 1, 0], t[:, 0], t[:, 1]])
    assert np.abs(np.corrcoef(parts) - np.eye(5)).max() < 0.3  # drawn independently


def test_labels_go_along_with_their_picture():
    """The same key and options with order=0: each pixel is one of those that order=1 mixes."""
    h, w = 9, 7
    names = np.arange(h * w, dtype=np.int32).reshape(h, w, 1) + 1
    nearest = augment.affine(40, (2.5, 0.5), (0.8, 1.2), 15, order=0, fill=-1)
    linear = augment.affine(40, (2.5, 0.5), (0.8, 1.2), 15)
    ys, places = mapped(nearest, keys(20), names), mapped(linear, keys(20), ramps(h, w))
    assert ys.dtype == np.int32
    for y, place in zip(ys[..., 0], places, strict=True):
        rows, cols, inside = read_places(place)
        sure = inside & (np.abs(rows % 1 - 0.5) > 1e-3) & (np.abs(cols % 1 - 0.5) > 1e-3)
        want = np.floor(rows + 0.5) * w + np.floor(cols + 0.5) + 1
        assert sure.sum() > 10
        np.testing.assert_array_equal(y[sure], want[sure])
    assert (ys == -1).any() and (ys > 0).any() and not (ys == 0).any()


@given(h=st.integers(1, 6), w=st.integers(1, 6), most=st.integers(0, 8), seed=st.integers(0, 9))
def test_shifts_are_scipys(h, w, most, seed):
    x = images((h, w, 2), seed=seed)
    ys = mapped(augment.shift(most, fill=7), keys(12, seed), x)
    found = [
        [
            by
            for by in np.ndindex(2 * most + 1, 2 * most + 1)
            if np.array_equal(
                scipy.ndimage.shift(np.asarray(x), (*np.array(by) - most, 0), order=0, cval=7), y
            )
        ]
        for y in ys
    ]
    assert all(found) and ys.dtype == np.uint8


def test_shifts_are_uniform_and_by_axis():
    x = np.zeros((9, 9, 1), np.float32)
    x[4, 4] = 1
    at = np.argwhere(mapped(augment.shift((1, 3)), keys(700), x)[..., 0])[:, 1:] - 4
    counts = np.zeros((3, 7), int)
    np.add.at(counts, tuple((at + [1, 3]).T), 1)
    assert counts.sum() == 700 and np.abs(counts - 700 / 21).max() < 5 * np.sqrt(700 / 21)
    traced = jax.jit(lambda n, key: augment.shift(n)(key, x))  # pixels may be traced
    for n in (2, np.uint8(3)):
        np.testing.assert_array_equal(traced(n, KEY), augment.shift(int(n))(KEY, x))


@given(
    h=st.integers(1, 6), w=st.integers(1, 6), pad=st.integers(0, 2), seed=st.integers(0, 9),
    data=st.data(),
)  # fmt: skip
def test_crops_are_slices_of_the_padded_image(h, w, pad, seed, data):
    size = data.draw(st.tuples(st.integers(1, h + 2 * pad), st.integers(1, w + 2 * pad)))
    x = np.arange(1, h * w + 1, dtype=np.uint8).reshape(h, w, 1)
    padded = np.pad(x, ((pad, pad), (pad, pad), (0, 0)), constant_values=99)
    windows = np.lib.stride_tricks.sliding_window_view(padded, size, (0, 1))
    windows = np.moveaxis(windows, 2, -1).reshape(-1, *size, 1)
    ys = mapped(augment.crop(size, pad, fill=99), keys(300, seed), x)
    found = (ys[:, None] == windows).all((2, 3, 4))
    assert found.any(1).all() and ys.shape == (300, *size, 1)
    if len(windows) <= 12:
        assert found.any(0).all()  # every place comes


def test_flips_come_at_their_rate():
    x = images((3, 4, 2))
    for axis in (-2, -3):
        ys = mapped(augment.flip(axis, 0.3), keys(400), x)
        flipped = (ys == np.flip(x, axis)).all((1, 2, 3))
        assert (flipped | (ys == np.asarray(x)).all((1, 2, 3))).all()
        assert abs(flipped.mean() - 0.3) < 5 * np.sqrt(0.21 / 400)


@pytest.mark.parametrize(("shape", "sigma"), [((1, 5, 1), 0.6), ((9, 12, 2), 3.0)])
def test_elastic_moves_are_smoothed_noise(shape, sigma):
    h, w, _ = shape
    alpha, key = 20.0, jax.random.key(3)
    x = np.concatenate([noise(shape), ramps(h, w)], -1)
    y = np.asarray(jax.jit(augment.elastic(alpha, sigma, fill=0.25))(key, x))
    u = np.float64(jax.random.uniform(key, (2, h, w), jnp.float32, -1, 1))
    moves = alpha * np.stack(
        [scipy.ndimage.gaussian_filter(part, sigma, mode="constant", truncate=12) for part in u]
    )
    places = moves + np.mgrid[:h, :w]
    for channel in range(x.shape[-1]):
        want = scipy.ndimage.map_coordinates(
            np.float64(x[..., channel]), places, order=1, mode="grid-constant", cval=0.25
        )
        np.testing.assert_allclose(y[..., channel], want, atol=2e-4)


def test_the_deviation_of_elastic_moves_is_as_documented():
    y = jax.jit(augment.elastic(34.0, 4.0))(jax.random.key(0), ramps(200, 200))
    rows, cols, inside = read_places(y)
    moves = np.stack([rows, cols])[:, inside] - np.argwhere(inside).T
    assert abs(moves[:, :].std() - 0.163 * 34 / 4) < 0.15


def test_nan_reaches_only_what_is_interpolated_from_it():
    """At whole pixels the neighbours have no weight; and what lies outside is not read."""
    x = noise((6, 6, 1))
    x[2, 3] = np.nan
    fs = augment.affine(), augment.shift(0), augment.crop(6), augment.elastic(0, 1)
    last = np.where(np.arange(6)[:, None, None] < 5, noise((6, 6, 1)), np.nan)
    run = jax.jit(lambda x, last: ([f(KEY, x) for f in fs], augment.zoom(2, 2)(KEY, last)))
    same, large = run(x, last.astype(np.float32))
    for y in same:
        np.testing.assert_array_equal(y, x)
    assert np.isfinite(large).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_where_it_is(bad):
    """At half the size, every other pixel is read, and outside of the image is fill."""
    x = noise((5, 5, 1))
    x[[0, -1]] = x[:, [0, -1]] = bad
    small = np.full((5, 5, 1), 7, np.float32)
    small[1:4, 1:4] = x[::2, ::2]
    fs = augment.affine(), augment.elastic(0, 1), augment.zoom(0.5, 0.5, fill=7)
    found = jax.jit(lambda x: [f(KEY, x) for f in fs])(x)
    for y, want in zip(found, (x, x, small), strict=True):
        np.testing.assert_array_equal(y, want)


def test_a_strength_of_zero_has_the_slope_of_a_small_one():
    """On a ramp, which is interpolated exactly: y moves with the place where it is read."""
    x = ramps(9, 9)[..., :1]

    @jax.jit
    @jax.jacobian
    def slopes(strength):
        fs = augment.affine(shift=(strength, 0.0)), augment.elastic(strength, 2.0)
        return jnp.stack([f(KEY, x)[4, 4, 0] for f in fs])

    np.testing.assert_allclose(slopes(0.0), slopes(0.3), rtol=1e-3)
    assert (np.abs(slopes(0.0)) > 1e-3).all()


def test_gradients_by_strength_and_by_the_image():
    """Numeric ones; and at the identity, where all places are on the grid."""
    rows, cols, _ = np.moveaxis(ramps(12, 10), -1, 0)
    x = np.exp(-((rows - 5) ** 2 + (cols - 4) ** 2) / 9)[..., None]  # smooth, and 0 at the edges
    key = jax.random.key(1)

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1))
    def loss(options, x):
        degrees, most, zoom, shear, alpha = options
        y = augment.affine(degrees, most, (zoom, zoom + 0.1), shear)(key, x)
        return jnp.sum(jnp.sin(augment.elastic(alpha, 2.0)(key, y) * 3))

    options = np.float32([20, 1.3, 0.9, 8, 5])
    _, (slope, by_image) = loss(options, x)
    for i, step in enumerate(np.diag(np.float32([2e-2, 2e-3, 1e-3, 1e-2, 1e-2]))):
        numeric = (loss(options + step, x)[0] - loss(options - step, x)[0]) / (2 * step[i])
        np.testing.assert_allclose(slope[i], numeric, rtol=0.05, atol=0.02, err_msg=str(i))
    assert np.isfinite(by_image).all() and np.abs(by_image).max() > 0
    _, (slope, by_image) = loss(np.float32([0, 0, 1, 0, 0]), x)
    assert np.isfinite(slope).all() and np.isfinite(by_image).all()
