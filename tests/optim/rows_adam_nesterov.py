"""Rows and oracles of NAdam and Adan."""

from math import sqrt

import optax
from hypothesis import strategies as st

import fnn
from tests.optim.oracles import descend, ratio, weight
from tests.optim.rows import Row, elementwise
from tests.optim.rows_adam import of_adam, usual, weight_decays


def nadam(gs, p, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0):
    """Dozat 2016, algorithm 2, with mu_t = b1 throughout: the products of mu are powers."""
    m = n = 0.0
    updates = []
    for t, g in enumerate(gs, start=1):
        m = b1 * m + (1 - b1) * g
        n = b2 * n + (1 - b2) * abs(g) ** 2
        m_bar = b1 * m / weight(b1, t + 1) + (1 - b1) * g / weight(b1, t)
        updates.append(ratio(m_bar, sqrt(n / weight(b2, t) + eps_root) + eps))
    return updates


def adan(gs, p, b1=0.98, b2=0.92, b3=0.99, eps=1e-8, eps_root=0.0):
    """Xie et al. 2022, algorithm 1, with Adam's corrections; the paper's betas are 1 - b here."""
    beta1, beta2, beta3 = 1 - b1, 1 - b2, 1 - b3
    m = v = n = 0.0
    updates = []
    for k, g in enumerate(gs, start=1):
        change = g - gs[max(k - 2, 0)]  # none at first
        m = (1 - beta1) * m + beta1 * g
        v = (1 - beta2) * v + beta2 * change
        n = (1 - beta3) * n + beta3 * abs(g + (1 - beta2) * change) ** 2
        ahead = m / weight(b1, k) + (1 - beta2) * v / weight(b2, k)
        updates.append(ratio(ahead, sqrt(n / weight(b3, k) + eps_root) + eps))
    return updates


ROWS = {
    "nadam": Row(
        build=fnn.optim.nadam,
        oracle=elementwise(descend(nadam)),
        options=of_adam,
        usual=usual,
        optax=optax.nadam,
    ),
    "nadamw": Row(
        build=fnn.optim.nadamw,
        oracle=elementwise(descend(nadam)),
        options=of_adam | dict(weight_decay=weight_decays),
        usual=usual | dict(weight_decay=0.1),
        optax=optax.nadamw,
        needs_params=True,
    ),
    "adan": Row(
        build=fnn.optim.adan,
        oracle=elementwise(descend(adan)),
        options=of_adam | dict(b3=st.sampled_from([0.9, 0.99, 0.999]), weight_decay=weight_decays),
        usual=dict(learning_rate=0.1, b1=0.98, b2=0.92, b3=0.99, weight_decay=0.1),
        needs_params=True,
    ),
}
