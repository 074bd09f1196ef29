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


def swept(runs: Runs, strategy: str) -> Call:
    import fnn

    def call() -> object:
        run_fn, options = sweep.fnn_run(runs), {"strategy": strategy, "progress": False}
        return fnn.train.sweep(run_fn, keys=sweep.keys(), rate=sweep.rates(runs), **options).results

    return call


def fnn(runs: Runs) -> Call:
    """fnn.train.sweep, which chooses how"""
    return swept(runs, "auto")


def fnn_vmap(runs: Runs) -> Call:
    """fnn.train.sweep(strategy="vmap")"""
    return swept(runs, "vmap")


def fnn_map(runs: Runs) -> Call:
    """fnn.train.sweep(strategy="map")"""
    return swept(runs, "map")


def fnn_loop(runs: Runs) -> Call:
    """fnn.train.sweep(strategy="loop")"""
    return swept(runs, "loop")


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
        "optax_loop": anew(sweep.optax_loop), "fnn": fnn, "fnn_vmap": fnn_vmap,
        "fnn_map": fnn_map, "fnn_loop": fnn_loop, "compiled": anew(sweep.compiled),
        "equinox": anew(sweep.equinox),
    },
    goals=tuple(
        Goal(
            f"{name} runs: sweep's choice takes at most 1.05 x the best of three strategies",
            name, 1.05, ("fnn_vmap", "fnn_map", "fnn_loop"),
            cause="to know what is faster, both ways have to be compiled",
        )
        for name in CASES
    ),
    check=losses,
    rounds=3,
    baseline="optax_loop",
)  # fmt: skip
