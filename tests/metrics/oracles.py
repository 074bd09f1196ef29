"""Metrics as float64 loops, or as scikit-learn has them."""

import numpy as np
import sklearn.metrics as sklearn

from tests.losses import oracles_batch


def accuracy(logits, labels):
    """1 where the first largest logit is the label's, else 0: [..., C] -> [...]."""
    out = np.zeros(np.shape(labels))
    for at in np.ndindex(np.shape(labels)):
        out[at] = list(logits[at]).index(max(logits[at])) == labels[at]
    return out


def top_k(k, logits, labels):
    """Whether the label is among the first k of a stable sort, example by example."""
    ranked = [sorted(range(len(row)), key=lambda c, row=row: -row[c])[:k] for row in logits]
    return np.mean([label in best for label, best in zip(labels, ranked, strict=True)])


def calibration_error(bins, logits, labels):
    """Guo et al. 2017, equation 3: a loop over bins of a loop over examples."""
    p = np.exp(oracles_batch.log_softmax(logits))
    total = 0.0
    for b in range(bins):
        inside = [i for i in range(len(p)) if b / bins < max(p[i]) <= (b + 1) / bins]
        right = sum(int(np.argmax(p[i]) == labels[i]) for i in inside)
        total += abs(right - sum(max(p[i]) for i in inside))
    return total / len(p)


def of_classes(score, average, classes, logits, labels):
    """scikit-learn's, except that a class that does not occur is NaN."""
    predicted = logits.argmax(-1)
    if average:
        return score(labels, predicted, average=average, zero_division=0)
    each = score(labels, predicted, average=None, labels=range(classes), zero_division=0)
    occurs = np.isin(range(classes), np.concatenate([labels, predicted]))
    return np.where(occurs, each, np.nan)


def binary(score, logits, labels):
    if not (labels.any() or (logits > 0).any()):
        return np.nan
    return score(labels, logits > 0, zero_division=0)


def roc_auc(scores, labels):
    return sklearn.roc_auc_score(labels, scores) if 0 < sum(labels) < len(labels) else np.nan


def average_precision(scores, labels):
    return (
        sklearn.average_precision_score(labels, scores) if 0 < sum(labels) < len(labels) else np.nan
    )


def r2(outputs, targets):
    return sklearn.r2_score(targets, outputs)


def edges(values, bins):
    """The smallest value that at least a share k / bins of the values do not exceed."""
    ranked = sorted(v for v in values if not np.isnan(v))
    return [ranked[max(-(-len(ranked) * k // bins), 1) - 1] for k in range(1, bins)]


def counts(edges, values):
    """Values one by one into (edge, edge], the value of edges that coincide alone; last, NaN."""
    out = np.zeros(len(edges) + 2)
    for v in values:
        below = sum(e < v or (e == v and edges.count(e) > 1 and edges.index(e) == k)
                    for k, e in enumerate(edges))  # fmt: skip
        out[len(edges) + 1 if np.isnan(v) else below] += 1
    return out


def psi(p, q, epsilon=1e-4):
    """The population stability index of counts, bin by bin."""
    if not sum(p) or not sum(q):
        return np.nan
    p, q = (np.maximum(np.float64(x) / np.sum(x), epsilon) for x in (p, q))
    return sum((b - a) * np.log(b / a) for a, b in zip(p, q, strict=True))


def binned_ks(p, q):
    if not sum(p) or not sum(q):
        return np.nan
    return max(abs(sum(p[:k]) / sum(p) - sum(q[:k]) / sum(q)) for k in range(len(p)))
