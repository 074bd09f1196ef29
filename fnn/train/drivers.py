"""How `fit` takes its steps: one, several or a whole epoch per call."""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import math
import time
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from fnn.core import checks, errors
from fnn.core.shapes import natives
from fnn.core.types import Tree
from fnn.data.batching import check_leaves, on_host, rows_of, rows_of_batches
from fnn.data.stream import Stream, shown_key
from fnn.train.run import check_batches, steps_over
from fnn.train.step import Step, TrainState, data_key, donating, jit_step, whole_beside

DRIVERS = ("auto", "scan", "chunk", "loop")
PATIENCE = 1.0  # seconds; a longer epoch is cut into chunks, so that the progress bar moves


class Call(NamedTuple):
    """What one call of a step, or of several, returned."""

    train_state: TrainState
    metrics: Mapping[str, Any]
    steps: int
    ends: bool  # whether the epoch ends with it


# From a number of steps taken in an epoch to the number at which the call should end, at most.
Until: TypeAlias = Callable[[int], float]
# The calls of an epoch of a run from a state, after so many steps of that epoch.
CallsOf: TypeAlias = Callable[[int, TrainState, int, Until], Iterator[Call]]
# The batches of an epoch, but for so many that are skipped.
BatchesOf: TypeAlias = Callable[[int, int], Iterable[Tree]]
Order: TypeAlias = Callable[[int], np.ndarray]  # from an epoch to the rows of its batches


class Driver(NamedTuple):
    """How a run takes its steps.

    - `total`: steps per epoch; None if unknown.
    - `calls_of`: owns the training state that it is given: it may donate it.
    - `open`: held while the run takes steps, and closed at its end.
    """

    name: str
    total: int | None
    batches_of: BatchesOf
    calls_of: CallsOf
    open: contextlib.AbstractContextManager = contextlib.nullcontext()


def driver_of(
    step: Step,
    train_state: TrainState,
    data: Tree | Stream | Callable[[int], Iterable[Tree]],
    batch_size: int | None,
    driver: str,
    chunk: int,
    begun: int,
) -> Driver:
    """The driver of a run, whose first step has the number `begun`."""
    chunk = checks.count("chunk", chunk)
    if isinstance(data, Stream):
        return _streamed(step, data, batch_size, driver, begun)
    if callable(data) or hasattr(data, "__next__"):
        batches: Any = _checked_function(data, driver)

        def from_function(epoch, skipped):
            return itertools.islice(batches(epoch), skipped, None)

        return Driver("loop", None, from_function, partial(_loop, donating(step), from_function))
    if batch_size is None:
        mend = "pass batch_size=64, or a function of the epoch that returns its batches as data"
        raise errors.OptionError("a batch_size for arrays", "None", mend)
    batch_size = checks.count("batch_size", batch_size)
    check_leaves(jax.tree.leaves(data))
    total = check_batches(data, batch_size)
    order_of = _orders(data, batch_size, total, train_state, begun)
    arrays = functools.cache(lambda: on_host(data))

    def batches_of(epoch, skipped):
        for rows in order_of(epoch)[skipped:]:
            yield rows_of(arrays(), rows)

    looped = partial(_loop, donating(step), batches_of)
    if driver == "loop":
        return Driver(driver, total, batches_of, looped)
    scanned = _scanned(step, data, order_of)
    if driver == "auto":
        some = min(chunk, total)
        seconds = _seconds(partial(scanned, some), train_state, 1)
        if _seconds(looped, train_state, some) <= seconds:
            return Driver("loop", total, batches_of, looped)
        driver = "scan" if seconds / some * total < PATIENCE else "chunk"
    scanned = partial(scanned, total if driver == "scan" else chunk)
    return Driver(driver, total, batches_of, scanned)


def cut_of(
    data: Tree | Stream | Callable[[int], Iterable[Tree]],
    batch_size: int | None,
    train_state: TrainState,
) -> dict[str, Any]:
    """How data are cut into batches, which a place in an epoch depends on; {} if unknown."""
    if isinstance(data, Stream):
        cut: dict[str, Any] = {"batch_size": data.batch_size, "examples": data.examples}
        single = np.ndim(train_state.step) == 0  # stacked states have no order of their own
        if single and data.order == shown_key(data_key(train_state)):
            return cut  # that of arrays, which may take its place
        return cut | {"order": data.order}
    if callable(data):
        return {}
    return {"batch_size": int(batch_size or 0), "examples": checks.examples("data", data)}


def _streamed(
    step: Step, stream: Stream, batch_size: int | None, driver: str, begun: int
) -> Driver:
    if batch_size not in (None, stream.batch_size):
        wanted = f"the stream's batch_size={stream.batch_size}, or none"
        raise errors.OptionError(wanted, f"{batch_size}", "a stream has cut its batches already")
    _check_loops(driver, "a stream")
    total = len(stream)

    def batches_of(epoch: int, skipped: int) -> Iterator[Tree]:
        batches = stream.from_step(begun + epoch * total + skipped)
        with contextlib.closing(batches):
            yield from itertools.islice(batches, total - skipped)

    onward = _Onward(stream, begun)
    looped = partial(_loop, donating(step), onward)
    return Driver("loop", total, batches_of, looped, contextlib.closing(onward))


class _Onward:
    """The batches of epoch after epoch of a run, from one iterator, whose workers stay."""

    def __init__(self, stream: Stream, begun: int):
        self.stream, self.begun = stream, begun
        self.batches: Generator[Tree, None, None] | None = None

    def __call__(self, epoch: int, skipped: int) -> Iterator[Tree]:
        """Of the first epoch from batch `skipped` on; each later one goes on where that ended."""
        total = len(self.stream)
        if self.batches is None:
            self.batches = self.stream.from_step(self.begun + epoch * total + skipped)
        return itertools.islice(self.batches, total - skipped)

    def close(self) -> None:
        if self.batches is not None:
            self.batches.close()


def _scanned(step: Step, data: Tree, order_of: Order) -> Callable[..., Iterator[Call]]:
    resident = whole_beside(step, natives(data, "data"))
    steps = (_kept_program if isinstance(step, Hashable) else _program)(step)

    def scanned(size, epoch, train_state, start, until):
        order = order_of(epoch)
        while start < len(order):
            stop = min((start // size + 1) * size, until(start), len(order))
            train_state, metrics = steps(train_state, (resident, order[start:stop]))
            yield Call(train_state, metrics, stop - start, stop == len(order))
            start = stop

    return scanned


def _checked_function(data: Any, driver: str) -> Any:
    if not callable(data):
        raise errors.InputError(
            "arrays, or a function of the epoch",
            "an iterator, which the first epoch would use up",
            "pass a function of the epoch that returns its batches",
        )
    _check_loops(driver, "a function of the epoch")
    return data


def _check_loops(driver: str, got: str) -> None:
    if driver not in ("loop", "auto"):
        wanted = f"arrays for driver={driver!r}, which keeps them on the device"
        raise errors.OptionError(wanted, got, 'pass arrays, or driver="loop"')


def _loop(
    step: Step, batches_of: Callable, epoch: int, train_state: TrainState, start: int, until: Until
) -> Iterator[Call]:
    batches = iter(batches_of(epoch, start))
    batch = next(batches, _END)
    while batch is not _END:
        train_state, metrics = step(train_state, natives(batch, "batch"))
        batch = next(batches, _END)  # while the device computes
        yield Call(train_state, metrics, 1, batch is _END)


_END = object()


def _program(step: Step) -> Callable:
    """(train_state, (data, rows)) -> (train_state, metrics): a step per row of example numbers."""
    return jit_step(lambda train_state, batches: steps_over(step, train_state, *batches), True)


# A later call of `fit` compiles nothing; only a few are kept, since each keeps its step alive.
_kept_program = functools.lru_cache(maxsize=4)(_program)


def _orders(data: Tree, batch_size: int, total: int, ts: TrainState, begun: int) -> Order:
    """From an epoch of the run to the rows of its batches, [total, batch_size]."""
    key, n = data_key(ts), len(jax.tree.leaves(data)[0])

    def order_of(epoch: int) -> np.ndarray:
        """`total` steps from begun + epoch * total on; they may span two epochs of the data."""
        own, skipped = divmod(begun + epoch * total, total)
        epochs = (own, own + 1) if skipped else (own,)
        rows = np.concatenate([rows_of_batches(key, epoch, n, batch_size) for epoch in epochs])
        return rows[skipped : skipped + total]

    return order_of


def _seconds(calls_of: CallsOf, ts: TrainState, count: int) -> float:
    """The time of `count` calls from `ts`; their results are discarded."""

    def once() -> float:
        copy = jax.block_until_ready(jax.tree.map(jnp.copy, ts))  # a step may donate its state
        start = time.perf_counter()
        made = itertools.islice(calls_of(0, copy, 0, lambda _: math.inf), count)
        jax.block_until_ready([call.train_state for call in collections.deque(made, maxlen=1)])
        return time.perf_counter() - start

    return min(once() for _ in range(3))  # the first compiles
