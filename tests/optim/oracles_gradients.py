"""Oracles of accumulation, SAM and per-example clipping, for mean((x w - y)^2) / 2."""

from math import fsum

import numpy as np

from tests.optim.oracles import length


def residuals(w, x, y):
    return np.array([fsum(a * b for a, b in zip(row, w, strict=True)) for row in x]) - y


def least_squares(w, x, y):
    """Value and gradient."""
    r = residuals(w, x, y)
    return fsum(r * r) / (2 * len(y)), np.array([fsum(r * c) / len(y) for c in x.T])


def sam(w, x, y, rho):
    """Foret et al. 2021, equations 2 and 3."""
    value, g = least_squares(w, x, y)
    e = rho * g / length(g) if length(g) else 0 * g
    return value, least_squares(w + e, x, y)[1]


def per_example_clip(w, x, y, max_norm):
    """Abadi et al. 2016, algorithm 1, without noise."""
    total = np.zeros_like(w)
    for row, target in zip(x, y, strict=True):
        _, g = least_squares(w, row[None], target[None])
        total += g / max(1.0, length(g) / max_norm)
    return least_squares(w, x, y)[0], total / len(y)
