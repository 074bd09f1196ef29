"""Shapes and dtypes: of inputs, of what is declared, and how many inputs a function takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.export import is_symbolic_dim

from fnn import errors
from fnn.dtypes import is_floating
from fnn.initializing import Derived


def as_struct(x: Any) -> Any:
    """Shape and dtype of an input: of an array, a struct, a shape, or a tree of these."""
    return jax.tree.map(struct, x, is_leaf=is_shape)


def struct(x: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of one array, struct or shape."""
    if is_shape(x):
        return jax.ShapeDtypeStruct(x, jnp.float32)
    if not (hasattr(x, "shape") and hasattr(x, "dtype")):
        errors.not_an_array(x)
    if isinstance(x, (np.ndarray, np.generic)):  # which may be wider than jax would hold
        try:
            return jax.ShapeDtypeStruct(x.shape, jnp.result_type(x))
        except TypeError:  # strings and objects
            errors.not_an_array(x)
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def is_shape(x: Any) -> bool:
    """A tuple of ints or symbolic dimensions stands for one float32 array."""
    return type(x) is tuple and all(map(_is_dim, x))


def is_traced_shape(x: Any) -> bool:
    """A shape that became an argument of `jit`: a tuple of traced ints."""
    return type(x) is tuple and len(x) > 0 and all(map(_is_traced_int, x))


def _is_dim(d: Any) -> bool:
    if isinstance(d, (int, np.integer)):
        return not isinstance(d, bool) and bool(d >= 0)
    return is_symbolic_dim(d)


def _is_traced_int(d: Any) -> bool:
    traced = isinstance(d, jax.core.Tracer) and d.shape == ()
    return traced and jnp.issubdtype(d.dtype, jnp.integer)


def unlike(a: Any, b: Any) -> type[errors.FnnError] | None:
    """The error for two trees of arrays of other structure or shapes, or of other dtypes."""
    first, second = jax.tree.map(struct, a), jax.tree.map(struct, b)
    if first == second:
        return None
    shapes = [jax.tree.map(lambda x: x.shape, tree) for tree in (first, second)]
    return errors.ShapeError if shapes[0] != shapes[1] else errors.DtypeError


def from_numpy(x: Any) -> Any:
    """NumPy's arrays as jax's; anything else, arrays of strings or objects included, as it is."""
    try:
        return jnp.asarray(x) if isinstance(x, (np.ndarray, np.generic)) else x
    except TypeError:
        return x


def as_array(x: Any) -> jax.Array:
    x = from_numpy(x)
    return x if isinstance(x, jax.Array) else errors.not_an_array(x)


def as_dtype(tree: Any, dtype: Any) -> Any:
    """A tree of arrays with those of floating dtype cast; what is no array stays."""

    def cast(x):
        floating = hasattr(x, "astype") and is_floating(x)
        return x.astype(dtype) if floating else x

    return jax.tree.map(cast, tree)


def arrays_of(specs: Any) -> Any:
    """The ShapeDtypeStructs of the arrays that a tree of Param and Derived declares."""

    def array(node):
        if isinstance(node, Derived):
            keys = [jax.eval_shape(lambda: keys_of(node.stack))] if node.keyed else []
            return jax.eval_shape(node.fn, arrays_of(node.specs), *keys)
        return jax.ShapeDtypeStruct(node.stack + node.shape, node.dtype)

    return jax.tree.map(array, specs)


def keys_of(stack: tuple[int, ...]) -> jax.Array:
    """Keys of this shape, of which only shape and dtype matter."""
    return jnp.broadcast_to(jax.random.key(0), stack)


def zeros_of(specs: Any) -> Any:
    """Zeros in the place of every declared array."""
    return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), arrays_of(specs))


# --- inputs: how many a function takes, and under which names


def signature(fn: Callable, skip: int = 0) -> inspect.Signature:
    """The inputs of a function after the first `skip`; any number where it does not tell.

    >>> signature(lambda f, x, mask=None: x, skip=1)
    <Signature (x, mask=None)>
    """
    try:
        found = inspect.signature(fn).parameters.values()
    except ValueError:
        found = inspect.signature(lambda *xs: None).parameters.values()
    either, many = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.VAR_POSITIONAL
    plain = [p for p in found if p.kind in (inspect.Parameter.POSITIONAL_ONLY, either, many)]
    inputs = [p if p.kind == many else p.replace(kind=either) for p in plain]
    return inspect.Signature(inputs[skip:])


def arity(inputs: inspect.Signature) -> tuple[int, float]:
    """The least and the most inputs of a signature."""
    parameters = inputs.parameters.values()
    plain = [p for p in parameters if p.kind != p.VAR_POSITIONAL]
    many = len(plain) < len(parameters)
    return sum(p.default is p.empty for p in plain), float("inf") if many else len(plain)


def by_position(inputs: inspect.Signature, xs: tuple, named: dict[str, Any]) -> tuple:
    """All inputs by position; those that are left out between are their defaults."""
    if not named:
        return xs
    known = [name for name, p in inputs.parameters.items() if p.kind != p.VAR_POSITIONAL]
    for name in named:
        if name not in known:
            errors.unknown_input(name, known)
        if name in known[: len(xs)]:
            errors.input_twice(name)
    try:
        bound = inputs.bind(*xs, **named)
    except TypeError:
        least, most = arity(inputs)
        errors.wrong_arity(least, most, len(xs) + len(named))
    bound.apply_defaults()
    return bound.args
