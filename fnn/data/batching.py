"""Batches: an order that is a pure function of (seed, epoch), and static shapes throughout."""

import functools
import math
import operator
from collections.abc import Iterator
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from fnn.core.shapes import natives


@functools.partial(jax.jit, static_argnames="n")
def _permutation(key, epoch, n: int):
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


def _by_pairs(bits):
    """The stable order of numbers, uint32 [n] -> int32 [n]."""
    return jax.lax.sort_key_val(bits, jax.lax.iota(jnp.int32, len(bits)))[1]


def _by_digits(bits):
    """The same, digit by digit from the lowest, each sorted in one number with its position."""
    n = len(bits)
    width = (n - 1).bit_length()  # of a position; the digit has the bits that are left
    positions, order = jax.lax.iota(jnp.uint32, n), jax.lax.iota(jnp.int32, n)
    for shift in range(0, 32, 32 - width):
        digit = (bits[order] >> shift) << width
        order = order[jnp.sort(digit | positions) & jnp.uint32(2**width - 1)]
    return order


def _shuffle_key(seed):
    """The typed key of `seed`: an int in [0, 2**32), an integer tracer, or a typed key itself."""
    if hasattr(seed, "dtype") and jnp.issubdtype(seed.dtype, jax.dtypes.prng_key):
        if seed.shape != ():
            raise ValueError(f"expected one key as seed, got an array of keys {seed.shape}")
        return seed
    if isinstance(seed, jax.core.Tracer):
        if seed.shape != () or not jnp.issubdtype(seed.dtype, jnp.integer):
            raise TypeError(f"expected an int or a key as seed, got {seed.aval.str_short()}")
        return jax.random.key(seed.astype(jnp.uint32), impl="threefry2x32")
    try:
        seed = operator.index(seed)
    except TypeError:
        raise TypeError(
            f"expected an int or a typed key (jax.random.key) as seed, got {seed!r}"
        ) from None
    # Beyond 32 bits the key would depend on whether x64 is on. The generator is named because
    # the default one is a setting, and the order must not depend on it.
    if not 0 <= seed < 2**32:
        raise ValueError(f"expected 0 <= seed < 2**32, got {seed}")
    return jax.random.key(np.uint32(seed), impl="threefry2x32")


def permutation(seed: int | jax.Array, epoch: int | jax.Array, n: int) -> jax.Array:
    """The order of epoch `epoch`, a permutation of range(n) that depends on (seed, epoch) alone.

        permutation(seed, epoch, n) = jax.random.permutation(fold_in(key(seed), epoch), n)

    Epochs can be visited in any order, and a run that is resumed at epoch 7 sees the order that
    it would have seen. Inside `jit` and `scan`, `epoch` (and `seed`) may be traced; the order is
    the one that the host gets. It is the same on every machine, with and without x64, whatever
    the default generator; a key brings its own generator. (Only `jax_threefry_partitionable=False`,
    JAX's old setting, changes it.)

    Args:
      seed: an int, 0 <= seed < 2**32, or a typed key. The int's generator is always threefry.
      epoch: the epoch's number, 0 <= epoch < 2**32.
      n: the number of examples, static.

    Returns:
      int32 [n].

    Raises:
      TypeError: a seed that is neither an int nor a typed key.
      ValueError: a seed or an epoch out of range, a negative n.

    >>> print(permutation(0, 0, 5), permutation(0, 1, 5))
    [0 2 4 1 3] [0 3 1 4 2]
    """
    n = operator.index(n)
    if n < 0:
        raise ValueError(f"expected n >= 0, got {n}")
    if not isinstance(epoch, jax.core.Tracer):
        epoch = operator.index(epoch)
        if not 0 <= epoch < 2**32:
            raise ValueError(f"expected 0 <= epoch < 2**32, got {epoch}")
    # A uint32, also for the largest epochs, which do not fit JAX's int32.
    return _permutation(_shuffle_key(seed), jnp.asarray(epoch, jnp.uint32), n)


def rows_of_batches(seed, epoch, n: int, batch_size: int) -> jax.Array:
    """The examples of each full batch of an epoch, int32 [n // batch_size, batch_size]."""
    full = n // batch_size
    return permutation(seed, epoch, n)[: full * batch_size].reshape(full, batch_size)


def on_host(data: Any) -> Any:
    """Data as NumPy arrays, of kinds that JAX takes; values are looked at as batches come."""
    kinds = jax.tree.map(lambda x: x[:0] if np.ma.isMaskedArray(x) else None, data)
    natives(kinds, "data")  # refuses what np.asarray takes the mask from
    return jax.tree.map(np.asarray, data)


def rows_of(data: Any, rows: Any) -> Any:
    """Some examples of data on the host, as JAX takes them; names and the like as they are."""
    return natives(jax.tree.map(lambda x: x[rows], data), "data", others=True)


def _checked(data, batch_size) -> tuple[Any, int, int]:
    """(data as NumPy arrays, number of examples, batch_size), or the error that says what is off.

    Raises:
      InputError: an array with a mask of NumPy's.
      ValueError: no arrays, an array without a leading axis, unequal leading axes, a bad size.
    """
    batch_size = operator.index(batch_size)
    if batch_size < 1:
        raise ValueError(f"expected batch_size >= 1, got {batch_size}")
    data = on_host(data)
    leaves = jax.tree_util.tree_leaves_with_path(data)
    if not leaves:
        raise ValueError(f"expected a tree of arrays as data, got one without any: {data!r}")
    sizes = {}
    for path, leaf in leaves:
        where = "data" + jax.tree_util.keystr(path)
        if leaf.ndim == 0:
            raise ValueError(f"{where}: expected an array with a leading axis, got {leaf!r}")
        sizes[where] = leaf.shape[0]
    first, n = next(iter(sizes.items()))
    for where, size in sizes.items():
        if size != n:
            raise ValueError(
                f"{where}: expected {n} examples on the leading axis, as {first} has, got {size}"
            )
    return data, n, batch_size


def batches(
    data: Any, batch_size: int, *, seed: int | jax.Array = 0, epoch: int = 0
) -> Iterator[Any]:
    """Yield one epoch of shuffled batches for training, all of the same size.

        batch i = data[permutation(seed, epoch, n)[i * batch_size : (i + 1) * batch_size]]

    The last partial batch is dropped: n // batch_size batches come, and what is dropped differs
    from epoch to epoch.

    Args:
      data: any tree of arrays with one common leading axis, [n, ...].
      batch_size: examples a batch, at most n.
      seed: an int or a typed key, see `permutation`.
      epoch: the epoch's number; give a new one each epoch, or the order is the same again.

    Yields:
      Trees like data, of NumPy arrays [batch_size, ...] (copies), in dtypes of JAX's mode: int64
      as int32, float64 as float32 without x64, bytes in the machine's order.

    Raises:
      InputError: masked arrays of NumPy's, and, as they come, values that JAX's dtype cannot hold.
      ValueError: at the call: leading axes that differ (by the leaf's path), or batch_size > n.

    >>> data = {"x": np.arange(5) * 10, "y": np.arange(5)}
    >>> for batch in batches(data, 2, seed=0, epoch=0):
    ...     print(batch["x"], batch["y"])
    [ 0 20] [0 2]
    [40 10] [4 1]
    """
    data, n, batch_size = _checked(data, batch_size)
    if batch_size > n:
        raise ValueError(
            f"batch_size {batch_size} is larger than the data ({n} examples), and the last partial "
            "batch is dropped, so no batch would come; use a smaller batch_size, or eval_batches"
        )
    order = np.asarray(rows_of_batches(seed, epoch, n, batch_size))

    def generate():
        for rows in order:
            yield rows_of(data, rows)

    return generate()


def eval_batches(data: Any, batch_size: int) -> Iterator[tuple[Any, np.ndarray]]:
    """Yield every example once, in order, in batches of one size, each with a mask.

    The last batch is filled up to `batch_size`, so that one compiled program serves all. The
    fill repeats the last example rather than being zeros: a network that is finite on the data
    is then finite on the fill too, and `(mask * loss).sum() / mask.sum()` is never NaN by it.

    Args:
      data: any tree of arrays with one common leading axis, [n, ...]; n = 0 yields nothing.
      batch_size: examples a batch.

    Yields:
      (batch, mask): a tree like data, of NumPy arrays [batch_size, ...] (full batches are views)
      in dtypes of JAX's mode, as of `batches`, and bool [batch_size], True where the example is
      real.

    Raises:
      InputError: as `batches`.
      ValueError: at the call: leading axes that differ (by the leaf's path), or batch_size < 1.

    >>> for batch, mask in eval_batches(np.arange(5), 3):
    ...     print(batch, mask)
    [0 1 2] [ True  True  True]
    [3 4 4] [ True  True False]
    """
    data, n, batch_size = _checked(data, batch_size)

    def generate():
        for start in range(0, n, batch_size):
            mask = np.arange(start, start + batch_size) < n
            if start + batch_size <= n:
                rows = slice(start, start + batch_size)
            else:
                rows = np.minimum(np.arange(start, start + batch_size), n - 1)
            yield rows_of(data, rows), mask

    return generate()
