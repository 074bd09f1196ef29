"""Sampling: each token is drawn from what the network says of those before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from fnn.core import checks, errors
from fnn.core.layer import Layer
from fnn.core.types import Key, Tree
from fnn.generation.memory import Prompt, Reader, check_tokens, prompt_of, reader_of
from fnn.generation.samplers import NONE, Settings, choose
from fnn.layers.lifted import fold


class Written(NamedTuple):
    """What `generate` has written: N new tokens for each row, or for each sample of a row.

    - `tokens`: int32 [..., N], up to the stop token of a row, which counts; then -1, no token.
    - `lengths`: int32 [...], how many of them are tokens.
    - `log_probs`: [..., N], log softmax of the network's own logits at each token; then 0.
    - `state`, `carry`: of the network or the cell, after all but the last token of each row.
    """

    tokens: jax.Array
    lengths: jax.Array
    log_probs: jax.Array
    state: Tree
    carry: Tree


@errors.named
def generate(
    net: Layer,
    params: Tree,
    tokens: Any,
    steps: int,
    *,
    lengths: Any = None,
    key: Key | None = None,
    temperature: Any = 1.0,
    top_k: Any = None,
    top_p: Any = None,
    min_p: Any = None,
    repetition_penalty: Any = None,
    stop: Any = (),
    samples: int | None = None,
    adjust: Callable[[jax.Array], jax.Array] | None = None,
    state: Tree = None,
    carry: Tree = None,
) -> Written:
    """Continue prompts, token by token, by a network with caches or by a recurrent cell.

        x_{t+1} ~ softmax(logits(x_1 ... x_t) / temperature)

    The prompts are read at once; then one loop draws and reads a token of each row, until `steps`
    are done or all rows have ended. Call it under `jit`: one program for prompts of any lengths.

    - `net`: gives logits [..., T, V] for tokens [..., T], and keeps what it has read in its state:
      `fnn.transformer_block(..., cache=n)`, with the params of the same network without a cache.
      Or a cell, as `cells.serial(embed=..., rnn=cells.lstm(n), head=...)`. It runs in evaluation
      mode.
    - `tokens`, `lengths`: integers [..., T], of which the first `lengths` [...], 1 to T, are the
      prompt; whatever follows changes nothing. None: all of them. With lengths, a network (but not
      a cell) must take `segments`, as `fnn.attention` does, by which padding is left out; it is
      called as `net(params, tokens, segments=real)`.
    - `steps`: how many tokens are written at most, N. A cache must hold T + N - 1.
    - `key`: to draw from; not needed at temperature 0. That of step t is folded from t.

    How a token is chosen, in this order; each may be traced, and one number or one for each row:

    - `adjust(logits)`: gives logits [..., V] to go on with, such as -inf for tokens never wanted.
    - `repetition_penalty`, `temperature`, `top_k`, `top_p`, `min_p`: as in
      `fnn.generation.penalize`, for tokens of the prompt and those written, and in
      `fnn.generation.top_k`, `top_p` and `min_p`. Temperature 0 takes the likeliest.

    When and how often:

    - `stop`: a token, or integers [S], any of which ends its row.
    - `samples`: n continues each prompt n times, which is read once: all that comes back has
      [..., n] in place of [...].
    - `state`, `carry`: to start from, as of an earlier call, whose last tokens then begin the
      prompt; None is empty. A state may lack its caches.

    Raises InputError for a network that remembers nothing, a cache too short, an empty prompt,
    tokens outside the vocabulary, or logits that are NaN or all -inf; under `jit`, where these are
    not known, such a row ends there, with -1 for a token and NaN for its `log_probs` (an empty
    prompt with no token at all). OptionError for options outside their ranges, RandomKeyError
    where a key is needed.

    >>> import fnn
    >>> block = fnn.transformer_block(8, 2, causal=True, rotary=10_000.0, cache=16)
    >>> @fnn.compose(embed=fnn.embedding(10, 8), block=block, head=fnn.dense(10))
    ... def net(f, tokens, segments=None):  # [..., T]
    ...     return f.head(f.block(f.embed(tokens), segments=segments))
    >>> prompts, lengths = jnp.array([[3, 1, 4], [1, 5, 0]]), jnp.array([3, 2])
    >>> params, _ = net.init(jax.random.key(0), prompts)
    >>> @jax.jit
    ... def write(params, prompts, lengths):
    ...     return generate(net, params, prompts, 5, lengths=lengths, temperature=0.0)
    >>> written = write(params, prompts, lengths)
    >>> written.tokens.shape, written.lengths
    ((2, 5), Array([5, 5], dtype=int32))
    """
    steps = checks.count("steps", steps)
    prompt = prompt_of(tokens, lengths)
    settings = Settings(temperature, top_k, top_p, min_p, repetition_penalty).checked(prompt.rows)
    check_key(settings, key)
    reader = reader_for(net, params, state, carry, prompt, steps)
    if samples is not None:
        settings = settings.spread(checks.count("samples", samples))
    stop, adjust = stops_of(stop), checked_adjust(adjust)
    start = begin(reader, prompt, samples, settings.repetition_penalty is not None, adjust)
    check_tokens(reader, start.memory, start.token)
    rows = start.done.shape
    dtype = start.log_prob.dtype

    def unfinished(loop):
        writing, *_ = loop
        return (writing.t < steps) & ~jnp.all(writing.done)

    def step(loop):
        writing, tokens, log_probs = loop
        new = advance(reader, writing, key, settings, stop, adjust)
        tokens = tokens.at[..., writing.t].set(new.token)
        return new, tokens, log_probs.at[..., writing.t].set(new.log_prob)

    blank = jnp.full((*rows, steps), NONE, jnp.int32), jnp.zeros((*rows, steps), dtype)
    writing, tokens, log_probs = jax.lax.while_loop(unfinished, step, (start, *blank))
    refuse_nan(log_probs)
    lengths = jnp.sum(tokens != NONE, axis=-1, dtype=jnp.int32)
    kept = (None, writing.memory) if net.carry else (writing.memory, None)
    return Written(tokens, lengths, log_probs, *kept)


class Writing(NamedTuple):
    """Where writing stands before a step; rows are [...], or [..., n] with samples."""

    t: jax.Array  # the number of the step
    memory: Tree
    token: jax.Array  # [...]: the last one, which is yet to be read; -1 in rows that have ended
    log_prob: jax.Array  # [...]: of that token
    done: jax.Array  # [...]: which rows have ended
    seen: Any  # [..., V]: which tokens there were; None where it does not matter


def reader_for(
    net: Layer, params: Tree, state: Tree, carry: Tree, prompt: Prompt, steps: int
) -> Reader:
    """The reader of a network or a cell, with room for the prompt and all but the last token."""
    room = prompt.longest() + steps - 1
    return reader_of(net, params, state, carry, prompt.rows, room, prompt.given)


def begin(
    reader: Reader, prompt: Prompt, samples: int | None, penal: bool, adjust: Callable
) -> Writing:
    """The prompt but for its last token is read: the logits of all others are not needed.

    - `penal`: whether it matters which tokens there were.
    """
    memory, real = reader.first, prompt.real
    if prompt.tokens.shape[-1] > 1:
        memory = reader.read(memory, prompt.tokens[..., :-1], real[..., 1:])
    token, done = prompt.last, prompt.lengths < 1
    logits = jax.eval_shape(lambda m: adjust(reader.step(m, token, None)[0]), memory)
    seen = _seen(prompt, logits.shape[-1]) if penal else None
    if samples is not None:
        memory = reader.repeated(memory, samples)

        def each(a):
            return jnp.stack([a] * samples, len(prompt.rows))

        token, done, seen = each(token), each(done), None if seen is None else each(seen)
    zeros = jnp.zeros(done.shape, logits.dtype)
    return Writing(jnp.zeros((), jnp.int32), memory, token, zeros, done, seen)


def advance(
    reader: Reader, writing: Writing, key: Key | None, settings: Settings, stop: Any,
    adjust: Callable,
) -> Writing:  # fmt: skip
    """One more token in each row that has not ended."""
    t, memory, token, _, done, seen = writing
    real = ~done if stop.size else None  # without a stop token only rows of NaN end
    raw, memory = reader.step(memory, jnp.where(done, 0, token), real)
    logits = adjust(raw)
    token = choose(fold(key, t), logits, settings, seen)
    log_prob = jnp.take_along_axis(jax.nn.log_softmax(raw), token[..., None], axis=-1)[..., 0]
    failed = ~jnp.isfinite(jnp.max(raw, axis=-1)) | ~jnp.isfinite(jnp.max(logits, axis=-1))
    log_prob = jnp.where(done, 0, jnp.where(failed, jnp.nan, log_prob))
    token = jnp.where(done | failed, NONE, token)
    if seen is not None:
        seen = seen | (jnp.arange(seen.shape[-1], dtype=jnp.int32) == token[..., None])
    done = done | failed | is_stop(token, stop)
    return Writing(t + 1, memory, token, log_prob, done, seen)


def _seen(prompt: Prompt, size: int) -> jax.Array:
    """Which of V tokens are in each prompt: booleans [..., V]."""

    def mark(tokens, real):
        return jnp.zeros(size, bool).at[jnp.where(real, tokens, size)].set(True, mode="drop")

    for _ in prompt.rows:
        mark = jax.vmap(mark)
    return mark(prompt.tokens, prompt.real)


# --- options


def check_key(settings: Settings, key: Key | None) -> None:
    if not settings.greedy:
        checks.need_key(key)
    if key is not None:
        checks.key(key)


def stops_of(stop: Any) -> jax.Array:
    """Stop tokens as integers [S]."""
    stops = stop if isinstance(stop, jax.Array) else np.asarray(stop)
    stops = stops.astype(jnp.int32) if not stops.size else stops
    if not jnp.issubdtype(stops.dtype, jnp.integer) or stops.ndim > 1:
        raise errors.OptionError(
            "stop to be a token, or tokens [S]", errors.show(stop), "as stop=2 or stop=[2, 3]"
        )
    return jnp.atleast_1d(jnp.asarray(stops).astype(jnp.int32))


def is_stop(token: jax.Array, stop: jax.Array) -> jax.Array:
    """Whether tokens [...] are any of [S]."""
    return jnp.any(token[..., None] == stop, axis=-1)


def checked_adjust(adjust: Callable | None) -> Callable:
    """`adjust` with its result checked; None changes nothing."""
    if adjust is None:
        return lambda logits: logits
    checks.function("adjust", adjust, "logits")

    def checked(logits):
        new = adjust(logits)
        if getattr(new, "shape", None) != logits.shape or new.dtype != logits.dtype:
            wanted = f"adjust to give logits as it gets, {errors.show(logits)}"
            raise errors.ShapeError(wanted, errors.show(new), "change values alone")
        return new

    return checked


def refuse_nan(log_probs: jax.Array) -> None:
    """Raise for logits that were NaN, where that is known."""
    if isinstance(log_probs, jax.core.Tracer) or not log_probs.is_fully_addressable:
        return
    wrong = np.argwhere(np.isnan(np.asarray(log_probs)))
    if len(wrong):
        *row, t = wrong[0].tolist()
        raise errors.InputError(
            "logits to draw a token by",
            f"NaN or nothing but -inf in row {tuple(row)} at step {t}",
            "look for NaN by fnn.analysis.nan_report, in params first; a full cache gives it too",
        )
