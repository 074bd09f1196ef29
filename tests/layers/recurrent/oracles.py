"""What recurrent cells and layers should compute, in float64 NumPy loops over steps and rows.

As in `oracles`, nothing here imports jax or fnn. A cell is `step(p, carry, x) -> (carry, y)` of
one example, x [C] and p its params by name, written from its paper; a sequence is a loop over
steps. Gradients are differences of these loops. What a cell may have (a bias, peepholes, a
projection, norms) is told by the names in p.
"""

import numpy as np

from tests.layers.conv.oracles import conv

# --- of one row ------------------------------------------------------------------------------


def sigmoid(v):
    return 0.5 * (1 + np.tanh(0.5 * v))


def times(row, kernel):
    """sum_i row_i kernel_ij: [C], [C, F] -> [F]."""
    y = np.zeros(kernel.shape[1], np.result_type(row, kernel, np.float64))
    for i in range(len(row)):
        y += row[i] * kernel[i]
    return y


def standardized(row, eps=1e-5):
    """Ba, Kiros & Hinton 2016, equation 3, without scale and shift: [C] -> [C]."""
    mean = sum(row) / len(row)
    var = sum((v - mean) ** 2 for v in row) / len(row)
    return np.array([(v - mean) / np.sqrt(var + eps) for v in row])


def parts(row, n):
    """n parts of one size: [n H] -> n rows [H]."""
    size = len(row) // n
    return [row[k * size : (k + 1) * size] for k in range(n)]


# --- cells -----------------------------------------------------------------------------------


def rnn_cell(p, h, x, *, activation=np.tanh, drop=1.0):
    """Elman 1990: h' = activation(x W + h U + b)."""
    h = activation(
        times(x, p["kernel"]) + times(h * drop, p["recurrent_kernel"]) + p.get("bias", 0)
    )
    return h, h


def lstm_cell(p, carry, x, *, drop=1.0):
    """Hochreiter & Schmidhuber 1997 with forget gates (Gers et al. 2000), gates i, f, g, o.

    `peephole` [3, H]: Gers et al. 2002; `projection` [H, P]: Sak et al. 2014; `input_scale`,
    `recurrent_scale`, `cell_scale`, `cell_bias`: Ba et al. 2016, equations 20 to 22.
    """
    c, h = carry
    from_x, from_h = times(x, p["kernel"]), times(h * drop, p["recurrent_kernel"])
    if "input_scale" in p:
        from_x = standardized(from_x) * p["input_scale"]
        from_h = standardized(from_h) * p["recurrent_scale"]
    i, f, g, o = parts(from_x + from_h + p.get("bias", 0), 4)
    if "peephole" in p:
        i, f = i + p["peephole"][0] * c, f + p["peephole"][1] * c
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    if "peephole" in p:
        o = o + p["peephole"][2] * c
    inner = standardized(c) * p["cell_scale"] + p["cell_bias"] if "cell_scale" in p else c
    h = sigmoid(o) * np.tanh(inner)
    h = times(h, p["projection"]) if "projection" in p else h
    return (c, h), h


def gru_cell(p, h, x, *, reset_after=True, drop=1.0):
    """Cho et al. 2014, gates r, z, n; z weighs the old h. `reset_after`: as cuDNN has it."""
    w_r, w_z, w_n = parts(p["kernel"].T, 3)  # each [H, C]
    u_r, u_z, u_n = parts(p["recurrent_kernel"].T, 3)
    b_r, b_z, b_n = parts(p["bias"], 3) if "bias" in p else (0, 0, 0)
    r = sigmoid(times(x, w_r.T) + times(h * drop, u_r.T) + b_r)
    z = sigmoid(times(x, w_z.T) + times(h * drop, u_z.T) + b_z)
    if reset_after:
        inner = r * (times(h * drop, u_n.T) + p.get("recurrent_bias", 0))
    else:
        inner = times(r * h * drop, u_n.T)
    n = np.tanh(times(x, w_n.T) + b_n + inner)
    h = (1 - z) * n + z * h
    return h, h


def mgu_cell(p, h, x, *, drop=1.0):
    """Zhou et al. 2016, gates f, n: one gate forgets and resets."""
    w_f, w_n = parts(p["kernel"].T, 2)
    u_f, u_n = parts(p["recurrent_kernel"].T, 2)
    b_f, b_n = parts(p["bias"], 2) if "bias" in p else (0, 0)
    f = sigmoid(times(x, w_f.T) + times(h * drop, u_f.T) + b_f)
    n = np.tanh(times(x, w_n.T) + times(f * h * drop, u_n.T) + b_n)
    h = (1 - f) * h + f * n
    return h, h


def conv_lstm_cell(p, carry, x):
    """Shi et al. 2015, equation 3, without peepholes: x [H, W, C], carry (c, h) [H, W, F]."""
    c, h = carry
    z = conv(x, p["input"]["kernel"], p["input"].get("bias")) + conv(h, p["hidden"]["kernel"])
    size = z.shape[-1] // 4
    i, f, g, o = (z[..., k * size : (k + 1) * size] for k in range(4))
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    return (c, h), h


def lru_cell(p, carry, x):
    """Orvieto et al. 2023, equations 5 to 7: the carry is (Re h, Im h) of h [N], y is real."""
    rates = p["rates"]
    decay = np.exp(-np.exp(rates["log_nu"]) + 1j * np.exp(rates["log_theta"]))
    inner = times(x, p["b_re"] + 1j * p["b_im"])
    h = decay * (carry[0] + 1j * carry[1]) + np.exp(rates["log_gamma"]) * inner
    return (h.real, h.imag), times(h, p["c_re"] + 1j * p["c_im"]).real + times(x, p["d"])


def zoneout(step, rate):
    """Krueger et al. 2017 in evaluation: each array of the carry is rate old + (1 - rate) new.

    `rate` is a number or, where the carry is a tuple, a tuple. y is the new h, the last of them.
    """

    def zoned(p, carry, x):
        new, _ = step(p, carry, x)
        if not isinstance(new, tuple):
            h = rate * carry + (1 - rate) * new
            return h, h
        rates = rate if isinstance(rate, tuple) else (rate,) * len(new)
        kept = tuple(r * old + (1 - r) * now for r, old, now in zip(rates, carry, new, strict=True))
        return kept, kept[-1]

    return zoned


# --- sequences -------------------------------------------------------------------------------


def unroll(step, p, xs, first, *, shape, mask=None, carry=None, resets=None, reverse=False):
    """One example, xs [T, ...] -> (y [T, *shape], the last y, the carry), one step at a time.

    Where the mask is False the carry is held and y is zero. A reset stands between a step and the
    one before it, whichever comes first: what would cross it becomes `first`.
    """
    carry, crossed = first if carry is None else carry, False
    y, last = np.zeros((len(xs), *shape)), np.zeros(shape)
    for t in reversed(range(len(xs))) if reverse else range(len(xs)):
        if mask is not None and not mask[t]:
            continue
        reset = resets is not None and resets[t]
        if crossed or (reset and not reverse):
            carry = first
        carry, y[t] = step(p, carry, xs[t])
        last, crossed = y[t], reset and reverse
    return y, last, carry


def each(lead, run):
    """`run(index)` of every example, stacked: trees of arrays [...] -> [*lead, ...]."""
    trees = [run(at) for at in np.ndindex(*lead)]

    def stack(some):
        if isinstance(some[0], tuple):
            return tuple(map(stack, zip(*some, strict=True)))
        if isinstance(some[0], dict):
            return {name: stack([tree[name] for tree in some]) for name in some[0]}
        return np.stack(some).reshape(*lead, *np.shape(some[0]))

    return stack(trees)


def generate(step, p, carry, xs, given, choose):
    """One example: where an input is not given, it is `choose(the y before it)`.

    xs [T, ...], given [T] -> (xs filled, y [T, V], the carry).
    """
    xs, ys = np.array(xs), []
    for t in range(len(xs)):
        if not given[t]:
            xs[t] = choose(ys[-1])
        carry, y = step(p, carry, xs[t])
        ys.append(y)
    return xs, np.stack(ys), carry


# --- differences -----------------------------------------------------------------------------


def moved(tree, along, h):
    """tree + h along, of nested dicts and tuples; None and what is not floating stays."""
    if isinstance(tree, dict):
        return {name: moved(tree[name], along[name], h) for name in tree}
    if isinstance(tree, tuple):
        return tuple(moved(a, b, h) for a, b in zip(tree, along, strict=True))
    return tree if along is None else tree + h * along


def slope(fn, at, along, h=1e-3):
    """The derivative of fn(at) along a direction, by central differences of fourth order."""
    f1, f2 = (fn(moved(at, along, k * h)) - fn(moved(at, along, -k * h)) for k in (1, 2))
    return (8 * f1 - f2) / (12 * h)
