"""The layers of `layers` in batches sixteen times as large: enough work to keep a GPU busy.

There a small one only shows how fast a library launches kernels.
"""

from __future__ import annotations

from dataclasses import replace

from benchmarks.gradients import Case
from benchmarks.task import Goal
from benchmarks.tasks import layers

TIMES = 16


def large(case: Case) -> Case:
    return replace(case, shapes=tuple((TIMES * n, *shape) for n, *shape in case.shapes))


def goal(of: Goal) -> Goal:
    return replace(of, cause="")


TASK = replace(
    layers.TASK,
    title=f"{layers.TASK.title}; batches {TIMES} times as large as in `layers`",
    cases={name: large(case) for name, case in layers.CASES.items()},
    goals=tuple(map(goal, layers.TASK.goals)),
    rounds=9,
)
