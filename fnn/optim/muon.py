"""Muon: momentum with orthogonalized matrices."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod, sqrt
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from fnn.core import checks, errors
from fnn.core.dtypes import wide
from fnn.core.lengths import as_length, length_over, scaled
from fnn.core.origins import builder
from fnn.core.types import Scalar, Schedule, Tree
from fnn.optim.adam import scale_by_adam
from fnn.optim.arithmetic import as_dtype, matmul
from fnn.optim.decay import add_decayed_weights
from fnn.optim.masking import Mask, check_mask, partition, resolve
from fnn.optim.transform import Transform, chain, leafwise, scale_by_learning_rate, stateless

Coefficients: TypeAlias = Sequence | jax.Array  # a, b and c, or [steps, 3]
QUINTIC = (3.4445, -4.7750, 2.0315)


class MuonState(NamedTuple):
    """The momentum, float32 or wider."""

    mu: Tree


@errors.named
def orthogonalize(x: jax.Array, steps: int = 5, coefficients: Coefficients = QUINTIC) -> jax.Array:
    """Roughly U V^T of x = U S V^T, [..., m, n], by the iteration of Newton and Schulz.

        X_0 = x / |x|_F
        X_{k+1} = a X_k + (b A + c A A) X_k        A = X_k X_k^T

    - `x`: one matrix or a batch of them; a zero matrix gives zero.
    - `steps`: iterations, each three matrix products.
    - `coefficients`: a, b and c, or three for each step. In five steps the default maps singular
      values above |x|_F / 100 to between 0.68 and 1.21; (2, -1.5, 0.5) converges to 1, slowly.

    The arithmetic is in float32 or wider, the result in x's dtype; the scale of x does not matter.
    Raises ShapeError for a vector or wrong coefficients, DtypeError for integers, OptionError for
    steps below 1. Jordan et al. (2024), "Muon: An optimizer for hidden layers in neural networks".

    >>> x = jnp.array([[3.0, 0.0], [0.0, -0.5]])
    >>> print(orthogonalize(x, 20, (2, -1.5, 0.5)).round(3))
    [[ 1.  0.]
     [ 0. -1.]]
    """
    x = jnp.asarray(x)
    checks.array(x, 2, "[..., m, n]")
    steps, dtype = checks.count("steps", steps), wide(x.dtype)
    table = as_dtype(coefficients, dtype)
    if table.shape not in ((3,), (steps, 3)):
        raise errors.ShapeError(
            f"coefficients (3,) or ({steps}, 3)", errors.show(table), "pass a, b and c"
        )
    tall = x.shape[-2] > x.shape[-1]
    u = (x.mT if tall else x).astype(dtype)  # the Gram matrix of the shorter side costs less
    u = scaled(u, as_length(1.0, dtype), length_over(u, (-2, -1)))
    u, _ = jax.lax.scan(_iterate, u, jnp.broadcast_to(table, (steps, 3)))
    return (u.mT if tall else u).astype(x.dtype)


def _iterate(x: jax.Array, abc: jax.Array) -> tuple[jax.Array, None]:
    a, b, c = abc
    gram = matmul(x, x.mT)  # [..., m, m]
    return a * x + matmul(b * gram + c * matmul(gram, gram), x), None


@builder
def scale_by_muon(
    beta: Scalar = 0.95, nesterov: bool = True, steps: int = 5, coefficients: Coefficients = QUINTIC
) -> Transform:
    """Momentum, orthogonalized: each matrix keeps its singular vectors, not its singular values.

        B_t = beta B_{t-1} + G_t
        u_t = orthogonalize(G_t + beta B_t)        orthogonalize(B_t) without Nesterov's momentum

    - `beta`: the weight of the old momentum, in [0, 1).
    - `nesterov`: look ahead along the new momentum.
    - `steps`, `coefficients`: of `orthogonalize`.

    A leaf is one matrix, [everything else, outputs]: a convolution's kernel [H, W, in, out] is the
    bank of filters [H W in, out], as in the authors' code. For layers stacked in one leaf, as by
    `repeat`, use `stacked`. Splitting a leaf changes its updates. `init` raises ShapeError for a
    leaf of fewer axes, which `muon` gives to Adam. The gradient's scale does not matter. Jordan et
    al. (2024).

    >>> tx = scale_by_muon()
    >>> g = 1e-6 * jnp.eye(2)
    >>> print(jnp.diag(tx.update(g, tx.init(g))[0]).round(1))
    [1.1 1.1]
    """
    checks.number("beta", beta, 0.0, 1.0, open_high=True)
    checks.count("steps", steps)

    def start(p):
        if p.ndim < 2:
            raise errors.ShapeError(
                "kernels [..., in, out]", errors.show(p), "give other leaves to Adam, as muon does"
            )
        return (jnp.zeros_like(p),)

    def rule(t, p, g, b):
        checks.real("gradients for muon", g)
        decay = as_dtype(beta, g.dtype)
        b = decay * b + g
        u = g + decay * b if nesterov else b
        matrix = u.reshape(_rows(u), u.shape[-1])
        return orthogonalize(matrix, steps, coefficients).reshape(u.shape), b

    return leafwise(MuonState, rule, start, outputs=True)


@builder
def scale_by_shape(consistent_rms: Scalar | None = None) -> Transform:
    """Matrices [m, n] times sqrt(max(1, n / m)), or times consistent_rms sqrt(max(m, n)).

    For a kernel with more axes, n is the last and m the product of the others.

    - `consistent_rms`: None for the first, which keeps the change of a layer's outputs the same for
      all widths, kernels being (in, out). A number for the second: the root mean square of the
      update of orthogonal matrices; 0.2 is about Adam's, so Adam's learning rates fit.

    Jordan et al. (2024); Liu et al. (2025), "Muon is scalable for LLM training", equation 4.

    >>> tx = scale_by_shape()
    >>> g = jnp.ones((1, 4))
    >>> print(tx.update(g, tx.init(g))[0])
    [[2. 2. 2. 2.]]
    """
    if consistent_rms is not None:
        checks.number("consistent_rms", consistent_rms, 0.0, float("inf"))

    def rule(p, g):
        rows, columns = _rows(g), g.shape[-1]
        if consistent_rms is None:
            return sqrt(max(1, columns / max(1, rows))) * g
        return sqrt(max(rows, columns)) * as_dtype(consistent_rms, g.dtype) * g

    return stateless(rule, outputs=True)


@builder
def muon(
    learning_rate: Scalar | Schedule,
    beta: Scalar = 0.95,
    nesterov: bool = True,
    weight_decay: Scalar | Schedule = 0.0,
    steps: int = 5,
    coefficients: Coefficients = QUINTIC,
    consistent_rms: Scalar | None = None,
    adam_learning_rate: Scalar | Schedule | None = None,
    adam_b1: Scalar = 0.9,
    adam_b2: Scalar = 0.999,
    adam_eps: Scalar = 1e-8,
    adam_weight_decay: Scalar | Schedule = 0.0,
    matrices: Mask = None,
) -> Transform:
    """Muon for kernels, Adam for the other leaves.

        W = W - learning_rate (s orthogonalize(G_t + beta B_t) + weight_decay W)

    with B_t of `scale_by_muon` and s of `scale_by_shape`.

    - `learning_rate`: a number or a schedule f(count); 0.02 is common.
    - `beta`, `nesterov`, `steps`, `coefficients`: see `scale_by_muon`.
    - `weight_decay`, `adam_weight_decay`: decoupled decay of the two groups.
    - `consistent_rms`: see `scale_by_shape`.
    - `adam_learning_rate`: None is the same as Muon's.
    - `adam_b1`, `adam_b2`, `adam_eps`: see `scale_by_adam`.
    - `matrices`: Muon's leaves, as a mask (see `masked`); None is those of two axes. Convolutions
      must be named. Embeddings and the last layer do better with Adam: name the others, as
      `matrices="hidden*/kernel"`.

    `init` raises ShapeError for a vector among `matrices`. Jordan et al. (2024).

    >>> tx = muon(0.1)
    >>> p = {"kernel": jnp.eye(2), "bias": jnp.ones(2)}
    >>> updates, _ = tx.update(p, tx.init(p), p)
    >>> print(jnp.diag(updates["kernel"]).round(2), updates["bias"])
    [-0.11 -0.11] [-0.1 -0.1]
    """
    mask = _two_axes if matrices is None else matrices
    check_mask(mask)
    adam_rate = learning_rate if adam_learning_rate is None else adam_learning_rate

    def labels(params):
        return jax.tree.map(lambda chosen: "muon" if chosen else "adam", resolve(mask, params))

    return partition(
        {
            "muon": chain(
                scale_by_muon(beta, nesterov, steps, coefficients),
                scale_by_shape(consistent_rms),
                add_decayed_weights(weight_decay),
                scale_by_learning_rate(learning_rate),
            ),
            "adam": chain(
                scale_by_adam(adam_b1, adam_b2, adam_eps),
                add_decayed_weights(adam_weight_decay),
                scale_by_learning_rate(adam_rate),
            ),
        },
        labels,
    )


def _rows(kernel: jax.Array) -> int:
    """The number of inputs of one output: all axes but the last."""
    return prod(kernel.shape[:-1])


def _two_axes(params: Tree) -> Tree:
    return jax.tree.map(lambda p: jnp.ndim(p) == 2, params)
