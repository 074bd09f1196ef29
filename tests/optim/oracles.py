"""Gradient descent and Adam as float64 loops."""

from math import sqrt

import numpy as np

# --- optimizers: gradients of one scalar parameter, step by step -> its updates ------------------


def rate_at(learning_rate, count):
    """A number, or a schedule of the count of updates made before this one."""
    return learning_rate(count) if callable(learning_rate) else learning_rate


def sgd(grads, learning_rate, momentum=None, nesterov=False):
    """t <- momentum t + g; step along g, t, or (Nesterov, Sutskever et al. 2013) g + momentum t."""
    trace, updates = 0.0, []
    for count, g in enumerate(grads):
        direction = g = float(g)
        if momentum is not None:
            trace = momentum * trace + g
            direction = g + momentum * trace if nesterov else trace
        updates.append(-rate_at(learning_rate, count) * direction)
    return updates


def adam(grads, learning_rate, b1=0.9, b2=0.999, eps=1e-8):
    """Kingma & Ba 2015, algorithm 1."""
    m = v = 0.0
    updates = []
    for t, g in enumerate(map(float, grads), start=1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g * g
        m_hat, v_hat = m / (1 - b1**t), v / (1 - b2**t)
        updates.append(-rate_at(learning_rate, t - 1) * m_hat / (sqrt(v_hat) + eps))
    return updates


def elementwise(rule, grads, *args, **options):
    """Apply a scalar rule to every element: grads [steps, ...] -> updates [steps, ...]."""
    grads = np.float64(grads)
    out = np.zeros(grads.shape)
    for at in np.ndindex(grads.shape[1:]):
        out[(slice(None), *at)] = rule(grads[(slice(None), *at)], *args, **options)
    return out
