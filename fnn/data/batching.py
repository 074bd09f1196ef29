"""Batches: an order that is a pure function of (key, epoch), and static shapes throughout."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from fnn.core import checks, errors
from fnn.core.shapes import natives
from fnn.core.types import Key, Tree


@functools.partial(jax.jit, static_argnames="n")
def _permutation(key: Key, epoch: jax.Array, n: int) -> jax.Array:
    """`jax.random.permutation` to the bit: as many sorts by 32 random bits as make ties unlikely.

    Written out, because XLA's CPU compiler sorts pairs ten times slower than single numbers.
    """
    key = jax.random.fold_in(key, epoch)
    # int32 in x64 mode too, so that host and device agree on the dtype as well as the values.
    order = jnp.arange(n, dtype=jnp.int32)
    for _ in range(math.ceil(3 * math.log(max(n, 1)) / math.log(2**32 - 1))):
        key, now = jax.random.split(key)
        bits = jax.random.bits(now, (n,), jnp.uint32)
        order = order[jax.lax.platform_dependent(bits, cpu=_by_digits, default=_by_pairs)]
    return order


def _by_pairs(bits: jax.Array) -> jax.Array:
    """The stable order of numbers, uint32 [n] -> int32 [n]."""
    return jax.lax.sort_key_val(bits, jax.lax.iota(jnp.int32, len(bits)))[1]


def _by_digits(bits: jax.Array) -> jax.Array:
    """The same, digit by digit from the lowest, each sorted in one number with its position."""
    n = len(bits)
    width = (n - 1).bit_length()  # of a position; the digit has the bits that are left
    positions, order = jax.lax.iota(jnp.uint32, n), jax.lax.iota(jnp.int32, n)
    for shift in range(0, 32, 32 - width):
        digit = (bits[order] >> shift) << width
        order = order[jnp.sort(digit | positions) & jnp.uint32(2**width - 1)]
    return order


@errors.named
def permutation(key: Key, epoch: int | jax.Array, n: int) -> jax.Array:
    """The order of one epoch, a permutation of range(n) that depends on (key, epoch) alone: [n].

        permutation(key, epoch, n) = jax.random.permutation(fold_in(key, epoch), n)

    Epochs can be visited in any order, and a run that is resumed at epoch 7 sees the order that
    it would have seen. It is the same inside `jit`, `scan` and `vmap`, on every machine, with and
    without x64. (Only `jax_threefry_partitionable=False`, JAX's old setting, changes it.)

    - `key`: `jax.random.key(0)`; may be traced.
    - `epoch`: the epoch's number, 0 <= epoch < 2**32; may be traced.
    - `n`: the number of examples, static, below 2**31.

    Returns int32 [n]. Raises RandomKeyError for what is no key, OptionError for an epoch or an n
    out of range.

    >>> key = jax.random.key(0)
    >>> print(permutation(key, 0, 5), permutation(key, 1, 5))
    [0 2 4 1 3] [0 3 1 4 2]
    """
    key, n = checks.typed_key(key), checks.count("n", n, least=0)
    if n >= 2**31:  # which int32 would wrap
        raise errors.OptionError("n below 2**31", str(n), "cut the data into several parts")
    if not isinstance(epoch, jax.core.Tracer):
        epoch = checks.count("epoch", np.asarray(epoch)[()], least=0)
        if epoch >= 2**32:
            raise errors.OptionError("epoch below 2**32", str(epoch), "count epochs from 0")
    # A uint32, also for the largest epochs, which do not fit JAX's int32.
    return _permutation(key, jnp.asarray(epoch, jnp.uint32), n)


def rows_of_batches(key: Key, epoch: int | jax.Array, n: int, batch_size: int) -> jax.Array:
    """The examples of each full batch of an epoch, int32 [n // batch_size, batch_size]."""
    full = n // batch_size
    return permutation(key, epoch, n)[: full * batch_size].reshape(full, batch_size)


def on_host(data: Tree) -> Tree:
    """Data as NumPy arrays, of kinds that JAX takes; values are looked at as batches come."""
    check_leaves(jax.tree.leaves(data))
    kinds = jax.tree.map(lambda x: x[:0] if np.ma.isMaskedArray(x) else None, data)
    natives(kinds, "data")  # refuses what np.asarray takes the mask from
    return jax.tree.map(np.asarray, data)


def check_leaves(leaves: list) -> None:
    """Refuse tables and files of arrays, of which NumPy would make one array, or of their names."""
    for x in leaves:
        table = hasattr(x, "iloc") and not hasattr(x, "dtype")
        if table or isinstance(x, Mapping):
            mend = "make arrays of it by fnn.data.from_frame" if table else "pass dict(file)"
            got = f"a {type(x).__name__}"
            raise errors.InputError("arrays [n, ...], in dicts and tuples", got, mend)


def rows_of(data: Tree, rows: slice | np.ndarray) -> Tree:
    """Some examples of data on the host, as JAX takes them; names and the like as they are."""
    return natives(jax.tree.map(lambda x: x[rows], data), "data", others=True)


def _checked(data: Tree, batch_size: Any) -> tuple[Tree, int, int]:
    """(data as NumPy arrays, number of examples, batch_size)."""
    batch_size, data = checks.count("batch_size", batch_size), on_host(data)
    return data, checks.examples("data", data), batch_size


@errors.named
def batches(data: Tree, batch_size: int, *, key: Key, epoch: int | jax.Array = 0) -> Iterator[Tree]:
    """One epoch of shuffled batches for training, all of the same size.

        batch i = data[permutation(key, epoch, n)[i * batch_size : (i + 1) * batch_size]]

    The last partial batch is dropped: there are n // batch_size batches, and what is dropped
    differs from epoch to epoch.

    - `data`: any tree of arrays with one leading axis, [n, ...].
    - `batch_size`: examples a batch, at most n.
    - `key`: `jax.random.key(0)`; see `permutation`.
    - `epoch`: the epoch's number; pass a new one each epoch, or the order is the same again.

    Yields trees like data, of NumPy arrays [batch_size, ...] (copies), in dtypes of JAX's mode:
    int64 as int32, float64 as float32 without x64, bytes in the machine's order. Raises at the
    call: ShapeError for leading axes that differ, OptionError for batch_size > n, RandomKeyError
    for what is no key, InputError for masked arrays of NumPy's; and, with the batch that holds
    it, InputError for a value that JAX's dtype cannot hold.

    >>> data = {"x": np.arange(5) * 10, "y": np.arange(5)}
    >>> for batch in batches(data, 2, key=jax.random.key(0)):
    ...     print(batch["x"], batch["y"])
    [ 0 20] [0 2]
    [40 10] [4 1]
    """
    data, n, batch_size = _checked(data, batch_size)
    if batch_size > n:
        raise errors.OptionError(
            f"batch_size of at most the {n} examples",
            f"{batch_size}",
            "the last partial batch is dropped, so no batch would come: lower batch_size, or use "
            "eval_batches",
        )
    order = np.asarray(rows_of_batches(key, epoch, n, batch_size))
    return (rows_of(data, rows) for rows in order)


@errors.named
def eval_batches(data: Tree, batch_size: int) -> Iterator[tuple[Tree, np.ndarray]]:
    """Every example once, in order, in batches of one size, each with a mask.

    The last batch is filled up to `batch_size`, so that one compiled program serves all. The
    fill repeats the last example instead of zeros: a network that is finite on the data is then
    finite on the fill, which cannot make `(mask * loss).sum() / mask.sum()` NaN.

    - `data`: any tree of arrays with one leading axis, [n, ...]; n = 0 yields nothing.
    - `batch_size`: examples a batch.

    Yields (batch, mask): a tree like data, of NumPy arrays [batch_size, ...] (full batches are
    views) in dtypes as in `batches`, and bool [batch_size], True where the example is real.
    Raises as `batches`.

    >>> for batch, mask in eval_batches(np.arange(5), 3):
    ...     print(batch, mask)
    [0 1 2] [ True  True  True]
    [3 4 4] [ True  True False]
    """
    data, n, batch_size = _checked(data, batch_size)

    def batch(start: int) -> tuple[Tree, np.ndarray]:
        whole = start + batch_size <= n
        index = np.arange(start, start + batch_size)
        rows = slice(start, start + batch_size) if whole else np.minimum(index, n - 1)
        return rows_of(data, rows), index < n

    return map(batch, range(0, n, batch_size))
