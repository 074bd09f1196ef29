"""Shampoo and SOAP against their papers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fnn import errors, optim
from fnn.optim.soap import inverse_fourth_root
from tests.optim import rows_soap
from tests.optim.contract import contract
from tests.optim.rows import run
from tests.optim.rows_soap import ROWS
from tests.optim.support import minimized, seeds
from tests.support import asarray, refused

test_formula, test_optax, test_contract, test_missing_params = contract(ROWS)


@given(seed=seeds, equal=st.booleans())
def test_inverse_fourth_roots_and_their_derivatives(seed, equal):
    """X^4 A = I; first and second derivatives along A + t E, at equal eigenvalues too, against the
    eigenvalues of A + t E in NumPy."""
    rng = np.random.default_rng(seed)
    q = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    a = (q * (np.full(3, 2.0) if equal else rng.uniform(0.5, 4, 3))) @ q.T
    e, c = rng.normal(size=(2, 3, 3))
    e, c = e + e.T, c + c.T

    def along(t):
        values, vectors = np.linalg.eigh(a + t * e)
        return np.sum(c * ((vectors * values**-0.25) @ vectors.T))

    with jax.enable_x64(True):
        x, slope, bend = jax.device_get(derivatives_of_roots(*map(asarray, (a, e, c))))
    np.testing.assert_allclose(x @ x @ x @ x @ a, np.eye(3), atol=1e-12)
    h = 1e-4
    up, down = along(h), along(-h)
    np.testing.assert_allclose(slope, (up - down) / (2 * h), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(bend, (up - 2 * along(0) + down) / h**2, rtol=1e-4, atol=1e-4)


@jax.jit
def derivatives_of_roots(a, e, c):
    """X at A, and the derivative of <c, X> along E: by jvp of it, and by jvp of grad."""

    def f(a):
        return jnp.sum(c * inverse_fourth_root(a, jnp.float64(1e-12)))

    slope, bend = jax.jvp(lambda a: jnp.sum(jax.grad(f)(a) * e), (a,), (e,))
    return inverse_fourth_root(a, jnp.float64(1e-12)), slope, bend


def test_shampoo_of_diagonal_matrices_is_adagrad():
    """L = R = diag(eps + sum g^2), so L^{-1/4} G R^{-1/4} = g / sqrt(eps + sum g^2)."""
    g = np.random.default_rng(0).normal(size=(5, 4))
    grads = np.stack([np.diag(row) for row in g])
    with jax.enable_x64(True):
        got = run(optim.scale_by_shampoo(), {"w": asarray(grads)}, {"w": jnp.zeros((4, 4))})
    want = g / np.sqrt(1e-4 + np.cumsum(g**2, 0))
    np.testing.assert_allclose(np.diagonal(got["w"], axis1=1, axis2=2), want, rtol=1e-10)


def test_shampoo_of_huge_gradients_in_float32():
    """Of s u v^T the update is u v^T, though rounding makes eigenvalues negative."""
    g = jnp.full((3, 3), 1e6)
    tx = optim.scale_by_shampoo()
    np.testing.assert_allclose(tx.update(g, tx.init(g))[0], 1 / 3, atol=0.03)


def test_shampoo_keeps_roots_for_some_updates():
    g = np.random.default_rng(0).normal(size=(7, 2, 3))
    want = rows_soap.shampoo(list(g), g[0], 1.0, frequency=3)
    with jax.enable_x64(True):
        tx = optim.shampoo(1.0, precondition_frequency=3)
        got = run(tx, {"w": asarray(g)}, {"w": asarray(g[0])})["w"]
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("build", [optim.scale_by_shampoo, optim.scale_by_soap])
def test_a_side_too_long_is_left_alone(build):
    """Of (2, 3) with 2 allowed, only the rows are turned: a permutation of columns passes through,
    and no 3 x 3 matrix is kept. With 1 allowed, both have none, and permutations of rows too."""
    g = asarray(np.random.default_rng(0).normal(size=(6, 2, 3)), "float32")
    tx = build(max_precondition_size=2)
    state = jax.eval_shape(tx.init, {"w": g[0]})
    assert {leaf.shape for leaf in jax.tree.leaves(state)} <= {(), (0,), (0, 0), (2, 2), (2, 3)}

    def turn(tx, g):
        return jax.jit(partial(run, tx))({"w": g}, {"w": g[0]})["w"]

    np.testing.assert_allclose(turn(tx, g[..., ::-1]), turn(tx, g)[..., ::-1], rtol=1e-3)
    tx = build(max_precondition_size=1)
    assert {leaf.shape for leaf in jax.tree.leaves(tx.init({"w": g[0]}))} <= {
        (),
        (0,),
        (0, 0),
        (2, 3),
    }
    np.testing.assert_allclose(turn(tx, g[:, ::-1]), turn(tx, g)[:, ::-1], rtol=1e-5)


def test_soap_turns_both_sides():
    """(4, 3): of two rows or columns a basis is a reflection, which is its own transpose."""
    g = np.random.default_rng(0).normal(size=(12, 4, 3))
    want = rows_soap.soap(list(g), g[0], 1.0, b1=0.9, b2=0.9, frequency=2)
    with jax.enable_x64(True):
        tx = optim.soap(1.0, b1=0.9, b2=0.9, precondition_frequency=2)
        got = jax.jit(partial(run, tx))({"w": asarray(g)}, {"w": asarray(g[0])})["w"]
    np.testing.assert_allclose(got, want, atol=1e-10)


def test_soap_finds_the_eigenbasis():
    """Gradients U diag(4, 2, 1) N, N of normal noise: Q_L becomes U."""
    rng = np.random.default_rng(0)
    u = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    grads = (u * [4.0, 2.0, 1.0]) @ rng.normal(size=(400, 3, 3))
    tx = optim.scale_by_soap(b2=0.99)

    @jax.jit
    def last(grads):
        step = lambda state, g: (tx.update(g, state)[1], None)  # noqa: E731
        return jax.lax.scan(step, tx.init(grads[0]), grads)[0]

    basis = np.abs(u.T @ np.asarray(last(asarray(grads, "float32")).left_basis))
    np.testing.assert_allclose(basis, np.eye(3), atol=0.3)
    state = last(asarray(grads, "float32"))
    turned = np.asarray(state.left_basis.T @ state.left @ state.left_basis)
    off = turned - np.diag(np.diag(turned))
    assert np.abs(off).max() < 0.02 * np.abs(turned).max()


def test_soap_solves_a_turned_quadratic():
    """|A (W - W*) B|^2 with A and B far from diagonal, conditioned 100 and 100, in 500 updates."""
    rng = np.random.default_rng(0)
    turns = [np.linalg.qr(rng.normal(size=(8, 8)))[0] for _ in range(2)]
    a, b = (asarray((q * np.geomspace(1, 0.1, 8)) @ q.T, "float32") for q in turns)
    best = asarray(rng.normal(size=(8, 8)), "float32")

    def value_fn(w):
        return jnp.sum((a @ (w - best) @ b) ** 2)

    tx = optim.soap(lambda count: 0.1 * (1 - count.astype("float32") / 500), weight_decay=0.0)
    *_, values = jax.jit(lambda w: minimized(tx, value_fn, w, 500))(jnp.zeros((8, 8)))
    assert values[-1] < 1e-6 * values[0]


WRONG = {
    "shampoo eps": (lambda: optim.shampoo(0.1, eps=-1.0), errors.OptionError),
    "shampoo frequency": (lambda: optim.shampoo(0.1, precondition_frequency=0), errors.OptionError),
    "soap b2": (lambda: optim.soap(b2=1.0), errors.OptionError),
    "soap size": (lambda: optim.soap(max_precondition_size=0), errors.OptionError),
    "soap's state": (
        lambda: optim.scale_by_soap().update(jnp.eye(3), optim.scale_by_soap().init(jnp.eye(2))),
        errors.ShapeError,
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_inputs_are_refused_by_fnns_errors(name):
    refused(*WRONG[name])
