"""Means that carry their weight, so that the parts of a batch add up to the whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fnn.core import checks, errors
from fnn.core.dtypes import wide
from fnn.core.types import Scalar, Tree
from fnn.losses.inputs import floating
from fnn.losses.masking import check_mask, check_weights


@partial(jax.tree_util.register_dataclass, data_fields=["total", "weight"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean that carries its weight, total / weight: the sums of w_i l_i and of w_i, both [].

    `mean` makes it. A loss function of `fnn.train.step` may return one instead of a scalar, and
    others among its metrics; so may the functions that `fnn.optim.accumulate` and the like
    differentiate. Parts of a batch then count by their weights, and together give what the whole
    batch gives; `value` is the scalar. It is a pytree of its two sums.

    Like a scalar, it can be added to a penalty, and multiplied by a number or an array []:
    `mean(losses, mask) + 1e-4 * l2(params)`. Two of them cannot be added: their weights may differ.

    >>> half = Mean(jnp.array(3.0), jnp.array(2.0))
    >>> print(half.value, (2 * half + 1).value)
    1.5 4.0
    """

    total: jax.Array
    weight: jax.Array

    @property
    def value(self) -> jax.Array:
        """total / weight; 0, with gradient 0, where nothing counts."""
        none = self.weight == 0
        ratio = self.total / jnp.where(none, 1, self.weight).astype(self.total.dtype)
        return jnp.where(none, 0, ratio)

    def __add__(self, other: Scalar) -> Mean:
        return Mean(
            self.total + self.weight.astype(self.total.dtype) * self._like(other), self.weight
        )

    def __mul__(self, other: Scalar) -> Mean:
        return Mean(self.total * self._like(other), self.weight)

    __radd__, __rmul__ = __add__, __mul__

    def __neg__(self) -> Mean:
        return Mean(-self.total, self.weight)

    def __sub__(self, other: Scalar) -> Mean:
        return self + -self._like(other)

    def __truediv__(self, other: Scalar) -> Mean:
        return Mean(self.total / self._like(other), self.weight)

    def _like(self, other: Scalar | Mean) -> jax.Array:
        if isinstance(other, Mean):
            raise errors.InputError(
                "a number beside a Mean",
                "another Mean, whose weight is its own",
                "add the losses before you average them, or take the value of one",
            )
        return jnp.asarray(other).astype(self.total.dtype)


@errors.named
def mean(
    losses: jax.Array, mask: jax.Array | None = None, weights: jax.Array | None = None
) -> Mean:
    """The weighted mean of losses, sum of w_i l_i / sum of w_i, with its weight: [...] -> Mean.

    - `losses`: floating, as the functions of `fnn.losses` return them.
    - `mask`: True where a loss counts, of the losses' shape or its first axes.
    - `weights`: how much each counts, at least 0, of the losses' shape or its first axes: weights
      of examples, of classes (`class_weights`), or their product.

    What does not count (masked, or of weight 0) is ignored, NaN included. Computed in float32
    or wider. Raises ShapeError or DtypeError for masks or weights that do not fit.

    >>> losses, tokens = jnp.array([1.0, 3.0, jnp.nan]), jnp.array([True, True, False])
    >>> print(mean(losses, tokens).value, mean(losses, tokens, jnp.array([3.0, 1.0, 1.0])).value)
    2.0 1.5
    """
    losses = floating("losses", losses)
    keep = check_mask(mask, losses.shape)
    w = check_weights(weights, losses.shape, wide(losses.dtype))
    losses = losses.astype(wide(losses.dtype))
    w = jnp.ones_like(losses) if w is None else w
    w = w if keep is None else jnp.where(keep, w, 0)
    return Mean(jnp.sum(w * jnp.where(w == 0, 0, losses)), jnp.sum(w))


@partial(jax.tree_util.register_dataclass, data_fields=["sums"], meta_fields=["compute"])
@dataclasses.dataclass(frozen=True)
class Measured:
    """A value that is a function of sums over examples, which add up: `compute(sums)`.

    What `fnn.train.supervised` returns for a metric, so that the metric of accumulated parts is
    that of the whole batch; `fnn.train.step` returns its `value`.
    """

    sums: Tree
    compute: Callable[[Any], Any]

    @property
    def value(self) -> Any:
        return self.compute(self.sums)


def is_sum(node: Any) -> bool:
    """Whether a node of a tree adds up over the parts of a batch."""
    return isinstance(node, (Mean, Measured))


def values(tree: Tree) -> Tree:
    """A tree with its means and measured metrics replaced by their values."""
    return jax.tree.map(lambda a: a.value if is_sum(a) else a, tree, is_leaf=is_sum)


class Weighed(NamedTuple):
    """The aux of a function whose value is a weighted mean, and the weight; None if it has none.

    Every wrapper of `jax.value_and_grad` passes it on as aux; those that average use the weight.
    """

    aux: Any
    weight: jax.Array | None


def scalar(fn: Callable, has_aux: bool) -> Callable:
    """`fn`, which returns a scalar or a Mean, as a function that returns a scalar."""

    def call(*args: Any) -> Any:
        value, *aux = fn(*args) if has_aux else (fn(*args),)
        value = value.value if isinstance(value, Mean) else value
        return (value, *aux) if has_aux else value

    return call


def weighed(fn: Callable, has_aux: bool) -> Callable:
    """`fn`, which returns a scalar or a Mean, as a function that returns (scalar, Weighed)."""

    def call(*args: Any) -> tuple[Any, Weighed]:
        out = fn(*args)
        if has_aux and not (isinstance(out, tuple) and len(out) == 2):
            checks.not_a_pair("fn", "(value, aux)", out)
        value: Any
        value, aux = out if has_aux else (out, None)
        if isinstance(value, Mean):
            return value.value, Weighed(aux, value.weight)
        return value, aux if isinstance(aux, Weighed) else Weighed(aux, None)

    return call
