"""Softmax cross-entropy of a whole batch and its gradient, as loops in float64."""

import numpy as np


def log_softmax(logits):
    """x_i - max(x) - log sum_j exp(x_j - max(x)), one row at a time."""
    logits = np.float64(logits)
    out = np.zeros(logits.shape)
    for at in np.ndindex(logits.shape[:-1]):
        row = logits[at] - logits[at].max()
        out[at] = row - np.log(np.exp(row).sum())
    return out


def distribution(logits, labels):
    """Labels as distributions: integers become one-hot."""
    labels = np.asarray(labels)
    if not np.issubdtype(labels.dtype, np.integer):
        return np.float64(labels)
    out = np.zeros(np.shape(logits))
    for at in np.ndindex(labels.shape):
        out[(*at, labels[at])] = 1
    return out


def softmax_cross_entropy(logits, labels):
    """-sum_i p_i log softmax(logits)_i per example, with 0 log 0 = 0: [..., C] -> [...]."""
    p, log_q = distribution(logits, labels), log_softmax(logits)
    loss = np.zeros(p.shape[:-1])
    for at in np.ndindex(p.shape):
        if p[at] != 0:
            loss[at[:-1]] -= p[at] * log_q[at]
    return loss


def softmax_cross_entropy_backward(logits, labels, dloss):
    """d logits = dloss (softmax(logits) sum(p) - p)."""
    p, q = distribution(logits, labels), np.exp(log_softmax(logits))
    return np.float64(dloss)[..., None] * (q * p.sum(-1, keepdims=True) - p)
