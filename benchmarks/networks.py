"""The networks that training benchmarks share: what they are, their weights and their batches.

A case is a list of layers which each contender builds in its own library. Weights and batches are
made here, in NumPy, so that all contenders start from the same numbers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.task import Call, Contender

RATE = 1e-3  # of Adam
BATCHES = 8  # distinct ones, in turn
STEPS = 20  # whose losses must agree
UNET_BATCH, UNET_IMAGE = 16, (16, 16, 8)


@dataclass(frozen=True)
class Case:
    shape: tuple[int, ...]  # of a batch of inputs, [B, ...]
    net: tuple[tuple[str, Any], ...]  # (kind, argument) of each layer; the last is dense


def dense_net(*widths: int) -> tuple[tuple[str, Any], ...]:
    """Dense layers with relu between."""
    return tuple(x for n in widths for x in (("dense", n), ("relu", None)))[:-1]


MLP = Case((128, 784), dense_net(512, 512, 10))
CNN = Case(
    (64, 28, 28, 1),
    (("conv", 32), ("relu", None), ("pool", 2), ("conv", 64), ("relu", None), ("pool", 2))
    + (("flatten", None), ("dense", 128), ("relu", None), ("dropout", 0.5), ("dense", 10)),
)


def walk(case: Case) -> Iterator[tuple[str, Any, tuple[int, ...]]]:
    """(kind, argument, shape of one example going in) of each layer; channels come last."""
    shape: tuple[int, ...] = case.shape[1:]
    for kind, n in case.net:
        yield kind, n, shape
        match kind:
            case "conv" | "dense":
                shape = (*shape[:-1], n)
            case "pool":
                shape = (*(size // n for size in shape[:-1]), shape[-1])
            case "flatten":
                shape = (math.prod(shape),)


def build(case: Case, make: Mapping[str, Callable[[Any, int], Any]]) -> list[Any]:
    """The layers of a case, each from `make[kind](argument, channels coming in)`."""
    return [make[kind](n, shape[-1]) for kind, n, shape in walk(case)]


def weights(case: Case, channels_first: bool = False) -> list[tuple[Any, Any]]:
    """(kernel, bias) of each conv (HWIO) and dense (in, out); channels first: OIHW and (out, in),
    with the inputs of the dense layer after `flatten` in the order of a flattened C, H, W."""
    import numpy as np

    random, arrays, flat = np.random.default_rng(1), [], None
    for kind, n, shape in walk(case):
        if kind == "flatten":
            flat = shape
        if kind not in ("conv", "dense"):
            continue
        size = (3, 3, shape[-1], n) if kind == "conv" else (shape[-1], n)
        kernel = random.normal(size=size) / np.sqrt(np.prod(size[:-1]))
        if channels_first and kind == "conv":
            kernel = kernel.transpose(3, 2, 0, 1)
        elif channels_first:
            kernel = kernel.reshape(*(flat or shape), n)  # after flatten: H W C out
            kernel = np.moveaxis(kernel, (-1, -2), (0, 1)).reshape(n, -1)
            flat = None
        arrays.append((kernel.astype("float32"), np.zeros(n, "float32")))
    return arrays


def arrays(case: Case) -> list[dict[str, Any]]:
    """The same as arrays on the device, for JAX."""
    import jax.numpy as jnp

    return [{"kernel": jnp.asarray(k), "bias": jnp.asarray(b)} for k, b in weights(case)]


def batches(case: Case, put: Callable[[Any], Any], channels_first: bool = False) -> list[Any]:
    """Batches (x, labels) of noise, each array through `put` (to the device)."""
    import numpy as np

    random, made = np.random.default_rng(2), []
    for _ in range(BATCHES):
        x = random.normal(size=case.shape).astype("float32")
        labels = random.integers(0, case.net[-1][1], case.shape[0])
        if channels_first and x.ndim == 4:
            x = x.transpose(0, 3, 1, 2).copy()
        made.append((put(x), put(labels)))
    return made


def cross_entropy(logits: Any, labels: Any) -> Any:
    """optax's, the mean over the batch; for the JAX libraries that have none."""
    import optax

    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def forward(
    case: Case, params: list[Any], x: Any, pool: Callable[[Any], Any] | None = None, key: Any = None
) -> Any:
    """A case by hand, in plain JAX; its max pool a reduce_window, unless one is given."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    layers, dimensions = iter(params), ("NHWC", "HWIO", "NHWC")
    for i, (kind, n) in enumerate(case.net):
        match kind:
            case "conv":
                p = next(layers)
                x = lax.conv_general_dilated(
                    x, p["kernel"], (1, 1), "SAME", dimension_numbers=dimensions
                )
                x = x + p["bias"]
            case "dense":
                p = next(layers)
                x = x @ p["kernel"] + p["bias"]
            case "relu":
                x = jax.nn.relu(x)
            case "pool" if pool:
                x = pool(x)
            case "pool":
                window = (1, n, n, 1)
                x = lax.reduce_window(x, -float("inf"), lax.max, window, window, "VALID")
            case "flatten":
                x = x.reshape(x.shape[0], -1)
            case "dropout":
                keep = jax.random.bernoulli(jax.random.fold_in(key, i), 1 - n, x.shape)
                x = jnp.where(keep, x / (1 - n), 0)
    return x


def fnn_network(case: Case, **conv: Any) -> tuple[Any, dict[str, Any]]:
    """A case in fnn, and its params; `conv` are options of its convolutions."""
    import jax

    import fnn

    make = {
        "conv": lambda n, _: fnn.conv(n, (3, 3), **conv),
        "dense": lambda n, _: fnn.dense(n),
        "relu": lambda *_: jax.nn.relu,
        "pool": lambda n, _: fnn.max_pool((n, n)),
        "flatten": lambda *_: fnn.flatten(3),
        "dropout": lambda rate, _: fnn.dropout(rate),
    }
    net = fnn.serial(*build(case, make))
    names, _ = net.specs(case.shape)
    return net, dict(zip(names, arrays(case), strict=True))


def fnn_training(
    case: Case, rate: float = RATE, donate: bool = False, augment: Any = None, **conv: Any
) -> tuple[Callable[..., Any], Any]:
    """The step with Adam, and the state it starts from."""
    import jax

    import fnn

    (net, params), tx = fnn_network(case, **conv), fnn.optim.adam(rate)
    key, x = jax.random.key(0), jax.ShapeDtypeStruct(case.shape, "float32")
    state = jax.eval_shape(net.init, key, x)[1]  # no arrays; drawing params takes memory of its own
    start = fnn.train.TrainState(jax.numpy.int32(0), params, state, tx.init(params), key)
    loss_fn = fnn.train.supervised(net, fnn.losses.softmax_cross_entropy, augment=augment)
    return fnn.train.step(loss_fn, tx, donate=donate), start


def loop(step: Callable[[Any, Any], tuple[Any, Any]], state: Any, data: list[Any]) -> Call:
    """A call that moves `state` one step on over the next batch, and returns the loss."""
    turns = itertools.cycle(data)

    def call() -> Any:
        nonlocal state
        state, loss = step(state, next(turns))
        return loss

    return call


def losses(contender: Contender, case: Case) -> list[float]:
    """The losses of the first steps, without dropout: masks cannot agree between libraries."""
    net = tuple((kind, 0.0 if kind == "dropout" else n) for kind, n in case.net)
    call = contender(replace(case, net=net))
    return [float(call()) for _ in range(STEPS)]


def unet(channels: int = 32) -> Any:
    """A small U-Net in fnn, two levels: an image of as many channels as come in goes out."""
    import jax

    import fnn

    def block(n: int) -> Any:
        half = (fnn.conv(n, (3, 3)), fnn.group_norm(4, 2), jax.nn.relu)
        return fnn.serial(*half, *half)

    @fnn.compose(
        down=block(channels), pool=fnn.max_pool((2, 2)), middle=block(2 * channels),
        up=fnn.conv_transpose(channels, (2, 2), strides=2), join=block(channels),
        out=fnn.conv(UNET_IMAGE[-1], (1, 1)),
    )  # fmt: skip
    def net(f: Any, x: Any) -> Any:  # [..., H, W, C]
        h = f.down(x)
        deep = f.up(f.middle(f.pool(h)))
        return f.out(f.join(jax.numpy.concatenate([h, deep], -1)))

    return net


def unet_training(steps: int) -> tuple[Callable[..., Any], Any, Any]:
    """A U-Net that takes noise away: the step with Adam, its first state, data of so many steps."""
    import jax
    import numpy as np

    import fnn

    net, tx, random = unet(), fnn.optim.adam(RATE), np.random.default_rng(2)
    clean = random.normal(size=(steps * UNET_BATCH, *UNET_IMAGE)).astype("float32")
    noisy = clean + random.normal(size=clean.shape).astype("float32")
    start = fnn.train.init(net, tx, jax.random.key(0), (UNET_BATCH, *UNET_IMAGE))
    loss = fnn.train.supervised(net, fnn.losses.squared_error)
    return fnn.train.step(loss, tx), start, (noisy, clean)
