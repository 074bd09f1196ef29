"""Dense layers over inputs of several leading axes, forward and with all gradients.

On a CPU fnn multiplies over one axis of rows; `apart` is what it does elsewhere, x @ kernel.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from benchmarks.gradients import norms, pulled
from benchmarks.task import Call, Contender, Goal, Task


class Case(NamedTuple):
    """The input [*lead, channels], and the features of the output."""

    shape: tuple[int, ...]
    features: int


CASES = {
    "8x256x256 to 256": Case((8, 256, 256), 256),
    "8x256x256 to 1024": Case((8, 256, 256), 1024),
    "8x256x1024 to 256": Case((8, 256, 1024), 256),
    "2x1024x128 to 128": Case((2, 1024, 128), 128),
    "64x65x192 to 768": Case((64, 65, 192), 768),
    "4x112x112x16 to 64": Case((4, 112, 112, 16), 64),
}


def made(case: Case, multiply: Any) -> Call:
    import jax
    import numpy as np

    rng = np.random.default_rng(0)
    shapes = case.shape, (case.shape[-1], case.features), (*case.shape[:-1], case.features)
    x, kernel, dy = (jax.device_put(rng.normal(size=s).astype("f4")) for s in shapes)

    call = jax.jit(pulled(multiply))
    return lambda: call(x, kernel, dy)


def fnn(case: Case) -> Call:
    """fnn.layers.cpu_matmul.matmul, as in `fnn.dense`"""
    from fnn.layers.cpu_matmul import matmul

    return made(case, matmul)


def apart(case: Case) -> Call:
    """x @ kernel"""
    return made(case, lambda x, kernel: x @ kernel)


def numbers(contender: Contender, case: Case) -> list[float]:
    """Norms of the output and of the gradients."""
    return norms(contender(case)())


TASK = Task(
    title="Products of inputs of several leading axes with a matrix",
    cases=CASES,
    contenders={"fnn": fnn, "apart": apart},
    baseline="apart",
    goals=tuple(
        Goal(f"{name}: at most the time of the axes apart", name, 1.05, ("apart",))
        for name in CASES
    ),
    check=numbers,
    rounds=9,
)
