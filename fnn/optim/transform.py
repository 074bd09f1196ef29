"""The contract of optimizers, and what holds them together.

    tx.init(params) -> opt_state
    tx.update(grads, opt_state, params=None, **extra) -> (updates, opt_state)

Updates are added to the params. `extra` carries `value`, `grad` and `value_fn` for the transforms
that need them; the others let it pass. The protocol is optax's, so transforms of either library run
inside the other's `chain`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fnn import checks, errors
from fnn.dtypes import wide, widest


class Transform(NamedTuple):
    """A pure gradient transformation: `init(params)` and `update(grads, opt_state, params)`.

    >>> double = Transform(lambda params: (), lambda g, s, p=None, **extra: (2 * g, s))
    >>> double.update(3.0, double.init(0.0))
    (6.0, ())
    """

    init: Callable[[Any], Any]
    update: Callable[..., tuple[Any, Any]]


class CountState(NamedTuple):
    """How many updates have been made."""

    count: jax.Array


@errors.builder
def chain(*transforms: Transform) -> Transform:
    """The transforms one after the other: each takes the updates of the one before it.

    Its state is the tuple of theirs. `extra` goes to those whose `update` takes it.

    >>> from fnn.optim import trace
    >>> tx = chain(trace(0.9), scale_by_learning_rate(0.1))
    >>> tx.update(jnp.ones(()), tx.init(jnp.ones(())))[0]
    Array(-0.1, dtype=float32)
    """
    for tx in transforms:
        check_transform(tx)
    updates = [taking_extra(tx.update) for tx in transforms]

    def init(params):
        return tuple(tx.init(params) for tx in transforms)

    def update(grads, opt_state, params=None, **extra):
        if len(opt_state) != len(transforms):
            raise errors.ParamsError(
                f"the states of {len(transforms)} transforms",
                f"{len(opt_state)}",
                "take opt_state from this transform's init",
            )
        states = []
        for one, state in zip(updates, opt_state, strict=True):
            grads, state = one(grads, state, params, **extra)
            states.append(state)
        return grads, tuple(states)

    return Transform(init, update)


def check_transform(tx: Any) -> None:
    if not (callable(getattr(tx, "init", None)) and callable(getattr(tx, "update", None))):
        raise errors.OptionError(
            "a transform with init and update", errors.show(tx), "build it, as fnn.optim.adam(1e-3)"
        )


def taking_extra(update: Callable) -> Callable:
    """`update`, if it takes `**extra`; else the same, letting the extra pass."""
    inputs = inspect.signature(update).parameters.values()
    if any(p.kind == p.VAR_KEYWORD for p in inputs):
        return update
    return lambda grads, opt_state, params=None, **extra: update(grads, opt_state, params)


def apply_updates(params: Any, updates: Any) -> Any:
    """params + updates, leaf by leaf, in the dtype of params.

    Raises ParamsError if the two trees or the shapes of their leaves differ, DtypeError for
    leaves that are not floating.

    >>> print(apply_updates({"w": jnp.ones(2)}, {"w": jnp.array([0.5, -0.5])})["w"])
    [1.5 0.5]
    """
    check_alike("updates", updates, "params", params)

    def add(p, u):
        p, u = jnp.asarray(p), jnp.asarray(u)
        dtype = widest(p.dtype, u.dtype)
        return (p.astype(dtype) + u.astype(dtype)).astype(p.dtype)

    return jax.tree.map(add, params, updates)


@errors.builder
def scale_by_learning_rate(learning_rate: Any) -> Transform:
    """updates = -learning_rate * updates: the sign turns an ascent into a descent.

    - `learning_rate`: a number, an array or a tracer; or a schedule, a function of the count of
      updates made before this one, from 0.

    >>> tx = scale_by_learning_rate(lambda count: 0.1 * (count + 1))
    >>> g = jnp.ones(1)
    >>> first, state = tx.update(g, tx.init(g))
    >>> second, state = tx.update(g, state)
    >>> print(first, second)
    [-0.1] [-0.2]
    """
    schedule = learning_rate if callable(learning_rate) else None
    if schedule is None:
        checks.number("learning_rate", learning_rate, float("-inf"), float("inf"))

    def init(params):
        return CountState(jnp.zeros((), jnp.int32)) if schedule else ()

    def update(grads, opt_state, params=None, **extra):
        rate: Any = schedule(opt_state.count) if schedule else learning_rate
        if jnp.shape(rate) != ():
            raise errors.ShapeError("a scalar learning rate", errors.show(rate), "pass one number")
        check_floating("grads", grads)

        def step(g):
            dtype = wide(g.dtype)
            return (-as_dtype(rate, dtype) * g.astype(dtype)).astype(g.dtype)

        updates = jax.tree.map(step, grads)
        return updates, CountState(increment(opt_state.count)) if schedule else opt_state

    return Transform(init, update)


# --- arithmetic that all transforms share


def increment(count: jax.Array) -> jax.Array:
    """count + 1, staying at the largest int instead of overflowing."""
    return jnp.where(count < jnp.iinfo(count.dtype).max, count + 1, count)


def as_dtype(value: Any, dtype: Any) -> jax.Array:
    """A hyperparameter (a number, an array or a tracer) in the dtype of the arithmetic."""
    return jnp.asarray(value).astype(dtype)


def zeros_like(params: Any) -> Any:
    """Moments for params: zeros in float32 or wider, of params' sharding."""
    check_floating("params", params)
    return jax.tree.map(lambda p: jnp.zeros_like(p, wide(jnp.result_type(p))), params)


def check_floating(what: str, tree: Any) -> None:
    """All leaves of a floating dtype."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise errors.DtypeError(
                f"{what} of floating dtypes",
                f"{name} {errors.show(leaf)}".strip(),
                "keep integers out of what is trained",
            )


def sqrt(x: jax.Array) -> jax.Array:
    """The square root, with derivative zero at zero instead of infinity."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), jnp.where(x == 0, 0, x))


def check_state(opt_state: Any, kind: type) -> None:
    if not isinstance(opt_state, kind):
        raise errors.ParamsError(
            f"the optimizer's state, a {kind.__name__}",
            errors.show(opt_state),
            "take it from tx.init(params), or from the update before",
        )


def check_alike(what: str, tree: Any, as_what: str, like: Any) -> None:
    """Two trees of one structure, with floating leaves of the same shapes."""
    check_floating(what, tree)
    if jax.tree.structure(tree) != jax.tree.structure(like):
        raise errors.ParamsError(
            f"{what} to be a tree like {as_what}, {jax.tree.structure(like)}",
            f"{jax.tree.structure(tree)}",
            f"give {what} the structure of {as_what}",
        )
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    for (path, leaf), other in zip(leaves, jax.tree.leaves(like), strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if jnp.shape(leaf) != jnp.shape(other):
            raise errors.ParamsError(
                f"{what} {name} {jnp.shape(other)}, as in {as_what}",
                f"{jnp.shape(leaf)}",
                f"give {what} the shapes of {as_what}",
            )
