"""What the oracles share: float64 arithmetic without jax or fnn.

1 - b^t is rounded once, from rational arithmetic, so nothing is lost for b near 1.
"""

from fractions import Fraction
from functools import cache
from math import fsum, sqrt

import numpy as np


def rate_at(learning_rate, count):
    """A number, or a schedule of the count of updates made before this one."""
    return learning_rate(count) if callable(learning_rate) else learning_rate


@cache
def weight(b, t):
    """1 - b^t, the sum of the weights (1 - b) b^i of t values."""
    return float(1 - Fraction(b) ** t)


def sign(x):
    """-1, 0 or 1; of a complex number, where it points."""
    if isinstance(x, complex):
        return x / abs(x) if x else x
    return float(x > 0) - float(x < 0)


def ratio(a, b):
    """a / b; 0 / 0, where nothing was measured yet, is 0."""
    return a / b if b else 0.0


def length(x):
    return sqrt(fsum(abs(v) ** 2 for v in np.ravel(x).tolist()))


def along(u, learning_rate):
    """What is added to the params: u itself, or the step down it."""
    return u if learning_rate is None else -learning_rate * u


def descend(rule):
    """The optimizer of a rule: with a learning rate and decoupled weight decay."""

    def optimizer(gs, p, learning_rate, weight_decay=0.0, **options):
        updates = []
        for u in rule(gs, p, **options):
            rate = rate_at(learning_rate, len(updates))
            updates.append(-rate * (u + weight_decay * p))
            p += updates[-1]
        return updates

    return optimizer
