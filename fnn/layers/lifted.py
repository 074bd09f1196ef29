"""One layer run by a transform of JAX: `scan`, `vmap` or `checkpoint`.

These are no levels of their own: their params are named as the layer's are, so that wrapping or
unwrapping it renames nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from fnn.core import checks, errors, trees
from fnn.core.declarations import Derived
from fnn.core.layer import Layer, as_layer, outline, same_arrays
from fnn.core.origins import builder
from fnn.core.shapes import as_array, from_numpy
from fnn.core.types import Key, Tree
from fnn.core.values import check_values
from fnn.core.wrapping import same, same_carry, wrap


@builder
def repeat(layer: Layer | Callable, n: int) -> Layer:
    """The layer n times in a row, as one scan: x_{i+1} = layer(params[i], x_i), y = x_n.

    Params and state are the layer's with a leading axis [n]: every member has its own first values,
    dropout key and batch statistics. The layer is traced and compiled once, for any n. Members keep
    their values when n changes. Inputs after the first, such as a mask, go to every member. For an
    optimizer that treats a leaf as one layer's, `fnn.optim.stacked` marks the stack.

    - `layer`: returns the shape and dtype of its first input.
    - `n`: how many, at least 1.

    Raises ShapeError or DtypeError if these change, ParamsError for params of another n.

    >>> import jax, jax.numpy as jnp, fnn
    >>> net = repeat(fnn.residual(fnn.serial(fnn.dense(4), jnp.tanh)), 12)
    >>> params, _ = net.init(jax.random.key(0), (1, 4))
    >>> params["layer"]["dense1"]["kernel"].shape, net(params, jnp.ones((2, 4))).shape
    ((12, 4, 4), (2, 4))
    """
    layer, n = as_layer(layer), checks.count("n", n)

    def check(x, y):
        mend = "repeat a layer that keeps them, or project x first"
        trees.alike("layer(x)", y, "x", x, mend)

    def declare(layer, *xs):
        with errors.within("repeat"):
            if not xs:
                checks.wrong_arity(1, float("inf"), 0)
            declared, y = outline(layer, xs)
            check(xs[0], y)
        return _stacked(declared, n), y

    def apply(layer, params, state, *xs, key, train):
        with errors.within("repeat"):
            if not xs:
                checks.wrong_arity(1, float("inf"), 0)
            check_trees(params, state, key, n)
            x, *rest = jax.tree.map(as_array, xs)
            run, unchanged = noting(layer)

            def member(x, own):
                i, params, state = own
                y, after = run(params, state, x, *rest, key=fold(key, i), train=train)
                check(x, y)
                return y, after

            def alone(params, state):
                like_x = jax.tree.map(jnp.zeros_like, x)
                layer.apply(params, state, like_x, *rest, key=key, train=train)

            check_values(alone, params, state, axis=0)
            y, after = jax.lax.scan(member, x, (jnp.arange(n), params, state))
            return y, state if all(unchanged) else after

    return wrap(layer, apply, declare=declare, name="repeat")


@builder
def ensemble(
    layer: Layer | Callable, n: int, *, in_axes: int | tuple[int | None, ...] | None = None
) -> Layer:
    """The layer n times side by side, by `vmap`: y[i] = layer(params[i], x).

    Params, state and y are the layer's with a leading axis [n]: every member has its own first
    values, dropout key and batch statistics. Members keep their values when n changes.
    `fnn.optim.each_member` gives each its own optimizer.
    [...] -> [n, ...].

    - `n`: how many, at least 1.
    - `in_axes`: None gives all members the same inputs; 0 gives member i x[i], like experts with
      tokens of their own: [n, ...] -> [n, ...]. A tuple has one for each input, as in `jax.vmap`.

    Raises ParamsError for params of another n, ShapeError for a mapped input of another n.

    >>> import jax, jax.numpy as jnp, fnn
    >>> net = ensemble(fnn.dense(3), 5)
    >>> params, _ = net.init(jax.random.key(0), (1, 4))
    >>> params["kernel"].shape, net(params, jnp.ones((2, 4))).shape
    ((5, 4, 3), (5, 2, 3))
    >>> experts = ensemble(fnn.dense(3), 5, in_axes=0)
    >>> experts(params, jnp.ones((5, 2, 4))).shape
    (5, 2, 3)
    """
    layer, n = as_layer(layer), checks.count("n", n)
    for axis in in_axes if isinstance(in_axes, tuple) else (in_axes,):
        if axis not in (None, 0) or isinstance(axis, bool):
            raise errors.OptionError(
                "in_axes of None or 0, or a tuple of these, one for each input",
                errors.show(in_axes),
                "move the members' axis of an input to the front",
            )

    def axes_of(xs):
        axes = in_axes[: len(xs)] if isinstance(in_axes, tuple) else (in_axes,) * len(xs)
        if len(axes) != len(xs):
            checks.wrong_arity(0, len(axes), len(xs))
        for axis, x in zip(axes, xs, strict=True):
            for a in jax.tree.leaves(x) if axis == 0 else ():
                if jnp.shape(a)[:1] != (n,):
                    mend = "give each member an input of its own: [n, ...]"
                    raise errors.ShapeError(f"inputs [{n}, ...]", errors.show(a), mend)
        return axes

    def declare(layer, *xs):
        with errors.within("ensemble"):
            one = [
                x if axis is None else jax.tree.map(lambda a: a[0], x)
                for axis, x in zip(axes_of(xs), xs, strict=True)
            ]
            declared, y = outline(layer, tuple(one))
        return _stacked(declared, n), jax.tree.map(lambda a: jnp.stack([a] * n), y)

    def apply(layer, params, state, *xs, key, train):
        with errors.within("ensemble"):
            check_trees(params, state, key, n)
            xs = jax.tree.map(as_array, xs)
            run, unchanged = noting(layer)

            def member(i, params, state, *xs):
                return run(params, state, *xs, key=fold(key, i), train=train)

            axes = axes_of(xs)

            def alone(params, state, *own):
                of = iter(own)
                whole = [x if axis is None else next(of) for axis, x in zip(axes, xs, strict=True)]
                return member(0, params, state, *whole)

            own = (x for axis, x in zip(axes, xs, strict=True) if axis == 0)
            check_values(alone, params, state, *own, axis=0)
            unchanged.clear()
            mapped = jax.vmap(member, (0, 0, 0, *axes))
            y, after = mapped(jnp.arange(n), params, state, *xs)
            return y, state if all(unchanged) else after

    return wrap(layer, apply, declare=declare, name="ensemble")


@builder
def remat(layer: Layer | Callable, policy: Callable[..., bool] | None = None) -> Layer:
    """The same layer, recomputed in the backward pass instead of kept from the forward pass.

    Memory falls to the layer's inputs, for one more forward pass (Chen et al., 2016). Values,
    params and keys are those of the layer alone. Most useful inside `repeat`:
    `repeat(remat(block), 24)` keeps one x per member.

    - `policy`: which values are still kept, one of `jax.checkpoint_policies`; None keeps none.

    >>> import jax, jax.numpy as jnp, fnn
    >>> net = remat(fnn.serial(fnn.dense(8), jnp.tanh, fnn.dense(3)))
    >>> params, _ = net.init(jax.random.key(0), (1, 4))
    >>> sorted(params)
    ['dense1', 'dense2']
    """
    layer = as_layer(layer)
    if policy is not None:
        checks.function("policy", policy, "a primitive, one of jax.checkpoint_policies")

    def apply(layer, params, state, *xs, key, train):
        with errors.within(layer.name):
            check_trees(params, state, key)
            xs = jax.tree.map(as_array, xs)
            run, unchanged = noting(layer)

            def again(params, state, xs, key):
                return run(params, state, *xs, key=key, train=train)

            check_values(lambda p, s, xs: again(p, s, xs, key), params, state, xs)
            unchanged.clear()
            y, after = jax.checkpoint(again, policy=policy)(params, state, xs, key)
            return y, state if all(unchanged) else after

    return wrap(layer, apply, declare=same, carry=layer.carry and same_carry)


@dataclass(frozen=True)
class _Each:
    """`fn` for every member of a stack; hashable, so that programs which draw it are reused."""

    fn: Callable

    def __call__(self, *values: Tree) -> Tree:
        return jax.vmap(self.fn)(*values)


def _stacked(specs: Tree, n: int) -> Tree:
    """The declarations of n independent members."""

    def stack(node):
        if isinstance(node, Derived):
            return replace(
                node,
                fn=_Each(node.fn),
                specs=_stacked(node.specs, n),
                inverse=node.inverse and _Each(node.inverse),
                stack=(n, *node.stack),
            )
        return replace(node, stack=(n, *node.stack))

    return jax.tree.map(stack, specs)


def check_trees(params: Tree, state: Tree, key: Key | None, n: int | None = None) -> None:
    """Refuse what the transform of JAX would: leaves that are no arrays, or stacks not of n."""
    if key is not None:
        checks.key(key)
    wanted = "to be an array" if n is None else f"with first axis {n}, one entry per member"
    for what, tree in (("params", params), ("state", state)):
        for path, value in jax.tree_util.tree_flatten_with_path(tree)[0]:
            array = isinstance(from_numpy(value), jax.Array)
            if array and (n is None or value.shape[:1] == (n,)):
                continue
            name = errors.path_of(path) or what
            mend = f"take {what} from net.init of this network"
            raise errors.ParamsError(f"{name} {wanted}", f"{name} {errors.show(value)}", mend)


def noting(layer: Layer) -> tuple[Callable, list[bool]]:
    """The layer's apply, and for each call of it whether the state came back unchanged.

    The transforms return copies, but an unchanged state must be the very one that was given.
    """
    unchanged: list[bool] = []

    def run(params, state, *xs, **mode):
        y, after = layer.apply(params, state, *xs, **mode)
        unchanged.append(same_arrays(state, after))
        return y, after

    return run, unchanged


def fold(key: Key | None, i: int | jax.Array) -> Key | None:
    return None if key is None else jax.random.fold_in(key, i)
