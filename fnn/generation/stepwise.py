"""Tokens handed over as they are written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from fnn.core import checks, errors
from fnn.core.layer import Layer
from fnn.core.types import Key, Tree
from fnn.generation.generate import Writing, advance, begin, check_key, checked_adjust, stops_of
from fnn.generation.memory import Prompt, prompt_of, reader_of
from fnn.generation.samplers import settings_of


@errors.named
def stepwise(
    net: Layer, *, adjust: Callable[[jax.Array], jax.Array] | None = None
) -> Callable[..., Iterator[jax.Array]]:
    """A function that writes as `generate` does, and hands over the tokens of each step.

        for tokens in write(params, prompts, steps, key=key, ...):  # int32 [...], step by step

    Build it once: reading and stepping are compiled at the first call, and again for prompts of
    another shape. `write` takes the options of `fnn.generate` but for `samples`; `top_k` as an int
    is compiled in. Rows that have ended give -1, and the iterator ends when all have. The next step
    is started before the tokens of one are handed over, so the device works while the caller
    reads them; they come as arrays, for which `np.asarray` waits.

    - `net`, `adjust`: as in `fnn.generate`.

    Raises as `fnn.generate` does under `jit`, at the call.

    >>> import fnn
    >>> cell = fnn.cells.serial(fnn.embedding(10, 4), fnn.cells.gru(8), fnn.dense(10))
    >>> params, _ = cell.init(jax.random.key(0), None, jnp.array([0]))
    >>> write = stepwise(cell)
    >>> len([token for token in write(params, jnp.array([3, 1, 4]), 5, temperature=0.0)])
    5
    """
    adjust = checked_adjust(adjust)

    @partial(jax.jit, static_argnames=("given", "penal"))
    def start(params, tokens, lengths, state, carry, *, given, penal):
        prompt = Prompt(tokens, lengths, given)
        reader = reader_of(net, params, state, carry, prompt.rows, 1, given)
        writing = begin(reader, prompt, None, penal, adjust)
        return jax.tree.map(jnp.copy, writing)  # of its own, to be given away step by step

    @partial(jax.jit, static_argnames=("top_k", "given", "greedy"), donate_argnums=1)
    def step(params, writing, state, key, settings, stops, *, top_k, given, greedy):
        settings = settings if top_k is None else settings._replace(top_k=top_k)
        settings = settings._replace(temperature=0.0) if greedy else settings
        kept = (state, writing.memory) if net.carry else (writing.memory, None)
        reader = reader_of(net, params, *kept, writing.done.shape, 1, given)
        new = advance(reader, writing, key, settings, stops, adjust)
        return new, jnp.copy(new.token), jnp.all(new.done)

    @errors.named
    def write(
        params: Tree,
        tokens: Any,
        steps: int,
        *,
        lengths: Any = None,
        key: Key | None = None,
        stop: Any = (),
        state: Tree = None,
        carry: Tree = None,
        **options: Any,
    ) -> Iterator[jax.Array]:
        """The tokens [...] of each step; see `fnn.generate`."""
        steps, stops = checks.count("steps", steps), stops_of(stop)
        prompt = prompt_of(tokens, lengths)
        settings = settings_of(options).checked(prompt.rows)
        check_key(settings, key)
        most = settings.top_k if isinstance(settings.top_k, int) else None
        fixed = {"given": prompt.given, "top_k": most, "greedy": settings.greedy}
        penal = settings.repetition_penalty is not None
        given = prompt.tokens, prompt.lengths, state, carry
        writing = start(params, *given, given=prompt.given, penal=penal)

        def following(writing):
            traced = settings if most is None else settings._replace(top_k=None)
            return step(params, writing, state, key, traced, stops, **fixed)

        return _each(following, writing, steps)

    return write


def _each(following: Callable, writing: Writing, steps: int) -> Iterator[jax.Array]:
    """The tokens of each step, while the device is one step ahead."""
    writing, tokens, over = following(writing)
    for t in range(steps):
        ahead = following(writing) if t + 1 < steps else None
        yield tokens
        if ahead is None or over:
            return
        writing, tokens, over = ahead
