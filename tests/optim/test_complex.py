"""Complex params under every optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose

import fnn
from fnn import optim
from tests.optim.rows import assert_updates, draw, oracle_updates, run
from tests.optim.table import ROWS
from tests.support import asarray, but_full

# their oracles compute with real numbers alone; optax's stands for some of them below
OTHERWISE = (
    "scale_by_rms",
    "scale_by_stddev",
    "rmsprop",
    "project",
    "clip",
    "skip_nonfinite",
    "scale_by_factored_rms",
    "adafactor",
    "scale_by_sm3",
    "sm3",
    "lbfgs",
    "named_chain",
    "adaptive_grad_clip",
    "centralize",
)


SAMPLE = ("adamw", "radam", "yogi", "lion", "lamb", "fromage", "adadelta", "clip_by_global_norm")


takers = [name for name, row in ROWS.items() if row.complex and not name.startswith(OTHERWISE)]


def turned(tree, rng):
    """Each value times a random phase."""
    return {k: a * np.exp(2j * np.pi * rng.random(np.shape(a))) for k, a in tree.items()}


@pytest.mark.parametrize("name", but_full(takers, set(takers) - set(SAMPLE)))
def test_50_complex_steps_are_the_formula(name):
    row = ROWS[name]
    rng = np.random.default_rng(1)
    grads, params = (turned(tree, rng) for tree in draw(0, -3, 3))
    want = oracle_updates(row, grads, params, row.usual)
    with jax.enable_x64(True):
        given = jax.tree.map(asarray, (grads, params))
        got = jax.device_get(jax.jit(lambda g, p: run(row.build(**row.usual), g, p))(*given))
    assert all(u.dtype == np.complex128 for u in got.values())
    assert_updates(got, want, max(row.tolerance, 1e-11), "leaf")


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if not row.complex])
def test_what_is_not_for_complex_params_says_so(name):
    row, z = ROWS[name], {"w": jnp.ones((2, 2), jnp.complex64)}
    with pytest.raises(fnn.FnnError, match=r"real .*w.*complex64|of real numbers"):
        tx = row.build(**row.usual)
        tx.update(z, tx.init(z), z, value_fn=lambda z: jnp.sum(jnp.abs(z["w"])))


@pytest.mark.parametrize("name", ["adam", "adamw", "nadam", "radam", "lion", "rmsprop", "lamb"])
def test_a_zero_complex_gradient(name):
    """A zero update, and a finite derivative through it."""
    z = jnp.zeros((8, 2), jnp.complex64)
    decay = {} if name not in ("adamw", "lion") else {"weight_decay": 0.0}
    tx = getattr(optim, name)(0.1, **decay)

    def total(g):
        return jnp.sum(jnp.abs(run(tx, {"w": g}, {"w": g[0] + 1})["w"] + 1))

    updates, slope = jax.jit(
        lambda z: (run(tx, {"w": z}, {"w": z[0] + 1})["w"], jax.grad(total)(z))
    )(z)
    assert (updates == 0).all() and np.isfinite(slope).all()


def test_second_moments_of_complex_params_are_real():
    z = jnp.ones(3, jnp.complex64)
    for tx in (optim.scale_by_adam(), optim.scale_by_amsgrad(), optim.scale_by_yogi()):
        _, state = tx.update(z, tx.init(z))
        assert state.mu.dtype == jnp.complex64 and state.nu.dtype == jnp.float32
    mixed = {"a": z, "b": jnp.ones(2)}
    updates, _ = optim.adam(0.1).update(mixed, optim.adam(0.1).init(mixed))
    assert updates["a"].dtype == jnp.complex64 and updates["b"].dtype == jnp.float32


def test_real_and_complex_must_agree():
    z, x, tx = jnp.ones(3, jnp.complex64), jnp.ones(3), optim.adam(0.1)
    with pytest.raises(fnn.FnnError, match="complex"):
        tx.update(x, tx.init(z), z)
    with pytest.raises(fnn.FnnError, match="complex"):
        tx.update(z, tx.init(x), x)


def test_complex_params_learn():
    """A step of the library descends: jax.grad gives the conjugate of the way up."""
    target = asarray([1 + 2j, -1j], jnp.complex64)

    def loss_fn(params, state, batch, key):
        return jnp.sum(jnp.abs(params - target) ** 2), (state, {})

    for tx in (optim.sgd(0.1), optim.adam(0.1), optim.lbfgs()):
        params = jnp.zeros(2, jnp.complex64)
        ts = fnn.train.TrainState(jnp.int32(0), params, {}, tx.init(params), jax.random.key(0))
        step = fnn.train.step(loss_fn, tx)
        for _ in range(200):
            ts, _ = step(ts, ())
        assert_allclose(ts.params, target, atol=1e-2)


def test_optax_agrees_on_complex_params():
    rng = np.random.default_rng(0)
    grads = {"w": rng.normal(size=(20, 3)) + 1j * rng.normal(size=(20, 3))}
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        g = jax.tree.map(asarray, grads)
        p = {"w": g["w"][0]}
        for name in ("adam", "nadam", "adagrad", "novograd", "adamax", "adafactor"):
            options = {} if name != "novograd" else {"eps": 1e-6}
            got, want = (run(getattr(o, name)(0.1, **options), g, p)["w"] for o in (optim, optax))
            assert_allclose(got, want, rtol=1e-7, err_msg=name)  # adafactor: float32 decay
