"""Recurrent networks: a cell run along time by one `jax.lax.scan`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from fnn.core import checks, errors
from fnn.core.declarations import Param
from fnn.core.layer import Layer, outline
from fnn.core.notes import add_notes, no_notes
from fnn.core.scan import scan
from fnn.core.shapes import as_array, struct
from fnn.core.values import check_values
from fnn.core.wrapping import wrap
from fnn.initializers import zeros
from fnn.layers.combinators import check_trees, fold, noting
from fnn.layers.frozen import held_in, joined
from fnn.layers.recurrent.cells.cell import check_carry, first_or
from fnn.layers.recurrent.cells.combinators import carry_of


@errors.builder
def rnn(
    cell: Layer,
    *,
    reverse: bool = False,
    return_sequence: bool = True,
    return_carry: bool = False,
    stateful: bool = False,
    checkpoint_every: int | None = None,
    truncate: int | None = None,
    feature_axes: int = 1,
    unroll: int = 1,
) -> Layer:
    """A cell along time: (carry_t, y_t) = cell(carry_{t-1}, x_t): [..., T, C] -> [..., T, H].

    Called as `net(params, x, mask, carry, resets, lengths)`, of which all but x may be None or left
    out:

    - mask: booleans [..., T], True where a step is real. Where it is False the carry is held and
      y is zero, and what x has there changes nothing, NaN included.
    - carry: to start from; None is the cell's first one.
    - resets: booleans [..., T], True where a new episode starts: no carry goes from the step
      before it into it, or in reverse from it into the step before. Ignored where masked.
    - lengths: integers [...], how many of the first steps are real; beside a mask, a step is real
      where both say so. A length outside 0 to T is an error, or under `jit`, where it is not known,
      taken as the nearest one.

    Options:

    - `cell`: any layer with a carry; its key at step t is folded from t, its state goes along.
    - `reverse`: from the last step to the first. Each y stays at the place of its x.
    - `return_sequence`: False gives y of the last step that is not masked (the first, in reverse)
      alone, [..., H], and zero where there is none.
    - `return_carry`: gives (y, the carry at the end).
    - `stateful`: the carry stands in the state, and a call starts where the one before it ended,
      without gradient into it. It does so in evaluation mode too, so take the state from
      `y, state = net.apply(params, state, x)`; `fnn.forget(state)` starts again. All batches have
      one size.
    - `checkpoint_every`: k keeps one carry every k steps for the backward pass, which computes what
      lies between again: memory grows as T / k + k instead of T (Chen et al., 2016).
    - `truncate`: no gradient goes from the start of a chunk of k steps to the chunk before.
    - `feature_axes`: how many axes an x of one step has: 3 for images, 0 for words.
    - `unroll`: as of `jax.lax.scan`.

    Params and state are named as the cell's. Raises OptionError for something that is no cell,
    ShapeError and DtypeError for a mask, carry, resets or lengths that do not fit: nothing is
    broadcast.

    >>> import jax, jax.numpy as jnp, fnn
    >>> net = fnn.rnn(fnn.cells.gru(3))
    >>> params, _ = net.init(jax.random.key(0), (1, 5, 4))
    >>> y = net(params, jnp.ones((2, 5, 4)), lengths=jnp.array([5, 2]))
    >>> y.shape, bool((y[1, 2:] == 0).all())
    ((2, 5, 3), True)
    """
    how = How(
        reverse=reverse,
        return_sequence=return_sequence,
        return_carry=return_carry,
        stateful=stateful,
        checkpoint_every=checkpoint_every,
        truncate=truncate,
        feature_axes=feature_axes,
        unroll=unroll,
    )
    return along_time("rnn", cell, how)


class How(NamedTuple):
    """The options of `rnn`."""

    reverse: bool = False
    return_sequence: bool = True
    return_carry: bool = False
    stateful: bool = False
    checkpoint_every: int | None = None
    truncate: int | None = None
    feature_axes: int = 1
    unroll: int = 1


def along_time(name: str, cell: Layer, how: How) -> Layer:
    """`rnn`, under a name."""
    carry_of(cell)
    checks.count("feature_axes", how.feature_axes, 0)
    checks.count("unroll", how.unroll)
    for option, value in (("checkpoint_every", how.checkpoint_every), ("truncate", how.truncate)):
        if value is not None:
            checks.count(option, value)

    def declare(cell, x, mask=None, carry=None, resets=None, lengths=None):
        with errors.within(name):
            time = time_of(x, mask, resets, lengths, how.feature_axes)
            (params, state), (kept, y) = outline(cell, (None, _zeros(time.one)))
            if how.stateful:
                state = {**state, SEQUENCE: kept_in_state(kept)}
            if carry is not None:
                check_carry(carry, kept)
            if how.return_sequence:
                y = jax.tree.map(time.repeated, y)
        return (params, state), (y, kept) if how.return_carry else y

    def apply(
        cell, params, state, x, mask=None, carry=None, resets=None, lengths=None, *, key, train
    ):
        with errors.within(name):
            check_trees(params, state, key)
            x, mask, carry, resets, lengths = jax.tree.map(
                as_array, (x, mask, carry, resets, lengths)
            )
            time = time_of(x, mask, resets, lengths, how.feature_axes)
            whole = joined(params, held_in(state))
            first = first_or(None, carry_of(cell), whole, time.one, key, train)
            if carry is not None:
                check_carry(carry, first)
            if how.stateful:
                state, going_on = apart(state, first)
                carry = going_on if carry is None else carry
            run, came_back = noting(cell)

            def step(loop, now):
                (carry, state, last), (t, x, real, new) = loop, now
                if new is not None:
                    carry = time.where(new, first, carry)
                if how.truncate is not None:
                    begins = (time.length - 1 - t if how.reverse else t) % how.truncate == 0
                    cut = jax.lax.stop_gradient(carry)
                    carry = jax.tree.map(partial(jnp.where, begins), cut, carry)
                if real is not None:
                    x = time.where(real, x, jnp.zeros_like(x))
                before = state
                (after, y), state = run(params, state, carry, x, key=fold(key, t), train=train)
                state = add_notes(before, state) if train else state
                check_carry(after, first)
                if real is not None:
                    after = time.where(real, after, carry)
                    y = time.where(real, y, _zeros(y) if how.return_sequence else last)
                if how.return_sequence:
                    return (after, state, None), y
                return (after, state, y), None

            start, last = first if carry is None else carry, None
            state = no_notes(state) if train else state
            time.check_values(
                lambda x: cell.apply(params, state, start, x, key=key, train=train), x
            )
            if not how.return_sequence:
                one = partial(run, key=key, train=train)
                last = _zeros(jax.eval_shape(one, params, state, start, time.one)[0][1])
            new = boundaries(time.mask, resets, how.reverse)
            xs = jnp.arange(time.length), *jax.tree.map(time.first, (x, time.mask, new))
            (carry, after, last), ys = scan(
                step,
                (start, state, last),
                xs,
                checkpoint_every=how.checkpoint_every,
                reverse=how.reverse,
                unroll=how.unroll,
            )
            y = jax.tree.map(time.back, ys) if how.return_sequence else last
            state = state if all(came_back) else after
            state = together(state, carry) if how.stateful else state
        return (y, carry) if how.return_carry else y, state

    return wrap(cell, apply, declare=declare, name=name)


class Time(NamedTuple):
    """The axes of a sequence: those before time, the length, and an x of one step."""

    lead: tuple[int, ...]
    length: int
    one: jax.ShapeDtypeStruct
    mask: Any  # booleans [..., T], or None

    def first(self, a: jax.Array) -> jax.Array:
        """[..., T, C] -> [T, ..., C]."""
        return jnp.moveaxis(a, len(self.lead), 0)

    def back(self, a: jax.Array) -> jax.Array:
        """[T, ..., C] -> [..., T, C]."""
        return jnp.moveaxis(a, 0, len(self.lead))

    def repeated(self, a: jax.Array) -> jax.Array:
        """[..., C] -> [..., T, C]."""
        return self.back(jnp.broadcast_to(a, (self.length, *a.shape)))

    def check_values(self, step: Callable[[jax.Array], Any], x: jax.Array) -> None:
        """Let `step(x)` refuse the integers of an x of one step, at all times that are real."""
        if not jnp.issubdtype(x.dtype, jnp.integer):
            return
        if self.mask is not None:
            mask = self.mask.reshape(self.mask.shape + (1,) * (x.ndim - self.mask.ndim))
            x = jnp.where(mask, x, jnp.zeros_like(x))
        check_values(step, x, axis=len(self.lead))

    def where(self, chosen: jax.Array, new: Any, old: Any) -> Any:
        """Trees of `new` where `chosen` [...] is True, `old` elsewhere."""

        def pick(a, b):
            if a.shape[: len(self.lead)] != self.lead:
                raise errors.ShapeError(
                    f"a cell whose arrays have the leading axes {self.lead} of x, to be masked",
                    f"one with {errors.show(a)}",
                    "give each of its arrays these axes",
                )
            return jnp.where(chosen.reshape(self.lead + (1,) * (a.ndim - len(self.lead))), a, b)

        return jax.tree.map(pick, new, old)


def check_time(
    x: Any, mask: Any, resets: Any, lengths: Any, feature_axes: int, called: str = "mask"
) -> tuple[tuple[int, ...], int]:
    """The axes before time, and the length of x, that mask, resets and lengths fit."""
    checks.rank(x, feature_axes + 1, f"[..., T, and {feature_axes} axes of one step]")
    at = len(x.shape) - feature_axes - 1
    lead, length = tuple(x.shape[:at]), x.shape[at]
    for name, flags in ((called, mask), ("resets", resets)):
        if flags is not None:
            _check_input(name, flags, (*lead, length), jnp.bool_)
    if lengths is not None:
        _check_input("lengths", lengths, lead, jnp.integer)
    return lead, length


def time_of(
    x: jax.Array, mask: Any, resets: Any, lengths: Any, feature_axes: int, called: str = "mask"
) -> Time:
    """The axes of x, checked, and which steps are real by the mask and the lengths."""
    lead, length = check_time(x, mask, resets, lengths, feature_axes, called)
    one = jax.ShapeDtypeStruct(lead + x.shape[len(lead) + 1 :], x.dtype)
    if lengths is None:
        return Time(lead, length, one, mask)
    if not isinstance(lengths, jax.core.Tracer):
        wrong = np.asarray(lengths)[(np.asarray(lengths) < 0) | (np.asarray(lengths) > length)]
        if wrong.size:
            mend = "count the steps of x that are real"
            raise errors.InputError(f"lengths of 0 to {length}", f"{wrong[0]}", mend)
    steps = jnp.arange(length, dtype=jnp.int32).reshape((1,) * len(lead) + (length,))
    real = steps < lengths.astype(jnp.int32)[..., None]
    return Time(lead, length, one, real if mask is None else real & mask)


def _check_input(name: str, value: Any, shape: tuple, kind: Any) -> None:
    if not jnp.issubdtype(value.dtype, kind):
        wanted = f"{name} of {'booleans' if kind is jnp.bool_ else 'integers'}"
        mend = f"compare, as {name} != 0" if kind is jnp.bool_ else "count the steps that are real"
        if name != "resets" and kind is jnp.bool_ and jnp.issubdtype(value.dtype, jnp.integer):
            mend = f"pass lengths as lengths=, and flags as {name}.astype(bool)"
        raise errors.DtypeError(wanted, f"{name} {errors.show(value)}", mend)
    if value.shape != shape:
        mend = "pass one for each " + ("sequence of x" if name == "lengths" else "step of x")
        raise errors.ShapeError(f"{name} {shape}", f"{name} {value.shape}", mend)


def boundaries(mask: Any, resets: Any, reverse: bool) -> Any:
    """Where the carry starts anew before a step [..., T]; None for nowhere."""
    if resets is None:
        return None
    starts = resets if mask is None else resets & mask
    if not reverse:
        return starts
    episode = jnp.cumsum(starts, axis=-1)
    beyond = jnp.iinfo(episode.dtype).max
    real = episode if mask is None else jnp.where(mask, episode, beyond)
    least = jax.lax.cummin(real, axis=real.ndim - 1, reverse=True)
    shift = ((0, 0),) * (real.ndim - 1) + ((0, 1),)
    following = jnp.pad(least[..., 1:], shift, constant_values=beyond)  # of the next real step
    crossed = (episode < following) & (following < beyond)
    return crossed if mask is None else crossed & mask


def _zeros(tree: Any) -> Any:
    return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), tree)


# --- a carry in the state

SEQUENCE = "sequence"  # where a stateful layer keeps it, beside the cell's own state


def forget(state: Any) -> Any:
    """The state of a network whose stateful layers start from their first carries again.

    >>> import jax, jax.numpy as jnp, fnn
    >>> net = fnn.serial(fnn.rnn(fnn.cells.gru(3), stateful=True))
    >>> params, state = net.init(jax.random.key(0), (2, 5, 4))
    >>> _, state = net.apply(params, state, jnp.ones((2, 5, 4)))
    >>> print(state["rnn1"]["sequence"]["started"])
    True
    >>> print(forget(state)["rnn1"]["sequence"]["started"])
    False
    """
    if not isinstance(state, Mapping):
        return state
    fresh = {name: forget(value) for name, value in state.items()}
    if isinstance(kept := fresh.get(SEQUENCE), dict) and "started" in kept:
        fresh[SEQUENCE] = {**kept, "started": jnp.zeros_like(kept["started"])}
    return fresh


def kept_in_state(carry: Any) -> dict[str, Param]:
    """The declaration of a carry in the state, its arrays numbered."""
    arrays = [Param(tuple(a.shape), zeros, a.dtype, "carry") for a in jax.tree.leaves(carry)]
    return _numbered(Param((), zeros, jnp.bool_, "carry"), arrays)


def apart(state: Any, first: Any) -> tuple[dict, Any]:
    """The cell's own state, and the carry in the state: the first one, if there is none yet."""
    arrays = [struct(a) for a in jax.tree.leaves(first)]
    wanted = _numbered(jax.ShapeDtypeStruct((), jnp.bool_), arrays)
    kept = state.get(SEQUENCE)
    if jax.tree.map(struct, kept) != wanted:
        raise errors.ParamsError(
            f"state with {SEQUENCE} {errors.show(wanted)}",
            "none" if kept is None else f"{SEQUENCE} {errors.show(kept)}",
            "a stateful layer takes batches of one size: take the state from net.init for this one",
        )
    went = jax.tree.unflatten(jax.tree.structure(first), [kept[str(i)] for i in range(len(arrays))])
    carry = jax.tree.map(partial(jnp.where, kept["started"]), went, first)
    return {name: value for name, value in state.items() if name != SEQUENCE}, carry


def together(state: dict, carry: Any) -> dict:
    """The cell's own state with the carry in it, which takes no gradient back to this call."""
    leaves = jax.lax.stop_gradient(jax.tree.leaves(carry))
    return {**state, SEQUENCE: _numbered(jnp.ones((), bool), leaves)}


def _numbered(started: Any, arrays: list[Any]) -> dict[str, Any]:
    return {"started": started} | {str(i): a for i, a in enumerate(arrays)}
