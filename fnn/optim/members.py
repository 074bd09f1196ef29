"""Leaves that are stacks of a network's leaves, and how rules of one leaf see them.

A `Stack` is a node in the trees that a transform sees: masks, chains and norms of whole trees see
its array with all axes, and a rule of one leaf sees each member alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fnn.core import errors
from fnn.core.types import Tree


@dataclass(frozen=True)
class Stack:
    """A leaf whose first axes are members, or whose outputs were not last.

    - `value`: the array; in an optimizer's state, any tree of what its rule keeps for a leaf.
    - `depth`: how many axes of members come first, in each array of `value`.
    - `order`: None, or for each axis of `value` its place in the stored param.
    - `undeclared`: True only while `check_stacks` tests a transform that is not `stacked`: then
      `value` is the param as stored.
    """

    value: Tree
    depth: int
    order: tuple[int, ...] | None = None
    undeclared: bool = False


def _of_value(aux: tuple, children: Any) -> Stack:
    (value,) = children
    return Stack(value, *aux)


jax.tree_util.register_pytree_with_keys(
    Stack,
    lambda s: (((errors.Unnamed(), s.value),), (s.depth, s.order, s.undeclared)),
    _of_value,
    lambda s: ((s.value,), (s.depth, s.order, s.undeclared)),
)


class UndeclaredStackError(errors.ParamsError):
    """A rule that needs `stacked` got a stack as if it were the leaf of one layer."""


def is_stack(node: Any) -> bool:
    """Whether it is a stack that a mask has not emptied."""
    return isinstance(node, Stack) and node.value is not None


def each_member(fn: Callable, leaf: Any, *others: Any) -> tuple:
    """The tuple `fn(leaf, *others)`; for a stack, member by member, as stacks like it."""
    if not isinstance(leaf, Stack):
        return fn(leaf, *others)
    for _ in range(leaf.depth):
        fn = jax.vmap(fn)
    values = fn(*(a.value if isinstance(a, Stack) else a for a in (leaf, *others)))
    return tuple(replace(leaf, value=value) for value in values)


def map_members(fn: Callable, tree: Tree) -> Tree:
    """`fn` at every leaf of a tree, or at each member of it."""
    return jax.tree.map(
        lambda leaf: each_member(lambda a: (fn(a),), leaf)[0], tree, is_leaf=is_stack
    )


def plain(tree: Tree) -> Tree:
    """The tree without stacks, its arrays laid out as the stored params."""

    def stored(node):
        if not isinstance(node, Stack):
            return node
        if node.value is None or node.order is None or node.undeclared:
            return node.value
        return jnp.transpose(node.value, tuple(int(i) for i in np.argsort(node.order)))

    return jax.tree.map(stored, tree, is_leaf=lambda node: isinstance(node, Stack))


def by_member(what: str, fn: Callable, params: Tree) -> Tree:
    """`fn(params)`, a mask or labels, for params with one member instead of each stack.

    Raises UndeclaredStackError if undeclared stacks themselves would give another result.
    """

    def first(node):
        return node.value[(0,) * node.depth] if is_stack(node) else node

    seen = fn(jax.tree.map(first, params, is_leaf=is_stack))
    nodes = jax.tree.leaves(params, is_leaf=is_stack)
    if any(isinstance(node, Stack) and node.undeclared for node in nodes):
        pairs = [jax.tree_util.tree_leaves_with_path(tree) for tree in (seen, fn(plain(params)))]
        for (path, alone), (_, whole) in zip(*pairs, strict=False):
            if alone != whole:
                raise _undeclared(
                    path,
                    _STACK,
                    f"{what}, for one member {alone}, for all {whole}",
                )
    return seen


def refuse_undeclared(tree: Tree, rule: Callable, whole: bool, outputs: bool) -> None:
    """Refuse undeclared stacks for a rule whose result depends on them.

    - `whole`: the rule depends on a leaf's axes or on numbers of all of it.
    - `outputs`: it takes the last axis as the outputs'.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_stack):
        if isinstance(leaf, Stack) and leaf.undeclared:
            name = getattr(rule, "__qualname__", "the transform").split(".<locals>")[0]
            if whole and leaf.depth:
                raise _undeclared(path, _STACK, f"{name}, which treats a leaf as one layer")
            if outputs and leaf.order:
                raise _undeclared(path, _TURNED, f"{name}, which takes the last axis as outputs")


_STACK = "layers are stacked here"
_TURNED = "the outputs are not the last axis here"


def _undeclared(path: Any, why: str, by: str) -> UndeclaredStackError:
    error = UndeclaredStackError(
        f"a stacked optimizer, since {why}",
        by,
        "wrap it, as fnn.optim.stacked(tx, net.specs(x)[0]), or, where each member is a network "
        "of its own (an ensemble), as fnn.optim.each_member(tx)",
    )
    error.path = errors.path_of(path)
    return error
