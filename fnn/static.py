"""Functions told apart by what they are, so that one that is built again finds its program.

`jax.jit` knows a function by its identity. What is built anew for each network (the way from first
values to `lora`'s, the first state of an optimizer) is a new closure each time, and would compile
each time, and stay in memory. Here two functions are alike if their code is, and all that they
refer to: what they close over, their defaults and their globals.
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

PROGRAMS = 128  # that are kept


def run_once_compiled(fn: Callable, *args: Any) -> Any:
    """`fn(*args)` by one compiled program, which serves every function like `fn`.

    A function that refers to arrays, or to objects that are known by identity alone, runs operation
    by operation: nothing is compiled for it, and nothing kept.

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
    """A function, compared by its content."""

    content: Any
    fn: Callable = dataclasses.field(compare=False)

    @staticmethod
    def of(fn: Callable) -> Static | None:
        """The function with its content; None where it can't be told."""
        try:
            content = _content(fn, {})
            hash(content)
        except _Unknown:
            return None
        return Static(content, fn)


class _Unknown(Exception):
    """Something that is told from others by its identity alone."""


def _content(value: Any, seen: dict[int, int]) -> Any:
    """What tells a value from others, hashable; `seen` ends what refers to itself."""
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes, np.dtype, type)):
        return type(value), repr(value) if isinstance(value, (float, complex)) else value
    if isinstance(value, jax.tree_util.PyTreeDef):
        return "treedef", value
    if isinstance(value, np.generic):
        return value.dtype, value.tobytes()
    if isinstance(value, types.ModuleType):
        return "module", value.__name__
    if _lasts(value):
        return "named", id(value)
    if id(value) in seen:
        return "again", seen[id(value)]
    seen[id(value)] = len(seen)
    if isinstance(value, frozenset):
        return "set", frozenset(_content(v, seen) for v in value)
    if isinstance(value, tuple):
        return type(value), tuple(_content(v, seen) for v in value)
    if isinstance(value, (dict, types.MappingProxyType)):
        return "dict", tuple((_content(k, seen), _content(v, seen)) for k, v in value.items())
    if isinstance(value, functools.partial):
        return "partial", _content((value.func, value.args, value.keywords), seen)
    if isinstance(value, types.FunctionType):
        return _function(value, seen)
    if isinstance(value, types.MethodType):
        return "method", _content((value.__func__, value.__self__), seen)
    if dataclasses.is_dataclass(value):
        fields = [getattr(value, field.name) for field in dataclasses.fields(value)]
        return type(value), _content(tuple(fields), seen)
    raise _Unknown


def _function(fn: types.FunctionType, seen: dict[int, int]) -> Any:
    cells = []
    for cell in fn.__closure__ or ():
        try:
            cells.append(_content(cell.cell_contents, seen))
        except ValueError:  # not filled yet
            raise _Unknown from None
    known = {name: fn.__globals__[name] for name in _names(fn.__code__) if name in fn.__globals__}
    refers = (fn.__defaults__, fn.__kwdefaults__, known)
    return fn.__code__, tuple(cells), _content(refers, seen)


def _names(code: types.CodeType) -> list[str]:
    """The global names that a function's code, and the code of functions inside it, may read."""
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return list(dict.fromkeys([*code.co_names, *(n for c in inner for n in _names(c))]))


def _lasts(value: Any) -> bool:
    """Whether a value is a function or an object that a module holds under the value's own name.

    Not one of `__main__`, where a name is given to new things as a notebook is run.
    """
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or module == "__main__":
        return False
    return getattr(sys.modules.get(module), name, None) is value and name.isidentifier()
