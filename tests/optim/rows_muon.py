"""Rows and oracles of Muon."""

from functools import partial
from math import sqrt

import numpy as np
import optax
from hypothesis import strategies as st

import fnn
from tests.optim.rows import Row, decays, epsilons, late_decays, per_leaf, rates

QUINTIC = (3.4445, -4.7750, 2.0315)


def adam_of_array(gs, p, learning_rate, b1=0.9, b2=0.999, eps=1e-8):
    """Kingma & Ba 2015, algorithm 1, for an array."""
    m = v = np.zeros_like(p)
    updates = []
    for t, g in enumerate(gs, start=1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g * g
        root = np.sqrt(v / (1 - b2**t)) + eps
        updates.append(-learning_rate * m / (1 - b1**t) / root)
    return updates


def orthogonalized(x, steps=5, coefficients=QUINTIC):
    """Jordan et al. 2024: the quintic acts on the singular values alone, X = U p(S) V^T."""
    largest = np.abs(x).max(initial=0)
    if not largest:
        return np.zeros_like(x)
    size = largest * np.linalg.norm(x / largest)
    u, s, v = np.linalg.svd(x / size, full_matrices=False)
    a, b, c = coefficients
    for _ in range(steps):
        s = a * s + b * s**3 + c * s**5
    return (u * s) @ v


def muon_matrix(gs, p, learning_rate, beta, weight_decay=0.0, nesterov=True):
    """Jordan et al. 2024: B = beta B + G; O = NS(G + beta B); scaled by sqrt(max(1, out / in))."""
    b, w, updates = np.zeros_like(p), p.copy(), []
    rows, columns = p.shape
    for g in gs:
        b = beta * b + g
        o = orthogonalized(g + beta * b if nesterov else b) * sqrt(max(1, columns / rows))
        updates.append(-learning_rate * (o + weight_decay * w))
        w = w + updates[-1]
    return updates


def muon(gs, p, learning_rate, beta=0.95, weight_decay=0.0, nesterov=True, **adams):
    if p.ndim == 2:
        return muon_matrix(gs, p, learning_rate, beta, weight_decay, nesterov)
    return adam_of_array(gs, p, learning_rate, **{name[5:]: value for name, value in adams.items()})


weight_decays = st.sampled_from([0.0, 0.01, 0.1])


ROWS = {
    "muon": Row(
        build=fnn.optim.muon,
        oracle=per_leaf(muon),
        options=dict(
            learning_rate=rates, beta=decays, weight_decay=weight_decays,
            adam_b1=decays, adam_b2=late_decays, adam_eps=epsilons,
        ),
        usual=dict(learning_rate=0.1),
        needs_params=True,
        tolerance=1e-10,
        scale="leaf",
        checks=dict(splits=False),
        complex=False,
    ),
    "muon without nesterov": Row(
        build=partial(fnn.optim.muon, nesterov=False),
        oracle=per_leaf(partial(muon, nesterov=False)),
        options=dict(learning_rate=rates, beta=decays, weight_decay=weight_decays),
        usual=dict(learning_rate=0.1, beta=0.9, weight_decay=0.1, adam_eps=1e-12),
        optax=lambda adam_eps, **o: optax.contrib.muon(**o, nesterov=False, eps=adam_eps),
        needs_params=True,
        tolerance=1e-10,
        scale="leaf",
        checks=dict(splits=False),
        complex=False,
    ),
}  # fmt: skip
