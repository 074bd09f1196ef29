"""What norms, embeddings and the other small layers should compute, in float64 NumPy loops.

As in `oracles`, nothing here imports jax or fnn; each function is its equation, written as a loop
over output positions. Gradients are numeric differences of these loops.
"""

from math import sqrt

import numpy as np


def _standardized(values, eps):
    """(v - mean) / sqrt(var + eps) of one set of values, in two passes."""
    values = [float(v) for v in values]
    mean = sum(values) / len(values)
    var = sum((v - mean) ** 2 for v in values) / len(values)
    return [(v - mean) / sqrt(var + eps) for v in values]


def _scaled(y, scale, bias):
    for at in np.ndindex(y.shape):
        y[at] = y[at] * float(scale[at[-1]]) + float(bias[at[-1]])
    return y


def layer_norm(x, scale, bias, eps):
    """Ba, Kiros & Hinton 2016, equation 3: each row [C] by its own mean and variance."""
    x = np.float64(x)
    y = np.zeros(x.shape)
    for at in np.ndindex(x.shape[:-1]):
        y[at] = _standardized(x[at], eps)
    return _scaled(y, scale, bias)


def rms_norm(x, scale, eps):
    """Zhang & Sennrich 2019, equation 4, with eps: each row [C] by its root mean square."""
    x = np.float64(x)
    y = np.zeros(x.shape)
    for at in np.ndindex(x.shape[:-1]):
        root = sqrt(sum(float(v) ** 2 for v in x[at]) / x.shape[-1] + eps)
        for c, v in enumerate(x[at]):
            y[(*at, c)] = float(v) / root * float(scale[c])
    return y


def group_norm(x, groups, spatial_axes, scale, bias, eps):
    """Wu & He 2018, equation 7: S_i holds the pixels of one example whose channels share a group.

    One group a channel is the instance norm (Ulyanov et al. 2016).
    """
    x = np.float64(x)
    n_lead = x.ndim - spatial_axes - 1
    members: dict = {}
    for at in np.ndindex(x.shape):
        group = at[-1] // (x.shape[-1] // groups)
        members.setdefault((at[:n_lead], group), []).append(at)
    y = np.zeros(x.shape)
    for places in members.values():
        for at, v in zip(places, _standardized([x[p] for p in places], eps), strict=True):
            y[at] = v
    return _scaled(y, scale, bias)


def group_norm_backward(x, groups, spatial_axes, scale, dy, eps):
    """Adjoint of `group_norm` by x: dx = (dh - mean(dh) - h mean(dh h)) / sqrt(var + eps).

    Means are over a group of n values, h is the standardized x and dh = dy scale. From
    h = (x - m) / r: dh/dx = (I - 1 1' / n) / r - h dr/dx / r, and dr/dx = h / n.
    """
    x, dh = np.float64(x), np.float64(dy) * np.float64(scale)
    width, dx = x.shape[-1] // groups, np.zeros(x.shape)
    for lead in np.ndindex(x.shape[: x.ndim - spatial_axes - 1]):
        for first in range(0, x.shape[-1], width):
            at = (*lead, ..., slice(first, first + width))
            r = np.sqrt(x[at].var() + eps)
            h = (x[at] - x[at].mean()) / r
            dx[at] = (dh[at] - dh[at].mean() - h * (dh[at] * h).mean()) / r
    return dx


def prelu(x, alpha):
    """He et al. 2015, equation 1: f(y_i) = y_i if y_i > 0, else a_i y_i."""
    y = np.float64(x).copy()
    for at in np.ndindex(y.shape):
        y[at] = y[at] if y[at] > 0 else float(alpha[at[-1]]) * y[at]
    return y


def bilinear(x1, x2, kernel, bias):
    """y_o = sum over a, b of x1_a kernel_abo x2_b, plus bias_o."""
    x1, x2, kernel = np.float64(x1), np.float64(x2), np.float64(kernel)
    y = np.zeros((*x1.shape[:-1], kernel.shape[-1]))
    for at in np.ndindex(y.shape):
        *row, o = at
        y[at] = bias[o]
        for a, b in np.ndindex(kernel.shape[:2]):
            y[at] += x1[(*row, a)] * kernel[a, b, o] * x2[(*row, b)]
    return y


def embedding(x, table):
    """y[i] = table[x[i]]."""
    y = np.zeros((*x.shape, table.shape[1]))
    for at in np.ndindex(x.shape):
        y[at] = table[int(x[at])]
    return y


def embedding_backward(x, table, dy):
    """dtable[x[i]] += dy[i]."""
    dtable = np.zeros(table.shape)
    for at in np.ndindex(x.shape):
        dtable[int(x[at])] += np.float64(dy[at])
    return dtable


def alpha_dropout(x, kept, rate):
    """Klambauer et al. 2017, "new dropout technique": a (x d + alpha' (1 - d)) + b.

    Here q is the probability of keeping, alpha' = -lambda alpha, and (a, b) are the affine map
    that gives back mean 0 and variance 1.
    """
    q, limit = 1 - rate, -1.0507009873554804934193349852946 * 1.6732632423543772848170429916717
    a = (q + limit**2 * q * (1 - q)) ** -0.5
    b = -a * (1 - q) * limit
    y = np.zeros(np.shape(x))
    for at in np.ndindex(y.shape):
        y[at] = a * (float(x[at]) if kept[at] else limit) + b
    return y
