"""Averages of params, and lookahead."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import errors
from tests.optim import rows_averaging
from tests.optim.contract import contract
from tests.optim.rows_averaging import ROWS
from tests.optim.support import f32, same
from tests.support import asarray

test_formula, test_optax, test_contract, test_missing_params = contract(ROWS)


def iterates(tx, grads, params):
    step = jax.jit(tx.update)
    opt_state, path = tx.init(params), []
    for g in grads:
        u, opt_state = step(g, opt_state, params)
        params = fnn.optim.apply_updates(params, u)
        path.append(params)
    return path, opt_state


@pytest.mark.parametrize(
    ("options", "oracle"),
    [
        ({}, rows_averaging.mean_of_iterates),
        ({"start": 3}, partial(rows_averaging.mean_of_iterates, start=3)),
        ({"decay": 0.5}, partial(rows_averaging.ema_of_iterates, decay=0.5)),
        ({"decay": 0.0}, lambda ps: ps[-1]),
        ({"decay": 0.999}, partial(rows_averaging.ema_of_iterates, decay=0.999)),
    ],
)
def test_averages_of_params(options, oracle):
    tx = fnn.optim.chain(fnn.optim.sgd(0.3), fnn.optim.average_params(**options))
    params = {"a": f32(3), "b": f32(2, 2)}
    grads = [{"a": f32(3, seed=i), "b": f32(2, 2, seed=i)} for i in range(7)]
    for n in (1, 2, 7):
        path, opt_state = iterates(tx, grads[:n], params)
        average = fnn.optim.averaged_params(opt_state, params)
        for name in params:
            want = oracle([np.float64(p[name]) for p in path])
            np.testing.assert_allclose(average[name], want, rtol=2e-4, atol=1e-5)
    same(fnn.optim.averaged_params(tx.init(params), params), params)


def test_averages_of_narrow_params_are_of_what_they_became():
    """In float32, of iterates in bfloat16; XLA would take what they were before rounding."""
    tx, p = fnn.optim.average_params(), asarray([1.0, 3.0], jnp.bfloat16)
    step = asarray([1e-3, 2**-6], jnp.bfloat16)  # the first is rounded away in p + u
    path, opt_state = iterates(tx, [step] * 100, p)
    want = np.mean([np.float64(q) for q in path], 0)
    np.testing.assert_allclose(opt_state.average, want, rtol=1e-5)
    assert want[0] == 1
    assert fnn.optim.averaged_params(opt_state, p).dtype == jnp.bfloat16


def test_averages_are_found_in_any_state():
    params = {"a": jnp.ones(2), "b": jnp.zeros(2)}
    average = fnn.optim.average_params()
    tx = fnn.optim.named_chain(
        rate=fnn.optim.sgd(1.0), mean=fnn.optim.masked(average, {"a": True, "b": False})
    )
    _, opt_state = tx.update(params, tx.init(params), params)
    found = fnn.optim.averaged_params(opt_state, {"a": jnp.ones(2), "b": jnp.full(2, 7.0)})
    np.testing.assert_array_equal(found["a"], 0)
    np.testing.assert_array_equal(found["b"], 7)
    for wrong in (fnn.optim.sgd(0.1), fnn.optim.chain(average, average)):
        with pytest.raises(errors.ParamsError, match="one average_params or lookahead"):
            fnn.optim.averaged_params(wrong.init(params), params)
    with pytest.raises(errors.ParamsError, match="params like the average"):
        fnn.optim.averaged_params(average.init(params), {"a": jnp.ones(2)})


def test_lookahead_is_optaxs():
    optax = pytest.importorskip("optax")
    params, grads = f32(3), [f32(3, seed=i) for i in range(12)]
    ours = fnn.optim.lookahead(fnn.optim.adam(0.1), 4, 0.3)
    theirs = optax.lookahead(optax.adam(0.1), 4, 0.3)
    path, opt_state = iterates(ours, grads, params)
    both, state = optax.LookaheadParams.init_synced(params), None
    state = theirs.init(both)
    with jax.numpy_dtype_promotion("standard"):
        for g, p in zip(grads, path, strict=True):
            u, state = theirs.update(g, state, both)
            both = optax.apply_updates(both, u)
            np.testing.assert_allclose(p, both.fast, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        fnn.optim.averaged_params(opt_state, params), both.slow, rtol=1e-4, atol=1e-5
    )


def test_lookahead_takes_a_traced_period():
    p, grads = f32(3), [f32(3, seed=i) for i in range(5)]

    @jax.jit
    def end(period):
        tx = fnn.optim.lookahead(fnn.optim.sgd(0.1), period)
        q, state = p, tx.init(p)
        for g in grads:
            u, state = tx.update(g, state, q)
            q = q + u
        return q

    ends = [end(jnp.int32(k)) for k in (1, 2, 3)]
    for k, got in zip((1, 2, 3), ends, strict=True):
        path, _ = iterates(fnn.optim.lookahead(fnn.optim.sgd(0.1), k), grads, p)
        np.testing.assert_allclose(got, path[-1], rtol=1e-5, atol=1e-6)


o, sgd = fnn.optim, fnn.optim.sgd(0.1)


WRONG = {
    "ema": (lambda: o.ema(1.0), errors.OptionError),
    "average": (lambda: o.average_params(decay=1.5), errors.OptionError),
    "average start": (lambda: o.average_params(start=-1), errors.OptionError),
    "sync period": (lambda: o.lookahead(sgd, 0), errors.OptionError),
    "broken sync period": (lambda: o.lookahead(sgd, 2.5), errors.OptionError),
    "slow step size": (lambda: o.lookahead(sgd, 5, 1.5), errors.OptionError),
    "no transform to look ahead": (lambda: o.lookahead(o.sgd), errors.OptionError),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_refused(name):
    call, kind = WRONG[name]
    with pytest.raises(kind):
        call()
