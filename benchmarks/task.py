"""What a benchmark task is: cases, a table of contenders, what they must agree on, the goals."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

EXACT = "BENCHMARKS_EXACT"  # in the environment while numbers are checked
Call = Callable[[], Any]  # one timed call; returns what must be ready for it to be over
Contender = Callable[[Any], Call]  # case -> call: imports its library, builds, times nothing


class Missing(Exception):
    """A contender's library is not installed, or has nothing of the kind: its row is skipped."""


@dataclass(frozen=True)
class Goal:
    """A contender's time is at most `limit` times the best of `over`; `limit` seconds if none.

    `than`: the case in which `over` are timed; empty is the same case. `of`: the times compared,
    those of the rounds or, as "first_calls", those of the first call in each process. `otherwise`:
    a contender and how many times its time is good enough too.
    """

    text: str
    case: str
    limit: float
    over: tuple[str, ...] = ()
    contender: str = "fnn"
    cause: str = ""  # why it is missed, as far as is known
    than: str = ""
    of: str = "seconds"
    otherwise: tuple[str, float] | None = None


@dataclass(frozen=True)
class Task:
    """One thing to time. A module defining one as `TASK` imports only the standard library at
    its top: the runner reads it without any library, and each worker imports its own.

    - `cases`: the sizes or networks to run, by name.
    - `contenders`: who runs them, by name; the first line of a docstring becomes its legend.
    - `check(contender, case)`: numbers, run apart from the timing, in which every contender must
      agree with the first in the table to a relative `rtol`. One that does not is failed; None is
      for one that computes something else, as a limit to compare with.
    - `cold`: every timed call is the first of a fresh process; otherwise a process is kept for each
      contender, warmed up by its check, and times a block of calls whenever it is asked.
    - `baseline`: the contender that the others are compared with, besides fnn.
    - `samples`: by case, how many a call works through; its table then has samples a second.
    - `block`: seconds that a timed block should take.
    - `pairs`: by contender, the one that it is compared with and must agree with, where both are
      programs of one library: all contenders of a case then share a process, and the report is one
      table of ratios.
    - `environments`: by contender, what its process has in its environment besides.
    """

    title: str
    cases: Mapping[str, Any]
    contenders: Mapping[str, Contender]
    goals: tuple[Goal, ...] = ()
    check: Callable[[Contender, Any], list[float] | None] | None = None
    rtol: float = 1e-3
    cold: bool = False
    rounds: int = 27
    block: float = 0.1
    baseline: str = "floor"
    samples: Mapping[str, int] = field(default_factory=dict)
    pairs: Mapping[str, str] = field(default_factory=dict)
    environments: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def load(name: str) -> Task:
    """The `TASK` of `benchmarks/tasks/<name>.py`, or of any other importable module."""
    inside = f"benchmarks.tasks.{name}"
    return importlib.import_module(inside if importlib.util.find_spec(inside) else name).TASK
