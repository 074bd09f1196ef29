"""Schedule-free learning against its paper and optax."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fnn import errors, optim
from tests.optim import rows_schedule_free
from tests.optim.contract import contract
from tests.optim.rows import run
from tests.optim.rows_schedule_free import ROWS
from tests.support import asarray, refused

test_formula, test_optax, test_contract, test_missing_params = contract(ROWS)


def test_schedule_free_reads_the_schedule_from_zero():
    """optax weighs the average by schedule(1) at the step that its base takes with schedule(0)."""
    optax = pytest.importorskip("optax")

    def rising(count):
        return 0.1 * (count + 1)

    gs, p = [1.0, -2.0, 0.5, 1.0], 0.3
    want = rows_schedule_free.schedule_free_sgd(gs, p, rising)
    ours = optim.schedule_free(optim.sgd(rising), rising)
    theirs = optax.contrib.schedule_free(optax.sgd(rising), rising)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        got, other = (np.asarray(run(tx, jnp.array(gs), jnp.array(p))) for tx in (ours, theirs))
    np.testing.assert_allclose(got, want, rtol=1e-12)
    assert np.abs(other - want).max() > 1e-3


def test_schedule_free_warms_up():
    """gamma_t = gamma min(1, t / T), and what a rate of 0 does not move does not count."""
    gs, p = [1.0, -2.0, 0.5, 1.0, 1.0], 0.3
    want = rows_schedule_free.schedule_free_adamw(
        gs, p, lambda count: 0.1 * min(1, (count + 1) / 3)
    )
    with jax.enable_x64(True):
        tx = optim.schedule_free_adamw(0.1, warmup_steps=3)
        np.testing.assert_allclose(run(tx, jnp.array(gs), jnp.array(p)), want, rtol=1e-10)
        late = optim.schedule_free_sgd(lambda count: jnp.where(count < 2, 0.0, 0.1))
        got = run(late, jnp.array(gs), jnp.array(p))
    np.testing.assert_allclose(
        got[2:], rows_schedule_free.schedule_free_sgd(gs[2:], p, 0.1), rtol=1e-10
    )
    assert not got[:2].any()


def test_optax_difference_schedule_free_without_interpolation():
    """b1 = 0 is plain SGD with an average beside it; optax divides by b1."""
    optax = pytest.importorskip("optax")
    gs, p = asarray([1.0, -2.0, 0.5]), jnp.array(0.3)
    got = run(optim.schedule_free_sgd(0.1, b1=0.0), gs, p)
    np.testing.assert_allclose(got, -0.1 * gs, rtol=1e-5)
    with jax.numpy_dtype_promotion("standard"):
        assert not np.isfinite(run(optax.contrib.schedule_free_sgd(0.1, b1=0.0), gs, p)).all()


def test_optax_difference_schedule_free_averages_in_bfloat16():
    """The average of all z by hand; optax recovers it from params that bfloat16 has rounded."""
    optax = pytest.importorskip("optax")
    p = jnp.zeros(1, "bfloat16")
    gs = asarray(np.random.default_rng(0).normal(size=(2000, 1)) - 0.05, "bfloat16")
    zs = -0.01 * np.cumsum(np.float64(gs), 0)
    want = zs.mean(0)

    def averaged(tx, read):
        def step(carry, g):
            params, opt_state = carry
            updates, opt_state = tx.update(g, opt_state, params)
            return ((params + updates).astype("bfloat16"), opt_state), None

        (params, opt_state), _ = jax.jit(partial(jax.lax.scan, step))((p, tx.init(p)), gs)
        return np.float64(read(opt_state, params))

    got = averaged(optim.schedule_free_sgd(0.01), optim.schedule_free_eval_params)
    np.testing.assert_allclose(got, want, rtol=0.01)
    with jax.numpy_dtype_promotion("standard"):
        theirs = averaged(
            optax.contrib.schedule_free_sgd(0.01), optax.contrib.schedule_free_eval_params
        )
    assert np.abs(theirs - want).max() > 0.05 * np.abs(want).max()


def test_schedule_free_params_are_found_in_any_state():
    p = {"w": jnp.ones(2, "bfloat16")}
    tx = optim.chain(optim.trace(0.0), optim.schedule_free_sgd(0.5))
    updates, opt_state = tx.update(p, tx.init(p), p)
    x = optim.schedule_free_eval_params({"opt": opt_state}, p)["w"]
    assert x.dtype == "bfloat16"
    np.testing.assert_allclose(np.float32(x), 0.5)
    for wrong in ((), (opt_state, opt_state)):
        with pytest.raises(errors.ParamsError, match="one state of schedule_free"):
            optim.schedule_free_eval_params(wrong, p)


WRONG = {
    "schedule_free base": (lambda: optim.schedule_free(3, 0.1), errors.OptionError),
    "schedule_free rate": (lambda: optim.schedule_free_sgd(-1.0), errors.OptionError),
    "schedule_free b1": (lambda: optim.schedule_free_sgd(b1=1.1), errors.OptionError),
    "schedule_free warm-up": (lambda: optim.schedule_free_sgd(warmup_steps=-1), errors.OptionError),
    "schedule_free power": (
        lambda: optim.schedule_free_adamw(weight_lr_power=-1.0),
        errors.OptionError,
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_inputs_are_refused_by_fnns_errors(name):
    refused(*WRONG[name])
