"""A scan whose memory in reverse mode can be bounded."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp


def scan(
    step: Callable,
    carry: Any,
    xs: Any,
    *,
    checkpoint_every: int | None = None,
    reverse: bool = False,
    unroll: int = 1,
) -> tuple[Any, Any]:
    """`jax.lax.scan`; with `checkpoint_every`, in chunks computed again on the way back.

    >>> def last(x, every):
    ...     return scan(lambda c, x: (jnp.sin(c + x), None), 0.0, x, checkpoint_every=every)[0]
    >>> print(jax.grad(last)(jnp.ones(5), 2) == jax.grad(last)(jnp.ones(5), None))
    [ True  True  True  True  True]
    """
    scan = partial(jax.lax.scan, step, reverse=reverse, unroll=unroll)
    if checkpoint_every is None:
        return scan(carry, xs)
    chunk = jax.checkpoint(scan)
    length = jax.tree.leaves(xs)[0].shape[0]
    chunks, rest = divmod(length, checkpoint_every)
    whole, tail = length - rest, jax.tree.map(lambda a: a[length - rest :], xs)
    shape = (chunks, checkpoint_every)
    folded = jax.tree.map(lambda a: a[:whole].reshape(*shape, *a.shape[1:]), xs)
    if reverse:
        carry, last = chunk(carry, tail)
    carry, ys = jax.lax.scan(chunk, carry, folded, reverse=reverse)
    if not reverse:
        carry, last = chunk(carry, tail)
    flat = jax.tree.map(lambda a: a.reshape(whole, *a.shape[2:]), ys)
    return carry, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), flat, last)
