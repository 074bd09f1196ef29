"""The layers of `layers` at three sizes, forward alone and with backward, beside their limit.

Few places with many channels, many places with few, and one example. The limit is what no layer can
go below on this machine: its floating-point operations at the rate of a large product of matrices,
or its arrays at the rate of copying, whichever takes longer; it is timed as the layers are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from benchmarks import gradients
from benchmarks.gradients import Case
from benchmarks.task import Contender, Goal, Task
from benchmarks.tasks import layers

SIZES = ("small", "large", "one")
SHAPES = {  # of inputs, by how many axes they have in `layers`
    4: ((32, 7, 7, 256), (4, 112, 112, 16), (1, 56, 56, 64)),
    3: ((32, 64, 256), (2, 1024, 128), (1, 256, 256)),
    2: ((64, 2048), (16384, 64), (1, 1024)),
}
OWN = {"bilinear": ((64, 128), (1024, 32), (1, 64)), "embedding": ((8, 32), (256, 256), (1, 128))}


def at(name: str, which: int, backward: bool) -> Case:
    """The layer at a size; its channels in and out grow alike."""
    case = layers.CASES[name]
    shape = OWN.get(name, SHAPES[len(case.shapes[0])])[which]
    old = 1 if case.integers else case.shapes[0][-1]
    new = 1 if case.integers else shape[-1]

    def resized(weights: Any) -> Any:
        if isinstance(weights, Mapping):
            return {key: resized(sub) for key, sub in weights.items()}
        counts = len(weights) if name == "bilinear" else 2  # axes of channels, the last ones
        axes = weights[-counts:]
        return (*weights[:-counts], *(n if n == 1 else n * new // old for n in axes))

    return replace(
        case,
        shapes=(shape,) * len(case.shapes),
        weights=resized(case.weights),
        n=case.n * new // old,
        backward=backward,
    )


KERNEL = (
    "XLA's gradient by the kernel runs on one of two cores where there are few channels; other "
    "forms that use both take 0.6 of its time for small images, and 1.8 for large ones."
)
TAPS = (
    "XLA has no fast depthwise convolution on CPU; fnn adds the products of one tap after the "
    "other, each a pass over the images."
)
PASSES = "two passes over x, around one of its values: no digits are lost where the mean is large."
SCORES = "products, mask and softmax are passes over the scores; PyTorch has one kernel for all."
CAUSES = {
    "conv": KERNEL,
    "conv strided": KERNEL,
    "depthwise_conv": TAPS,
    "separable_conv": TAPS,
    "batch_norm": PASSES,
    "layer_norm": PASSES,
    "group_norm": f"{PASSES} Behind a condition, or as [groups, size], 0.8 to 1.5 of this.",
    "attention": SCORES,
    "transformer_block": SCORES,
}
CASES = {
    f"{name} {size}{' forward' * (not backward)}": at(name, which, backward)
    for name in layers.CASES
    for which, size in enumerate(SIZES)
    for backward in (False, True)
}


def goal(case: str) -> Goal:
    layer = case.removesuffix(" forward").rsplit(" ", 1)[0]
    text = f"{case}: at most 1.1 x PyTorch, or 1.5 x the limit"
    cause = CAUSES.get(layer, "")
    return Goal(text, case, 1.1, ("PyTorch",), cause=cause, otherwise=("limit", 1.5))


def numbers(contender: Contender, case: Case) -> list[float] | None:
    return None if contender is gradients.limit else gradients.numbers(contender, case)


TASK = Task(
    title="Each kind of layer at three sizes, against PyTorch and the limit of the machine",
    cases=CASES,
    contenders={
        "fnn": gradients.fnn,
        "PyTorch": gradients.torch,
        "limit": gradients.limit,
    },
    baseline="PyTorch",
    pairs={"fnn": "PyTorch", "PyTorch": "limit"},
    goals=tuple(map(goal, CASES)),
    check=numbers,
    rounds=9,
    block=0.05,
)
