"""Initializing a network in a fresh process: 30 convolutions of distinct shapes, and ResNet-50.

Timed from calling the library's own way of initializing until every array is ready; importing the
library, starting the device and making a random key come before. Nothing is cached on disk.
ResNet-50 is v1.5: 53 convolutions without bias (stax's always have one), each with a batch norm.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

from benchmarks.task import Call, Contender, Goal, Task

WIDTHS = tuple(range(12, 132, 4))  # of the 30 convolutions, all 3 x 3
SHAPES = {"convs": (1, 8, 8, 3), "resnet50": (1, 224, 224, 3)}  # of the input


def blocks() -> Iterator[tuple[int, int, bool]]:
    """(features, stride, whether the shortcut is a projection) of the 16 bottlenecks."""
    for stage, n in enumerate((3, 4, 6, 3)):
        for i in range(n):
            yield 64 * 2**stage, 2 if stage and i == 0 else 1, i == 0


def start() -> Any:
    """A key, on a device that has already computed something."""
    import jax

    return jax.block_until_ready(jax.random.key(0))


def count(contender: Contender, case: str) -> list[float]:
    """How many numbers the parameters are."""
    params, _ = contender(case)()
    import jax

    return [float(sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)))]


def floor(case: str) -> Call:
    """NumPy draws every array, moved to the device"""
    import jax.numpy as jnp
    import numpy as np

    start()

    def sizes() -> Iterator[tuple[int, ...]]:
        c = 3
        if case == "convs":
            for n in WIDTHS:
                yield from ((3, 3, c, n), (n,))
                c = n
            return
        yield from ((7, 7, 3, 64), (64,), (64,))
        c = 64
        for n, _, project in blocks():
            yield from ((1, 1, c, n), (3, 3, n, n), (1, 1, n, 4 * n), *[(n,)] * 4, *[(4 * n,)] * 2)
            if project:
                yield from ((1, 1, c, 4 * n), (4 * n,), (4 * n,))
            c = 4 * n
        yield from ((c, 1000), (1000,))

    def call() -> Any:
        draw = np.random.default_rng(0).standard_normal
        return [
            jnp.asarray(draw(s, "float32") / np.float32(np.prod(s[:-1]) ** 0.5)) for s in sizes()
        ], None

    return call


def fnn(case: str) -> Call:
    """net.init"""
    import jax

    import fnn

    conv = partial(fnn.conv, use_bias=False)

    def bottleneck(n: int, stride: int, project: bool) -> Any:
        shortcut = {"conv4": conv(4 * n, (1, 1), strides=stride), "bn4": fnn.batch_norm()}

        @fnn.compose(
            conv1=conv(n, (1, 1)), bn1=fnn.batch_norm(),
            conv2=conv(n, (3, 3), strides=stride), bn2=fnn.batch_norm(),
            conv3=conv(4 * n, (1, 1)), bn3=fnn.batch_norm(), **(shortcut if project else {}),
        )  # fmt: skip
        def block(f: Any, x: Any) -> Any:
            h = jax.nn.relu(f.bn1(f.conv1(x)))
            h = f.bn3(f.conv3(jax.nn.relu(f.bn2(f.conv2(h)))))
            return jax.nn.relu(h + (f.bn4(f.conv4(x)) if project else x))

        return block

    def resnet50() -> Any:
        return fnn.serial(
            conv(64, (7, 7), strides=2), fnn.batch_norm(), jax.nn.relu,
            fnn.max_pool((3, 3), strides=2, padding="SAME"), *(bottleneck(*b) for b in blocks()),
            lambda x: x.mean((-3, -2)), fnn.dense(1000),
        )  # fmt: skip

    def convs() -> Any:
        return fnn.serial(*(fnn.conv(n, (3, 3)) for n in WIDTHS))

    key, make = start(), {"convs": convs, "resnet50": resnet50}[case]
    return lambda: make().init(key, SHAPES[case])


def linen(case: str, compiled: bool = False) -> Call:
    """flax.linen: model.init, as in its quick start"""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp

    conv, norm = partial(nn.Conv, use_bias=False), partial(nn.BatchNorm, use_running_average=True)

    class Bottleneck(nn.Module):
        features: int
        stride: int
        project: bool

        @nn.compact
        def __call__(self, x: Any) -> Any:
            n, s = self.features, (self.stride, self.stride)
            h = nn.relu(norm()(conv(n, (1, 1))(x)))
            h = nn.relu(norm()(conv(n, (3, 3), s)(h)))
            h = norm()(conv(4 * n, (1, 1))(h))
            return nn.relu(h + (norm()(conv(4 * n, (1, 1), s)(x)) if self.project else x))

    def pool(x: Any) -> Any:
        return nn.max_pool(x, (3, 3), (2, 2), "SAME")

    stem = [conv(64, (7, 7), (2, 2)), norm(), nn.relu, pool]
    head = [lambda x: x.mean((1, 2)), nn.Dense(1000)]
    resnet50 = nn.Sequential([*stem, *(Bottleneck(*b) for b in blocks()), *head])
    convs = nn.Sequential([nn.Conv(n, (3, 3)) for n in WIDTHS])
    key, model = start(), {"convs": convs, "resnet50": resnet50}[case]

    def call() -> Any:
        init = jax.jit(model.init) if compiled else model.init
        variables = init(key, jnp.ones(SHAPES[case]))
        return variables["params"], variables

    return call


def linen_jit(case: str) -> Call:
    """flax.linen: jax.jit(model.init), as in its ImageNet example"""
    return linen(case, compiled=True)


def nnx(case: str) -> Call:
    """flax.nnx: constructing the model"""
    from flax import nnx

    conv = partial(nnx.Conv, use_bias=False)

    class Bottleneck(nnx.Module):
        def __init__(self, c: int, n: int, stride: int, project: bool, rngs: nnx.Rngs):
            self.conv1, self.bn1 = conv(c, n, (1, 1), rngs=rngs), nnx.BatchNorm(n, rngs=rngs)
            self.conv2 = conv(n, n, (3, 3), (stride, stride), rngs=rngs)
            self.bn2 = nnx.BatchNorm(n, rngs=rngs)
            self.conv3 = conv(n, 4 * n, (1, 1), rngs=rngs)
            self.bn3 = nnx.BatchNorm(4 * n, rngs=rngs)
            if project:
                self.conv4 = conv(c, 4 * n, (1, 1), (stride, stride), rngs=rngs)
                self.bn4 = nnx.BatchNorm(4 * n, rngs=rngs)

    def resnet50(rngs: nnx.Rngs) -> Any:
        layers, c = [conv(3, 64, (7, 7), (2, 2), rngs=rngs), nnx.BatchNorm(64, rngs=rngs)], 64
        for n, stride, project in blocks():
            layers.append(Bottleneck(c, n, stride, project, rngs))
            c = 4 * n
        return nnx.Sequential(*layers, nnx.Linear(c, 1000, rngs=rngs))

    def convs(rngs: nnx.Rngs) -> Any:
        pairs = zip((3, *WIDTHS), WIDTHS, strict=False)
        return nnx.Sequential(*(nnx.Conv(c, n, (3, 3), rngs=rngs) for c, n in pairs))

    key, make = start(), {"convs": convs, "resnet50": resnet50}[case]

    def call() -> Any:
        model = make(nnx.Rngs(key))
        return nnx.state(model, nnx.Param), nnx.state(model)

    return call


def equinox(case: str) -> Call:
    """equinox: constructing the model"""
    import equinox as eqx
    import jax

    conv = partial(eqx.nn.Conv2d, use_bias=False)
    norm = partial(eqx.nn.BatchNorm, axis_name="batch", mode="batch")

    class Bottleneck(eqx.Module):
        convs: list[Any]
        norms: list[Any]

        def __init__(self, c: int, n: int, stride: int, project: bool, key: Any):
            keys = jax.random.split(key, 4)
            self.convs = [conv(c, n, 1, key=keys[0]), conv(n, n, 3, stride, 1, key=keys[1])]
            self.convs += [conv(n, 4 * n, 1, key=keys[2])]
            self.norms = [norm(n), norm(n), norm(4 * n)]
            if project:
                self.convs += [conv(c, 4 * n, 1, stride, key=keys[3])]
                self.norms += [norm(4 * n)]

    def resnet50(key: Any) -> Any:
        keys = iter(jax.random.split(key, 18))
        layers, c = [conv(3, 64, 7, 2, 3, key=next(keys)), norm(64)], 64
        for n, stride, project in blocks():
            layers.append(Bottleneck(c, n, stride, project, next(keys)))
            c = 4 * n
        return [*layers, eqx.nn.Linear(c, 1000, key=next(keys))]

    def convs(key: Any) -> Any:
        keys = jax.random.split(key, len(WIDTHS))
        sizes = zip((3, *WIDTHS), WIDTHS, keys, strict=False)
        return [eqx.nn.Conv2d(c, n, 3, padding=1, key=key) for c, n, key in sizes]

    key, make = start(), {"convs": convs, "resnet50": resnet50}[case]

    def call() -> Any:
        model, state = eqx.nn.make_with_state(make)(key)
        return eqx.filter(model, eqx.is_inexact_array), eqx.filter(state, eqx.is_array)

    return call


def haiku(case: str) -> Call:
    """haiku: init of hk.transform_with_state; ResNet-50 is its own hk.nets.ResNet50"""
    import haiku as hk
    import jax.numpy as jnp

    def net(x: Any) -> Any:
        if case == "convs":
            return hk.Sequential([hk.Conv2D(n, 3) for n in WIDTHS])(x)
        return hk.nets.ResNet50(1000)(x, is_training=True)

    key = start()
    return lambda: hk.transform_with_state(net).init(key, jnp.ones(SHAPES[case]))


def stax(case: str) -> Call:
    """jax.example_libraries: init_fun, as in its ResNet-50 example"""
    from jax.example_libraries import stax

    norm, relu = stax.BatchNorm, stax.Relu

    def conv(n: int, size: int, stride: int = 1) -> Any:
        return stax.Conv(n, (size, size), (stride, stride), "SAME")

    def bottleneck(n: int, stride: int, project: bool) -> Any:
        h = stax.serial(
            conv(n, 1), norm(), relu, conv(n, 3, stride), norm(), relu, conv(4 * n, 1), norm()
        )
        x = stax.serial(conv(4 * n, 1, stride), norm()) if project else stax.Identity
        return stax.serial(stax.FanOut(2), stax.parallel(h, x), stax.FanInSum, relu)

    def resnet50() -> Any:
        stem = (conv(64, 7, 2), norm(), relu, stax.MaxPool((3, 3), (2, 2), "SAME"))
        pool = stax.AvgPool((7, 7))
        return stax.serial(
            *stem, *(bottleneck(*b) for b in blocks()), pool, stax.Flatten, stax.Dense(1000)
        )

    def convs() -> Any:
        return stax.serial(*(conv(n, 3) for n in WIDTHS))

    key, make = start(), {"convs": convs, "resnet50": resnet50}[case]
    return lambda: (make()[0](key, SHAPES[case])[1], None)


def torch(case: str) -> Call:
    """PyTorch: constructing the model"""
    import torch
    from torch import nn

    place = "cuda" if torch.cuda.is_available() else "cpu"
    torch.ones(2, device=place)

    def conv(c: int, n: int, size: int, stride: int = 1) -> list[Any]:
        return [nn.Conv2d(c, n, size, stride, size // 2, bias=False), nn.BatchNorm2d(n)]

    def resnet50() -> Any:
        layers, c = conv(3, 64, 7, 2), 64
        for n, stride, project in blocks():
            layers += [*conv(c, n, 1), *conv(n, n, 3, stride), *conv(n, 4 * n, 1)]
            layers += conv(c, 4 * n, 1, stride) if project else []
            c = 4 * n
        return nn.ModuleList([*layers, nn.Linear(c, 1000)])

    def convs() -> Any:
        pairs = zip((3, *WIDTHS), WIDTHS, strict=False)
        return nn.ModuleList([nn.Conv2d(c, n, 3, padding=1) for c, n in pairs])

    make = {"convs": convs, "resnet50": resnet50}[case]

    def call() -> Any:
        with torch.device(place):
            return list(make().parameters()), None

    return call


TASK = Task(
    title="Initializing a network, cold: the first init of a fresh process",
    cases={name: name for name in SHAPES},
    contenders={
        "floor": floor,
        "fnn": fnn,
        "stax": stax,
        "linen": linen,
        "linen_jit": linen_jit,
        "nnx": nnx,
        "equinox": equinox,
        "haiku": haiku,
        "torch": torch,
    },
    check=count,
    rtol=2e-3,  # the biases of stax's ResNet-50
    cold=True,
    rounds=3,
    goals=(
        Goal(
            "30 convolutions of distinct shapes start 8 x faster than with flax linen",
            "convs", 1 / 8, ("linen", "linen_jit"),
        ),
    ),
)  # fmt: skip
