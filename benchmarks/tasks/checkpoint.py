"""Saving and restoring 400 MB of float32, and 20 training steps beside a save of 100 MB.

Every save is over once an fsync of its files is: the others' libraries do none, so it follows
their call. Each call of a save writes to a new place, and removes the one before, untimed as far as
the file system lets it. A restore reads what was just written, from the page cache, into JAX arrays
(or PyTorch's tensors). In `steps` a save begins before the first of the steps, and all is over once
both are: libraries without a save in the background wait for it first.
"""

from __future__ import annotations

import atexit
import itertools
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from benchmarks.task import Call, Contender, Goal, Task

STEPS = 20


@dataclass(frozen=True)
class Case:
    does: str  # "save", "restore" or "steps"
    leaves: int
    megabytes: int


class Format(NamedTuple):
    """How a library saves a tree at a path, durably, and restores it; where its arrays live.

    `save` begins; its result waits for the end.
    """

    save: Callable[[pathlib.Path, Any], Callable[[], Any]]
    restore: Callable[[pathlib.Path, Any], Any]
    place: Callable[[Any], Any]


def call_of(form: Format, case: Case) -> Call:
    folder = pathlib.Path(tempfile.mkdtemp(prefix="fnn-benchmark-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    tree, paths = form.place(arrays(case)), (folder / f"{i}" for i in itertools.count())
    before: list[pathlib.Path] = []

    def save() -> Callable[[], Any]:
        path = next(paths)
        while before:
            remove(before.pop())
        before.append(path)
        return form.save(path, tree)

    if case.does == "save":
        return lambda: save()()
    if case.does == "restore":
        save()()
        return lambda: form.restore(before[0], tree)
    step, start = training()

    def steps() -> Any:
        value, wait = start, save()
        for _ in range(STEPS):
            value = step(value)
        value.block_until_ready()
        wait()
        return value

    return steps


def arrays(case: Case) -> dict[str, Any]:
    import numpy as np

    random, each = np.random.default_rng(0), case.megabytes * 250_000 // case.leaves
    return {f"w{i}": random.standard_normal(each, dtype="float32") for i in range(case.leaves)}


def training() -> tuple[Callable[[Any], Any], Any]:
    """A step of some ten milliseconds, compiled."""
    import jax
    import jax.numpy as jnp

    @jax.jit
    def step(x: Any) -> Any:
        return jnp.tanh(x @ x / 32)

    start = jnp.ones((1024, 1024)) / 1024
    return step, step(start)


def remove(path: pathlib.Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def synced(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def on_device(tree: Any) -> Any:
    import jax

    return jax.block_until_ready(jax.device_put(tree))


# --- the formats


def floor(case: Case) -> Call:
    """NumPy: the bytes alone, in one file; `steps` without a save"""
    import numpy as np

    def save(path: pathlib.Path, tree: Any) -> Callable[[], Any]:
        if case.does != "steps":
            with open(path, "wb") as out:
                for array in tree.values():
                    array.tofile(out)
                out.flush()
                os.fsync(out.fileno())
        return lambda: None

    def restore(path: pathlib.Path, tree: Any) -> Any:
        with open(path, "rb") as file:
            return on_device({n: np.fromfile(file, a.dtype, a.size) for n, a in tree.items()})

    return call_of(Format(save, restore, lambda tree: tree), case)


def fnn(case: Case) -> Call:
    """fnn.checkpoint.save(wait=False), its wait(), and restore: with sums, in a folder"""
    import fnn

    def save(path: pathlib.Path, tree: Any) -> Callable[[], Any]:
        return fnn.checkpoint.save(path, tree, wait=case.does == "save").wait

    return call_of(Format(save, fnn.checkpoint.restore, on_device), case)


def safetensors(case: Case) -> Call:
    """safetensors.flax.save_file and load_file"""
    from safetensors import flax

    def save(path: pathlib.Path, tree: Any) -> Callable[[], Any]:
        flax.save_file(tree, path)
        return lambda: synced(path)

    return call_of(Format(save, lambda path, tree: flax.load_file(path), on_device), case)


def torch(case: Case) -> Call:
    """torch.save and torch.load(weights_only=True), of tensors on the CPU"""
    import torch

    def save(path: pathlib.Path, tree: Any) -> Callable[[], Any]:
        torch.save(tree, path)
        return lambda: synced(path)

    def restore(path: pathlib.Path, tree: Any) -> Any:
        return torch.load(path, weights_only=True)

    def place(tree: Any) -> Any:
        return {n: torch.from_numpy(a) for n, a in tree.items()}

    return call_of(Format(save, restore, place), case)


def orbax(case: Case) -> Call:
    """orbax: StandardCheckpointer, which saves in the background"""
    import jax
    import orbax.checkpoint as ocp

    checkpointer = ocp.StandardCheckpointer()

    def save(path: pathlib.Path, tree: Any) -> Callable[[], Any]:
        checkpointer.save(path, tree)

        def wait() -> None:
            checkpointer.wait_until_finished()
            for file in path.rglob("*"):
                synced(file)

        return wait

    def restore(path: pathlib.Path, tree: Any) -> Any:
        return checkpointer.restore(path, jax.eval_shape(lambda: tree))

    return call_of(Format(save, restore, on_device), case)


# --- the task


def check(contender: Contender, case: Case) -> list[float]:
    """What comes back of what was saved; of `steps`, where they lead."""
    import numpy as np

    if case.does == "steps":
        return [float(contender(replace(case, megabytes=4))().sum())]
    restored = contender(replace(case, does="restore", megabytes=4))()
    return [float(np.abs(np.asarray(restored[name])).mean()) for name in sorted(restored)[:9]]


CASES = {
    "save": Case("save", 200, 400),
    "save_one": Case("save", 1, 400),
    "restore": Case("restore", 200, 400),
    "restore_one": Case("restore", 1, 400),
    "steps": Case("steps", 50, 100),
}

TASK = Task(
    title="Checkpoints: saving and restoring 400 MB in 200 arrays and in one, and 20 steps beside "
    "a save of 100 MB",
    cases=CASES,
    contenders={
        "floor": floor, "fnn": fnn, "safetensors": safetensors, "torch": torch, "orbax": orbax
    },
    goals=(
        Goal("save: at least 400 MB/s, with sums and fsync", "save", 1.0),
        Goal("save_one: at least 400 MB/s, with sums and fsync", "save_one", 1.0),
        Goal("restore: at least 800 MB/s, with sums", "restore", 0.5),
        Goal("restore_one: at least 800 MB/s, with sums", "restore_one", 0.5),
        Goal(
            "steps: at most 1.5 x those without a save", "steps", 1.5, ("floor",),
            cause="the copy, the sums and the writing take the time of a core, and both are busy.",
        ),
    ),
    check=check,
    rounds=5,
)  # fmt: skip
