"""Training steps with huge pages for what a program allocates, and without.

XLA's CPU backend asks the system for memory at each call and gives it back after it; each page that
is written first costs a fault, so that a large step may spend a third of its time in the kernel.
`GLIBC_TUNABLES=glibc.malloc.hugetlb=1` (Linux, glibc 2.35) has pages of 2 MiB, of which there are
few. Where /sys/kernel/mm/transparent_hugepage/enabled says [always], it is so without.
"""

from __future__ import annotations

from benchmarks.task import Goal, Task
from benchmarks.tasks import whole_networks
from benchmarks.tasks.whole_networks import fnn, nnx, torch

HUGE = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
NAMES = ("resnet18 train", "unet train", "vit train", "gpt train")


TASK = Task(
    title="Training steps with huge pages of memory",
    cases={name: whole_networks.TASK.cases[name] for name in NAMES},
    contenders={
        "fnn": fnn,
        "fnn_huge": fnn,
        "nnx": nnx,
        "nnx_huge": nnx,
        "torch": torch,
        "torch_huge": torch,
    },
    baseline="torch",
    goals=tuple(
        Goal(f"{name}: at most as long as without huge pages", name, 1.0, ("fnn",), "fnn_huge")
        for name in NAMES
    ),
    check=whole_networks.numbers,
    rounds=7,
    rtol=whole_networks.TASK.rtol,
    environments=dict.fromkeys(("fnn_huge", "nnx_huge", "torch_huge"), HUGE),
)
