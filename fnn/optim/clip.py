"""Gradients clipped, centred, freed of NaN, or made noisy."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fnn.core import checks, errors
from fnn.core.dtypes import real_part
from fnn.core.lengths import as_length, at_least, length_of, length_over, shortened, times
from fnn.core.origins import builder
from fnn.core.types import Key, Scalar, Tree
from fnn.optim.arithmetic import as_dtype, increment, norm, sqrt
from fnn.optim.members import map_members
from fnn.optim.transform import Transform, check_state, each_leaf, need_params, stateless


class ZeroNansState(NamedTuple):
    """For each leaf, whether its last gradient contained a NaN."""

    found_nan: Tree


class AddNoiseState(NamedTuple):
    """The number of updates, and the key that the next noise is drawn from."""

    count: jax.Array
    key: jax.Array


@builder
def clip(max_delta: Scalar) -> Transform:
    """Every value clipped to [-max_delta, max_delta].

    - `max_delta`: at least 0. NaN stays NaN.

    >>> tx = clip(1.0)
    >>> print(tx.update(jnp.array([3.0, -0.5]), ())[0])
    [ 1.  -0.5]
    """
    checks.number("max_delta", max_delta, 0.0, float("inf"))

    def rule(p, g):
        checks.real("gradients to clip", g)
        most = as_dtype(max_delta, g.dtype)
        return jnp.clip(g, -most, most)

    return stateless(rule)


@builder
def clip_by_global_norm(max_norm: Scalar) -> Transform:
    """The whole gradient scaled to norm max_norm if it is longer: g min(1, max_norm / |g|).

    |g| is the root of the sum of squares over all leaves, computed in float32 or wider without
    over- or underflow. A zero gradient stays zero, and derivatives through it are finite. How the
    values are split into leaves does not matter.

    - `max_norm`: at least 0, near the usual norm of the gradient; 1.0 is common.

    Pascanu, Mikolov & Bengio (2013), algorithm 1.

    >>> tx = clip_by_global_norm(1.0)
    >>> print(tx.update({"a": jnp.array([3.0]), "b": jnp.array([4.0])}, ())[0]["b"])
    [0.8]
    """
    checks.number("max_norm", max_norm, 0.0, float("inf"))

    def update(grads, opt_state, params=None, **extra):
        checks.floating_leaves("the gradient", grads)
        length = length_of(*map(jnp.asarray, jax.tree.leaves(grads)))
        most = as_length(max_norm, length.root.dtype)
        (updates,) = each_leaf(lambda p, g: (shortened(g, most, length),), grads)
        return updates, opt_state

    return Transform(lambda params: (), update)


@errors.named
def global_norm(tree: Tree) -> jax.Array:
    """The root of the sum of all squares in all leaves, in float32 or wider: a tree -> [].

    No square over- or underflows, and the derivative at zero is zero. Raises DtypeError for
    leaves that are not floating.

    >>> print(global_norm({"a": jnp.array([3.0, 0.0]), "b": 4.0}))
    5.0
    """
    checks.floating_leaves("the tree", tree, or_complex=True)
    return norm(*map(jnp.asarray, jax.tree.leaves(tree)))


@builder
def clip_by_block_rms(threshold: Scalar) -> Transform:
    """Each leaf scaled to a root mean square of threshold if it is larger.

        u = g / max(1, RMS(g) / threshold)

    Defined per leaf: splitting a leaf changes the result.

    - `threshold`: at least 0; Adafactor uses 1.0.

    Shazeer & Stern (2018), section 6.

    >>> tx = clip_by_block_rms(1.0)
    >>> u, _ = tx.update(jnp.array([3.0, 3.0]), ())
    >>> print(f"{u[0]:.3f} {u[1]:.3f}")
    1.000 1.000
    """
    checks.number("threshold", threshold, 0.0, float("inf"))

    def rule(p, g):
        rms = times(1 / max(g.size, 1) ** 0.5, length_of(g))
        return shortened(g, as_length(threshold, rms.root.dtype), rms)

    return stateless(rule, whole=True)


@builder
def adaptive_grad_clip(
    clipping: Scalar, eps: Scalar = 1e-3, axis: int | tuple[int, ...] | None = None
) -> Transform:
    """The gradient of each unit clipped to a share of the norm of the unit's weights.

        G_i = clipping max(|W_i|, eps) G_i / |G_i|    if |G_i| > clipping max(|W_i|, eps)

    A unit is the weights of one output: all axes of a kernel but the last, which is the outputs';
    a vector or a scalar is one unit. So this is defined per leaf.

    - `clipping`: the largest share, at least 0; the paper's are 0.01 to 0.16.
    - `eps`: lets weights that start at zero move; the paper's default.
    - `axis`: the axes of a unit, an int or a tuple; None for all but the last.

    Brock et al. (2021), equation 3.

    >>> tx = adaptive_grad_clip(0.1)
    >>> w, g = jnp.array([[3.0, 1.0], [4.0, 0.0]]), jnp.array([[0.0, 0.05], [10.0, 0.0]])
    >>> print(tx.update(g, (), w)[0])
    [[0.   0.05]
     [0.5  0.  ]]
    """
    checks.number("clipping", clipping, 0.0, float("inf"))
    checks.number("eps", eps, 0.0, float("inf"))

    def rule(p, g):
        axes = axis if axis is not None else tuple(range(g.ndim - (g.ndim > 1)))
        weights = at_least(length_over(p, axes), eps)
        return shortened(g, times(clipping, weights), length_over(g, axes))

    return _of_params(rule)


def _of_params(rule: Callable) -> Transform:
    """`stateless` for a rule that reads params and takes their last axis as the outputs'."""
    tx = stateless(rule, outputs=True)

    def update(grads, opt_state, params=None, **extra):
        need_params(params)
        return tx.update(grads, opt_state, params)

    return Transform(tx.init, update)


@builder
def centralize(output_axis: int = -1) -> Transform:
    """The gradient of each unit without its mean: g_i - mean(g_i).

    A unit is the weights of one output: all axes but the outputs'. Vectors and scalars pass
    unchanged. So this is defined per leaf.

    - `output_axis`: the outputs' axis of a kernel, -1, or 0 for kernels stored the other way round.

    Yong et al. (2020), equation 1.

    >>> tx = centralize()
    >>> print(tx.update(jnp.array([[1.0, 5.0], [3.0, 5.0]]), ())[0])
    [[-1.  0.]
     [ 1.  0.]]
    """
    if output_axis not in (0, -1):
        raise errors.OptionError("output_axis 0 or -1", errors.show(output_axis), "pass -1")

    def rule(p, g):
        if g.ndim < 2 or not g.size:
            return g
        units = tuple(range(g.ndim - 1)) if output_axis else tuple(range(1, g.ndim))
        return g - jnp.mean(g, units, keepdims=True)

    return stateless(rule, outputs=True)


@builder
def zero_nans() -> Transform:
    """Every NaN replaced by zero; infinities stay. The state records which leaves had a NaN.

    To skip whole updates that are not finite, use `skip_nonfinite`.

    >>> tx = zero_nans()
    >>> g = jnp.array([1.0, jnp.nan])
    >>> tx.update(g, tx.init(g))
    (Array([1., 0.], dtype=float32), ZeroNansState(found_nan=Array(True, dtype=bool)))
    """

    def init(params):
        checks.floating_leaves("params", params, or_complex=True)
        return ZeroNansState(map_members(lambda p: jnp.zeros((), bool), params))

    def update(grads, opt_state, params=None, **extra):
        check_state(opt_state, ZeroNansState)
        (updates,) = each_leaf(lambda p, g: (jnp.where(jnp.isnan(g), 0, g),), grads)
        return updates, ZeroNansState(map_members(lambda g: jnp.any(jnp.isnan(g)), grads))

    return Transform(init, update)


@builder
def add_noise(eta: Scalar, gamma: Scalar, key: Key) -> Transform:
    """Normal noise added to the gradient, with a variance that falls at every step.

        g_t + N(0, sigma_t^2)        sigma_t^2 = eta / (1 + t)^gamma, t from 0

    - `eta`: the first variance, at least 0; the paper's are 0.01, 0.3 and 1.
    - `gamma`: how fast it falls; the paper's is 0.55.
    - `key`: the source of all noise. It goes into the state and is split at each update.

    Leaves draw by their position in the tree, so renaming them may change the noise.
    Neelakantan et al. (2015), equation 1.

    >>> tx = add_noise(0.01, 0.55, jax.random.key(0))
    >>> g = jnp.zeros(3)
    >>> updates, state = tx.update(g, tx.init(g))
    >>> print(bool((updates != 0).all()), state.count)
    True 1
    """
    checks.number("eta", eta, 0.0, float("inf"))
    checks.number("gamma", gamma, 0.0, float("inf"))
    key = checks.typed_key(key)

    def init(params):
        return AddNoiseState(jnp.zeros((), jnp.int32), jax.random.clone(key))

    def update(grads, opt_state, params=None, **extra):
        check_state(opt_state, AddNoiseState)
        count, (kept, drawn) = opt_state.count, jax.random.split(opt_state.key)
        keys = iter(jax.random.split(drawn, max(len(jax.tree.leaves(grads)), 1)))  # one a leaf

        def rule(p, g):
            dtype = real_part(g.dtype)
            falling = jnp.exp(-as_dtype(gamma, dtype) / 2 * jnp.log1p(count.astype(dtype)))
            sigma = as_dtype(sqrt(as_dtype(eta, dtype)) * falling, g.dtype)
            return (g + sigma * jax.random.normal(next(keys), g.shape, g.dtype),)

        (updates,) = each_leaf(rule, grads, stacks=False)  # else members would draw alike
        return updates, AddNoiseState(increment(count), kept)

    return Transform(init, update)
