"""Skipped updates, master weights and stochastic rounding."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fnn
from fnn import errors
from fnn.testing import optimizers as kit
from tests.optim.contract import contract
from tests.optim.rows_safety import ROWS
from tests.optim.support import f32, same
from tests.support import asarray

test_formula, test_optax, test_contract, test_missing_params = contract(ROWS)


seeds = st.integers(0, 2**32 - 1)


@cache
def guarded():
    tx = fnn.optim.skip_nonfinite(fnn.optim.adam(0.1))
    return tx, jax.jit(tx.update)


@given(
    bad=st.lists(st.sampled_from(["", "", "nan", "inf", "-inf", "huge"]), max_size=12), seed=seeds
)
def test_bad_gradients_leave_no_trace(bad, seed):
    """The good steps are, bit by bit, those of a run without the bad ones; a huge one is bad since
    its square is infinite, and would stand in Adam's second moment for ever."""
    tx, step = guarded()
    rng = np.random.default_rng(seed)
    params = {"a": jnp.ones(3), "b": jnp.ones(())}
    state = clean = tx.init(params)
    in_a_row = 0
    for kind in bad:
        good = {"a": asarray(rng.normal(size=3), jnp.float32), "b": jnp.ones(())}
        if kind:
            wrong = good["a"].at[rng.integers(3)].set(1e30 if kind == "huge" else float(kind))
            updates, new = step(good | {"a": wrong}, state, params)
            same(new.inner_state, state.inner_state)
            assert all((u == 0).all() for u in jax.tree.leaves(updates))
            in_a_row += 1
        else:
            updates, new = step(good, state, params)
            wanted, clean = step(good, clean, params)
            same(updates, wanted)
            same(new.inner_state, clean.inner_state)
            in_a_row = 0
        state = new
        assert state.notfinite_count == in_a_row
        assert state.last_finite == (in_a_row == 0)
    assert state.total_notfinite == sum(map(bool, bad))


def test_optax_lets_nan_into_the_moments_for_ever():
    optax = pytest.importorskip("optax")
    params, bad = jnp.ones(2), asarray([jnp.nan, 1.0])
    ours = fnn.optim.skip_nonfinite(fnn.optim.adam(0.1))
    theirs = optax.apply_if_finite(optax.adam(0.1), max_consecutive_errors=2)
    last = {}
    with jax.numpy_dtype_promotion("standard"):
        for name, tx in (("fnn", ours), ("optax", theirs)):
            state = tx.init(params)
            for g in [params] + [bad] * 4 + [params] * 3:
                updates, state = jax.jit(tx.update)(g, state, params)
            last[name] = updates
    np.testing.assert_allclose(last["fnn"], -0.1, rtol=1e-3)
    assert jnp.isnan(last["optax"]).any()


def test_skipping_through_vmap_and_derivatives():
    tx = fnn.optim.skip_nonfinite(fnn.optim.adam(0.1))
    params = jnp.ones(2)

    def two(g):
        updates, state = tx.update(g, tx.init(params), params)
        return jnp.sum(tx.update(updates, state, params)[0])

    lanes = asarray([[1.0, 2.0], [jnp.nan, 1.0], [jnp.inf, 1.0]])
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(two)))(lanes)
    assert jnp.isfinite(values).all() and jnp.isfinite(slopes).all()
    states = jax.vmap(lambda g: tx.update(g, tx.init(params), params)[1].total_notfinite)(lanes)
    np.testing.assert_array_equal(states, [0, 1, 1])


def test_small_steps_of_bfloat16_params():
    """1e-3 is less than half the spacing at 1, so they never move; master weights and rounding by
    chance do. 50 steps of 1e-3 lead to 0.95."""
    optax = pytest.importorskip("optax")
    p, g = jnp.ones(512, jnp.bfloat16), jnp.ones(512, jnp.bfloat16)

    def end(tx, apply=fnn.optim.apply_updates):
        q, state, step = p, tx.init(p), jax.jit(tx.update)
        for _ in range(50):
            u, state = step(g, state, q)
            q = apply(q, u)
        assert q.dtype == jnp.bfloat16
        return np.float64(q)

    with jax.numpy_dtype_promotion("standard"):
        assert (end(optax.sgd(1e-3), optax.apply_updates) == 1).all()
        by_optax = end(fnn.optim.master_weights(fnn.optim.sgd(1e-3)), optax.apply_updates)
    assert (end(fnn.optim.sgd(1e-3)) == 1).all()
    mastered = end(fnn.optim.master_weights(fnn.optim.sgd(1e-3)))
    np.testing.assert_array_equal(mastered, float(jnp.bfloat16(0.95)))
    np.testing.assert_array_equal(by_optax, mastered)
    rounded = end(fnn.optim.stochastic_rounding(fnn.optim.sgd(1e-3), jax.random.key(0)))
    # a step moves by 1 / 256 with probability 0.256: the deviation of 512 means of 50 steps
    sigma = (50 * 0.256 * 0.744) ** 0.5 / 256 / 512**0.5
    assert abs(rounded.mean() - 0.95) < 5 * sigma


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_params_are_the_rounded_masters(dtype):
    tx = fnn.optim.master_weights(fnn.optim.adam(0.05))
    rng = np.random.default_rng(0)
    p = {"narrow": asarray(rng.normal(size=200) * 0.1, dtype), "wide": f32(3)}
    grads = [{"narrow": asarray(rng.normal(size=200), dtype), "wide": f32(3, seed=i)}
             for i in range(20)]  # fmt: skip
    alone = fnn.optim.adam(0.05)
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), p)
    state, state_alone = tx.init(p), alone.init(wide)
    assert state.master["wide"] is None
    for g in grads:
        u, state = jax.jit(tx.update)(g, state, p)
        p = fnn.optim.apply_updates(p, u)
        g = jax.tree.map(lambda a: a.astype(jnp.float32), g)
        u, state_alone = jax.jit(alone.update)(g, state_alone, wide)
        wide = fnn.optim.apply_updates(wide, u)
        np.testing.assert_array_equal(p["narrow"], state.master["narrow"].astype(dtype))
        np.testing.assert_allclose(state.master["narrow"], wide["narrow"], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(p["wide"], wide["wide"], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounding_by_chance_is_unbiased(dtype):
    """100,000 draws for each of six sums: only their two neighbours, and in the right shares."""
    n = 100_000
    starts = [1.0, 1.0, -3.0, 0.1, 0.0, 1000.0]
    by = [1e-3, -2e-4, 1e-3, 1e-5, 1e-3, 0.1]
    p = jnp.broadcast_to(asarray(starts, dtype), (n, 6))
    tx = fnn.optim.stochastic_rounding(
        fnn.optim.stateless(lambda p, g: jnp.broadcast_to(asarray(by, g.dtype), g.shape)),
        jax.random.key(1),
    )
    u, state = jax.jit(tx.update)(p, tx.init(p), p)
    assert (jax.random.key_data(state.key) != jax.random.key_data(jax.random.key(1))).any()
    after = fnn.optim.apply_updates(p, u)
    assert after.dtype == dtype
    after = np.float64(after)
    for i, step in enumerate(by):
        exact = float(p[0, i]) + step
        values = np.unique(after[:, i])
        assert len(values) == 2 and values[0] < exact < values[1]
        between = jnp.nextafter(asarray(values[0], dtype), asarray(jnp.inf, dtype))
        assert float(between) == values[1]
        assert abs(after[:, i].mean() - exact) < 5 * after[:, i].std() / n**0.5 + 1e-7 * abs(exact)


def test_rounding_by_chance_leaves_what_needs_none():
    p = {"narrow": asarray([1.0, jnp.inf, jnp.nan], jnp.bfloat16), "wide": f32(3)}
    g = {"narrow": asarray([0.5, 1.0, 1.0], jnp.bfloat16), "wide": f32(3)}
    tx = fnn.optim.stochastic_rounding(fnn.optim.sgd(1.0), jax.random.key(0))
    u, _ = tx.update(g, tx.init(p), p)
    after = fnn.optim.apply_updates(p, u)
    np.testing.assert_array_equal(np.float32(after["narrow"]), [0.5, np.inf, np.nan])
    np.testing.assert_array_equal(u["wide"], -g["wide"])
    slope = jax.grad(
        lambda g: jnp.sum(tx.update({**p, "narrow": g}, tx.init(p), p)[0]["narrow"][0])
    )
    np.testing.assert_array_equal(np.float32(slope(g["narrow"])), [-1, 0, 0])


@pytest.mark.parametrize("name", ["master_weights", "stochastic_rounding"])
def test_wrappers_of_narrow_params_hold_the_contract(name):
    """All of check_optimizer but the dtype of updates, which is float32 for narrow params."""
    sgd = fnn.optim.sgd(0.1, momentum=0.9)
    tx = {
        "master_weights": fnn.optim.master_weights(sgd),
        "stochastic_rounding": fnn.optim.stochastic_rounding(sgd, jax.random.key(0)),
    }[name]
    valley = kit._valley()
    kit.check_empty(tx)
    run = jax.jit(partial(kit._run, tx))
    step = jax.jit(lambda state, params: kit._update(tx, state, params, valley))
    kit.check_runs(tx, valley, step, run)
    kit.check_lanes(tx, valley, run)
    kit.check_host(tx, valley, step)
    kit.check_finite_derivatives(tx, valley, True)
    kit.check_still(tx)
    narrow = {"a": jnp.ones(3, jnp.bfloat16), "b": jnp.ones((), jnp.float32)}
    state = tx.init(narrow)
    u, after = jax.eval_shape(tx.update, narrow, state, narrow)
    assert [a.dtype for a in jax.tree.leaves(u)] == [jnp.float32] * 2
    assert jax.tree.map(jnp.result_type, after) == jax.tree.map(jnp.result_type, state)
    with pytest.raises(errors.ParamsError, match="params, which"):
        tx.update(narrow, state)


def test_value_fn_of_narrow_params():
    seen = []

    def update(grads, state, params=None, **extra):
        seen.append((extra["value_fn"](params).dtype, extra["grad"].dtype, params.dtype))
        return grads, state

    tx = fnn.optim.master_weights(fnn.optim.Transform(lambda p: (), update))
    p = jnp.ones(2, jnp.bfloat16)
    tx.update(p, tx.init(p), p, grad=p, value_fn=jnp.sum)
    assert seen == [(jnp.bfloat16, jnp.float32, jnp.float32)]


o, sgd = fnn.optim, fnn.optim.sgd(0.1)


def test_members_are_skipped_one_by_one():
    net = fnn.ensemble(fnn.serial(fnn.batch_norm(), fnn.dense(2)), 2, in_axes=0)
    tx = fnn.optim.each_member(fnn.optim.skip_nonfinite(fnn.optim.adam(0.1)))
    ts = fnn.train.init(net, tx, jax.random.key(0), (2, 4, 3))
    loss = fnn.train.supervised(net, fnn.losses.squared_error, names=("x", "y"))
    step = fnn.train.step(loss, tx)
    x = jax.random.normal(jax.random.key(1), (2, 4, 3)).at[1].set(jnp.inf)
    after, _ = step(ts, {"x": x, "y": jnp.ones((2, 4, 2))})
    for i, moved in ((0, True), (1, False)):
        pairs = zip(*(jax.tree.leaves((s.params, s.state)) for s in (ts, after)), strict=True)
        assert any(bool((a[i] != b[i]).any()) for a, b in pairs) == moved, i
    np.testing.assert_array_equal(after.opt_state.total_notfinite, [0, 1])


WRONG = {
    "no transform to guard": (lambda: o.skip_nonfinite(3), errors.OptionError),
    "no transform to master": (lambda: o.master_weights(None), errors.OptionError),
    "no transform to round": (
        lambda: o.stochastic_rounding(None, jax.random.key(0)),
        errors.OptionError,
    ),
    "no key to round": (lambda: o.stochastic_rounding(sgd, None), errors.RandomKeyError),
    "another's state": (lambda: o.skip_nonfinite(sgd).update(jnp.ones(2), ()), errors.ParamsError),
    "integers": (
        lambda: o.skip_nonfinite(sgd).update(jnp.arange(2), o.skip_nonfinite(sgd).init(0.0)),
        errors.DtypeError,
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_refused(name):
    call, kind = WRONG[name]
    with pytest.raises(kind):
        call()
