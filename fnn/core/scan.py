"""A scan whose memory in reverse mode can be bounded."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.export import is_symbolic_dim

from fnn.core.types import Tree


def scan(
    step: Callable,
    carry: Tree,
    xs: Tree,
    *,
    length: int | None = None,
    checkpoint_every: int | None = None,
    reverse: bool = False,
    unroll: int = 1,
) -> tuple[Tree, Tree]:
    """`jax.lax.scan`; with `checkpoint_every`, in chunks that reverse mode recomputes.

    Zero steps work in every mode; JAX's own scan refuses them under `jax.disable_jit`.

    >>> def last(x, every):
    ...     return scan(lambda c, x: (jnp.sin(c + x), None), 0.0, x, checkpoint_every=every)[0]
    >>> print(jax.grad(last)(jnp.ones(5), 2) == jax.grad(last)(jnp.ones(5), None))
    [ True  True  True  True  True]
    """
    length = jax.tree.leaves(xs)[0].shape[0] if length is None else length
    if not length:
        first = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), xs)
        y = jax.eval_shape(step, carry, first)[1]
        return carry, jax.tree.map(lambda a: jnp.zeros((0, *a.shape), a.dtype), y)
    scan = partial(jax.lax.scan, step, reverse=reverse, unroll=unroll)
    if is_symbolic_dim(length):  # of an exported program, which has no backward pass
        return scan(carry, xs)
    if checkpoint_every is None:
        return scan(carry, xs, length)
    chunk = jax.checkpoint(scan)
    chunks, rest = divmod(length, checkpoint_every)
    whole, tail = length - rest, jax.tree.map(lambda a: a[length - rest :], xs)
    shape = (chunks, checkpoint_every)
    folded = jax.tree.map(lambda a: a[:whole].reshape(*shape, *a.shape[1:]), xs)
    if rest and reverse:
        carry, last = chunk(carry, tail)
    if chunks:
        carry, ys = jax.lax.scan(chunk, carry, folded, reverse=reverse)
        ys = jax.tree.map(lambda a: a.reshape(whole, *a.shape[2:]), ys)
    if rest and not reverse:
        carry, last = chunk(carry, tail)
    if not (rest and chunks):
        return carry, ys if chunks else last
    return carry, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), ys, last)
