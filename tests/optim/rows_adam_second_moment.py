"""Rows and oracles of RAdam, AdaBelief and Yogi."""

from fractions import Fraction
from math import sqrt

import optax
from hypothesis import strategies as st

import fnn
from tests.optim.oracles import descend, ratio, sign, weight
from tests.optim.rows import Row, decays, elementwise, rates
from tests.optim.rows_adam import of_adam, usual


def radam(gs, p, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0, threshold=5.0):
    """Liu et al. 2020, algorithm 2 (where threshold is 4 and eps 0)."""
    m = v = 0.0
    rho_inf = 2 / (1 - b2) - 1
    updates = []
    for t, g in enumerate(gs, start=1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * abs(g) ** 2
        m_hat = m / weight(b1, t)
        power = Fraction(b2) ** t
        rho = float(2 / (1 - Fraction(b2)) - 1 - 2 * t * power / (1 - power))
        if rho > threshold:
            r = sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
            updates.append(ratio(r * m_hat, sqrt(v / weight(b2, t) + eps_root) + eps))
        else:
            updates.append(m_hat)
    return updates


def belief(gs, p, b1=0.9, b2=0.999, eps=1e-16, eps_root=1e-16):
    """Zhuang et al. 2020, algorithm 2; its one eps is eps_root in the average, eps at the root."""
    m = s = 0.0
    updates = []
    for t, g in enumerate(gs, start=1):
        m = b1 * m + (1 - b1) * g
        s = b2 * s + (1 - b2) * abs(g - m) ** 2 + eps_root
        updates.append(ratio(m / weight(b1, t), sqrt(s / weight(b2, t)) + eps))
    return updates


def yogi(gs, p, b1=0.9, b2=0.999, eps=1e-3, eps_root=0.0, initial_accumulator_value=1e-6):
    """Zaheer et al. 2018, algorithm 2, with Adam's corrections."""
    m, v = 0.0, initial_accumulator_value
    updates = []
    for t, g in enumerate(gs, start=1):
        m = b1 * m + (1 - b1) * g
        v = v - (1 - b2) * sign(v - abs(g) ** 2) * abs(g) ** 2
        updates.append(ratio(m / weight(b1, t), sqrt(v / weight(b2, t) + eps_root) + eps))
    return updates


ROWS = {
    "radam": Row(
        build=fnn.optim.radam,
        oracle=elementwise(descend(radam)),
        options=of_adam | dict(threshold=st.sampled_from([4.0, 5.0, 9.0])),
        usual=usual,
        optax=optax.radam,
    ),
    "adabelief": Row(
        build=fnn.optim.adabelief,
        oracle=elementwise(descend(belief)),
        options=dict(
            learning_rate=rates,
            b1=decays,
            b2=st.sampled_from([0.9, 0.99, 0.999]),
            eps=st.sampled_from([1e-16, 1e-8]),
            eps_root=st.sampled_from([1e-16, 1e-8]),
        ),
        usual=dict(learning_rate=0.1, b1=0.9, b2=0.999, eps=1e-16, eps_root=1e-16),
        optax=optax.adabelief,
    ),
    "yogi": Row(
        build=fnn.optim.yogi,
        oracle=elementwise(descend(yogi)),
        options=of_adam
        | dict(
            b2=st.sampled_from([0.85, 0.99, 0.999]),  # no multiple of 1 - b2 is 1 within 50 steps
            initial_accumulator_value=st.sampled_from([1e-6, 0.1]),
        ),
        usual=usual | dict(eps=1e-3),
    ),
}
