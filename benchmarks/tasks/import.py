"""What importing a library costs, in a fresh process that has imported jax already.

`jax` is jax itself, and PyTorch is imported on its own. A first, untimed process has written the
bytecode and filled the file cache.
"""

from __future__ import annotations

import importlib
import sys

from benchmarks.task import Call, Contender, Goal, Task

UNWANTED = {"optax", "flax", "tensorflow_datasets", "matplotlib"}  # in `import fnn`


def importing(module: str, after: str | None = "jax") -> Contender:
    def contender(_: None) -> Call:
        if after:
            importlib.import_module(after)

        def call() -> None:
            importlib.import_module(module)

        return call

    return contender


def fnn(_: None) -> Call:
    """import fnn, over jax; fails if that imports optax, flax, tensorflow-datasets, matplotlib"""
    timed = importing("fnn")(None)

    def call() -> None:
        timed()
        if unwanted := UNWANTED & set(sys.modules):
            raise ImportError(f"import fnn has imported {', '.join(sorted(unwanted))}")

    return call


TASK = Task(
    title="Importing a library, over jax",
    cases={"import": None},
    contenders={
        "jax": importing("jax", after=None),
        "fnn": fnn,
        "stax": importing("jax.example_libraries.stax"),
        "optax": importing("optax"),
        "linen": importing("flax.linen"),
        "nnx": importing("flax.nnx"),
        "equinox": importing("equinox"),
        "haiku": importing("haiku"),
        "torch": importing("torch", after=None),
    },
    cold=True,
    baseline="jax",
    goals=(Goal("`import fnn` costs at most 60 ms over `import jax`", "import", 0.06),),
)
