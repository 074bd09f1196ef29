"""Optimizers that know more than the gradient, as float64 NumPy loops from the papers."""

from math import sqrt

import numpy as np

QUINTIC = (3.4445, -4.7750, 2.0315)


def rate_at(learning_rate, count):
    return learning_rate(count) if callable(learning_rate) else learning_rate


def adam(gs, p, learning_rate, b1=0.9, b2=0.999, eps=1e-8):
    """Kingma & Ba 2015, algorithm 1, for an array."""
    m = v = np.zeros_like(p)
    updates = []
    for t, g in enumerate(gs, start=1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g * g
        root = np.sqrt(v / (1 - b2**t)) + eps
        updates.append(-learning_rate * m / (1 - b1**t) / root)
    return updates


# --- Muon


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
    return adam(gs, p, learning_rate, **{name[5:]: value for name, value in adams.items()})


# --- schedule-free


def schedule_free_sgd(gs, p, learning_rate, b1=0.9, weight_decay=0.0, power=2.0):
    """Defazio et al. 2024, equations 3 to 5, averaging with the weights of algorithm 1."""
    x = z = y = p
    total = largest = 0.0
    updates = []
    for count, g in enumerate(gs):
        rate = rate_at(learning_rate, count)
        largest = max(largest, rate)
        z = z - rate * (g + weight_decay * y)
        total += largest**power
        c = largest**power / total if total else 0.0
        x = x + c * (z - x)  # so that nothing rounds where x = z
        new = z + b1 * (x - z)
        updates.append(new - y)
        y = new
    return updates


def schedule_free_adamw(
    gs, p, learning_rate, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, power=2.0
):
    """Defazio et al. 2024, algorithm 1."""
    x = z = y = p
    total = largest = v = 0.0
    updates = []
    for count, g in enumerate(gs):
        t = count + 1
        v = b2 * v + (1 - b2) * g * g
        rate = rate_at(learning_rate, count)
        largest = max(largest, rate)
        z = z - rate * g / (sqrt(v / (1 - b2**t)) + eps) - rate * weight_decay * y
        total += largest**power
        c = largest**power / total if total else 0.0
        x = x + c * (z - x)  # so that nothing rounds where x = z
        new = z + b1 * (x - z)
        updates.append(new - y)
        y = new
    return updates


# --- L-BFGS


def lbfgs_directions(gs, xs, memory):
    """H_t g_t with the matrix H_t formed: Nocedal & Wright 2006, equations 7.16 and 7.20."""
    pairs, directions = [], []
    n = len(gs[0])
    for t, (g, x) in enumerate(zip(gs, xs, strict=True)):
        if t:
            s, y = x - xs[t - 1], g - gs[t - 1]
            if not np.any(s):
                pairs = []
            if s @ y > np.finfo(float).eps * np.linalg.norm(s) * np.linalg.norm(y):
                pairs = [*pairs, (s, y)][-memory:]
        if pairs:
            s, y = pairs[-1]
            h = s @ y / (y @ y) * np.eye(n)
        else:
            h = min(1.0, 1 / np.linalg.norm(g)) * np.eye(n) if np.any(g) else np.eye(n)
        for s, y in pairs:
            v = np.eye(n) - np.outer(y, s) / (y @ s)
            h = v.T @ h @ v + np.outer(s, s) / (y @ s)
        directions.append(h @ g)
    return directions


def unit_lbfgs(grads, params, learning_rate, memory=4):
    """Steps of length learning_rate along L-BFGS's directions, so that rounding cannot build up."""
    names = sorted(params)
    x = np.concatenate([params[k].ravel() for k in names])
    gs = [np.concatenate([step[k].ravel() for k in names]) for step in grads]
    xs, updates = [], []
    for t in range(len(gs)):
        xs.append(x)
        d = lbfgs_directions(gs[: t + 1], xs, memory)[-1]
        u = -learning_rate * d / (np.linalg.norm(d) or 1.0)
        x = x + u
        parts = np.split(u, np.cumsum([params[k].size for k in names])[:-1])
        updates.append({k: a.reshape(params[k].shape) for k, a in zip(names, parts, strict=True)})
    return updates


# --- Prodigy


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


# --- Shampoo and SOAP


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


# --- Sophia


def sophia(
    gs, p, learning_rate, b1=0.96, b2=0.99, eps=1e-12, gamma=0.01, update_interval=10,
    clip_threshold=1.0, weight_decay=0.2, hessian=lambda g: g * g,
):  # fmt: skip
    """Liu et al. 2024, algorithm 3, with `hessian(g)` for the estimate."""
    m = h = 0.0
    updates = []
    for t, g in enumerate(gs, start=1):
        m = b1 * m + (1 - b1) * g
        if (t - 1) % update_interval == 0:
            h = b2 * h + (1 - b2) * hessian(g)
        floor = max(gamma * h, eps)
        ratio = np.clip(m / floor if floor else np.sign(m) * np.inf if m else 0.0, -1e300, 1e300)
        u = -learning_rate * (weight_decay * p + np.clip(ratio, -clip_threshold, clip_threshold))
        p = p + u
        updates.append(u)
    return updates
