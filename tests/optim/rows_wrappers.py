"""Rows of clips, averages, constraints, masks and guards."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import strategies as st

import fnn
from fnn.optim import constraints as onto
from tests.optim import oracles_wrappers as oracles
from tests.optim.rows import Row, decays, elementwise, epsilons, late_decays, per_leaf, rates
from tests.optim.rows_first import adam, sgd

sizes = st.sampled_from([0.0, 1e-3, 1.0, 1e6])
rates_of_adam = dict(learning_rate=rates, b1=decays, b2=late_decays, eps=epsilons)
usual_adam = dict(learning_rate=0.1, b1=0.9, b2=0.999, eps=1e-8)


def kernels(params):
    """A mask that holds whatever the leaves are called: what has two axes."""
    return jax.tree.map(lambda p: p.ndim == 2, params)


def by_axes(params):
    return jax.tree.map(lambda p: "kernel" if p.ndim == 2 else "rest", params)


def kernels_first(of_kernels, of_rest):
    """The oracle of two rules, one for what has two axes."""

    def oracle(grads, params, **options):
        updates = [{} for _ in grads]
        for rule, two in ((of_kernels, True), (of_rest, False)):
            some = {name: p for name, p in params.items() if (np.ndim(p) == 2) == two}
            for step, u in zip(updates, rule(grads, some, **options), strict=True):
                step.update({name: u[name] for name in some})
        return updates

    return oracle


passing = elementwise(lambda gs, p, **options: gs)
nothing = elementwise(lambda gs, p, **options: [0.0] * len(gs))


def only(rule, *names):
    """The rule with only some of the options."""
    return lambda gs, p, **options: rule(gs, p, **{name: options[name] for name in names})


def decayed_sgd(gs, p, learning_rate, weight_decay):
    """Loshchilov & Hutter 2019, algorithm 1, without momentum."""
    updates = []
    for g in gs:
        updates.append(-learning_rate * (g + weight_decay * p))
        p = p + updates[-1]
    return updates


def falling_decay(gs, p, weight_decay):
    updates = []
    for t, g in enumerate(gs):
        updates.append(g + weight_decay / (1 + t) * p)
        p = p + updates[-1]
    return updates


def clipped_sgd(grads, params, max_norm, learning_rate):
    clipped = oracles.clip_by_global_norm(grads, params, max_norm)
    return [{name: -learning_rate * u for name, u in step.items()} for step in clipped]


ROWS = {
    "add_decayed_weights": Row(
        build=fnn.optim.add_decayed_weights,
        oracle=elementwise(oracles.add_decayed_weights),
        options=dict(weight_decay=st.sampled_from([0.0, 1e-4, 0.1])),
        usual=dict(weight_decay=0.1),
        optax=optax.add_decayed_weights,
        needs_params=True,
    ),
    "add_decayed_weights by schedule": Row(
        build=lambda weight_decay: fnn.optim.add_decayed_weights(
            lambda t: jnp.asarray(weight_decay) / (1 + t).astype(jnp.result_type(weight_decay))
        ),
        oracle=elementwise(falling_decay),
        options=dict(weight_decay=st.sampled_from([0.0, 1e-4, 0.1])),
        usual=dict(weight_decay=0.1),
        needs_params=True,
    ),
    "add_decayed_weights of kernels": Row(
        build=lambda learning_rate, weight_decay: fnn.optim.chain(
            fnn.optim.add_decayed_weights(weight_decay, mask=kernels), fnn.optim.sgd(learning_rate)
        ),
        oracle=kernels_first(elementwise(decayed_sgd), elementwise(only(sgd, "learning_rate"))),
        options=dict(learning_rate=rates, weight_decay=st.sampled_from([0.0, 1e-4, 0.1])),
        usual=dict(learning_rate=0.1, weight_decay=0.1),
        optax=lambda learning_rate, weight_decay: optax.chain(
            optax.add_decayed_weights(weight_decay, mask=kernels), optax.sgd(learning_rate)
        ),
        needs_params=True,
    ),
    "masked": Row(
        build=lambda **options: fnn.optim.masked(fnn.optim.adam(**options), kernels),
        oracle=kernels_first(elementwise(adam), passing),
        options=rates_of_adam,
        usual=usual_adam,
        optax=lambda **options: optax.masked(optax.adam(**options), kernels),
    ),
    "partition": Row(
        build=lambda **options: fnn.optim.partition(
            {"kernel": fnn.optim.adam(**options), "rest": fnn.optim.sgd(options["learning_rate"])},
            by_axes,
        ),
        oracle=kernels_first(elementwise(adam), elementwise(only(sgd, "learning_rate"))),
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
                lambda gs, p, learning_rate, weight_decay: oracles.add_decayed_weights(
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
    "named_chain": Row(
        build=lambda max_norm, learning_rate: fnn.optim.named_chain(
            clip=fnn.optim.clip_by_global_norm(max_norm), sgd=fnn.optim.sgd(learning_rate)
        ),
        oracle=clipped_sgd,
        options=dict(max_norm=sizes, learning_rate=rates),
        usual=dict(max_norm=1.0, learning_rate=0.1),
        scale="tree",
    ),
    "clip": Row(
        build=fnn.optim.clip,
        oracle=elementwise(oracles.clip),
        options=dict(max_delta=sizes),
        usual=dict(max_delta=0.5),
        optax=optax.clip,
    ),
    "clip_by_global_norm": Row(
        build=fnn.optim.clip_by_global_norm,
        oracle=oracles.clip_by_global_norm,
        options=dict(max_norm=sizes),
        usual=dict(max_norm=1.0),
        optax=optax.clip_by_global_norm,
    ),
    "clip_by_block_rms": Row(
        build=fnn.optim.clip_by_block_rms,
        oracle=per_leaf(oracles.clip_by_block_rms),
        options=dict(threshold=sizes),
        usual=dict(threshold=1.0),
        optax=optax.clip_by_block_rms,
        checks=dict(splits=False),
    ),
    "adaptive_grad_clip": Row(
        build=fnn.optim.adaptive_grad_clip,
        oracle=per_leaf(oracles.adaptive_grad_clip),
        options=dict(clipping=st.sampled_from([0.0, 0.01, 0.16, 10.0]), eps=epsilons),
        usual=dict(clipping=0.16, eps=1e-3),
        optax=optax.adaptive_grad_clip,
        needs_params=True,
        checks=dict(splits=False),
    ),
    "centralize": Row(
        build=fnn.optim.centralize,
        oracle=per_leaf(oracles.centralize),
        options={},
        usual={},
        scale="leaf",
        checks=dict(splits=False),
    ),
    "zero_nans": Row(
        build=fnn.optim.zero_nans, oracle=passing, options={}, usual={}, optax=optax.zero_nans
    ),
    "add_noise of none": Row(
        build=lambda gamma: fnn.optim.add_noise(0.0, gamma, jax.random.key(0)),
        oracle=passing,
        options=dict(gamma=decays),
        usual=dict(gamma=0.55),
    ),
    "ema": Row(
        build=fnn.optim.ema,
        oracle=elementwise(oracles.ema),
        options=dict(decay=decays),
        usual=dict(decay=0.9),
        optax=optax.ema,
    ),
    "ema as it is": Row(
        build=partial(fnn.optim.ema, debias=False),
        oracle=elementwise(partial(oracles.ema, debias=False)),
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
        oracle=elementwise(oracles.lookahead_sgd),
        options=dict(learning_rate=rates, slow_step_size=st.sampled_from([0.0, 0.3, 0.5, 1.0])),
        usual=dict(learning_rate=0.1, slow_step_size=0.5),
        low=-3,
        high=3,
        scale="tree",  # the step back to the slow weights is a difference of params
        needs_params=True,
    ),
    "skip_nonfinite": Row(
        build=lambda **options: fnn.optim.skip_nonfinite(fnn.optim.sgd(**options)),
        oracle=elementwise(sgd),
        options=dict(learning_rate=rates, momentum=decays),
        usual=dict(learning_rate=0.1, momentum=0.9),
        optax=lambda **options: optax.apply_if_finite(optax.sgd(**options), 5),
    ),
    "project on box": Row(
        build=lambda lower, upper: fnn.optim.project(onto.box(lower, upper)),
        oracle=elementwise(oracles.projected(lambda x, **box: float(oracles.box(x, **box)))),
        options=dict(lower=st.sampled_from([-1.0, 0.0]), upper=st.sampled_from([0.25, 2.0])),
        usual=dict(lower=-1.0, upper=1.0),
        needs_params=True,
    ),
    "project on non_negative": Row(
        build=lambda: fnn.optim.project(onto.non_negative),
        oracle=elementwise(oracles.projected(lambda x: float(oracles.non_negative(x)))),
        options={},
        usual={},
        needs_params=True,
    ),
    "project on l2_ball": Row(
        build=lambda radius: fnn.optim.project(onto.l2_ball(radius)),
        oracle=per_leaf(oracles.projected(oracles.l2_ball)),
        options=dict(radius=sizes),
        usual=dict(radius=1.0),
        scale="leaf",
        needs_params=True,
        checks=dict(splits=False),
    ),
    "project on simplex": Row(
        build=lambda total: fnn.optim.project(onto.simplex(total)),
        oracle=per_leaf(
            oracles.projected(
                lambda x, total: np.apply_along_axis(
                    oracles.simplex, -1, np.atleast_1d(x), total
                ).reshape(np.shape(x))
            )
        ),
        options=dict(total=st.sampled_from([0.5, 1.0, 10.0])),
        usual=dict(total=1.0),
        low=-3,
        high=3,
        scale="leaf",
        needs_params=True,
        checks=dict(splits=False, still=False),
    ),
}
