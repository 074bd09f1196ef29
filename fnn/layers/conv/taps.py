"""Convolutions tap by tap: what of the input lies under each value of the kernel."""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fnn.core.dtypes import widened
from fnn.layers.conv import windows

MOST = 128  # taps that are written out


class How(NamedTuple):
    """The static part of a convolution."""

    strides: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int = 1
    input_dilation: tuple[int, ...] | None = None  # of the input: a transposed convolution's
    weight_grad: str = "conv"


def patches_of(x: jax.Array, size: tuple[int, ...], how: How) -> jax.Array:
    """The inputs under each of the kernel's taps: [B, *spatial, K, C]."""
    apart = how.input_dilation or (1,) * len(size)
    pads = [(*pad, d - 1) for pad, d in zip(how.pads, apart, strict=True)]
    x, (spans, offsets) = _pad(x, pads), _reach(size, how)
    return jnp.stack([windows.strided(x, at, spans, how.strides) for at in offsets], axis=-2)


def _reach(size: tuple[int, ...], how: How) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """How far a kernel reaches along each axis, and where in that each of its taps lies."""
    spans = tuple((k - 1) * d + 1 for k, d in zip(size, how.dilation, strict=True))
    axes = (range(0, span, d) for span, d in zip(spans, how.dilation, strict=True))
    return spans, list(itertools.product(*axes))


def _pad(x: jax.Array, pads: Sequence[tuple[int, int, int]]) -> jax.Array:
    """Zeros before, after and between the values of each spatial axis of [B, *spatial, C]."""
    return jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *pads, (0, 0, 0)])


def differentiate(apply: Any, in_x: Callable[..., Any], in_kernel: Callable[..., Any]) -> None:
    """Derives `apply(x, kernel, how)` by two functions equal to it, each linear in one of these."""

    def jvp(how, primals, tangents):
        (x, kernel), (dx, dkernel) = primals, tangents
        y = apply(x, kernel, how)
        dy = jnp.zeros_like(y) if _is_zero(dx) else in_x(dx, kernel, how)
        return y, dy if _is_zero(dkernel) else dy + in_kernel(x, dkernel, how)

    apply.defjvp(jvp, symbolic_zeros=True)


def _is_zero(tangent: Any) -> bool:
    return isinstance(tangent, jax.custom_derivatives.SymbolicZero)


# --- the convolution of each channel by itself


def suits_taps(x: jax.Array, kernel: jax.Array, how: How) -> bool:
    """Whether `by_tap` computes this convolution, and is the faster on CPU."""
    few = math.prod(kernel.shape[:-2]) <= MOST and how.weight_grad == "conv"
    return few and 1 < how.groups == x.shape[-1] and how.input_dilation is None


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def by_tap(x: jax.Array, kernel: jax.Array, how: How) -> jax.Array:
    """x [B, *spatial, C] times the kernel [*size, 1, C m], tap by tap, summed in float32 or wider.

    XLA's CPU compiler has no fast convolution in groups, but good loops over such products. They
    are added in turn, for written out in one expression XLA would compute them again wherever the
    result is summed, as batch norm does. Linear in the kernel its transpose is a sum for each tap.
    """
    spans, offsets = _reach(kernel.shape[:-2], how)
    dtype, (x, values) = x.dtype, _per_channel(x, kernel)
    x = _pad(x, [(*pad, 0) for pad in how.pads])
    sizes = [n - span + 1 for n, span in zip(x.shape[1:-1], spans, strict=True)]

    def under(at):
        here = jax.lax.dynamic_slice(x, (0, *at, 0), (x.shape[0], *sizes, x.shape[-1]))
        return _every(here, how.strides)

    @jax.checkpoint  # or reverse mode would keep what lies under each tap
    def add(y, tap):
        at, value = tap
        return y + under(at) * value, None

    start = jnp.zeros_like(under(offsets[0]))
    return jax.lax.scan(add, start, (jnp.asarray(offsets), values))[0].astype(dtype)


def _spread(x: jax.Array, kernel: jax.Array, how: How) -> jax.Array:
    """`by_tap`, linear in x: its transpose reads slices, and adds no padded ones."""
    spans, offsets = _reach(kernel.shape[:-2], how)
    dtype, (x, values) = x.dtype, _per_channel(x, kernel)
    products = (
        _pad(x * value, [(span - 1 - a, a, 0) for span, a in zip(spans, at, strict=True)])
        for at, value in zip(offsets, values, strict=True)
    )
    everywhere = functools.reduce(operator.add, products)  # that the kernel touches x at all
    pads = zip(how.pads, spans, strict=True)
    y = _pad(everywhere, [(low - span + 1, high - span + 1, 0) for (low, high), span in pads])
    return _every(y, how.strides).astype(dtype)


differentiate(by_tap, _spread, by_tap)


def _every(x: jax.Array, strides: tuple[int, ...]) -> jax.Array:
    """Of so many values along each spatial axis of [B, *spatial, C] the first."""
    return jax.lax.slice(x, (0,) * x.ndim, x.shape, (1, *strides, 1))


def _per_channel(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What each output channel sees [B, *spatial, C m], its kernel [K, 1, *ones, C m]; wide."""
    values = kernel.reshape(-1, *(1,) * (x.ndim - 1), kernel.shape[-1])
    return jnp.repeat(widened(x), kernel.shape[-1] // x.shape[-1], axis=-1), widened(values)
