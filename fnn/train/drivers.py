"""How `fit` makes its steps: one a call, several a call, or an epoch a call."""

from __future__ import annotations

import collections
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import jax

from fnn import checks, errors
from fnn.data.batching import batches
from fnn.shapes import as_array
from fnn.train.run import some_steps
from fnn.train.step import TrainState, data_key

DRIVERS = ("auto", "scan", "chunk", "loop")
PATIENCE = 1.0  # seconds: an epoch that takes longer shows how far it is

Calls = Iterator[tuple[TrainState, Mapping[str, Any], int]]


def calls(
    step: Callable,
    train_state: TrainState,
    data: Any,
    batch_size: int | None,
    driver: str,
    chunk: int,
) -> tuple[str, int | None, Callable[[int, TrainState], Calls]]:
    """The driver taken, the steps of an epoch (None if unknown), and a function of this call's
    epoch and the training state that yields (training state, metrics, steps) call by call."""
    chunk = checks.count("chunk", chunk)
    if callable(data) or hasattr(data, "__next__"):
        _check_stream(data, driver)
        return "loop", None, partial(_loop, step, data)
    if batch_size is None:
        raise errors.OptionError(
            "a batch_size for arrays",
            "None",
            "pass batch_size=64, or as data a function of the epoch that gives its batches",
        )
    batch_size = checks.count("batch_size", batch_size)
    batches(data, batch_size)  # raises where there are none, and says why
    total = len(jax.tree.leaves(data)[0]) // batch_size
    looped = partial(_loop, step, _epochs(data, batch_size, total, train_state))
    if driver == "loop":
        return driver, total, looped
    resident = jax.device_put(jax.tree.map(as_array, data))

    def scanned(size, _, train_state):
        for start in range(0, total, size):
            count = min(size, total - start)
            train_state, metrics = _steps(step, train_state, resident, count, batch_size)
            yield train_state, metrics, count

    if driver == "auto":
        some = min(chunk, total)
        seconds = _seconds(partial(scanned, some), train_state, 1)
        if _seconds(looped, train_state, some) <= seconds:
            return "loop", total, looped
        driver = "scan" if seconds / some * total < PATIENCE else "chunk"
    return driver, total, partial(scanned, total if driver == "scan" else chunk)


def _check_stream(data: Any, driver: str) -> None:
    if not callable(data):
        raise errors.InputError(
            "arrays, or a function of the epoch",
            "an iterator, which one epoch would use up",
            "pass a function of the epoch that makes its batches",
        )
    if driver not in ("loop", "auto"):
        raise errors.OptionError(
            f"arrays for driver={driver!r}, which keeps them on the device",
            "a function of the epoch",
            'pass arrays, or driver="loop"',
        )


def _loop(step: Callable, batches_of: Callable, epoch: int, train_state: TrainState) -> Calls:
    for batch in batches_of(epoch):
        train_state, metrics = step(train_state, batch)
        yield train_state, metrics, 1


@partial(jax.jit, static_argnums=(0, 3, 4))
def _compiled(step, train_state, data, count, batch_size):
    train_state, metrics = some_steps(step, train_state, data, count, batch_size)
    return train_state._replace(key=None), metrics


def _steps(step, train_state, data, count, batch_size):
    after, metrics = _compiled(step, train_state, data, count, batch_size)
    return after._replace(key=train_state.key), metrics  # as `fnn.train.step` does


def _epochs(data: Any, batch_size: int, total: int, ts: TrainState) -> Callable[[int], Iterable]:
    """A function from the epoch of this call to its batches."""
    key, start = data_key(ts), int(ts.step)

    def epoch_of(epoch: int) -> Iterable:
        """Steps start + epoch * total and on, wherever in the data's own epochs they lie."""
        own, skipped = divmod(start + epoch * total, total)
        now = itertools.islice(batches(data, batch_size, seed=key, epoch=own), skipped, None)
        if not skipped:
            return now
        then = batches(data, batch_size, seed=key, epoch=own + 1)
        return itertools.chain(now, itertools.islice(then, skipped))

    return epoch_of


def _seconds(calls_of: Callable[[int, TrainState], Calls], ts: TrainState, count: int) -> float:
    """The time of so many calls from `ts` on, whose results are thrown away."""

    def once() -> float:
        start = time.perf_counter()
        made = itertools.islice(calls_of(0, ts), count)
        jax.block_until_ready([after for after, *_ in collections.deque(made, maxlen=1)])
        return time.perf_counter() - start

    return min(once() for _ in range(3))  # the first compiles
