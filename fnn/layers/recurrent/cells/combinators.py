"""Cells made of cells and layers, and noise drawn once for a whole sequence."""

import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from fnn.core import checks, errors
from fnn.core.compose import compose
from fnn.core.dtypes import is_floating, wide
from fnn.core.layer import Layer, Rebuild, as_layer, leaf, outline
from fnn.core.origins import builder
from fnn.core.shapes import struct
from fnn.core.types import Scalar, Tree
from fnn.core.wrapping import same, same_carry, wrap
from fnn.layers.combinators import numbered
from fnn.layers.dropout import drop_where
from fnn.layers.frozen import held_in, joined
from fnn.layers.lifted import fold
from fnn.layers.recurrent.cells.cell import check_carry, first_or, keep_mask


@builder
def serial(*layers: Layer | Callable, **named: Layer | Callable) -> Layer:
    """Cells and layers one after the other within a step: `fnn.serial` as a cell.

    x goes through all of them; cells keep their own carry, and the carry of the stack is a dict of
    theirs by name. Any layer may stand between cells: `serial(fnn.cells.lstm(64), fnn.dropout(0.2),
    fnn.cells.lstm(64))` draws a new dropout mask in every step.

    Layers are named as in `fnn.serial`, so `fnn.serial(embed=a, rnn=fnn.rnn(cell), head=b)`, which
    learns on whole sequences, and `serial(embed=a, rnn=cell, head=b)`, which generates step by
    step, take the same params.

    Raises OptionError for two layers of one name, InputError for a carry of other cells.

    >>> import jax, jax.numpy as jnp, fnn
    >>> cell = serial(fnn.embedding(10, 4), fnn.cells.gru(8), fnn.dense(10))
    >>> params, _ = cell.init(jax.random.key(0), None, jnp.array([3]))
    >>> carry, logits = cell(params, None, jnp.array([3, 1]))
    >>> logits.shape, jax.tree.map(jnp.shape, carry)
    ((2, 10), {'gru_cell1': (2, 8)})
    """
    children = {name: as_layer(layer) for name, layer in numbered(layers, named).items()}
    cells = {name: layer.carry for name, layer in children.items() if layer.carry is not None}

    def serial_(f, carry, x):
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

    net = compose(**children)(serial_)
    rebuild = Rebuild(lambda new: serial(**new), net.apply)
    return replace(net, name="serial", carry=first, rebuild=rebuild)


def _after(layer: Layer, x: Any, cell: bool) -> Any:
    """Shape and dtype of the y of a layer, or of a cell, for x."""
    if cell:
        return jax.eval_shape(lambda x: outline(layer, (None, x))[1][1], x)
    return jax.eval_shape(lambda x: outline(layer, (x,))[1], x)


@builder
def as_cell(layer: Layer | Callable, carry: Callable[[Any], Any]) -> Layer:
    """A layer (carry, x) -> (carry, y) as a cell, with its first carry.

    - `layer`: built by `compose`, `leaf`, or a plain function of (carry, x).
    - `carry(x)`: the first carry for an x of one step, of which only shape and dtype matter.

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

    def with_carry(xs):
        with errors.within(layer.name):
            kept, x = carry_and_x(xs)
        return carry(x) if kept is None else kept, x

    def apply(layer, params, state, *xs, key, train):
        return layer.apply(params, state, *with_carry(xs), key=key, train=train)

    def declare(layer, *xs):
        return outline(layer, with_carry(xs))

    return wrap(layer, apply, declare=declare, carry=lambda layer, *args, **mode: first(*args))


@builder
def zoneout(cell: Layer, rate: Tree) -> Layer:
    """A cell each value of whose carry stays as it was with probability `rate`.

        training:    carry' = where(m, carry, cell's carry'),   m is 1 with probability rate
        evaluation:  carry' = rate carry + (1 - rate) cell's carry'

    Unlike dropout it lets the memory, and its gradient, through (Krueger et al., 2017). y is the
    new value of the carry's array that the cell gives as its y: h, in the cells of fnn.

    - `rate`: in [0, 1], for all arrays of the carry; or one for each, in the carry's structure,
      such as (0.5, 0.05) for c and h of an LSTM, as in the paper.

    Raises OptionError for a rate outside [0, 1] or a cell whose y is not in its carry,
    RandomKeyError for training without a key.

    >>> import jax, jax.numpy as jnp, fnn
    >>> cell = zoneout(fnn.cells.lstm(3), (0.5, 0.05))
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


def _rates(rate: Tree, carry: Tree) -> list[Any]:
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


def _stay(old: Any, new: Any, rate: Scalar, key: Any, train: bool) -> Any:
    if not is_floating(new):
        return new
    rate = jnp.asarray(rate, wide(new.dtype))
    if train:
        return jnp.where(jax.random.bernoulli(key, rate.astype(jnp.float32), new.shape), old, new)
    return (rate * old.astype(rate.dtype) + (1 - rate) * new.astype(rate.dtype)).astype(new.dtype)


@builder
def variational_dropout(rate: Scalar) -> Layer:
    """Dropout with one mask for a whole sequence: a cell that drops the same values in every step.

        y_t = m x_t / (1 - rate)

    The mask m, drawn with the first carry, is its carry (Gal & Ghahramani, 2016). In a stack it
    stands where `dropout` would: `stack(variational_dropout(0.2), fnn.cells.lstm(64))`. Their mask
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


def carry_of(cell: Any) -> Callable[..., Any]:
    """The function that gives a cell's first carry."""
    if isinstance(cell, Layer) and cell.carry is not None:
        return cell.carry
    raise errors.OptionError(
        "a cell, as fnn.cells.lstm(64)",
        f"the layer {cell.name}" if isinstance(cell, Layer) else errors.show(cell),
        "make one of a layer by fnn.cells.as_cell(layer, carry)",
    )


def carry_and_x(xs: tuple) -> tuple:
    """The two inputs of a cell."""
    if len(xs) != 2:
        checks.wrong_arity(2, 2, len(xs))
    return xs


def check_parts(carry: Tree, parts: Iterable[str]) -> None:
    """Refuse a carry that is not a dict of exactly these parts."""
    if not isinstance(carry, Mapping) or set(carry) != set(parts):
        raise errors.InputError(
            f"carry to be a dict of {errors.names(parts)}",
            f"carry {errors.show(carry)}",
            "take the one that came out, or None for the first one",
        )
