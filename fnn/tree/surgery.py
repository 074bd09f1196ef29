"""New values at some leaves of a tree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from fnn.core import errors, trees
from fnn.core.types import Tree
from fnn.tree.paths import by_path
from fnn.tree.selection import chosen_by


@errors.named
def update(
    tree: Tree, where: str | Mapping[str, Any], value: Any = None, *, strict: bool = True
) -> Tree:
    """The same tree with new values at some leaves.

    - `where`: a pattern, as in `select`, or a dict {pattern: value}; no leaf may match two.
    - `value`: the new value of each matching leaf: an array, or a function of the leaf.
    - `strict`: by default, each new value must have the shape and dtype of the old one. False takes
      any value.

    Raises ParamsError for a pattern that matches nothing, ShapeError and DtypeError for a value
    that does not fit.

    >>> import jax.numpy as jnp
    >>> params = {"dense1": {"kernel": jnp.ones((1, 2)), "bias": jnp.ones(2)}}
    >>> print(update(params, "*/bias", jnp.zeros(2))["dense1"]["bias"])
    [0. 0.]
    >>> print(update(params, {"*/kernel": lambda kernel: 3 * kernel})["dense1"]["kernel"])
    [[3. 3.]]
    """
    flat = by_path(tree)
    if isinstance(where, Mapping):
        if value is not None:
            raise errors.OptionError(
                "no value beside a dict of values", errors.show(value), "leave it out"
            )
        changes = dict(where)
    else:
        changes = {where: value}
    new: dict[str, Any] = {}
    for pattern, change in changes.items():
        for path in chosen_by(flat, (pattern,)):
            if path in new:
                raise errors.OptionError(
                    "one value for each leaf", f"two for {path}", "narrow the patterns"
                )
            new[path] = change(flat[path]) if callable(change) else change
            if strict:
                with errors.at(path):
                    _check_like(flat[path], new[path])

    def visit(keys, leaf):
        return new.get(errors.path_of(keys), leaf)

    return jax.tree_util.tree_map_with_path(visit, tree)


def _check_like(old: Any, new: Any) -> None:
    mend = "pass a value like it, or strict=False to change it"
    for leaf in (old, new):
        if not isinstance(leaf, (jax.Array, np.ndarray, np.generic, int, float, complex)):
            raise errors.InputError("an array", errors.show(leaf), mend)
    trees.alike("value", new, "the old one", old, mend)
