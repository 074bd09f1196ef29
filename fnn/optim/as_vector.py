"""A transform run on all leaves as one vector."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fnn.core import checks
from fnn.core.origins import builder
from fnn.core.types import Tree
from fnn.optim.transform import Transform, check_alike, check_transform, taking_extra


@builder
def as_vector(tx: Transform) -> Transform:
    """The same transform, run on all leaves of one dtype as one vector.

    Passing an array to a compiled program and back costs microseconds, which dominates when arrays
    are many and small. Here the state is a handful of arrays, whatever the params are. For large
    arrays, joining and splitting cost more than they save.

    - `tx`: a transform that treats values one by one; one defined per leaf or per matrix would see
      the vector as one leaf.

    `value_fn` and `grad`, where given, become those of the vectors. Raises as `tx`.

    >>> import fnn
    >>> tx = as_vector(fnn.optim.adam(1e-3))
    >>> params = {"a": jnp.ones((2, 2)), "b": jnp.ones(3)}
    >>> [leaf.shape for leaf in jax.tree.leaves(tx.init(params))]
    [(), (7,), (7,)]
    """
    check_transform(tx)
    inner = taking_extra(tx.update)

    def init(params):
        checks.floating_leaves("params", params)
        return tx.init(_join(params))

    def update(grads, opt_state, params=None, **extra):
        checks.floating_leaves("grads", grads)
        if params is not None:
            check_alike("grads", grads, "params", params)
        if extra.get("grad") is not None:
            extra["grad"] = _join(extra["grad"])
        if (value_fn := extra.get("value_fn")) is not None:
            extra["value_fn"] = lambda joined: value_fn(_split(joined, params))
        joined = None if params is None else _join(params)
        updates, opt_state = inner(_join(grads), opt_state, joined, **extra)
        return _split(updates, grads), opt_state

    return Transform(init, update)


def _join(tree: Tree) -> dict[str, jax.Array]:
    """The values of all leaves of each dtype, in the order of the leaves."""
    leaves: dict[str, list] = {}
    for leaf in map(jnp.asarray, jax.tree.leaves(tree)):
        leaves.setdefault(leaf.dtype.name, []).append(leaf.ravel())
    return {dtype: jnp.concatenate(parts) for dtype, parts in leaves.items()}


def _split(joined: dict[str, jax.Array], like: Tree) -> Any:
    """The tree like `like` with the values of `joined`."""
    starts = dict.fromkeys(joined, 0)

    def take(leaf):
        dtype = jnp.result_type(leaf).name
        start, size = starts[dtype], jnp.size(leaf)
        starts[dtype] += size
        return jax.lax.slice(joined[dtype], (start,), (start + size,)).reshape(jnp.shape(leaf))

    return jax.tree.map(take, like)
