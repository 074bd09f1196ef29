"""Transforms of some leaves only.

A mask is a tree of bools like the params, or with one bool for a whole subtree; or a function of
the params that gives one; or the patterns of the paths to choose, as `"*/kernel"` or
`("*/kernel", "embedding/*")`, with the globs of `fnn.tree`.

What a param is follows from its declaration, not its name: `net.specs(x)[0]`, for inputs like x, is
a tree like the params with a `fnn.Param` for each array; `of_kind` makes a mask of it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from fnn import tree as trees
from fnn.core import errors
from fnn.core.declarations import declared
from fnn.core.origins import builder
from fnn.core.types import Tree
from fnn.optim.members import by_member
from fnn.optim.transform import Transform, check_state, check_transform, stateless, taking_extra

Mask: TypeAlias = Any  # bools like the params, a function of the params, or patterns of paths


class MaskedState(NamedTuple):
    """The inner transform's state, with None for the leaves that it never sees."""

    inner_state: Tree


class PartitionState(NamedTuple):
    """The states of the transforms, by label."""

    inner_states: dict[Any, Any]


@builder
def masked(tx: Transform, mask: Mask) -> Transform:
    """The transform at the leaves of a mask; the updates of the others pass unchanged.

    - `tx`: sees trees with None for the other leaves, and keeps no state for them. Among the extra
      arguments, trees like the gradients are masked too, and `value_fn` becomes a function of the
      chosen params with the others fixed.
    - `mask`: bools like the params, as `of_kind(net.specs(x)[0], "kernel")` gives them, a function
      of the params, or patterns of paths, as `"*/kernel"`.

    Raises ParamsError for a mask that does not fit the params.

    >>> from fnn.optim import sgd
    >>> tx = masked(sgd(0.1), "*/kernel")
    >>> g = {"dense1": {"kernel": jnp.ones(1), "bias": jnp.ones(1)}}
    >>> updates, _ = tx.update(g, tx.init(g))
    >>> print(updates["dense1"]["kernel"], updates["dense1"]["bias"])
    [-0.1] [1.]
    """
    check_transform(tx)
    check_mask(mask)
    tx_update = taking_extra(tx.update)

    def init(params):
        return MaskedState(tx.init(_part(params, resolve(mask, params))))

    def update(grads, opt_state, params=None, **extra):
        check_state(opt_state, MaskedState)
        chosen = resolve(mask, grads if params is None else params)
        if not any(jax.tree.leaves(chosen)):
            return grads, opt_state
        inner, extra = _inside(chosen, grads, params, extra)
        updates, state = tx_update(_part(grads, chosen), opt_state.inner_state, inner, **extra)
        return _merged(chosen, updates, grads), MaskedState(state)

    return Transform(init, update)


@builder
def partition(transforms: Mapping[Any, Transform], labels: Tree | Callable = None) -> Transform:
    """Each leaf updated by the transform of its label, or of the first pattern matching its path.

    - `transforms`: {pattern: transform}, as `{"head/*": adam(1e-3), "*": adam(1e-4)}`, or
      {label: transform} with `labels`. A label without leaves is ignored.
    - `labels`: a tree of labels like the params, or with one label for a whole subtree; or a
      function of the params that gives one. None takes the keys as patterns.

    Each transform sees its leaves as in `masked`. Raises ParamsError for labels that do not fit the
    params or have no transform, a leaf that no pattern matches, and a pattern that matches no leaf.

    >>> from fnn.optim import adam, sgd
    >>> tx = partition({"head": sgd(1.0), "*": sgd(0.1)})
    >>> g = {"head": jnp.ones(1), "body": {"kernel": jnp.ones(1)}}
    >>> updates, _ = tx.update(g, tx.init(g))
    >>> print(updates["head"], updates["body"]["kernel"])
    [-1.] [-0.1]
    """
    if not isinstance(transforms, Mapping) or not transforms:
        raise errors.OptionError(
            "a dict of transforms by label", errors.show(transforms), 'as {"fast": sgd(0.1)}'
        )
    for key, tx in transforms.items():
        check_transform(tx)
        if labels is None and not isinstance(key, str):
            raise errors.OptionError(
                "patterns of paths as keys, or labels",
                errors.show(key),
                'as {"head/*": adam(1e-3), "*": adam(1e-4)}, or pass labels=',
            )
    each_update = {label: taking_extra(tx.update) for label, tx in transforms.items()}

    def masks(params):
        """Which leaves each label has."""
        if labels is None:
            return first_matches(transforms, params)
        of = by_member("labels", labels, params) if callable(labels) else labels
        of = _spread("labels", of, params)
        for path, label in jax.tree_util.tree_leaves_with_path(of):
            if label not in transforms:
                name = errors.path_of(path)
                raise errors.ParamsError(
                    f"labels of transforms, {errors.names(map(str, transforms))}",
                    f"{name} {label}".strip(),
                    "give that label a transform",
                )
        return {label: jax.tree.map(partial(operator.eq, label), of) for label in transforms}

    def init(params):
        of = masks(params)
        return PartitionState({k: tx.init(_part(params, of[k])) for k, tx in transforms.items()})

    def update(grads, opt_state, params=None, **extra):
        check_state(opt_state, PartitionState)
        updates, states = grads, {}
        for label, chosen in masks(grads if params is None else params).items():
            state = states[label] = opt_state.inner_states[label]
            if not any(jax.tree.leaves(chosen)):
                continue
            inner, more = _inside(chosen, grads, params, extra)
            part, states[label] = each_update[label](_part(grads, chosen), state, inner, **more)
            updates = _merged(chosen, part, updates)
        return updates, PartitionState(states)

    return Transform(init, update)


@builder
def set_to_zero(mask: Mask) -> Transform:
    """Updates of exactly zero at the leaves of a mask, whatever comes in, NaN and decay included.

    At the end of a chain it fixes those params. The transforms before it keep state for them; to
    avoid that, `partition({"train": adam(1e-3), "still": set_to_zero(True)}, labels)`. For params
    without gradients either, see `fnn.frozen`.

    - `mask`: bools like the params, a function of them, or patterns of paths; see `masked`.

    >>> from fnn.optim import chain, sgd
    >>> tx = chain(sgd(0.1), set_to_zero("body/*"))
    >>> g = {"body": {"kernel": jnp.ones(1)}, "head": {"kernel": jnp.ones(1)}}
    >>> updates, _ = tx.update(g, tx.init(g))
    >>> print(updates["body"]["kernel"], updates["head"]["kernel"])
    [0.] [-0.1]
    """
    check_mask(mask)
    return masked(stateless(lambda p, g: jnp.zeros_like(g)), mask)


@errors.named
def of_kind(specs: Tree, *kinds: str) -> Any:
    """The mask of the params of some kinds, as they are declared: a tree of bools.

    - `specs`: the params' declarations, the first of `net.specs(x)` for inputs like x, which makes
      no arrays.
    - `kinds`: "kernel", "bias", "scale", "embedding" ..., see `fnn.Param`.

    A param that `reparam` substitutes for another has that one's kind, or kind "value" under a name
    of its own. Raises ParamsError if there is no param of a kind.

    >>> import fnn
    >>> net = fnn.serial(fnn.dense(3), fnn.layer_norm())
    >>> of_kind(net.specs((1, 4))[0], "kernel")
    {'dense1': {'bias': False, 'kernel': True}, 'layer_norm1': {'bias': False, 'scale': False}}
    """
    found = jax.tree.map(lambda param: param.kind, declared(specs))
    known = sorted(set(jax.tree.leaves(found)))
    if not kinds:
        raise errors.OptionError("one kind or more", "none", 'pass one, as "kernel"')
    for kind in kinds:
        if kind not in known:
            raise errors.ParamsError(
                f"one of the kinds {errors.names(known)}",
                errors.show(kind),
                "pass the kinds of this network, and the first of net.specs(x)",
            )
    return jax.tree.map(lambda kind: kind in kinds, found)


# --- masks


def check_mask(mask: Mask) -> None:
    """Bools, a function that gives them, or patterns."""
    if not (callable(mask) or _are_patterns(mask) or _are_bools(mask)):
        raise errors.OptionError(
            "a mask: a tree of bools, a function of the params, or patterns of paths",
            errors.show(mask),
            'pass one, as "*/kernel"; plain bools, not arrays: they must be known when tracing',
        )


def resolve(mask: Mask, params: Tree) -> Any:
    """The mask as a tree of bools, one for each leaf of the params."""
    if _are_patterns(mask):
        return trees.mask(params, *((mask,) if isinstance(mask, str) else mask))
    bools = by_member("the mask", mask, params) if callable(mask) else mask
    if not _are_bools(bools):
        raise errors.ParamsError(
            "the mask of these params to be a tree of bools",
            errors.show(bools),
            "return True for the leaves to choose, as fnn.tree.mask does",
        )
    return _spread("the mask", bools, params)


def first_matches(patterns: Iterable[str], params: Tree) -> dict[str, Any]:
    """For each pattern, the mask of the leaves that it is the first to match."""
    masks = {pattern: resolve(pattern, params) for pattern in patterns}

    def at(keys, *matches):
        if not any(matches):
            raise errors.ParamsError(
                f"a pattern for each leaf, of {errors.names(masks)}",
                f"none for {errors.path_of(keys)}",
                'end with "*", which matches the rest',
            )
        return matches.index(True)

    first = jax.tree_util.tree_map_with_path(at, *masks.values())
    return {k: jax.tree.map(partial(operator.eq, i), first) for i, k in enumerate(masks)}


def _are_patterns(mask: Mask) -> bool:
    many = isinstance(mask, tuple) and len(mask) > 0 and all(isinstance(m, str) for m in mask)
    return isinstance(mask, str) or many


def _are_bools(mask: Mask) -> bool:
    return all(isinstance(m, (bool, np.bool_)) for m in jax.tree.leaves(mask))


def _spread(what: str, prefix: Tree, tree: Tree) -> Tree:
    """Each leaf of the prefix, copied to all leaves of the tree below it."""
    try:
        return jax.tree.broadcast(prefix, tree)
    except ValueError:
        raise errors.ParamsError(
            f"{what} to be like the params, {jax.tree.structure(tree)}",
            f"{jax.tree.structure(prefix)}",
            f"give {what} one entry for each leaf, or for a whole subtree",
        ) from None


def _part(tree: Tree, chosen: Tree) -> Tree:
    """The tree with None, which has no leaves, for what is not chosen."""
    return jax.tree.map(lambda keep, leaf: leaf if keep else None, chosen, tree)


def _merged(chosen: Tree, part: Tree, rest: Tree) -> Tree:
    """The leaves of `part` where chosen, else those of `rest`."""
    return jax.tree.map(lambda keep, a, b: a if keep else b, chosen, part, rest)


def _inside(chosen: Tree, grads: Tree, params: Tree, extra: Mapping[str, Any]) -> tuple[Tree, dict]:
    """The params and extra arguments for a transform of the chosen leaves."""
    like = jax.tree.structure(grads)
    inner = {}
    for name, value in extra.items():
        if name == "value_fn" and params is not None:
            inner[name] = lambda part, value_fn=value: value_fn(_merged(chosen, part, params))
        elif name not in ("value", "value_fn") and jax.tree.structure(value) == like:
            inner[name] = _part(value, chosen)
        else:
            inner[name] = value
    return None if params is None else _part(params, chosen), inner
