"""What layers of one position should compute, in float64 NumPy loops.

Nothing here imports jax or fnn. Each function is its equation written as a loop over output
positions, and each backward is that loop's adjoint written by hand: where the forward adds
`a * b` to y, the backward adds `dy * b` to da. Slow and plain on purpose.
"""

from math import prod, sqrt

import numpy as np


def dense(x, kernel, bias=None):
    """y_j = sum_i x_i kernel_ij + bias_j: [..., C] -> [..., features]."""
    x, kernel = np.float64(x), np.float64(kernel)
    y = np.zeros(x.shape[:-1] + kernel.shape[1:])
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            y[..., j] += x[..., i] * kernel[i, j]
    return y if bias is None else y + np.float64(bias)


def dense_backward(x, kernel, dy):
    """Adjoint of `dense`: (dx, dkernel, dbias)."""
    x, kernel, dy = np.float64(x), np.float64(kernel), np.float64(dy)
    dx, dkernel = np.zeros(x.shape), np.zeros(kernel.shape)
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            dx[..., i] += dy[..., j] * kernel[i, j]
            dkernel[i, j] = np.sum(dy[..., j] * x[..., i])
    return dx, dkernel, _sum_leading(dy)


def _sum_leading(dy):
    """[..., C] -> [C]."""
    return dy.reshape(prod(dy.shape[:-1]), dy.shape[-1]).sum(0)


def batch_norm_eval(x, scale, bias, mean, var, *, eps=1e-5):
    """y = scale (x - mean) / sqrt(var + eps) + bias with the running statistics."""
    x = np.float64(x)
    return np.float64(scale) * (x - mean) / np.sqrt(np.float64(var) + eps) + np.float64(bias)


def batch_statistics(x):
    """Mean and biased variance of each channel over all other axes, in two passes."""
    rows = np.float64(x).reshape(-1, np.shape(x)[-1])
    mean = rows.sum(0) / len(rows)
    return mean, ((rows - mean) ** 2).sum(0) / len(rows)


def batch_norm_train(x, scale, bias, mean, var, *, momentum=0.9, eps=1e-5):
    """(y, new mean, new var): normalize by the batch, new = momentum old + (1 - momentum) batch."""
    batch_mean, batch_var = batch_statistics(x)
    y = batch_norm_eval(x, scale, bias, batch_mean, batch_var, eps=eps)
    new_mean = momentum * np.float64(mean) + (1 - momentum) * batch_mean
    new_var = momentum * np.float64(var) + (1 - momentum) * batch_var
    return y, new_mean, new_var


def batch_norm_train_backward(x, scale, dy, *, eps=1e-5):
    """(dx, dscale, dbias), through the batch statistics (Ioffe & Szegedy 2015, section 3).

    With h = (x - m) / r and r = sqrt(v + eps), the chain goes y <- h <- (x, m, r) and
    r <- v <- (x, m), m <- x; every arrow is one line below.
    """
    shape = np.shape(x)
    x = np.float64(x).reshape(-1, shape[-1])
    dy = np.float64(dy).reshape(x.shape)
    n = len(x)
    mean, var = batch_statistics(x)
    r = np.sqrt(var + eps)
    h = (x - mean) / r
    dscale, dbias = (dy * h).sum(0), dy.sum(0)
    dh = dy * np.float64(scale)
    dr = (-dh * (x - mean) / r**2).sum(0)
    dvar = dr / (2 * r)
    dmean = (-dh / r).sum(0) + dvar * (-2 * (x - mean) / n).sum(0)
    dx = dh / r + dvar * 2 * (x - mean) / n + dmean / n
    return dx.reshape(shape), dscale, dbias


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


def attention(params, x, memory, heads, kv_heads, causal, rotary, mask):
    """[T, C] and [S, C'] -> [T, features], one query, head and position at a time."""
    p = {n: {k: np.float64(a) for k, a in own.items()} for n, own in params.items()}
    x, memory = np.float64(x), np.float64(memory)
    q, k, v = (
        a @ p[n]["kernel"] + p[n]["bias"] for n, a in zip("qkv", (x, memory, memory), strict=True)
    )
    size = q.shape[-1] // heads
    q = q.reshape(len(x), heads, size)
    k, v = (a.reshape(len(memory), kv_heads, size) for a in (k, v))
    y = np.zeros((len(x), heads, size))
    for t in range(len(x)):
        for n in range(heads):
            own = n * kv_heads // heads
            scores = {}
            for s in range(len(memory)):
                if (causal and s > t) or not mask[n, t, s]:
                    continue
                a, b = q[t, n], k[s, own]
                if rotary:
                    a, b = rotated(a, t, rotary), rotated(b, s, rotary)
                scores[s] = np.exp(a @ b / np.sqrt(size))
            for s, score in scores.items():
                y[t, n] += score / sum(scores.values()) * v[s, own]
    return y.reshape(len(x), -1) @ p["out"]["kernel"] + p["out"]["bias"]


def rotated(a, position, base):
    """As complex numbers: value i + D/2 is the imaginary part of value i."""
    half = len(a) // 2
    turned = (a[:half] + 1j * a[half:]) * np.exp(
        1j * position * base ** (-2 * np.arange(half) / len(a))
    )
    return np.concatenate([turned.real, turned.imag])
