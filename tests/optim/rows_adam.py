"""Rows and oracles of Adam, AMSGrad and Adamax."""

from functools import partial
from math import sqrt

import optax
from hypothesis import strategies as st

import fnn
from tests.optim.oracles import descend, ratio, weight
from tests.optim.rows import Row, decays, elementwise, epsilons, late_decays, rates


def adam(gs, p, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0):
    """Kingma & Ba 2015, algorithm 1; eps_root stands inside the root."""
    m = v = 0.0
    updates = []
    for t, g in enumerate(gs, start=1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * abs(g) ** 2
        m_hat, v_hat = m / weight(b1, t), v / weight(b2, t)
        updates.append(ratio(m_hat, sqrt(v_hat + eps_root) + eps))
    return updates


def amsgrad(gs, p, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0, correct_first=False):
    """Reddi et al. 2018, algorithm 2, with Adam's corrections after the maximum (or before it)."""
    m = v = largest = 0.0
    updates = []
    for t, g in enumerate(gs, start=1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * abs(g) ** 2
        largest = max(largest, v / weight(b2, t) if correct_first else v)
        v_hat = largest if correct_first else largest / weight(b2, t)
        updates.append(ratio(m / weight(b1, t), sqrt(v_hat + eps_root) + eps))
    return updates


def adamax(gs, p, b1=0.9, b2=0.999, eps=1e-8):
    """Kingma & Ba 2015, algorithm 2, with |g| + eps for |g|."""
    m = norm = 0.0
    updates = []
    for t, g in enumerate(gs, start=1):
        m = b1 * m + (1 - b1) * g
        norm = max(b2 * norm, abs(g) + eps)
        updates.append(ratio(m / weight(b1, t), norm))
    return updates


weight_decays = st.sampled_from([0.0, 1e-3, 0.1])
roots = st.sampled_from([0.0, 1e-12, 1e-3])
of_adam = dict(learning_rate=rates, b1=decays, b2=late_decays, eps=epsilons, eps_root=roots)
usual = dict(learning_rate=0.1, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0)


ROWS = {
    "scale_by_adam": Row(
        build=fnn.optim.scale_by_adam,
        oracle=elementwise(adam),
        options=dict(b1=decays, b2=late_decays, eps=epsilons),
        usual=dict(b1=0.9, b2=0.999, eps=1e-8),
        optax=optax.scale_by_adam,
    ),
    "adam": Row(
        build=fnn.optim.adam,
        oracle=elementwise(descend(adam)),
        options=dict(learning_rate=rates, b1=decays, b2=late_decays, eps=epsilons),
        usual=dict(learning_rate=0.1, b1=0.9, b2=0.999, eps=1e-8),
        optax=optax.adam,
    ),
    "adamw": Row(
        build=fnn.optim.adamw,
        oracle=elementwise(descend(adam)),
        options=of_adam | dict(weight_decay=weight_decays),
        usual=usual | dict(weight_decay=0.1),
        optax=optax.adamw,
        needs_params=True,
    ),
    "adamaxw": Row(
        build=fnn.optim.adamaxw,
        oracle=elementwise(descend(adamax)),
        options=dict(
            learning_rate=rates, b1=decays, b2=late_decays, eps=epsilons, weight_decay=weight_decays
        ),
        usual=dict(learning_rate=0.1, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.1),
        optax=optax.adamaxw,
        needs_params=True,
    ),
    "amsgrad": Row(
        build=fnn.optim.amsgrad,
        oracle=elementwise(descend(amsgrad)),
        options=of_adam,
        usual=usual,
    ),
    "amsgrad, corrected first": Row(
        build=partial(fnn.optim.amsgrad, correct_first=True),
        oracle=elementwise(descend(partial(amsgrad, correct_first=True))),
        options=of_adam,
        usual=usual,
        optax=optax.amsgrad,
    ),
    "adamax": Row(
        build=fnn.optim.adamax,
        oracle=elementwise(descend(adamax)),
        options=dict(learning_rate=rates, b1=decays, b2=late_decays, eps=epsilons),
        usual=dict(learning_rate=0.1, b1=0.9, b2=0.999, eps=1e-8),
        optax=optax.adamax,
    ),
}
