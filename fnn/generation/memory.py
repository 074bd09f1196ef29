"""What a network or a cell keeps of the tokens that it has read: caches in a state, or a carry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from fnn.core import checks, errors, trees
from fnn.core.declarations import MEMORY, arrays_of
from fnn.core.layer import Layer, inputs_of
from fnn.core.scan import scan
from fnn.core.shapes import as_array
from fnn.core.types import Shape, Tree
from fnn.core.values import check_values
from fnn.generation.samplers import logits_of
from fnn.layers.frozen import held_in, joined
from fnn.layers.recurrent.cells.cell import check_carry


class Prompt(NamedTuple):
    """Tokens [..., T], of which the first `lengths` [...] are real; 0 in place of the others."""

    tokens: jax.Array
    lengths: jax.Array
    given: bool  # whether lengths were; else all are T

    @property
    def rows(self) -> Shape:
        return self.tokens.shape[:-1]

    @property
    def real(self) -> jax.Array:
        """Booleans [..., T]."""
        return jnp.arange(self.tokens.shape[-1], dtype=jnp.int32) < self.lengths[..., None]

    @property
    def last(self) -> jax.Array:
        """The last real token of each row [...]."""
        at = jnp.clip(self.lengths - 1, 0, self.tokens.shape[-1] - 1)
        return jnp.take_along_axis(self.tokens, at[..., None], axis=-1)[..., 0]

    def longest(self) -> int:
        """The length of the longest; where lengths are not known, that of the shortest possible."""
        if not self.given:
            return self.tokens.shape[-1]
        if isinstance(self.lengths, jax.core.Tracer):
            return 1
        return int(np.max(np.asarray(self.lengths), initial=1))


def prompt_of(tokens: Any, lengths: Any) -> Prompt:
    """The prompt, checked; a length outside 1 to T is refused where it is known."""
    tokens = as_array(tokens, "tokens")
    checks.rank(tokens, 1, "[..., T]", "tokens")
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise errors.DtypeError(
            "tokens of integers", f"tokens {errors.show(tokens)}", "cast: tokens.astype(jnp.int32)"
        )
    *rows, length = tokens.shape
    if not length:
        raise errors.ShapeError(
            "tokens [..., T] to go on from", f"tokens {tokens.shape}", "begin with a token of yours"
        )
    tokens = tokens.astype(jnp.int32)
    if lengths is None:
        return Prompt(tokens, jnp.full(rows, length, jnp.int32), False)
    lengths = as_array(lengths, "lengths")
    if not jnp.issubdtype(lengths.dtype, jnp.integer) or lengths.shape != tuple(rows):
        kind = errors.DtypeError if lengths.shape == tuple(rows) else errors.ShapeError
        got = f"lengths {errors.show(lengths)}"
        raise kind(f"lengths of integers {tuple(rows)}", got, "count the tokens of each prompt")
    if not isinstance(lengths, jax.core.Tracer):
        known = np.asarray(lengths)
        wrong = known[(known < 1) | (known > length)]
        if wrong.size:
            mend = "begin an empty prompt with a token of yours"
            raise errors.InputError(f"lengths of 1 to {length}", f"{wrong[0]}", mend)
    prompt = Prompt(tokens, lengths.astype(jnp.int32), True)
    return prompt._replace(tokens=jnp.where(prompt.real, tokens, 0))


class Reader(NamedTuple):
    """How tokens are read into a memory.

    - `first`: the memory of nothing read.
    - `read(memory, tokens [..., T], real [..., T]) -> memory`: all of a prompt at once.
    - `step(memory, token [...], real [...]) -> (logits [..., V], memory)`: where a token is not
      real, the memory of its row stays; None is all real, which takes less time.
    - `axes`: for each array of the memory, where an axis of samples would stand after those of the
      rows; -1 for an array without rows.
    """

    first: Tree
    read: Callable[..., Tree]
    step: Callable[..., tuple[jax.Array, Tree]]
    axes: Tree

    def repeated(self, memory: Tree, n: int) -> Tree:
        """The memory n times, for n samples of each row: rows [...] become [..., n]."""

        def repeat(a, axis):
            return a if axis < 0 else jnp.repeat(jnp.expand_dims(a, axis), n, axis)

        return jax.tree.map(repeat, memory, self.axes)

    def reordered(self, memory: Tree, order: jax.Array) -> Tree:
        """The memory of samples [..., n] in the order of their numbers [..., n]."""

        def take(a, axis):
            if axis < 0:
                return a
            before, after = axis + 1 - order.ndim, a.ndim - axis - 1
            index = order.reshape((1,) * before + order.shape + (1,) * after)
            return jnp.take_along_axis(a, index, axis=axis)

        return jax.tree.map(take, memory, self.axes)


def reader_of(
    net: Layer, params: Tree, state: Tree, carry: Tree, rows: Shape, room: int, given: bool
) -> Reader:
    """How a network with caches, or a cell, reads.

    - `room`: how many tokens of a row will be read, as far as is known.
    - `given`: whether prompts have lengths.
    """
    if not isinstance(net, Layer):
        raise errors.InputError("a network or a cell", errors.show(net), "as fnn.cells.lstm(64)")
    if net.carry is not None:
        return _cell_reader(net, params, state, carry, rows)
    if carry is not None:
        raise errors.InputError("carry for a cell alone", f"the network {net.name}", "pass state")
    return _network_reader(net, params, state, rows, room, given)


# --- a cell


def _cell_reader(cell: Layer, params: Tree, state: Tree, carry: Tree, rows: Shape) -> Reader:
    token = jax.ShapeDtypeStruct(rows, jnp.int32)
    state = checked_state(cell, token, state, "generate")
    assert cell.carry is not None
    whole = joined(params, held_in(state))
    first = cell.carry(whole, token)
    if carry is not None:
        check_carry(carry, first)
    sizes = [
        jax.eval_shape(cell.carry, whole, jax.ShapeDtypeStruct((*rows, n), jnp.int32))
        for n in (2, 3)
    ]
    axes = jax.tree.map(_differing, *sizes)

    def step(carry, token, real):
        (new, y), _ = cell.apply(params, state, carry, token)
        logits = logits_of(y, token.shape)
        if real is None:
            return logits, new
        return logits, _in_rows(real, new, carry, axes, token.ndim > len(rows))

    def read(carry, tokens, real):
        def one(carry, now):
            return step(carry, *now)[1], None

        steps = (jnp.moveaxis(a, -1, 0) for a in (tokens, real))
        return scan(one, carry, tuple(steps))[0]

    return Reader(first if carry is None else carry, read, step, axes)


def checked_state(cell: Layer, x: Any, state: Tree, called: str) -> Tree:
    """The state of a cell: {} for None, if it has none."""
    if state is not None:
        return state
    declared = cell.specs(None, x)[1]
    if declared:
        raise errors.ParamsError(
            f"a state with {errors.names(declared)}, which this cell has",
            "state=None",
            f"pass it, as {called}(..., state=state)",
        )
    return {}


# --- a network


def _network_reader(
    net: Layer, params: Tree, state: Tree, rows: Shape, room: int, given: bool
) -> Reader:
    padded = "segments" in inputs_of(net).parameters
    if given and not padded:
        raise errors.InputError(
            "a network called as net(params, tokens, segments), to leave out padding by",
            f"{net.name} without segments, and lengths",
            "pass segments on to its attention, or give prompts of one length without lengths",
        )

    def declared(n):
        x = jax.ShapeDtypeStruct((*rows, n, room), jnp.int32)
        return net.specs(x, segments=x)[1] if padded else net.specs(x)[1]

    two, three = declared(2), declared(3)
    axes = jax.tree.map(_differing, arrays_of(two), arrays_of(three))
    if all(axis < 0 for axis in jax.tree.leaves(axes)):
        raise errors.InputError(
            "a network that remembers what it has read, or a cell",
            f"{net.name} without a cache",
            "build it as for decoding: its attention with cache=, its recurrent layers as cells",
        )
    empty = jax.tree.map(_without, arrays_of(two), axes)
    first = _filled(two, empty, {} if state is None else state)

    def apply(state, tokens, real):
        more = {"segments": real.astype(jnp.int32)} if padded and real is not None else {}
        return net.apply(params, state, tokens, **more)

    def step(state, token, real):
        y, new = apply(state, token[..., None], None if real is None else real[..., None])
        logits = logits_of(y, (*token.shape, 1))[..., 0, :]
        if padded or real is None:
            return logits, new
        return logits, _in_rows(real, new, state, axes, token.ndim > len(rows))

    def read(state, tokens, real):
        return apply(state, tokens, real if given else None)[1]

    return Reader(first, read, step, axes)


def _filled(declared: Tree, empty: Tree, state: Tree) -> Tree:
    """The state with what is empty for caches and carries that it lacks."""
    if not isinstance(declared, Mapping):
        return state
    trees.check_names("state", state, declared)
    found = {}
    for name, below in declared.items():
        if name in state:
            with errors.at(name):
                found[name] = _filled(below, empty[name], state[name])
        elif all(getattr(p, "kind", "") in MEMORY for p in jax.tree.leaves(below)):
            found[name] = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), empty[name])
        elif isinstance(below, Mapping):
            with errors.at(name):
                found[name] = _filled(below, empty[name], {})
        else:
            raise errors.ParamsError(
                f"state with {name}", "none", "pass the trained state, as generate(..., state=...)"
            )
    return found


# --- rows


def _differing(a: Any, b: Any) -> int:
    """The axis that the sizes of rows set apart; -1 for none."""
    pairs = enumerate(zip(a.shape, b.shape, strict=True))
    return next((axis for axis, (n, m) in pairs if n != m), -1)


def _without(a: Any, axis: int) -> jax.ShapeDtypeStruct:
    """The shape of an array without an axis; -1 leaves out none."""
    shape = a.shape if axis < 0 else a.shape[:axis] + a.shape[axis + 1 :]
    return jax.ShapeDtypeStruct(shape, a.dtype)


def _in_rows(real: jax.Array, new: Tree, old: Tree, axes: Tree, sampled: bool) -> Tree:
    """The new memory in rows that are real, else the old one."""

    def pick(a, b, axis):
        if axis < 0:
            return a
        end = axis + 1 if sampled else axis  # of the axes of the rows
        shape = (1,) * (end - real.ndim) + real.shape + (1,) * (a.ndim - end)
        return jnp.where(real.reshape(shape), a, b)

    return jax.tree.map(pick, new, old, axes)


def check_tokens(reader: Reader, memory: Tree, token: jax.Array) -> None:
    """Let the network refuse a token, or a full cache, before a loop turns them into tracers."""
    check_values(lambda memory, token: reader.step(memory, token, None), memory, token)
