"""A whole sweep, once: what one waits for, compiling and choosing included.

The runs are those of the narrowest network of `sweep`. Every timed call makes its functions anew,
so that all is traced and compiled in it; libraries are imported, and data drawn, before.
"""

from __future__ import annotations

import functools
from dataclasses import replace

from benchmarks.task import Call, Contender, Goal, Task
from benchmarks.tasks import sweep
from benchmarks.tasks.sweep import SEEDS, Runs


def swept(strategy: str) -> Contender:
    def contender(runs: Runs) -> Call:
        import fnn

        def call() -> object:
            run_fn, options = sweep.fnn_run(runs), {"strategy": strategy, "progress": False}
            grid = {"rate": sweep.rates(runs)}
            return fnn.search.sweep(run_fn, grid, keys=sweep.keys(), **options).results

        return call

    contender.__doc__ = f'fnn.search.sweep(strategy="{strategy}")'
    return contender


def anew(contender: Contender) -> Contender:
    """One that is built in every call, as it is in the task `sweep`."""

    @functools.wraps(contender)
    def built(runs: Runs) -> Call:
        contender(runs)  # to import its library, and for what is drawn once
        return lambda: contender(runs)()

    return built


def losses(contender: Contender, runs: Runs) -> list[float]:
    """Of 64 of the runs, evenly from all of them."""
    return sweep.losses(contender, runs)[:: runs.count // 64]


CASES = {str(n): replace(sweep.CASES["16"], rates=n // SEEDS) for n in (64, 512, 4096)}

TASK = Task(
    title="A whole sweep of a dense network of 16 units, compiling included, by how many runs "
    "of 100 steps it has",
    cases=CASES,
    contenders={
        "optax_loop": anew(sweep.optax_loop), "fnn": swept("auto"), "fnn_vmap": swept("vmap"),
        "fnn_map": swept("map"), "fnn_loop": swept("loop"), "compiled": anew(sweep.compiled),
        "equinox": anew(sweep.equinox),
    },
    goals=tuple(
        Goal(
            f"{name} runs: sweep's choice takes at most 1.05 x the best of three strategies",
            name, 1.05, sweep.STRATEGIES,
            cause="to know what is faster, both ways have to be compiled",
        )
        for name in CASES
    ),
    check=losses,
    rounds=3,
    baseline="optax_loop",
)  # fmt: skip
