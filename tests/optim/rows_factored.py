"""Rows and oracles of Adafactor and SM3."""

from functools import partial
from math import fsum, sqrt

import numpy as np
import optax
from hypothesis import strategies as st

import fnn
from tests.optim.oracles import along, length, ratio
from tests.optim.rows import Row, decays, per_leaf, rates


def factored_axes(shape, least):
    """The two longest axes, if the shorter of them has `least` elements."""
    if len(shape) < 2:
        return None
    row, column = sorted(range(len(shape)), key=lambda axis: shape[axis])[-2:]
    return (row, column) if shape[row] >= least else None


def without(at, axis):
    return at[:axis] + at[axis + 1 :]


def factored_rms(gs, min_dim_size_to_factor=128, decay_rate=0.8, eps=1e-30):
    """Shazeer & Stern 2018, algorithm 4 (U_t) with the decay of section 7.2; sums as written there.

    Leaves that are not factored: algorithm 5.
    """
    shape = gs[0].shape
    axes = factored_axes(shape, min_dim_size_to_factor)
    row, column, v, us = {}, {}, {}, []
    for t, g in enumerate(gs, start=1):
        b2 = 1 - t ** (-decay_rate)
        u = np.zeros(shape)
        if axes is None:
            for at in np.ndindex(shape):
                v[at] = b2 * v.get(at, 0.0) + (1 - b2) * (g[at] ** 2 + eps)
                u[at] = ratio(g[at], sqrt(v[at]))
            us.append(u)
            continue
        sum_r, sum_c = {}, {}  # of rows, keyed without their column; of columns likewise
        for at in np.ndindex(shape):
            square = float(g[at]) ** 2 + eps
            r, c = without(at, axes[1]), without(at, axes[0])
            sum_r[r] = sum_r.get(r, 0.0) + square
            sum_c[c] = sum_c.get(c, 0.0) + square
        for key, value in sum_r.items():
            row[key] = b2 * row.get(key, 0.0) + (1 - b2) * value
        for key, value in sum_c.items():
            column[key] = b2 * column.get(key, 0.0) + (1 - b2) * value
        for at in np.ndindex(shape):
            others = [list(at) for _ in range(shape[axes[0]])]
            for i, other in enumerate(others):
                other[axes[0]] = i
            whole = fsum(row[without(tuple(other), axes[1])] for other in others)
            r, c = row[without(at, axes[1])], column[without(at, axes[0])]
            u[at] = ratio(g[at], sqrt(ratio(r * c, whole)))
        us.append(u)
    return us


def param_block_rms(gs, p, min_scale=1e-3):
    """Shazeer & Stern 2018, section 8: the step relative to the root mean square of the params."""
    p, updates = np.array(p), []
    for g in gs:
        updates.append(max(min_scale, length(p) / sqrt(p.size)) * g)
        p = p + updates[-1]
    return updates


def adafactor(
    gs,
    p,
    learning_rate=None,
    decay_rate=0.8,
    min_dim_size_to_factor=128,
    eps=1e-30,
    clipping_threshold=1.0,
    min_scale=1e-3,
    momentum=0.0,
    weight_decay=0.0,
):
    """Shazeer & Stern 2018, algorithms 4 and 5 with the settings of algorithm 6."""
    p, updates, m = np.array(p), [], 0.0
    us = factored_rms(gs, min_dim_size_to_factor, decay_rate, eps)
    for t, u in enumerate(us, start=1):
        u = u / max(1.0, length(u) / sqrt(u.size) / clipping_threshold)
        u = u * max(min_scale, length(p) / sqrt(p.size))
        m = momentum * m + (1 - momentum) * u
        rate = min(1e-2, 1 / sqrt(t)) if learning_rate is None else learning_rate
        update = -rate * (m + weight_decay * p)
        p = p + update
        updates.append(update)
    return updates


def sm3(gs, p, learning_rate=None, b1=0.9, eps=0.0):
    """Anil et al. 2019, SM3-II with the slices along each axis for a cover, and its momentum.

    A scalar is covered by itself.
    """
    shape = np.shape(p)
    axes = range(len(shape)) if shape else [None]
    mu, m, updates = {}, np.zeros(shape), []
    for g in gs:
        new, update = {}, np.zeros(shape)
        for at in np.ndindex(shape):
            sets = [(axis, None if axis is None else at[axis]) for axis in axes]
            v = min(mu.get(r, 0.0) for r in sets) + float(g[at]) ** 2
            for r in sets:
                new[r] = max(new.get(r, 0.0), v)
            u = ratio(g[at], sqrt(v + eps))
            m[at] = b1 * m[at] + (1 - b1) * u
            update[at] = along(m[at], learning_rate)
        mu = new
        updates.append(update)
    return updates


by_leaf = dict(scale="leaf", checks=dict(splits=False))
weights = st.sampled_from([0.0, 0.01, 0.5])
small = st.sampled_from([0.0, 1e-8, 1e-3])  # eps that may be none


def optax_adafactor(learning_rate, decay_rate, momentum):
    return optax.adafactor(
        learning_rate, 2, decay_rate, momentum=momentum, dtype_momentum="float64"
    )


def optax_sm3(learning_rate, momentum, eps):
    return optax.chain(optax.scale_by_sm3(momentum, eps=eps), optax.scale(-learning_rate))


ROWS = {
    "scale_by_factored_rms": Row(
        build=partial(fnn.optim.scale_by_factored_rms, min_dim_size_to_factor=2),
        oracle=per_leaf(lambda gs, p, **options: factored_rms(gs, 2, **options)),
        options=dict(decay_rate=st.sampled_from([0.0, 0.5, 0.8, 1.0]), eps=st.just(1e-30)),
        usual=dict(decay_rate=0.8),
        optax=partial(optax.scale_by_factored_rms, min_dim_size_to_factor=2),
        optax_tolerance=1e-6,  # its decay is float32
        **by_leaf,
    ),
    "scale_by_param_block_rms": Row(
        build=fnn.optim.scale_by_param_block_rms,
        oracle=per_leaf(param_block_rms),
        options=dict(min_scale=st.sampled_from([0.0, 1e-3, 1.0])),
        usual=dict(min_scale=1e-3),
        optax=optax.scale_by_param_block_rms,
        low=-3,
        high=0.5,  # the params grow by up to 1 + |g| times a step
        needs_params=True,
        **by_leaf,
    ),
    "adafactor": Row(
        build=partial(fnn.optim.adafactor, min_dim_size_to_factor=2),
        oracle=per_leaf(partial(adafactor, min_dim_size_to_factor=2)),
        options=dict(
            learning_rate=rates,
            decay_rate=st.sampled_from([0.5, 0.8]),
            clipping_threshold=st.sampled_from([0.1, 1.0]),
            momentum=decays,
            weight_decay=weights,
            min_scale=st.sampled_from([1e-3, 1.0]),
        ),
        usual=dict(learning_rate=0.1, decay_rate=0.8, momentum=0.9),
        optax=optax_adafactor,
        optax_tolerance=1e-6,  # its decay is float32
        needs_params=True,
        **by_leaf,
    ),
    "scale_by_sm3": Row(
        build=fnn.optim.scale_by_sm3,
        oracle=per_leaf(sm3),
        options=dict(b1=decays, eps=small),
        usual=dict(b1=0.9, eps=1e-8),
        optax=optax.scale_by_sm3,
        **by_leaf,
    ),
    "sm3": Row(
        build=fnn.optim.sm3,
        oracle=per_leaf(lambda gs, p, momentum, **rest: sm3(gs, p, b1=momentum, **rest)),
        options=dict(learning_rate=rates, momentum=decays, eps=small),
        usual=dict(learning_rate=0.1, momentum=0.9, eps=0.0),
        optax=optax_sm3,
        **by_leaf,
    ),
}
