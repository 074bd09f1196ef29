"""Curvature against matrices formed in NumPy, with Jacobians by differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

import fnn
from fnn import errors
from fnn.analysis import curvature
from tests.support import asarray


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


NET = fnn.serial(fnn.dense(3), jnp.tanh, fnn.dense(2))


def problem(seed=0, n=4):
    """(params, x [n, 3], a function from flat params to outputs [n, 2] in NumPy, flat params)."""
    rng = np.random.default_rng(seed)
    params = {
        "dense1": {"bias": rng.normal(size=3), "kernel": rng.normal(size=(3, 3))},
        "dense2": {"bias": rng.normal(size=2), "kernel": rng.normal(size=(3, 2))},
    }
    x = rng.normal(size=(n, 3))

    def outputs(flat, x=x):
        b1, k1, b2, k2 = np.split(flat, np.cumsum([3, 9, 2]))
        return np.tanh(x @ k1.reshape(3, 3) + b1) @ k2.reshape(3, 2) + b2

    flat = np.concatenate([np.ravel(a) for a in jax.tree.leaves(params)])
    return jax.tree.map(asarray, params), x, outputs, flat


def differences(f, at, h=1e-3):
    """The Jacobian of f [..., n], by differences of fourth order."""
    columns = []
    for e in np.eye(at.size):
        d = lambda s, e=e: f(at + s * h * e)  # noqa: E731
        columns.append((8 * (d(1) - d(-1)) - (d(2) - d(-2))) / (12 * h))
    return np.stack(columns, axis=-1)


def some_vector(flat, seed=1):
    return np.random.default_rng(seed).normal(size=flat.size)


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


# --- gradients of single examples


def test_gradients_of_single_examples_are_their_differences():
    params, x, outputs, flat = problem()
    grads = curvature.per_example_gradients(lambda p, x: jnp.sum(NET(p, x) ** 2), params, x)
    rows = np.concatenate([np.reshape(g, (4, -1)) for g in jax.tree.leaves(grads)], axis=1)
    expected = differences(lambda w: (outputs(w) ** 2).sum(-1), flat)
    np.testing.assert_allclose(rows, expected, rtol=1e-7, atol=1e-8)


def test_the_noise_scale_is_that_of_known_noise():
    """With a true gradient G and covariance S, it is tr(S) / |G|^2 on average."""
    rng, mean, deviation = np.random.default_rng(0), np.array([3.0, -1.0, 2.0]), [1.0, 2.0, 0.5]
    grads = {"a": mean[:2] + deviation[:2] * rng.normal(size=(200_000, 2)),
             "b": mean[2:] + deviation[2:] * rng.normal(size=(200_000, 1))}  # fmt: skip
    expected = np.sum(np.square(deviation)) / np.sum(np.square(mean))
    found = curvature.gradient_noise_scale(jax.tree.map(asarray, grads))
    np.testing.assert_allclose(found, expected, rtol=0.02)


@given(st.integers(2, 6), st.integers(0, 1000))
def test_the_noise_scale_is_its_formula(n, seed):
    with jax.enable_x64(True):
        g = np.random.default_rng(seed).normal(size=(n, 3)) + 1
        noise = g.var(axis=0, ddof=1).sum()
        signal = (g.mean(0) ** 2).sum() - noise / n
        expected = noise / signal if signal > 0 else np.inf
        np.testing.assert_allclose(curvature.gradient_noise_scale(asarray(g)), expected)


# --- products


def test_the_hessian_product_is_the_difference_of_gradients():
    params, x, outputs, flat = problem()

    def loss(p):
        return jnp.sum(jnp.sin(NET(p, x)))

    v = some_vector(flat)
    unravel = ravel_pytree(params)[1]
    found = ravel_pytree(curvature.hessian_vector_product(loss, params, unravel(v)))[0]

    def slope(w):
        return differences(lambda w: np.sin(outputs(w)).sum(), w)

    expected = differences(slope, flat) @ v
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_the_gauss_newton_product_is_its_matrices():
    params, x, outputs, flat = problem()
    rng = np.random.default_rng(2)
    bend = rng.normal(size=(8, 8))
    bend = bend @ bend.T  # the Hessian of a quadratic loss
    v, unravel = some_vector(flat), ravel_pytree(params)[1]

    def loss(y):
        return jnp.vdot(y.ravel(), asarray(bend) @ y.ravel()) / 2

    found = curvature.gauss_newton_vector_product(lambda p: NET(p, x), loss, params, unravel(v))
    jacobian = differences(lambda w: outputs(w).ravel(), flat)
    expected = jacobian.T @ bend @ jacobian @ v
    np.testing.assert_allclose(ravel_pytree(found)[0], expected, rtol=1e-6, atol=1e-7)


def test_the_fisher_product_is_the_mean_over_labels_drawn_from_the_model():
    params, x, outputs, flat = problem()
    v, unravel = some_vector(flat), ravel_pytree(params)[1]
    found = curvature.fisher_vector_product(lambda p: NET(p, x), params, unravel(v))
    probabilities, fisher = softmax(outputs(flat)), 0
    for label in range(2):  # E[g g^T] of the gradient of the log-likelihood

        def log_likelihood(w, label=label):
            return np.log(softmax(outputs(w)))[:, label]

        g = differences(log_likelihood, flat)  # [n, params]
        fisher = fisher + np.einsum("i,ia,ib->ab", probabilities[:, label], g, g) / len(x)
    np.testing.assert_allclose(ravel_pytree(found)[0], fisher @ v, rtol=1e-6, atol=1e-8)


# --- eigenvalues


@functools.partial(jax.jit, static_argnums=1)
def three_largest(a, tree):
    like = {"a": jnp.zeros((2, 3)), "b": jnp.zeros(2)} if tree else jnp.zeros(8)
    unravel = ravel_pytree(like)[1]

    def product(v):
        return unravel(a @ ravel_pytree(v)[0])

    return curvature.top_eigenvalues(product, like, 3, key=jax.random.key(0), steps=8)


@pytest.mark.parametrize("rank", [1, 3, 8])
@pytest.mark.parametrize("tree", [False, True])
def test_with_all_steps_the_largest_eigenvalues_are_exact(rank, tree):
    half = np.random.default_rng(rank).normal(size=(8, rank))
    a = asarray(half @ half.T)
    found = three_largest(a, tree)
    expected = np.linalg.eigvalsh(a)[::-1][:3]
    np.testing.assert_allclose(found, expected, atol=1e-9 * expected[0])


def test_a_few_steps_find_the_largest_of_many():
    values = np.concatenate([np.linspace(0, 1, 300), [5.0, 9.0]])
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(302, 302)))[0]
    a = asarray(turn @ np.diag(values) @ turn.T)
    found = jax.jit(
        lambda key: curvature.top_eigenvalues(lambda v: a @ v, jnp.zeros(302), 2, key=key)
    )(jax.random.key(1))
    np.testing.assert_allclose(found, [9.0, 5.0], rtol=1e-8)


def test_the_zero_matrix_has_zero_eigenvalues():
    found = curvature.top_eigenvalues(jnp.zeros_like, jnp.zeros(5), 2, key=jax.random.key(0))
    np.testing.assert_allclose(found, [0, 0], atol=1e-12)


# --- kernels and lines


def test_the_kernel_is_the_product_of_jacobians():
    params, x, outputs, flat = problem()
    found = curvature.empirical_ntk(NET, params, x, x[:2])
    jacobian = differences(outputs, flat)  # [n, 2, params]
    expected = np.einsum("iap,jbp->ijab", jacobian, jacobian[:2])
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(
        curvature.empirical_ntk(lambda p, x: NET(p, x)[0], params, x),
        np.einsum("ip,jp->ij", jacobian[:, 0], jacobian[:, 0]),
        rtol=1e-7,
        atol=1e-8,
    )


def test_the_line_is_the_first_order():
    params, x, outputs, flat = problem()
    unravel = ravel_pytree(params)[1]
    away = flat + some_vector(flat)
    found = curvature.linearize(NET, params)(unravel(away), x)
    expected = outputs(flat) + differences(outputs, flat) @ (away - flat)
    np.testing.assert_allclose(found, expected, rtol=1e-7)


# --- what is refused


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda: curvature.hessian_vector_product(lambda w: w, jnp.ones(2), jnp.ones(2)),
         errors.ShapeError, "scalar"),
        (lambda: curvature.hessian_vector_product(jnp.sum, jnp.ones(2), jnp.ones(3)),
         errors.ShapeError, "as in params"),
        (lambda: curvature.per_example_gradients(lambda w, x: w, 1.0, jnp.ones(())),
         errors.ShapeError, "leading axis"),
        (lambda: curvature.gradient_noise_scale(jnp.ones((1, 2))), errors.ShapeError, "two"),
        (lambda: curvature.top_eigenvalues(lambda v: v, jnp.ones(3), 4, key=jax.random.key(0)),
         errors.OptionError, "n, the number of values 3"),
        (lambda: curvature.empirical_ntk(lambda w, x: w * x, jnp.ones(()), jnp.ones((2, 3, 4))),
         errors.ShapeError, "flatten"),
        (lambda: curvature.linearize(lambda w, x: w * x, jnp.ones(2))(jnp.ones(3), 1.0),
         errors.ShapeError, "as in params"),
    ],
)  # fmt: skip
def test_wrong_inputs_are_refused(call, kind, text):
    with pytest.raises(kind, match=text):
        call()
