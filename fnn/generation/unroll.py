"""A cell run on its own outputs, which are its next inputs."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from fnn.core import checks, errors
from fnn.core.layer import Layer
from fnn.core.scan import scan
from fnn.core.shapes import as_array, struct
from fnn.core.types import Dtype, Key, Scalar, Tree
from fnn.generation.memory import checked_state
from fnn.generation.samplers import Settings, choose
from fnn.layers.frozen import held_in, joined
from fnn.layers.lifted import fold
from fnn.layers.recurrent.cells.cell import check_carry
from fnn.layers.recurrent.cells.combinators import carry_of
from fnn.layers.recurrent.time_axis import TimeAxis, time_of


class Generated(NamedTuple):
    """The result of `unroll_generate`: x with the rest filled in, all y, and the last carry."""

    x: jax.Array
    y: Tree
    carry: Tree


@errors.named
def unroll_generate(
    cell: Layer,
    params: Tree,
    x: Any,
    given: Any = None,
    *,
    lengths: Any = None,
    key: Key | None = None,
    temperature: Scalar = 1.0,
    top_k: int | None = None,
    next_input: Callable[[Any, Any], Any] | None = None,
    carry: Tree = None,
    state: Tree = None,
) -> Generated:
    """Run a cell along time on its own outputs, wherever no input is given.

        (carry_t, y_t) = cell(carry_{t-1}, x_t),  x_{t+1} ~ softmax(y_t / temperature)

    One scan over all steps, whether their input is given or not: under `jit` it compiles once for
    prompts of any length. For text, `fnn.generate` takes cells too, and has stop tokens, samples
    and more ways to draw.

    - `cell`: runs in evaluation mode; `cells.serial(embed=..., rnn=cells.lstm(n), head=...)` takes
      the params of the trained `serial` of the same names. Without `next_input`, its y [..., V] are
      logits.
    - `x`: the inputs [..., T]; where they are not given, any values will do.
    - `given`: booleans [..., T], True where the input is given; all True is teacher forcing. The
      first must be True, as there is nothing to draw it from; under `jit`, where its value is
      unknown, it counts as given.
    - `lengths`: integers [...], how many of the first inputs are given; replaces `given`.
    - `key`: to draw from; not needed at temperature 0 or if `next_input` ignores it.
    - `temperature`: at least 0; 0 takes the most likely.
    - `top_k`: draw only from the k most likely (Fan, Lewis & Dauphin, 2018).
    - `next_input(key, y)`: gives the next x instead, such as `lambda key, y: y` for a series of
      numbers; it has the shape and dtype of one step of x.
    - `carry`, `state`: to start from; None is the cell's first carry, and no state.

    Returns `Generated(x, y, carry)`, y [..., T, V]. Raises as `fnn.rnn`, and RandomKeyError where a
    key is needed.

    >>> import fnn
    >>> cell = fnn.cells.serial(fnn.embedding(10, 4), fnn.cells.gru(8), fnn.dense(10))
    >>> params, _ = cell.init(jax.random.key(0), None, jnp.array([0]))
    >>> prompt = jnp.array([[3, 1, 4, 0, 0, 0]])
    >>> length = jnp.array([3])
    >>> text = unroll_generate(cell, params, prompt, lengths=length, key=jax.random.key(1)).x
    >>> text.shape, bool((text[:, :3] == prompt[:, :3]).all())
    ((1, 6), True)
    """
    first_carry = carry_of(cell)
    x, given = as_array(x, "x"), None if given is None else as_array(given, "given")
    lengths = None if lengths is None else as_array(lengths, "lengths")
    time = _time(x, given, lengths)
    known = time.length and not isinstance(time.mask, jax.core.Tracer)
    if known and not np.asarray(time.mask)[..., 0].all():
        wanted = "the first input of each sequence to be given"
        raise errors.InputError(wanted, "one that is not", "give it")
    if top_k is not None:
        checks.count("top_k", top_k)
    checks.number("temperature", temperature, 0.0, float("inf"), open_high=True)
    draw = next_input
    if draw is None:
        settings = Settings(temperature, top_k)
        if not settings.greedy:
            checks.need_key(key)
        draw = partial(_next, settings, x.dtype)
    else:
        checks.function("next_input", draw, "(key, y)")
    if key is not None:
        checks.key(key)
    state = checked_state(cell, time.one, state, "unroll_generate")
    first = first_carry(joined(params, held_in(state)), time.one)
    if carry is not None:
        check_carry(carry, first)
    carry = first if carry is None else carry

    def step(loop, now):
        (carry, drawn), (t, x, real) = loop, now
        x = time.where(real | (t == 0), x, drawn)
        (carry, y), _ = cell.apply(params, state, carry, x)
        drawn = draw(fold(key, t), y)
        _check_drawn(drawn, x)
        return (carry, drawn), (x, y)

    time.check_values(partial(cell.apply, params, state, carry), x)
    start = carry, jnp.zeros(time.one.shape, x.dtype)
    steps = jnp.arange(time.length), time.first(x), time.first(time.mask)
    (carry, _), filled = scan(step, start, steps)
    x, y = jax.tree.map(time.back, filled)
    return Generated(x, y, carry)


def _time(x: Any, given: Any, lengths: Any) -> TimeAxis:
    """The axes of x: `given` has all those before one step's, `lengths` the same without T."""
    if x is None:
        checks.not_an_array(x)
    if (given is None) == (lengths is None):
        raise errors.InputError(
            "given, or lengths", "neither" if given is None else "both", "pass one of them"
        )
    known = lengths if given is None else given
    steps = known.ndim if given is None else known.ndim - 1
    if not 0 <= steps < x.ndim:
        raise errors.ShapeError(
            "given with the leading axes of x and its time, or lengths with the leading axes",
            f"{'lengths' if given is None else 'given'} {errors.show(known)}, x {errors.show(x)}",
            "give one for each step of x, or one length for each sequence",
        )
    return time_of(x, given, None, lengths, x.ndim - steps - 1, called="given")


def _next(settings: Settings, dtype: Dtype, key: Key | None, logits: jax.Array) -> jax.Array:
    """The number of one of the logits [..., V], as the next input [...]."""
    return choose(key, logits, settings).astype(dtype)


def _check_drawn(drawn: Any, x: jax.Array) -> None:
    if struct(drawn) != struct(x):
        raise errors.ShapeError(
            f"next inputs like x of one step, {errors.show(x)}",
            errors.show(drawn),
            "x of integers [..., T] for logits y, or give next_input",
        )
