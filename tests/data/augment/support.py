"""Draws read from outside: what an augmentation does to an image that tells where it was read."""

import jax
import numpy as np

from tests.support import asarray


def keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def mapped(f, ks, x):
    """f with each key, on the same x: [n, ...]."""
    return np.asarray(jax.jit(jax.vmap(f, (0, None)))(ks, x))


def ramps(h, w, start=0.0):
    """An image of its own coordinates, and of ones: [H, W, 3]."""
    rows, cols = np.mgrid[:h, :w].astype(np.float32) + start
    return np.stack([rows, cols, np.ones((h, w), np.float32)], axis=-1)


def read_places(y):
    """(rows, cols, inside) of `f(ramps)`: linear interpolation of a ramp is exact inside."""
    rows, cols, ones = np.moveaxis(np.float64(y), -1, 0)
    return rows, cols, ones > 1 - 1e-6


def read_affine(y):
    """(A, t) of one output of `ramps`: it was read at A (p - m - t) + m, m the middle."""
    rows, cols, inside = read_places(y)
    p = np.argwhere(inside)
    basis = np.c_[p, np.ones(len(p))]
    q = np.c_[rows[inside], cols[inside]]
    fit, *_ = np.linalg.lstsq(basis, q, rcond=None)
    assert np.abs(basis @ fit - q).max() < 1e-3  # it is affine
    a, offset = fit[:2].T, fit[2]
    m = (np.array(rows.shape) - 1) / 2
    return a, np.linalg.solve(a, m - offset) - m  # offset = m - A (m + t)


def offset_for(a, t, shape):
    """The offset of `scipy.ndimage.affine_transform` for an image of another shape."""
    m = (np.array(shape) - 1) / 2
    return m - a @ (m + t)


def noise(shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def images(shape, dtype="uint8", seed=0):
    return asarray(np.random.default_rng(seed).integers(0, 256, shape), dtype)
