"""The rows of a run that a log still has to take: each once, without waiting for the device."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import jax

from fnn.core import checks, errors
from fnn.train.events import Event, Row


class Rows:
    """The rows of the steps that are multiples of `every`, a few times per second at most.

    Reading a metric makes the host wait for the device, and so the device for the host. So rows are
    taken together: `interval` seconds after the last time, and when nothing may be missing.
    """

    def __init__(self, every: int, interval: float):
        self.every = checks.count("every", every)
        checks.number("interval", interval, 0, float("inf"))
        self.interval = float(interval)
        self.restart(0)

    def restart(self, step: int) -> None:
        """Go on after `step`."""
        self.step = step  # no row up to here is still to come
        self.times: list[tuple[int, float]] = []  # when each later event came
        self.fetch: Callable[[int], list[Row]] | None = None
        self.next = 0.0
        self.evaluated: tuple | None = None
        self.ended = False

    @functools.cached_property
    def writes(self) -> bool:
        """Whether this process is the one of many that writes."""
        return jax.process_index() == 0  # asked late: the answer starts JAX's backends

    def idle(self, event: Event) -> bool:
        """Whether an event asks for nothing but to be noted, which is done: this is each step's."""
        if event.evaluation or event.ended or self.ended or event.step < self.step:
            return False
        if time.monotonic() >= self.next:
            return False
        self.fetch = event.rows
        self.times.append((event.step, time.time()))
        return True

    def see(self, event: Event) -> bool:
        """Note any event; whether its rows are to be taken now."""
        if event.step < self.step or self.ended:
            self._check(event)
        self.fetch = event.rows
        self.times.append((event.step, time.time()))
        self.ended = bool(event.ended)
        return bool(event.evaluation or event.ended) or time.monotonic() >= self.next

    def take(self) -> list[tuple[Row, float]]:
        """The rows up to the last event, each with the time of the event that came after it."""
        if self.fetch is None:
            return []
        taken, times, i = [], self.times or [(self.step, time.time())], 0
        for row in self.fetch(self.step):
            while row.step > times[i][0] and i + 1 < len(times):
                i += 1
            if row.step > self.step and row.step % self.every == 0:
                taken.append((row, times[i][1]))
            self.step = max(self.step, row.step)
        self.times = [(step, when) for step, when in times[i:] if step > self.step]
        self.next = time.monotonic() + self.interval
        return taken

    def evaluation(self, event: Event) -> bool:
        """Whether the event has an evaluation that was not taken yet."""
        new = (event.step, tuple(event.evaluation))
        if not event.evaluation or event.ended and new == self.evaluated:
            return False
        self.evaluated = new
        return True

    def _check(self, event: Event) -> None:
        """That a second run goes on where the first ended."""
        first = min((row.step for row in event.rows(0)), default=event.step + 1)
        if event.step < self.step or first <= self.step:
            raise errors.InputError(
                f"steps after {self.step}, the last one that this log has",
                f"step {min(first, event.step)}",
                "build a log of its own for every run",
            )
