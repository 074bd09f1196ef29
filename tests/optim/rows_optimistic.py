"""Rows and oracles of optimistic gradient descent and Adam."""

import optax
from hypothesis import strategies as st

import fnn
from tests.optim.rows import Row, elementwise, rates
from tests.optim.rows_adam import adam, of_adam, usual


def optimistic_gradient_descent(gs, p, learning_rate, alpha=1.0, beta=1.0):
    """Mokhtari et al. 2020, equation 6: x_{k+1} = x_k - (a + b) g_k + b g_{k-1}."""
    before = [gs[0], *gs]
    return [
        -learning_rate * ((alpha + beta) * g - beta * old)
        for g, old in zip(gs, before, strict=False)
    ]


def optimistic_adam(gs, p, learning_rate, optimism=None, **options):
    """Daskalakis et al. 2018, algorithm 1: theta -= 2 eta u_t, theta += eta u_{t-1}."""
    optimism = learning_rate if optimism is None else optimism
    us = adam(gs, p, **options)
    pairs = zip(us, [us[0], *us], strict=False)
    return [-(learning_rate + optimism) * u + optimism * old for u, old in pairs]


weights = st.sampled_from([0.0, 0.5, 1.0])


ROWS = {
    "optimistic_gradient_descent": Row(
        build=fnn.optim.optimistic_gradient_descent,
        oracle=elementwise(optimistic_gradient_descent),
        options=dict(learning_rate=rates, alpha=weights, beta=weights),
        usual=dict(learning_rate=0.1, alpha=0.7, beta=0.1),
        optax=optax.optimistic_gradient_descent,
    ),
    "optimistic_adam": Row(
        build=fnn.optim.optimistic_adam,
        oracle=elementwise(optimistic_adam),
        # at a rate of 0 only the change is left: of a constant step, rounding
        options=of_adam | dict(learning_rate=st.sampled_from([1e-3, 0.1, 3.0]), optimism=rates),
        usual=usual | dict(optimism=0.3),
        tolerance=1e-11,  # optimism may be 3000 rates, times the rounding of a small change
        optax=lambda learning_rate, optimism, **options: optax.chain(
            optax.scale_by_adam(**options),
            optax.scale_by_optimistic_gradient(learning_rate, optimism),
            optax.scale(-1.0),
        ),
    ),
}
