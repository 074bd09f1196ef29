"""Rows and oracles of NovoGrad, LAMB, LARS and Fromage."""

from math import sqrt

import numpy as np
import optax
from hypothesis import strategies as st

import fnn
from tests.optim.oracles import along, length, ratio
from tests.optim.rows import Row, decays, epsilons, late_decays, per_leaf, rates


def novograd(gs, p, learning_rate=None, b1=0.9, b2=0.25, eps=1e-8, weight_decay=0.0):
    """Ginsburg et al. 2019, algorithm 1."""
    p, updates = np.array(p), []
    m, v = np.zeros_like(p), 0.0
    for t, g in enumerate(gs, start=1):
        square = length(g) ** 2
        v = square if t == 1 else b2 * v + (1 - b2) * square
        update = np.zeros_like(p)
        for at in np.ndindex(p.shape):
            m[at] = b1 * m[at] + ratio(g[at], sqrt(v) + eps) + weight_decay * p[at]
            update[at] = along(m[at], learning_rate)
        p = p + update
        updates.append(update)
    return updates


def trust(u, p, coefficient=1.0, min_norm=0.0, eps=0.0, weight_decay=0.0):
    """The step of LAMB and LARS: u, decayed, at coefficient |p| / (|u| + weight_decay |p|)."""
    of_p, of_u = max(length(p), min_norm), max(length(u), min_norm)
    moved = u + weight_decay * p
    below = of_u + weight_decay * of_p
    return coefficient * of_p / (below + eps) * moved if of_p > 0 and below > 0 else moved


def trust_ratio(gs, p, min_norm=0.0, trust_coefficient=1.0, eps=0.0, weight_decay=0.0):
    p, updates = np.array(p), []
    for g in gs:
        updates.append(trust(g, p, trust_coefficient, min_norm, eps, weight_decay))
        p = p + updates[-1]
    return updates


def lamb(gs, p, learning_rate, b1=0.9, b2=0.999, eps=1e-6, weight_decay=0.0):
    """You et al. 2020, algorithm 2, with phi the identity."""
    p = np.array(p)
    m, v, updates = np.zeros_like(p), np.zeros(p.shape), []
    for t, g in enumerate(gs, start=1):
        r = np.zeros_like(p)
        for at in np.ndindex(p.shape):
            m[at] = b1 * m[at] + (1 - b1) * g[at]
            v[at] = b2 * v[at] + (1 - b2) * abs(g[at]) ** 2
            r[at] = m[at] / (1 - b1**t) / (sqrt(v[at] / (1 - b2**t)) + eps)
        update = -learning_rate * trust(r + weight_decay * p, p)
        p = p + update
        updates.append(update)
    return updates


def lars(
    gs,
    p,
    learning_rate,
    weight_decay=0.0,
    trust_coefficient=1e-3,
    eps=0.0,
    momentum=0.9,
    nesterov=False,
):
    """You et al. 2017, algorithm 1: v = m v + rate lambda (g + decay w), w = w - v."""
    p, v, updates = np.array(p), 0.0, []
    for g in gs:
        u = learning_rate * trust(g, p, trust_coefficient, eps=eps, weight_decay=weight_decay)
        v = momentum * v + u
        update = -(u + momentum * v if nesterov else v)
        p = p + update
        updates.append(update)
    return updates


def fromage(gs, p, learning_rate, min_norm=1e-6):
    """Bernstein et al. 2020, algorithm 1, with norms of at least min_norm."""
    p, updates = np.array(p), []
    for g in gs:
        of_p, of_g = max(length(p), min_norm), max(length(g), min_norm)
        moved = p - learning_rate * of_p * (g / of_g)
        updates.append(moved / sqrt(1 + learning_rate**2) - p)
        p = p + updates[-1]
    return updates


small = st.sampled_from([0.0, 1e-8, 1e-3])  # eps that may be none
by_leaf = dict(scale="leaf", checks=dict(splits=False))
weights = st.sampled_from([0.0, 0.01, 0.5])


ROWS = {
    "scale_by_novograd": Row(
        build=fnn.optim.scale_by_novograd,
        oracle=per_leaf(novograd),
        options=dict(b1=decays, b2=late_decays, eps=small),
        usual=dict(b1=0.9, b2=0.25, eps=1e-8),
        optax=optax.scale_by_novograd,
        **by_leaf,
    ),
    "novograd": Row(
        build=fnn.optim.novograd,
        oracle=per_leaf(novograd),
        options=dict(
            learning_rate=rates, b1=decays, b2=late_decays, eps=epsilons, weight_decay=weights
        ),
        usual=dict(learning_rate=0.1, b1=0.9, b2=0.25, eps=1e-8, weight_decay=0.01),
        optax=optax.novograd,
        needs_params=True,
        **by_leaf,
    ),
    "scale_by_trust_ratio": Row(
        build=fnn.optim.scale_by_trust_ratio,
        oracle=per_leaf(trust_ratio),
        options=dict(
            min_norm=st.sampled_from([0.0, 1e-2]),
            trust_coefficient=st.sampled_from([1e-3, 0.5, 3.0]),  # 1 could end in p = 0
            eps=small,
            weight_decay=weights,
        ),
        usual=dict(min_norm=0.0, trust_coefficient=0.5, eps=1e-8),
        optax=optax.scale_by_trust_ratio,
        needs_params=True,
        **by_leaf,
    ),
    "fromage": Row(
        build=fnn.optim.fromage,
        oracle=per_leaf(fromage),
        options=dict(learning_rate=rates, min_norm=st.sampled_from([1e-6, 0.1])),
        usual=dict(learning_rate=0.1),
        optax=optax.fromage,
        needs_params=True,
        tolerance=1e-8,  # without a gradient it is p (1 / sqrt(1 + rate^2) - 1), 5e-7 of p at least
        **by_leaf,
    ),
    "lamb": Row(
        build=fnn.optim.lamb,
        oracle=per_leaf(lamb),
        options=dict(
            learning_rate=rates, b1=decays, b2=late_decays, eps=epsilons, weight_decay=weights
        ),
        usual=dict(learning_rate=0.1, b1=0.9, b2=0.999, eps=1e-6, weight_decay=0.01),
        optax=optax.lamb,
        needs_params=True,
        tolerance=1e-9,  # the root of a small second moment
        **by_leaf,
    ),
    "lars": Row(
        build=fnn.optim.lars,
        oracle=per_leaf(lars),
        options=dict(
            learning_rate=rates,
            weight_decay=weights,
            trust_coefficient=st.sampled_from([1e-3, 0.1]),
            eps=small,
            momentum=decays,
        ),
        usual=dict(learning_rate=0.1, trust_coefficient=0.1, momentum=0.9),
        optax=optax.lars,  # with weight decay it differs
        needs_params=True,
        **by_leaf,
    ),
}
