"""Rows and oracles of averages and lookahead."""

from functools import partial

import optax
from hypothesis import strategies as st

import fnn
from tests.optim.rows import Row, decays, elementwise, rates


def ema(gs, p, decay, debias=True):
    m, updates = 0.0, []
    for t, g in enumerate(gs, start=1):
        m = decay * m + (1 - decay) * g
        updates.append(m / (1 - decay**t) if debias else m)
    return updates


def mean_of_iterates(ps, start=0):
    """Polyak & Juditsky 1992: the mean of what came after `start`; until then the last."""
    ps = list(ps)
    return ps[-1] if len(ps) <= start else sum(ps[start:]) / len(ps[start:])


def ema_of_iterates(ps, decay):
    """Weights decay^(age), normalized."""
    weights = [decay ** (len(ps) - 1 - i) for i in range(len(ps))]
    return sum(w * p for w, p in zip(weights, ps, strict=True)) / sum(weights)


def lookahead_sgd(gs, p, learning_rate, slow_step_size, sync_period=5):
    """Zhang et al. 2019, algorithm 1: two nested loops, with SGD within."""
    gs, updates, phi = iter(gs), [], p
    while True:
        theta = phi
        for i in range(sync_period):
            g = next(gs, None)
            if g is None:
                return updates
            before, theta = theta, theta - learning_rate * g
            if i < sync_period - 1:
                updates.append(theta - before)
        phi = phi + slow_step_size * (theta - phi)
        updates.append(phi - before)


passing = elementwise(lambda gs, p, **options: gs)


ROWS = {
    "ema": Row(
        build=fnn.optim.ema,
        oracle=elementwise(ema),
        options=dict(decay=decays),
        usual=dict(decay=0.9),
        optax=optax.ema,
    ),
    "ema as it is": Row(
        build=partial(fnn.optim.ema, debias=False),
        oracle=elementwise(partial(ema, debias=False)),
        options=dict(decay=decays),
        usual=dict(decay=0.9),
        optax=partial(optax.ema, debias=False),
    ),
    "average_params": Row(
        build=fnn.optim.average_params,
        oracle=passing,
        options=dict(decay=decays),
        usual=dict(decay=0.9),
        needs_params=True,
    ),
    "lookahead": Row(
        build=lambda learning_rate, slow_step_size: fnn.optim.lookahead(
            fnn.optim.sgd(learning_rate), 5, slow_step_size
        ),
        oracle=elementwise(lookahead_sgd),
        options=dict(learning_rate=rates, slow_step_size=st.sampled_from([0.0, 0.3, 0.5, 1.0])),
        usual=dict(learning_rate=0.1, slow_step_size=0.5),
        low=-3,
        high=3,
        scale="tree",  # the step back to the slow weights is a difference of params
        needs_params=True,
    ),
}
