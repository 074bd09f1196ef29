"""What clips, averages, masks and guards optimizers, as float64 loops of NumPy."""

import itertools
from fractions import Fraction
from math import fsum, prod, sqrt

import numpy as np


def size(x):
    """|x|, all values one by one."""
    return sqrt(fsum(float(v) * float(v) for v in np.ravel(x)))


# --- decay


def add_decayed_weights(gs, p, weight_decay):
    """Loshchilov & Hutter 2019, algorithm 2, line 12, without the rate."""
    updates = []
    for g in gs:
        updates.append(g + weight_decay * p)
        p = p + updates[-1]
    return updates


# --- clipping


def clip(gs, p, max_delta):
    return [max_delta if g > max_delta else -max_delta if g < -max_delta else g for g in gs]


def clip_by_global_norm(grads, params, max_norm):
    """Pascanu et al. 2013, algorithm 1."""
    updates = []
    for step in grads:
        norm = sqrt(fsum(float(v) ** 2 for g in step.values() for v in np.ravel(g)))
        factor = max_norm / norm if norm > max_norm else 1.0
        updates.append({name: g * factor for name, g in step.items()})
    return updates


def clip_by_block_rms(gs, p, threshold):
    updates = []
    for g in gs:
        rms = size(g) / sqrt(max(prod(g.shape), 1))
        updates.append(g * (threshold / rms) if rms > threshold else g)
    return updates


def units(shape):
    """What one output is computed from: the indices of each, the last axis being the output."""
    if len(shape) < 2:
        return [list(np.ndindex(shape))]
    return [[(*at, out) for at in np.ndindex(shape[:-1])] for out in range(shape[-1])]


def adaptive_grad_clip(gs, p, clipping, eps):
    """Brock et al. 2021, equation 3."""
    updates = []
    for g in gs:
        u = np.array(g, float)
        for unit in units(g.shape):
            norm_g = sqrt(fsum(g[at] ** 2 for at in unit))
            norm_p = max(sqrt(fsum(p[at] ** 2 for at in unit)), eps)
            if norm_g > clipping * norm_p:
                for at in unit:
                    u[at] = clipping * norm_p * (g[at] / norm_g)
        updates.append(u)
        p = p + u
    return updates


def centralize(gs, p):
    """Yong et al. 2020, equation 1."""
    updates = []
    for g in gs:
        u = np.array(g, float)
        if g.ndim > 1:
            for unit in units(g.shape):
                mean = fsum(g[at] for at in unit) / len(unit)
                for at in unit:
                    u[at] = g[at] - mean
        updates.append(u)
    return updates


# --- constraints


def projected(onto):
    """Projected descent along the gradients as they are: p = onto(p + g)."""

    def rule(gs, p, **options):
        updates = []
        for g in gs:
            updates.append(onto(p + g, **options) - p)
            p = p + updates[-1]
        return updates

    return rule


def non_negative(x):
    return np.where(x < 0, 0.0, x)


def box(x, lower, upper):
    return np.where(x < lower, lower, np.where(x > upper, upper, x))


def l2_ball(x, radius):
    return x * (radius / size(x)) if size(x) > radius else x


def simplex(x, total):
    """The nearest point of the simplex: of all supports, the one that its conditions hold for.

    y_i = x_i - theta where x_i > theta, else 0, with theta from sum(y) = total. In fractions, since
    the conditions are strict: at a distance of 1e3, float64 cannot tell supports apart by distance.
    """
    flat, total = [Fraction(float(v)) for v in np.ravel(x)], Fraction(float(total))
    for k in range(1, len(flat) + 1):
        for support in itertools.combinations(range(len(flat)), k):
            theta = (sum(flat[i] for i in support) - total) / k
            if all((v > theta) == (i in support) for i, v in enumerate(flat)):
                return np.reshape([float(max(v - theta, 0)) for v in flat], np.shape(x))
    return np.zeros(np.shape(x))  # for total 0, where nothing is above theta


# --- averages


def ema(gs, p, decay, debias=True):
    m, updates = 0.0, []
    for t, g in enumerate(gs, start=1):
        m = decay * m + (1 - decay) * g
        updates.append(m / (1 - decay**t) if debias else m)
    return updates


def mean_of_iterates(ps, start=0):
    """Polyak & Juditsky 1992: the mean of what came after `start`; until then the last."""
    ps = list(ps)
    return ps[-1] if len(ps) <= start else sum(ps[start:]) / len(ps[start:])


def ema_of_iterates(ps, decay):
    """Weights decay^(age), normalized."""
    weights = [decay ** (len(ps) - 1 - i) for i in range(len(ps))]
    return sum(w * p for w, p in zip(weights, ps, strict=True)) / sum(weights)


def lookahead_sgd(gs, p, learning_rate, slow_step_size, sync_period=5):
    """Zhang et al. 2019, algorithm 1: two nested loops, with SGD within."""
    gs, updates, phi = iter(gs), [], p
    while True:
        theta = phi
        for i in range(sync_period):
            g = next(gs, None)
            if g is None:
                return updates
            before, theta = theta, theta - learning_rate * g
            if i < sync_period - 1:
                updates.append(theta - before)
        phi = phi + slow_step_size * (theta - phi)
        updates.append(phi - before)


# --- gradients of a linear model: loss = mean((x w - y)^2) / 2


def residuals(w, x, y):
    return np.array([fsum(a * b for a, b in zip(row, w, strict=True)) for row in x]) - y


def least_squares(w, x, y):
    """Value and gradient."""
    r = residuals(w, x, y)
    return fsum(r * r) / (2 * len(y)), np.array([fsum(r * c) / len(y) for c in x.T])


def sam(w, x, y, rho):
    """Foret et al. 2021, equations 2 and 3."""
    value, g = least_squares(w, x, y)
    e = rho * g / size(g) if size(g) else 0 * g
    return value, least_squares(w + e, x, y)[1]


def per_example_clip(w, x, y, max_norm):
    """Abadi et al. 2016, algorithm 1, without noise."""
    total = np.zeros_like(w)
    for row, target in zip(x, y, strict=True):
        _, g = least_squares(w, row[None], target[None])
        total += g / max(1.0, size(g) / max_norm)
    return least_squares(w, x, y)[0], total / len(y)


def loss_scale(scale, finite, period, factor, good=0):
    """The scale after each of a run of steps, of which some were finite."""
    scales = []
    for ok in finite:
        good = good + 1 if ok else 0
        if not ok:
            scale = max(scale / factor, 1.0)
        elif good == period:
            scale, good = scale * factor, 0
        scales.append(scale)
    return scales
