"""A program of plain operations, for converters that know no more.

JAX's own programs choose by platform, call functions within functions, and scan over layers. Here
each choice is the default, calls are written out, so are scans over a few layers and pools, and
what follows from constants alone is computed.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
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
WINDOWS = {  # the operation, and the least value
    "reduce_window_max": (jax.lax.max, -math.inf), "reduce_window_sum": (jax.lax.add, 0),
    "reduce_window_min": (jax.lax.min, math.inf),
}  # fmt: skip


def plain(fn: Callable, xs: Sequence[Any]) -> ClosedJaxpr:
    """`fn` of flat inputs and outputs as a program of plain operations, each in a scope that is the
    path of its layer.

    - `xs`: structs of the inputs, whose sizes may be symbolic.
    """
    closed = jax.make_jaxpr(fn)(*xs)
    flat = jax.make_jaxpr(lambda *xs: _run(closed, xs, ""))(*xs)

    def run(*xs):  # once more, without what only parts that are gone have asked for
        seen, out = list(xs), []
        for y in _run(flat, xs, ""):
            if any(y is other for other in seen):  # converters name a value once
                y = jax.numpy.array(y, copy=True)
            seen.append(y)
            out.append(y)
        return out

    return jax.make_jaxpr(run)(*xs)


def equations(jaxpr: Jaxpr) -> Iterator[Any]:
    """All equations of a plain program, those of a step of a scan as well."""
    for eqn in jaxpr.eqns:
        yield eqn
        if eqn.primitive.name == "scan":
            yield from equations(eqn.params["jaxpr"].jaxpr)


def layer_of(eqn: Any) -> str:
    """The path of the layer that an equation of a plain program is in."""
    return str(eqn.source_info.name_stack)


def _run(closed: ClosedJaxpr, args: Sequence[Any], path: str) -> list[Any]:
    jaxpr: Jaxpr = closed.jaxpr
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    values |= zip(jaxpr.invars, args, strict=True)
    platforms = set()  # what is computed from the platform alone

    def read(v: Any) -> Any:
        return v.val if isinstance(v, Literal) else values.get(v)

    for eqn in _needed(jaxpr):
        name, params = eqn.primitive.name, eqn.params
        by_platform = any(not isinstance(v, Literal) and v in platforms for v in eqn.invars)
        ins = [read(v) for v in eqn.invars]
        below = "/".join(filter(None, (path, str(eqn.source_info.name_stack))))
        if name == "platform_index" or by_platform and name in ("convert_element_type", "clamp"):
            platforms |= set(eqn.outvars)
            continue
        if by_platform and name == "cond":  # the last branch is the default
            out = _run(params["branches"][-1], ins[1:], below)
        elif name in CALLS:
            out = _run(_closed(params[CALLS[name]]), ins, below)
        elif name == "scan":
            out = _scan(params, ins, below)
        else:
            with jax.named_scope(below) if below else contextlib.nullcontext():
                out = _operation(eqn, ins)
        values |= zip(eqn.outvars, out, strict=True)
    return [read(v) for v in jaxpr.outvars]


def _needed(jaxpr: Jaxpr) -> list[Any]:
    """The equations on which the outputs depend."""
    wanted, kept = {v for v in jaxpr.outvars if not isinstance(v, Literal)}, []
    for eqn in reversed(jaxpr.eqns):
        if eqn.effects or not wanted.isdisjoint(eqn.outvars):
            wanted |= {v for v in eqn.invars if not isinstance(v, Literal)}
            kept.append(eqn)
    return kept[::-1]


def _closed(jaxpr: Any) -> ClosedJaxpr:
    return jaxpr if isinstance(jaxpr, ClosedJaxpr) else ClosedJaxpr(jaxpr, ())


def _scan(params: dict, ins: list, path: str) -> list[Any]:
    """A scan: of few steps step by step, else as one whose step is plain."""
    body, counts = params["jaxpr"], (params["num_consts"], params["num_carry"])
    consts, carry, xs = ins[: counts[0]], ins[counts[0] : sum(counts)], ins[sum(counts) :]
    length, backward = params["length"], params["reverse"]

    def step(carry, now):
        out = _run(body, [*consts, *carry, *now], path)
        return out[: counts[1]], out[counts[1] :]

    if is_symbolic_dim(length) or length > MOST:
        xs = [_turned(x) if backward else x for x in xs]
        carry, ys = jax.lax.scan(step, carry, xs)
        return [*carry, *(_turned(y) if backward else y for y in ys)]
    steps = []
    for i in reversed(range(length)) if backward else range(length):
        carry, y = step(carry, [_at(x, i) for x in xs])
        steps.append(y)
    stacked = zip(*(reversed(steps) if backward else steps), strict=True)
    ys = [
        jax.lax.concatenate([jax.lax.expand_dims(y, (0,)) for y in column], 0) for column in stacked
    ]
    return [*carry, *ys]


def _is_pool(params: dict) -> bool:
    return math.prod(params["window_dimensions"]) <= MOST and set(params["base_dilation"]) == {1}


def _over_windows(op: Callable, least: float, x: Any, params: dict) -> Any:
    """A pool as an operation on slices, one for each place of a window."""
    size, strides = params["window_dimensions"], params["window_strides"]
    gaps = params["window_dilation"]
    if jax.numpy.issubdtype(x.dtype, jax.numpy.integer) and least:
        bounds = jax.numpy.iinfo(x.dtype)
        least = bounds.min if least < 0 else bounds.max
    x = _padded(x, params["padding"], np.asarray(least, x.dtype))
    spans = [(n - 1) * gap + 1 for n, gap in zip(size, gaps, strict=True)]
    room = [n - span for n, span in zip(x.shape, spans, strict=True)]
    out = None
    for place in itertools.product(*map(range, size)):
        start = [i * gap for i, gap in zip(place, gaps, strict=True)]
        limit = [a + left + 1 for a, left in zip(start, room, strict=True)]
        tap = jax.lax.slice(x, start, limit, strides)
        out = tap if out is None else op(out, tap)
    return out


def _padded(x: Any, sides: Sequence[tuple[int, int]], value: Any) -> Any:
    """x with more places on both sides of its axes; converters pad no symbolic sizes."""
    for axis, ends in enumerate(sides):
        shapes = [(*x.shape[:axis], n, *x.shape[axis + 1 :]) for n in ends]
        low, high = ([jax.lax.broadcast(value, s)] if s[axis] else [] for s in shapes)
        x = jax.lax.concatenate([*low, x, *high], axis) if low or high else x
    return x


def _turned(x: Any) -> Any:
    return jax.lax.rev(x, (0,))


def _at(x: Any, i: int) -> Any:
    if not isinstance(x, jax.core.Tracer):
        return np.asarray(x)[i]
    return jax.lax.index_in_dim(x, i, keepdims=False)


def _operation(eqn: Any, ins: list) -> Sequence[Any]:
    name, params = eqn.primitive.name, eqn.params
    sides = params.get("padding_config", ())
    if name in WINDOWS and _is_pool(params):
        op, least = WINDOWS[name]
        return [_over_windows(op, least, ins[0], params)]
    if name == "pad" and all(min(low, high) >= 0 == inner for low, high, inner in sides):
        return [_padded(ins[0], [side[:2] for side in sides], ins[1])]
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
