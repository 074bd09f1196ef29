"""Methods that scale by past gradients, by factors of them, or by the norms of a layer."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import optax
from hypothesis import strategies as st

import fnn
from tests.optim import oracles_scaled as oracles
from tests.optim.rows import Row, decays, elementwise, epsilons, late_decays, per_leaf, rates

starts = st.sampled_from([0.0, 0.1, 1.0])
weights = st.sampled_from([0.0, 0.01, 0.5])
small = st.sampled_from([0.0, 1e-8, 1e-3])  # eps that may be none
by_leaf = dict(scale="leaf", checks=dict(splits=False))


def optax_adafactor(learning_rate, decay_rate, momentum):
    return optax.adafactor(
        learning_rate, 2, decay_rate, momentum=momentum, dtype_momentum="float64"
    )


def optax_sm3(learning_rate, momentum, eps):
    return optax.chain(optax.scale_by_sm3(momentum, eps=eps), optax.scale(-learning_rate))


def with_value(tx):
    """The sum of all |g| for the loss, which Polyak's step wants to know."""

    def update(grads, opt_state, params=None, **extra):
        sums = [jnp.sum(jnp.abs(g)).astype(float) for g in jax.tree.leaves(grads)]
        return tx.update(grads, opt_state, params, value=sum(sums, jnp.zeros((), float)))

    return fnn.optim.Transform(tx.init, update)


ROWS = {
    "scale_by_rms": Row(
        build=fnn.optim.scale_by_rms,
        oracle=elementwise(oracles.rms),
        options=dict(decay=late_decays, eps=small, initial_scale=starts),
        usual=dict(decay=0.9, eps=1e-8, initial_scale=0.0),
        optax=optax.scale_by_rms,
    ),
    "scale_by_stddev": Row(
        build=partial(fnn.optim.scale_by_stddev, eps_in_sqrt=False),
        oracle=elementwise(partial(oracles.rms, centered=True, eps_in_sqrt=False)),
        options=dict(decay=late_decays, eps=epsilons, initial_scale=starts),
        usual=dict(decay=0.9, eps=1e-8, initial_scale=0.0),
        optax=partial(optax.scale_by_stddev, eps_in_sqrt=False),
    ),
    "rmsprop": Row(
        build=partial(fnn.optim.rmsprop, eps_in_sqrt=False),
        oracle=elementwise(partial(oracles.rms, eps_in_sqrt=False)),
        options=dict(learning_rate=rates, decay=late_decays, eps=small, momentum=decays),
        usual=dict(learning_rate=0.1, decay=0.9, eps=1e-8, momentum=0.9),
        optax=partial(optax.rmsprop, eps_in_sqrt=False),
    ),
    "rmsprop centered nesterov": Row(
        build=partial(fnn.optim.rmsprop, centered=True, nesterov=True),
        oracle=elementwise(partial(oracles.rms, centered=True, nesterov=True)),
        options=dict(learning_rate=rates, decay=late_decays, eps=epsilons, momentum=decays),
        usual=dict(learning_rate=0.1, decay=0.9, eps=1e-8, momentum=0.9),
        optax=partial(optax.rmsprop, centered=True, nesterov=True),
    ),
    "scale_by_rss": Row(
        build=partial(fnn.optim.scale_by_rss, eps_in_sqrt=False),
        oracle=elementwise(partial(oracles.adagrad, eps_in_sqrt=False)),
        options=dict(initial_accumulator_value=starts, eps=small),
        usual=dict(initial_accumulator_value=0.1, eps=1e-7),
    ),
    "adagrad": Row(
        build=fnn.optim.adagrad,
        oracle=elementwise(oracles.adagrad),
        options=dict(learning_rate=rates, initial_accumulator_value=starts, eps=small),
        usual=dict(learning_rate=0.1, initial_accumulator_value=0.1, eps=1e-7),
        optax=optax.adagrad,
    ),
    "scale_by_adadelta": Row(
        build=fnn.optim.scale_by_adadelta,
        oracle=elementwise(oracles.adadelta),
        options=dict(rho=late_decays, eps=small),
        usual=dict(rho=0.9, eps=1e-6),
        optax=optax.scale_by_adadelta,
    ),
    "adadelta": Row(
        build=fnn.optim.adadelta,
        oracle=elementwise(oracles.adadelta),
        options=dict(learning_rate=rates, rho=late_decays, eps=epsilons),
        usual=dict(learning_rate=1.0, rho=0.95, eps=1e-6),
        optax=optax.adadelta,
    ),
    "scale_by_novograd": Row(
        build=fnn.optim.scale_by_novograd,
        oracle=per_leaf(oracles.novograd),
        options=dict(b1=decays, b2=late_decays, eps=small),
        usual=dict(b1=0.9, b2=0.25, eps=1e-8),
        optax=optax.scale_by_novograd,
        **by_leaf,
    ),
    "novograd": Row(
        build=fnn.optim.novograd,
        oracle=per_leaf(oracles.novograd),
        options=dict(
            learning_rate=rates, b1=decays, b2=late_decays, eps=epsilons, weight_decay=weights
        ),
        usual=dict(learning_rate=0.1, b1=0.9, b2=0.25, eps=1e-8, weight_decay=0.01),
        optax=optax.novograd,
        needs_params=True,
        **by_leaf,
    ),
    "scale_by_factored_rms": Row(
        build=partial(fnn.optim.scale_by_factored_rms, min_dim_size_to_factor=2),
        oracle=per_leaf(lambda gs, p, **options: oracles.factored_rms(gs, 2, **options)),
        options=dict(decay_rate=st.sampled_from([0.0, 0.5, 0.8, 1.0]), eps=st.just(1e-30)),
        usual=dict(decay_rate=0.8),
        optax=partial(optax.scale_by_factored_rms, min_dim_size_to_factor=2),
        optax_tolerance=1e-6,  # its decay is float32
        **by_leaf,
    ),
    "scale_by_param_block_rms": Row(
        build=fnn.optim.scale_by_param_block_rms,
        oracle=per_leaf(oracles.param_block_rms),
        options=dict(min_scale=st.sampled_from([0.0, 1e-3, 1.0])),
        usual=dict(min_scale=1e-3),
        optax=optax.scale_by_param_block_rms,
        low=-3,
        high=0.5,  # the params grow by up to 1 + |g| times a step
        needs_params=True,
        **by_leaf,
    ),
    "adafactor": Row(
        build=partial(fnn.optim.adafactor, min_dim_size_to_factor=2),
        oracle=per_leaf(partial(oracles.adafactor, min_dim_size_to_factor=2)),
        options=dict(
            learning_rate=rates,
            decay_rate=st.sampled_from([0.5, 0.8]),
            clipping_threshold=st.sampled_from([0.1, 1.0]),
            momentum=decays,
            weight_decay=weights,
            min_scale=st.sampled_from([1e-3, 1.0]),
        ),
        usual=dict(learning_rate=0.1, decay_rate=0.8, momentum=0.9),
        optax=optax_adafactor,
        optax_tolerance=1e-6,  # its decay is float32
        needs_params=True,
        **by_leaf,
    ),
    "scale_by_sm3": Row(
        build=fnn.optim.scale_by_sm3,
        oracle=per_leaf(oracles.sm3),
        options=dict(b1=decays, eps=small),
        usual=dict(b1=0.9, eps=1e-8),
        optax=optax.scale_by_sm3,
        **by_leaf,
    ),
    "sm3": Row(
        build=fnn.optim.sm3,
        oracle=per_leaf(lambda gs, p, momentum, **rest: oracles.sm3(gs, p, b1=momentum, **rest)),
        options=dict(learning_rate=rates, momentum=decays, eps=small),
        usual=dict(learning_rate=0.1, momentum=0.9, eps=0.0),
        optax=optax_sm3,
        **by_leaf,
    ),
    "scale_by_trust_ratio": Row(
        build=fnn.optim.scale_by_trust_ratio,
        oracle=per_leaf(oracles.trust_ratio),
        options=dict(
            min_norm=st.sampled_from([0.0, 1e-2]),
            trust_coefficient=st.sampled_from([1e-3, 0.5, 3.0]),  # 1 could end in p = 0
            eps=small,
            weight_decay=weights,
        ),
        usual=dict(min_norm=0.0, trust_coefficient=0.5, eps=1e-8),
        optax=optax.scale_by_trust_ratio,
        needs_params=True,
        **by_leaf,
    ),
    "fromage": Row(
        build=fnn.optim.fromage,
        oracle=per_leaf(oracles.fromage),
        options=dict(learning_rate=rates, min_norm=st.sampled_from([1e-6, 0.1])),
        usual=dict(learning_rate=0.1),
        optax=optax.fromage,
        needs_params=True,
        **by_leaf,
    ),
    "polyak_sgd": Row(
        build=lambda **options: with_value(fnn.optim.polyak_sgd(**options)),
        oracle=oracles.polyak,
        options=dict(
            max_learning_rate=st.sampled_from([1e-3, 1.0, math.inf]),
            scaling=st.sampled_from([0.0, 0.5, 1.0]),
            f_min=st.sampled_from([0.0, -2.0]),
            eps=st.sampled_from([0.0, 1e-3]),
        ),
        usual=dict(max_learning_rate=1.0),
        optax=lambda **options: with_value(optax.polyak_sgd(**options)),
        scale="tree",
    ),
    "lamb": Row(
        build=fnn.optim.lamb,
        oracle=per_leaf(oracles.lamb),
        options=dict(
            learning_rate=rates, b1=decays, b2=late_decays, eps=epsilons, weight_decay=weights
        ),
        usual=dict(learning_rate=0.1, b1=0.9, b2=0.999, eps=1e-6, weight_decay=0.01),
        optax=optax.lamb,
        needs_params=True,
        **by_leaf,
    ),
    "lars": Row(
        build=fnn.optim.lars,
        oracle=per_leaf(oracles.lars),
        options=dict(
            learning_rate=rates,
            weight_decay=weights,
            trust_coefficient=st.sampled_from([1e-3, 0.1]),
            eps=small,
            momentum=decays,
        ),
        usual=dict(learning_rate=0.1, trust_coefficient=0.1, momentum=0.9),
        optax=optax.lars,  # with weight decay it differs
        needs_params=True,
        **by_leaf,
    ),
}
