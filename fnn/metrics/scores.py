"""Metrics of predicted probabilities: of what they leave open, of their ranks, of their truth."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fnn import checks, errors
from fnn.dtypes import wide
from fnn.losses import check_labels, softmax_cross_entropy
from fnn.metrics.classification import decisions, hits
from fnn.metrics.metric import (
    Array,
    Metric,
    add,
    add_count,
    averaged,
    kept,
    metric,
    no_count,
    no_sum,
    number,
    pair,
    tally,
    total,
)
from fnn.shapes import from_numpy


@errors.builder
def perplexity() -> Metric:
    """exp(mean of softmax_cross_entropy(logits, labels)), over all tokens: [..., C], [...] -> [].

    The number of equally likely tokens that would be as hard to guess; padding is masked out. A
    label outside 0 ... C - 1, or nothing accumulated, gives NaN.
    Raises ShapeError or DtypeError if logits and labels do not fit.

    >>> print(perplexity().value(jnp.zeros((2, 8)), jnp.array([3, 5])).round(3))
    8.0
    """

    def losses(outputs, labels):
        check_labels(outputs, labels, "perplexity")
        return softmax_cross_entropy(outputs, labels)

    return averaged("perplexity", losses, jnp.exp)


@errors.builder
def roc_auc(bins: int = 1001, *, score: Callable[[Array], Array] = jax.nn.sigmoid) -> Metric:
    """The area under the ROC curve: the probability that an example of class 1 scores higher than
    one of class 0, ties counting half: [...] and [...] -> [].

    - `bins`: scores are rounded to the nearest of `bins` values, evenly spaced from 0 to 1, since
      the exact area is no sum over batches. Exact for scores on these values (up to rounding in
      float32); for others, off by at most half the fraction of pairs that share a bin. 1001 keeps
      scores of three digits apart.
    - `score`: a rising function of the outputs onto [0, 1]. The default is for logits; where
      outputs are probabilities, pass `lambda p: p`.

    Labels are 0 and 1, of any dtype; another label, or a score outside [0, 1], makes the value NaN,
    and so does a class without examples.

    Raises OptionError for fewer than 2 bins, ShapeError or DtypeError if the inputs do not fit.
    Fawcett, An introduction to ROC analysis, 2006, sections 5 and 7.

    >>> scores, labels = jnp.array([0.1, 0.4, 0.35, 0.8]), jnp.array([0, 0, 1, 1])
    >>> print(roc_auc(score=lambda p: p).value(scores, labels))
    0.75
    """
    bins = checks.count("bins", bins, least=2)
    if not callable(score):
        raise errors.OptionError(
            "score to be a function of the outputs", errors.show(score), "pass jax.nn.sigmoid"
        )

    def init():
        return {"negative": no_count((bins,)), "positive": no_count((bins,)), "bad": no_count()}

    def update(accumulator, outputs, labels, mask):
        outputs, _ = pair(outputs, labels, "labels")
        _, labels = decisions(outputs, labels, None, "roc_auc")
        p = score(outputs.astype(wide(outputs.dtype)))
        if getattr(p, "shape", None) != labels.shape:
            raise errors.ShapeError(
                f"score to return {labels.shape}, as it got", errors.show(p), "score each output"
            )
        keep = kept(mask, labels.shape)
        good = keep & (p >= 0) & (p <= 1) & (labels < 2)
        at = jnp.round(jnp.where(good, p, 0) * (bins - 1)).astype(jnp.int32)
        negative, positive = (tally(at, good & (labels == label), bins) for label in (0, 1))
        return {
            "negative": add_count(accumulator["negative"], negative),
            "positive": add_count(accumulator["positive"], positive),
            "bad": add_count(accumulator["bad"], (keep & ~good).sum(dtype=jnp.int32)),
        }

    def compute(accumulator):
        negative, positive = number(accumulator["negative"]), number(accumulator["positive"])
        lower = jnp.cumsum(negative) - negative
        area = jnp.sum(positive * (lower + negative / 2)) / (positive.sum() * negative.sum())
        return jnp.where(number(accumulator["bad"]) > 0, jnp.nan, area)

    return metric("roc_auc", init, update, compute)


@errors.builder
def calibration_error(bins: int = 15) -> Metric:
    """The expected calibration error, sum over bins b of n_b / n |accuracy_b - confidence_b|.

    The confidence is the largest probability of softmax(logits), and bin b holds the examples with
    one in (b / bins, (b + 1) / bins]: [..., C] logits and [...] labels -> [].

    - `bins`: how many; 15 is the paper's. The value depends on it, so report it too.

    Conventions on ties and labels are `accuracy`'s; NaN logits, or nothing accumulated, give NaN.
    Raises OptionError for no bins, ShapeError or DtypeError if the inputs do not fit.
    Guo et al., On calibration of modern neural networks, 2017, equation 3.

    >>> logits = jnp.log(jnp.array([[0.9, 0.1], [0.2, 0.8]]))
    >>> print(f"{calibration_error().value(logits, jnp.array([0, 0])):.4f}")  # (0.1 + 0.8) / 2
    0.4500
    """
    bins = checks.count("bins", bins)

    def init():
        return {"gaps": no_sum((bins,)), "count": no_count()}

    def update(accumulator, outputs, labels, mask):
        hit = hits(outputs, labels, 1, "calibration_error")
        logits = from_numpy(outputs, "outputs")
        confidence = jax.nn.softmax(logits.astype(wide(logits.dtype)), axis=-1).max(-1)
        keep = kept(mask, hit.shape)
        at = jnp.clip(jnp.ceil(confidence * bins) - 1, 0, bins - 1)
        at = jnp.where(jnp.isnan(confidence), 0, at).astype(jnp.int32)
        gaps = jnp.where(keep, hit.astype(confidence.dtype) - confidence, 0).ravel()
        # A masked sum per bin: on CPU a scatter adds up one by one, and a million lose two digits.
        gaps = jnp.where(at.ravel() == jnp.arange(bins, dtype=at.dtype)[:, None], gaps, 0).sum(-1)
        return {
            "gaps": add(accumulator["gaps"], gaps),
            "count": add_count(accumulator["count"], keep.sum(dtype=jnp.int32)),
        }

    def compute(accumulator):
        return jnp.abs(total(accumulator["gaps"])).sum() / number(accumulator["count"])

    return metric("calibration_error", init, update, compute)
