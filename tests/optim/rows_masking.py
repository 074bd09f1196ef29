"""Rows and oracles of masks and partitions."""

import jax
import optax
from hypothesis import strategies as st

import fnn
from tests.optim.oracles import descend
from tests.optim.rows import Row, decays, elementwise, epsilons, late_decays, rates
from tests.optim.rows_adam import adam
from tests.optim.rows_decay import add_decayed_weights, kernels, kernels_first, only
from tests.optim.rows_sgd import sgd

rates_of_adam = dict(learning_rate=rates, b1=decays, b2=late_decays, eps=epsilons)
usual_adam = dict(learning_rate=0.1, b1=0.9, b2=0.999, eps=1e-8)
passing = elementwise(lambda gs, p, **options: gs)


def by_axes(params):
    return jax.tree.map(lambda p: "kernel" if p.ndim == 2 else "rest", params)


nothing = elementwise(lambda gs, p, **options: [0.0] * len(gs))


ROWS = {
    "masked": Row(
        build=lambda **options: fnn.optim.masked(fnn.optim.adam(**options), kernels),
        oracle=kernels_first(elementwise(descend(adam)), passing),
        options=rates_of_adam,
        usual=usual_adam,
        optax=lambda **options: optax.masked(optax.adam(**options), kernels),
    ),
    "partition": Row(
        build=lambda **options: fnn.optim.partition(
            {"kernel": fnn.optim.adam(**options), "rest": fnn.optim.sgd(options["learning_rate"])},
            by_axes,
        ),
        oracle=kernels_first(elementwise(descend(adam)), elementwise(only(sgd, "learning_rate"))),
        options=rates_of_adam,
        usual=usual_adam,
        optax=lambda **options: optax.partition(
            {"kernel": optax.adam(**options), "rest": optax.sgd(options["learning_rate"])}, by_axes
        ),
    ),
    "set_to_zero": Row(
        build=lambda weight_decay, **options: fnn.optim.chain(
            fnn.optim.sgd(**options),
            fnn.optim.add_decayed_weights(weight_decay),
            fnn.optim.set_to_zero(kernels),
        ),
        oracle=kernels_first(
            nothing,
            elementwise(
                lambda gs, p, learning_rate, weight_decay: add_decayed_weights(
                    [-learning_rate * g for g in gs], p, weight_decay
                )
            ),
        ),
        options=dict(learning_rate=rates, weight_decay=st.sampled_from([0.0, 0.1])),
        usual=dict(learning_rate=0.1, weight_decay=0.1),
        optax=lambda weight_decay, **options: optax.chain(
            optax.sgd(**options), optax.add_decayed_weights(weight_decay), optax.freeze(kernels)
        ),
        needs_params=True,
    ),
}
