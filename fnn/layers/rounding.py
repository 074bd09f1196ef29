"""Numbers of few bits: integers or narrow floats, times a scale for each output feature."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fnn.core import checks, errors
from fnn.core.declarations import Param, output_axis
from fnn.core.dtypes import is_floating, wide
from fnn.core.lengths import divide
from fnn.core.shapes import blocks_of
from fnn.core.static import inlined
from fnn.core.types import Dtype, Tree

# The largest value that a scaled weight takes. Weights of 16 bits are not scaled, unless too large.
LARGEST = {
    "int4": 7.0,
    "int8": 127.0,
    "float8_e4m3fn": 448.0,
    "float8_e5m2": 57344.0,
    "bfloat16": math.inf,
    "float16": math.inf,
}
HOW = ("param", "name", "group_size")  # the options, of which a program is made


def number_format(dtype: Dtype) -> str:
    """The name of a dtype that weights are rounded to."""
    array = isinstance(dtype, (jax.Array, np.ndarray, np.generic))
    try:
        name = "" if array or dtype is None else jnp.dtype(dtype).name
    except TypeError:
        name = ""
    if name not in LARGEST:
        wanted = f"dtype to be one of {errors.names(LARGEST)}"
        raise errors.OptionError(wanted, name or errors.show(dtype), "pass one, as jnp.int8")
    return name


def checked_group_size(group_size: Any) -> int | None:
    return None if group_size is None else checks.count("group_size", group_size)


def input_axis(param: Param) -> int | None:
    """The axis of a kernel along which its groups lie: "in", else the last but its outputs'.

    >>> input_axis(Param((3, 5, 4), None, axes=("width", "out", "in")))
    2
    """
    out, axes = output_axis(param), param.axes or ()
    if "in" in axes and axes.index("in") != out:
        return axes.index("in")
    return max((i for i in range(len(param.shape)) if i != out), default=None)


def largest_of(w: jax.Array, param: Param, group_size: int | None) -> jax.Array:
    """The largest magnitude for each output feature, or each of its groups; other axes are 1."""
    out, along, size = output_axis(param), input_axis(param), jnp.abs(w.astype(wide(w.dtype)))
    if group_size is None or along is None:
        others = tuple(i for i in range(w.ndim) if i != out)
        return jnp.max(size, axis=others, keepdims=True, initial=0)
    size = blocks_of(size, group_size, along)  # [groups, ...]
    others = tuple(i for i in range(1, size.ndim) if i != out + 1)
    size = jnp.max(size, axis=others, keepdims=True, initial=0)
    return jnp.moveaxis(jnp.squeeze(size, along + 1), 0, along)


def spread(scale: jax.Array, param: Param, group_size: int | None) -> jax.Array:
    """A value of each group for each of its weights."""
    along = input_axis(param)
    if group_size is None or along is None:
        return scale
    whole = jnp.repeat(scale, group_size, axis=along)
    return jax.lax.slice_in_dim(whole, 0, param.shape[along], axis=along)


def scale_of(w: jax.Array, param: Param, largest: float, group_size: int | None) -> jax.Array:
    """What a weight of 1 stands for, s = max |w| / largest, in the dtype of w."""
    if not is_floating(w):
        mend = "name params of floating dtypes, as names=('kernel',)"
        raise errors.DtypeError("weights of a floating dtype", errors.show(w), mend)
    if w.ndim == 0:
        raise errors.ShapeError("weights with axes", errors.show(w), "leave it out of names")
    return (largest_of(w, param, group_size) / largest).astype(w.dtype)


@partial(inlined, static_argnames=HOW)
def encode(w: jax.Array, param: Param, name: str, group_size: int | None) -> Tree:
    """Weights as `{"values", "scale"}`, with values of a number format."""
    largest, dtype = LARGEST[name], jnp.dtype(name)
    if largest == math.inf:
        largest = float(jnp.finfo(dtype).max)
        scale = jnp.maximum(scale_of(w, param, largest, group_size), 1)
    else:
        scale = scale_of(w, param, largest, group_size)
    values = divide(w.astype(wide(w.dtype)), spread(scale, param, group_size).astype(wide(w.dtype)))
    values = jnp.clip(values, -largest, largest)
    if name == "int4":
        return {"values": _packed(jnp.round(values).astype(jnp.int8), param), "scale": scale}
    if name == "int8":
        values = jnp.round(values)
    return {"values": values.astype(dtype), "scale": scale}


@partial(inlined, static_argnames=HOW)
def decode(p: Tree, param: Param, name: str, group_size: int | None) -> jax.Array:
    """Weights from `{"values", "scale"}`, in the dtype of the scale."""
    values, scale = p["values"], p["scale"]
    if name == "int4":
        values = _unpacked(values, param)
    dtype = wide(scale.dtype)
    w = values.astype(dtype) * spread(scale, param, group_size).astype(dtype)
    return w.astype(scale.dtype)


def rounded(w: jax.Array, param: Param, name: str, group_size: int | None) -> jax.Array:
    return decode(encode(w, param, name, group_size), param, name, group_size)


def _packed_axis(param: Param) -> int:
    along = input_axis(param)
    return 0 if along is None else along


def _packed(values: jax.Array, param: Param) -> jax.Array:
    """Integers in -8 ... 7, two to a byte: the first of a pair in the low bits."""
    axis = _packed_axis(param)
    fill = [(0, values.shape[i] % 2 if i == axis else 0) for i in range(values.ndim)]
    values = jnp.pad(values, fill).astype(jnp.uint8) & 15
    shape = values.shape
    pairs = values.reshape(*shape[:axis], shape[axis] // 2, 2, *shape[axis + 1 :])
    low, high = (jax.lax.index_in_dim(pairs, i, axis + 1, keepdims=False) for i in (0, 1))
    return low | high << 4


def _unpacked(pairs: jax.Array, param: Param) -> jax.Array:
    axis = _packed_axis(param)
    both = jnp.stack([pairs & 15, pairs >> 4], axis=axis + 1)
    shape = list(pairs.shape)
    shape[axis] *= 2
    values = (both.reshape(shape) ^ 8).astype(jnp.int8) - 8  # the bit of the sign weighs -8
    return jax.lax.slice_in_dim(values, 0, param.shape[axis], axis=axis)
