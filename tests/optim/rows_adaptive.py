"""Adam's family and the sign methods.

Where an option is drawn from fewer values than usual, the formula itself loses digits at the
others: it divides by a difference that vanishes there.
"""

from functools import partial

import jax
import optax
from hypothesis import strategies as st

import fnn
from tests.optim import oracles_adaptive as oracles
from tests.optim.oracles_adaptive import descend
from tests.optim.rows import Row, decays, elementwise, epsilons, late_decays, rates

roots = st.sampled_from([0.0, 1e-12, 1e-3])
weights = st.sampled_from([0.0, 0.5, 1.0])
weight_decays = st.sampled_from([0.0, 1e-3, 0.1])
of_adam = dict(learning_rate=rates, b1=decays, b2=late_decays, eps=epsilons, eps_root=roots)
usual = dict(learning_rate=0.1, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0)

ROWS = {
    "adamw": Row(
        build=fnn.optim.adamw,
        oracle=elementwise(descend(oracles.adam)),
        options=of_adam | dict(weight_decay=weight_decays),
        usual=usual | dict(weight_decay=0.1),
        optax=optax.adamw,
        needs_params=True,
    ),
    "adamaxw": Row(
        build=fnn.optim.adamaxw,
        oracle=elementwise(descend(oracles.adamax)),
        options=dict(
            learning_rate=rates, b1=decays, b2=late_decays, eps=epsilons, weight_decay=weight_decays
        ),
        usual=dict(learning_rate=0.1, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.1),
        optax=optax.adamaxw,
        needs_params=True,
    ),
    "amsgrad": Row(
        build=fnn.optim.amsgrad,
        oracle=elementwise(descend(oracles.amsgrad)),
        options=of_adam,
        usual=usual,
    ),
    "amsgrad, corrected first": Row(
        build=partial(fnn.optim.amsgrad, correct_first=True),
        oracle=elementwise(descend(partial(oracles.amsgrad, correct_first=True))),
        options=of_adam,
        usual=usual,
        optax=optax.amsgrad,
    ),
    "adamax": Row(
        build=fnn.optim.adamax,
        oracle=elementwise(descend(oracles.adamax)),
        options=dict(learning_rate=rates, b1=decays, b2=late_decays, eps=epsilons),
        usual=dict(learning_rate=0.1, b1=0.9, b2=0.999, eps=1e-8),
        optax=optax.adamax,
    ),
    "nadam": Row(
        build=fnn.optim.nadam,
        oracle=elementwise(descend(oracles.nadam)),
        options=of_adam,
        usual=usual,
        optax=optax.nadam,
    ),
    "nadamw": Row(
        build=fnn.optim.nadamw,
        oracle=elementwise(descend(oracles.nadam)),
        options=of_adam | dict(weight_decay=weight_decays),
        usual=usual | dict(weight_decay=0.1),
        optax=optax.nadamw,
        needs_params=True,
    ),
    "radam": Row(
        build=fnn.optim.radam,
        oracle=elementwise(descend(oracles.radam)),
        options=of_adam | dict(threshold=st.sampled_from([4.0, 5.0, 9.0])),
        usual=usual,
        optax=optax.radam,
    ),
    "adabelief": Row(
        build=fnn.optim.adabelief,
        oracle=elementwise(descend(oracles.belief)),
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
        oracle=elementwise(descend(oracles.yogi)),
        options=of_adam
        | dict(
            b2=st.sampled_from([0.85, 0.99, 0.999]),  # no multiple of 1 - b2 is 1 within 50 steps
            initial_accumulator_value=st.sampled_from([1e-6, 0.1]),
        ),
        usual=usual | dict(eps=1e-3),
    ),
    "adan": Row(
        build=fnn.optim.adan,
        oracle=elementwise(descend(oracles.adan)),
        options=of_adam | dict(b3=st.sampled_from([0.9, 0.99, 0.999]), weight_decay=weight_decays),
        usual=dict(learning_rate=0.1, b1=0.98, b2=0.92, b3=0.99, weight_decay=0.1),
        needs_params=True,
    ),
    "sign_sgd": Row(
        build=fnn.optim.sign_sgd,
        oracle=elementwise(descend(oracles.sign_sgd)),
        options=dict(learning_rate=rates),
        usual=dict(learning_rate=0.1),
        optax=optax.sign_sgd,
    ),
    "signum": Row(
        build=fnn.optim.signum,
        oracle=elementwise(descend(oracles.signum)),
        options=dict(learning_rate=rates, beta=decays),
        usual=dict(learning_rate=0.1, beta=0.9),
        optax=optax.signum,
    ),
    "optimistic_gradient_descent": Row(
        build=fnn.optim.optimistic_gradient_descent,
        oracle=elementwise(oracles.optimistic_gradient_descent),
        options=dict(learning_rate=rates, alpha=weights, beta=weights),
        usual=dict(learning_rate=0.1, alpha=0.7, beta=0.1),
        optax=optax.optimistic_gradient_descent,
    ),
    "optimistic_adam": Row(
        build=fnn.optim.optimistic_adam,
        oracle=elementwise(oracles.optimistic_adam),
        # at a rate of 0 only the change is left: of a constant step, rounding
        options=of_adam | dict(learning_rate=st.sampled_from([1e-3, 0.1, 3.0]), optimism=rates),
        usual=usual | dict(optimism=0.3),
        optax=lambda learning_rate, optimism, **options: optax.chain(
            optax.scale_by_adam(**options),
            optax.scale_by_optimistic_gradient(learning_rate, optimism),
            optax.scale(-1.0),
        ),
    ),
    "noisy_sgd of none": Row(
        build=lambda **options: fnn.optim.noisy_sgd(eta=0.0, key=jax.random.key(0), **options),
        oracle=elementwise(descend(lambda gs, p: gs)),
        options=dict(learning_rate=rates),
        usual=dict(learning_rate=0.1),
        optax=optax.sgd,
    ),
    "lion": Row(
        build=fnn.optim.lion,
        oracle=elementwise(descend(oracles.lion)),
        options=dict(learning_rate=rates, b1=decays, b2=decays, weight_decay=weight_decays),
        usual=dict(learning_rate=0.1, b1=0.9, b2=0.99, weight_decay=0.1),
        optax=optax.lion,
        needs_params=True,
    ),
    "rprop": Row(
        build=fnn.optim.rprop,
        oracle=elementwise(oracles.rprop),
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
