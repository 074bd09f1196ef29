"""What the further convolutions, pools and resizings should compute, in float64 NumPy loops.

Nothing here imports jax or fnn. A layer that is linear in x and in its kernel is a list of terms,
(index in x, index in the kernel, index in y) without the batch, and y is the sum of the products;
forward and backward are then the same three lines for all of them.
"""

from itertools import product
from math import ceil, floor, prod

import numpy as np

from tests.layers.oracles import _as_batch, _sum_leading, _taps, per_axis

# --- bilinear layers ---------------------------------------------------------------------------


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


# --- pools ---------------------------------------------------------------------------------------


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


# --- resolution ----------------------------------------------------------------------------------


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
