"""Eight training steps of the CNN, as a Python loop of jitted steps and as one `lax.scan`.

XLA's CPU backend runs JAX's own weight gradient of a convolution as a slow loop inside another
loop. `fnn.conv` states it in the order of axes that is fast in both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from benchmarks.networks import BATCHES, CNN, batches, fnn_training
from benchmarks.task import Call, Contender, Goal, Task
from benchmarks.tasks.train_step import by_hand, slices

CASE = replace(CNN, net=tuple(layer for layer in CNN.net if layer[0] != "dropout"))


def calls(step: Callable[[Any, Any], tuple[Any, Any]], state: Any, scanned: bool) -> Call:
    """A call that makes all steps, and returns the last loss."""
    import jax
    import jax.numpy as jnp

    data = batches(CASE, jnp.asarray)
    stacked = jax.tree.map(lambda *arrays: jnp.stack(arrays), *data)
    whole = jax.jit(lambda state: jax.lax.scan(step, state, stacked))

    def call():
        nonlocal state
        if scanned:
            state, losses = whole(state)
            return losses[-1]
        for batch in data:
            state, loss = step(state, batch)
        return loss

    return call


def steps(weight_grad: str, scanned: bool) -> Call:
    step, start = fnn_training(CASE, weight_grad=weight_grad)

    def with_loss(state, batch):
        state, metrics = step(state, batch)
        return state, metrics["loss"]

    return calls(with_loss, start, scanned)


def fnn(scanned: bool) -> Call:
    """conv(weight_grad="conv"), the default"""
    return steps("conv", scanned)


def fnn_matmul(scanned: bool) -> Call:
    """conv(weight_grad="matmul"): one matrix product with the patches"""
    return steps("matmul", scanned)


def floor(scanned: bool) -> Call:
    """by hand with `lax.conv_general_dilated` and its own gradient, and fnn's way to pool"""
    return calls(*by_hand(CASE, slices), scanned)


def losses(contender: Contender, scanned: bool) -> list[float]:
    """After 8 and 16 steps."""
    call = contender(scanned)
    return [float(call()), float(call())]


TASK = Task(
    title=f"{BATCHES} training steps of the CNN in a Python loop and in one scan",
    cases={"loop": False, "scan": True},
    contenders={"fnn": fnn, "fnn_matmul": fnn_matmul, "floor": floor},
    goals=(
        Goal(
            "in a scan, fnn's weight gradient takes at most 0.25 x JAX's own",
            "scan", 0.25, ("floor",),
        ),
        Goal("in a loop it takes at most 1.1 x JAX's own", "loop", 1.1, ("floor",)),
        Goal(
            "a step in a scan takes at most 1.5 x one in a loop",
            "scan", 1.5, ("fnn",), than="loop",
        ),
    ),
    check=losses,
    rounds=7,
    baseline="floor",
)  # fmt: skip
