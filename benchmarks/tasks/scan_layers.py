"""Each kind of layer inside a `lax.scan` against the same jitted calls one after another.

A call works through `STEPS` inputs: forward; gradients by the params or by x of sum(y * cotangent);
or forward mode, the tangent of y for tangents of the params and of x. Each step gives one number,
so that neither side writes more than the other, and copies its inputs out of all of them first, on
both sides: in a network too a layer reads arrays that are there. (XLA's CPU compiler fuses the
slice that a scan takes of its inputs into all that reads it, and this then runs up to six times as
long; that is timed in the case `max_pool of a slice`, which goes without the copy.) A call of the
case `unet step` is an epoch of `fit` by its scan driver, and by its loop driver.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.networks import UNET_BATCH, unet_training
from benchmarks.task import Call, Contender, Goal, Missing, Task

STEPS = 8


@dataclass(frozen=True)
class Kind:
    """A layer, made from the library, and the shapes of its inputs."""

    make: Callable[[Any], Any]
    shapes: tuple[tuple[int, ...], ...]
    integers: int = 0  # the inputs are some, smaller than this
    copied: bool = True


def of(make: Callable[[Any], Any], *shapes: tuple[int, ...], **options: Any) -> Kind:
    return Kind(make, shapes, **options)


def unet_step() -> None:
    """Stands for the U-Net among the cases."""


# --- what is timed of a layer


@functools.cache
def data(kind: Kind) -> tuple[Any, ...]:
    """The layer, params, their tangents, state; stacked: xs, tangents, cotangents and keys."""
    import jax
    import jax.numpy as jnp

    import fnn

    def draw(seed: int, spec: Any, lead: tuple[int, ...] = ()) -> Any:
        leaves, tree = jax.tree.flatten(spec)
        keys = jax.random.split(jax.random.key(seed), len(leaves) or 1)
        return tree.unflatten(
            jax.random.normal(key, lead + leaf.shape, leaf.dtype)
            for key, leaf in zip(keys, leaves, strict=False)
        )

    layer = kind.make(fnn)
    xs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in kind.shapes]
    if kind.integers:
        shapes = [(STEPS, *shape) for shape in kind.shapes]
        inputs = [jax.random.randint(jax.random.key(1), s, 0, kind.integers) for s in shapes]
        xs, dxs = [jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for x in inputs], None
    else:
        inputs, dxs = draw(1, xs, (STEPS,)), draw(2, xs, (STEPS,))
    key = jax.random.key(0)
    params, state = layer.init(key, *xs)
    y, _ = jax.eval_shape(
        lambda key, *xs: layer.apply(params, state, *xs, key=key, train=True), key, *xs
    )
    stacked = inputs, dxs, draw(3, y, (STEPS,)), jax.random.split(key, STEPS)
    return layer, params, draw(4, params), state, stacked


def product(a: Any, b: Any) -> Any:
    import jax

    return sum(jax.tree.leaves(jax.tree.map(lambda a, b: (a * b).sum(), a, b)))


def parts_of(kind: Kind, part: str) -> tuple[Callable[..., Any], Any, Any]:
    """`part` as a function of the params and of one step's arrays, which come stacked."""
    import jax

    layer, params, dparams, state, stacked = data(kind)
    if part == "by_params" and not params:
        raise Missing("no params")
    if part == "by_x" and kind.integers:
        raise Missing("no derivative by integers")

    def step(params: Any, arrays: Any) -> Any:
        xs, dxs, cotangent, key = arrays

        def run(params: Any, xs: Any) -> Any:
            return layer.apply(params, state, *xs, key=key, train=True)[0]

        def loss(params: Any, xs: Any) -> Any:
            return product(run(params, xs), cotangent)

        if part == "forward":
            return loss(params, xs)
        if part == "by_params":
            return product(jax.grad(loss)(params, xs), dparams)
        if part == "by_x":
            return product(jax.grad(loss, 1)(params, xs), dxs)
        if kind.integers:
            return product(jax.jvp(lambda p: run(p, xs), (params,), (dparams,))[1], cotangent)
        return product(jax.jvp(run, (params, xs), (dparams, dxs))[1], cotangent)

    return step, params, stacked


def copied(stacked: Any, i: Any) -> Any:
    """The arrays of step i, taken within a branch: so XLA fuses them into nothing."""
    import jax

    def take(sign: int) -> Any:
        arrays = jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, i, 0, False), stacked)
        *floats, key = arrays
        return (*jax.tree.map(lambda a: sign * a, floats), key)

    return jax.lax.cond(i >= 0, lambda: take(1), lambda: take(-1))


@functools.cache
def call_of(kind: Kind, part: str, scanned: bool) -> Call:
    import jax
    import jax.numpy as jnp

    step, params, stacked = parts_of(kind, part)
    each = jnp.arange(STEPS) if kind.copied else stacked

    def one(params: Any, stacked: Any, given: Any) -> Any:
        return step(params, copied(stacked, given) if kind.copied else given)

    @jax.jit
    def whole(params: Any, stacked: Any, each: Any) -> Any:
        return jax.lax.scan(lambda carry, a: (carry, one(params, stacked, a)), 0, each)[1]

    if scanned:
        return lambda: whole(params, stacked, each)
    jitted = jax.jit(one)
    steps = [jax.tree.map(operator.itemgetter(i), each) for i in range(STEPS)]
    return lambda: jnp.stack([jitted(params, stacked, given) for given in steps])


def contender(part: str, scanned: bool) -> Contender:
    def build(kind: Any) -> Call:
        if kind is unet_step:
            raise Missing("of layers")
        return call_of(kind, part, scanned)

    build.__doc__ = f"{part}, {f'{STEPS} steps of a lax.scan' if scanned else 'a call for each'}"
    return build


@functools.cache
def epoch(driver: str) -> Call:
    import fnn

    step, train_state, examples = unet_training(STEPS)

    def call() -> Any:
        nonlocal train_state
        train_state, history = fnn.train.fit(
            step, train_state, examples, epochs=1, batch_size=UNET_BATCH, driver=driver,
            progress=False,
        )  # fmt: skip
        return history["train"]["loss"]

    return call


def step(case: Any) -> Call:
    """an epoch of fit(driver="loop")"""
    if case is not unet_step:
        raise Missing("of the U-Net")
    return epoch("loop")


def step_scan(case: Any) -> Call:
    """an epoch of fit(driver="scan")"""
    if case is not unet_step:
        raise Missing("of the U-Net")
    return epoch("scan")


def numbers(contender: Contender, case: Any) -> list[float]:
    """The sum over the steps of the sizes of all numbers."""
    import numpy as np

    return [float(np.abs(np.asarray(contender(case)(), "float64")).sum())]


# --- the table

IMAGE, ROW, VOLUME = (16, 16, 16, 32), (16, 256, 32), (8, 8, 8, 8, 16)
VECTORS, TEXT = (256, 512), (8, 64, 128)

KINDS = {
    "dense": of(lambda fnn: fnn.dense(512), VECTORS),
    "bilinear": of(lambda fnn: fnn.bilinear(64), (256, 32), (256, 32)),
    "conv": of(lambda fnn: fnn.conv(32, (3, 3)), IMAGE),
    "conv 96 to 32": of(lambda fnn: fnn.conv(32, (3, 3)), (64, 8, 8, 96)),
    "conv 3 to 32": of(lambda fnn: fnn.conv(32, (3, 3)), (16, 32, 32, 3)),
    "conv 1 x 1": of(lambda fnn: fnn.conv(64, (1, 1)), IMAGE),
    "conv strided": of(lambda fnn: fnn.conv(32, (3, 3), strides=2), IMAGE),
    "conv dilated": of(lambda fnn: fnn.conv(32, (3, 3), dilation=2), IMAGE),
    "conv grouped": of(lambda fnn: fnn.conv(32, (3, 3), groups=4), IMAGE),
    "conv circular": of(lambda fnn: fnn.conv(32, (3, 3), padding="CIRCULAR"), IMAGE),
    "conv matmul": of(lambda fnn: fnn.conv(32, (3, 3), weight_grad="matmul"), IMAGE),
    "conv 1d causal": of(lambda fnn: fnn.conv(32, (5,), padding="CAUSAL"), ROW),
    "conv 3d": of(lambda fnn: fnn.conv(16, (3, 3, 3)), VOLUME),
    "conv bfloat16": of(lambda fnn: fnn.cast(fnn.conv(32, (3, 3)), "bfloat16"), IMAGE),
    "conv_transpose": of(lambda fnn: fnn.conv_transpose(16, (4, 4), strides=2), (8, 12, 12, 32)),
    "depthwise_conv": of(lambda fnn: fnn.depthwise_conv((3, 3)), IMAGE),
    "separable_conv": of(lambda fnn: fnn.separable_conv(32, (3, 3)), IMAGE),
    "local_conv": of(lambda fnn: fnn.local_conv(16, (3, 3)), (16, 8, 8, 32)),
    "max_pool": of(lambda fnn: fnn.max_pool((2, 2)), IMAGE),
    "max_pool of a slice": of(lambda fnn: fnn.max_pool((2, 2)), IMAGE, copied=False),
    "max_pool overlapping": of(lambda fnn: fnn.max_pool((3, 3), strides=2), IMAGE),
    "min_pool": of(lambda fnn: fnn.min_pool((2, 2)), IMAGE),
    "avg_pool": of(lambda fnn: fnn.avg_pool((2, 2)), IMAGE),
    "sum_pool": of(lambda fnn: fnn.sum_pool((3, 3), strides=1, padding="SAME"), IMAGE),
    "lp_pool": of(lambda fnn: fnn.lp_pool((2, 2), 3.0), IMAGE),
    "global_avg_pool": of(lambda fnn: fnn.global_avg_pool(2), IMAGE),
    "global_max_pool": of(lambda fnn: fnn.global_max_pool(2), IMAGE),
    "adaptive_avg_pool": of(lambda fnn: fnn.adaptive_avg_pool((3, 3)), IMAGE),
    "upsample": of(lambda fnn: fnn.upsample((2, 2)), IMAGE),
    "upsample cubic": of(lambda fnn: fnn.upsample((2, 2), "cubic"), (16, 8, 8, 32)),
    "pixel_shuffle": of(lambda fnn: fnn.pixel_shuffle(2), IMAGE),
    "batch_norm": of(lambda fnn: fnn.batch_norm(), IMAGE),
    "group_norm": of(lambda fnn: fnn.group_norm(4, 2), IMAGE),
    "instance_norm": of(lambda fnn: fnn.instance_norm(2), IMAGE),
    "layer_norm": of(lambda fnn: fnn.layer_norm(), VECTORS),
    "rms_norm": of(lambda fnn: fnn.rms_norm(), VECTORS),
    "prelu": of(lambda fnn: fnn.prelu(), VECTORS),
    "dropout": of(lambda fnn: fnn.dropout(0.5), VECTORS),
    "drop_path": of(lambda fnn: fnn.drop_path(0.5, 1), VECTORS),
    "embedding": of(lambda fnn: fnn.embedding(1000, 128), (8, 64), integers=1000),
    "attention": of(lambda fnn: fnn.attention(128, 4), TEXT),
    "transformer_block": of(lambda fnn: fnn.transformer_block(128, 4), TEXT),
    "lstm": of(lambda fnn: fnn.lstm(64), (16, 32, 64)),
    "gru": of(lambda fnn: fnn.gru(64), (16, 32, 64)),
    "simple_rnn": of(lambda fnn: fnn.simple_rnn(64), (16, 32, 64)),
    "bidirectional": of(lambda fnn: fnn.bidirectional(fnn.cells.mgu(64)), (16, 32, 64)),
    "conv_lstm": of(
        lambda fnn: fnn.rnn(fnn.cells.conv_lstm(8, (3, 3)), feature_axes=3), (4, 6, 12, 12, 8)
    ),
    "lru": of(lambda fnn: fnn.lru(64), (8, 64, 64)),
    "repeat": of(lambda fnn: fnn.repeat(fnn.conv(32, (3, 3)), 3), IMAGE),
    "ensemble": of(lambda fnn: fnn.ensemble(fnn.dense(128), 4), VECTORS),
    "weight_norm": of(lambda fnn: fnn.weight_norm(fnn.dense(512)), VECTORS),
}
CASES = {**KINDS, "unet step": unet_step}
PARTS = ("forward", "by_params", "by_x", "forward_mode")
SLICE = "the slice of the scan's input is fused into each of the window's taps"
CAUSES = {
    ("max_pool of a slice", "by_x"): SLICE,
    ("max_pool of a slice", "forward_mode"): SLICE,
}


def goals() -> tuple[Goal, ...]:
    layers = (
        Goal(
            f"{name}, {part}: in a scan at most 1.3 x the calls", name, 1.3, (part,),
            f"{part}_scan", CAUSES.get((name, part), ""),
        )
        for name, kind in KINDS.items()
        for part in PARTS
    )  # fmt: skip
    drivers = Goal(
        "the U-Net's step: fit's scan driver at most 1.05 x its loop driver", "unet step", 1.05,
        ("step",), "step_scan",
    )  # fmt: skip
    return (*layers, drivers)


TASK = Task(
    title=f"{STEPS} steps of each kind of layer in one scan, over as many jitted calls",
    cases=CASES,
    contenders={
        **{part + end: contender(part, bool(end)) for part in PARTS for end in ("", "_scan")},
        "step": step,
        "step_scan": step_scan,
    },
    goals=goals(),
    check=numbers,
    rounds=5,
    block=0.03,
    baseline="forward",
    pairs={f"{part}_scan": part for part in (*PARTS, "step")},
)
