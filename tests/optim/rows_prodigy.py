"""Rows and oracles of Prodigy."""

from functools import partial
from math import sqrt

import numpy as np
import optax
from hypothesis import strategies as st

import fnn
from tests.optim.oracles import rate_at
from tests.optim.rows import Row, epsilons


def prodigy(
    grads, params, learning_rate=1.0, b1=0.9, b2=0.999, eps=1e-8, d0=1e-6, estim_lr_coef=1.0,
    weight_decay=0.0, bias_correction=False,
):  # fmt: skip
    """Mishchenko & Defazio 2024, algorithm 4, over the leaves of a tree."""
    x = {k: p.copy() for k, p in params.items()}
    m, v, s = ({k: np.zeros_like(p) for k, p in params.items()} for _ in range(3))
    d, r, b3, updates = d0, 0.0, sqrt(b2), []
    for count, g in enumerate(grads):
        gamma, inner, u = rate_at(learning_rate, count), 0.0, {}
        if bias_correction:
            gamma = gamma * sqrt(1 - b2 ** (count + 1)) / (1 - b1 ** (count + 1))
        for k in params:
            m[k] = b1 * m[k] + (1 - b1) * d * g[k]
            v[k] = b2 * v[k] + (1 - b2) * d**2 * g[k] ** 2
            s[k] = b3 * s[k] + (1 - b3) * gamma * d**2 * g[k]
            inner += np.sum(g[k] * (params[k] - x[k]))
            root = np.sqrt(v[k]) + d * eps
            u[k] = -gamma * d * (m[k] / np.where(root, root, 1) + weight_decay * x[k])
        r = b3 * r + (1 - b3) * gamma * d**2 * inner
        total = sum(np.abs(a).sum() for a in s.values())
        d = max(d, estim_lr_coef * r / total if total else 0.0)
        x = {k: x[k] + u[k] for k in params}
        updates.append(u)
    return updates


slow = st.sampled_from([0.0, 0.5, 0.9])  # b1^2 <= b2, or Prodigy's distance explodes on noise
slower = st.sampled_from([0.9, 0.99, 0.999])
weight_decays = st.sampled_from([0.0, 0.01, 0.1])


ROWS = {
    "prodigy": Row(
        build=fnn.optim.prodigy,
        oracle=prodigy,
        options=dict(
            learning_rate=st.sampled_from([0.0, 0.5, 1.0]), b1=slow, b2=slower, eps=epsilons,
            estim_lr_coef=st.sampled_from([0.1, 1.0]),
        ),
        usual=dict(learning_rate=1.0),
        needs_params=True,
        low=-3,
        high=3,
        tolerance=1e-10,
        complex=False,
    ),
    "prodigy with bias correction": Row(
        build=partial(fnn.optim.prodigy, bias_correction=True),
        oracle=partial(prodigy, bias_correction=True),
        options=dict(
            b1=slow, b2=slower, weight_decay=weight_decays,
            estim_lr_coef=st.sampled_from([0.01, 0.1]),  # what decays on noise must not move far
        ),
        usual=dict(b1=0.8, b2=0.99, weight_decay=0.01, eps=1e-12),
        optax=lambda b1, b2, **o: optax.contrib.prodigy(betas=(b1, b2), **o),
        needs_params=True,
        low=-3,
        high=3,
        tolerance=1e-10,
        complex=False,
    ),
}  # fmt: skip
