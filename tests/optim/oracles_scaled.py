"""Float64 loops of the scaled methods, from the papers: RMSprop to SM3 and LARS.

A rule takes one element's gradients (floats) or one leaf's (arrays) over the steps and its first
parameter, and gives its updates. Without a learning rate it is the bare scaling, which ascends.
"""

from decimal import Decimal, localcontext
from math import fsum, sqrt

import numpy as np


def along(u, learning_rate):
    """What is added to the params: u itself, or the step down it."""
    return u if learning_rate is None else -learning_rate * u


def ratio(a, b):
    """a / b with 0 / 0 = 0."""
    return a / b if b != 0 else 0.0


def length(x):
    return sqrt(fsum(abs(v) ** 2 for v in np.ravel(x).tolist()))


def velocity(us, momentum, nesterov):
    """Sutskever et al. 2013: v = momentum v + u, and u + momentum v to look ahead."""
    v = 0.0
    for u in us:
        v = momentum * v + u
        yield u + momentum * v if nesterov else v


# --- one element


def rms(
    gs,
    p,
    learning_rate=None,
    decay=0.9,
    eps=1e-8,
    initial_scale=0.0,
    eps_in_sqrt=True,
    centered=False,
    momentum=0.0,
    nesterov=False,
):
    """Tieleman & Hinton 2012, slide 29; centred: Graves 2013, section 4.2.

    Centred, the variance is a difference of nearly equal numbers: 200 digits.
    """
    us = []
    with localcontext() as context:
        context.prec = 200
        d = Decimal(float(decay))
        n, m = Decimal(float(initial_scale)), Decimal(0)
        for g in map(Decimal, gs):
            n = d * n + (1 - d) * g * g
            m = d * m + (1 - d) * g
            v = n - m * m if centered else n
            e = Decimal(float(eps))
            root = (v + e).sqrt() if eps_in_sqrt else v.sqrt() + e
            us.append(float(g / root) if root else 0.0)
    return [along(u, learning_rate) for u in velocity(us, momentum, nesterov)]


def adagrad(gs, p, learning_rate=None, initial_accumulator_value=0.1, eps=1e-7, eps_in_sqrt=True):
    """Duchi et al. 2011, figure 1 with the diagonal matrix; eps in the root, or delta beside it."""
    total, updates = initial_accumulator_value, []
    for g in gs:
        total += abs(g) ** 2
        root = sqrt(total + eps) if eps_in_sqrt else sqrt(total) + eps
        updates.append(along(ratio(g, root), learning_rate))
    return updates


def adadelta(gs, p, learning_rate=None, rho=0.9, eps=1e-6):
    """Zeiler 2012, algorithm 1."""
    e_g = e_x = 0.0
    updates = []
    for g in gs:
        e_g = rho * e_g + (1 - rho) * abs(g) ** 2
        x = ratio(sqrt(e_x + eps), sqrt(e_g + eps)) * g
        e_x = rho * e_x + (1 - rho) * abs(x) ** 2
        updates.append(along(x, learning_rate))
    return updates


# --- one leaf


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


def polyak(grads, params, max_learning_rate=1.0, scaling=1.0, f_min=0.0, eps=0.0, variant="sps"):
    """Loizou et al. 2021, equation 3, of the whole tree; the value is the sum of all |g|."""
    updates = []
    for g in grads:
        every = np.concatenate([np.ravel(leaf) for leaf in g.values()])
        gap = fsum(np.abs(every)) - f_min
        gap = max(gap, 0.0) if variant == "sps+" else gap
        least = sqrt(length(every) ** 2 + eps)
        step = min(ratio(ratio(gap, least), least), max_learning_rate)
        updates.append({name: -scaling * step * leaf for name, leaf in g.items()})
    return updates
