"""Leaves that are stacks of a network's leaves, and what a rule of one leaf does with them.

A `Stack` is a node in the trees that a transform sees: masks, chains and norms of whole trees meet
the array within, with all its axes, and rules of one leaf each member of it alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fnn.core import errors


@dataclass(frozen=True)
class Stack:
    """A leaf whose first axes are members, or whose outputs were not last.

    - `value`: the array; in an optimizer's state, any tree of what its rule keeps for a leaf.
    - `depth`: how many axes of members come first, of each array in `value`.
    - `order`: None, or which axes of the param as it is stored the axes of `value` were.
    - `told`: False while it is tried whether a transform minds that nobody told it: `value` is
      the param as it is stored.
    """

    value: Any
    depth: int
    order: tuple[int, ...] | None = None
    told: bool = True


def _of_value(aux: tuple, children: Any) -> Stack:
    (value,) = children
    return Stack(value, *aux)


jax.tree_util.register_pytree_with_keys(
    Stack,
    lambda s: (((errors.Unnamed(), s.value),), (s.depth, s.order, s.told)),
    _of_value,
    lambda s: ((s.value,), (s.depth, s.order, s.told)),
)


class UntoldError(errors.ParamsError):
    """A rule that minds stacks was given one as if it were a leaf of one layer."""


def is_stack(node: Any) -> bool:
    """Whether it stands for one leaf; where a mask has taken the leaf out, nothing does."""
    return isinstance(node, Stack) and node.value is not None


def each_member(fn: Callable, leaf: Any, *others: Any) -> tuple:
    """The tuple `fn(leaf, *others)`; of a stack, member by member, as stacks like it."""
    if not isinstance(leaf, Stack):
        return fn(leaf, *others)
    for _ in range(leaf.depth):
        fn = jax.vmap(fn)
    values = fn(*(a.value if isinstance(a, Stack) else a for a in (leaf, *others)))
    return tuple(replace(leaf, value=value) for value in values)


def map_members(fn: Callable, tree: Any) -> Any:
    """`fn` at every leaf of a tree, or at each member of it."""
    return jax.tree.map(
        lambda leaf: each_member(lambda a: (fn(a),), leaf)[0], tree, is_leaf=is_stack
    )


def plain(tree: Any) -> Any:
    """The tree without stacks, its arrays as the params are stored."""

    def stored(node):
        if not isinstance(node, Stack):
            return node
        if node.value is None or node.order is None or not node.told:
            return node.value
        return jnp.transpose(node.value, tuple(int(i) for i in np.argsort(node.order)))

    return jax.tree.map(stored, tree, is_leaf=lambda node: isinstance(node, Stack))


def by_member(what: str, fn: Callable, params: Any) -> Any:
    """`fn(params)`, a mask or labels, of params that have one member in the place of each stack.

    Raises UntoldError if it is another for the stacks themselves, and nobody told of them.
    """

    def first(node):
        return node.value[(0,) * node.depth] if is_stack(node) else node

    seen = fn(jax.tree.map(first, params, is_leaf=is_stack))
    nodes = jax.tree.leaves(params, is_leaf=is_stack)
    if any(isinstance(node, Stack) and not node.told for node in nodes):
        pairs = [jax.tree_util.tree_leaves_with_path(tree) for tree in (seen, fn(plain(params)))]
        for (path, alone), (_, whole) in zip(*pairs, strict=False):
            if alone != whole:
                raise _untold(path, _STACK, f"{what}, other for all than for one ({alone})")
    return seen


def check_told(tree: Any, rule: Callable, whole: bool, outputs: bool) -> None:
    """Refuse stacks that nobody told of, for a rule that minds them.

    - `whole`: the rule goes by a leaf's axes or by numbers of all of it.
    - `outputs`: it takes the last axis for the output's.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_stack):
        if isinstance(leaf, Stack) and not leaf.told:
            name = getattr(rule, "__qualname__", "the transform").split(".<locals>")[0]
            if whole and leaf.depth:
                raise _untold(path, _STACK, f"{name}, which takes a leaf for one layer's")
            if outputs and leaf.order:
                raise _untold(path, "where its outputs are", f"{name}, which takes them for last")


_STACK = "of the layers stacked here"


def _untold(path: Any, of: str, by: str) -> UntoldError:
    error = UntoldError(
        f"an optimizer that is told {of}",
        by,
        "wrap it, as fnn.optim.stacked(tx, net.specs(x)[0]), or, where each member is a network "
        "of its own (an ensemble), as fnn.optim.each_member(tx)",
    )
    error.path = errors.path_of(path)
    return error
