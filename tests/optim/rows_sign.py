"""Rows and oracles of signSGD, Signum, Lion and Rprop."""

import optax
from hypothesis import strategies as st

import fnn
from tests.optim.oracles import descend, sign
from tests.optim.rows import Row, decays, elementwise, rates
from tests.optim.rows_adam import weight_decays


def lion(gs, p, b1=0.9, b2=0.99):
    """Chen et al. 2023, algorithm 2."""
    m = 0.0
    updates = []
    for g in gs:
        updates.append(sign(b1 * m + (1 - b1) * g))
        m = b2 * m + (1 - b2) * g
    return updates


def sign_sgd(gs, p):
    """Bernstein et al. 2018, algorithm 1."""
    return [sign(g) for g in gs]


def signum(gs, p, beta=0.9):
    """Bernstein et al. 2018, algorithm 2."""
    m, updates = 0.0, []
    for g in gs:
        m = beta * m + (1 - beta) * g
        updates.append(sign(m))
    return updates


def rprop(
    gs, p, learning_rate, eta_minus=0.5, eta_plus=1.2, min_step_size=1e-6, max_step_size=50.0
):
    """Riedmiller & Braun 1993, in the form of Igel & Huesken 2000 (iRprop-): after a change of
    sign the gradient counts as zero, in this step and in the next comparison."""
    step, before = learning_rate, 0.0
    updates = []
    for g in gs:
        turn = sign(g) * sign(before)
        if turn != 0:
            step *= eta_plus if turn > 0 else eta_minus
            step = min(max(step, min_step_size), max_step_size)
        if turn < 0:
            g = 0.0
        updates.append(-sign(g) * step)
        before = g
    return updates


ROWS = {
    "sign_sgd": Row(
        build=fnn.optim.sign_sgd,
        oracle=elementwise(descend(sign_sgd)),
        options=dict(learning_rate=rates),
        usual=dict(learning_rate=0.1),
        optax=optax.sign_sgd,
    ),
    "signum": Row(
        build=fnn.optim.signum,
        oracle=elementwise(descend(signum)),
        options=dict(learning_rate=rates, beta=decays),
        usual=dict(learning_rate=0.1, beta=0.9),
        optax=optax.signum,
    ),
    "lion": Row(
        build=fnn.optim.lion,
        oracle=elementwise(descend(lion)),
        options=dict(learning_rate=rates, b1=decays, b2=decays, weight_decay=weight_decays),
        usual=dict(learning_rate=0.1, b1=0.9, b2=0.99, weight_decay=0.1),
        optax=optax.lion,
        needs_params=True,
    ),
    "rprop": Row(
        build=fnn.optim.rprop,
        oracle=elementwise(rprop),
        options=dict(
            learning_rate=rates,
            eta_minus=st.sampled_from([0.0, 0.5, 1.0]),
            eta_plus=st.sampled_from([1.0, 1.2, 2.0]),
            min_step_size=st.sampled_from([0.0, 1e-6, 0.5]),
            max_step_size=st.sampled_from([1.0, 50.0]),
        ),
        usual=dict(learning_rate=0.1),
        complex=False,
    ),
}
