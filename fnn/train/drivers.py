"""How `fit` takes its steps: one, several or a whole epoch per call."""

from __future__ import annotations

import collections
import functools
import itertools
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from fnn.core import checks, errors
from fnn.core.shapes import natives
from fnn.core.types import Tree
from fnn.data.batching import on_host, rows_of, rows_of_batches
from fnn.train.run import check_batches, steps_over
from fnn.train.step import Step, TrainState, data_key, jit_step

DRIVERS = ("auto", "scan", "chunk", "loop")
PATIENCE = 1.0  # seconds; a longer epoch is cut into chunks, so that the progress bar moves

Calls: TypeAlias = Iterator[tuple[TrainState, Mapping[str, Any], int]]  # state, metrics, steps
CallsOf: TypeAlias = Callable[[int, TrainState], Calls]  # from an epoch of this `fit` and its state
Order: TypeAlias = Callable[[int], np.ndarray]  # from an epoch to the rows of its batches


def calls(
    step: Step,
    train_state: TrainState,
    data: Tree | Callable[[int], Iterable[Tree]],
    batch_size: int | None,
    driver: str,
    chunk: int,
) -> tuple[str, int | None, CallsOf]:
    """The driver's name, the steps per epoch (None if unknown), and the calls of an epoch."""
    chunk = checks.count("chunk", chunk)
    if callable(data) or hasattr(data, "__next__"):
        _check_stream(data, driver)
        return "loop", None, partial(_loop, step, data)
    if batch_size is None:
        mend = "pass batch_size=64, or a function of the epoch that returns its batches as data"
        raise errors.OptionError("a batch_size for arrays", "None", mend)
    batch_size = checks.count("batch_size", batch_size)
    total = check_batches(data, batch_size)
    order_of = _orders(data, batch_size, total, train_state)
    if driver == "loop":
        return driver, total, _looped(step, data, order_of)
    scanned = _scanned(step, data, order_of)
    if driver == "auto":
        looped, some = _looped(step, data, order_of), min(chunk, total)
        seconds = _seconds(partial(scanned, some), train_state, 1)
        if _seconds(looped, train_state, some) <= seconds:
            return "loop", total, looped
        driver = "scan" if seconds / some * total < PATIENCE else "chunk"
    return driver, total, partial(scanned, total if driver == "scan" else chunk)


def _looped(step: Step, data: Tree, order_of: Order) -> CallsOf:
    arrays = on_host(data)

    def batches_of(epoch):
        for rows in order_of(epoch):
            yield rows_of(arrays, rows)

    return partial(_loop, step, batches_of)


def _scanned(step: Step, data: Tree, order_of: Order) -> Callable[[int, int, TrainState], Calls]:
    resident = jax.device_put(natives(data, "data"))
    steps = (_kept_program if isinstance(step, Hashable) else _program)(step)

    def scanned(size, epoch, train_state):
        order = order_of(epoch)
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            train_state, metrics = steps(train_state, resident, rows)
            yield train_state, metrics, len(rows)

    return scanned


def _check_stream(data: Any, driver: str) -> None:
    if not callable(data):
        raise errors.InputError(
            "arrays, or a function of the epoch",
            "an iterator, which the first epoch would use up",
            "pass a function of the epoch that returns its batches",
        )
    if driver not in ("loop", "auto"):
        raise errors.OptionError(
            f"arrays for driver={driver!r}, which keeps them on the device",
            "a function of the epoch",
            'pass arrays, or driver="loop"',
        )


def _loop(step: Step, batches_of: Callable, epoch: int, train_state: TrainState) -> Calls:
    for batch in batches_of(epoch):
        train_state, metrics = step(train_state, natives(batch, "batch"))
        yield train_state, metrics, 1


def _program(step: Step) -> Callable:
    """(train_state, data, rows) -> (train_state, metrics): one step per row of example numbers."""
    return jit_step(partial(steps_over, step))


# A later call of `fit` compiles nothing; only a few are kept, since each keeps its step alive.
_kept_program = functools.lru_cache(maxsize=4)(_program)


def _orders(data: Tree, batch_size: int, total: int, ts: TrainState) -> Order:
    """From an epoch of this call of `fit` to the rows of its batches, [total, batch_size]."""
    key, begun, n = data_key(ts), int(ts.step), len(jax.tree.leaves(data)[0])

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
        made = itertools.islice(calls_of(0, copy), count)
        jax.block_until_ready([after for after, *_ in collections.deque(made, maxlen=1)])
        return time.perf_counter() - start

    return min(once() for _ in range(3))  # the first compiles
