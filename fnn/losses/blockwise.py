"""A function of many rows, block after block, so that what it makes between is never whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from fnn.core import checks, errors
from fnn.core.shapes import as_array, blocks_of


@errors.named
def blockwise(
    fn: Callable[..., jax.Array], *xs: Any, axes: int = 2, block: int = 1024
) -> jax.Array:
    """`fn(*xs)`, computed for `block` rows at a time: [..., ...] -> [...].

    For a loss of a large vocabulary: the logits [B, T, V] of all positions take more memory than
    all else, and they are never whole here, neither on the way forward nor for the gradient, which
    makes those of each block again.

    - `fn(*rows)`: from rows [n, ...] of each of `xs` to one value for each, [n, ...], such as the
      loss of a last layer: `lambda h, labels: cross_entropy(head(params, h), labels)`. It may refer
      to params, and is differentiated with respect to them.
    - `xs`: arrays [..., ...] with the same first axes.
    - `axes`: how many axes they share, by default batch and time.
    - `block`: the number of rows; the last block is padded with zeros.

    Raises ShapeError for arrays whose first axes differ.

    >>> import fnn, jax.numpy as jnp
    >>> head = fnn.dense(1000)
    >>> params, _ = head.init(jax.random.key(0), (1, 8))
    >>> h, labels = jnp.ones((2, 5, 8)), jnp.zeros((2, 5), jnp.int32)
    >>> def loss(h, labels):
    ...     return fnn.losses.softmax_cross_entropy(head(params, h), labels)
    >>> blockwise(loss, h, labels, block=4).shape
    (2, 5)
    """
    checks.function("fn", fn, "rows of each array")
    axes, block = checks.count("axes", axes), checks.count("block", block)
    arrays = [as_array(x) for x in xs]
    lead = arrays[0].shape[:axes] if arrays else ()
    for x in arrays:
        if x.ndim < axes or x.shape[:axes] != lead:
            wanted, mend = f"arrays that share their first {axes} axes, {lead}", "or pass axes="
            raise errors.ShapeError(wanted, errors.show(x), mend)
    rows = [x.reshape(-1, *x.shape[axes:]) for x in arrays]
    n = rows[0].shape[0] if rows else 0
    if n <= block:
        y = fn(*rows)
    else:
        each = jax.checkpoint(lambda rows: fn(*rows), prevent_cse=False)
        y = jax.lax.map(each, [blocks_of(x, block) for x in rows])
        y = y.reshape(-1, *y.shape[2:])[:n]
    if y.shape[:1] != (n,):
        raise errors.ShapeError(f"one value for each of {n} rows", errors.show(y), "do not average")
    return y.reshape(*lead, *y.shape[1:])
