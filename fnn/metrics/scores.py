"""Metrics of predicted probabilities: perplexity, areas under curves, calibration."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fnn.core import checks, errors
from fnn.core.dtypes import wide
from fnn.core.origins import builder
from fnn.core.shapes import from_numpy
from fnn.losses import check_labels, softmax_cross_entropy
from fnn.metrics.classification import decisions, hits
from fnn.metrics.metric import (
    Metric,
    add,
    averaged,
    count,
    kept,
    metric,
    no_sum,
    pair,
    tally,
    total,
)


@builder
def perplexity() -> Metric:
    """exp(mean of softmax_cross_entropy(logits, labels)), over all tokens: [..., C], [...] -> [].

    The number of equally likely tokens that would be as hard to guess; mask out padding. A
    label outside 0 ... C - 1, or nothing accumulated, gives NaN.
    Raises ShapeError or DtypeError if logits and labels do not fit.

    >>> print(perplexity().value(jnp.zeros((2, 8)), jnp.array([3, 5])).round(3))
    8.0
    """

    def losses(outputs, labels):
        check_labels(outputs, labels, "perplexity")
        return softmax_cross_entropy(outputs, labels)

    return averaged("perplexity", losses, jnp.exp)


@builder
def roc_auc(bits: int = 10) -> Metric:
    """The area under the ROC curve: the probability that an example of class 1 scores higher than
    one of class 0, ties counting half: [...] and [...] -> [].

    - `bits`: scores that share their first `bits` binary digits, after the leading one, count as
      equal, since the exact area is not a sum over batches: 10 bits separate scores that differ by
      a thousandth. The error is at most half the fraction of pairs of both classes whose unequal
      scores share these digits: about 1e-4 for scores 100 +- 1. Each bit less halves the
      accumulators, which take 5 MB at 10.

    Outputs are scores of any scale, logits or probabilities: only their order matters. The digits
    are those of the distance from 0 below 1/2 and from 1 above, so that probabilities near 1 are as
    fine as those near 0. They resolve distances from 2**-64 (2**-24 from 1) to 2**64; above it,
    there are one score and infinity. Labels are 0 and 1, of any dtype; another label, a NaN score
    or a class without examples makes the value NaN.

    Raises OptionError for bits outside 1 ... 16, ShapeError or DtypeError if the inputs do not fit.
    Fawcett, An introduction to ROC analysis, 2006, sections 5 and 7.

    >>> scores, labels = jnp.array([0.1, 0.4, 0.35, 0.8]), jnp.array([0, 0, 1, 1])
    >>> print(roc_auc().value(scores, labels))
    0.75
    """

    def area(negative, positive):
        lower = jnp.cumsum(negative) - negative
        return jnp.sum(positive * (lower + negative / 2)) / (positive.sum() * negative.sum())

    return _ranked("roc_auc", bits, area)


@builder
def average_precision(bits: int = 10) -> Metric:
    """The area under the precision-recall curve, as a sum of steps: [...] and [...] -> [].

        sum over thresholds, from the highest, of (recall_n - recall_{n-1}) precision_n

    Equal scores are one threshold, and nothing is interpolated, as in scikit-learn.

    - `bits`: as in `roc_auc`, whose conventions apply. Scores that share their bits are one
      threshold, which lowers the value of dense scores by about the fraction of examples that
      share theirs.

    >>> scores, labels = jnp.array([0.1, 0.4, 0.35, 0.8]), jnp.array([0, 0, 1, 1])
    >>> print(average_precision().value(scores, labels).round(4))  # (1 + 2 / 3) / 2
    0.8333
    """

    def area(negative, positive):
        wrong, right = (jnp.cumsum(counts[::-1])[::-1] for counts in (negative, positive))
        chosen = wrong + right
        steps = positive * jnp.where(chosen > 0, right / jnp.where(chosen > 0, chosen, 1), 0)
        none = (positive.sum() == 0) | (negative.sum() == 0)
        return jnp.where(none, jnp.nan, steps.sum() / positive.sum())

    return _ranked("average_precision", bits, area)


def _ranked(name: str, bits: int, area: Callable[[jax.Array, jax.Array], jax.Array]) -> Metric:
    """A function of how many examples of each class have each score, in rising order of scores."""
    bits = checks.count("bits", bits)
    if bits > 16:
        raise errors.OptionError("bits of at most 16", str(bits), "pass bits=10")
    bins = (302 << bits) + 7  # the place of infinity, and one

    def init():
        return {"counts": no_sum((2, bins)), "bad": no_sum()}

    def update(accumulator, outputs, labels, mask, weights):
        outputs, _ = pair(outputs, labels, "labels")
        _, labels = decisions(outputs, labels, None, name)
        keep, w = kept(mask, weights, labels.shape)
        good = keep & ~jnp.isnan(outputs) & (labels < 2)
        at = _bin(jnp.where(good, outputs, 0).astype(jnp.float32), bits)
        at = jnp.where(good, labels, 0) * bins + at
        counted = tally(at, good, w, 2 * bins).reshape(2, bins)
        return {
            "counts": add(accumulator["counts"], counted),
            "bad": add(accumulator["bad"], count(keep & ~good, None)),
        }

    def compute(accumulator):
        negative, positive = total(accumulator["counts"])
        return jnp.where(total(accumulator["bad"]) > 0, jnp.nan, area(negative, positive))

    return metric(name, init, update, compute)


def _bin(x: jax.Array, bits: int) -> jax.Array:
    """The place of float32s among the floats of so many bits, in rising order."""
    above = x >= 0.5
    low = _place(jnp.where(above, 0, x), -64, bits)
    high = _place(jnp.where(above, x - 1, 0), -24, bits)  # x - 1 is exact near 1
    lowest, highest = -(128 << bits) - 2, 63 << bits  # of minus infinity, and of the last below 1/2
    return jnp.where(above, highest - lowest + (23 << bits) + 2 + high, low - lowest)


def _place(x: jax.Array, least: int, bits: int) -> jax.Array:
    """The signed place of x among these floats, 0 for what is below 2**least."""
    size = jax.lax.bitcast_convert_type(jnp.abs(x), jnp.int32) >> (23 - bits)
    zero, top = ((127 + least) << bits) - 1, 191 << bits
    place = jnp.where(jnp.isinf(x), top + 1, jnp.clip(size, zero, top)) - zero
    return jnp.where(x < 0, -place, place)


@builder
def calibration_error(bins: int = 15) -> Metric:
    """The expected calibration error, sum over bins b of n_b / n |accuracy_b - confidence_b|.

    The confidence is the largest probability of softmax(logits), and bin b holds the examples with
    one in (b / bins, (b + 1) / bins]: [..., C] logits and [...] labels -> [].

    - `bins`: how many; 15 is the paper's. The value depends on it, so report it too.

    Ties and labels are treated as in `accuracy`; NaN logits, or nothing accumulated, give NaN.
    Raises OptionError for no bins, ShapeError or DtypeError if the inputs do not fit.
    Guo et al., On calibration of modern neural networks, 2017, equation 3.

    >>> logits = jnp.log(jnp.array([[0.9, 0.1], [0.2, 0.8]]))
    >>> print(f"{calibration_error().value(logits, jnp.array([0, 0])):.4f}")  # (0.1 + 0.8) / 2
    0.4500
    """
    bins = checks.count("bins", bins)

    def init():
        return {"gaps": no_sum((bins,)), "count": no_sum()}

    def update(accumulator, outputs, labels, mask, weights):
        hit = hits(outputs, labels, 1, "calibration_error")
        logits = from_numpy(outputs, "outputs")
        confidence = jax.nn.softmax(logits.astype(wide(logits.dtype)), axis=-1).max(-1)
        keep, w = kept(mask, weights, hit.shape)
        at = jnp.clip(jnp.ceil(confidence * bins) - 1, 0, bins - 1)
        at = jnp.where(jnp.isnan(confidence), 0, at).astype(jnp.int32)
        gaps = jnp.where(keep, hit.astype(confidence.dtype) - confidence, 0)
        gaps = (gaps if w is None else gaps * jnp.where(keep, w, 0).astype(gaps.dtype)).ravel()
        # A masked sum per bin: on CPU a scatter adds one by one, and a million lose two digits.
        own = at.ravel()[None] == jnp.arange(bins, dtype=at.dtype)[:, None]
        gaps = jnp.where(own, gaps[None], 0).sum(-1)
        return {
            "gaps": add(accumulator["gaps"], gaps),
            "count": add(accumulator["count"], count(keep, w)),
        }

    def compute(accumulator):
        return jnp.abs(total(accumulator["gaps"])).sum() / total(accumulator["count"])

    return metric("calibration_error", init, update, compute)
