"""Rows and oracles of RMSprop, Adagrad and Adadelta."""

from decimal import Decimal, localcontext
from functools import partial
from math import sqrt

import optax
from hypothesis import strategies as st

import fnn
from tests.optim.oracles import along, ratio
from tests.optim.rows import Row, decays, elementwise, epsilons, late_decays, rates


def velocity(us, momentum, nesterov):
    """Sutskever et al. 2013: v = momentum v + u, and u + momentum v to look ahead."""
    v = 0.0
    for u in us:
        v = momentum * v + u
        yield u + momentum * v if nesterov else v


def rms(
    gs,
    p,
    learning_rate=None,
    decay=0.9,
    eps=1e-8,
    initial_scale=0.0,
    eps_in_sqrt=True,
    centered=False,
    momentum=0.0,
    nesterov=False,
):
    """Tieleman & Hinton 2012, slide 29; centred: Graves 2013, section 4.2.

    Centred, the variance is a difference of nearly equal numbers: 200 digits.
    """
    us = []
    with localcontext() as context:
        context.prec = 200
        d = Decimal(float(decay))
        n, m = Decimal(float(initial_scale)), Decimal(0)
        for g in map(Decimal, gs):
            n = d * n + (1 - d) * g * g
            m = d * m + (1 - d) * g
            v = n - m * m if centered else n
            e = Decimal(float(eps))
            root = (v + e).sqrt() if eps_in_sqrt else v.sqrt() + e
            us.append(float(g / root) if root else 0.0)
    return [along(u, learning_rate) for u in velocity(us, momentum, nesterov)]


def adagrad(gs, p, learning_rate=None, initial_accumulator_value=0.1, eps=1e-7, eps_in_sqrt=True):
    """Duchi et al. 2011, figure 1 with the diagonal matrix; eps in the root, or delta beside it."""
    total, updates = initial_accumulator_value, []
    for g in gs:
        total += abs(g) ** 2
        root = sqrt(total + eps) if eps_in_sqrt else sqrt(total) + eps
        updates.append(along(ratio(g, root), learning_rate))
    return updates


def adadelta(gs, p, learning_rate=None, rho=0.9, eps=1e-6):
    """Zeiler 2012, algorithm 1."""
    e_g = e_x = 0.0
    updates = []
    for g in gs:
        e_g = rho * e_g + (1 - rho) * abs(g) ** 2
        x = ratio(sqrt(e_x + eps), sqrt(e_g + eps)) * g
        e_x = rho * e_x + (1 - rho) * abs(x) ** 2
        updates.append(along(x, learning_rate))
    return updates


starts = st.sampled_from([0.0, 0.1, 1.0])
small = st.sampled_from([0.0, 1e-8, 1e-3])  # eps that may be none


ROWS = {
    "scale_by_rms": Row(
        build=fnn.optim.scale_by_rms,
        oracle=elementwise(rms),
        options=dict(decay=late_decays, eps=small, initial_scale=starts),
        usual=dict(decay=0.9, eps=1e-8, initial_scale=0.0),
        optax=optax.scale_by_rms,
    ),
    "scale_by_stddev": Row(
        build=partial(fnn.optim.scale_by_stddev, eps_in_sqrt=False),
        oracle=elementwise(partial(rms, centered=True, eps_in_sqrt=False)),
        options=dict(decay=late_decays, eps=epsilons, initial_scale=starts),
        usual=dict(decay=0.9, eps=1e-8, initial_scale=0.0),
        optax=partial(optax.scale_by_stddev, eps_in_sqrt=False),
    ),
    "rmsprop": Row(
        build=partial(fnn.optim.rmsprop, eps_in_sqrt=False),
        oracle=elementwise(partial(rms, eps_in_sqrt=False)),
        options=dict(learning_rate=rates, decay=late_decays, eps=small, momentum=decays),
        usual=dict(learning_rate=0.1, decay=0.9, eps=1e-8, momentum=0.9),
        optax=partial(optax.rmsprop, eps_in_sqrt=False),
    ),
    "rmsprop centered nesterov": Row(
        build=partial(fnn.optim.rmsprop, centered=True, nesterov=True),
        oracle=elementwise(partial(rms, centered=True, nesterov=True)),
        options=dict(learning_rate=rates, decay=late_decays, eps=epsilons, momentum=decays),
        usual=dict(learning_rate=0.1, decay=0.9, eps=1e-8, momentum=0.9),
        optax=partial(optax.rmsprop, centered=True, nesterov=True),
    ),
    "scale_by_rss": Row(
        build=partial(fnn.optim.scale_by_rss, eps_in_sqrt=False),
        oracle=elementwise(partial(adagrad, eps_in_sqrt=False)),
        options=dict(initial_accumulator_value=starts, eps=small),
        usual=dict(initial_accumulator_value=0.1, eps=1e-7),
    ),
    "adagrad": Row(
        build=fnn.optim.adagrad,
        oracle=elementwise(adagrad),
        options=dict(learning_rate=rates, initial_accumulator_value=starts, eps=small),
        usual=dict(learning_rate=0.1, initial_accumulator_value=0.1, eps=1e-7),
        optax=optax.adagrad,
    ),
    "scale_by_adadelta": Row(
        build=fnn.optim.scale_by_adadelta,
        oracle=elementwise(adadelta),
        options=dict(rho=late_decays, eps=small),
        usual=dict(rho=0.9, eps=1e-6),
        optax=optax.scale_by_adadelta,
    ),
    "adadelta": Row(
        build=fnn.optim.adadelta,
        oracle=elementwise(adadelta),
        options=dict(learning_rate=rates, rho=late_decays, eps=epsilons),
        usual=dict(learning_rate=1.0, rho=0.95, eps=1e-6),
        optax=optax.adadelta,
    ),
}
