"""An epoch of training from arrays in memory, shuffled, with Adam: samples a second.

The data are noise, float32 images and their labels in NumPy; putting them where a library trains
is timed where that happens anew in each epoch. Each library shuffles by its own generator, so what
must agree does not depend on the order: losses of epochs that are one batch of all examples, and
the mean loss of an epoch of several batches at a rate of 0, which sees each example once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.networks import (
    CNN,
    MLP,
    RATE,
    Case,
    arrays,
    build,
    dense_net,
    fnn_training,
    weights,
)
from benchmarks.peers import torch_network, torch_place
from benchmarks.task import Call, Contender, Goal, Task
from benchmarks.tasks.sweep import optax_step

CHECKED = 256  # samples
STEPS = 3  # over all of them, whose losses must agree


@dataclass(frozen=True)
class Epoch:
    """So many samples, a multiple of the batch of the case, are one epoch."""

    case: Case
    samples: int
    rate: float = RATE

    @property
    def batch(self) -> int:
        return self.case.shape[0]


def data(epoch: Epoch, channels_first: bool = False) -> tuple[Any, Any]:
    """Images [N, ...] and labels [N], in NumPy."""
    import numpy as np

    random, (_, *shape) = np.random.default_rng(2), epoch.case.shape
    x = random.standard_normal((epoch.samples, *shape), dtype="float32")
    labels = random.integers(0, epoch.case.net[-1][1], epoch.samples, dtype="int32")
    if channels_first and x.ndim == 4:
        x = x.transpose(0, 3, 1, 2).copy()
    return x, labels


# --- fnn


def fit(epoch: Epoch, driver: str) -> Call:
    import jax

    import fnn

    step, train_state = fnn_training(epoch.case, epoch.rate)
    examples = jax.device_put(data(epoch))  # as PyTorch's tensors are

    def call() -> Any:
        nonlocal train_state, driver
        train_state, history = fnn.train.fit(
            step, train_state, examples, epochs=1, batch_size=epoch.batch, driver=driver,
            progress=False,
        )  # fmt: skip
        driver = history["driver"]
        return history["train"]["loss"].mean()

    return call


def fnn(epoch: Epoch) -> Call:
    """the first call is fnn.train.fit(driver="auto"); later ones have the driver that it took"""
    return fit(epoch, "auto")


def fnn_scan(epoch: Epoch) -> Call:
    """fnn.train.fit(driver="scan"): the epoch is one compiled program"""
    return fit(epoch, "scan")


def fnn_chunk(epoch: Epoch) -> Call:
    """fnn.train.fit(driver="chunk"): one program for each 32 steps"""
    return fit(epoch, "chunk")


def fnn_loop(epoch: Epoch) -> Call:
    """fnn.train.fit(driver="loop"): one call a step, its batch from the host"""
    return fit(epoch, "loop")


# --- the others


def jax_loop(epoch: Epoch) -> Call:
    """by hand: a jitted step with optax that donates, on rows of the NumPy arrays"""
    import jax
    import numpy as np
    import optax

    update, random, (x, y) = optax_step(epoch.case), np.random.default_rng(0), data(epoch)
    step = jax.jit(
        lambda params, opt_state, batch: update(params, opt_state, epoch.rate, batch),
        donate_argnums=(0, 1),
    )
    params = arrays(epoch.case)
    opt_state = optax.adam(epoch.rate).init(params)

    def call() -> Any:
        nonlocal params, opt_state
        order, losses = random.permutation(epoch.samples), []
        for start in range(0, epoch.samples, epoch.batch):
            rows = order[start : start + epoch.batch]
            params, opt_state, loss = step(params, opt_state, (x[rows], y[rows]))
            losses.append(loss)
        return np.mean(jax.device_get(losses))

    return call


def torch_parts(epoch: Epoch) -> tuple[Callable[[Any, Any], Any], tuple[Any, Any]]:
    """The step, which takes its batch to the device, and the data there."""
    import torch
    from torch import nn

    place = torch_place()
    model = torch_network(epoch.case).to(place).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), epoch.rate, fused=True)
    loss_fn = nn.CrossEntropyLoss()

    def step(x: Any, y: Any) -> Any:
        optimizer.zero_grad()
        loss = loss_fn(model(x.to(place)), y.to(place))
        loss.backward()
        optimizer.step()
        return loss.detach()

    x, y = (torch.tensor(array, device=place) for array in data(epoch, channels_first=True))
    return step, (x, y.long())


def torch_slices(epoch: Epoch) -> Call:
    """PyTorch, eager, fused Adam: rows of the tensors by torch.randperm"""
    import torch

    step, (x, y) = torch_parts(epoch)

    def call() -> Any:
        order = torch.randperm(epoch.samples, device=x.device).split(epoch.batch)
        return torch.stack([step(x[rows], y[rows]) for rows in order]).mean()

    return call


def torch_thread(epoch: Epoch) -> Call:
    """the same on one thread: two may cost a small network more than they do"""
    import torch

    torch.set_num_threads(1)
    return torch_slices(epoch)


def torch_loader(epoch: Epoch) -> Call:
    """PyTorch: from a DataLoader; without workers, which cost more than they do for tensors"""
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    step, tensors = torch_parts(epoch)
    dataset = TensorDataset(*(tensor.cpu() for tensor in tensors))
    loader = DataLoader(dataset, batch_size=epoch.batch, shuffle=True)
    return lambda: torch.stack([step(x, y) for x, y in loader]).mean()


def keras(epoch: Epoch) -> Call:
    """keras on JAX: model.fit"""
    import os

    os.environ["KERAS_BACKEND"] = "jax"
    import keras
    from keras import layers

    make = {
        "conv": lambda n, _: layers.Conv2D(n, 3, padding="same"),
        "dense": lambda n, _: layers.Dense(n),
        "relu": lambda *_: layers.ReLU(),
        "pool": lambda n, _: layers.MaxPooling2D(n),
        "flatten": lambda *_: layers.Flatten(),
    }
    model = keras.Sequential([keras.Input(epoch.case.shape[1:]), *build(epoch.case, make)])
    model.set_weights([array for pair in weights(epoch.case) for array in pair])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(epoch.rate, epsilon=1e-8), loss)  # as the others'
    x, y = data(epoch)

    def call() -> Any:
        history = model.fit(x, y, batch_size=epoch.batch, epochs=1, verbose=0)
        return history.history["loss"][0]

    return call


# --- the task


def losses(contender: Contender, epoch: Epoch) -> list[float]:
    """What the order leaves alone: `STEPS` epochs of one batch, and one of four at a rate of 0."""
    of_all = replace(epoch.case, shape=(CHECKED, *epoch.case.shape[1:]))
    of_some = replace(epoch.case, shape=(CHECKED // 4, *epoch.case.shape[1:]))
    trained = contender(Epoch(of_all, CHECKED))
    still = contender(Epoch(of_some, CHECKED, rate=0.0))
    return [float(trained()) for _ in range(STEPS)] + [float(still())]


CASES = {
    "small": Epoch(Case((64, 784), dense_net(128, 10)), 32768),
    "large": Epoch(MLP, 16384),
    "cnn": Epoch(
        replace(CNN, net=tuple(layer for layer in CNN.net if layer[0] != "dropout")), 1024
    ),
}
DRIVERS = ("fnn_scan", "fnn_chunk", "fnn_loop")
TORCH = ("torch_slices", "torch_thread", "torch_loader")
HAND = ("jax_loop",)

TASK = Task(
    title="An epoch from arrays in memory: a dense network of 128 hidden units in batches of 64, "
    "one of 2 x 512 in batches of 128, and a CNN in batches of 64",
    cases=CASES,
    contenders={
        "jax_loop": jax_loop, "fnn": fnn, "fnn_scan": fnn_scan, "fnn_chunk": fnn_chunk,
        "fnn_loop": fnn_loop, "torch_slices": torch_slices, "torch_thread": torch_thread,
        "torch_loader": torch_loader, "keras": keras,
    },
    goals=(
        Goal("small: at least 1.8 x the samples a second of PyTorch", "small", 1 / 1.8, TORCH),
        *(
            Goal(
                f"{name}: at most 1.05 x the best of fit's drivers", name, 1.05, DRIVERS,
                cause="noise: what `auto` takes is one of the three.",
            )
            for name in CASES
        ),
        *(Goal(f"{name}: at most 1.05 x the loop by hand", name, 1.05, HAND) for name in CASES),
    ),
    check=losses,  # keras adds its epsilon before the bias correction, so no tighter rtol
    rounds=5,
    baseline="jax_loop",
    samples={name: epoch.samples for name, epoch in CASES.items()},
)  # fmt: skip
