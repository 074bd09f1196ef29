"""Floating-point operations of a function, counted in its jaxpr."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fnn.analysis.scopes import Place

# These only move, select or create values.
_FREE = frozenset(
    "broadcast_in_dim concatenate convert_element_type copy device_put dynamic_slice "
    "dynamic_update_slice expand_dims gather iota optimization_barrier pad reshape rev select_n "
    "slice split squeeze stop_gradient transpose".split()
)


def count_flops(fn: Callable, *args: Any) -> int:
    """Floating-point operations of `fn(*args)`; only the arguments' shapes and dtypes matter.

    A multiplication and an addition count one each, so that a matrix product [n, k] [k, m] is
    2 n k m. Any other elementary function counts one per value; moving and selecting values counts
    none, nor does multiplying by the zeros that a transposed convolution puts between values. A
    `scan` counts every iteration, a `cond` its most expensive branch, and a `while_loop`, whose
    length is unknown, one iteration. Operations on which no result depends are not counted. The
    compiler may do fewer than these.

    >>> count_flops(lambda x, w: jnp.tanh(x @ w), jnp.ones((2, 3)), jnp.ones((3, 4)))
    56
    """
    return sum(op.times * op.flops for op in operations(jax.make_jaxpr(fn)(*args).jaxpr))


class Operation(NamedTuple):
    """An equation of a jaxpr, with those inside loops and calls told apart.

    - `place`: its names; `times`: how often it runs; `flops`: of one run.
    """

    place: Place
    times: int
    flops: int


def operations(jaxpr: Any) -> list[Operation]:
    """The operations on which the results of a jaxpr depend, in order, as `count_flops` counts."""
    return _operations(jaxpr, Place(), 1)


def _operations(
    jaxpr: Any, place: Place, times: int, wanted: list[bool] | None = None
) -> list[Operation]:
    """Those on which the results depend, or only those results that are `wanted`."""
    results = [v for i, v in enumerate(jaxpr.outvars) if wanted is None or wanted[i]]
    needed = {v for v in results if not hasattr(v, "val")}  # a literal needs nothing
    found = []
    for eqn in reversed(jaxpr.eqns):
        used = [v in needed and math.prod(getattr(v.aval, "shape", ())) > 0 for v in eqn.outvars]
        if any(used):
            found.append(_of_equation(eqn, used, place, times))
            needed.update(v for v in eqn.invars if not hasattr(v, "val"))
    return [op for each in reversed(found) for op in each]


def _of_equation(eqn: Any, used: list[bool], place: Place, times: int) -> list[Operation]:
    name = eqn.primitive.name
    place = place.inside(str(eqn.source_info.name_stack))
    if name == "custom_linear_solve":  # its other jaxprs are for derivatives
        return _operations(eqn.params["jaxprs"].solve.jaxpr, place, times, used)
    times *= eqn.params["length"] if name == "scan" else 1
    inner = [_operations(jaxpr, place, times) for jaxpr in _inner(eqn.params)]
    if name == "cond":
        return max(inner, key=lambda ops: sum(op.times * op.flops for op in ops))
    if inner:
        return [op for each in inner for op in each]
    return [Operation(place, times, _flops(eqn))]


def _flops(eqn: Any) -> int:
    name = eqn.primitive.name
    out: Any = eqn.outvars[0].aval
    first: Any = eqn.invars[0].aval if eqn.invars else out
    if name in _FREE or not jnp.issubdtype(getattr(out, "dtype", bool), jnp.inexact):
        return 0
    if name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        return 2 * math.prod(out.shape) * math.prod(first.shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel, features = eqn.invars[1].aval.shape, eqn.params["dimension_numbers"].rhs_spec[0]
        spread = math.prod(eqn.params["lhs_dilation"])  # between x's values lie zeros
        products = math.prod(out.shape) * math.prod(kernel)
        return 2 * products // max(kernel[features] * spread, 1)
    if name.startswith("reduce_window"):
        return math.prod(out.shape) * math.prod(eqn.params["window_dimensions"])
    reduces = name.startswith(("reduce", "scatter"))
    return math.prod((first if reduces else out).shape)


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    """The jaxprs inside an equation's parameters."""
    for value in params.values():
        for each in value if isinstance(value, (tuple, list)) else (value,):
            each = getattr(each, "jaxpr", each)
            if hasattr(each, "eqns"):
                yield each
