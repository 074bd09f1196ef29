"""What the layers, losses and optimizers should compute, in float64 NumPy loops.

Nothing here imports jax or fnn. Each function is its equation written as a loop over output
positions, and each backward is that loop's adjoint written by hand: where the forward adds
`a * b` to y, the backward adds `dy * b` to da. Slow and plain on purpose.

Layout: x is [..., *spatial, C], a convolution kernel is [*kernel_size, C / groups, features].
"""

from itertools import product
from math import ceil, prod

import numpy as np

# --- dense -----------------------------------------------------------------------------------


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


# --- windows: which input element does output o see through kernel tap k? ----------------------


def per_axis(value, rank):
    """An int means the same for every spatial axis."""
    return (value,) * rank if np.ndim(value) == 0 else tuple(value)


def pad_amounts(padding, axis, n, k, s, d=1):
    """(low, high) padding of one spatial axis of length n, kernel k, stride s, dilation d."""
    if padding == "VALID":
        return 0, 0
    if padding == "CAUSAL":
        return (k - 1) * d, 0
    if padding in ("SAME", "CIRCULAR", "REFLECT"):
        total = max((ceil(n / s) - 1) * s + (k - 1) * d + 1 - n, 0)
        return total // 2, total - total // 2
    if isinstance(padding, int):
        return padding, padding
    return tuple(padding[axis])


def sources(n, k, s, d, low, high, mode="zeros"):
    """[out][tap] -> input index seen there, or None where it is padding."""
    out = max((n + low + high - ((k - 1) * d + 1)) // s + 1, 0)
    return [[_source(o * s + tap * d - low, n, mode) for tap in range(k)] for o in range(out)]


def _source(i, n, mode):
    if mode == "CIRCULAR":
        return i % n
    if mode == "REFLECT":  # ... 2 1 | 0 1 2 ... n-1 | n-2 n-3 ...
        period = max(2 * (n - 1), 1)
        return min(i % period, -i % period)
    return i if 0 <= i < n else None


def _taps(spatial, kernel_size, strides, padding, dilation=1):
    """(output spatial shape, [(output position, kernel tap, input position or None)])."""
    rank = len(spatial)
    strides, dilation = per_axis(strides, rank), per_axis(dilation, rank)
    axes = []
    for a in range(rank):
        n, k, s, d = spatial[a], kernel_size[a], strides[a], dilation[a]
        axes.append(sources(n, k, s, d, *pad_amounts(padding, a, n, k, s, d), padding))
    out = tuple(len(axis) for axis in axes)
    table = []
    for o in product(*map(range, out)):
        for tap in product(*map(range, kernel_size)):  # row-major order within the window
            i = tuple(axes[a][o[a]][tap[a]] for a in range(rank))
            table.append((o, tap, None if None in i else i))
    return out, table


def _as_batch(x, rank):
    """[..., *spatial, C] -> ([B, *spatial, C], leading shape)."""
    lead = x.shape[: x.ndim - rank - 1]
    return np.float64(x).reshape(prod(lead), *x.shape[len(lead) :]), lead


# --- convolution -----------------------------------------------------------------------------


def conv(x, kernel, bias=None, *, strides=1, padding="SAME", dilation=1, groups=1):
    """y[o] = sum over taps k of x[o*stride + k*dilation - low] @ kernel[k] (+ bias), by group."""
    kernel = np.float64(kernel)
    size, cin, features = kernel.shape[:-2], kernel.shape[-2], kernel.shape[-1]
    x, lead = _as_batch(x, len(size))
    out, table = _taps(x.shape[1:-1], size, strides, padding, dilation)
    y = np.zeros((len(x), *out, features))
    for o, tap, i in table:
        if i is None:
            continue
        for f in range(features):
            first = f // (features // groups) * cin  # first input channel of f's group
            for c in range(cin):
                y[:, *o, f] += x[:, *i, first + c] * kernel[*tap, c, f]
    y = y if bias is None else y + np.float64(bias)
    return y.reshape(*lead, *y.shape[1:])


def conv_backward(x, kernel, dy, *, strides=1, padding="SAME", dilation=1, groups=1):
    """Adjoint of `conv`: (dx, dkernel, dbias)."""
    kernel, shape = np.float64(kernel), np.shape(x)
    size, cin, features = kernel.shape[:-2], kernel.shape[-2], kernel.shape[-1]
    x, _ = _as_batch(x, len(size))
    dy, _ = _as_batch(dy, len(size))
    dx, dkernel = np.zeros(x.shape), np.zeros(kernel.shape)
    for o, tap, i in _taps(x.shape[1:-1], size, strides, padding, dilation)[1]:
        if i is None:
            continue
        for f in range(features):
            first = f // (features // groups) * cin
            for c in range(cin):
                dx[:, *i, first + c] += dy[:, *o, f] * kernel[*tap, c, f]
                dkernel[*tap, c, f] += np.sum(dy[:, *o, f] * x[:, *i, first + c])
    return dx.reshape(shape), dkernel, _sum_leading(dy)


# --- pooling ---------------------------------------------------------------------------------


def max_pool(x, window, *, strides=None, padding="VALID"):
    """(y, winner): y the largest element of each window, winner its flat index in x or -1.

    The winner is found by one walk through the window in row-major order that gives up the
    present winner unless `winner >= candidate`. So the first of equal maxima wins, and a NaN,
    which is never `>=`, yields to what follows it and takes over from what came before. Whatever
    wins, a NaN in the window makes y NaN. Padding is -inf and never wins.
    """
    x, lead = _as_batch(x, len(window))
    out, table = _taps(x.shape[1:-1], window, window if strides is None else strides, padding)
    y = np.full((len(x), *out, x.shape[-1]), -np.inf)
    winner = np.full(y.shape, -1)
    index = np.arange(x.size).reshape(x.shape)
    for o, _, i in table:
        if i is None:
            continue
        for b in range(len(x)):
            for c in range(x.shape[-1]):
                at, candidate = (b, *o, c), (b, *i, c)
                present = winner[at]
                if present < 0 or not x.flat[present] >= x[candidate]:
                    winner[at] = index[candidate]
                y[at] = np.maximum(y[at], x[candidate])  # keeps NaN
    shape = (*lead, *y.shape[1:])
    return y.reshape(shape), winner.reshape(shape)


def max_pool_backward(x, dy, window, **options):
    """dx: each window's gradient goes to its winner alone."""
    _, winner = max_pool(x, window, **options)
    dx = np.zeros(np.size(x))
    for at, i in np.ndenumerate(winner):
        if i >= 0:
            dx[i] += dy[at]
    return dx.reshape(np.shape(x))


def avg_pool(x, window, *, strides=None, padding="VALID", count_include_pad=False):
    """y[o] = (sum of the window's elements) / (how many there are, padding counted if asked)."""
    x, lead = _as_batch(x, len(window))
    out, table = _taps(x.shape[1:-1], window, window if strides is None else strides, padding)
    y, count = np.zeros((len(x), *out, x.shape[-1])), np.zeros((*out, 1))
    for o, _, i in table:
        count[o] += 1 if i is not None or count_include_pad else 0
        if i is not None:
            y[:, *o] += x[:, *i]
    y = y / count
    return y.reshape(*lead, *y.shape[1:])


def avg_pool_backward(x, dy, window, *, strides=None, padding="VALID", count_include_pad=False):
    """Adjoint of `avg_pool`."""
    shape = np.shape(x)
    x, _ = _as_batch(x, len(window))
    dy, _ = _as_batch(dy, len(window))
    out, table = _taps(x.shape[1:-1], window, window if strides is None else strides, padding)
    count, dx = np.zeros((*out, 1)), np.zeros(x.shape)
    for o, _, i in table:
        count[o] += 1 if i is not None or count_include_pad else 0
    for o, _, i in table:
        if i is not None:
            dx[:, *i] += dy[:, *o] / count[o]
    return dx.reshape(shape)


# --- batch norm ------------------------------------------------------------------------------


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
