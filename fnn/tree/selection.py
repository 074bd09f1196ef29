"""The leaves whose paths match a pattern: taken out, put back, masked, counted."""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

import jax

from fnn.core import checks, errors
from fnn.core.types import Tree
from fnn.tree.paths import by_path, nested


@errors.named
def select(tree: Tree, *patterns: str) -> dict[str, Any]:
    """The leaves at paths that match any of the patterns, {path: leaf}, in the order of `paths`.

    - `patterns`: shell globs over whole paths, in which `*` crosses "/".

    Raises ParamsError for a pattern that matches nothing, naming the closest paths.

    >>> params = {"dense1": {"kernel": 1.0, "bias": 2.0}, "block": {"dense1": {"kernel": 3.0}}}
    >>> select(params, "*/kernel")
    {'block/dense1/kernel': 3.0, 'dense1/kernel': 1.0}
    """
    flat = by_path(tree)
    chosen = chosen_by(flat, patterns)
    return {path: value for path, value in flat.items() if path in chosen}


@errors.named
def split(tree: Mapping, *patterns: str) -> tuple[dict, dict]:
    """(chosen, rest): the tree of the leaves that match a pattern, and the tree of the others.

    Neither has entries for the other's leaves, and `merge` puts them together again; so part of a
    network can be tuned by differentiating with respect to that part alone.

    - `tree`: nested dicts, since no entry can be taken out of a tuple.
    - `patterns`: as in `select`.

    Raises ParamsError for a pattern that matches nothing, InputError for another tree.

    >>> params = {"body": {"kernel": 2.0}, "head": {"kernel": 3.0}}
    >>> chosen, rest = split(params, "head/*")
    >>> chosen, rest
    ({'head': {'kernel': 3.0}}, {'body': {'kernel': 2.0}})
    >>> def loss(params):
    ...     return params["body"]["kernel"] * params["head"]["kernel"] ** 2
    >>> print(jax.grad(lambda part: loss(merge(part, rest)))(chosen))
    {'head': {'kernel': Array(12., dtype=float32, weak_type=True)}}
    """
    flat = by_path(tree)
    _only_dicts(tree)
    chosen = chosen_by(flat, patterns)
    return (
        nested({path: value for path, value in flat.items() if path in chosen}),
        nested({path: value for path, value in flat.items() if path not in chosen}),
    )


@errors.named
def merge(*trees: Mapping) -> dict:
    """The nested dict with the leaves of all trees, no two of which share a path.

    Raises ParamsError where two trees have a leaf at the same path, InputError for trees that are
    not nested dicts.

    >>> merge({"dense1": {"kernel": 1.0}}, {"dense1": {"bias": 2.0}, "dense2": {"bias": 3.0}})
    {'dense1': {'kernel': 1.0, 'bias': 2.0}, 'dense2': {'bias': 3.0}}
    """
    whole: dict[str, Any] = {}
    for tree in trees:
        _only_dicts(tree)
        for path, value in by_path(tree).items():
            if path in whole:
                raise errors.ParamsError(
                    "trees without a leaf in common",
                    f"two leaves at {path}",
                    "take it out of one, by tree.split",
                )
            whole[path] = value
    return nested(whole)


@errors.named
def stop_gradient(tree: Tree, *patterns: str) -> Tree:
    """The same tree with `jax.lax.stop_gradient` on the leaves that match a pattern.

    Their gradient is zero, but an optimizer may still move them (weight decay does): `fnn.frozen`
    freezes a layer, and `split` or `mask` leaves them out. Raises as `select`.

    >>> params = {"body": {"kernel": 2.0}, "head": {"kernel": 3.0}}
    >>> def loss(params):
    ...     params = stop_gradient(params, "body/*")
    ...     return params["body"]["kernel"] * params["head"]["kernel"]
    >>> print(jax.tree.map(float, jax.grad(loss)(params)))
    {'body': {'kernel': 0.0}, 'head': {'kernel': 2.0}}
    """
    return _map_chosen(tree, patterns, jax.lax.stop_gradient)


@errors.named
def mask(tree: Tree, *patterns: str) -> Tree:
    """A tree of bools like `tree`, True at the leaves that match a pattern.

    `optax.masked` and weight decay take it as a mask. Raises as `select`.

    >>> mask({"dense1": {"kernel": 1.0, "bias": 2.0}}, "*/kernel")
    {'dense1': {'bias': False, 'kernel': True}}
    """
    chosen = chosen_by(by_path(tree), patterns)
    return jax.tree_util.tree_map_with_path(lambda keys, _: errors.path_of(keys) in chosen, tree)


@errors.named
def count(tree: Tree, *patterns: str) -> int:
    """The number of values in the leaves that match a pattern; without patterns, in all leaves.

    Leaves may be arrays, tracers or `jax.ShapeDtypeStruct`s. Raises as `select`, and InputError for
    other leaves.

    >>> import jax.numpy as jnp
    >>> params = {"dense1": {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}}
    >>> count(params), count(params, "*/kernel")
    (15, 12)
    """
    return sum(math.prod(leaf.shape) for leaf in _arrays(tree, patterns))


@errors.named
def nbytes(tree: Tree, *patterns: str) -> int:
    """The bytes that the values of the leaves take; leaves as in `count`.

    >>> import jax.numpy as jnp
    >>> nbytes({"dense1": {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3, jnp.bfloat16)}})
    54
    """
    arrays = _arrays(tree, patterns)
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in arrays)


def _arrays(tree: Tree, patterns: tuple[str, ...]) -> list[Any]:
    flat = by_path(tree)
    chosen = chosen_by(flat, patterns) if patterns else set(flat)
    for path in chosen:
        if not (hasattr(flat[path], "shape") and hasattr(flat[path], "dtype")):
            with errors.at(path):
                checks.not_an_array(flat[path])
    return [flat[path] for path in flat if path in chosen]


def chosen_by(flat: Mapping[str, Any], patterns: tuple[str, ...]) -> set[str]:
    """The paths that match any of the patterns, each of which must match something."""
    if not patterns:
        raise errors.OptionError("one pattern or more", "none", 'pass one, as "*/kernel"')
    chosen: set[str] = set()
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise errors.OptionError(
                "patterns that are strings", errors.show(pattern), 'as "*/kernel"'
            )
        found = {path for path in flat if fnmatch.fnmatchcase(path, pattern)}
        if not found:
            unknown(pattern, flat)
        chosen |= found
    return chosen


def unknown(path: str, known: Iterable[str], what: str = "leaves") -> NoReturn:
    """Refuse a path or a pattern that matches no name in the tree, and name the closest."""
    known = list(known)
    below = [name for name in known if name.startswith(f"{path}/")]
    close = difflib.get_close_matches(path, known, n=3, cutoff=0.4)
    mend = f'write "{path}/*" for all below it' if below else "see fnn.tree.paths for all"
    if close and not below:
        mend = f"did you mean {' or '.join(close)}?"
    if not known:
        mend = "the tree is empty"
    some = errors.names(known[:3]) + (" ..." if len(known) > 3 else "")
    raise errors.ParamsError(f"one of the {len(known)} {what} {some}", path, mend)


def _map_chosen(tree: Any, patterns: tuple[str, ...], fn: Callable[[Any], Any]) -> Any:
    chosen = chosen_by(by_path(tree), patterns)

    def visit(keys, leaf):
        return fn(leaf) if errors.path_of(keys) in chosen else leaf

    return jax.tree_util.tree_map_with_path(visit, tree)


def _only_dicts(tree: Tree) -> None:
    if not isinstance(tree, Mapping):
        raise errors.InputError("a tree of nested dicts", errors.show(tree), "pass net.init's")
    for name, node in tree.items():
        if not isinstance(name, str) or not name or "/" in name:
            raise errors.InputError('names that are strings without "/"', repr(name), "rename it")
        with errors.at(name):
            if not jax.tree_util.all_leaves([node]) and node is not None:
                _only_dicts(node)
