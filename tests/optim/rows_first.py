"""Gradient descent, its momentum, and Adam."""

from functools import partial
from math import sqrt

import optax

import fnn
from tests.optim.rows import Row, decays, elementwise, epsilons, late_decays, rates

# --- oracles: scalar loops


def sgd(gs, p, learning_rate, momentum=0.0, nesterov=False):
    """Sutskever et al. 2013, equations 1 to 4, with the look-ahead point as the parameter."""
    v, updates = 0.0, []
    for g in gs:
        v = momentum * v + g
        updates.append(-learning_rate * (g + momentum * v if nesterov else v))
    return updates


def adam(gs, p, learning_rate=None, b1=0.9, b2=0.999, eps=1e-8):
    """Kingma & Ba 2015, algorithm 1."""
    m = v = 0.0
    updates = []
    for t, g in enumerate(gs, start=1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * abs(g) ** 2
        u = m / (1 - b1**t) / (sqrt(v / (1 - b2**t)) + eps)
        updates.append(u if learning_rate is None else -learning_rate * u)
    return updates


ROWS = {
    "sgd": Row(
        build=fnn.optim.sgd,
        oracle=elementwise(sgd),
        options=dict(learning_rate=rates),
        usual=dict(learning_rate=0.1),
        optax=optax.sgd,
    ),
    "momentum": Row(
        build=fnn.optim.sgd,
        oracle=elementwise(sgd),
        options=dict(learning_rate=rates, momentum=decays),
        usual=dict(learning_rate=0.1, momentum=0.9),
        optax=optax.sgd,
    ),
    "nesterov": Row(
        build=partial(fnn.optim.sgd, nesterov=True),
        oracle=elementwise(partial(sgd, nesterov=True)),
        options=dict(learning_rate=rates, momentum=decays),
        usual=dict(learning_rate=0.1, momentum=0.9),
        optax=partial(optax.sgd, nesterov=True),
    ),
    "scale_by_adam": Row(
        build=fnn.optim.scale_by_adam,
        oracle=elementwise(adam),
        options=dict(b1=decays, b2=late_decays, eps=epsilons),
        usual=dict(b1=0.9, b2=0.999, eps=1e-8),
        optax=optax.scale_by_adam,
    ),
    "adam": Row(
        build=fnn.optim.adam,
        oracle=elementwise(adam),
        options=dict(learning_rate=rates, b1=decays, b2=late_decays, eps=epsilons),
        usual=dict(learning_rate=0.1, b1=0.9, b2=0.999, eps=1e-8),
        optax=optax.adam,
    ),
}
