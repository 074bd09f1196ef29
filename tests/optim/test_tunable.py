"""Hyperparameters in the state: bitwise the plain optimizer, read, replaced, scheduled, stacked."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.core import checks
from fnn.core.origins import builder
from fnn.optim import adam, adamw, chain, scale_by_adam, schedules, sgd, trace, tunable
from fnn.testing import check_optimizer
from tests.support import asarray, but_full

BUILDERS = {  # name: (builder, arguments)
    "sgd": (sgd, dict(learning_rate=0.1)),
    "nesterov": (sgd, dict(learning_rate=0.1, momentum=0.9, nesterov=True)),
    "adam": (adam, dict(learning_rate=1e-3, b2=0.98)),
    "adamw": (adamw, dict(learning_rate=1e-3, weight_decay=0.1)),
    "plateau": (fnn.optim.reduce_on_plateau, dict(factor=0.3, patience=1)),
}
every_builder = pytest.mark.parametrize("name", BUILDERS)


def tree(dtype="float32", seed=0, lead=()):
    rng = np.random.default_rng(seed)
    shapes = {"a": (3,), "b": {"c": (2, 2)}}
    return jax.tree.map(
        lambda s: asarray(rng.normal(size=(*lead, *s)), dtype), shapes, is_leaf=_is_shape
    )


def _is_shape(x):
    return isinstance(x, tuple)


def steps(tx, update, dtype, n=4):
    """All updates and the last state of n steps at one loss."""
    params = tree(dtype)
    opt_state, found = tx.init(params), []
    for i in range(n):
        grads = jax.tree.map(lambda p, i=i: p * (i + 1) ** 2, tree(dtype, 1))
        updates, opt_state = update(grads, opt_state, params, value=jnp.float32(1))
        found.append(updates)
    return found, opt_state


def assert_bitwise(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert g.dtype == w.dtype
        if jax.default_backend() == "cpu":
            assert np.asarray(g).tobytes() == np.asarray(w).tobytes()
        else:  # where a number that is compiled in is multiplied in another order
            wide = [np.asarray(a, "float64") for a in (g, w)]
            np.testing.assert_allclose(*wide, rtol=max(1e-6, float(jnp.finfo(g.dtype).eps)))


@pytest.mark.bits
@every_builder
@pytest.mark.parametrize("dtype", but_full(["bfloat16", "float32", "float64"], ["float64"]))
def test_updates_are_bitwise_those_of_the_plain_form(name, dtype):
    build, arguments = BUILDERS[name]
    with jax.enable_x64(dtype == "float64"):
        plain, tuned = build(**arguments), tunable(build)(**arguments)
        want, inner = steps(plain, plain.update, dtype)
        got, opt_state = steps(tuned, tuned.update, dtype)
        assert_bitwise(got, want)
        assert_bitwise(opt_state.inner_state, inner)
        want, inner = steps(plain, jax.jit(plain.update), dtype)
        got, opt_state = steps(tuned, jax.jit(tuned.update), dtype)
        assert_bitwise(got, want)
        assert_bitwise(opt_state.inner_state, inner)
        assert opt_state.count == 4
        for value in opt_state.hyperparams.values():
            assert value.dtype == ("float64" if dtype == "float64" else "float32")
            assert value.shape == () and not value.weak_type


def test_every_number_has_a_name():
    opt_state = tunable(adamw)(1e-3, b1=jnp.bfloat16(0.5)).init(tree())
    assert set(opt_state.hyperparams) >= {"learning_rate", "b1", "b2", "eps", "weight_decay"}
    assert opt_state.hyperparams["b2"] == np.float32(0.999)
    assert opt_state.hyperparams["b1"] == 0.5
    assert "mask" not in opt_state.hyperparams
    scheduled = tunable(adam)(0.1, b1=schedules.constant(0.8)).init(tree()).hyperparams
    assert scheduled["b1"] == np.float32(0.8) and scheduled["learning_rate"] == np.float32(0.1)
    assert set(tunable(sgd)(1).init(tree()).hyperparams) == {"learning_rate"}
    assert set(tunable(sgd)(1, 0.9).init(tree()).hyperparams) == {"learning_rate", "momentum"}


def test_a_value_is_replaced_without_tracing_again():
    traces = []
    tx, params, grads = tunable(adam)(1e-3), tree(), tree(seed=1)

    @jax.jit
    def update(grads, opt_state):
        traces.append(None)
        return tx.update(grads, opt_state)

    opt_state = tx.init(params)
    for rate in (1e-3, 0.1, 0.5):
        hyperparams = {**opt_state.hyperparams, "learning_rate": jnp.float32(rate)}
        updates, opt_state = update(grads, opt_state._replace(hyperparams=hyperparams))
        assert opt_state.hyperparams["learning_rate"] == np.float32(rate)
        # a constant gradient: Adam moves by the learning rate
        for u, g in zip(jax.tree.leaves(updates), jax.tree.leaves(grads), strict=True):
            np.testing.assert_allclose(u, -rate * np.sign(g), rtol=1e-4)
    assert len(traces) == 1
    update(grads, opt_state._replace(hyperparams={**opt_state.hyperparams, "b1": 0.5}))
    assert opt_state.hyperparams["b1"] == np.float32(0.9)


def test_a_population_of_rates_in_one_program():
    rates = asarray([0.0, 0.01, 1.0])
    tx, params, grads = tunable(sgd)(0.1, 0.9), tree(), tree(seed=1)
    population = jax.vmap(lambda rate: tunable(sgd)(rate, 0.9).init(params))(rates)
    update = jax.vmap(tx.update, (None, 0))
    for _ in range(2):
        updates, population = update(grads, population)
    for lane, rate in enumerate(rates):
        alone, opt_state = sgd(float(rate), 0.9), sgd(float(rate), 0.9).init(params)
        for _ in range(2):
            want, opt_state = alone.update(grads, opt_state)
        for u, w in zip(jax.tree.leaves(updates), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(u[lane], w, rtol=1e-6)


def test_schedules_are_functions_of_the_count():
    rate, momentum = schedules.linear(1.0, 0.0, 4), schedules.piecewise_constant([0.0, 0.5], [2])
    tx = tunable(sgd)(rate, momentum=momentum)
    g = jnp.ones(())
    opt_state, velocity = tx.init(g), 0.0
    assert opt_state.hyperparams["learning_rate"] == 1
    update = jax.jit(tx.update)
    for count in range(5):
        updates, opt_state = update(g, opt_state)
        velocity = (0.0 if count < 2 else 0.5) * velocity + 1
        np.testing.assert_allclose(updates, -(1 - count / 4) * velocity, rtol=1e-6)
        np.testing.assert_allclose(opt_state.hyperparams["learning_rate"], 1 - count / 4)
    # a scheduled value is written anew, whatever stands there
    ruined = opt_state._replace(hyperparams={"learning_rate": 9.0, "momentum": 9.0})
    assert update(g, ruined)[1].hyperparams["learning_rate"] == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_scheduled_rate_is_bitwise_the_plain_one(dtype):
    schedule = schedules.warmup_cosine(0.0, 0.1, 2, 5)
    plain, tuned = adam(schedule), tunable(adam)(schedule)
    want, _ = steps(plain, plain.update, dtype)
    got, _ = steps(tuned, tuned.update, dtype)
    assert_bitwise(got, want)


def test_a_donated_state_takes_no_argument_with_it():
    rate, g = jnp.float32(0.5), jnp.ones(2)
    tx = tunable(sgd)(rate, momentum=rate)
    update = jax.jit(tx.update, donate_argnums=1)
    for _ in range(2):
        updates, _ = update(g, tx.init(g))
    assert rate == 0.5 and updates[0] == -0.5


def test_gradients_by_the_state_are_those_by_the_arguments():
    params, grads = tree(), tree(seed=1)

    def total(tx, opt_state):
        def step(opt_state, i):  # gradients that change: of equal ones Adam's b1 and b2 cancel
            g = jax.tree.map(lambda g: g + i.astype(g.dtype), grads)
            updates, opt_state = tx.update(g, opt_state, params)
            return opt_state, sum(jnp.sum(u**2) for u in jax.tree.leaves(updates))

        return jax.lax.scan(step, opt_state, jnp.arange(3))[1][-1]

    def plain(options):
        return total(adam(**options), adam(**options).init(params))

    options = dict(learning_rate=0.1, b1=0.8, b2=0.9, eps=1e-2)
    want = jax.jit(jax.grad(plain))(jax.tree.map(jnp.float32, options))
    tx = tunable(adam)(**options)
    opt_state = tx.init(params)

    def tuned(hyperparams):
        return total(tx, opt_state._replace(hyperparams=hyperparams))

    got = jax.jit(jax.grad(tuned))(opt_state.hyperparams)
    for name in options:
        assert want[name] != 0
        np.testing.assert_allclose(got[name], want[name], rtol=1e-5)


def test_what_is_no_number_stays():
    params = {"kernel": jnp.ones(2), "bias": jnp.ones(2)}
    grads = jax.tree.map(jnp.zeros_like, params)

    def kernels(params):
        return {name: name == "kernel" for name in params}

    for mask in (kernels, {"kernel": True, "bias": False}):
        tx = tunable(adamw)(0.1, weight_decay=0.5, mask=mask)
        opt_state = tx.init(params)
        assert "mask" not in opt_state.hyperparams
        updates, _ = tx.update(grads, opt_state, params)
        np.testing.assert_allclose(updates["kernel"], -0.05)
        np.testing.assert_allclose(updates["bias"], 0)


@builder
def powers(learning_rate, n: int, *, dtype=jnp.float32, kind="a"):
    """learning_rate g^n, with n a Python int that shapes the program."""
    n = checks.count("n", n)
    checks.floating("dtype", dtype)

    def rule(g):
        for _ in range(n - 1):
            g = g * g
        return -learning_rate * g

    return fnn.optim.Transform(
        lambda params: (), lambda g, s, p=None, **extra: (jax.tree.map(rule, g), s)
    )


def test_numbers_that_shape_the_program_stay():
    tx = tunable(powers)(0.5, n=2)
    opt_state = tx.init(jnp.ones(1))
    assert set(opt_state.hyperparams) == {"learning_rate"}
    assert jax.jit(tx.update)(jnp.full(1, 3.0), opt_state)[0] == -4.5
    tx = tunable(powers, static="learning_rate")(0.5, 2)
    assert not tx.init(jnp.ones(1)).hyperparams
    named = tunable(adam, static=("b1", "b2"))(schedules.constant(0.1)).init(jnp.ones(1))
    assert set(named.hyperparams) == set(tunable(adam)(0.1).init(jnp.ones(1)).hyperparams) - {
        "b1",
        "b2",
    }


def test_builders_of_ones_own_and_of_optax():
    optax = pytest.importorskip("optax")

    def clipped(learning_rate, decay=0.9):
        return chain(optax.clip(1.0), trace(decay), fnn.optim.scale_by_learning_rate(learning_rate))

    tx, g = tunable(clipped)(learning_rate=0.5), jnp.full(2, 10.0)
    opt_state = tx.init(g)
    assert set(opt_state.hyperparams) == {"learning_rate", "decay"}
    assert tx.update(g, opt_state)[0][0] == -0.5
    partially = tunable(partial(sgd, momentum=0.5))(0.1).init(g)
    assert set(partially.hyperparams) == {"learning_rate", "momentum"}
    theirs = tunable(optax.trace)(decay=0.9)
    assert set(theirs.init(g).hyperparams) == {"decay"}
    np.testing.assert_allclose(theirs.update(g, theirs.init(g))[0], g)


def test_inside_either_chain():
    optax = pytest.importorskip("optax")
    params, grads = tree(), tree(seed=1)
    for link in (chain, optax.chain):
        tx = link(tunable(scale_by_adam)(), tunable(fnn.optim.scale)(-0.1))
        updates, opt_state = jax.jit(tx.update)(grads, tx.init(params), params)
        for u, g in zip(jax.tree.leaves(updates), jax.tree.leaves(grads), strict=True):
            np.testing.assert_allclose(u, -0.1 * np.sign(g), rtol=1e-4)
        assert opt_state[1].hyperparams["factor"] == np.float32(-0.1)


def test_contract():
    check_optimizer(tunable(sgd)(0.1, momentum=0.9))


def test_optax_in_bfloat16_makes_b2_one():
    """0.999 is 1 in bfloat16, so optax's second moment stays 0, and its update is g / eps."""
    optax = pytest.importorskip("optax")
    params = grads = jnp.ones(2, jnp.bfloat16)
    with jax.numpy_dtype_promotion("standard"):
        theirs = optax.inject_hyperparams(optax.adam)(learning_rate=1e-3)
        opt_state = theirs.init(params)
        assert opt_state.hyperparams["b2"] == 1
        updates, _ = theirs.update(grads, opt_state, params)
    assert not np.isfinite(np.float32(updates)).all() or np.abs(np.float32(updates)).max() > 100
    ours = tunable(adam)(learning_rate=1e-3)
    opt_state = ours.init(params)
    assert opt_state.hyperparams["b2"] == np.float32(0.999)
    updates, _ = ours.update(grads, opt_state, params)
    np.testing.assert_allclose(np.float32(updates), -1e-3, rtol=1e-2)


def broken_schedule(count):
    raise ZeroDivisionError


REFUSED = [
    (lambda: tunable(adam)(0.1, beta=0.9), "adam: expected the arguments learning_rate, b1"),
    (lambda: tunable(adam)(), "adam: expected the arguments learning_rate, b1"),
    (lambda: tunable(adam)(0.1, learning_rate=0.1), "adam: expected the arguments"),
    (lambda: tunable(adam)(0.1, b1=2.0), r"expected b1 in \[0.0, 1.0\)"),
    (lambda: tunable(adam)(0.1, b1=schedules.constant(2.0)), r"expected b1 in \[0.0, 1.0\)"),
    (lambda: tunable(adam)(0.1, b1="a"), "b1 to be a number"),
    (lambda: tunable(adam)(0.1, b1=broken_schedule), "b1 to be a number"),
    (lambda: tunable(adam(0.1)), "tunable: expected a builder"),
    (lambda: tunable(0.1), "tunable: expected a builder"),
    (lambda: tunable(adam, static="beta"), "tunable: expected static to name arguments"),
    (lambda: tunable(lambda rate: rate)(0.1), "a transform with init and update"),
]


@pytest.mark.parametrize(("call", "match"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_refused(call, match):
    with pytest.raises(fnn.FnnError, match=match):
        call()


@pytest.mark.parametrize("mode", ["eager", "jit"])
def test_a_wrong_state_is_refused(mode):
    tx, g = tunable(sgd)(0.1), jnp.ones(2)
    update = tx.update if mode == "eager" else jax.jit(tx.update)
    opt_state = tx.init(g)
    for wrong, match in [
        ({}, "hyperparams with learning_rate, got no learning_rate"),
        ({"learning_rate": 0.1, "rate": 0.1}, "also rate"),
        ({"learning_rate": jnp.ones(3)}, "learning_rate, one number"),
        ({"learning_rate": None}, "learning_rate, one number"),
    ]:
        with pytest.raises(fnn.FnnError, match=match):
            update(g, opt_state._replace(hyperparams=wrong))
    with pytest.raises(fnn.FnnError, match="TunableState"):
        update(g, ())
