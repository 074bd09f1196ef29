"""L-BFGS and its line search."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from fnn import errors, optim
from tests.optim.contract import contract
from tests.optim.rows_lbfgs import ROWS
from tests.optim.support import check_runs, minimized, seeds
from tests.support import asarray, refused

test_formula, test_optax, test_contract, test_missing_params = contract(ROWS)


def test_lbfgs_of_complex_params_is_that_of_their_parts():
    def f(z):
        return jnp.sum(jnp.abs(asarray([[1, -2], [3j, 4]]) @ z) ** 1.5)

    def steps(f, x, number):
        tx = optim.lbfgs()

        def step(carry, _):
            x, opt_state = carry
            value, g = jax.value_and_grad(f)(x)
            g = jnp.conj(g)
            u, opt_state = tx.update(g, opt_state, x, value=value, grad=g, value_fn=f)
            x = optim.apply_updates(x, u)
            return (x, opt_state), x

        return jax.jit(lambda x: jax.lax.scan(step, (x, tx.init(x)), None, number)[1])(x)

    with jax.enable_x64(True):
        z = asarray([1 - 1j, 1j])
        got = steps(f, z, 5)
        want = steps(lambda x: f(jax.lax.complex(x[0], x[1])), jnp.stack([z.real, z.imag]), 5)
    want = np.asarray(want)
    assert_allclose(got, want[:, 0] + 1j * want[:, 1], rtol=1e-6)


def rosenbrock(x):
    return jnp.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2)


@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-4), ("float64", 1e-10)])
def test_lbfgs_finds_the_bottom_of_rosenbrocks_valley(dtype, error):
    with jax.enable_x64(dtype == "float64"):
        x = asarray([-1.2, 1.0], dtype)
        x, _, values = jax.jit(lambda x: minimized(optim.lbfgs(), rosenbrock, x, 50))(x)
        np.testing.assert_allclose(x, 1.0, atol=error)
        assert (np.diff(values) <= 1e-6 * np.abs(values[:-1]) + 1e-7).all()


def test_lbfgs_solves_a_quadratic():
    """A tree of 30 unknowns, eigenvalues from 1 to 1000, to the solution of A x = b."""
    rng = np.random.default_rng(0)
    q = np.linalg.qr(rng.normal(size=(30, 30)))[0]
    a, b = (q * np.geomspace(1, 1000, 30)) @ q.T, rng.normal(size=30)

    def value_fn(x):
        x = jnp.concatenate([x["u"].ravel(), x["v"]])
        return x @ (asarray(a) @ x) / 2 - asarray(b) @ x

    with jax.enable_x64(True):
        x = {"u": jnp.zeros((4, 5)), "v": jnp.zeros(10)}
        x, *_ = jax.jit(lambda x: minimized(optim.lbfgs(memory_size=20), value_fn, x, 250))(x)
        got = np.concatenate([np.ravel(x["u"]), x["v"]])
    np.testing.assert_allclose(got, np.linalg.solve(a, b), atol=1e-8)


def test_lbfgs_directions_are_optaxs_where_curvature_is_positive():
    optax = pytest.importorskip("optax")
    w = asarray([1.0, 3.0, 10.0])

    def followed(tx):
        def step(carry, _):
            x, opt_state = carry
            u, opt_state = tx.update(w * x, opt_state, x)
            return (x - 0.5 * u, opt_state), u

        x = jnp.ones(3, "float64")
        return jax.jit(lambda x: jax.lax.scan(step, (x, tx.init(x)), None, 8)[1])(x)

    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        ours, theirs = (f(memory_size=3) for f in (optim.scale_by_lbfgs, optax.scale_by_lbfgs))
        np.testing.assert_allclose(followed(ours), followed(theirs), rtol=1e-9)


def test_optax_difference_lbfgs_in_negative_curvature():
    """f = -x^2 / 2 + x: the pair (s, y = -s) gives optax a negative H, and -u leads uphill."""
    optax = pytest.importorskip("optax")
    slopes = []
    for tx in (optim.scale_by_lbfgs(), optax.scale_by_lbfgs()):

        def slope(x, tx=tx):
            _, opt_state = tx.update(1 - x, tx.init(x), x)
            x = x - 0.5
            return jnp.vdot(1 - x, -tx.update(1 - x, opt_state, x)[0])

        with jax.numpy_dtype_promotion("standard"):
            slopes.append(float(jax.jit(slope)(jnp.zeros(1))))
    assert slopes[0] < 0 < slopes[1]


@given(seed=seeds, c1=st.sampled_from([1e-4, 0.3]))
def test_the_step_holds_the_wolfe_conditions(seed, c1):
    """f(t) = sum of a quartic and waves along a line, in float64 NumPy."""
    rng = np.random.default_rng(seed)
    a, b, c = rng.uniform(0.1, 3, 4), rng.normal(size=4), rng.normal(size=4)
    x, size = rng.normal(size=4), 10.0 ** rng.uniform(-2, 2)

    def value(x):
        return np.sum(a * x**4 / 4 + b * x) + np.sum(c * np.sin(3 * x))

    def grad(x):
        return a * x**3 + b + 3 * c * np.cos(3 * x)

    u = -size * grad(x)
    with jax.enable_x64(True):
        t = float(searched(*map(asarray, (c1, a, b, c, x, u))))
    assert value(x + t * u) <= value(x) + c1 * t * grad(x) @ u + 1e-10 * abs(value(x))
    assert abs(grad(x + t * u) @ u) <= 0.9 * abs(grad(x) @ u) * (1 + 1e-9)


@jax.jit
def searched(c1, a, b, c, x, u):
    tx = optim.scale_by_wolfe_linesearch(max_steps=60, c1=c1)

    def value_fn(x):
        return jnp.sum(a * x**4 / 4 + b * x) + jnp.sum(c * jnp.sin(3 * x))

    return tx.update(u, tx.init(x), x, value_fn=value_fn)[1].learning_rate


def test_a_search_that_leaves_the_domain_comes_back():
    """f = x - log x is NaN below 0; from x = 0.1 downhill is up, but a step of 100 the wrong way
    along a curve that bends back is cut to one inside."""
    tx = optim.scale_by_wolfe_linesearch()

    def value_fn(x):
        return jnp.sum(x - jnp.log(x))

    x = asarray([3.0])
    u, opt_state = tx.update(asarray([-100.0]), tx.init(x), x, value_fn=value_fn)
    assert 0 < float((x + u)[0]) < 3.0
    assert opt_state.learning_rate > 0


def test_a_search_uphill_stays():
    """No step along an ascent lowers f: t = 0, and L-BFGS forgets its pairs."""
    tx = optim.scale_by_wolfe_linesearch()
    x = jnp.ones(2)
    u, opt_state = tx.update(x, tx.init(x), x, value_fn=lambda x: jnp.sum(x**2))
    assert not u.any() and opt_state.learning_rate == 0
    tx = optim.scale_by_lbfgs()
    _, state = tx.update(2 * x, tx.init(x), x)
    _, state = tx.update(x, state, x / 2)
    assert state.weights_memory[-1] > 0
    u, state = tx.update(x, state, x / 2)
    assert not state.weights_memory.any()
    np.testing.assert_allclose(u, x / np.sqrt(2), rtol=1e-6)  # min(1, 1 / |g|) of the gradient


@pytest.mark.parametrize(("size", "length"), [(0.1, 0.1), (1e30, 1.0), (0.0, 0.0)])
def test_the_first_direction_of_lbfgs_is_no_longer_than_one(size, length):
    tx, g = optim.scale_by_lbfgs(), size * asarray([0.6, 0.8])
    u, _ = tx.update(g, tx.init(g), g)
    np.testing.assert_allclose(u, length * np.array([0.6, 0.8]), rtol=1e-6)


def test_lbfgs_side_by_side_and_its_meta_gradient():
    """Runs from four starts in one vmap; the derivative of where they end, by the target."""

    def end(start, target):
        def value_fn(x):
            return jnp.sum(asarray([1.0, 5.0]) * (x - target) ** 2)

        return minimized(optim.lbfgs(memory_size=3), value_fn, start, 4)[0]

    with jax.enable_x64(True):
        starts = asarray(np.random.default_rng(0).normal(size=(4, 2)))
        target = asarray([0.3, -0.2])
        ends = jax.jit(jax.vmap(end, (0, None)))(starts, target)
        alone = jax.jit(end)
        for start, got in zip(starts, ends, strict=True):
            np.testing.assert_allclose(got, alone(start, target), rtol=1e-9)
        jacobian = jax.jit(jax.jacrev(end, 1))(starts[0], target)
        h = 1e-6
        for i, e in enumerate(np.eye(2)):
            up, down = (alone(starts[0], target + s * h * e) for s in (1, -1))
            np.testing.assert_allclose(jacobian[:, i], (up - down) / (2 * h), rtol=1e-4, atol=1e-7)


def test_lbfgs_holds_the_contract_of_optimizers():
    """With its line search, reverse mode included; the row of its directions has the rest."""
    check_runs(optim.lbfgs(memory_size=2))


def test_lbfgs_runs_in_optaxs_chain():
    """optax gives extra arguments to a type of its own alone."""
    optax = pytest.importorskip("optax")
    lbfgs = optax.GradientTransformationExtraArgs(*optim.lbfgs())
    tx = optax.chain(optax.identity(), lbfgs)
    x, opt_state = asarray([1.0, 2.0]), tx.init(jnp.zeros(2))
    for _ in range(3):
        f = lambda x: jnp.sum(x**2)  # noqa: E731
        u, opt_state = tx.update(jax.grad(f)(x), opt_state, x, value_fn=f)
        x = x + u
    np.testing.assert_allclose(x, 0, atol=1e-5)


def total(p):
    return jnp.sum(p["w"])


def updated(tx, **extra):
    p = {"w": jnp.ones(3)}
    return tx.update(p, tx.init(p), p, **extra)


WRONG = {
    "lbfgs memory": (lambda: optim.lbfgs(memory_size=0), errors.OptionError),
    "wolfe c1": (lambda: optim.scale_by_wolfe_linesearch(c1=2.0), errors.OptionError),
    "wolfe steps": (lambda: optim.scale_by_wolfe_linesearch(0), errors.OptionError),
    "no value_fn": (lambda: updated(optim.lbfgs()), errors.InputError),
    "value_fn of a vector": (
        lambda: updated(optim.lbfgs(), value_fn=lambda p: p["w"]),
        errors.ShapeError,
    ),
    "grad of another tree": (
        lambda: updated(optim.lbfgs(), value_fn=total, value=1.0, grad=jnp.ones(3)),
        errors.ParamsError,
    ),
    "lbfgs's state": (
        lambda: optim.scale_by_lbfgs().update(jnp.eye(3), (), jnp.eye(3)),
        errors.ParamsError,
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_inputs_are_refused_by_fnns_errors(name):
    refused(*WRONG[name])
