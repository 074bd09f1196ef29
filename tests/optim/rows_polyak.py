"""Rows and oracles of Polyak's step."""

import math
from math import fsum, sqrt

import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import strategies as st

import fnn
from tests.optim.oracles import length, ratio
from tests.optim.rows import Row


def polyak(grads, params, max_learning_rate=1.0, scaling=1.0, f_min=0.0, eps=0.0, variant="sps"):
    """Loizou et al. 2021, equation 3, of the whole tree; the value is the sum of all |g|."""
    updates = []
    for g in grads:
        every = np.concatenate([np.ravel(leaf) for leaf in g.values()])
        gap = fsum(np.abs(every)) - f_min
        gap = max(gap, 0.0) if variant == "sps+" else gap
        least = sqrt(length(every) ** 2 + eps)
        step = min(ratio(ratio(gap, least), least), max_learning_rate)
        updates.append({name: -scaling * step * leaf for name, leaf in g.items()})
    return updates


def with_value(tx):
    """The sum of all |g| for the loss, which Polyak's step wants to know."""

    def update(grads, opt_state, params=None, **extra):
        sums = [jnp.sum(jnp.abs(g)).astype(float) for g in jax.tree.leaves(grads)]
        return tx.update(grads, opt_state, params, value=sum(sums, jnp.zeros((), float)))

    return fnn.optim.Transform(tx.init, update)


ROWS = {
    "polyak_sgd": Row(
        build=lambda **options: with_value(fnn.optim.polyak_sgd(**options)),
        oracle=polyak,
        options=dict(
            max_learning_rate=st.sampled_from([1e-3, 1.0, math.inf]),
            scaling=st.sampled_from([0.0, 0.5, 1.0]),
            f_min=st.sampled_from([0.0, -2.0]),
            eps=st.sampled_from([0.0, 1e-3]),
        ),
        usual=dict(max_learning_rate=1.0),
        optax=lambda **options: with_value(optax.polyak_sgd(**options)),
        scale="tree",
    ),
}
