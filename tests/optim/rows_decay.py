"""Rows and oracles of decoupled weight decay."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import strategies as st

import fnn
from tests.optim.rows import Row, elementwise, rates
from tests.optim.rows_sgd import sgd
from tests.support import asarray


def add_decayed_weights(gs, p, weight_decay):
    """Loshchilov & Hutter 2019, algorithm 2, line 12, without the rate."""
    updates = []
    for g in gs:
        updates.append(g + weight_decay * p)
        p = p + updates[-1]
    return updates


def kernels(params):
    """A mask that holds whatever the leaves are called: what has two axes."""
    return jax.tree.map(lambda p: p.ndim == 2, params)


def kernels_first(of_kernels, of_rest):
    """The oracle of two rules, one for what has two axes."""

    def oracle(grads, params, **options):
        updates = [{} for _ in grads]
        for rule, two in ((of_kernels, True), (of_rest, False)):
            some = {name: p for name, p in params.items() if (np.ndim(p) == 2) == two}
            for step, u in zip(updates, rule(grads, some, **options), strict=True):
                step.update({name: u[name] for name in some})
        return updates

    return oracle


def only(rule, *names):
    """The rule with only some of the options."""
    return lambda gs, p, **options: rule(gs, p, **{name: options[name] for name in names})


def decayed_sgd(gs, p, learning_rate, weight_decay):
    """Loshchilov & Hutter 2019, algorithm 1, without momentum."""
    updates = []
    for g in gs:
        updates.append(-learning_rate * (g + weight_decay * p))
        p = p + updates[-1]
    return updates


def falling_decay(gs, p, weight_decay):
    updates = []
    for t, g in enumerate(gs):
        updates.append(g + weight_decay / (1 + t) * p)
        p = p + updates[-1]
    return updates


ROWS = {
    "add_decayed_weights": Row(
        build=fnn.optim.add_decayed_weights,
        oracle=elementwise(add_decayed_weights),
        options=dict(weight_decay=st.sampled_from([0.0, 1e-4, 0.1])),
        usual=dict(weight_decay=0.1),
        optax=optax.add_decayed_weights,
        needs_params=True,
    ),
    "add_decayed_weights by schedule": Row(
        build=lambda weight_decay: fnn.optim.add_decayed_weights(
            lambda t: asarray(weight_decay) / (1 + t).astype(jnp.result_type(weight_decay))
        ),
        oracle=elementwise(falling_decay),
        options=dict(weight_decay=st.sampled_from([0.0, 1e-4, 0.1])),
        usual=dict(weight_decay=0.1),
        needs_params=True,
    ),
    "add_decayed_weights of kernels": Row(
        build=lambda learning_rate, weight_decay: fnn.optim.chain(
            fnn.optim.add_decayed_weights(weight_decay, mask=kernels), fnn.optim.sgd(learning_rate)
        ),
        oracle=kernels_first(elementwise(decayed_sgd), elementwise(only(sgd, "learning_rate"))),
        options=dict(learning_rate=rates, weight_decay=st.sampled_from([0.0, 1e-4, 0.1])),
        usual=dict(learning_rate=0.1, weight_decay=0.1),
        optax=lambda learning_rate, weight_decay: optax.chain(
            optax.add_decayed_weights(weight_decay, mask=kernels), optax.sgd(learning_rate)
        ),
        needs_params=True,
    ),
}
