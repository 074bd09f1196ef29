"""Optimizers of layers stacked in one array, as `repeat` and `ensemble` stack them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from fnn.core import errors, trees
from fnn.core.declarations import Param, arrays_of, declared
from fnn.core.origins import builder
from fnn.core.types import Tree
from fnn.optim.members import Stack, UndeclaredStackError, is_stack, plain
from fnn.optim.transform import Transform, check_transform, taking_extra


@dataclass(frozen=True)
class _Layout:
    """The layout of a stored param.

    - `shape`: all of it; its first axes are `stack`, those of members.
    - `order`: its axes with the outputs last, if they are not.
    """

    shape: tuple[int, ...]
    stack: tuple[int, ...] = ()
    order: tuple[int, ...] | None = None

    def marks(self) -> bool:
        return bool(self.stack or self.order)


@builder
def stacked(tx: Transform, specs: Tree) -> Transform:
    """The optimizer for params with stacks: every member is updated as its layer would be alone.

        specs = net.specs(x)[0]
        tx = stacked(muon(0.02), specs)

    `repeat` keeps layers of one kind in one array [n, ...]. Rules that treat a leaf as a layer
    (Muon's matrices, LAMB's and LARS's norms, factored moments, clipping by units or blocks ...)
    see each member by itself, under `vmap`, so the program does not grow with n. What belongs to
    the whole tree is unchanged: a global norm, a count, Prodigy's distance.

    The declarations also say which axis is the outputs': `tx` sees that of
    `conv_transpose(transpose_kernel=True)` as the last one, and updates are turned back.

    - `tx`: the whole optimizer, made with `leafwise` and `stateless`, as all of fnn's are; masks by
      path, or by a function, which sees one member of each stack. A transform that traverses the
      leaves in another way (another library's) sees whole stacks.
    - `specs`: the first of `net.specs(x)`; `net` may be part of a larger tree, as in
      `{"net": net.specs(x)[0], "scale": fnn.Param((), ...)}`.

    The state has stacks as nodes; its leaves are plain arrays, like the updates. Among the extra
    arguments, trees like the gradients are treated like these, and `value_fn` stays a function of
    the stored params. Raises ParamsError for params that are not as declared.

    >>> import fnn
    >>> net = fnn.repeat(fnn.dense(2), 3)
    >>> params, _ = net.init(jax.random.key(0), (1, 2))
    >>> tx = stacked(fnn.optim.muon(1.0), net.specs((1, 2))[0])
    >>> updates, _ = tx.update(params, tx.init(params), params)
    >>> print(jnp.linalg.norm(updates["kernel"], 2, (1, 2)).round(), updates["bias"].shape)
    [1. 1. 1.] (3, 2)
    """
    check_transform(tx)
    layouts = _layouts(specs)
    tx_update = taking_extra(tx.update)

    def with_stacks(what, tree):
        """The tree with its stacks as nodes."""

        def one(path, layout, leaf):
            leaf = plain(leaf)
            if leaf is None:  # masked out
                return None
            if jnp.shape(leaf) != layout.shape:
                raise errors.ParamsError(
                    f"{what} {errors.path_of(path)} {layout.shape}, as declared",
                    f"{jnp.shape(leaf)}",
                    "pass specs of this network, net.specs(x)[0]",
                )
            if layout.order:
                leaf = jnp.transpose(leaf, layout.order)
            return Stack(leaf, len(layout.stack), layout.order) if layout.marks() else leaf

        try:
            return jax.tree_util.tree_map_with_path(one, layouts, tree)
        except errors.FnnError:
            raise
        except ValueError:
            raise errors.ParamsError(
                f"{what} to be a tree as declared, {jax.tree.structure(layouts)}",
                f"{jax.tree.structure(plain(tree))}",
                "pass specs of this network, net.specs(x)[0]",
            ) from None

    def init(params):
        return tx.init(with_stacks("params", params))

    def update(grads, opt_state, params=None, **extra):
        for name, value in extra.items():
            if name == "value_fn" and value is not None:
                extra[name] = lambda inside, value_fn=value: value_fn(_like(inside, grads))
            elif name != "value" and trees.is_alike(value, grads, any_dtype=True):
                extra[name] = with_stacks(name, value)
        inside = None if params is None else with_stacks("params", params)
        updates, opt_state = tx_update(with_stacks("grads", grads), opt_state, inside, **extra)
        return _like(updates, grads), opt_state

    return Transform(init, update)


@builder
def each_member(tx: Transform) -> Transform:
    """The optimizer applied to each member of an ensemble separately, by `vmap`.

    Params are those of one network with a leading axis of members on every leaf, as `ensemble`
    makes them. Each member has its own state: its own global norm, count and skipped steps. So it
    learns as it would alone, whatever `tx` is.

    - `tx`: an optimizer of one member. If a member has stacks, wrap it:
      `each_member(stacked(tx, member.specs(x)[0]))`.

    Among the extra arguments, trees like the gradients are mapped over like these; everything else
    is shared. `value_fn` becomes, for member i, the same function with the other members' params
    fixed: if it is a sum over members, as `fnn.ensembles.each` gives, its gradient is that of
    member i alone. Each call computes the whole ensemble, so a method that calls it (a line search,
    Sophia's estimate) costs n times as much. Members draw the same random numbers, those that each
    would draw alone.

    Raises ParamsError for leaves without one common leading axis.

    >>> import fnn
    >>> tx = each_member(fnn.optim.clip_by_global_norm(1.0))
    >>> g = jnp.array([[3.0, 4.0], [0.3, 0.4]])
    >>> print(tx.update(g, tx.init(g))[0])
    [[0.6 0.8]
     [0.3 0.4]]
    """
    check_transform(tx)
    tx_update = taking_extra(tx.update)

    def init(params):
        params = _without_first("params", params)
        return jax.vmap(tx.init)(params) if jax.tree.leaves(params) else tx.init(params)

    def update(grads, opt_state, params=None, **extra):
        grads_of = _without_first("grads", grads)
        params_of = _without_first("params", params)
        if not jax.tree.leaves(grads):
            return tx_update(grads, opt_state, params, **extra)
        alike = [
            k
            for k, v in extra.items()
            if k not in ("value", "value_fn") and trees.is_alike(v, grads, any_dtype=True)
        ]
        mapped = {name: _without_first(name, extra.pop(name)) for name in alike}
        value_fn: Any = None if params is None else extra.pop("value_fn", None)

        def value_of(i, inside):
            whole = jax.tree.map(lambda a, b: a.at[i].set(b.astype(a.dtype)), params_of, inside)
            return value_fn(_like(whole, params))

        def one(i, g, state, p, own):
            if value_fn is not None:
                own = {**own, "value_fn": lambda inside: value_of(i, inside)}
            return tx_update(g, state, p, **extra, **own)

        n = jnp.shape(jax.tree.leaves(grads)[0])[0]
        updates, opt_state = jax.vmap(one)(jnp.arange(n), grads_of, opt_state, params_of, mapped)
        return _like(updates, grads), opt_state

    return Transform(init, update)


def check_stacks(tx: Transform, specs: Tree) -> None:
    """Refuse an optimizer that needs `stacked` for these params and is not wrapped in it.

    It is traced abstractly on marked params; its other mistakes are raised where they happen.
    Raises UndeclaredStackError.
    """
    layouts = _layouts(specs)
    if not any(layout.marks() for layout in jax.tree.leaves(layouts)):
        return

    def marked(layout, leaf):
        stack = Stack(leaf, len(layout.stack), layout.order, undeclared=True)
        return stack if layout.marks() else leaf

    params = jax.tree.map(marked, layouts, arrays_of(specs))

    def value_fn(params):
        leaves = [jnp.sum(p.astype(jnp.float32)) for p in jax.tree.leaves(params)]
        return sum(leaves, jnp.zeros((), jnp.float32))

    def tried(params):
        state = tx.init(params)
        extra = {"value": value_fn(params), "grad": params, "value_fn": value_fn, "hessian": params}
        taking_extra(tx.update)(params, state, params, **extra)

    try:
        jax.eval_shape(tried, params)
    except UndeclaredStackError:
        raise
    except Exception:  # a transform may need more than can be guessed here
        return


# --- declarations and trees


def _layouts(specs: Tree) -> Tree:
    """The layouts of all declared arrays."""
    return jax.tree.map(
        lambda p: _Layout(p.stack + p.shape, p.stack, _outputs_last(p)), declared(specs)
    )


def _outputs_last(param: Param) -> tuple[int, ...] | None:
    """The axes of a declared array with its outputs last, if they are not."""
    names = param.axes or ("",)
    if "out" not in names or names[-1] == "out":
        return None
    out = len(param.stack) + names.index("out")
    return *(i for i in range(len(param.stack + param.shape)) if i != out), out


def _like(tree: Tree, like: Tree) -> Tree:
    """The arrays laid out as the stored params, in the nodes of `like`."""
    return jax.tree.unflatten(jax.tree.structure(like), jax.tree.leaves(plain(tree)))


def _without_first(what: str, tree: Tree) -> Tree:
    """The tree as `vmap` over the first axis needs it: its stacks have one axis less."""
    flat = jax.tree_util.tree_leaves_with_path(tree)
    sizes = {jnp.shape(leaf)[:1] for _, leaf in flat}
    if len(sizes) > 1 or () in sizes:
        wanted = jnp.shape(flat[0][1])[:1]
        path, leaf = next((p, a) for p, a in flat if jnp.shape(a)[:1] in {()} | sizes - {wanted})
        raise errors.ParamsError(
            f"{what} of an ensemble, with one leading axis of members on every leaf",
            f"{errors.path_of(path)} {jnp.shape(leaf)}".strip(),
            "apply it to the ensemble's part alone, by fnn.optim.partition, or use "
            "fnn.optim.stacked(tx, net.specs(x)[0])",
        )

    def one(node):
        if not is_stack(node):
            return node
        depth = max(node.depth - 1, 0)
        order = node.order and tuple(i - 1 for i in node.order[1:])
        return Stack(node.value, depth, order, node.undeclared) if depth or order else node.value

    return jax.tree.map(one, tree, is_leaf=is_stack)
