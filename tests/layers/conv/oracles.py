"""What convolutions, pools and resizings should compute, in float64 NumPy loops.

Nothing here imports jax or fnn. A layer that is linear in x and in its kernel is a list of terms,
(index in x, index in the kernel, index in y) without the batch, and y is the sum of the products;
forward and backward are then the same three lines for all of them.
"""

from itertools import product
from math import ceil, floor, prod

import numpy as np

from tests.layers.oracles import _sum_leading


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


def bilinear(x, kernel, bias, out, terms):
    """y[yi] = sum of x[xi] kernel[ki] (+ bias), for x of [..., *spatial, C]."""
    x, lead = _as_batch(x, len(out) - 1)
    y = np.zeros((len(x), *out))
    for xi, ki, yi in terms:
        y[:, *yi] += x[:, *xi] * kernel[ki]
    y = y if bias is None else y + np.float64(bias)
    return y.reshape(*lead, *out)


def bilinear_backward(x, kernel, dy, out, terms):
    """Its adjoint: (dx, dkernel)."""
    shape = np.shape(x)
    x, _ = _as_batch(x, len(out) - 1)
    dy, _ = _as_batch(dy, len(out) - 1)
    dx, dkernel = np.zeros(x.shape), np.zeros(np.shape(kernel))
    for xi, ki, yi in terms:
        dx[:, *xi] += dy[:, *yi] * kernel[ki]
        dkernel[ki] += np.sum(dy[:, *yi] * x[:, *xi])
    return dx.reshape(shape), dkernel


def transposed_axis(n, k, s, d, padding, stored):
    """One axis of a transposed convolution: (output size, [(output, tap, input)]).

    Kernels are stored as they slide (over x with s - 1 zeros between its values, r - 1 - low before
    them), or as the other convolution has them, which spreads input p over p s + tap d - low.
    """
    reach = (k - 1) * d + 1
    if padding == "SAME":
        size, low = n * s, max(reach - s, 0) // 2
    elif padding == "VALID":
        size, low = (n - 1) * s + max(reach, s), 0
    else:
        low, high = padding
        size = (n - 1) * s + reach - low - high
    table = []
    for q, tap, p in product(range(size), range(k), range(n)):
        slides = q - (reach - 1 - low) + tap * d == p * s
        spreads = p * s + tap * d - low == q
        if spreads if stored == "other" else slides:
            table.append((q, tap, p))
    return size, table


def conv_transpose_terms(
    spatial, kernel_size, cin, features, *, strides=1, padding="SAME", dilation=1, transpose=False
):
    rank = len(spatial)
    strides, dilation = per_axis(strides, rank), per_axis(dilation, rank)
    sizes, tables = [], []
    for a in range(rank):
        pads = padding
        if not isinstance(padding, str):
            pads = (padding, padding) if isinstance(padding, int) else padding[a]
        stored = "other" if transpose else "slides"
        size, table = transposed_axis(
            spatial[a], kernel_size[a], strides[a], dilation[a], pads, stored
        )
        sizes.append(size)
        tables.append(table)
    terms = []
    for places in product(*tables):
        q, tap, p = zip(*places, strict=True)
        for c, f in product(range(cin), range(features)):
            channels = (f, c) if transpose else (c, f)
            terms.append(((*p, c), (*tap, *channels), (*q, f)))
    return (*sizes, features), terms


def depthwise_terms(spatial, kernel_size, cin, multiplier, **options):
    """Output channel c m + j sees input channel c alone."""
    out, table = _taps(spatial, kernel_size, **{"strides": 1, "padding": "SAME", **options})
    terms = []
    for o, tap, i in table:
        for c, j in product(range(cin), range(multiplier)):
            if i is not None:
                terms.append(((*i, c), (*tap, 0, c * multiplier + j), (*o, c * multiplier + j)))
    return (*out, cin * multiplier), terms


def local_terms(spatial, kernel_size, cin, features, **options):
    """A kernel for each output position."""
    out, table = _taps(spatial, kernel_size, **{"strides": 1, "padding": "SAME", **options})
    terms = []
    for o, tap, i in table:
        for c, f in product(range(cin), range(features)):
            if i is not None:
                terms.append(((*i, c), (*o, *tap, c, f), (*o, f)))
    return (*out, features), terms


def bias_backward(dy, shape):
    """The sum of dy over all leading axes that the bias does not have."""
    dy = np.float64(dy)
    if len(shape) == 1:
        return _sum_leading(dy)
    return dy.reshape(prod(dy.shape[: dy.ndim - len(shape)]), *shape).sum(0)


def min_pool(x, window, *, strides=None, padding="VALID"):
    """(y, winner): the smallest of each window, and the flat index of the first such one."""
    x, lead = _as_batch(x, len(window))
    out, table = _taps(x.shape[1:-1], window, window if strides is None else strides, padding)
    y = np.full((len(x), *out, x.shape[-1]), np.inf)
    winner = np.full(y.shape, -1)
    for o, _, i in table:
        if i is None:
            continue
        for b, c in product(range(len(x)), range(x.shape[-1])):
            if winner[b, *o, c] < 0 or x[b, *i, c] < y[b, *o, c]:
                y[b, *o, c] = x[b, *i, c]
                winner[b, *o, c] = np.ravel_multi_index((b, *i, c), x.shape)
    shape = (*lead, *y.shape[1:])
    return y.reshape(shape), winner.reshape(shape)


def min_pool_backward(x, dy, window, **options):
    _, winner = min_pool(x, window, **options)
    dx = np.zeros(np.size(x))
    for at, i in np.ndenumerate(winner):
        dx[i] += dy[at]
    return dx.reshape(np.shape(x))


def lp_pool(x, window, p, *, strides=None, padding="VALID"):
    """y[o] = (sum over the window of |x|^p)^(1/p)."""
    x, lead = _as_batch(x, len(window))
    out, table = _taps(x.shape[1:-1], window, window if strides is None else strides, padding)
    total = np.zeros((len(x), *out, x.shape[-1]))
    for o, _, i in table:
        if i is not None:
            total[:, *o] += np.abs(x[:, *i]) ** p
    y = total ** (1 / p)
    return y.reshape(*lead, *y.shape[1:])


def lp_pool_backward(x, dy, window, p, *, strides=None, padding="VALID"):
    """dx[i] += dy[o] (|x[i]| / y[o])^(p - 1) sign(x[i]), and nothing where y[o] = 0."""
    shape = np.shape(x)
    y, _ = _as_batch(lp_pool(x, window, p, strides=strides, padding=padding), len(window))
    x, _ = _as_batch(x, len(window))
    dy, _ = _as_batch(dy, len(window))
    dx = np.zeros(x.shape)
    strides = window if strides is None else strides
    for o, _, i in _taps(x.shape[1:-1], window, strides, padding)[1]:
        if i is not None:
            norm = np.where(y[:, *o] == 0, 1, y[:, *o])
            slope = (np.abs(x[:, *i]) / norm) ** (p - 1) * np.sign(x[:, *i])
            dx[:, *i] += np.where(y[:, *o] == 0, 0, dy[:, *o] * slope)
    return dx.reshape(shape)


def adaptive_bins(n, m):
    """The input positions of each of m bins over n."""
    return [range(floor(i * n / m), ceil((i + 1) * n / m)) for i in range(m)]


def adaptive_avg_pool(x, output_size):
    x, lead = _as_batch(x, len(output_size))
    bins = [adaptive_bins(n, m) for n, m in zip(x.shape[1:-1], output_size, strict=True)]
    y = np.zeros((len(x), *output_size, x.shape[-1]))
    for o in np.ndindex(*output_size):
        places = list(product(*(axis[i] for axis, i in zip(bins, o, strict=True))))
        for i in places:
            y[:, *o] += x[:, *i] / len(places)
    return y.reshape(*lead, *y.shape[1:])


def nearest(values, t):
    """The value of the pixel in which the place t, in pixels from the first one's edge, lies."""
    return values[floor(t)]


def linear(values, t):
    """Between the centres of the two nearest pixels."""
    i, part = floor(t - 0.5), (t - 0.5) % 1
    return (1 - part) * clamped(values, i) + part * clamped(values, i + 1)


def cubic(values, t):
    """Keys' kernel with a = -1/2, as the Catmull-Rom polynomial through the four nearest pixels."""
    i, u = floor(t - 0.5), (t - 0.5) % 1
    a, b, c, d = (clamped(values, i + k) for k in (-1, 0, 1, 2))
    return b + u / 2 * (c - a + u * (2 * a - 5 * b + 4 * c - d + u * (3 * (b - c) + d - a)))


def clamped(values, i):
    return values[min(max(i, 0), len(values) - 1)]


def upsample(x, scale, method):
    """Each spatial axis in turn; output j has its centre at (j + 1/2) / s."""
    y = np.float64(x)
    for axis, s in enumerate(scale, np.ndim(x) - len(scale) - 1):
        values = np.moveaxis(y, axis, 0)
        rows = [method(values, (j + 0.5) / s) for j in range(s * len(values))]
        y = np.moveaxis(np.array(rows), 0, axis)
    return y


def pixel_shuffle(x, r):
    """y[h r + i, w r + j, c] = x[h, w, c r^2 + i r + j]."""
    *lead, height, width, channels = np.shape(x)
    y = np.zeros((*lead, height * r, width * r, channels // r**2))
    places = product(range(height), range(width), range(channels // r**2), range(r), range(r))
    for h, w, c, i, j in places:
        y[..., h * r + i, w * r + j, c] = x[..., h, w, c * r**2 + i * r + j]
    return y
