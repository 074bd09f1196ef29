"""Means that know their weight: those of the parts of a batch add up to that of the whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fnn.core import checks, errors
from fnn.core.dtypes import wide
from fnn.losses.inputs import floating
from fnn.losses.masking import check_mask, check_weights


@partial(jax.tree_util.register_dataclass, data_fields=["total", "weight"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean that knows its weight, total / weight: the sums of w_i l_i and of w_i, both [].

    `mean` makes it. A loss function of `fnn.train.step` may return one in the place of a scalar,
    and have others among its metrics; so may the functions that `fnn.optim.accumulate` and its
    kind differentiate. Then parts of a batch count by their weights, so that they give what the
    whole batch gives; `value` is the scalar for everybody else. It is a tree of its two sums.

    A penalty is added to it, and a number or an array [] multiplies it, as a scalar:
    `mean(losses, mask) + 1e-4 * l2(params)`. Two such means cannot be added, since one weight would
    not do for both.

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

    def __add__(self, other: Any) -> Mean:
        return Mean(
            self.total + self.weight.astype(self.total.dtype) * self._like(other), self.weight
        )

    def __mul__(self, other: Any) -> Mean:
        return Mean(self.total * self._like(other), self.weight)

    __radd__, __rmul__ = __add__, __mul__

    def __neg__(self) -> Mean:
        return Mean(-self.total, self.weight)

    def __sub__(self, other: Any) -> Mean:
        return self + -self._like(other)

    def __truediv__(self, other: Any) -> Mean:
        return Mean(self.total / self._like(other), self.weight)

    def _like(self, other: Any) -> jax.Array:
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
    - `weights`: what each counts, at least 0, of the losses' shape or its first axes: those of
      examples, of classes (`class_weights`), or of both, multiplied.

    What does not count (masked, or of weight 0) is not looked at, NaN included. Computed in float32
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
    """A value that is a function of sums over examples: `compute(sums)`, where sums add up.

    What `fnn.train.supervised` returns for a metric, so that the metric of accumulated parts is
    that of the whole batch; `fnn.train.step` returns its `value`.
    """

    sums: Any
    compute: Callable[[Any], Any]

    @property
    def value(self) -> Any:
        return self.compute(self.sums)


def is_sum(node: Any) -> bool:
    """Whether a node of a tree adds up over the parts of a batch."""
    return isinstance(node, (Mean, Measured))


def values(tree: Any) -> Any:
    """A tree with the values of its means and measured metrics in their places."""
    return jax.tree.map(lambda a: a.value if is_sum(a) else a, tree, is_leaf=is_sum)


class Weighed(NamedTuple):
    """The aux of a function whose value is a weighted mean, and the weight; None if it has none.

    Every wrapper of `jax.value_and_grad` hands it on as aux; those that average look at the weight.
    """

    aux: Any
    weight: jax.Array | None


def scalar(fn: Callable, has_aux: bool) -> Callable:
    """`fn`, of a scalar or a Mean, as a function of a scalar."""

    def call(*args: Any) -> Any:
        value, *aux = fn(*args) if has_aux else (fn(*args),)
        value = value.value if isinstance(value, Mean) else value
        return (value, *aux) if has_aux else value

    return call


def weighed(fn: Callable, has_aux: bool) -> Callable:
    """`fn`, of a scalar or a Mean, as a function that returns (scalar, Weighed)."""

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
