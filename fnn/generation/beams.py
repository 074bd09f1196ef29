"""Beam search: the likeliest continuations that a search of bounded width finds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fnn.core import checks, errors
from fnn.core.layer import Layer
from fnn.core.types import Tree
from fnn.generation.generate import (
    begin,
    checked_adjust,
    is_stop,
    reader_for,
    refuse_nan,
    stops_of,
)
from fnn.generation.memory import check_tokens, prompt_of
from fnn.generation.samplers import NONE, setting


class Beams(NamedTuple):
    """What `beam_search` has found: K continuations of each row, the best first.

    - `tokens`: int32 [..., K, N], up to a stop token, which counts; then -1, no token.
    - `lengths`: int32 [..., K], how many of them are tokens.
    - `log_probs`: [..., K, N], of each token; then 0.
    - `scores`: [..., K], their sums over lengths^length_penalty; -inf where there are no more.
    """

    tokens: jax.Array
    lengths: jax.Array
    log_probs: jax.Array
    scores: jax.Array


@errors.named
def beam_search(
    net: Layer,
    params: Tree,
    tokens: Any,
    steps: int,
    *,
    beams: int = 4,
    lengths: Any = None,
    stop: Any = (),
    length_penalty: Any = 0.0,
    adjust: Callable[[jax.Array], jax.Array] | None = None,
    state: Tree = None,
    carry: Tree = None,
) -> Beams:
    """The continuations of the best scores that a search of K beams finds.

        score = sum_t log p(x_t | x_<t) / n^length_penalty        n tokens, a stop token included

    Each step extends the K likeliest unfinished texts by every token, and keeps the K likeliest of
    these; what ends with a stop token is kept aside, the K best. The search is over after `steps`
    tokens, or where no unfinished text could still get among the best. Memory is that of K samples
    of each row. If K is no less than the number of all unfinished texts, the result is exact.

    - `net`, `params`, `tokens`, `steps`, `lengths`, `stop`, `adjust`, `state`, `carry`: as in
      `fnn.generate`.
    - `beams`: K, at least 1, which is the greedy text.
    - `length_penalty`: a number, or one for each row: 0 compares sums, which favours short texts,
      and 1 means per token (Wu et al., 2016, section 7, with n itself for their (5 + n) / 6).

    Raises as `fnn.generate`. Under `jit` a row of NaN has no tokens, and scores of NaN.

    >>> import fnn
    >>> cell = fnn.cells.serial(fnn.embedding(10, 4), fnn.cells.gru(8), fnn.dense(10))
    >>> params, _ = cell.init(jax.random.key(0), None, jnp.array([0]))
    >>> search = jax.jit(lambda params, x: beam_search(cell, params, x, 5, beams=3, stop=0))
    >>> found = search(params, jnp.array([[3, 1, 4]]))
    >>> found.tokens.shape, bool((found.scores[:, 0] >= found.scores[:, 1]).all())
    ((1, 3, 5), True)
    """
    steps, beams = checks.count("steps", steps), checks.count("beams", beams)
    prompt = prompt_of(tokens, lengths)
    setting("length_penalty", length_penalty, prompt.rows, -np.inf, np.inf)
    reader = reader_for(net, params, state, carry, prompt, steps)
    stop, adjust = stops_of(stop), checked_adjust(adjust)
    start = begin(reader, prompt, beams, False, adjust)
    check_tokens(reader, start.memory, start.token)
    first, dtype = jnp.arange(beams) == 0, start.log_prob.dtype
    total = jnp.where(first & ~start.done, jnp.zeros((), dtype), -jnp.inf)  # copies count once
    texts = _Texts(
        jnp.full((*total.shape, steps), NONE, jnp.int32),
        jnp.zeros((*total.shape, steps), dtype),
        total,
    )
    ended = texts._replace(scores=jnp.full_like(total, -jnp.inf))
    penalty = jnp.broadcast_to(jnp.asarray(length_penalty).astype(dtype), prompt.rows)[..., None]
    failed = jnp.zeros(prompt.rows, bool)
    search = _Search(start.t, start.memory, start.token, texts, ended, failed)

    def step(search):
        t, memory, token, texts, ended, failed = search
        logits, memory = reader.step(memory, token, None)
        log_probs = jax.nn.log_softmax(adjust(logits))  # [..., K, V]
        bad = jnp.any(jnp.isnan(log_probs), axis=-1) & (texts.scores > -jnp.inf)
        failed = failed | jnp.any(bad, axis=-1)
        log_probs = jnp.where(jnp.isnan(log_probs), -jnp.inf, log_probs)
        ends = is_stop(jnp.arange(log_probs.shape[-1], dtype=jnp.int32), stop)
        alive, parent, token = _extended(texts, jnp.where(ends, -jnp.inf, log_probs), t, beams)
        if stop.size:
            new, *_ = _extended(texts, jnp.where(ends, log_probs, -jnp.inf), t, beams)
            ended = _best(ended, new._replace(scores=new.scores / _power(t + 1, penalty)), beams)
        memory = reader.reordered(memory, parent)
        return _Search(t + 1, memory, token, alive, ended, failed)

    def unfinished(search):
        least, most = (_power(n, penalty[..., 0]) for n in (search.t + 1, steps))
        best = search.texts.scores[..., 0]
        bound = jnp.maximum(best / least, best / most)
        over = jnp.min(search.ended.scores, axis=-1) >= bound
        return (search.t < steps) & ~jnp.all(over | search.failed)

    search = jax.lax.while_loop(unfinished, step, search)
    # After an early end none of these gets among the best, by the bound.
    cut = search.texts._replace(scores=search.texts.scores / _power(steps, penalty))
    found = _best(search.ended, cut, beams)
    none = (found.scores == -jnp.inf) | search.failed[..., None]
    tokens = jnp.where(none[..., None], NONE, found.tokens)
    log_probs = jnp.where(none[..., None], 0, found.log_probs)
    scores = jnp.where(search.failed[..., None], jnp.nan, found.scores)
    refuse_nan(scores)
    return Beams(tokens, jnp.sum(tokens != NONE, axis=-1, dtype=jnp.int32), log_probs, scores)


def _power(n: jax.Array | int, exponent: jax.Array) -> jax.Array:
    return jnp.asarray(n).astype(exponent.dtype) ** exponent


class _Texts(NamedTuple):
    """K texts of each row, with the log-probability of each token and a score of each text."""

    tokens: jax.Array  # [..., K, N]
    log_probs: jax.Array  # [..., K, N]
    scores: jax.Array  # [..., K]


class _Search(NamedTuple):
    """A search before a step: texts that go on, scored by their sums, and those that have ended."""

    t: jax.Array
    memory: Tree
    token: jax.Array  # [..., K]: the last one of each text, which is yet to be read
    texts: _Texts
    ended: _Texts
    failed: jax.Array  # [...]: where logits were NaN


def _extended(
    texts: _Texts, log_probs: jax.Array, t: jax.Array, beams: int
) -> tuple[_Texts, jax.Array, jax.Array]:
    """The K likeliest texts of one token more at t, the numbers of their parents, these tokens."""
    size = log_probs.shape[-1]
    totals = (texts.scores[..., None] + log_probs).reshape(*log_probs.shape[:-2], beams * size)
    scores, number = jax.lax.top_k(totals, beams)
    parent, token = number // size, (number % size).astype(jnp.int32)
    own = jnp.take_along_axis(log_probs.reshape(totals.shape), number, axis=-1)
    kept = _taken(texts, parent)
    tokens = kept.tokens.at[..., t].set(token)
    return _Texts(tokens, kept.log_probs.at[..., t].set(own), scores), parent, token


def _best(a: _Texts, b: _Texts, beams: int) -> _Texts:
    """The K best of two times K texts."""
    axis = a.scores.ndim - 1
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis), a, b)
    scores, number = jax.lax.top_k(both.scores, beams)
    return _taken(both, number)._replace(scores=scores)


def _taken(texts: _Texts, number: jax.Array) -> _Texts:
    """The texts of these numbers [..., K]."""
    tokens, log_probs = (
        jnp.take_along_axis(a, number[..., None], axis=-2) for a in (texts.tokens, texts.log_probs)
    )
    return _Texts(tokens, log_probs, jnp.take_along_axis(texts.scores, number, axis=-1))
