"""Curvature of losses, gradients of single examples, and networks to first order.

All functions take plain functions of params, such as `lambda p: net(p, x)`, and return arrays or
trees like params, so `jit`, `vmap` and `grad` work on them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from fnn.core import checks, errors, trees
from fnn.core.dtypes import is_floating, wide, widened
from fnn.core.lengths import as_length, length_of, scaled, value
from fnn.core.types import Key, Tree

__all__ = [
    "empirical_ntk", "fisher_vector_product", "gauss_newton_vector_product",
    "gradient_noise_scale", "hessian_vector_product", "linearize", "per_example_gradients",
    "top_eigenvalues",
]  # fmt: skip


@errors.named
def per_example_gradients(loss: Callable[..., Any], params: Tree, *examples: Tree) -> Tree:
    """The gradient of every example: g_i = d loss(params, x_i) / d params, each leaf [N, ...].

    - `loss(params, *example)`: a scalar, for one example.
    - `examples`: trees of arrays [N, ...].

    `fnn.optim.per_example_clip` clips them, for differential privacy. Raises ShapeError for a loss
    that is not a scalar, and for examples whose leading axes differ.

    >>> grads = per_example_gradients(lambda w, x: w * x**2, 3.0, jnp.arange(4.0))
    >>> print(grads)
    [0. 1. 4. 9.]
    """
    checks.examples("examples", examples)
    return jax.vmap(_grad(loss), (None, *(0,) * len(examples)))(params, *examples)


@errors.named
def gradient_noise_scale(grads: Tree) -> jax.Array:
    """The batch size at which a gradient's noise equals its signal: tr(S) / |G|^2, a scalar.

    S is the covariance of the gradients of single examples and G their true mean; both estimates
    from N examples are unbiased (McCandlish et al., 2018, equation 2.8). Well below this size a
    larger batch pays; well above it does not. Infinite if no signal is found.

    - `grads`: from `per_example_gradients`, leaves [N, ...], N at least 2.

    >>> print(gradient_noise_scale(jnp.array([[2.0, 1.0], [2.0, -1.0]])))
    0.6666667
    """
    flat = jax.vmap(lambda g: ravel_pytree(_wide(g))[0])(grads)
    n = flat.shape[0]
    if n < 2:
        raise errors.ShapeError("gradients of at least two examples", f"{n}", "take more")
    mean = flat.mean(axis=0)
    noise = jnp.sum(jnp.square(flat - mean)) / (n - 1)
    signal = jnp.sum(jnp.square(mean)) - noise / n
    return jnp.where(signal > 0, noise / jnp.where(signal > 0, signal, 1), jnp.inf)


@errors.named
def hessian_vector_product(loss: Callable[[Tree], Any], params: Tree, v: Tree) -> Tree:
    """H v, with H the Hessian of `loss(params)`: the slope of the gradient along v.

    It costs about two gradients (Pearlmutter, 1994). `v` and the result are trees like params.
    Raises ShapeError for a loss that is not a scalar, or a v unlike params.

    >>> params = jnp.array([1.0, 2.0])
    >>> print(hessian_vector_product(lambda w: w[0] * w[1] ** 2, params, jnp.ones(2)))
    [4. 6.]
    """
    trees.alike("v", v, "params", params)
    return jax.jvp(_grad(loss), (params,), (v,))[1]


@errors.named
def gauss_newton_vector_product(
    f: Callable[[Tree], Any], loss: Callable[[Any], Any], params: Tree, v: Tree
) -> Tree:
    """J^T H J v, with J the Jacobian of the outputs f(params) and H the Hessian of loss(outputs).

    The Hessian of loss(f(params)) without the term for the curvature of f. It has no negative
    eigenvalue if the loss is convex (Schraudolph, 2002).

    - `f(params)`: the outputs, such as `lambda p: net(p, x)`; `loss(outputs)`: a scalar.

    >>> f, loss = lambda w: jnp.sin(w), lambda y: jnp.sum(y**2)
    >>> print(gauss_newton_vector_product(f, loss, jnp.zeros(2), jnp.ones(2)))
    [2. 2.]
    """
    trees.alike("v", v, "params", params)
    y, along, pull = _both(f, params)
    return pull(jax.jvp(_grad(loss), (y,), (along(v),))[1])


@errors.named
def fisher_vector_product(f: Callable[[Tree], jax.Array], params: Tree, v: Tree) -> Tree:
    """F v, with F the Fisher information of softmax(f(params)), for logits [..., V] from f.

        F = mean over [...] of J^T (diag(p) - p p^T) J,   p = softmax(logits)

    It is the Gauss-Newton matrix of the mean softmax cross-entropy, whatever the labels (Martens,
    2020, section 9.2).

    >>> print(fisher_vector_product(lambda w: w, jnp.zeros(2), jnp.array([1.0, 0.0])))
    [ 0.25 -0.25]
    """
    trees.alike("v", v, "params", params)
    logits, along, pull = _both(f, params)
    p, u = jax.nn.softmax(logits), along(v)
    spread = p * (u - jnp.sum(p * u, axis=-1, keepdims=True))
    return pull(spread / max(p[..., 0].size, 1))


@errors.named
def top_eigenvalues(
    matvec: Callable[[Tree], Tree], like: Tree, k: int, *, key: Key, steps: int | None = None
) -> jax.Array:
    """The k largest eigenvalues of a symmetric matrix given by its products, largest first: [k].

    Lanczos' method from a random start with full reorthogonalization (Lanczos, 1950; Golub & Van
    Loan, section 10.3).

    - `matvec(v)`: the product with a tree, such as
      `lambda v: fnn.analysis.curvature.hessian_vector_product(loss, params, v)`.
    - `like`: a tree like v, such as params, of n values.
    - `key`: for the random start.
    - `steps`: the number of products; None is 2 k + 20, at most n. With n the result is exact.

    Raises OptionError for a k above the steps, or steps above n.

    >>> a = jnp.diag(jnp.array([1.0, 5.0, 3.0]))
    >>> values = top_eigenvalues(lambda v: a @ v, jnp.zeros(3), 2, key=jax.random.key(0))
    >>> print(", ".join(f"{value:.3f}" for value in values))
    5.000, 3.000
    """
    checks.key(key)
    flat, unravel = ravel_pytree(like)
    n, dtype = flat.size, wide(flat.dtype)
    k = checks.count("k", k)
    steps = min(2 * k + 20, n) if steps is None else checks.count("steps", steps)
    if not k <= steps <= n:
        wanted = f"k <= steps <= n, the number of values {n}"
        raise errors.OptionError(wanted, f"k={k}, steps={steps}", "change them")
    one = as_length(1.0, dtype)

    def product(v):
        return ravel_pytree(matvec(unravel(v.astype(flat.dtype))))[0].astype(dtype)

    def without(v, basis):
        for _ in range(2):  # twice, for what rounding leaves
            v = v - basis.T @ (basis @ v)
        return v

    def step(loop, i):
        basis, v = loop  # [steps, n], rows after i are zero
        basis = basis.at[i].set(v)
        w = product(v)
        rest = without(w, basis)
        length = value(length_of(rest))
        # If the Krylov space is exhausted, continue in a new direction, decoupled from it.
        done = length <= jnp.finfo(dtype).eps * n * value(length_of(w))
        other = without(jax.random.normal(jax.random.fold_in(key, i), (n,), dtype), basis)
        along = jnp.where(done, other, rest)
        after = scaled(along, one, length_of(along))
        return (basis, after), (jnp.vdot(v, w), jnp.where(done, 0, length))

    start = jax.random.normal(key, (n,), dtype)
    start = scaled(start, one, length_of(start))
    _, (diagonal, beside) = jax.lax.scan(
        step, (jnp.zeros((steps, n), dtype), start), jnp.arange(steps)
    )
    tridiagonal = jnp.diag(diagonal) + jnp.diag(beside[:-1], 1) + jnp.diag(beside[:-1], -1)
    return jnp.linalg.eigvalsh(tridiagonal)[::-1][:k]


@errors.named
def empirical_ntk(
    f: Callable[[Tree, Any], jax.Array], params: Tree, x1: Any, x2: Any = None
) -> jax.Array:
    """The empirical neural tangent kernel, K = J(x1) J(x2)^T: [N, M, O, O].

    J(x) is the Jacobian of the O outputs for one x with respect to all params (Jacot, Gabriel &
    Hongler, 2018); for a scalar output, K is [N, M].

    - `f(params, x)`: the outputs [O], or a scalar, for one x, as from a network.
    - `x1`, `x2`: [N, ...] and [M, ...]; None is x1.

    >>> print(empirical_ntk(lambda w, x: jnp.dot(w, x), jnp.zeros(2), jnp.eye(2)))
    [[1. 0.]
     [0. 1.]]
    """

    def jacobians(x):
        jacobian = jax.vmap(jax.jacrev(f), (None, 0))(params, x)
        leaves, like = jax.tree.leaves(jacobian), jax.tree.leaves(params)
        flat = [
            a.reshape(*a.shape[: a.ndim - jnp.ndim(p)], -1)
            for a, p in zip(leaves, like, strict=True)
        ]
        return jnp.concatenate(flat, axis=-1)  # [N, O, n] or [N, n]

    first = jacobians(x1)
    second = first if x2 is None else jacobians(x2)
    if first.ndim == 2:
        return first @ second.T
    if first.ndim != 3:
        wanted = "f to return [O], or a scalar, for one x"
        raise errors.ShapeError(wanted, f"{first.shape[1:-1]}", "flatten it")
    return jnp.einsum("iap,jbp->ijab", first, second)


def linearize(f: Callable[..., Any], params: Tree) -> Callable[..., Any]:
    """The first-order expansion of f: g(p, *xs) = f(params, *xs) + J(xs) (p - params).

    It takes the same params and trains as an infinitely wide network would (Lee et al., 2019).

    >>> line = linearize(lambda w, x: w**2 * x, 3.0)
    >>> print(line(4.0, 1.0))
    15.0
    """

    def line(p, *xs):
        with errors.within("linearize"):
            trees.alike("p", p, "params", params)
        away = jax.tree.map(lambda a, b: a - b, p, params)
        y, change = jax.jvp(lambda q: f(q, *xs), (params,), (away,))
        return jax.tree.map(lambda a, b: a + b, y, change)

    return line


# --- shared helpers


def _grad(loss: Callable[..., Any]) -> Callable[..., Any]:
    """The gradient of a loss, which must be a scalar."""

    def scalar(*args):
        value = loss(*args)
        if jnp.shape(value) != ():
            raise errors.ShapeError("a scalar loss", errors.show(value), "average it: jnp.mean")
        return value

    return jax.grad(scalar)


def _both(f: Callable[[Tree], Any], params: Tree) -> tuple[Any, Callable, Callable]:
    """f(params), v -> J v, and u -> J^T u."""
    y, along = jax.linearize(f, params)
    transposed = jax.linear_transpose(along, params)
    return y, along, lambda u: transposed(u)[0]


def _wide(tree: Tree) -> Tree:
    return jax.tree.map(lambda a: widened(a) if is_floating(a) else a, tree)
