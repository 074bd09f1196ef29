"""Convolutions of few channels: with images side by side in rows long enough for all cores, or not.

On a CPU under jaxlib 0.10 fnn lays them so; `alone` is what it does elsewhere. Each case is three
layers with relu between them, forward or forward and all gradients.
"""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.gradients import norms, pulled
from benchmarks.task import Call, Contender, Goal, Task

DEPTH = 3


class Case(NamedTuple):
    """Images [batch, height, width, channels]; the kernel's size and strides."""

    shape: tuple[int, int, int, int]
    backward: bool
    size: int = 3
    strides: int = 1


SHAPES = {
    "28x28x64, batch 8": ((8, 28, 28, 64),),
    "32x32x64, batch 32": ((32, 32, 32, 64),),
    "56x56x64, batch 1": ((1, 56, 56, 64),),
    "14x14x64, batch 32": ((32, 14, 14, 64),),
    "32x32x32, batch 32": ((32, 32, 32, 32),),
    "32x32x64, batch 16, 5x5": ((16, 32, 32, 64), 5),
    "112x112x64, batch 4, strided": ((4, 112, 112, 64), 3, 2),
    "32x32x128, batch 16": ((16, 32, 32, 128),),
}
CASES = {
    f"{name.replace(', ', ' ')}{' forward' * (not backward)}": Case(shape, backward, *window)
    for name, (shape, *window) in SHAPES.items()
    for backward in (False, True)
}


def made(case: Case) -> Call:
    import jax
    import numpy as np

    import fnn

    n = case.shape[-1]
    conv = fnn.conv(n, (case.size,) * 2, strides=case.strides)
    net = fnn.serial(*[conv, jax.nn.relu] * DEPTH)
    params, _ = net.init(jax.random.key(0), case.shape)
    rng = np.random.default_rng(0)
    x = jax.device_put(rng.normal(size=case.shape).astype("f4"))
    g = jax.device_put(rng.normal(size=jax.eval_shape(net, params, x).shape).astype("f4"))
    call, arguments = jax.jit(pulled(net) if case.backward else net), (params, x, g)
    return lambda: call(*arguments[: 3 if case.backward else 2])


def fnn(case: Case) -> Call:
    """fnn.conv"""
    return made(case)


def alone(case: Case) -> Call:
    """the same with each image alone, as XLA takes them"""
    from fnn.layers.conv import cpu_rows

    cpu_rows.ONE_CORE = False  # in this process
    return made(case)


def numbers(contender: Contender, case: Case) -> list[float]:
    """Norms of the outputs and of the gradients."""
    return norms(contender(case)())


TASK = Task(
    title="Convolutions of few channels on all cores",
    cases=CASES,
    contenders={"fnn": fnn, "alone": alone},
    baseline="alone",
    goals=tuple(
        Goal(f"{name}: at most the time of images alone", name, 1.05, ("alone",)) for name in CASES
    ),
    check=numbers,
    rounds=7,
)
