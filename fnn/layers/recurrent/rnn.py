"""Recurrent networks: a cell run along time by one `jax.lax.scan`."""

from functools import partial
from typing import NamedTuple

import jax
import jax.core
import jax.numpy as jnp

from fnn.core import checks, errors
from fnn.core.layer import Layer, outline
from fnn.core.notes import add_notes, no_notes
from fnn.core.origins import builder
from fnn.core.scan import scan
from fnn.core.shapes import as_array
from fnn.core.types import Tree
from fnn.core.wrapping import wrap
from fnn.layers.frozen import held_in, joined
from fnn.layers.lifted import check_trees, fold, noting
from fnn.layers.recurrent.cells.cell import check_carry, first_or
from fnn.layers.recurrent.cells.combinators import carry_of
from fnn.layers.recurrent.stateful import SEQUENCE, apart, kept_in_state, together
from fnn.layers.recurrent.time_axis import boundaries, time_of


@builder
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

    Called as `net(params, x, mask, carry, resets, lengths)`, where all but x may be None or left
    out:

    - mask: booleans [..., T], True where a step is real. Where it is False the carry is held, y is
      zero, and the value of x changes nothing, NaN included.
    - carry: to start from; None is the cell's first carry.
    - resets: booleans [..., T], True where a new episode starts: no carry passes from the step
      before into it, or in reverse from it into the step before. Ignored where masked.
    - lengths: integers [...], how many of the first steps are real; with a mask too, a step is real
      where both say so. A length outside 0 to T is an error; under `jit`, where it is not known,
      it is clipped.

    Options:

    - `cell`: any layer with a carry; its key at step t is folded from t, its state rides along.
    - `reverse`: run from the last step to the first. Each y stays at the place of its x.
    - `return_sequence`: False returns only the y of the last step that is not masked (the first, in
      reverse), [..., H], and zero where there is none.
    - `return_carry`: return (y, the carry at the end).
    - `stateful`: the carry is kept in the state, and a call starts where the previous one ended,
      without gradient into it. This holds in evaluation mode too, so take the state from
      `y, state = net.apply(params, state, x)`; `fnn.forget(state)` starts again. All batches have
      one size.
    - `checkpoint_every`: k keeps one carry every k steps for the backward pass, which recomputes
      the steps between: memory grows as T / k + k instead of T (Chen et al., 2016).
    - `truncate`: k stops the gradient between chunks of k steps.
    - `feature_axes`: how many axes an x of one step has: 3 for images, 0 for words.
    - `unroll`: as in `jax.lax.scan`. On a GPU, where a small cell waits for the launch of each
      kernel, 10 took half the time of 1.

    Params and state are named as the cell's. Raises OptionError for a layer without a carry,
    ShapeError and DtypeError for a mask, carry, resets or lengths that do not fit: nothing is
    broadcast.

    >>> import jax, jax.numpy as jnp, fnn
    >>> net = fnn.rnn(fnn.cells.gru(3))
    >>> params, _ = net.init(jax.random.key(0), (1, 5, 4))
    >>> y = net(params, jnp.ones((2, 5, 4)), lengths=jnp.array([5, 2]))
    >>> y.shape, bool((y[1, 2:] == 0).all())
    ((2, 5, 3), True)
    """
    options = RnnOptions(
        reverse=reverse,
        return_sequence=return_sequence,
        return_carry=return_carry,
        stateful=stateful,
        checkpoint_every=checkpoint_every,
        truncate=truncate,
        feature_axes=feature_axes,
        unroll=unroll,
    )
    return along_time("rnn", cell, options)


class RnnOptions(NamedTuple):
    """The options of `rnn`."""

    reverse: bool = False
    return_sequence: bool = True
    return_carry: bool = False
    stateful: bool = False
    checkpoint_every: int | None = None
    truncate: int | None = None
    feature_axes: int = 1
    unroll: int = 1


def along_time(name: str, cell: Layer, options: RnnOptions) -> Layer:
    """`rnn`, under another name."""
    carry_of(cell)
    checks.count("feature_axes", options.feature_axes, 0)
    checks.count("unroll", options.unroll)
    for option in ("checkpoint_every", "truncate"):
        if (value := getattr(options, option)) is not None:
            checks.count(option, value)

    def declare(cell, x, mask=None, carry=None, resets=None, lengths=None):
        with errors.within(name):
            time = time_of(x, mask, resets, lengths, options.feature_axes)
            (params, state), (kept, y) = outline(cell, (None, _zeros(time.one)))
            if options.stateful:
                state = {**state, SEQUENCE: kept_in_state(kept)}
            if carry is not None:
                check_carry(carry, kept)
            if options.return_sequence:
                y = jax.tree.map(time.repeated, y)
        return (params, state), (y, kept) if options.return_carry else y

    def apply(
        cell, params, state, x, mask=None, carry=None, resets=None, lengths=None, *, key, train
    ):
        with errors.within(name):
            check_trees(params, state, key)
            x, mask, carry, resets, lengths = jax.tree.map(
                as_array, (x, mask, carry, resets, lengths)
            )
            time = time_of(x, mask, resets, lengths, options.feature_axes)
            whole = joined(params, held_in(state))
            first = first_or(None, carry_of(cell), whole, time.one, key, train)
            if carry is not None:
                check_carry(carry, first)
            if options.stateful:
                state, going_on = apart(state, first)
                carry = going_on if carry is None else carry
            run, unchanged = noting(cell)

            def step(loop, now):
                (carry, state, last), (t, x, real, new) = loop, now
                if new is not None:
                    carry = time.where(new, first, carry)
                if options.truncate is not None:
                    done = time.length - 1 - t if options.reverse else t
                    begins = done % options.truncate == 0
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
                    y = time.where(real, y, _zeros(y) if options.return_sequence else last)
                if options.return_sequence:
                    return (after, state, None), y
                return (after, state, y), None

            start, last = first if carry is None else carry, None
            state = no_notes(state) if train else state
            time.check_values(
                lambda x: cell.apply(params, state, start, x, key=key, train=train), x
            )
            if not options.return_sequence:
                one = partial(run, key=key, train=train)
                last = _zeros(jax.eval_shape(one, params, state, start, time.one)[0][1])
            new = boundaries(time.mask, resets, options.reverse)
            xs = jnp.arange(time.length), *jax.tree.map(time.first, (x, time.mask, new))
            (carry, after, last), ys = scan(
                step,
                (start, state, last),
                xs,
                checkpoint_every=options.checkpoint_every,
                reverse=options.reverse,
                unroll=options.unroll,
            )
            y = jax.tree.map(time.back, ys) if options.return_sequence else last
            state = state if all(unchanged) else after
            state = together(state, carry) if options.stateful else state
        return (y, carry) if options.return_carry else y, state

    return wrap(cell, apply, declare=declare, name=name)


def _zeros(tree: Tree) -> Tree:
    return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), tree)
