"""The contract of optimizers over a module's rows: its test file makes these tests of them."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fnn
from fnn.testing import check_optimizer
from tests.optim.rows import SHAPES, STEPS, assert_updates, draw, oracle_updates, run
from tests.support import asarray, but_full

HEAVY = (  # made of others, or of their rules: in `make test-full` alone
    "adabelief", "adadelta", "adafactor", "adagrad", "adam", "adamax", "adamaxw", "adamw",
    "adan", "adaptive_grad_clip", "add_decayed_weights by schedule", "add_noise of none",
    "amsgrad", "amsgrad, corrected first", "average_params", "centralize", "clip_by_block_rms",
    "ema as it is", "fromage", "lamb", "lars", "lbfgs directions", "momentum",
    "muon without nesterov", "nadam", "nadamw", "named_chain", "nesterov", "noisy_sgd of none",
    "novograd", "optimistic_adam", "optimistic_gradient_descent",
    "prodigy with bias correction", "project on box", "project on l2_ball",
    "project on simplex", "radam", "rmsprop", "rmsprop centered nesterov", "scale_by_adadelta",
    "scale_by_novograd", "scale_by_param_block_rms", "scale_by_rss", "scale_by_stddev",
    "scale_by_trust_ratio", "schedule_free_adamw", "schedule_free_sgd", "shampoo", "signum",
    "sm3", "yogi",
)  # fmt: skip


def contract(rows):
    """Four tests of every row: its float64 formula, optax, `check_optimizer`, missing params."""
    every_row = pytest.mark.parametrize("name", rows)

    @cache
    def compiled(name):
        """One program a row: its options are tracers."""
        build = rows[name].build
        return jax.jit(lambda options, grads, params: run(build(**options), grads, params))

    def updates(name, options, grads, params):
        options = jax.tree.map(jnp.float64, options)
        return jax.device_get(compiled(name)(options, *jax.tree.map(asarray, (grads, params))))

    @every_row
    @given(data=st.data(), seed=st.integers(0, 2**32 - 1))
    def test_50_steps_are_the_float64_formula(name, data, seed):
        row = rows[name]
        options = data.draw(st.fixed_dictionaries(row.options))
        grads, params = draw(seed, row.low, row.high)
        want = oracle_updates(row, grads, params, options)
        with jax.enable_x64(True):
            got = updates(name, options, grads, params)
        assert_updates(got, want, row.tolerance, row.scale)

    @pytest.mark.parametrize("name", [name for name, row in rows.items() if row.optax])
    def test_optax_agrees(name):
        row, rng = rows[name], np.random.default_rng(0)
        grads = {k: rng.normal(size=(STEPS, *shape)) for k, shape in SHAPES.items()}
        params = {k: rng.normal(size=shape) for k, shape in SHAPES.items()}
        grads["c"], params["c"] = np.zeros(STEPS), np.zeros(())  # optax's SM3 takes no scalars
        with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
            got = updates(name, row.usual, grads, params)
            theirs = row.optax(**row.usual)
            given = [{k: asarray(tree[k]) for k in "ab"} for tree in (grads, params)]
            want = jax.device_get(jax.jit(lambda g, p: run(theirs, g, p))(*given))
        assert_updates({k: got[k] for k in "ab"}, want, row.optax_tolerance, "leaf")

    @pytest.mark.parametrize("name", but_full(rows, HEAVY))
    def test_contract(name):
        check_optimizer(rows[name].build(**rows[name].usual), **rows[name].checks)

    @every_row
    def test_params_are_asked_for(name):
        row = rows[name]
        tx, grads = row.build(**row.usual), {"w": jnp.ones((2, 2))}
        if row.needs_params:
            with pytest.raises(fnn.FnnError, match="params"):
                tx.update(grads, tx.init(grads))
        else:
            jax.eval_shape(lambda g: tx.update(g, tx.init(g)), grads)

    return (
        test_50_steps_are_the_float64_formula,
        test_optax_agrees,
        test_contract,
        test_params_are_asked_for,
    )
