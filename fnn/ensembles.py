"""Ensembles: their loss, their predictions and uncertainty, and soups.

The members of an ensemble are the leading axis [n] of its params and outputs, as
`fnn.ensemble(net, n)` and `jax.vmap` make them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fnn.core import checks, errors, trees
from fnn.core.dtypes import is_floating, widened
from fnn.core.types import Tree
from fnn.losses.inputs import floating
from fnn.losses.numerics import kl

__all__ = [
    "Uncertainty", "each", "gaussian_uncertainty", "greedy_soup", "mean_logits", "soup",
    "stack", "uncertainty",
]  # fmt: skip


class Uncertainty(NamedTuple):
    """The uncertainty of an ensemble, [...]: total = aleatoric + epistemic.

    - `aleatoric`: the noise in the data, as the members predict it.
    - `epistemic`: the members' disagreement, which more data would reduce.
    """

    total: jax.Array
    aleatoric: jax.Array
    epistemic: jax.Array


def each(loss: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """The loss of an ensemble whose members each learn as they would alone, from the same batches.

        each(loss)(outputs, labels) = sum over i of loss(outputs[i], labels)

    A sum, not a mean, so that each member has its own gradient, and so its own learning rate.

    - `loss(outputs, *labels)`: of one network, such as `fnn.losses.softmax_cross_entropy`.

    Returns a function of outputs [n, ...] and the labels, for `fnn.train.supervised`.

    >>> import fnn
    >>> logits = jnp.zeros((5, 2, 4))  # five members, two examples
    >>> print(each(fnn.losses.softmax_cross_entropy)(logits, jnp.array([0, 1])) / 5)  # log 4
    [1.3862944 1.3862944]
    """
    checks.function("loss", loss, "(outputs, *labels)")

    def losses(outputs: Any, *labels: Any) -> jax.Array:
        with errors.within("each"):
            checks.examples("outputs of an ensemble", outputs)
        return jnp.sum(jax.vmap(lambda y: loss(y, *labels))(outputs), axis=0)

    return losses


@errors.named
def mean_logits(logits: jax.Array) -> jax.Array:
    """An ensemble's prediction: log mean over i of softmax(logits_i), [n, ..., C] -> [..., C].

    The log of the mean of the members' probabilities (Lakshminarayanan et al., 2017,
    section 2.4), to be used as logits in any loss or metric; in float32 or wider.

    >>> p = jnp.exp(mean_logits(jnp.log(jnp.array([[0.9, 0.1], [0.5, 0.5]]))))
    >>> [round(float(each), 2) for each in p]
    [0.7, 0.3]
    """
    return _mean(_log_probabilities(logits))


@errors.named
def uncertainty(logits: jax.Array) -> Uncertainty:
    """The uncertainty of an ensemble of classifiers, in nats: [n, ..., C] -> three of [...].

        total     = H(mean over i of p_i)
        aleatoric = mean over i of H(p_i)
        epistemic = mean over i of KL(p_i | mean p), the mutual information of class and member

    for p_i = softmax(logits_i) (Depeweg et al., 2018, section 3). In float32 or wider.

    >>> sure_but_at_odds = jnp.array([[30.0, 0.0], [0.0, 30.0]])
    >>> print(uncertainty(sure_but_at_odds).epistemic)  # log 2
    0.6931472
    """
    logs = _log_probabilities(logits)
    p, mean = jnp.exp(logs), _mean(logs)
    entropies = -jnp.sum(p * jnp.where(p > 0, logs, 0), axis=-1)
    aleatoric, epistemic = jnp.mean(entropies, axis=0), jnp.mean(kl(logs, mean[None]), axis=0)
    return Uncertainty(aleatoric + epistemic, aleatoric, epistemic)


@errors.named
def gaussian_uncertainty(
    mean: jax.Array, variance: jax.Array | None = None
) -> tuple[jax.Array, Uncertainty]:
    """Mean and variances of a mixture of Gaussians, one for each member: [n, ...] -> [...].

        m = mean over i of m_i,  aleatoric = mean of s2_i,  epistemic = mean of (m_i - m)^2

    (Lakshminarayanan et al., 2017, section 2.4.)

    - `mean`: m_i, [n, ...]. `variance`: s2_i, [n, ...], as trained by `fnn.losses.gaussian_nll`;
      None is zero.

    >>> mean, unsure = gaussian_uncertainty(jnp.array([1.0, 3.0]), jnp.array([0.5, 0.5]))
    >>> print(mean, unsure.total)
    2.0 1.5
    """
    means = _members("mean", mean)
    if variance is None:
        variances = jnp.zeros_like(means)
    else:
        trees.alike("variance", variance, "mean", mean, "give one for each output")
        variances = _members("variance", variance)
    middle = jnp.mean(means, axis=0)
    aleatoric = jnp.mean(variances, axis=0)
    epistemic = jnp.mean((means - middle[None]) ** 2, axis=0)
    return middle, Uncertainty(aleatoric + epistemic, aleatoric, epistemic)


@errors.named
def stack(members: list[Tree]) -> Tree:
    """Trees of one structure, such as params of several networks, as one tree: leaves [n, ...].

    Raises ParamsError, ShapeError or DtypeError where they differ.

    >>> print(stack([{"w": jnp.zeros(2)}, {"w": jnp.ones(2)}])["w"])
    [[0. 0.]
     [1. 1.]]
    """
    if not members:
        raise errors.InputError("members to stack", "none", "pass a list of trees")
    for i, member in enumerate(members[1:], 1):
        mend = "stack params of the same network"
        trees.alike(f"member {i}", member, "member 0", members[0], mend)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)


@errors.named
def soup(params: Tree, weights: jax.Array | None = None) -> Tree:
    """One network out of n: the mean of their params, each leaf [n, ...] -> [...].

        soup = sum over i of w_i params_i / sum over i of w_i

    Works where the members start from the same pretrained params (Wortsman et al., 2022). Means
    are computed in float32 or wider, and the leaves keep their dtypes. Batch statistics of the mean
    are not the mean of the statistics: recompute them.

    - `weights`: [n], None for equal ones.

    Raises ShapeError for leaves without a common leading axis, DtypeError for leaves that are not
    floating.

    >>> print(soup({"w": jnp.array([[1.0, 2.0], [3.0, 6.0]])})["w"])
    [2. 4.]
    """
    n = _check_floats(params)
    weights = jnp.ones(n) if weights is None else _members("weights", weights)
    if weights.shape != (n,):
        raise errors.ShapeError(f"weights ({n},)", f"{weights.shape}", "give one a member")
    return _blend(params, weights)


@errors.named
def greedy_soup(params: Tree, score: Callable[[Tree], jax.Array]) -> tuple[Tree, jax.Array]:
    """The soup of the members that improve it (Wortsman et al., 2022, algorithm 1).

    Members are added in the order of their own scores, best first, and each stays if the soup
    scores at least as well with it as without. So the soup is at least as good as the best member.

    - `score(params)`: the score of one network on held-out data, a float, higher is better, in JAX
      operations.

    Returns the soup's params and which members are in it, bool [n]. Members that score NaN are
    left out (all but the first, if all do). Raises as `soup`, and DtypeError for other scores.

    >>> members = jnp.array([[1.0], [5.0], [-1.5]])
    >>> mean, kept = greedy_soup(members, lambda w: -jnp.abs(w[0]))  # zero is best
    >>> print(mean, kept)
    [-0.25] [ True False  True]
    """
    n = _check_floats(params)
    alone = jax.lax.map(lambda params: jnp.asarray(score(params)), params)
    if alone.shape != (n,):
        raise errors.ShapeError("score to return a scalar", f"{alone.shape[1:]}", "average it")
    if not is_floating(alone):
        raise errors.DtypeError("a floating score", errors.show(alone), "cast it")
    broken = jnp.isnan(alone)
    order = jnp.lexsort((-alone, broken))

    def add(carry, i):
        kept, best = carry
        tried = kept.at[i].set(True)
        now = score(_blend(params, tried.astype(jnp.float32)))
        better = (now >= best) & ~broken[i]
        return (jnp.where(better, tried, kept), jnp.where(better, now, best)), None

    first = jnp.zeros(n, bool).at[order[0]].set(True)
    (kept, _), _ = jax.lax.scan(add, (first, alone[order[0]]), order[1:])
    return _blend(params, kept.astype(jnp.float32)), kept


def _blend(params: Tree, weights: jax.Array) -> Tree:
    """The weighted mean over members; one of weight 0 does not count, NaN included."""

    def mean(a):
        w = weights.reshape(-1, *(1,) * (a.ndim - 1)).astype(widened(a).dtype)
        counted = jnp.where((w == 0) & ~jnp.isfinite(a), 0, widened(a))
        return jnp.sum(counted * (w / jnp.sum(w)), axis=0).astype(a.dtype)

    return jax.tree.map(mean, params)


def _members(name: str, x: jax.Array) -> jax.Array:
    """An array [n, ...] of floats, n at least 1, in float32 or wider."""
    x = floating(name, x)
    if x.ndim < 1 or not x.shape[0]:
        raise errors.ShapeError(f"{name} [n, ...] of members", errors.show(x), "stack the members")
    return widened(x)


def _log_probabilities(logits: jax.Array) -> jax.Array:
    logits = _members("logits", logits)
    if logits.ndim < 2:
        raise errors.ShapeError("logits [n, ..., C]", errors.show(logits), "stack the members")
    return jax.nn.log_softmax(logits, axis=-1)


def _mean(logs: jax.Array) -> jax.Array:
    """log mean over the first axis of exp(logs), with gradient 0 where all are -inf."""
    most = jax.lax.stop_gradient(jnp.max(logs, axis=0))  # [..., C]
    most = jnp.where(jnp.isfinite(most), most, 0)
    total = jnp.mean(jnp.exp(logs - most[None]), axis=0)
    some = total != 0  # true of NaN
    return jnp.where(some, most + jnp.log(jnp.where(some, total, 1)), -jnp.inf)


def _check_floats(params: Tree) -> int:
    n = checks.examples("params of an ensemble", params)
    checks.floating_leaves("params", params, "leave it out")
    return n
