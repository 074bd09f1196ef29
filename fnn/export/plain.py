"""A program of plain operations, for converters that know no more.

JAX's own programs choose by platform, call functions within functions, and scan over layers. Here
each choice is the default, calls are written out, scans over a few layers too, and what follows
from constants alone is computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.core
import numpy as np
from jax.export import is_symbolic_dim
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

MOST = 64  # steps of a scan that are written out
CALLS = {
    "jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr", "checkpoint": "jaxpr", "remat2": "jaxpr",
}  # fmt: skip
Visit = Callable[[Any, str], None]


def plain(fn: Callable, xs: Sequence[Any], visit: Visit) -> ClosedJaxpr:
    """`fn` of flat inputs and outputs as a program of plain operations.

    - `xs`: structs of the inputs, whose sizes may be symbolic.
    - `visit(equation, path)`: is called with each operation, and the path of its layer.
    """
    closed = jax.make_jaxpr(fn)(*xs)
    return jax.make_jaxpr(lambda *xs: _run(closed, xs, "", visit))(*xs)


def _run(closed: ClosedJaxpr, args: Sequence[Any], path: str, visit: Visit) -> list[Any]:
    jaxpr: Jaxpr = closed.jaxpr
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    values |= zip(jaxpr.invars, args, strict=True)
    platforms = set()  # what is computed from the platform alone

    def read(v: Any) -> Any:
        return v.val if isinstance(v, Literal) else values.get(v)

    for eqn in jaxpr.eqns:
        name, params = eqn.primitive.name, eqn.params
        by_platform = any(not isinstance(v, Literal) and v in platforms for v in eqn.invars)
        ins = [read(v) for v in eqn.invars]
        below = "/".join(filter(None, (path, str(eqn.source_info.name_stack))))
        if name == "platform_index" or by_platform and name in ("convert_element_type", "clamp"):
            platforms |= set(eqn.outvars)
            continue
        if by_platform and name == "cond":  # the last branch is the default
            out = _run(params["branches"][-1], ins[1:], below, visit)
        elif name in CALLS:
            out = _run(_closed(params[CALLS[name]]), ins, below, visit)
        elif name == "scan":
            out = _scan(params, ins, below, visit)
        else:
            visit(eqn, below)
            out = _bind(eqn, ins)
        values |= zip(eqn.outvars, out, strict=True)
    return [read(v) for v in jaxpr.outvars]


def _closed(jaxpr: Any) -> ClosedJaxpr:
    return jaxpr if isinstance(jaxpr, ClosedJaxpr) else ClosedJaxpr(jaxpr, ())


def _scan(params: dict, ins: list, path: str, visit: Visit) -> list[Any]:
    """A scan: of few steps step by step, else as one whose step is plain."""
    body, counts = params["jaxpr"], (params["num_consts"], params["num_carry"])
    consts, carry, xs = ins[: counts[0]], ins[counts[0] : sum(counts)], ins[sum(counts) :]
    length, backward = params["length"], params["reverse"]

    def step(carry, now):
        out = _run(body, [*consts, *carry, *now], path, visit)
        return out[: counts[1]], out[counts[1] :]

    if is_symbolic_dim(length) or length > MOST:
        carry, ys = jax.lax.scan(step, carry, xs, reverse=backward)
        return [*carry, *ys]
    steps = []
    for i in reversed(range(length)) if backward else range(length):
        carry, y = step(carry, [_at(x, i) for x in xs])
        steps.append(y)
    stacked = zip(*(reversed(steps) if backward else steps), strict=True)
    ys = [
        jax.lax.concatenate([jax.lax.expand_dims(y, (0,)) for y in column], 0) for column in stacked
    ]
    return [*carry, *ys]


def _at(x: Any, i: int) -> Any:
    if not isinstance(x, jax.core.Tracer):
        return np.asarray(x)[i]
    return jax.lax.index_in_dim(x, i, keepdims=False)


def _bind(eqn: Any, ins: list) -> Sequence[Any]:
    known = not any(isinstance(x, jax.core.Tracer) for x in ins)
    sizes = [v.aval.shape for v in eqn.outvars]
    fixed = not any(is_symbolic_dim(n) for shape in sizes for n in shape)
    smaller = fixed and sum(map(math.prod, sizes)) <= sum(map(np.size, ins))
    if known and smaller and not eqn.effects:
        with jax.ensure_compile_time_eval():
            out = eqn.primitive.bind(*ins, **eqn.primitive.get_bind_params(eqn.params))
    else:
        out = eqn.primitive.bind(*ins, **eqn.primitive.get_bind_params(eqn.params))
    return out if eqn.primitive.multiple_results else [out]
