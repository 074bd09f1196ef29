"""Functions compared by content, so that a function built again reuses its compiled program.

`jax.jit` identifies a function by identity. A closure built for each network (the way from first
values to those of `lora`, the first state of an optimizer) would compile each time, and stay in
memory. Here two functions are equal if their code is, and all that they refer to: closed-over
values, defaults, and the globals they name, with user functions compared by content in turn. What
can change unseen (a user's module or class, a list, an array, an object with attributes of its own)
is not compared: a function that refers to it runs uncompiled.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import types
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

PROGRAMS = 128  # kept at most

# Decorates a function of arrays: called outside of jit it is one program, not one an operation;
# inside it is as if the decorator were not there.
inlined = functools.partial(jax.jit, inline=True)


def run_once_compiled(fn: Callable, *args: Any) -> Any:
    """`fn(*args)` by a compiled program, shared by all functions of the same content.

    A function that refers to arrays, or to objects known only by identity, runs operation by
    operation: nothing is compiled for it, and nothing kept.

    >>> def scaled_by(c):
    ...     return lambda x: c * x
    >>> alike = [Static.of(scaled_by(c)) for c in (2.0, 2.0, 3.0)]
    >>> alike[0] == alike[1], alike[0] == alike[2]
    (True, False)
    >>> run_once_compiled(scaled_by(2.0), jax.numpy.ones(2))
    Array([2., 2.], dtype=float32)
    """
    static = Static.of(fn)
    return fn(*args) if static is None else _program(static)(*args)


@functools.lru_cache(maxsize=PROGRAMS)
def _program(static: Static) -> Callable:
    return jax.jit(static.fn)


@dataclasses.dataclass(frozen=True)
class Static:
    """A function, compared by content."""

    content: Any
    fn: Callable = dataclasses.field(compare=False)

    @staticmethod
    def of(fn: Callable) -> Static | None:
        """The function with its content; None if that cannot be determined."""
        try:
            content = _content(fn, {})
            hash(content)
        except _Unknown:
            return None
        return Static(content, fn)


class _Unknown(Exception):
    """A value known only by identity."""


LIBRARIES = frozenset({"fnn", "jax", "jaxlib", "numpy", "optax"}) | sys.stdlib_module_names


def _content(value: Any, seen: dict[int, tuple[int, Any]]) -> Any:
    """What identifies a value, hashable; `seen` stops at values that refer to themselves."""
    kind: Any = type(value)
    if value is None or kind in (bool, int, str, bytes) or isinstance(value, np.dtype):
        return kind, value
    if kind in (float, complex):
        return kind, repr(value)
    if isinstance(value, np.generic):
        return value.dtype, value.tobytes()
    if isinstance(value, jax.tree_util.PyTreeDef):
        return "treedef", value
    if _is_of_a_library(value):
        return "named", value
    if id(value) in seen:
        return "again", seen[id(value)][0]
    seen[id(value)] = len(seen), value  # held, so that its id is not reused
    if kind is frozenset:
        return kind, frozenset(_content(v, seen) for v in value)
    if kind is tuple or issubclass(kind, tuple) and hasattr(kind, "_fields"):
        return _of(kind), tuple(_content(v, seen) for v in value)
    if kind in (dict, types.MappingProxyType):
        return kind, tuple((_content(k, seen), _content(v, seen)) for k, v in value.items())
    if kind is functools.partial:
        return kind, _content((value.func, value.args, value.keywords), seen)
    if kind is types.MethodType:
        return kind, _content((value.__func__, value.__self__), seen)
    if kind is types.FunctionType and not vars(value):
        return _function(value, seen)
    if dataclasses.is_dataclass(value) and _is_of_a_library(kind):
        names = [field.name for field in dataclasses.fields(value)]
        if set(getattr(value, "__dict__", names)) == set(names):
            return kind, _content(tuple(getattr(value, name) for name in names), seen)
    raise _Unknown


def _of(kind: Any) -> Any:
    """The type of a tuple; for a user's named tuple, its name and fields."""
    return kind if kind is tuple or _is_of_a_library(kind) else (kind.__qualname__, kind._fields)


def _function(fn: types.FunctionType, seen: dict[int, tuple[int, Any]]) -> Any:
    cells = []
    for cell in fn.__closure__ or ():
        try:
            cells.append(_content(cell.cell_contents, seen))
        except ValueError:  # still empty
            raise _Unknown from None
    known = {name: fn.__globals__[name] for name in _names(fn.__code__) if name in fn.__globals__}
    refers = (fn.__defaults__, fn.__kwdefaults__, known)
    return fn.__code__, tuple(cells), _content(refers, seen)


def _names(code: types.CodeType) -> list[str]:
    """The global names that a function's code, and that of functions inside it, may read."""
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return list(dict.fromkeys([*code.co_names, *(n for c in inner for n in _names(c))]))


def _is_of_a_library(value: Any) -> bool:
    """Whether a value is a module of a library, or an attribute of one under its own name."""
    if isinstance(value, types.ModuleType):
        return value.__name__.partition(".")[0] in LIBRARIES
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str):
        return False
    held = getattr(sys.modules.get(module), name, None)
    return module.partition(".")[0] in LIBRARIES and held is value
