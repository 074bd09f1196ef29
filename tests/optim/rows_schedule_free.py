"""Rows and oracles of schedule-free learning."""

from math import sqrt

import optax
from hypothesis import strategies as st

import fnn
from tests.optim.oracles import rate_at
from tests.optim.rows import Row, decays, elementwise, epsilons, late_decays, rates


def schedule_free_sgd(gs, p, learning_rate, b1=0.9, weight_decay=0.0, power=2.0):
    """Defazio et al. 2024, equations 3 to 5, averaging with the weights of algorithm 1."""
    x = z = y = p
    total = largest = 0.0
    updates = []
    for count, g in enumerate(gs):
        rate = rate_at(learning_rate, count)
        largest = max(largest, rate)
        z = z - rate * (g + weight_decay * y)
        total += largest**power
        c = largest**power / total if total else 0.0
        x = x + c * (z - x)  # so that nothing rounds where x = z
        new = z + b1 * (x - z)
        updates.append(new - y)
        y = new
    return updates


def schedule_free_adamw(
    gs, p, learning_rate, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, power=2.0
):
    """Defazio et al. 2024, algorithm 1."""
    x = z = y = p
    total = largest = v = 0.0
    updates = []
    for count, g in enumerate(gs):
        t = count + 1
        v = b2 * v + (1 - b2) * g * g
        rate = rate_at(learning_rate, count)
        largest = max(largest, rate)
        z = z - rate * g / (sqrt(v / (1 - b2**t)) + eps) - rate * weight_decay * y
        total += largest**power
        c = largest**power / total if total else 0.0
        x = x + c * (z - x)  # so that nothing rounds where x = z
        new = z + b1 * (x - z)
        updates.append(new - y)
        y = new
    return updates


weight_decays = st.sampled_from([0.0, 0.01, 0.1])


ROWS = {
    "schedule_free_sgd": Row(
        build=fnn.optim.schedule_free_sgd,
        oracle=elementwise(schedule_free_sgd),
        options=dict(learning_rate=rates, b1=decays, weight_decay=weight_decays),
        usual=dict(learning_rate=0.1, b1=0.9, weight_decay=0.1),
        optax=optax.contrib.schedule_free_sgd,
        needs_params=True,
        low=-2,
        high=2,
        tolerance=1e-10,  # updates are differences of params, and have their rounding
        scale="tree",
        complex=False,
    ),
    "schedule_free_adamw": Row(
        build=fnn.optim.schedule_free_adamw,
        oracle=elementwise(schedule_free_adamw),
        options=dict(
            learning_rate=rates, b1=decays, b2=late_decays, eps=epsilons, weight_decay=weight_decays
        ),
        usual=dict(learning_rate=0.1, b1=0.9, b2=0.99, weight_decay=0.1),
        optax=optax.contrib.schedule_free_adamw,
        needs_params=True,
        low=-2,
        high=2,
        tolerance=1e-10,  # updates are differences of params, and have their rounding
        scale="tree",
        complex=False,
    ),
}  # fmt: skip
