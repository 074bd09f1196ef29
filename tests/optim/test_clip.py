"""Clipping, centring, NaN and noise."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import errors
from tests.optim import rows_clip
from tests.optim.contract import contract
from tests.optim.rows_clip import ROWS
from tests.optim.support import f32, first_update, same, steps_of
from tests.support import asarray

test_formula, test_optax, test_contract, test_missing_params = contract(ROWS)


def test_global_norm_does_not_lose_small_leaves():
    """optax's is in the dtype of the gradients: a sum of ones in bfloat16 stops at 256."""
    optax = pytest.importorskip("optax")
    leaves = [jnp.ones((), jnp.bfloat16)] * 400
    assert optax.tree.norm(leaves) == 16
    np.testing.assert_allclose(fnn.optim.global_norm(leaves), 20, rtol=1e-6)
    norm = jax.jit(fnn.optim.global_norm)
    half = jnp.full(2, 300.0, jnp.float16)
    assert jnp.isinf(optax.tree.norm(half))
    np.testing.assert_allclose(norm(half), 300 * 2**0.5, rtol=1e-6)
    for size in (1e-30, 1e30):  # whose squares are no float32
        got = norm({"a": jnp.full(2, size, jnp.float32)})
        np.testing.assert_allclose(got, size * 2**0.5, rtol=1e-6)
    with pytest.raises(errors.DtypeError):
        fnn.optim.global_norm({"a": jnp.arange(3)})


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_clipping_where_squares_are_no_floats(size):
    g = asarray([3 * size, 4 * size], jnp.float32)
    updates = first_update(fnn.optim.clip_by_global_norm(size), g)
    np.testing.assert_allclose(updates, [0.6 * size, 0.8 * size], rtol=1e-6)
    updates = first_update(fnn.optim.adaptive_grad_clip(size, eps=1.0), g, jnp.zeros(2))
    np.testing.assert_allclose(updates, [0.6 * size, 0.8 * size], rtol=1e-6)
    updates = first_update(fnn.optim.clip_by_block_rms(size), g)
    np.testing.assert_allclose(updates, g / 12.5**0.5, rtol=1e-6)


def test_clipping_at_norm_zero():
    """optax: 0 / 0 for a norm of zero cut to zero, and NaN as its derivative everywhere."""
    optax = pytest.importorskip("optax")
    zero = jnp.zeros(2)

    def through(build, bound, g):
        return jnp.sum(build(bound).update(g, build(bound).init(g), g + 1)[0])

    ours = (
        fnn.optim.clip_by_global_norm,
        fnn.optim.clip_by_block_rms,
        fnn.optim.adaptive_grad_clip,
    )
    for build in ours:
        for bound in (0.0, 1.0):
            fn = partial(through, build, bound)
            value, slope, change = jax.jit(
                lambda g, fn=fn: (fn(g), jax.grad(fn)(g), jax.jvp(fn, (g,), (g + 1,))[1])
            )(zero)
            assert value == 0
            assert jnp.isfinite(slope).all() and jnp.isfinite(change)
    assert jnp.isnan(through(optax.clip_by_global_norm, 0.0, zero))
    assert jnp.isnan(jax.grad(partial(through, optax.clip_by_global_norm, 1.0))(zero)).all()


def test_units_of_adaptive_clipping_are_outputs():
    """Of a kernel [W, I, O] too, whose first axis alone optax takes for a unit; and of [1, O]."""
    optax = pytest.importorskip("optax")
    w, g = f32(3, 4, 2), 10 * f32(3, 4, 2, seed=1)
    want = rows_clip.adaptive_grad_clip([np.float64(g)], np.float64(w), 0.1, 1e-3)[0]
    got = first_update(fnn.optim.adaptive_grad_clip(0.1), g, w)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    theirs = first_update(optax.adaptive_grad_clip(0.1), g, w)
    assert np.abs(theirs - want).max() > 0.01
    first = first_update(fnn.optim.adaptive_grad_clip(0.1, axis=0), g, w)
    np.testing.assert_allclose(first, theirs, rtol=1e-5)
    w, g = asarray([[1.0, 100.0]]), asarray([[5.0, 5.0]])
    got = first_update(fnn.optim.adaptive_grad_clip(0.1), g, w)
    np.testing.assert_allclose(got, [[0.1, 5.0]], rtol=1e-6)


def test_centralized_units_are_outputs():
    """Yong et al. take the mean over what one output is computed from; optax over the rest."""
    optax = pytest.importorskip("optax")
    g = f32(3, 4, 2)
    got, _ = fnn.optim.centralize().update(g, ())
    np.testing.assert_allclose(jnp.sum(got, (0, 1)), 0, atol=1e-5)
    other, _ = fnn.optim.centralize(output_axis=0).update(g, ())
    np.testing.assert_allclose(
        other, optax.centralize().update(g, optax.EmptyState())[0], atol=1e-6
    )
    assert np.abs(got - other).max() > 0.1
    for same_as in (jnp.ones(3), jnp.ones(())):
        assert (fnn.optim.centralize().update(same_as, ())[0] == 1).all()


def test_zero_nans_tells_where():
    tx = fnn.optim.zero_nans()
    grads = {"a": asarray([jnp.nan, jnp.inf]), "b": jnp.ones(1, jnp.bfloat16)}
    opt_state = tx.init(grads)
    assert not any(jax.tree.leaves(opt_state))
    updates, opt_state = jax.jit(tx.update)(grads, opt_state)
    same(updates, {"a": asarray([0, jnp.inf]), "b": grads["b"]})
    assert opt_state.found_nan["a"] and not opt_state.found_nan["b"]
    assert not any(jax.tree.leaves(tx.update(updates, opt_state)[1]))


def test_noise_has_the_papers_variance():
    """20,000 draws at each of 4 steps: the mean and the variance within five sigma."""
    n, eta, gamma = 20_000, 0.3, 0.55
    tx = fnn.optim.add_noise(eta, gamma, jax.random.key(3))
    grads = {"a": jnp.ones(n), "b": jnp.ones(n, jnp.bfloat16)}
    updates, _, opt_state = steps_of(tx, [grads] * 4, grads)
    draws = []
    for t, u in enumerate(updates):
        variance = eta / (1 + t) ** gamma
        noise = np.float64(u["a"]) - 1
        assert abs(noise.mean()) < 5 * (variance / n) ** 0.5
        assert abs(noise.var() / variance - 1) < 5 * (2 / n) ** 0.5
        assert abs((np.float64(u["b"]) - 1).var() / variance - 1) < 0.06
        draws += [noise / variance**0.5, (np.float64(u["b"]) - 1) / variance**0.5]
    correlations = np.corrcoef(draws) - np.eye(8)
    assert np.abs(correlations).max() < 5 / n**0.5  # between steps, and between leaves
    assert opt_state.count == 4
    again, _, _ = steps_of(tx, [grads] * 4, grads)
    same(again, updates)
    other, _, _ = steps_of(fnn.optim.add_noise(eta, gamma, jax.random.key(4)), [grads], grads)
    assert (other[0]["a"] != updates[0]["a"]).any()


o, sgd = fnn.optim, fnn.optim.sgd(0.1)


WRONG = {
    "clip": (lambda: o.clip(-1.0), errors.OptionError),
    "clip by norm": (lambda: o.clip_by_global_norm(-1.0), errors.OptionError),
    "clip by a vector": (lambda: o.clip_by_global_norm(jnp.ones(2)), errors.OptionError),
    "clip by rms": (lambda: o.clip_by_block_rms(float("nan")), errors.OptionError),
    "clipping": (lambda: o.adaptive_grad_clip(-0.1), errors.OptionError),
    "eps": (lambda: o.adaptive_grad_clip(0.1, eps=-1), errors.OptionError),
    "output axis": (lambda: o.centralize(1), errors.OptionError),
    "eta": (lambda: o.add_noise(-1.0, 0.5, jax.random.key(0)), errors.OptionError),
    "noise without key": (lambda: o.add_noise(1.0, 0.5, 3), errors.RandomKeyError),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_refused(name):
    call, kind = WRONG[name]
    with pytest.raises(kind):
        call()
