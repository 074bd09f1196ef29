"""Kronecker preconditioning: Shampoo, and SOAP, which is Adam in Shampoo's eigenbasis."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fnn.core import checks
from fnn.core.origins import builder
from fnn.core.types import Scalar, Schedule, Tree
from fnn.optim.arithmetic import as_dtype, average, correction, divide, matmul, over_root, sqrt
from fnn.optim.decay import add_decayed_weights
from fnn.optim.masking import Mask
from fnn.optim.transform import Transform, chain, leafwise, scale_by_learning_rate


class ShampooState(NamedTuple):
    """Sums of squares by rows and columns and their roots; for other leaves, by elements (nu)."""

    count: jax.Array
    nu: Tree
    left: Tree
    right: Tree
    left_root: Tree
    right_root: Tree


class SoapState(NamedTuple):
    """Adam's moments, nu in the eigenbases, and the averages that these come from."""

    count: jax.Array
    mu: Tree
    nu: Tree
    left: Tree
    right: Tree
    left_basis: Tree
    right_basis: Tree


@builder
def scale_by_shampoo(
    eps: Scalar = 1e-4, precondition_frequency: Scalar = 1, max_precondition_size: int = 1024
) -> Transform:
    """A matrix multiplied on both sides by inverse fourth roots of its sums of squares.

        L_t = L_{t-1} + G_t G_t^T        R_t = R_{t-1} + G_t^T G_t        L_0, R_0 = eps I
        u_t = L_t^{-1/4} G_t R_t^{-1/4}

    - `eps`: the scale of the first sums, positive.
    - `precondition_frequency`: how many updates share the roots, which cost n^3.
    - `max_precondition_size`: longer axes keep no matrix; its root is I.

    A leaf [..., m, n] is a batch of matrices. Leaves with fewer axes, and matrices whose axes are
    both too long, keep only the diagonal, as in Adagrad: u = G / sqrt(eps + sum G^2). Roots are
    computed from eigenvalues; their derivatives, of any order, are exact for equal eigenvalues too.
    In float32 a root is accurate only down to 1e-6 of the largest eigenvalue.
    Gupta et al. (2018), algorithm 1.

    >>> tx = scale_by_shampoo(eps=1e-12)
    >>> g = jnp.diag(jnp.array([4.0, 0.01]))
    >>> print(tx.update(g, tx.init(g))[0].round(3))
    [[1. 0.]
     [0. 1.]]
    """
    checks.number("eps", eps, 0.0, float("inf"))
    checks.number("precondition_frequency", precondition_frequency, 1.0, float("inf"))
    checks.count("max_precondition_size", max_precondition_size)

    def start(p):
        left, right = _identities(p, max_precondition_size)
        nu = jnp.zeros_like(p) if left.size + right.size == 0 else jnp.zeros(0, p.dtype)
        first = as_dtype(eps, p.dtype)
        return nu + first, *(first * a for a in (left, right)), left, right

    def rule(t, p, g, nu, left, right, left_root, right_root):
        checks.real("gradients for shampoo", g)
        if left.size + right.size == 0:
            nu = nu + g**2
            return divide(g, sqrt(nu)), nu, left, right, left_root, right_root
        left, right = map(jnp.add, (left, right), _squares(g, left, right))
        floor = as_dtype(eps, g.dtype)  # only rounding takes an eigenvalue below it
        left_root, right_root = jax.lax.cond(
            (t - 1) % as_dtype(precondition_frequency, t.dtype) == 0,
            _rooted, _kept, (left_root, right_root), (left, right), floor,
        )  # fmt: skip
        u = _between(left_root, g, right_root)
        return u, nu, left, right, left_root, right_root

    return leafwise(ShampooState, rule, start, whole=True)


@builder
def shampoo(
    learning_rate: Scalar | Schedule,
    eps: Scalar = 1e-4,
    precondition_frequency: Scalar = 1,
    max_precondition_size: int = 1024,
) -> Transform:
    """Shampoo: W = W - learning_rate L^{-1/4} G R^{-1/4}, see `scale_by_shampoo`.

    - the others: see `scale_by_shampoo`. For momentum, `chain(trace(0.9), shampoo(...))`.

    >>> tx = shampoo(0.1, eps=1e-12)
    >>> g = jnp.diag(jnp.array([4.0, 0.01]))
    >>> print(jnp.diag(tx.update(g, tx.init(g))[0]).round(3))
    [-0.1 -0.1]
    """
    return chain(
        scale_by_shampoo(eps, precondition_frequency, max_precondition_size),
        scale_by_learning_rate(learning_rate),
    )


@builder
def scale_by_soap(
    b1: Scalar = 0.95,
    b2: Scalar = 0.95,
    eps: Scalar = 1e-8,
    precondition_frequency: Scalar = 10,
    max_precondition_size: int = 1024,
) -> Transform:
    """Adam in the eigenbases of the gradient's squares by rows and by columns.

        M_t = b1 M_{t-1} + (1 - b1) G_t
        V_t = b2 V_{t-1} + (1 - b2) (Q_L^T G_t Q_R)^2
        u_t = Q_L (Q_L^T Mhat_t Q_R / (sqrt(Vhat_t) + eps)) Q_R^T
        L_t = b2 L_{t-1} + (1 - b2) G_t G_t^T        R_t = b2 R_{t-1} + (1 - b2) G_t^T G_t
        at times, Q_L = QR(L_t Q_L)                  Q_R = QR(R_t Q_R)

    - `b1`, `b2`, `eps`: see `scale_by_adam`; the defaults are the paper's.
    - `precondition_frequency`: the bases are refreshed when it divides t, and in the first that
      many updates, while they are far off.
    - `max_precondition_size`: longer axes keep no basis; it stays I.

    A leaf [..., m, n] is a batch of matrices; for a leaf of fewer axes this is Adam. The bases
    start as I; the authors start from eigenvectors of the first gradient, without an update: those
    are not unique and have no derivative. For the same reason Q comes from L + 1e-4 tr(L) / n I,
    which has the same eigenvectors. Vyas et al. (2024), algorithms 3 and 4.

    >>> tx = scale_by_soap()
    >>> g = jnp.array([[3.0, -0.1]])
    >>> print(tx.update(g, tx.init(g))[0].round(3))
    [[ 1. -1.]]
    """
    checks.number("b1", b1, 0.0, 1.0, open_high=True)
    checks.number("b2", b2, 0.0, 1.0, open_high=True)
    checks.number("eps", eps, 0.0, float("inf"))
    checks.number("precondition_frequency", precondition_frequency, 1.0, float("inf"))
    checks.count("max_precondition_size", max_precondition_size)

    def start(p):
        ql, qr = _identities(p, max_precondition_size)
        return jnp.zeros_like(p), jnp.zeros_like(p), 0 * ql, 0 * qr, ql, qr

    def rule(t, p, g, m, v, left, right, ql, qr):
        checks.real("gradients for soap", g)
        m = average(b1, m, g)
        v = average(b2, v, _between(ql.mT, g, qr) ** 2)
        n = over_root(_between(ql.mT, m * correction(b1, t), qr), v * correction(b2, t), eps)
        u = _between(ql, n, qr.mT)
        squares = zip((left, right), _squares(g, left, right), strict=True)
        left, right = (average(b2, old, new) for old, new in squares)
        often = as_dtype(precondition_frequency, t.dtype)
        ql, qr = jax.lax.cond(
            (t <= often) | (t % often == 0), _rotated, _kept, (ql, qr), (left, right)
        )
        return u, m, v, left, right, ql, qr

    return leafwise(SoapState, rule, start, whole=True)


@builder
def soap(
    learning_rate: Scalar | Schedule = 3e-3,
    b1: Scalar = 0.95,
    b2: Scalar = 0.95,
    eps: Scalar = 1e-8,
    weight_decay: Scalar | Schedule = 0.01,
    precondition_frequency: Scalar = 10,
    max_precondition_size: int = 1024,
    mask: Mask = None,
) -> Transform:
    """SOAP: W = W - learning_rate (u + weight_decay W), see `scale_by_soap`.

    - `weight_decay`, `mask`: decoupled, see `add_decayed_weights`.
    - the others: see `scale_by_soap`; the defaults, but for `max_precondition_size`, are those of
      the authors' code.

    >>> tx = soap(0.1, weight_decay=0.0)
    >>> g = jnp.array([[3.0, -0.1]])
    >>> print(tx.update(g, tx.init(g), g)[0].round(3))
    [[-0.1  0.1]]
    """
    return chain(
        scale_by_soap(b1, b2, eps, precondition_frequency, max_precondition_size),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )


# --- the two sides of a matrix; an empty side stands for I


def _identities(p: jax.Array, longest: int) -> list[jax.Array]:
    """I for rows and columns, [..., m, m] and [..., n, n]."""

    def side(n):
        if p.ndim < 2 or p.size == 0 or n > longest:
            return jnp.zeros((0, 0), p.dtype)
        return jnp.broadcast_to(jnp.eye(n, dtype=p.dtype), (*p.shape[:-2], n, n))

    return [side(n) for n in (p.shape[-2:] if p.ndim > 1 else (0, 0))]


def _squares(g: jax.Array, left: jax.Array, right: jax.Array) -> tuple[jax.Array, jax.Array]:
    """G G^T and G^T G, where they are kept."""
    return matmul(g, g.mT) if left.size else left, matmul(g.mT, g) if right.size else right


def _between(left: jax.Array, g: jax.Array, right: jax.Array) -> jax.Array:
    g = matmul(left, g) if left.size else g
    return matmul(g, right) if right.size else g


def _kept(sides: tuple, *_: Any) -> tuple:
    return sides


def _rooted(_: tuple, squares: tuple, floor: jax.Array) -> tuple:
    return tuple(inverse_fourth_root(a, floor) for a in squares)


def _rotated(bases: tuple, squares: tuple) -> tuple:
    return tuple(map(_refreshed, squares, bases))


def _refreshed(p: jax.Array, q: jax.Array) -> jax.Array:
    """One step of the power method from Q, made orthogonal: algorithm 4 of SOAP.

    The shift keeps the product of full rank, so that QR is well determined and differentiable.
    """
    if not p.size:
        return q
    shift = 1e-4 * jnp.trace(p, axis1=-2, axis2=-1)[..., None, None] / p.shape[-1]
    return jnp.linalg.qr(matmul(p, q) + jnp.where(shift > 0, shift, 1) * q)[0]


# --- roots of positive matrices


def inverse_fourth_root(a: jax.Array, floor: jax.Array) -> jax.Array:
    """a^{-1/4} of symmetric matrices [..., n, n], eigenvalues not below floor; I if it is empty."""
    return jnp.linalg.inv(_fourth_root(a, floor)) if a.size else a


@jax.custom_jvp
def _fourth_root(a: jax.Array, floor: jax.Array) -> jax.Array:
    q, r = _eigen(a, floor)
    return matmul(q * r[..., None, :], q.mT)


@_fourth_root.defjvp
def _fourth_root_jvp(primals: tuple, tangents: tuple) -> tuple:
    """P = A^{1/4} solves P^4 = A, so dA = P^3 dP + P^2 dP P + P dP P^2 + dP P^3.

    Eigenvectors solve this, but the equation itself is differentiated: eigenvectors have no
    derivative where eigenvalues are equal.
    """
    a, floor = primals
    p = _fourth_root(a, floor)
    q, r = jax.lax.stop_gradient(_eigen(a, floor))
    ri, rj = r[..., :, None], r[..., None, :]

    def product(dp):
        p2, p3 = matmul(p, p), matmul(p, matmul(p, p))
        return (
            matmul(p3, dp) + matmul(p2, matmul(dp, p)) + matmul(p, matmul(dp, p2)) + matmul(dp, p3)
        )

    def solve(_, da):
        return matmul(q, matmul(matmul(q.mT, matmul(da, q)) / ((ri + rj) * (ri**2 + rj**2)), q.mT))

    return p, jax.lax.custom_linear_solve(product, tangents[0], solve, symmetric=True)


def _eigen(a: jax.Array, floor: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Eigenvectors, and the fourth roots of eigenvalues."""
    values, vectors = jnp.linalg.eigh(a)
    return vectors, jnp.maximum(values, floor) ** 0.25
