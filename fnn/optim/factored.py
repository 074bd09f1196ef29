"""Second moments in less memory than the params: Adafactor and SM3."""

from __future__ import annotations

from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fnn.core import checks
from fnn.core.lengths import as_length, at_least, length_of, modulus, scaled, times
from fnn.core.origins import builder
from fnn.core.types import Scalar, Schedule, Tree
from fnn.optim.arithmetic import as_dtype, average, divide, sizes_like, sqrt, square
from fnn.optim.averaging import ema
from fnn.optim.clip import clip_by_block_rms
from fnn.optim.decay import add_decayed_weights
from fnn.optim.masking import Mask
from fnn.optim.transform import (
    Transform,
    chain,
    leafwise,
    need_params,
    scale_by_learning_rate,
    stateless,
)


class FactoredState(NamedTuple):
    """The number of updates and the averages of squared gradients, float32 or wider.

    Factored leaves have `v_row` and `v_col`, the others `v`; what a leaf does not use is empty.
    """

    count: jax.Array
    v_row: Tree
    v_col: Tree
    v: Tree


class Sm3State(NamedTuple):
    """For each leaf, one vector per axis of maxima over its slices, and the momentum."""

    mu: Tree
    nu: Tree


# --- Adafactor


@builder
def scale_by_factored_rms(
    decay_rate: Scalar = 0.8, min_dim_size_to_factor: int = 128, eps: Scalar = 1e-30
) -> Transform:
    """The gradient over its root mean square, which is kept as a vector of rows and one of columns.

        b_t = 1 - t^-decay_rate
        R_t = b_t R_{t-1} + (1 - b_t) (mean of G_t^2 + eps over columns)
        C_t = b_t C_{t-1} + (1 - b_t) (mean of G_t^2 + eps over rows)
        U_t = G_t / sqrt(R_t C_t / mean(R_t))

    Rows and columns are a leaf's two longest axes; other axes are a batch of such matrices. Leaves
    with shorter axes keep all of V_t = b_t V_{t-1} + (1 - b_t) (G_t^2 + eps), and U_t is G_t /
    sqrt(V_t). Splitting or reshaping a factored leaf changes the result.

    - `decay_rate`: how fast b_t goes to 1, at least 0. b_1 = 0, so no correction is needed.
    - `min_dim_size_to_factor`: the shortest axis worth factoring; 1 factors all matrices.
    - `eps`: added to squared gradients.

    Values whose squares would overflow count as the largest that do not. Shazeer & Stern (2018),
    algorithms 4 and 5, with the decay of section 7.2.

    >>> tx = scale_by_factored_rms(min_dim_size_to_factor=1)
    >>> g = jnp.array([[1.0, 2.0], [-2.0, -4.0]])
    >>> print(tx.update(g, tx.init(g))[0])
    [[ 1.  1.]
     [-1. -1.]]
    """
    checks.number("decay_rate", decay_rate, 0.0, float("inf"))
    checks.number("eps", eps, 0.0, float("inf"))
    least = checks.count("min_dim_size_to_factor", min_dim_size_to_factor)

    def start(p):
        axes, p = _longest(p.shape, least), sizes_like(p)
        if axes is None:
            return *(jnp.zeros((0,), p.dtype) for _ in range(2)), jnp.zeros_like(p)
        return *(jnp.zeros_like(jnp.sum(p, axis)) for axis in axes), jnp.zeros((0,), p.dtype)

    def rule(t, p, g, v_row, v_col, v):
        new = t ** -as_dtype(decay_rate, t.dtype)  # = 1 - b_t, without the rounding of a difference
        most = (jnp.finfo(t.dtype).max / max(g.size, 1)) ** 0.5  # so that sums stay finite
        g = divide(g, jnp.maximum(modulus(g) / most, 1))
        squares = square(g) + as_dtype(eps, t.dtype)
        axes = _longest(g.shape, least)
        if axes is None:
            v = (1 - new) * v + new * squares
            return divide(g, sqrt(v)), v_row, v_col, v
        over_columns, over_rows = axes
        v_row = (1 - new) * v_row + new * jnp.mean(squares, over_columns)
        v_col = (1 - new) * v_col + new * jnp.mean(squares, over_rows)
        r = jnp.expand_dims(v_row, over_columns)
        c = jnp.expand_dims(v_col, over_rows)
        # roots first: quotients of squares may underflow
        root = divide(sqrt(r), sqrt(jnp.mean(r, over_rows, keepdims=True))) * sqrt(c)
        return divide(g, root), v_row, v_col, v

    return leafwise(FactoredState, rule, start, whole=True)


@builder
def scale_by_param_block_rms(min_scale: Scalar = 1e-3) -> Transform:
    """Updates in proportion to their leaf's params: u = max(min_scale, RMS(p)) g.

    - `min_scale`: lets params that start at zero move.

    Shazeer & Stern (2018), section 8.

    >>> tx = scale_by_param_block_rms()
    >>> p = jnp.full(2, 3.0)
    >>> u, _ = tx.update(jnp.ones(2), tx.init(p), p)
    >>> print(f"{u[0]:.3f} {u[1]:.3f}")
    3.000 3.000
    """
    checks.number("min_scale", min_scale, 0.0, float("inf"))

    def rule(p, g):
        need_params(p)
        rms = at_least(times(1 / max(p.size, 1) ** 0.5, length_of(p)), min_scale)
        return scaled(g, rms, as_length(1.0, rms.root.dtype))

    return stateless(rule, whole=True)


@builder
def adafactor(
    learning_rate: Scalar | Schedule | None = None,
    min_dim_size_to_factor: int = 128,
    decay_rate: Scalar = 0.8,
    multiply_by_parameter_scale: bool = True,
    clipping_threshold: Scalar = 1.0,
    momentum: Scalar | None = None,
    weight_decay: Scalar | Schedule | None = None,
    mask: Mask = None,
    eps: Scalar = 1e-30,
    min_scale: Scalar = 1e-3,
) -> Transform:
    """Adafactor: a factored second moment, clipped, in proportion to the params.

        Uhat_t = U_t / max(1, RMS(U_t) / clipping_threshold)
        p = p - learning_rate max(min_scale, RMS(p)) Uhat_t

    - `learning_rate`: a number or a schedule f(count). None is the paper's,
      min(0.01, 1 / sqrt(t)), relative to the size of the params.
    - `min_dim_size_to_factor`, `decay_rate`, `eps`: see `scale_by_factored_rms`.
    - `multiply_by_parameter_scale`, `min_scale`: see `scale_by_param_block_rms`.
    - `clipping_threshold`: the largest RMS of a leaf's update; None does not clip.
    - `momentum`: the decay of an average of the steps; None, the paper's choice, keeps none.
    - `weight_decay`, `mask`: see `add_decayed_weights`; None does not decay. The learning rate
      scales it, as in all of fnn.

    Shazeer & Stern (2018), algorithms 4 to 6.

    >>> tx = adafactor()
    >>> p = jnp.full(2, 3.0)
    >>> print(tx.update(jnp.array([5.0, -7.0]), tx.init(p), p)[0])
    [-0.03  0.03]
    """
    steps = [scale_by_factored_rms(decay_rate, min_dim_size_to_factor, eps)]
    if clipping_threshold is not None:
        steps.append(clip_by_block_rms(clipping_threshold))
    if multiply_by_parameter_scale:
        steps.append(scale_by_param_block_rms(min_scale))
    if momentum is not None:
        steps.append(ema(momentum, debias=False))
    if weight_decay is not None:
        steps.append(add_decayed_weights(weight_decay, mask))
    rate = _relative_step if learning_rate is None else learning_rate
    return chain(*steps, scale_by_learning_rate(rate))


def _relative_step(count: jax.Array) -> jax.Array:
    return jnp.minimum(0.01, 1 / jnp.sqrt(count.astype(float) + 1))


def _longest(shape: tuple, least: int) -> tuple[int, int] | None:
    """The axes to average over for rows and for columns, if both have at least `least` elements."""
    if len(shape) < 2:
        return None
    row, column = sorted(range(len(shape)), key=lambda axis: shape[axis])[-2:]
    return (column, row) if shape[row] >= least else None


# --- SM3


@builder
def scale_by_sm3(b1: Scalar = 0.9, eps: Scalar = 0.0) -> Transform:
    """The momentum of gradients over the root of their squares, kept as one vector per axis.

        v_t(i)  = min over the slices r with i of mu_{t-1}(r), plus g_t(i)^2
        mu_t(r) = max over the i in slice r of v_t(i)
        m_t     = b1 m_{t-1} + (1 - b1) g_t / sqrt(v_t + eps)              0 / 0 = 0
        u_t     = m_t

    The slices of a leaf are those along each of its axes, so [M, N] keeps M + N numbers beside its
    momentum. For a vector, whose slices are its elements, this is Adagrad. Splitting a matrix
    changes the result.

    - `b1`: the weight of the old momentum, in [0, 1).
    - `eps`: added in the root. The paper has none; with 0 the gradients' scale does not matter.
      optax has 1e-8.

    Anil et al. (2019), algorithm SM3-II.

    >>> tx = scale_by_sm3(b1=0.0)
    >>> g = jnp.array([[3.0, 0.0], [-4.0, 1.0]])
    >>> first, state = tx.update(g, tx.init(g))
    >>> print(first)
    [[ 1.  0.]
     [-1.  1.]]
    >>> print(state.mu)
    (Array([ 9., 16.], dtype=float32), Array([16.,  1.], dtype=float32))
    """
    checks.number("b1", b1, 0.0, 1.0, open_high=True)
    checks.number("eps", eps, 0.0, float("inf"))

    def start(p):
        slices = tuple(jnp.zeros_like(jnp.sum(sizes_like(p), axes)) for axes in _across(p.ndim))
        return slices, jnp.zeros_like(p)

    def rule(t, p, g, mu, m):
        across = _across(g.ndim)
        v = reduce(jnp.minimum, map(jnp.expand_dims, mu, across)) + square(g)
        mu = tuple(jnp.max(v, axes, initial=0) for axes in across)
        m = average(b1, m, divide(g, sqrt(v + as_dtype(eps, v.dtype))))
        return m, mu, m

    return leafwise(Sm3State, rule, start, whole=True)


@builder
def sm3(learning_rate: Scalar | Schedule, momentum: Scalar = 0.9, eps: Scalar = 0.0) -> Transform:
    """SM3: p = p - learning_rate m, see `scale_by_sm3`.

    - `momentum`, `eps`: b1 and eps as there; the defaults are the paper's.

    >>> tx = sm3(0.1, momentum=0.0)
    >>> g = jnp.array([3.0])
    >>> print(tx.update(g, tx.init(g))[0])
    [-0.1]
    """
    return chain(scale_by_sm3(momentum, eps), scale_by_learning_rate(learning_rate))


def _across(ndim: int) -> list[tuple[int, ...]]:
    """For each axis, the others; a scalar is its own slice."""
    axes = range(ndim)
    return [tuple(b for b in axes if b != a) for a in axes] or [()]
