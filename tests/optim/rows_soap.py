"""Rows and oracles of Shampoo and SOAP."""

import numpy as np
from hypothesis import strategies as st

import fnn
from tests.optim.rows import Row, decays, epsilons, late_decays, per_leaf, rates


def shampoo(gs, p, learning_rate, eps=1e-4, frequency=1):
    """Gupta et al. 2018, algorithm 1; for other leaves the diagonal of it, G / sqrt(eps + sum)."""
    if p.ndim != 2:
        v, updates = eps + np.zeros_like(p), []
        for g in gs:
            v = v + g * g
            updates.append(-learning_rate * g / np.sqrt(v))
        return updates
    left, right = (eps * np.eye(n) for n in p.shape)
    updates = []
    for t, g in enumerate(gs, start=1):
        left, right = left + g @ g.T, right + g.T @ g
        if (t - 1) % frequency == 0:
            roots = [power(a, -0.25) for a in (left, right)]
        updates.append(-learning_rate * roots[0] @ g @ roots[1])
    return updates


def power(a, exponent):
    u, s, _ = np.linalg.svd(a)
    return (u * s**exponent) @ u.T


def soap(gs, p, learning_rate, b1=0.95, b2=0.95, eps=1e-8, weight_decay=0.01, frequency=10):
    """Vyas et al. 2024, algorithms 3 and 4, from the identity as the first basis; Adam elsewhere.

    The basis is refreshed in each of the first `frequency` steps, of P + 1e-4 tr(P) / n I.
    """
    w, updates = p.copy(), []
    m, v = np.zeros_like(p), np.zeros_like(p)
    matrix = p.ndim == 2
    if matrix:
        left, right = (np.zeros((n, n)) for n in p.shape)
        ql, qr = (np.eye(n) for n in p.shape)
    for t, g in enumerate(gs, start=1):
        m = b1 * m + (1 - b1) * g
        rotated = ql.T @ g @ qr if matrix else g
        v = b2 * v + (1 - b2) * rotated**2
        root = np.sqrt(v / (1 - b2**t)) + eps
        n = (ql.T @ m @ qr if matrix else m) / (1 - b1**t) / root
        u = -learning_rate * ((ql @ n @ qr.T if matrix else n) + weight_decay * w)
        if matrix:
            left, right = b2 * left + (1 - b2) * g @ g.T, b2 * right + (1 - b2) * g.T @ g
            if t <= frequency or t % frequency == 0:
                ql, qr = basis(left, ql), basis(right, qr)
        w = w + u
        updates.append(u)
    return updates


def basis(p, q):
    """Algorithm 4: one step of the power method, made orthogonal by QR."""
    shift = 1e-4 * np.trace(p) / len(p) or 1.0
    return np.linalg.qr(p @ q + shift * q)[0]


weight_decays = st.sampled_from([0.0, 0.01, 0.1])


ROWS = {
    "shampoo": Row(
        build=fnn.optim.shampoo,
        oracle=per_leaf(shampoo),
        options=dict(learning_rate=rates, eps=st.sampled_from([1e-4, 1.0])),
        usual=dict(learning_rate=0.1, eps=0.1),  # of less, float32 has no root to compare
        low=-1,
        high=1,
        tolerance=1e-9,
        scale="leaf",
        checks=dict(splits=False),
        complex=False,
    ),
    "soap": Row(
        build=fnn.optim.soap,
        oracle=per_leaf(soap),
        options=dict(
            learning_rate=rates, b1=decays, b2=late_decays, eps=epsilons, weight_decay=weight_decays
        ),
        usual=dict(learning_rate=0.1),
        needs_params=True,
        low=-1,
        high=1,
        tolerance=1e-8,
        scale="leaf",
        checks=dict(splits=False),
        complex=False,
    ),
}  # fmt: skip
