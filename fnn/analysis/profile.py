"""What each layer costs in a program: FLOPs, bytes and time, by path."""

from __future__ import annotations

import gzip
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax

from fnn.analysis.flops import operations
from fnn.analysis.hlo import Program, parse
from fnn.analysis.scopes import Place, in_program, prefixes, strays
from fnn.analysis.trace import own_seconds
from fnn.analysis.units import of_bytes, of_seconds, short
from fnn.core import checks, errors

_LIMIT = 1_000_000  # events, where the profiler cuts its trace


class Row(NamedTuple):
    """The cost of one path, in one call of the function.

    - `path`: of a layer, without its sublayers; "(loss)" is what is differentiated and in no layer,
      "(other)" the rest, such as what the compiler copies.
    - `backward`: whether of the backward pass, recomputed values included.
    - `calls`: how many operations of the compiled program ran, a fusion counting one.
    - `flops`: as `count_flops` counts.
    - `nbytes`: read and written by the operations of the compiled program.
    - `seconds`: of these operations; None where the backend does not tell.
    """

    path: str
    backward: bool
    calls: int
    flops: int
    nbytes: int
    seconds: float | None


@dataclass(frozen=True)
class Profile:
    """The rows of a program, in the order of the network; `str` gives a table.

    - `wall`: seconds of one whole call, the median, without the profiler; None if nothing ran.
    - `note`: why there are no times; "" if there are.
    """

    rows: tuple[Row, ...]
    wall: float | None
    note: str = ""

    def under(self, path: str, backward: bool | None = None) -> Row:
        """The sum of a path and all paths below it; "" is everything.

        - `backward`: True or False takes only one pass; None, both.
        """
        below = f"{path}/" if path else ""
        rows = [
            row
            for row in self.rows
            if (row.path == path or row.path.startswith(below)) and backward in (None, row.backward)
        ]
        times = [row.seconds for row in rows if row.seconds is not None]
        return Row(
            path,
            bool(backward),
            sum(row.calls for row in rows),
            sum(row.flops for row in rows),
            sum(row.nbytes for row in rows),
            None if self.note else sum(times),
        )

    def __str__(self) -> str:
        return _table(self)


@errors.named
def profile(fn: Callable, *args: Any, repeats: int = 3) -> Profile:
    """FLOPs, bytes and time of `fn(*args)`, by the paths of the layers that it runs.

    - `fn`: any function that `jax.jit` takes, such as a training step, jitted or not.
    - `args`: trees of arrays; they are neither changed nor donated. With a
      `jax.ShapeDtypeStruct` among them nothing runs, and there are no times.
    - `repeats`: how many calls are timed; times are the mean of these.

    FLOPs are counted in the jaxpr, bytes in the compiled program: a fusion reads its inputs and
    writes its outputs once, and of an array that a loop slices, a slice is read. Both count each
    iteration of a `scan`. Times are those of the profiler, each operation without those that it
    contains; a fusion belongs to the layer of its last operation. What runs at the same time is
    counted twice, so that times may sum to more than `wall`. On a CPU the profiler does not see
    what an operation does on other threads, so time in which nothing is seen goes to the operation
    whose result the next one reads.

    Layers run under `jax.named_scope`, and so does the "optimizer" of `fnn.train.step`; a scope of
    one's own is a path like them.

    >>> import fnn, jax.numpy as jnp
    >>> net = fnn.serial(fnn.dense(8), jnp.tanh, fnn.dense(3))
    >>> params, _ = net.init(jax.random.key(0), (2, 4))
    >>> x = jax.ShapeDtypeStruct((2, 4), jnp.float32)
    >>> loss = jax.value_and_grad(lambda params, x: net(params, x).sum())
    >>> found = fnn.analysis.profile(loss, params, x)
    >>> [(row.backward, row.flops) for row in found.rows if row.path == "dense2"]
    [(False, 102), (True, 198)]
    """
    checks.function("fn", fn, "arguments that are trees of arrays")
    repeats = checks.count("repeats", repeats)
    traced = jax.jit(lambda *args: fn(*args)).trace(*args)  # its own jit donates nothing
    counted = operations(traced.jaxpr.jaxpr)
    known = prefixes(op.place for op in counted)
    compiled = traced.lower().compile()
    program = parse(compiled.as_text() or "")
    places = {name: in_program(text, known) for name, text in program.names().items()}
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(args)):
        wall, seconds, note = None, {}, "no times: the arguments have no values"
    else:
        args = jax.device_put(args)
        wall, seconds, note = _run(lambda: jax.block_until_ready(compiled(*args)), program, repeats)
    return Profile(_rows(counted, program, places, seconds, note), wall, note)


def _rows(
    counted: list, program: Program, places: dict[str, Place], seconds: dict[str, float], note: str
) -> tuple[Row, ...]:
    moved = strays(op.place for op in counted)
    costs: dict[tuple[str, bool], list] = defaultdict(lambda: [0, 0, 0, 0.0])

    def at(place: Place) -> list:
        nowhere = "(loss)" if place.differentiated else "(other)"
        names = moved.get(place.names, place.names)
        return costs["/".join(names) or nowhere, place.backward]

    for op in counted:
        at(op.place)[1] += op.times * op.flops
    for instruction, n, each in program.moved():
        cost = at(places[instruction.name])
        cost[0] += n
        cost[2] += n * each
    for name, each in seconds.items():
        at(places[name])[3] += each
    paths = sorted(dict.fromkeys(path for path, _ in costs), key=lambda path: path.startswith("("))
    rows = []
    for key in ((path, way) for path in paths for way in (False, True)):
        if any(costs.get(key, ())):
            calls, flops, nbytes, time = costs[key]
            rows.append(Row(*key, calls, flops, nbytes, None if note else time))
    return tuple(rows)


# --- times


def _run(call: Callable, program: Program, repeats: int) -> tuple[float, dict[str, float], str]:
    """(seconds of one call, those of each operation of the program, why there are none)."""
    call()
    walls = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        walls.append(time.perf_counter() - start)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(repeats):
                call()
        events = [
            event
            for file in Path(folder).rglob("*.trace.json.gz")
            for event in json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
        ]
    seconds, note = own_seconds(events, program.inputs()), ""
    if len(events) >= _LIMIT:
        seconds, note = {}, "no times: the profiler keeps no more than a million events"
    elif not seconds:
        backend = jax.default_backend()
        note = f"no times: the profiler does not tell the operations of a program on {backend}"
    return statistics.median(walls), {k: s / repeats for k, s in seconds.items()}, note


# --- the table


def _table(found: Profile) -> str:
    """Forward and backward side by side, a line for each path, and the totals."""
    timed = not found.note
    measure, kind = ("seconds", "time") if timed else ("flops", "FLOPs")
    whole = getattr(found.under(""), measure)
    rows = {(row.path, row.backward): row for row in found.rows}
    lines = [
        ["", "FLOPs", "", "bytes", "", *(["time", ""] if timed else []), "share"],
        [
            "path",
            *["forward", "backward"] * (3 if timed else 2),
            "of time" if timed else "of FLOPs",
        ],
    ]
    for path in dict.fromkeys(row.path for row in found.rows):
        lines.append(_line(path, [rows.get((path, way)) for way in (False, True)], whole, timed))
    lines.append(_line("total", [found.under("", way) for way in (False, True)], whole, timed))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in lines
    ]
    rule = "-" * max(map(len, text))
    below = [found.note] if found.note else []
    below += [f"one call: {of_seconds(found.wall)}"] if found.wall is not None else []
    return "\n".join([*text[:2], rule, *text[2:-1], rule, text[-1], *below])


def _line(path: str, ways: list[Row | None], whole: float, timed: bool) -> list[str]:
    def cells(name, show):
        values = (getattr(row, name) if row else 0 for row in ways)
        return [show(value) if value else "" for value in values]

    times = cells("seconds", of_seconds) if timed else []
    part = sum(getattr(row, "seconds" if timed else "flops") for row in ways if row)
    share = f"{part / whole:.1%}" if whole else ""
    return [path, *cells("flops", short), *cells("nbytes", of_bytes), *times, share]
