"""What the host pays for a training step of 2, 20 and 200 parameter arrays.

Networks of dense layers of width 4 on a batch of 1, each with a kernel and a bias: there is next
to nothing to compute, so what is timed is handing arrays over, there and back.
"""

from __future__ import annotations

from benchmarks.networks import Case, dense_net, losses
from benchmarks.task import Goal, Task
from benchmarks.tasks.train_step import CONTENDERS

SIZES = (2, 20, 200)

TASK = Task(
    title="Dispatch of a training step with Adam, by the number of parameter arrays",
    cases={str(n): Case((1, 4), dense_net(*[4] * (n // 2))) for n in SIZES},
    contenders=CONTENDERS,
    check=losses,
    goals=tuple(
        Goal(f"dispatch of {n} arrays is at most 1.1 x the floor", str(n), 1.1, ("floor",))
        for n in SIZES
    ),
)
