"""Muon, schedule-free, L-BFGS, Prodigy, Shampoo, SOAP and Sophia."""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from hypothesis import strategies as st

import fnn
from fnn.optim import Transform, chain
from fnn.optim.arithmetic import norm
from tests.optim import oracles_curvature as oracles
from tests.optim.rows import Row, decays, elementwise, epsilons, late_decays, per_leaf, rates

positive_rates = st.sampled_from([1e-3, 0.1, 3.0])
slow = st.sampled_from([0.0, 0.5, 0.9])  # b1^2 <= b2, or Prodigy's distance explodes on noise
slower = st.sampled_from([0.9, 0.99, 0.999])
weight_decays = st.sampled_from([0.0, 0.01, 0.1])


def along(tx):
    """A direction, made of length 1 over the whole tree."""

    def update(grads, opt_state, params=None, **extra):
        u, opt_state = tx.update(grads, opt_state, params, **extra)
        length = norm(*jax.tree.leaves(u))
        length = jnp.where(length > 0, length, 1)
        return jax.tree.map(lambda a: (a / length.astype(a.dtype)).astype(a.dtype), u), opt_state

    return Transform(tx.init, update)


def unit_lbfgs(learning_rate):
    """Without a line search nothing bounds the steps, and rounding would build up."""
    tx = fnn.optim.scale_by_lbfgs(memory_size=4)
    return chain(along(tx), fnn.optim.scale_by_learning_rate(learning_rate))


def squared(tx):
    """Sophia with g^2 as the estimate of the Hessian."""

    def update(grads, opt_state, params=None, **extra):
        extra["hessian"] = jax.tree.map(jnp.square, grads)
        return tx.update(grads, opt_state, params, **extra)

    return Transform(tx.init, update)


ROWS: dict[str, Row] = {
    "muon": Row(
        build=fnn.optim.muon,
        oracle=per_leaf(oracles.muon),
        options=dict(
            learning_rate=rates, beta=decays, weight_decay=weight_decays,
            adam_b1=decays, adam_b2=late_decays, adam_eps=epsilons,
        ),
        usual=dict(learning_rate=0.1),
        needs_params=True,
        tolerance=1e-10,
        scale="leaf",
        checks=dict(splits=False),
        complex=False,
    ),
    "muon without nesterov": Row(
        build=partial(fnn.optim.muon, nesterov=False),
        oracle=per_leaf(partial(oracles.muon, nesterov=False)),
        options=dict(learning_rate=rates, beta=decays, weight_decay=weight_decays),
        usual=dict(learning_rate=0.1, beta=0.9, weight_decay=0.1, adam_eps=1e-12),
        optax=lambda adam_eps, **o: optax.contrib.muon(**o, nesterov=False, eps=adam_eps),
        needs_params=True,
        tolerance=1e-10,
        scale="leaf",
        checks=dict(splits=False),
        complex=False,
    ),
    "schedule_free_sgd": Row(
        build=fnn.optim.schedule_free_sgd,
        oracle=elementwise(oracles.schedule_free_sgd),
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
        oracle=elementwise(oracles.schedule_free_adamw),
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
    "lbfgs directions": Row(
        build=unit_lbfgs,
        oracle=oracles.unit_lbfgs,
        options=dict(learning_rate=positive_rates),
        usual=dict(learning_rate=0.1),
        needs_params=True,
        low=-1,
        high=1,
        tolerance=1e-7,
        scale="tree",
    ),
    "prodigy": Row(
        build=fnn.optim.prodigy,
        oracle=oracles.prodigy,
        options=dict(
            learning_rate=st.sampled_from([0.0, 0.5, 1.0]), b1=slow, b2=slower, eps=epsilons,
            estim_lr_coef=st.sampled_from([0.1, 1.0]),
        ),
        usual=dict(learning_rate=1.0),
        needs_params=True,
        low=-3,
        high=3,
        tolerance=1e-10,
        complex=False,
    ),
    "prodigy with bias correction": Row(
        build=partial(fnn.optim.prodigy, bias_correction=True),
        oracle=partial(oracles.prodigy, bias_correction=True),
        options=dict(
            b1=slow, b2=slower, weight_decay=weight_decays,
            estim_lr_coef=st.sampled_from([0.01, 0.1]),  # what decays on noise must not move far
        ),
        usual=dict(b1=0.8, b2=0.99, weight_decay=0.01, eps=1e-12),
        optax=lambda b1, b2, **o: optax.contrib.prodigy(betas=(b1, b2), **o),
        needs_params=True,
        low=-3,
        high=3,
        tolerance=1e-10,
        complex=False,
    ),
    "shampoo": Row(
        build=fnn.optim.shampoo,
        oracle=per_leaf(oracles.shampoo),
        options=dict(learning_rate=rates, eps=st.sampled_from([1e-4, 1.0])),
        usual=dict(learning_rate=0.1, eps=0.1),  # of less, float32 has no root to compare
        low=-1,
        high=1,
        tolerance=1e-9,
        scale="leaf",
        checks=dict(splits=False),
        complex=False,
    ),
    "soap": Row(
        build=fnn.optim.soap,
        oracle=per_leaf(oracles.soap),
        options=dict(
            learning_rate=rates, b1=decays, b2=late_decays, eps=epsilons, weight_decay=weight_decays
        ),
        usual=dict(learning_rate=0.1),
        needs_params=True,
        low=-1,
        high=1,
        tolerance=1e-8,
        scale="leaf",
        checks=dict(splits=False),
        complex=False,
    ),
    "sophia": Row(
        build=lambda **options: squared(fnn.optim.sophia(**options)),
        oracle=elementwise(oracles.sophia),
        options=dict(
            learning_rate=rates, b1=decays, b2=late_decays, gamma=st.sampled_from([0.01, 1.0]),
            eps=st.sampled_from([0.0, 1e-12, 1e-3]), weight_decay=weight_decays,
            clip_threshold=st.sampled_from([0.5, 1.0]),
        ),
        usual=dict(learning_rate=0.1),
        needs_params=True,
        complex=False,
    ),
}  # fmt: skip
