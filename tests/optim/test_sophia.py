"""Sophia's estimate of the Hessian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fnn import errors, optim
from fnn.optim.sophia import hutchinson
from tests.optim.contract import contract
from tests.optim.rows_sophia import ROWS
from tests.optim.support import check_runs, minimized
from tests.support import asarray, refused

test_formula, test_optax, test_contract, test_missing_params = contract(ROWS)


def test_sophia_is_newtons_method_on_a_diagonal_quadratic():
    """Signs give a diagonal Hessian exactly; with b1 = b2 = 0 and gamma = 1 one step arrives."""
    w, target = asarray([1.0, 10.0, 100.0]), asarray([0.5, -0.5, 0.1])
    tx = optim.sophia(1.0, b1=0.0, b2=0.0, gamma=1.0, weight_decay=0.0, key=jax.random.key(0))
    f = lambda x: jnp.sum(w * (x - target) ** 2) / 2  # noqa: E731
    np.testing.assert_allclose(minimized(tx, f, jnp.zeros(3), 1)[0], target, rtol=1e-5)


def test_sophias_estimate_is_unbiased():
    """The mean of 20,000 estimates is the diagonal, within five standard errors; drawn anew at
    every refresh."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(4, 4))
    a = a + a.T

    def full(x):
        v = jnp.concatenate([x["u"], x["v"]])
        return v @ (asarray(a, "float32") @ v) / 2

    x = {"u": jnp.ones(2), "v": jnp.ones(2)}
    keys = jax.random.split(jax.random.key(0), 20_000)
    draws = jax.jit(jax.vmap(lambda key: hutchinson(full, x, key)))(keys)
    draws = np.concatenate([draws["u"], draws["v"]], 1)
    error = np.abs(draws.mean(0) - np.diag(a)) / (draws.std(0) / np.sqrt(len(draws)))
    assert error.max() < 5


def test_sophia_draws_anew_at_every_refresh():
    tx = optim.scale_by_sophia(b2=0.0, update_interval=1, key=jax.random.key(0))
    x, hs = jnp.ones(4), []
    state = tx.init(x)
    for _ in range(4):
        _, state = tx.update(x, state, x, value_fn=lambda x: jnp.sum(x) ** 2)
        hs.append(tuple(np.asarray(state.nu)))
    assert len(set(hs)) > 1


def test_sophia_refreshes_at_every_kth_update():
    """The Hessian that is passed is read at updates 1, k + 1, 2k + 1 alone."""
    gs, hs = [1.0] * 7, [2.0, 9.0, 9.0, 4.0, 9.0, 9.0, 8.0]
    it = iter(hs)
    tx = optim.scale_by_sophia(b1=0.0, b2=0.5, gamma=1.0, update_interval=3)
    opt_state, got = tx.init(jnp.zeros(())), []
    for g, h in zip(gs, it, strict=True):
        u, opt_state = tx.update(jnp.float32(g), opt_state, hessian=jnp.float32(h))
        got.append(float(u))
    h1, h2, h3 = 1.0, 2.5, 5.25  # 0.5 h + 0.5 hhat
    want = np.minimum(1, 1 / np.array([h1, h1, h1, h2, h2, h2, h3]))
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_optax_difference_sophia_uses_the_newest_hessian():
    """optax divides by the average from before the estimate: zero at first, so a full sign step;
    and it corrects the momentum for its start, which the paper does not."""
    optax = pytest.importorskip("optax")
    p = asarray([3.0])
    f = lambda p: 50.0 * jnp.sum(p**2)  # noqa: E731
    options = dict(b1=0.0, b2=0.0, gamma=1.0, weight_decay=0.0)
    ours = optim.sophia(1.0, **options, key=jax.random.key(0))
    theirs = optax.contrib.sophia(1.0, **options)
    g = jax.grad(f)(p)
    with jax.numpy_dtype_promotion("standard"):
        u, _ = ours.update(g / 6, ours.init(p), p, value_fn=f)
        v, _ = theirs.update(g / 6, theirs.init(p), p, obj_fn=f)
    np.testing.assert_allclose(u, [-0.5], rtol=1e-6)  # 50 / 100
    np.testing.assert_allclose(v, [-1.0], rtol=1e-6)


def test_sophia_with_a_key_holds_the_contract_of_optimizers():
    """The row with the Hessian passed has the rest; names and splits change the draws."""
    check_runs(optim.sophia(0.1, key=jax.random.key(0)))


def total(p):
    return jnp.sum(p["w"])


def updated(tx, **extra):
    p = {"w": jnp.ones(3)}
    return tx.update(p, tx.init(p), p, **extra)


WRONG = {
    "sophia gamma": (lambda: optim.sophia(0.1, gamma=-1.0), errors.OptionError),
    "sophia key": (lambda: optim.sophia(0.1, key=3), errors.RandomKeyError),
    "sophia without a key": (
        lambda: updated(optim.sophia(0.1), value_fn=total),
        errors.RandomKeyError,
    ),
    "sophia with neither": (lambda: updated(optim.sophia(0.1)), errors.InputError),
    "sophia's hessian": (
        lambda: updated(optim.sophia(0.1), hessian=jnp.ones(3)),
        errors.ParamsError,
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_inputs_are_refused_by_fnns_errors(name):
    refused(*WRONG[name])
