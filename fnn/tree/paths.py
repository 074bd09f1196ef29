"""The path of every leaf of a tree, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import jax

from fnn.core import errors
from fnn.core.types import Tree


@errors.named
def paths(tree: Tree) -> tuple[str, ...]:
    """The path of each leaf, in the order of `jax.tree.leaves`: dicts sorted by name.

    Entries of tuples and lists are named by their index. A tree that is one leaf has the path "".
    Raises ParamsError if two leaves share a path, as "a/b" and {"a": {"b": ...}} do.

    >>> paths({"conv1": {"kernel": 1.0, "bias": 2.0}, "scales": (3.0, 4.0)})
    ('conv1/bias', 'conv1/kernel', 'scales/0', 'scales/1')
    """
    return tuple(by_path(tree))


@errors.named
def to_paths(tree: Tree) -> dict[str, Any]:
    """The tree as one flat dict, {path: leaf}, in the order of `paths`.

    An empty dict has no leaves, so it leaves no trace. Raises as `paths`.

    >>> to_paths({"dense1": {"kernel": 1.0, "bias": 2.0}})
    {'dense1/bias': 2.0, 'dense1/kernel': 1.0}
    """
    return by_path(tree)


@errors.named
def from_paths(flat: Mapping[str, Any]) -> Tree:
    """The nested dicts whose leaves are at these paths: the inverse of `to_paths` for dicts.

    A tuple or a list comes back as a dict with the names "0", "1" ... Raises ParamsError for a path
    that leads through another leaf, InputError for paths that are not strings.

    >>> from_paths({"dense1/kernel": 1.0, "dense1/bias": 2.0})
    {'dense1': {'kernel': 1.0, 'bias': 2.0}}
    """
    if not isinstance(flat, Mapping) or not all(isinstance(path, str) for path in flat):
        raise errors.InputError(
            "a dict of leaves by path", errors.show(flat), 'as {"dense1/kernel": x}'
        )
    return nested(flat)


def by_path(tree: Tree) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
        path = errors.path_of(keys)
        if path in flat:
            raise errors.ParamsError(
                "one leaf at each path", f"two at {path}", 'rename one: "/" separates names'
            )
        flat[path] = leaf
    return flat


def nested(flat: Mapping[str, Any]) -> Tree:
    if "" in flat and len(flat) == 1:
        return flat[""]
    tree: dict[str, Any] = {}
    made = {id(tree)}  # the dicts made here: a leaf may itself be a dict
    for path, leaf in flat.items():
        *names, last = path.split("/")
        node = tree
        for name in names:
            if name not in node:
                node[name] = {}
                made.add(id(node[name]))
            node = node[name]
            if id(node) not in made:
                _in_the_way(path)
        if last in node or not all((*names, last)):
            _in_the_way(path)
        node[last] = leaf
    return tree


def _in_the_way(path: str) -> NoReturn:
    raise errors.ParamsError(
        "paths of names, none of which leads through another leaf", path or '""', "rename it"
    )
