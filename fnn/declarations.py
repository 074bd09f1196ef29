"""What every array of a network is: its kind, its axes and its stack, from the declarations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax

from fnn import errors
from fnn.initializing import Derived, Param
from fnn.shapes import arrays_of


def declared(specs: Any) -> Any:
    """A Param for every array, of those too that are derived: a tree like the params.

    - `specs`: the first of `net.specs(x)`.

    A leaf that is derived takes the kind of the leaf at whose path, or below or beside whose path,
    it stands; `"value"` where there is no such leaf. Its axes are those that `Derived` gives it, or
    the old ones if it has as many; otherwise None.

    >>> import fnn
    >>> specs, _ = fnn.weight_norm(fnn.dense(3)).specs((1, 4))
    >>> found = declared(specs)["kernel"]
    >>> found["gain"].kind, found["gain"].axes, found["direction"].axes
    ('kernel', ('out',), ('in', 'out'))
    """
    return jax.tree.map(_resolved, specs)


def _resolved(node: Any) -> Any:
    if isinstance(node, Param):
        return node
    if not isinstance(node, Derived):
        raise errors.InputError("specs of Param", errors.show(node), "pass net.specs(x)[0]")
    before = {
        errors.path_of(keys).removeprefix("params/"): param
        for keys, param in jax.tree_util.tree_flatten_with_path(declared(node.specs))[0]
    }

    def leaf(keys, array):
        path, names = errors.path_of(keys), [errors.path_of((key,)) for key in keys]
        old = _of_path(path, before)
        shape, rank = array.shape[len(node.stack) :], len(array.shape) - len(node.stack)
        given = node.axes
        if isinstance(given, Mapping):
            given = next((given[name] for name in reversed(names) if name in given), None)
        if given is None and old is not None and len(old.shape) == rank:
            given = old.axes
        base = old or Param((), None, kind="value")  # type: ignore[arg-type]
        return replace(base, shape=shape, dtype=array.dtype, axes=given, stack=node.stack)

    return jax.tree_util.tree_map_with_path(leaf, arrays_of(node))


def _of_path(path: str, before: Mapping[str, Param]) -> Param | None:
    """The leaf that stood at a path, above it, or at the end of it."""
    for old, param in before.items():
        if path == old or not old or path.startswith(f"{old}/") or path.endswith(f"/{old}"):
            return param
    return None


def output_axis(param: Param) -> int:
    """The axis of a kernel that counts its output features: "out", or else the last.

    >>> output_axis(Param((3, 5, 4), None, axes=("width", "out", "in")))
    1
    """
    axes = param.axes or ()
    return axes.index("out") if "out" in axes else len(param.shape) - 1
