"""What the losses should compute: each equation for one example, in float64.

Nothing here imports jax or fnn. `over` is the loop over examples.
"""

from itertools import groupby, product
from math import cosh, exp, inf, lgamma, log, log1p, pi, sqrt

import numpy as np

from tests.losses.oracles_batch import log_softmax


def over(loss, lead, tail, *args):
    """`loss`, of shape `tail`, of every example; the leading axes of every argument are `lead`."""
    out = np.zeros((*lead, *tail))
    for at in np.ndindex(*lead):
        out[at] = loss(*(arg[at] for arg in args))
    return out


# --- regression


def squared_error(y, t):
    return float((y - t) ** 2)


def absolute_error(y, t):
    return float(abs(y - t))


def huber(y, t, delta=1.0):
    """Huber (1964): a parabola up to delta, its tangent beyond."""
    r = abs(float(y - t))
    return r * r / 2 if r <= delta else delta * r - delta * delta / 2


def log_cosh(y, t):
    r = abs(float(y - t))
    return log(cosh(r)) if r < 300 else r - log(2)


def gaussian_nll(mean, log_var, t):
    """-log of the normal density at t."""
    var = exp(log_var)
    return -log(exp(-((t - mean) ** 2) / (2 * var)) / sqrt(2 * pi * var))


def poisson_nll(log_rate, t):
    """-log of exp(-rate) rate^t / t!."""
    return exp(log_rate) - t * log_rate + lgamma(t + 1)


# --- classification


def distribution(label, classes):
    if np.ndim(label):
        return np.float64(label)
    return np.float64(np.arange(classes) == label)


def softmax_cross_entropy(logits, label, label_smoothing=0.0):
    """Szegedy et al. (2016), section 7."""
    p = (1 - label_smoothing) * distribution(label, len(logits)) + label_smoothing / len(logits)
    log_q = log_softmax(logits)
    return -sum(p[c] * log_q[c] for c in range(len(logits)) if p[c])


def log_sigmoid(x):
    return -log1p(exp(-x)) if x >= 0 else x - log1p(exp(x))


def sigmoid_cross_entropy(logit, label):
    hit = -label * log_sigmoid(logit) if label else 0.0
    return hit - (1 - label) * log_sigmoid(-logit) if label != 1 else hit


def log_below(q, eps):
    """log, continued below eps by its tangent there."""
    return log(q) if q >= eps else log(eps) + (q - eps) / eps


def log_loss(q, label, eps=1e-7):
    p = distribution(label, len(q))
    return -sum(p[c] * log_below(q[c], eps) for c in range(len(q)))


def binary_log_loss(q, label, eps=1e-7):
    return -label * log_below(q, eps) - (1 - label) * log_below(1 - q, eps)


def focal(logit, label, gamma=2.0, alpha=0.25):
    """Lin et al. (2017), equation 5, for hard labels; their mean over a soft label."""
    log_p, log_not = log_sigmoid(float(logit)), log_sigmoid(-float(logit))
    hit = -alpha * exp(gamma * log_not) * log_p if label else 0.0
    miss = -(1 - alpha) * exp(gamma * log_p) * log_not if label != 1 else 0.0
    return label * hit + (1 - label) * miss


def hinge(score, label):
    return max(0.0, 1 - (1 if label else -1) * float(score))


def multiclass_hinge(scores, label):
    """Crammer & Singer (2001)."""
    rivals = [s for c, s in enumerate(scores) if c != label]
    return max(0.0, 1 + max(rivals) - scores[label])


def kl(log_p, log_q):
    """Sum of p (log p - log q), with 0 log 0 = 0."""
    return sum(exp(a) * (a - b) for a, b in zip(log_p, log_q, strict=True) if exp(a))


def distillation(student, teacher, temperature):
    """Hinton et al. (2015), section 2."""
    log_p, log_q = (log_softmax(x / temperature) for x in (teacher, student))
    return temperature**2 * kl(log_p, log_q)


# --- divergences


def kl_divergence(p, q):
    return kl(log_softmax(p), log_softmax(q))


def jensen_shannon(p, q):
    p, q = log_softmax(p), log_softmax(q)
    middle = [(exp(a) + exp(b)) / 2 for a, b in zip(p, q, strict=True)]
    log_m = [log(m) if m else -inf for m in middle]
    return (kl(p, log_m) + kl(q, log_m)) / 2


def gaussian_kl(mean, log_var):
    """Kingma & Welling (2014), appendix B."""
    return sum((exp(v) + m * m - 1 - v) / 2 for m, v in zip(mean, log_var, strict=True))


# --- similarity


def cosine(a, b):
    size = sqrt(sum(x * x for x in a)) * sqrt(sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / size if size else 0.0


def cosine_distance(a, b):
    return 1 - cosine(a, b)


def triplet(anchor, positive, negative, margin=0.2):
    """Schroff et al. (2015), equation 3."""
    near = sum((a - p) ** 2 for a, p in zip(anchor, positive, strict=True))
    far = sum((a - n) ** 2 for a, n in zip(anchor, negative, strict=True))
    return max(0.0, near - far + margin)


def info_nce(a, b, temperature):
    """[N, D] pairs -> [N]: the right one of N candidates (van den Oord et al., 2018)."""
    out = []
    for i in range(len(a)):
        scores = [exp(cosine(a[i], other) / temperature) for other in b]
        out.append(-log(scores[i] / sum(scores)))
    return np.array(out)


# --- sequences


def ctc(logits, labels, logit_length=None, label_length=None, blank=0):
    """Graves et al. (2006), equation 3, over every one of C^T paths."""
    log_q = log_softmax(logits[:logit_length])
    wanted = list(labels[:label_length])
    total = 0.0
    for path in product(range(logits.shape[1]), repeat=len(log_q)):
        if [c for c, _ in groupby(path) if c != blank] == wanted:
            total += exp(sum(log_q[t][c] for t, c in enumerate(path)))
    return -log(total) if total else inf


def language_model(logits, tokens):
    """[T, V] and [T] -> [T - 1]: token t + 1 from the logits at t."""
    return np.array(
        [softmax_cross_entropy(logits[t], tokens[t + 1]) for t in range(len(tokens) - 1)]
    )


# --- losses and metrics ----------------------------------------------------------------------
