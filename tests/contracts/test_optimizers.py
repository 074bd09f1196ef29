"""One contract over all optimizers: every row against its float64 oracle, optax and the kit."""

import os
import pathlib
import re
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fnn
from fnn.testing import check_optimizer
from tests.optim.rows import assert_updates, draw, oracle_updates, run
from tests.optim.table import ROWS

every_row = pytest.mark.parametrize("name", ROWS)


@cache
def compiled(name):
    """One program a row: its options are tracers."""
    build = ROWS[name].build
    return jax.jit(lambda options, grads, params: run(build(**options), grads, params))


@every_row
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_50_steps_are_the_float64_formula(name, data, seed):
    row = ROWS[name]
    options = data.draw(st.fixed_dictionaries(row.options))
    grads, params = draw(seed, row.low, row.high)
    want = oracle_updates(row, grads, params, options)
    with jax.enable_x64(True):
        traced = jax.tree.map(jnp.float64, options)
        got = compiled(name)(traced, *jax.tree.map(jnp.asarray, (grads, params)))
        got = jax.device_get(got)
    assert_updates(got, want, row.tolerance, row.scale)


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.optax])
def test_optax_agrees(name):
    row = ROWS[name]
    rng = np.random.default_rng(0)
    grads = {"a": rng.normal(size=(20, 4)), "b": rng.normal(size=(20, 2, 3))}
    params = {"a": rng.normal(size=4), "b": rng.normal(size=(2, 3))}
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        grads, params = jax.tree.map(jnp.asarray, (grads, params))
        both = [build(**row.usual) for build in (row.build, row.optax)]
        got, want = (jax.device_get(jax.jit(lambda tx=tx: run(tx, grads, params))()) for tx in both)
    assert_updates(got, want, row.optax_tolerance, "leaf")


HEAVY = (  # made of others, or of their rules: in `make test-full` alone
    "adadelta", "adagrad", "adam", "adamaxw", "add_decayed_weights by schedule",
    "amsgrad, corrected first", "clip_by_block_rms", "ema as it is", "fromage", "lamb", "lars",
    "lbfgs directions", "momentum", "muon without nesterov", "nadamw", "named_chain",
    "noisy_sgd of none", "novograd", "optimistic_adam", "prodigy with bias correction",
    "project on box", "project on l2_ball", "rmsprop centered nesterov", "scale_by_param_block_rms",
    "scale_by_stddev", "scale_by_trust_ratio", "schedule_free_sgd", "signum", "sm3",
)  # fmt: skip


@every_row
def test_contract(name):
    if name in HEAVY and "FNN_QUICK" in os.environ:
        pytest.skip("in make test-full")
    row = ROWS[name]
    check_optimizer(row.build(**row.usual), **row.checks)


@every_row
def test_params_are_asked_for(name):
    row = ROWS[name]
    tx, grads = row.build(**row.usual), {"w": jnp.ones((2, 2))}
    if row.needs_params:
        with pytest.raises(fnn.FnnError, match="params"):
            tx.update(grads, tx.init(grads))
    else:
        tx.update(grads, tx.init(grads))


def test_every_difference_from_optax_is_run():
    """Each row of the table names a test that stands in this folder."""
    table = (pathlib.Path(fnn.__file__).parent / "optim/DIFFERENCES.md").read_text()
    heads = ("| method", "| ---")
    lines = table.split("## Arguments")[0].splitlines()
    rows = [line for line in lines if line.startswith("| ") and not line.startswith(heads)]
    named = [re.fullmatch(r".*\| `(test_\w+)` \|", row) for row in rows]
    assert len(rows) > 30 and all(named)
    tests = "".join(f.read_text() for f in pathlib.Path(__file__).parents[1].rglob("test_*.py"))
    missing = [m.group(1) for m in named if m and f"def {m.group(1)}(" not in tests]
    assert not missing
