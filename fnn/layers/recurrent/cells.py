"""Recurrent cells: one step of a recurrent network, (carry, x) -> (carry, y).

A cell is a layer whose apply is a step of `jax.lax.scan`. `carry` is what it remembers; None stands
for the first one, so that a cell is initialized by `cell.init(key, None, x)`, with x of one step.
`fnn.rnn` runs a cell along time.

All cells here multiply x by `kernel` and what they remember by `recurrent_kernel`, with the gates
side by side in the last axis. What happens to the products is elementwise, and done in float32 or
wider. For the LSTM and the GRU its derivative is written by hand: the scan then keeps one factor
for each product, and no more, for the way back, and what it keeps decides how long that takes.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fnn.core import checks, errors
from fnn.core.declarations import Derived, Param
from fnn.core.dtypes import widened
from fnn.core.layer import Layer, leaf
from fnn.core.shapes import of_rank, unlike
from fnn.initializers import lecun_normal, ones, orthogonal, zeros
from fnn.layers.dropout import drop_where
from fnn.layers.norm import standardize

sigmoid = jax.nn.sigmoid


@errors.builder
def rnn_cell(
    features: int,
    *,
    activation: Callable = jnp.tanh,
    use_bias: bool = True,
    kernel_init=lecun_normal(),
    recurrent_init=orthogonal(),
    bias_init=zeros,
    recurrent_dropout: Any = None,
    learned_carry: bool = False,
) -> Layer:
    """A simple recurrent step, h' = activation(x kernel + h recurrent_kernel + bias), y = h'.

    [..., C] -> [..., features], with carry h [..., features] (Elman, 1990). The first is zero.

    - `features`: H, the size of h.
    - `activation`: `jax.nn.relu` remembers longer, with an identity `recurrent_init` (Le, Jaitly
      & Hinton, 2015).
    - `kernel_init`, `recurrent_init`, `bias_init`: initializers; a recurrent kernel is drawn gate
      by gate, orthogonal so that h neither grows nor fades at first.
    - `recurrent_dropout`: in training, the probability to drop each value of h where it meets
      `recurrent_kernel`, by one mask for the whole sequence (Gal & Ghahramani, 2016). The mask is
      drawn with the first carry, and the carry is {"carry": h, "mask": mask} then. None drops
      nothing.
    - `learned_carry`: the first carry is a parameter, `first_h` [H].

    Params: `kernel` [C, H], `recurrent_kernel` [H, H], `bias` [H], of x's dtype.
    Raises OptionError, ShapeError and DtypeError for an x or a carry that do not fit.

    >>> import jax, jax.numpy as jnp, fnn
    >>> cell = fnn.rnn_cell(3)
    >>> params, _ = cell.init(jax.random.key(0), None, (1, 4))
    >>> carry, y = cell(params, None, jnp.ones((2, 4)))
    >>> y.shape
    (2, 3)
    """
    features = checks.count("features", features)
    checks.function("activation", activation, "one array, as jnp.tanh")
    inits = _Inits(use_bias, kernel_init, recurrent_init, bias_init)

    def declare(x):
        return inits.declare(x, 1, features, features)

    def step(p, x, h, old):
        z = widened(x @ p["kernel"] + h @ p["recurrent_kernel"] + _bias(p, x))
        return {"h": activation(z).astype(x.dtype)}

    return _cell("rnn_cell", {"h": features}, declare, step, recurrent_dropout, learned_carry)


def open_forget_gate(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """The first bias of an LSTM: 1 for the gate f, the second quarter, and 0 elsewhere.

    What is remembered then fades slowly at first (Gers, Schmidhuber & Cummins, 2000; Jozefowicz,
    Zaremba & Sutskever, 2015).

    >>> print(open_forget_gate(None, (4,)))
    [0. 1. 0. 0.]
    """
    quarter = jnp.arange(shape[-1]) // (shape[-1] // 4)
    return jnp.broadcast_to(quarter == 1, shape).astype(dtype)


@errors.builder
def lstm_cell(
    features: int,
    *,
    peepholes: bool = False,
    projection: int | None = None,
    layer_norm: bool = False,
    use_bias: bool = True,
    kernel_init=lecun_normal(),
    recurrent_init=orthogonal(),
    bias_init=open_forget_gate,
    recurrent_dropout: Any = None,
    learned_carry: bool = False,
) -> Layer:
    """A step of long short-term memory (Hochreiter & Schmidhuber, 1997; Gers et al., 2000).

        i, f, g, o = x kernel + h recurrent_kernel + bias
        c' = sigmoid(f) c + sigmoid(i) tanh(g)
        h' = sigmoid(o) tanh(c')                          y = h'

    [..., C] -> [..., features], with carry (c, h), both [..., features], zero at first.

    - `features`: H, the size of c and h.
    - `peepholes`: i and f see c, and o sees c', each by a weight per unit, `peephole` [3, H],
      zero at first (Gers, Schraudolph & Schmidhuber, 2002).
    - `projection`: h' is multiplied by a matrix `projection` [H, P] (Sak, Senior & Beaufays,
      2014). h and y are [..., P] then.
    - `layer_norm`: both products are normalized over their last axis, and c' where h' is made of
      it (Ba, Kiros & Hinton, 2016, equations 20 to 22), with scales `input_scale`,
      `recurrent_scale` [4 H], `cell_scale` [H] and a shift `cell_bias` [H].
    - `bias_init`: 1 for f keeps what is remembered at first; `zeros` does not.
    - the others: as of `fnn.rnn_cell`; a learned first carry is `first_c` and `first_h`.

    Params: `kernel` [C, 4 H], `recurrent_kernel` [H, 4 H], `bias` [4 H], of x's dtype; the gates in
    the order i, f, g, o. Raises as `fnn.rnn_cell`.

    >>> import jax, jax.numpy as jnp, fnn
    >>> cell = fnn.lstm_cell(3)
    >>> params, _ = cell.init(jax.random.key(0), None, (1, 4))
    >>> (c, h), y = cell(params, None, jnp.ones((2, 4)))
    >>> c.shape, bool((y == h).all())
    ((2, 3), True)
    """
    features = checks.count("features", features)
    size = features if projection is None else checks.count("projection", projection)
    inits = _Inits(use_bias, kernel_init, recurrent_init, bias_init)

    def declare(x):
        params, dtype = inits.declare(x, 4, features, size), x.dtype
        if projection is not None:
            params["projection"] = Param(
                (features, size), kernel_init, dtype, "kernel", ("hidden", "out")
            )
        if peepholes:
            params["peephole"] = Param((3, features), zeros, dtype, "peephole", ("gates", "hidden"))
        if layer_norm:
            for name, n, axis in (
                ("input", 4, "gates"),
                ("recurrent", 4, "gates"),
                ("cell", 1, "hidden"),
            ):
                params[f"{name}_scale"] = Param((n * features,), ones, dtype, "scale", (axis,))
            params["cell_bias"] = Param((features,), zeros, dtype, "bias", ("hidden",))
        return params

    def step(p, x, h, old):
        of_x, of_h = x @ p["kernel"], h @ p["recurrent_kernel"]
        if layer_norm:
            of_x, of_h = standardize(of_x), standardize(of_h)
            of_x = of_x * of_rank(p["input_scale"], x.ndim)
            of_h = of_h * of_rank(p["recurrent_scale"], x.ndim)
        z, c = widened(of_x + of_h + _bias(p, x)), widened(old["c"])
        c, h = seeing(p, z, c) if peepholes or layer_norm else lstm_step(z, c)
        c, h = c.astype(x.dtype), h.astype(x.dtype)
        return {"c": c, "h": h if projection is None else h @ p["projection"]}

    def seeing(p, z, c):
        def row(values):
            return of_rank(widened(values), c.ndim)

        i, f, g, o = jnp.split(z, 4, axis=-1)
        to_i, to_f, to_o = map(row, p["peephole"]) if peepholes else (0, 0, 0)
        c = sigmoid(f + to_f * c) * c + sigmoid(i + to_i * c) * jnp.tanh(g)
        seen = c
        if layer_norm:
            seen = standardize(c) * row(p["cell_scale"]) + row(p["cell_bias"])
        return c, sigmoid(o + to_o * c) * jnp.tanh(seen)

    sizes = {"c": features, "h": size}
    return _cell("lstm_cell", sizes, declare, step, recurrent_dropout, learned_carry)


@errors.builder
def gru_cell(
    features: int,
    *,
    reset_after: bool = True,
    use_bias: bool = True,
    kernel_init=lecun_normal(),
    recurrent_init=orthogonal(),
    bias_init=zeros,
    recurrent_dropout: Any = None,
    learned_carry: bool = False,
) -> Layer:
    """A step of gated recurrent units (Cho et al., 2014).

        r, z = sigmoid(x kernel + h recurrent_kernel + bias)
        n = tanh(x kernel_n + bias_n + r (h recurrent_kernel_n + recurrent_bias))
        h' = (1 - z) n + z h                              y = h'

    [..., C] -> [..., features], with carry h [..., features], zero at first.

    - `features`: H, the size of h.
    - `reset_after`: r is multiplied after the product with h, as above and in cuDNN, so that there
      is one product of h; False multiplies before it, (r h) recurrent_kernel_n, as in the paper.
    - the others: as of `fnn.rnn_cell`.

    Params: `kernel` [C, 3 H], `recurrent_kernel` [H, 3 H], `bias` [3 H], the gates in the order
    r, z, n, and with reset_after `recurrent_bias` [H]; of x's dtype. Raises as `fnn.rnn_cell`.

    >>> import jax, jax.numpy as jnp, fnn
    >>> cell = fnn.gru_cell(3)
    >>> params, _ = cell.init(jax.random.key(0), None, (1, 4))
    >>> h, y = cell(params, None, jnp.ones((2, 4)))
    >>> y.shape
    (2, 3)
    """
    features = checks.count("features", features)
    inits = _Inits(use_bias, kernel_init, recurrent_init, bias_init)

    def declare(x):
        params = inits.declare(x, 3, features, features)
        if use_bias and reset_after:
            params["recurrent_bias"] = Param((features,), bias_init, x.dtype, "bias", ("hidden",))
        return params

    def after(p, x, h, old):
        a, q = x @ p["kernel"] + _bias(p, x), h @ p["recurrent_kernel"]
        if use_bias:
            q = q + of_rank(jnp.pad(p["recurrent_bias"], (2 * features, 0)), q.ndim)
        return {"h": gru_step(widened(a), widened(q), widened(old["h"])).astype(x.dtype)}

    def before(p, x, h, old):
        rz, n = jnp.split(x @ p["kernel"] + _bias(p, x), (2 * features,), axis=-1)
        to_rz, to_n = jnp.split(p["recurrent_kernel"], (2 * features,), axis=-1)
        r, z = jnp.split(sigmoid(widened(rz + h @ to_rz)), 2, axis=-1)
        n = jnp.tanh(widened(n + (r * widened(h)).astype(x.dtype) @ to_n))
        return {"h": _between(z, n, widened(old["h"])).astype(x.dtype)}

    step = after if reset_after else before
    return _cell("gru_cell", {"h": features}, declare, step, recurrent_dropout, learned_carry)


@errors.builder
def mgu_cell(
    features: int,
    *,
    use_bias: bool = True,
    kernel_init=lecun_normal(),
    recurrent_init=orthogonal(),
    bias_init=zeros,
    recurrent_dropout: Any = None,
    learned_carry: bool = False,
) -> Layer:
    """A step of minimal gated units: a GRU with one gate (Zhou et al., 2016).

        f = sigmoid(x kernel_f + h recurrent_kernel_f + bias_f)
        n = tanh(x kernel_n + (f h) recurrent_kernel_n + bias_n)
        h' = (1 - f) h + f n                              y = h'

    [..., C] -> [..., features], with carry h [..., features], zero at first.

    - `features`: H, the size of h.
    - the others: as of `fnn.rnn_cell`.

    Params: `kernel` [C, 2 H], `recurrent_kernel` [H, 2 H], `bias` [2 H], the gates in the order
    f, n; of x's dtype. Raises as `fnn.rnn_cell`.

    >>> import jax, jax.numpy as jnp, fnn
    >>> cell = fnn.mgu_cell(3)
    >>> params, _ = cell.init(jax.random.key(0), None, (1, 4))
    >>> h, y = cell(params, None, jnp.ones((2, 4)))
    >>> y.shape
    (2, 3)
    """
    features = checks.count("features", features)
    inits = _Inits(use_bias, kernel_init, recurrent_init, bias_init)

    def declare(x):
        return inits.declare(x, 2, features, features)

    def step(p, x, h, old):
        f, n = jnp.split(x @ p["kernel"] + _bias(p, x), 2, axis=-1)
        to_f, to_n = jnp.split(p["recurrent_kernel"], 2, axis=-1)
        f = sigmoid(widened(f + h @ to_f))
        n = jnp.tanh(widened(n + (f * widened(h)).astype(x.dtype) @ to_n))
        return {"h": _between(f, widened(old["h"]), n).astype(x.dtype)}

    return _cell("mgu_cell", {"h": features}, declare, step, recurrent_dropout, learned_carry)


# --- the elementwise part, with its derivative


@jax.custom_jvp
def lstm_step(z: jax.Array, c: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(c', h') of the gates z [..., 4 H] before their activations, and of c [..., H]."""
    i, f, g, o = jnp.split(z, 4, axis=-1)
    c = sigmoid(f) * c + sigmoid(i) * jnp.tanh(g)
    return c, sigmoid(o) * jnp.tanh(c)


@lstm_step.defjvp
def _lstm_step_jvp(primals: tuple, tangents: tuple) -> tuple:
    (z, c), (dz, dc) = primals, tangents
    i, f, g, o = jnp.split(z, 4, axis=-1)
    i, f, g, o = sigmoid(i), sigmoid(f), jnp.tanh(g), sigmoid(o)
    new = f * c + i * g
    seen = jnp.tanh(new)
    factors = [g * i * (1 - i), c * f * (1 - f), i * (1 - g * g), seen * o * (1 - o)]
    by_i, by_f, by_g, by_o = jnp.split(dz * jnp.concatenate(factors, axis=-1), 4, axis=-1)
    dnew = f * dc + by_i + by_f + by_g
    return (new, o * seen), (dnew, o * (1 - seen * seen) * dnew + by_o)


@jax.custom_jvp
def gru_step(a: jax.Array, q: jax.Array, h: jax.Array) -> jax.Array:
    """h' of the products a of x and q of h, [..., 3 H] with their biases, and of h [..., H]."""
    (ar, az, an), (qr, qz, qn) = jnp.split(a, 3, axis=-1), jnp.split(q, 3, axis=-1)
    return _between(sigmoid(az + qz), jnp.tanh(an + sigmoid(ar + qr) * qn), h)


@gru_step.defjvp
def _gru_step_jvp(primals: tuple, tangents: tuple) -> tuple:
    (a, q, h), (da, dq, dh) = primals, tangents
    (ar, az, an), (qr, qz, qn) = jnp.split(a, 3, axis=-1), jnp.split(q, 3, axis=-1)
    (dar, daz, dan), (dqr, dqz, dqn) = jnp.split(da, 3, axis=-1), jnp.split(dq, 3, axis=-1)
    r, z = sigmoid(ar + qr), sigmoid(az + qz)
    n = jnp.tanh(an + r * qn)
    by_n = (1 - n * n) * (1 - z)
    by_r, by_z = by_n * qn * r * (1 - r), z * (1 - z) * (h - n)
    dnew = by_r * (dar + dqr) + by_z * (daz + dqz) + by_n * (dan + r * dqn) + z * dh
    return _between(z, n, h), dnew


def _between(z: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """(1 - z) a + z b."""
    return (1 - z) * a + z * b


# --- what they share


class _Inits:
    """How a cell's weights are drawn, checked once."""

    def __init__(self, use_bias: bool, kernel_init: Any, recurrent_init: Any, bias_init: Any):
        checks.initializer("kernel_init", kernel_init)
        checks.initializer("recurrent_init", recurrent_init)
        checks.initializer("bias_init", bias_init)
        self.kernel, self.recurrent = kernel_init, recurrent_init
        self.bias = bias_init if use_bias else None

    def declare(self, x: Any, gates: int, features: int, size: int) -> dict[str, Any]:
        """`kernel`, `recurrent_kernel` and `bias` of so many gates, for an h of `size` values."""
        checks.array(x, 1, "[..., C]")
        n, dtype, axes = gates * features, x.dtype, ("hidden", "gates")
        blocks = Param((size, features), self.recurrent, dtype, "kernel", axes, (gates,))
        params: dict[str, Any] = {
            "kernel": Param((x.shape[-1], n), self.kernel, dtype, "kernel", ("in", "gates")),
            "recurrent_kernel": Derived(_side_by_side, blocks, axes=axes),
        }
        if self.bias is not None:
            params["bias"] = Param((n,), self.bias, dtype, "bias", ("gates",))
        return params


def _side_by_side(blocks: jax.Array) -> jax.Array:
    """[gates, H, H] -> [H, gates H]."""
    return jnp.concatenate(list(blocks), axis=-1)


def _bias(params: Mapping, x: jax.Array) -> Any:
    return of_rank(params["bias"], x.ndim) if "bias" in params else 0


def _cell(
    name: str,
    sizes: Mapping[str, int],
    declare: Callable[[Any], dict],
    step: Callable[..., dict],
    recurrent_dropout: Any,
    learned_carry: bool,
) -> Layer:
    """The cell of `step(params, x, h, old) -> new`, all of whose carry is [..., size] arrays.

    - `sizes`: of the arrays of the carry, by name; the last is h. One alone is the carry itself.
    - `declare(x)`: its params.
    - `old`, `new`: the carry by name; `h` is old["h"] under the mask of recurrent dropout.
    """
    if recurrent_dropout is not None:
        checks.number("recurrent_dropout", recurrent_dropout, 0.0, 1.0)

    def first(params, x, *, key=None, train=False):
        """The first carry for an x of one step."""
        lead, kept = x.shape[:-1], {}
        if learned_carry:
            wanted = {f"first_{p}": jax.ShapeDtypeStruct((n,), x.dtype) for p, n in sizes.items()}
            errors.check_same("params", {p: params[p] for p in wanted if p in params}, wanted)
        for part, size in sizes.items():
            start = params[f"first_{part}"] if learned_carry else jnp.zeros((size,), x.dtype)
            kept[part] = jnp.broadcast_to(start, (*lead, size))
        if recurrent_dropout is None:
            return _packed(kept)
        return {"carry": _packed(kept), "mask": keep_mask(kept["h"], recurrent_dropout, key, train)}

    def specs(carry, x):
        params = declare(x)
        if learned_carry:
            for p, n in sizes.items():
                params[f"first_{p}"] = Param((n,), zeros, x.dtype, "carry", ("hidden",))
        if carry is not None:
            lead = x.shape[:-1]
            kept = {p: jax.ShapeDtypeStruct((*lead, n), x.dtype) for p, n in sizes.items()}
            wanted = _packed(kept)
            if recurrent_dropout is not None:
                mask = jax.ShapeDtypeStruct(kept["h"].shape, jnp.bool_)
                wanted = {"carry": wanted, "mask": mask}
            check_carry(carry, wanted)
        return params, {}

    def apply(params, state, carry, x, *, key, train):
        carry = first_or(carry, first, params, x, key, train)
        kept = carry if recurrent_dropout is None else carry["carry"]
        old = dict(zip(sizes, kept if len(sizes) > 1 else (kept,), strict=True))
        h = old["h"]
        if recurrent_dropout is not None and train:
            h = drop_where(carry["mask"], h, recurrent_dropout)
        new = step(params, x, h, old)
        packed = _packed(new)
        carry = packed if recurrent_dropout is None else {**carry, "carry": packed}
        return (carry, new["h"]), state

    return leaf(name, specs, apply, first)


def _packed(kept: Mapping[str, Any]) -> Any:
    """The carry of arrays by name."""
    return tuple(kept.values()) if len(kept) > 1 else kept["h"]


def first_or(carry: Any, first: Callable, params: Any, x: Any, key: Any, train: bool) -> Any:
    """The carry, or where it is None the first one, drawn from a key of its own."""
    if carry is not None:
        return carry
    own = None if key is None else jax.random.fold_in(key, zlib.crc32(b"carry"))
    return first(params, x, key=own, train=train)


def keep_mask(x: Any, rate: Any, key: Any, train: bool) -> jax.Array:
    """Where x is kept for a whole sequence: everywhere but in training."""
    if not train:
        return jnp.ones(x.shape, bool)
    checks.need_key(key)
    return jax.random.bernoulli(key, 1 - jnp.asarray(rate, jnp.float32), x.shape)


def check_carry(carry: Any, wanted: Any) -> None:
    """A carry like the first one, in structure, shapes and dtypes."""
    if error := unlike(carry, wanted):
        mend = "take the carry that came out for inputs like x, or None for the first one"
        raise error(f"carry {errors.show(wanted)}", f"carry {errors.show(carry)}", mend)
