"""A training step whose new state takes the memory of the old, and one that keeps both.

The MLP and the CNN of `train_step`, and a dense network of 100 million params, whose training state
with Adam's moments is 1.2 GB: there the memory counts, that of the process at its peak. A process
checks the small network before it times its case, so that the peak is the case's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from benchmarks.networks import (
    CNN,
    MLP,
    RATE,
    Case,
    arrays,
    batches,
    dense_net,
    fnn_training,
    loop,
)
from benchmarks.task import Call, Contender, Goal, Task
from benchmarks.tasks.sweep import optax_step

STEPS = 3


def by_hand(case: Case, **jit: Any) -> Call:
    import jax
    import jax.numpy as jnp
    import optax

    update = optax_step(case)
    step = jax.jit(lambda state, batch: update(*state, RATE, batch), **jit)

    def moved(state: Any, batch: Any) -> tuple[Any, Any]:
        *state, loss = step(state, batch)
        return state, loss

    params = arrays(case)
    return loop(moved, [params, optax.adam(RATE).init(params)], batches(case, jnp.asarray))


def floor(case: Case) -> Call:
    """by hand: jax.jit(donate_argnums=0), optax"""
    return by_hand(case, donate_argnums=0)


def kept(case: Case) -> Call:
    """the same without donate_argnums"""
    return by_hand(case)


def fnn_step(donate: bool) -> Callable[[Case], Call]:
    def build(case: Case) -> Call:
        import jax.numpy as jnp

        step, start = fnn_training(case, donate=donate)
        call = loop(step, start, batches(case, jnp.asarray))
        return lambda: call()["loss"]

    return build


def fnn(case: Case) -> Call:
    """fnn.train.step(donate=True)"""
    return fnn_step(donate=True)(case)


def fnn_kept(case: Case) -> Call:
    """fnn.train.step"""
    return fnn_step(donate=False)(case)


def check(contender: Contender, case: Case) -> list[float]:
    """Losses of the first steps of a small network."""
    call = contender(replace(case, shape=(8, 64), net=dense_net(32, 10)))
    return [float(call()) for _ in range(STEPS)]


def without_dropout(case: Case) -> Case:
    return replace(case, net=tuple(layer for layer in case.net if layer[0] != "dropout"))


TASK = Task(
    title="Donation: a training step of an MLP, of a CNN, and of a dense network of 100 million "
    "params in batches of 8",
    cases={
        "mlp": without_dropout(MLP),
        "cnn": without_dropout(CNN),
        "params": Case((8, 1024), dense_net(9500, 9500, 10)),
    },
    contenders={"floor": floor, "kept": kept, "fnn": fnn, "fnn_kept": fnn_kept},
    goals=tuple(
        Goal(f"{case}: at most 1.05 x the floor", case, 1.05, ("floor",))
        for case in ("mlp", "cnn", "params")
    ),
    check=check,
    rounds=15,
)
