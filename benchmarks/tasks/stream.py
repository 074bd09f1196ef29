"""Batches of data on the disk, read while a network trains, and 5 GB of them in little memory.

`cnn`: training steps of the CNN on batches of 64 from a memory map of bytes, which a transform
makes floats and shifts by some pixels. The floor trains on the same batches, cut beforehand; the
others read them, in order so that all losses agree. `cnn augmented`: the same, with a chain of
augmentations in the step. `pass`: a fifth of a pass over a memory map of 5 GB, in shuffled batches
of 64 images of 224 x 224; what counts is the memory of the process at its peak.
"""

from __future__ import annotations

import atexit
import itertools
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.networks import CNN, Case, fnn_training
from benchmarks.task import Call, Contender, Goal, Task
from benchmarks.tasks.augment import augmentations

BATCH, SOME = 64, 2048  # of the examples that the CNN sees
STEPS = 20
LARGE = (35_000, 224, 224, 3)  # bytes, 5.3 GB


@dataclass(frozen=True)
class Row:
    """The network that trains, or none; and the shape of the data, of which so many batches are
    read in a call."""

    net: Case | None
    shape: tuple[int, ...]
    batches: int
    augmented: bool = False


def mapped(row: Row) -> Any:
    """(images, labels) as memory maps of files that go with the process; most bytes are zeros."""
    import numpy as np

    folder = Path(tempfile.mkdtemp(prefix="fnn-benchmark-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    random, n = np.random.default_rng(2), row.shape[0]
    images = np.lib.format.open_memmap(folder / "x.npy", "w+", "u1", row.shape)
    some = min(SOME, 2**26 // images[0].size)  # 64 MB: the memory of the process is measured
    images[:some] = random.integers(0, 256, (some, *row.shape[1:]), "u1")
    np.save(folder / "y.npy", random.integers(0, 10, n, "i4"))
    images.flush()
    return tuple(np.load(folder / name, mmap_mode="r") for name in ("x.npy", "y.npy"))


def prepare(example: Any) -> Any:
    """Floats, shifted by an amount that follows from the label."""
    import numpy as np

    image, label = example
    return np.roll(image, int(label) % 3, axis=0).astype("f4") / 255 - 0.5, label


def over(row: Row, batches: Any) -> Call:
    """A call that takes a step on the next batch, or reads some."""
    if row.net is None:
        return lambda: sum(int(y[0]) for _, y in itertools.islice(batches, row.batches))
    step, state = fnn_training(row.net, augment=augmentations()["chain"] if row.augmented else None)

    def call() -> Any:
        nonlocal state
        state, metrics = step(state, next(batches))
        return metrics["loss"]

    return call


def rows_of(row: Row) -> Any:
    """The numbers of the examples of each batch, again and again: in order for a network."""
    import numpy as np

    n = len(range(0, row.shape[0] - BATCH + 1, BATCH)) * BATCH
    order = np.arange(n) if row.net else np.random.default_rng(0).permutation(row.shape[0])[:n]
    return itertools.cycle(order.reshape(-1, BATCH))


def streamed(row: Row, **workers: Any) -> Call:
    import jax

    import fnn

    key, transform = (None, prepare) if row.net else (jax.random.key(0), None)
    device = row.net is not None
    stream = fnn.data.stream(mapped(row), BATCH, key, transform=transform, device=device, **workers)
    return over(row, stream.from_step(0))


def floor(row: Row) -> Call:
    """batches cut beforehand; in `pass`, rows of the memory map itself"""
    import numpy as np

    x, y = mapped(row)
    if row.net is None:
        return over(row, ((x[rows], y[rows]) for rows in rows_of(row)))
    examples = [prepare(pair) for pair in zip(x, y, strict=True)]
    images, labels = (np.stack(part) for part in zip(*examples, strict=True))
    some = len(range(0, len(labels) - BATCH + 1, BATCH))
    return over(
        row, itertools.cycle([(images[r], labels[r]) for r in itertools.islice(rows_of(row), some)])
    )


def fnn(row: Row) -> Call:
    """fnn.data.stream, one thread"""
    return streamed(row)


def fnn_caller(row: Row) -> Call:
    """fnn.data.stream(threads=0): read where the steps are called"""
    return streamed(row, threads=0)


def fnn_process(row: Row) -> Call:
    """fnn.data.stream(processes=1)"""
    return streamed(row, processes=1)


def torch_loader(row: Row) -> Call:
    """torch's DataLoader with one worker process"""
    import torch

    x, y = mapped(row)

    class Examples(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(y)

        def __getitem__(self, i: int) -> Any:
            return prepare((x[i], y[i])) if row.net else (x[i], y[i])

    import numpy as np

    def stacked(examples: Any) -> Any:
        return tuple(np.stack(part) for part in zip(*examples, strict=True))

    options = {"batch_size": BATCH, "drop_last": True, "shuffle": row.net is None}
    loader = torch.utils.data.DataLoader(
        Examples(), num_workers=1, collate_fn=stacked, persistent_workers=True, **options
    )
    return over(row, itertools.chain.from_iterable(loader for _ in itertools.count()))


def losses(contender: Contender, row: Row) -> list[float] | None:
    """Of the first steps, without dropout."""
    if row.net is None:
        return None
    net = tuple((kind, 0.0 if kind == "dropout" else n) for kind, n in row.net.net)
    call = contender(replace(row, net=replace(row.net, net=net)))
    return [float(call()) for _ in range(STEPS)]


READ: dict[str, Callable[[Row], Call]] = {
    "floor": floor, "fnn": fnn, "fnn_caller": fnn_caller, "fnn_process": fnn_process,
    "torch_loader": torch_loader,
}  # fmt: skip

TASK = Task(
    title="Batches of a memory map: training steps of the CNN, and a pass over 5 GB",
    cases={
        "cnn": Row(CNN, (SOME, *CNN.shape[1:]), 1),
        "cnn augmented": Row(CNN, (SOME, *CNN.shape[1:]), 1, augmented=True),
        "pass": Row(None, LARGE, LARGE[0] // BATCH // 5),
    },
    contenders=READ,
    goals=tuple(
        Goal(f"{case}: at least 0.9 of the steps on ready batches", case, 1 / 0.9, ("floor",))
        for case in ("cnn", "cnn augmented")
    ),
    check=losses,
    rounds=6,
)
