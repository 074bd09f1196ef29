"""Rows and oracles of gradient descent and its momentum."""

from functools import partial

import jax
import optax

import fnn
from tests.optim.oracles import descend, rate_at
from tests.optim.rows import Row, decays, elementwise, rates


def sgd(gs, p, learning_rate, momentum=0.0, nesterov=False):
    """Sutskever et al. 2013, equations 1 to 4, with the look-ahead point as the parameter."""
    v, updates = 0.0, []
    for count, g in enumerate(gs):
        v = momentum * v + g
        updates.append(-rate_at(learning_rate, count) * (g + momentum * v if nesterov else v))
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
    "noisy_sgd of none": Row(
        build=lambda **options: fnn.optim.noisy_sgd(eta=0.0, key=jax.random.key(0), **options),
        oracle=elementwise(descend(lambda gs, p: gs)),
        options=dict(learning_rate=rates),
        usual=dict(learning_rate=0.1),
        optax=optax.sgd,
    ),
}
