"""Requests that wait are answered together: one thread, and no timer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from fnn.core import checks

log = logging.getLogger("fnn.serve")

Arrays = tuple[np.ndarray, ...]
QUIET = 3  # passes of the event loop without a request, after which a batch starts


class Waiting:
    """A request in the queue: its inputs, and the future of its answer."""

    __slots__ = ("answer", "rows", "xs")

    def __init__(self, xs: Arrays, answer: asyncio.Future):
        self.xs, self.rows, self.answer = xs, len(xs[0]), answer


class Batcher:
    """A queue of requests and a thread that runs all that wait as one batch.

    While the thread runs a batch, requests gather; it then takes as many as the largest size holds,
    once the event loop has nothing else to read. So one request alone waits for microseconds, and
    the busier the server, the larger its batches. What a batch lacks to the next size is filled
    with copies of its first row.

    - `program(*xs) -> ys`: arrays with the same number of rows in and out, called in the thread.
    - `sizes`: the numbers of rows that it is compiled for, rising.
    - `queue`: how many rows may wait; a request is taken while there are fewer.
    - `axes`: the axis of each output along which rows lie; 0 if not given.

    It belongs to the event loop that first submits to it, and its thread starts then. All but
    `_run` runs in that loop, so there is nothing to lock.
    """

    def __init__(
        self,
        program: Callable[..., Sequence[np.ndarray]],
        *,
        sizes: Sequence[int],
        queue: int,
        axes: Sequence[int] | None = None,
    ):
        self.program, self.sizes, self.axes = program, tuple(sizes), axes
        self.queue = checks.count("queue", queue)
        self.closed = False
        self._waiting: dict[Waiting, None] = {}  # in order of arrival
        self._rows = 0  # of those
        self._batch: list[Waiting] = []  # what the thread runs
        self._gathering = False  # a batch is about to start
        self._thread: ThreadPoolExecutor | None = None

    def __len__(self) -> int:
        """How many rows wait."""
        return self._rows

    @property
    def full(self) -> bool:
        return self.closed or self._rows >= self.queue

    def submit(self, xs: Arrays) -> asyncio.Future:
        """The future outputs for inputs of one to `sizes[-1]` rows; cancel it to leave the queue.

        Raises asyncio.QueueFull if the queue is full or closed.
        """
        if self.full:
            raise asyncio.QueueFull
        waiting = Waiting(xs, asyncio.get_running_loop().create_future())
        waiting.answer.add_done_callback(lambda _: self._remove(waiting))
        self._waiting[waiting] = None
        self._rows += waiting.rows
        if not self._batch and not self._gathering:
            self._gather()
        return waiting.answer

    async def call(self, fn: Callable, *args: Any) -> Any:
        """fn(*args) in the thread, between two batches; raises RuntimeError if it fails."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._executor(), fn, *args)
        except Exception as error:
            log.exception("the network failed")
            raise RuntimeError("the network failed") from error

    async def close(self) -> None:
        """Take no more, answer all that wait, and end the thread."""
        self.closed = True
        left = [waiting.answer for waiting in (*self._batch, *self._waiting)]
        await asyncio.gather(*left, return_exceptions=True)
        while self._batch:  # whose clients have all left
            await asyncio.sleep(0.001)
        if self._thread:
            self._thread.shutdown()
            self._thread = None

    def _take(self) -> list[Waiting]:
        """Those in front with inputs of one shape, as many as fit into a batch."""
        batch, rows = [], 0
        for waiting in self._waiting:
            same = not batch or all(
                x.shape[1:] == y.shape[1:] for x, y in zip(waiting.xs, batch[0].xs, strict=True)
            )
            if not same:
                continue
            if rows + waiting.rows > self.sizes[-1]:
                break
            batch.append(waiting)
            rows += waiting.rows
        for waiting in batch:
            self._remove(waiting)
        return batch

    def _remove(self, waiting: Waiting) -> None:
        if waiting in self._waiting:
            del self._waiting[waiting]
            self._rows -= waiting.rows

    def _gather(self, rows: int = 0, quiet: int = 0) -> None:
        """Start a batch when it is full, or nothing has come in QUIET passes of the event loop.

        The first of many requests would otherwise run alone, and the others wait for it.
        """
        quiet = quiet + 1 if self._rows == rows else 0
        self._gathering = quiet < QUIET and 0 < self._rows < self.sizes[-1]
        if self._gathering:
            asyncio.get_running_loop().call_soon(self._gather, self._rows, quiet)
        else:
            self._start()

    def _start(self) -> None:
        self._batch = self._take()
        if not self._batch:
            return
        loop = asyncio.get_running_loop()
        done = self._executor().submit(self._run, self._batch)
        done.add_done_callback(lambda future: loop.call_soon_threadsafe(self._finish, future))

    def _executor(self) -> ThreadPoolExecutor:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "fnn-serve")
        return self._thread

    def _finish(self, future: Future) -> None:
        batch, self._batch = self._batch, []
        self._gather()  # a full batch starts before the answers are given out
        error = future.exception()
        answers = [None] * len(batch) if error else future.result()
        for waiting, answer in zip(batch, answers, strict=True):
            if waiting.answer.done():  # its client has left
                continue
            if error:
                failure = RuntimeError("the program failed")  # a future takes no StopIteration
                failure.__cause__ = error
                waiting.answer.set_exception(failure)
            else:
                waiting.answer.set_result(answer)

    def _run(self, batch: list[Waiting]) -> list[Arrays]:
        """The answers of a batch; runs in the thread."""
        rows = sum(waiting.rows for waiting in batch)
        size = next(size for size in self.sizes if size >= rows)
        columns = zip(*(waiting.xs for waiting in batch), strict=True)
        ys = self.program(*(padded(parts, rows, size) for parts in columns))
        axes = self.axes or (0,) * len(ys)
        answers, start = [], 0
        for waiting in batch:
            part = slice(start, start + waiting.rows)
            pairs = zip(ys, axes, strict=True)
            answers.append(tuple(y[(slice(None),) * axis + (part,)] for y, axis in pairs))
            start += waiting.rows
        return answers


def powers(most: int) -> tuple[int, ...]:
    """The powers of two up to a number, and this.

    >>> powers(12)
    (1, 2, 4, 8, 12)
    """
    checks.count("max_batch", most)
    return tuple(2**k for k in range((most - 1).bit_length())) + (most,)


def padded(parts: Sequence[np.ndarray], rows: int, size: int) -> np.ndarray:
    """Arrays one after the other, followed by copies of the first row."""
    if len(parts) == 1 and rows == size:
        return parts[0]
    out = np.empty((size, *parts[0].shape[1:]), parts[0].dtype)
    np.concatenate(parts, out=out[:rows])
    out[rows:] = out[:1]  # not zeros, which some networks divide by
    return out
