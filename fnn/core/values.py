"""Checks of integers by value, made before a transform turns them into tracers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np


def check_values(run: Callable, *trees: Any, axis: int | None = None) -> None:
    """Let `run(*trees)` refuse the integers that it would refuse outside a transform.

    Inside `scan`, `vmap` or `checkpoint` no layer can see values: whether an index is in its table,
    or a cache is full. A combinator that opens one calls this first: `run` is traced, which
    computes nothing, with integers as concrete values where they are known, and all else abstract.

    - `axis`: the axis that the transform maps over, which `run` does not see. `run` is traced with
      the least integers along it, and with the greatest, since only ranges are refused.
    """
    leaves, treedef = jax.tree.flatten(trees)
    known = {i: np.asarray(a) for i, a in enumerate(leaves) if _is_known_integer(a)}
    rest = {i: _without(a, axis) for i, a in enumerate(leaves) if i not in known}
    ends = [known]
    if axis is not None:
        ends = [{i: pick(a, axis=axis) for i, a in known.items()} for pick in (np.min, np.max)]
    if all(map(np.array_equal, ends[0].values(), ends[-1].values())):
        ends = ends[:1]
    for values in ends if known else ():
        with jax.ensure_compile_time_eval():  # inside another trace they would be abstract
            arrays = {i: jnp.asarray(a) for i, a in values.items()}

        def traced(rest, arrays=arrays):
            whole = {**rest, **arrays}
            run(*jax.tree.unflatten(treedef, [whole[i] for i in range(len(leaves))]))

        jax.eval_shape(traced, rest)


def _is_known_integer(a: Any) -> bool:
    known = not isinstance(a, jax.core.Tracer) and getattr(a, "is_fully_addressable", True)
    return known and jnp.issubdtype(a.dtype, jnp.integer) and a.size > 0


def _without(a: Any, axis: int | None) -> jax.ShapeDtypeStruct:
    shape = list(a.shape)
    if axis is not None:
        del shape[axis]
    return jax.ShapeDtypeStruct(tuple(shape), a.dtype)
