"""Shapes and dtypes of inputs, and the one gate for NumPy's arrays."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.export import is_symbolic_dim

from fnn.core import checks, errors
from fnn.core.dtypes import is_floating
from fnn.core.types import Dtype, Tree


def as_struct(x: Any) -> Any:
    """Shape and dtype of an input: an array, a struct, a shape, or a tree of these."""
    return jax.tree.map(struct, x, is_leaf=is_shape)


def struct(x: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of one array, struct or shape."""
    if is_shape(x):
        return jax.ShapeDtypeStruct(x, jnp.float32)
    if not (hasattr(x, "shape") and hasattr(x, "dtype")):
        checks.not_an_array(x)
    if isinstance(x, (np.ndarray, np.generic)):  # which may be wider than jax would hold
        dtype = native_dtype(x.dtype)
        return checks.not_an_array(x) if dtype is None else jax.ShapeDtypeStruct(x.shape, dtype)
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def is_shape(x: Any) -> bool:
    """A tuple of ints or symbolic dimensions stands for one float32 array."""
    return type(x) is tuple and all(map(_is_dim, x))


def is_traced_shape(x: Any) -> bool:
    """Whether x is a shape that was passed through `jit`: a tuple of traced ints."""
    return type(x) is tuple and len(x) > 0 and all(map(_is_traced_int, x))


def _is_dim(d: Any) -> bool:
    if isinstance(d, (int, np.integer)):
        return not isinstance(d, bool) and bool(d >= 0)
    return is_symbolic_dim(d)


def _is_traced_int(d: Any) -> bool:
    traced = isinstance(d, jax.core.Tracer) and d.shape == ()
    return traced and jnp.issubdtype(d.dtype, jnp.integer)


def native(x: Any, name: str = "arrays", others: bool = False) -> Any:
    """A NumPy array in a form that JAX reads correctly, still NumPy's; anything else unchanged.

    JAX itself ignores the byte order once a function is compiled, wraps 64-bit integers into 32
    bits, and turns floats too large for float32 into infinities. This is the one gate where bytes
    are put in order, and values that JAX's dtype cannot hold are refused, as are masked arrays and
    dtypes that are not numeric. Arrays passed directly to a user's `jax.jit` do not come here.

    - `name`: of the array, for the message.
    - `others`: whether arrays without numbers, such as strings, pass unchanged.

    >>> native(np.ones(2, ">f4")).dtype, native(np.arange(3)).dtype
    (dtype('float32'), dtype('int32'))
    """
    if _is_native(x):
        return x
    if isinstance(x, np.ma.MaskedArray):
        mend = "pass what it holds, as x.filled(0), and beside it a mask: ~np.ma.getmaskarray(x)"
        raise errors.InputError(f"{name} without a mask of NumPy", f"masked {errors.show(x)}", mend)
    dtype = native_dtype(x.dtype)
    if dtype is None and others:
        return x
    if dtype is None:
        mend = "make them of numbers, as x.astype(np.float32)"
        raise errors.DtypeError(f"{name} of numbers that JAX has", f"{name} {errors.show(x)}", mend)
    if dtype.kind in "iu":
        narrow = np.asarray(x).astype(dtype, copy=False)
        if dtype.itemsize < x.dtype.itemsize and not (narrow == x).all():
            mend = "number them anew, or switch on jax_enable_x64"
            got = f"{name} {errors.show(x)} in {x.min()} ... {x.max()}"
            raise errors.InputError(f"{name} that {dtype} holds", got, mend)
        return narrow
    try:
        with np.errstate(over="raise"):
            return np.asarray(x).astype(dtype, copy=False)
    except FloatingPointError:
        mend = "scale them, or switch on jax_enable_x64"
        got = f"{name} {errors.show(x)} with larger ones"
        raise errors.InputError(f"{name} that {dtype} holds", got, mend) from None


def natives(tree: Tree, name: str, others: bool = False) -> Tree:
    """`native` of each leaf of a tree; leaves are named by their paths below `name`."""
    if all(map(_is_native, jax.tree_util.tree_leaves(tree))):  # nearly always, so it is quick
        return tree
    try:
        return jax.tree.map(partial(native, others=True) if others else native, tree)
    except errors.FnnError:
        for path, x in jax.tree_util.tree_leaves_with_path(tree):
            native(x, errors.path_in(name, path), others)
        raise


def _is_native(x: Any) -> bool:
    known = isinstance(x, (np.ndarray, np.generic))
    return not known or type(x) is np.ndarray and x.dtype in _PLAIN


_PLAIN = frozenset(
    np.dtype(name)
    for name in "bool int8 int16 int32 uint8 uint16 uint32 float16 float32 complex64".split()
)


def native_dtype(dtype: np.dtype) -> np.dtype | None:
    """JAX's dtype for one of NumPy's, with or without x64; None for strings, objects, dates."""
    number = dtype.kind in "biufc" and dtype.char not in "gG"  # which are wider than any of JAX's
    if not number and not (dtype.kind == "V" and jnp.issubdtype(dtype, jnp.number)):
        return None
    return jax.dtypes.canonicalize_dtype(dtype.newbyteorder("="))


def from_numpy(x: Any, name: str = "arrays") -> Any:
    """A NumPy array as a JAX array; anything else, arrays of strings or objects too, unchanged."""
    if not isinstance(x, (np.ndarray, np.generic)) or native_dtype(x.dtype) is None:
        return x
    # A copy, since arrays on a CPU may share memory; `jnp.asarray` compiles a program a shape.
    return jax.device_put(np.array(native(x, name)))


def as_array(x: Any, name: str = "arrays") -> jax.Array:
    x = from_numpy(x, name)
    return x if isinstance(x, jax.Array) else checks.not_an_array(x)


def empty(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """An array that begins where JAX can take it without a copy: at a multiple of 64 bytes."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + 64, np.uint8)
    skipped = -memory.ctypes.data % 64
    return memory[skipped : skipped + size].view(dtype).reshape(shape)


def as_dtype(tree: Tree, dtype: Dtype) -> Tree:
    """A tree with floating arrays cast to a dtype, and all else unchanged."""

    def cast(x):
        floating = hasattr(x, "astype") and is_floating(x)
        return x.astype(dtype) if floating else x

    return jax.tree.map(cast, tree)


def blocks_of(x: jax.Array, size: int, axis: int = 0) -> jax.Array:
    """Blocks of an axis, the last filled up with zeros: [..., n, ...] -> [blocks, ..., size, ...].

    >>> print(blocks_of(jnp.arange(5), 2))
    [[0 1]
     [2 3]
     [4 0]]
    """
    n, fill = x.shape[axis], [(0, 0)] * x.ndim
    fill[axis] = (0, -n % size)
    x = jnp.pad(x, fill)
    x = x.reshape(*x.shape[:axis], -(-n // size), size, *x.shape[axis + 1 :])
    return jnp.moveaxis(x, axis, 0)


def of_rank(a: Any, rank: int) -> Any:
    """An array with leading axes of size 1 up to `rank` axes: explicit broadcasting.

    >>> of_rank(jnp.ones(3), 2).shape
    (1, 3)
    """
    return a.reshape((1,) * (rank - a.ndim) + a.shape)
