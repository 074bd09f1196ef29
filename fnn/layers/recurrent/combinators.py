"""Cells made of cells and layers, and noise that is drawn once for a whole sequence."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from fnn.core import checks, errors
from fnn.core.compose import compose
from fnn.core.dtypes import is_floating, wide, widened
from fnn.core.layer import Layer, Rebuild, as_layer, leaf, outline
from fnn.core.shapes import struct
from fnn.core.wrapping import same, same_carry, wrap
from fnn.initializers import lecun_normal
from fnn.layers.combinators import fold, numbered
from fnn.layers.conv.conv import conv
from fnn.layers.dropout import drop_where
from fnn.layers.frozen import held_in, joined
from fnn.layers.recurrent.cells import check_carry, first_or, keep_mask, lstm_step, open_forget_gate


@errors.builder
def stack(*layers: Layer | Callable, **named: Layer | Callable) -> Layer:
    """Cells and layers, one after the other within a step: the cell that `serial` would be.

    x goes through all of them; cells keep their own carry, and the carry of the stack is a dict of
    theirs by name. Any layer may stand between cells: `stack(fnn.lstm_cell(64), fnn.dropout(0.2),
    fnn.lstm_cell(64))` drops other values of what goes up in every step.

    Layers are named as in `serial`, so that `serial(embed=a, rnn=fnn.rnn(cell), head=b)`, which
    learns on whole sequences, and `stack(embed=a, rnn=cell, head=b)`, which writes step by step,
    take the same params.

    Raises OptionError for two layers of one name, InputError for a carry of other cells.

    >>> import jax, jax.numpy as jnp, fnn
    >>> cell = stack(fnn.embedding(10, 4), fnn.gru_cell(8), fnn.dense(10))
    >>> params, _ = cell.init(jax.random.key(0), None, jnp.array([3]))
    >>> carry, logits = cell(params, None, jnp.array([3, 1]))
    >>> logits.shape, jax.tree.map(jnp.shape, carry)
    ((2, 10), {'gru_cell1': (2, 8)})
    """
    children = {name: as_layer(layer) for name, layer in numbered(layers, named).items()}
    cells = {name: layer.carry for name, layer in children.items() if layer.carry is not None}

    def stack_(f, carry, x):
        if carry is not None:
            check_parts(carry, cells)
        after = {}
        for name in children:
            sublayer = getattr(f, name)
            if name in cells:
                after[name], x = sublayer(None if carry is None else carry[name], x)
            else:
                x = sublayer(x)
        return after, x

    def first(params, x, *, key=None, train=False):
        """The first carry of every cell, for an x of one step."""
        carry, x = {}, struct(x)
        for name, layer in children.items():
            if name in cells:
                own = fold(key, zlib.crc32(name.encode()))
                with errors.at(name):
                    carry[name] = cells[name](params.get(name, {}), x, key=own, train=train)
            x = _after(layer, x, name in cells)
        return carry

    net = compose(**children)(stack_)
    rebuild = Rebuild(lambda new: stack(**new), net.apply)
    return replace(net, name="stack", carry=first, rebuild=rebuild)


def _after(layer: Layer, x: Any, cell: bool) -> Any:
    """Shape and dtype of what a layer, or a cell, makes of x."""
    if cell:
        return jax.eval_shape(lambda x: outline(layer, (None, x))[1][1], x)
    return jax.eval_shape(lambda x: outline(layer, (x,))[1], x)


@errors.builder
def as_cell(layer: Layer | Callable, carry: Callable[[Any], Any]) -> Layer:
    """A layer (carry, x) -> (carry, y) as a cell, with its first carry.

    - `layer`: built by `compose`, `leaf`, or a plain function of (carry, x).
    - `carry(x)`: the first carry, for an x of one step, of which only shape and dtype matter.

    >>> import jax, jax.numpy as jnp, fnn
    >>> cumsum = as_cell(lambda total, x: (total + x, total + x), jnp.zeros_like)
    >>> print(fnn.rnn(cumsum)({}, jnp.ones((3, 1)))[:, 0])
    [1. 2. 3.]
    """
    layer = as_layer(layer)
    checks.function("carry", carry, "x, the first carry")

    def first(params, x, *, key=None, train=False):
        """The first carry for an x of one step."""
        return carry(x)

    def begun(xs):
        with errors.within(layer.name):
            kept, x = carry_and_x(xs)
        return carry(x) if kept is None else kept, x

    def apply(layer, params, state, *xs, key, train):
        return layer.apply(params, state, *begun(xs), key=key, train=train)

    def declare(layer, *xs):
        return outline(layer, begun(xs))

    return wrap(layer, apply, declare=declare, carry=lambda layer, *args, **mode: first(*args))


@errors.builder
def zoneout(cell: Layer, rate: Any) -> Layer:
    """A cell that forgets to change: each value of the carry stays with probability `rate`.

        training:    carry' = where(m, carry, cell's carry'),   m is 1 with probability rate
        evaluation:  carry' = rate carry + (1 - rate) cell's carry'

    Unlike dropout it lets what is remembered, and its gradient, through (Krueger et al., 2017).
    y is what became of the carry's array that the cell gave as its y: h, in the cells of fnn.

    - `rate`: in [0, 1], for all arrays of the carry; or one for each, in the carry's structure:
      (0.5, 0.05) for c and h of an LSTM, as in the paper.

    Raises OptionError for a rate outside [0, 1] or a cell whose y is not in its carry,
    RandomKeyError for training without a key.

    >>> import jax, jax.numpy as jnp, fnn
    >>> cell = zoneout(fnn.lstm_cell(3), (0.5, 0.05))
    >>> params, _ = cell.init(jax.random.key(0), None, (1, 4))
    >>> (c, h), y = cell(params, None, jnp.ones((2, 4)))
    >>> bool((y == h).all())
    True
    """
    carry_of(cell)
    for one in jax.tree.leaves(rate):
        checks.number("rate", one, 0.0, 1.0)

    def apply(cell, params, state, *xs, key, train):
        with errors.within("zoneout"):
            carry, x = carry_and_x(xs)
            whole = joined(params, held_in(state))
            carry = first_or(carry, carry_of(cell), whole, x, key, train)
            (new, y), state = cell.apply(params, state, carry, x, key=fold(key, 0), train=train)
            if train:
                checks.need_key(key)
            old, fresh = jax.tree.leaves(carry), jax.tree.leaves(new)
            kept = [
                _stay(a, b, r, fold(key, 1 + i), train)
                for i, (a, b, r) in enumerate(zip(old, fresh, _rates(rate, new), strict=True))
            ]
            out = [a for a, b in zip(kept, fresh, strict=True) if b is y]
            if not out:
                raise errors.OptionError(
                    "a cell whose y is an array of its carry",
                    f"{cell.name}, whose y is {errors.show(y)}",
                    "put zoneout around the innermost cell",
                )
        return (jax.tree.unflatten(jax.tree.structure(new), kept), out[0]), state

    return wrap(cell, apply, declare=same, carry=same_carry)


def _rates(rate: Any, carry: Any) -> list[Any]:
    """One rate for each array of the carry."""
    if jax.tree.structure(rate) == jax.tree.structure(0):
        return [rate] * len(jax.tree.leaves(carry))
    if jax.tree.structure(rate) != jax.tree.structure(carry):
        raise errors.OptionError(
            f"rate to be one number, or one for each array of {errors.show(carry)}",
            errors.show(rate),
            "give them in the carry's structure",
        )
    return jax.tree.leaves(rate)


def _stay(old: Any, new: Any, rate: Any, key: Any, train: bool) -> Any:
    if not is_floating(new):
        return new
    rate = jnp.asarray(rate, wide(new.dtype))
    if train:
        return jnp.where(jax.random.bernoulli(key, rate.astype(jnp.float32), new.shape), old, new)
    return (rate * old.astype(rate.dtype) + (1 - rate) * new.astype(rate.dtype)).astype(new.dtype)


@errors.builder
def variational_dropout(rate: Any) -> Layer:
    """Dropout by one mask for a whole sequence: a cell that drops the same values in every step.

        y_t = m x_t / (1 - rate)

    The mask m, drawn with the first carry, is its carry (Gal & Ghahramani, 2016). In a stack it
    stands where `dropout` would: `stack(variational_dropout(0.2), fnn.lstm_cell(64))`. Their mask
    on h is the cells' own `recurrent_dropout`. In evaluation y = x. [...] -> [...].

    - `rate`: the probability of dropping, in [0, 1].

    Raises OptionError for a rate outside [0, 1], RandomKeyError for training without a key.

    >>> import jax, jax.numpy as jnp, fnn
    >>> net = fnn.rnn(variational_dropout(0.5))
    >>> y, _ = net.apply({}, {}, jnp.ones((7, 4)), key=jax.random.key(0), train=True)
    >>> bool((y == y[0]).all())
    True
    """
    checks.number("rate", rate, 0.0, 1.0)

    def first(params, x, *, key=None, train=False):
        """The mask of a sequence, for an x of one step."""
        return keep_mask(x, rate, key, train)

    def specs(carry, x):
        checks.array(x, 0, "[...]")
        if carry is not None:
            check_carry(carry, jax.ShapeDtypeStruct(x.shape, jnp.bool_))
        return {}, {}

    def apply(params, state, carry, x, *, key, train):
        mask = first_or(carry, first, params, x, key, train)
        return (mask, drop_where(mask, x, rate) if train else x), state

    return leaf("variational_dropout", specs, apply, first)


@errors.builder
def conv_lstm_cell(
    features: int,
    kernel_size: tuple[int, ...],
    *,
    use_bias: bool = True,
    weight_grad: str = "conv",
    kernel_init=lecun_normal(),
    recurrent_init=lecun_normal(),
    bias_init=open_forget_gate,
) -> Layer:
    """An LSTM cell over images: its products are convolutions (Shi et al., 2015).

        i, f, g, o = input(x) + hidden(h), and from there as `fnn.lstm_cell`

    [..., H, W, C] -> [..., H, W, features], with carry (c, h), both [..., H, W, features], zero at
    first; any number of spatial axes. It has no peepholes. `fnn.rnn(cell, feature_axes=3)` runs it
    over [..., T, H, W, C].

    - `features`: the channels of c and h.
    - `kernel_size`: of both convolutions, which pad to keep the size.
    - `weight_grad`: as of `fnn.conv`.
    - the others: as of `fnn.lstm_cell`.

    Params: `input` (`kernel` [*kernel_size, C, 4 features], `bias`), `hidden` (`kernel`
    [*kernel_size, features, 4 features]). Raises as `fnn.conv`, and for a carry that does not fit.

    >>> import jax, jax.numpy as jnp, fnn
    >>> net = fnn.rnn(conv_lstm_cell(2, (3, 3)), feature_axes=3)
    >>> params, _ = net.init(jax.random.key(0), (1, 5, 8, 8, 1))
    >>> net(params, jnp.ones((4, 5, 8, 8, 1))).shape
    (4, 5, 8, 8, 2)
    """
    features = checks.count("features", features)
    options = {"weight_grad": weight_grad, "bias_init": bias_init}

    @compose(
        input=conv(
            4 * features, kernel_size, use_bias=use_bias, kernel_init=kernel_init, **options
        ),
        hidden=conv(
            4 * features, kernel_size, use_bias=False, kernel_init=recurrent_init, **options
        ),
    )
    def conv_lstm_cell(f, carry, x):
        checks.array(x, len(kernel_size) + 1, "[..., H, W, C]")
        zero = first(None, x)
        c, h = zero if carry is None else carry
        if carry is not None:
            check_carry(carry, zero)
        z = f.input(x) + f.hidden(h)
        c, h = lstm_step(widened(z), widened(c))
        c, h = c.astype(x.dtype), h.astype(x.dtype)
        return (c, h), h

    def first(params, x, *, key=None, train=False):
        """Zeros, for an x of one step."""
        return tuple(jnp.zeros((*x.shape[:-1], features), x.dtype) for _ in "ch")

    return replace(conv_lstm_cell, carry=first)


def carry_of(cell: Any) -> Callable[..., Any]:
    """The function that gives a cell's first carry."""
    if isinstance(cell, Layer) and cell.carry is not None:
        return cell.carry
    raise errors.OptionError(
        "a cell, as fnn.lstm_cell(64)",
        f"the layer {cell.name}" if isinstance(cell, Layer) else errors.show(cell),
        "make one of a layer by fnn.as_cell(layer, carry)",
    )


def carry_and_x(xs: tuple) -> tuple:
    """The two inputs of a cell."""
    if len(xs) != 2:
        errors.wrong_arity(2, 2, len(xs))
    return xs


def check_parts(carry: Any, parts: Any) -> None:
    """A carry that is a dict of just these."""
    if not isinstance(carry, Mapping) or set(carry) != set(parts):
        raise errors.InputError(
            f"carry to be a dict of {errors.names(parts)}",
            f"carry {errors.show(carry)}",
            "take the one that came out, or None for the first one",
        )
