"""Whole networks: a training step with Adam, and inference of one example and of 64.

All libraries start from the same weights and batches; what is checked are the first losses, or the
outputs of inference. The first call has tracing and compiling in it.
"""

from __future__ import annotations

from benchmarks.nets.spec import CASES, Case
from benchmarks.task import Call, Contender, Goal, Task

STEPS = 2  # whose losses must agree


def fnn(case: Case) -> Call:
    """fnn: train.step, or the network jitted"""
    from benchmarks.nets import fnn

    return fnn.network(case)


def nnx(case: Case) -> Call:
    """flax.nnx: nnx.jit over model and optimizer, as in its quick start"""
    from benchmarks.nets import nnx

    return nnx.network(case)


def equinox(case: Case) -> Call:
    """equinox: eqx.filter_jit, vmap over examples (channels first), optax"""
    from benchmarks.nets import equinox

    return equinox.network(case)


def torch(case: Case) -> Call:
    """PyTorch, eager: fused Adam and channels_last, as in its tuning guide"""
    from benchmarks.nets import torch

    return torch.network(case)


def torch_compiled(case: Case) -> Call:
    """the same by torch.compile"""
    from benchmarks.nets import torch

    return torch.network(case, compiled=True)


def numbers(contender: Contender, case: Case) -> list[float]:
    """The losses of the first steps, the norm of the outputs, or the tokens written."""
    import numpy as np

    call = contender(case)
    if case.mode == "train":
        return [float(call()) for _ in range(STEPS)]
    y = call()
    y = np.asarray(y.cpu() if hasattr(y, "cpu") else y, "float64")
    return [float(np.linalg.norm(y))] if case.mode == "predict" else y[:, -96:].ravel().tolist()


JAX = ("nnx", "equinox")
TASK = Task(
    title="Whole networks: a training step, and inference of one example and of 64",
    cases=CASES,
    contenders={
        "fnn": fnn,
        "nnx": nnx,
        "equinox": equinox,
        "torch": torch,
        "torch_compiled": torch_compiled,
    },
    baseline="torch",
    goals=tuple(
        Goal(f"{name}: at most 1.1 x the best", name, 1.1, (*JAX, "torch", "torch_compiled"))
        for name in CASES
    ),
    check=numbers,
    samples={name: case.batch for name, case in CASES.items()},
    rounds=9,
    rtol=5e-3,  # the first steps of Adam go by the sign of a gradient, however small
)
