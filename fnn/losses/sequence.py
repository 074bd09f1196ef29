"""Losses of sequences."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from fnn.core import checks, errors
from fnn.core.dtypes import wide
from fnn.core.types import Scalar
from fnn.losses.classification import cross_entropy
from fnn.losses.inputs import check_shape, floating, integers, numbered
from fnn.losses.masking import check_mask, clear, length_mask, masked
from fnn.losses.numerics import log_softmax, log_sum_exp


@errors.named
def ctc(
    logits: jax.Array,
    labels: jax.Array,
    logit_lengths: jax.Array | None = None,
    label_lengths: jax.Array | None = None,
    *,
    blank: int = 0,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Negative log-probability of a label sequence under every alignment, in nats.

    A path names a class at each step; with repeats merged and blanks removed it reads as labels.
    The loss is -log of the sum of all paths that read as `labels`, each of probability
    prod_t softmax(logits_t)[path_t]: [..., T, C] and [..., L] -> [...].

    - `logits`: floating. `labels`: integers in 0 ... C - 1 other than blank.
    - `logit_lengths`, `label_lengths`: [...] integers, how many steps and labels are valid; the
      rest is ignored. None means all.
    - `blank`: the class that stands for no label; 0 by convention.
    - `mask`: [...], False where the loss and its gradient are 0, whatever the inputs hold.

    Labels too long for the steps (a label that is repeated at once takes one more, for the blank
    between) have an infinite loss with gradient 0. A label or a length out of range gives NaN,
    since under `jit` it cannot raise. Computed in log-space and returned in float32 or wider.
    Raises ShapeError if the shapes do not fit, DtypeError for integer logits or other labels and
    lengths, OptionError for blank outside 0 ... C - 1. Graves et al. (2006), section 4.1.

    >>> logits = jnp.zeros((2, 3))  # two steps: of 9 paths "01", "10" and "11" read as 1
    >>> print(jnp.exp(-ctc(logits, jnp.array([1]))).round(3))
    0.333
    """
    logits = floating("logits", logits, 2)
    blank = checks.count("blank", blank, least=0)
    times, classes = logits.shape[-2:]
    if blank >= classes:
        raise errors.OptionError(
            f"blank below the {classes} classes of the logits",
            str(blank),
            "give the logits a class that stands for no label",
        )
    labels = integers("labels", labels)
    checks.rank(labels, 1, "[..., L]", "labels")
    lead, places = logits.shape[:-2], labels.shape[-1]
    check_shape("labels", labels, (*lead, places), f"logits {logits.shape}")
    logit_lengths = _lengths("logit_lengths", logit_lengths, times, logits)
    label_lengths = _lengths("label_lengths", label_lengths, places, logits)
    mask = check_mask(mask, lead)
    there, read = length_mask(logit_lengths, times), length_mask(label_lengths, places)
    wrong = (labels < 0) | (labels >= classes) | (labels == blank)
    wrong = jnp.any(wrong & read, axis=-1) | (logit_lengths < 0) | (logit_lengths > times)
    wrong = wrong | (label_lengths < 0) | (label_lengths > places)
    last = 2 * label_lengths.clip(0, places).astype(jnp.int32)  # the blank after the last label
    if mask is not None:
        there, read = there & mask[..., None], read & mask[..., None]
    logits = clear(logits.astype(wide(logits.dtype)), there)
    labels = jnp.where(read, labels.astype(jnp.int32).clip(0, classes - 1), blank)
    losses = _ctc(log_softmax(logits), labels, there, last, blank)
    return masked(jnp.where(wrong, jnp.nan, losses), mask)


def _lengths(name: str, lengths: jax.Array | None, most: int, logits: jax.Array) -> jax.Array:
    lead = logits.shape[:-2]
    if lengths is None:
        return jnp.full(lead, most, jnp.int32)
    lengths = integers(name, lengths)
    check_shape(name, lengths, lead, f"logits {logits.shape}")
    return lengths


def _ctc(
    log_q: jax.Array, labels: jax.Array, there: jax.Array, last: jax.Array, blank: int
) -> jax.Array:
    """The forward algorithm over the labels with blanks around each: equations 5 to 8."""
    *lead, places = labels.shape
    states = 2 * places + 1
    wanted = jnp.full((*lead, states), blank, labels.dtype)
    wanted = wanted.at[..., 1::2].set(labels)  # [..., S]
    back = jnp.pad(wanted, [(0, 0)] * len(lead) + [(2, 0)], constant_values=blank)[..., :states]
    skips = (wanted != blank) & (wanted != back)  # a blank between equal labels is needed
    emitted = jnp.take_along_axis(log_q, wanted[..., None, :], axis=-1)  # [..., T, S]
    start = jnp.where(jnp.arange(states) == 0, 0.0, -jnp.inf).astype(log_q.dtype)

    def before(alpha, n):  # of the state n places back
        return jnp.pad(alpha, [(0, 0)] * len(lead) + [(n, 0)], constant_values=-jnp.inf)[
            ..., :states
        ]

    def step(alpha, now):
        log_p, there = now  # [..., S], [...]
        skipped = jnp.where(skips, before(alpha, 2), -jnp.inf)
        ways = jnp.stack([alpha, before(alpha, 1), skipped], axis=-1)
        return jnp.where(there[..., None], log_sum_exp(ways) + log_p, alpha), None

    over_time = jnp.moveaxis(emitted, -2, 0), jnp.moveaxis(there, -1, 0)
    alpha, _ = jax.lax.scan(step, jnp.broadcast_to(start, wanted.shape), over_time)
    state, last = numbered(states, last), last[..., None]
    ends = (state == last) | (state == last - 1)
    return -log_sum_exp(jnp.where(ends, alpha, -jnp.inf))


@errors.named
def language_model(
    logits: jax.Array, tokens: jax.Array, *, mask: jax.Array | None = None
) -> jax.Array:
    """Cross-entropy of each token after the first, predicted from those before it, in nats.

        l_t = -log softmax(logits_t)[tokens_{t+1}],  t = 0 ... T - 2

    [..., T, V] and [..., T] -> [..., T - 1]. The last logits have no target.

    - `logits`: floating, those at t computed from tokens 0 ... t.
    - `tokens`: integers, as given to the network; one outside 0 ... V - 1 gives NaN as a target.
    - `mask`: [..., T], which tokens are to be predicted, unlike padding and prompts; the losses of
      others are 0, with gradient 0. Average by `masked_mean(losses, mask[..., 1:])`.

    Computed and returned in float32 or wider.
    Raises ShapeError if the shapes do not fit, DtypeError for integer logits or other tokens.

    >>> print(language_model(jnp.zeros((3, 4)), jnp.array([0, 1, 2])).round(3))
    [1.386 1.386]
    """
    logits, tokens = floating("logits", logits, 2), integers("tokens", tokens)
    check_shape("tokens", tokens, logits.shape[:-1], f"logits {logits.shape}")
    mask = check_mask(mask, tokens.shape)
    logits, tokens = logits[..., :-1, :], tokens[..., 1:]
    mask = None if mask is None else mask[..., 1:]
    logits = clear(logits.astype(wide(logits.dtype)), mask)
    return masked(cross_entropy(logits, clear(tokens, mask)), mask)


@errors.named
def bits_per_character(
    nats: Scalar,
    tokens: int | jax.Array = 1,
    characters: int | jax.Array = 1,
) -> jax.Array:
    """Bits per character of a mean loss per token, nats / log 2 * tokens / characters.

    [...] -> [...].

    - `nats`: the mean over all tokens, an array or a number; `jnp.exp` of it is the perplexity.
    - `tokens`, `characters`: how many of each the text has; equal by default, as in a model of
      characters. With bytes instead, the result is in bits per byte.

    Computed and returned in float32 or wider.
    Raises DtypeError for integer arrays, OptionError for counts that are not above 0.

    >>> print(bits_per_character(jnp.log(2.0), tokens=100, characters=400))
    0.25
    """
    if isinstance(nats, (int, float)) and not isinstance(nats, bool):
        nats = jnp.asarray(float(nats))
    nats = floating("nats", nats)
    nats = nats.astype(wide(nats.dtype))
    for name, count in (("tokens", tokens), ("characters", characters)):
        checks.positive(name, count)
    ratio = jnp.asarray(tokens, nats.dtype) / jnp.asarray(characters, nats.dtype)
    return nats / math.log(2) * ratio
