"""The axis of time: masks, lengths, and where episodes start."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from fnn.core import checks, errors
from fnn.core.types import Dtype, Shape, Tree
from fnn.core.values import check_values


class TimeAxis(NamedTuple):
    """The axes before time, the length, an x of one step, and which steps are real."""

    lead: tuple[int, ...]
    length: int
    one: jax.ShapeDtypeStruct
    mask: Any  # booleans [..., T], or None

    def first(self, a: jax.Array) -> jax.Array:
        """[..., T, C] -> [T, ..., C]."""
        return jnp.moveaxis(a, len(self.lead), 0)

    def back(self, a: jax.Array) -> jax.Array:
        """[T, ..., C] -> [..., T, C]."""
        return jnp.moveaxis(a, 0, len(self.lead))

    def repeated(self, a: jax.Array) -> jax.Array:
        """[..., C] -> [..., T, C]."""
        return self.back(jnp.broadcast_to(a, (self.length, *a.shape)))

    def check_values(self, step: Callable[[jax.Array], Any], x: jax.Array) -> None:
        """Let `step(x)`, for an x of one step, refuse integers, at all steps that are real."""
        if not jnp.issubdtype(x.dtype, jnp.integer):
            return
        if self.mask is not None:
            mask = self.mask.reshape(self.mask.shape + (1,) * (x.ndim - self.mask.ndim))
            x = jnp.where(mask, x, jnp.zeros_like(x))
        check_values(step, x, axis=len(self.lead))

    def where(self, chosen: jax.Array, new: Tree, old: Tree) -> Tree:
        """The tree `new` where `chosen` [...] is True, `old` elsewhere."""

        def pick(a, b):
            if a.shape[: len(self.lead)] != self.lead:
                raise errors.ShapeError(
                    f"a cell whose arrays have the leading axes {self.lead} of x, to be masked",
                    f"one with {errors.show(a)}",
                    "give each of its arrays these axes",
                )
            return jnp.where(chosen.reshape(self.lead + (1,) * (a.ndim - len(self.lead))), a, b)

        return jax.tree.map(pick, new, old)


def check_time(
    x: Any, mask: Any, resets: Any, lengths: Any, feature_axes: int, called: str = "mask"
) -> tuple[tuple[int, ...], int]:
    """The axes before time and the length of x, which mask, resets and lengths must fit."""
    checks.rank(x, feature_axes + 1, f"[..., T, and {feature_axes} axes of one step]")
    at = len(x.shape) - feature_axes - 1
    lead, length = tuple(x.shape[:at]), x.shape[at]
    for name, flags in ((called, mask), ("resets", resets)):
        if flags is not None:
            _check_input(name, flags, (*lead, length), jnp.bool_)
    if lengths is not None:
        _check_input("lengths", lengths, lead, jnp.integer)
    return lead, length


def time_of(
    x: jax.Array, mask: Any, resets: Any, lengths: Any, feature_axes: int, called: str = "mask"
) -> TimeAxis:
    """The axes of x, checked, and which steps are real by the mask and the lengths."""
    lead, length = check_time(x, mask, resets, lengths, feature_axes, called)
    one = jax.ShapeDtypeStruct(lead + x.shape[len(lead) + 1 :], x.dtype)
    if lengths is None:
        return TimeAxis(lead, length, one, mask)
    if not isinstance(lengths, jax.core.Tracer):
        wrong = np.asarray(lengths)[(np.asarray(lengths) < 0) | (np.asarray(lengths) > length)]
        if wrong.size:
            mend = "count the steps of x that are real"
            raise errors.InputError(f"lengths of 0 to {length}", f"{wrong[0]}", mend)
    steps = jnp.arange(length, dtype=jnp.int32).reshape((1,) * len(lead) + (length,))
    real = steps < lengths.astype(jnp.int32)[..., None]
    return TimeAxis(lead, length, one, real if mask is None else real & mask)


def _check_input(name: str, value: Any, shape: Shape, kind: Dtype) -> None:
    if not jnp.issubdtype(value.dtype, kind):
        wanted = f"{name} of {'booleans' if kind is jnp.bool_ else 'integers'}"
        mend = f"compare, as {name} != 0" if kind is jnp.bool_ else "count the steps that are real"
        if name != "resets" and kind is jnp.bool_ and jnp.issubdtype(value.dtype, jnp.integer):
            mend = f"pass lengths as lengths=, and flags as {name}.astype(bool)"
        raise errors.DtypeError(wanted, f"{name} {errors.show(value)}", mend)
    if value.shape != shape:
        mend = "pass one for each " + ("sequence of x" if name == "lengths" else "step of x")
        raise errors.ShapeError(f"{name} {shape}", f"{name} {value.shape}", mend)


def boundaries(mask: jax.Array | None, resets: jax.Array | None, reverse: bool) -> jax.Array | None:
    """The steps [..., T] before which the carry is reset; None for nowhere."""
    if resets is None:
        return None
    starts = resets if mask is None else resets & mask
    if not reverse:
        return starts
    episode = jnp.cumsum(starts, axis=-1)
    beyond = jnp.iinfo(episode.dtype).max
    real = episode if mask is None else jnp.where(mask, episode, beyond)
    least = jax.lax.cummin(real, axis=real.ndim - 1, reverse=True)
    shift = ((0, 0),) * (real.ndim - 1) + ((0, 1),)
    following = jnp.pad(least[..., 1:], shift, constant_values=beyond)  # of the next real step
    crossed = (episode < following) & (following < beyond)
    return crossed if mask is None else crossed & mask
