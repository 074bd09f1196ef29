"""Augmentations of a batch of 128 images, jitted and mapped, and what they add to a training step.

Each image has draws of its own. SciPy works through the images one by one, with draws by NumPy; it
draws as many numbers, but others, so that nothing is compared. The case `cnn step` is the step of
`train_step`, with a chain of three in its program, and without.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from benchmarks.networks import CNN, batches, fnn_training, loop
from benchmarks.task import Call, Contender, Goal, Missing, Task

B = 128
SHAPES = ((28, 28, 1), (32, 32, 3))
KINDS = ("flip", "shift", "rotate", "affine", "elastic", "cutout", "chain")
STEP = "cnn step"


def images(shape: tuple[int, ...]) -> Any:
    import numpy as np

    return np.random.default_rng(0).random((B, *shape), np.float32)


def augmentations() -> dict[str, Callable[..., Any]]:
    from fnn.data import augment

    return {
        "flip": augment.flip(),
        "shift": augment.shift(4),
        "rotate": augment.rotate(15),
        "affine": augment.affine(15, 2, (0.9, 1.1), 10),
        "elastic": augment.elastic(34, 4),
        "cutout": augment.cutout(8),
        "chain": augment.chain(
            augment.affine(15, 2, (0.9, 1.1)), augment.cutout(8), augment.noise(0.1)
        ),
    }


def mapped(f: Callable[..., Any], shape: tuple[int, ...]) -> Call:
    import itertools

    import jax
    import jax.numpy as jnp

    @jax.jit
    def run(key: Any, x: Any) -> Any:
        return jax.vmap(f)(jax.random.split(key, B), x)

    keys = itertools.cycle([jax.random.key(i) for i in range(8)])
    x = jnp.asarray(images(shape))
    return lambda: run(next(keys), x)


def step(chain: Callable[..., Any] | None) -> Call:
    """The step with Adam, with or without an augmentation in its program."""
    import jax.numpy as jnp

    case = replace(CNN, shape=(B, 28, 28, 1))
    return loop(*fnn_training(case, augment=chain), batches(case, jnp.asarray))


def fnn(case: Any) -> Call:
    """fnn.data.augment, jax.jit of jax.vmap; in the step, fnn.train.supervised(augment=chain)"""
    kind, shape = case
    if kind == STEP:
        call = step(augmentations()["chain"])
        return lambda: call()["loss"]
    return mapped(augmentations()[kind], shape)


def plain(case: Any) -> Call:
    """the step without augmentation"""
    if case[0] != STEP:
        raise Missing("only of the step")
    call = step(None)
    return lambda: call()["loss"]


def scipy(case: Any) -> Call:
    """scipy.ndimage and NumPy, image by image"""
    import numpy as np
    import scipy.ndimage as nd

    kind, shape = case
    if kind == STEP:
        raise Missing("not of the step")
    rng, middle = np.random.default_rng(1), (np.array(shape[:2]) - 1) / 2

    def by_map(x: Any, degrees: float, move: float, low: float, high: float, slide: float) -> Any:
        a, k = np.radians(rng.uniform(-degrees, degrees)), np.tan(np.radians(rng.uniform(-1, 1)))
        turn = np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])
        matrix = np.array([[1, 0], [-slide * k, 1]]) @ turn / rng.uniform(low, high)
        offset = middle - matrix @ (middle + rng.uniform(-move, move, 2))
        whole = np.block([[matrix, np.zeros((2, 1))], [np.zeros((1, 2)), np.ones((1, 1))]])
        return nd.affine_transform(x, whole, (*offset, 0), order=1)

    def bent(x: Any) -> Any:
        u = rng.uniform(-1, 1, (2, *shape[:2])).astype(np.float32)
        moves = 34 * nd.gaussian_filter(u, (0, 4, 4), mode="constant")
        places = moves + np.mgrid[: shape[0], : shape[1]]
        channels = [nd.map_coordinates(x[..., c], places, order=1) for c in range(shape[2])]
        return np.stack(channels, -1)

    def blotted(x: Any) -> Any:
        row, col = rng.integers(0, shape[0]), rng.integers(0, shape[1])
        x = x.copy()
        x[max(row - 4, 0) : row + 4, max(col - 4, 0) : col + 4] = 0
        return x

    def in_a_row(x: Any) -> Any:
        x = blotted(by_map(x, 15, 2, 0.9, 1.1, 0))
        return x + 0.1 * rng.standard_normal(shape, np.float32)

    one = {
        "flip": lambda x: x[:, ::-1] if rng.random() < 0.5 else x,
        "shift": lambda x: nd.shift(x, (*rng.integers(-4, 5, 2), 0), order=0),
        "rotate": lambda x: nd.rotate(x, rng.uniform(-15, 15), reshape=False, order=1),
        "affine": lambda x: by_map(x, 15, 2, 0.9, 1.1, 10),
        "elastic": bent,
        "cutout": blotted,
        "chain": in_a_row,
    }[kind]
    xs = images(shape)
    return lambda: np.stack([one(x) for x in xs])


def map_coordinates(case: Any) -> Call:
    """jax.scipy.ndimage.map_coordinates for each channel, jitted and mapped"""
    import jax
    import jax.numpy as jnp
    from jax.scipy import ndimage

    kind, (h, w, c) = case
    if kind != "rotate":
        raise Missing("only of rotations")

    def turned(key: Any, x: Any) -> Any:
        a = jnp.radians(jax.random.uniform(key, (), jnp.float32, -15, 15))
        rows = jnp.arange(h, dtype=jnp.float32)[:, None] - (h - 1) / 2
        cols = jnp.arange(w, dtype=jnp.float32)[None, :] - (w - 1) / 2
        places = [
            jnp.cos(a) * rows + jnp.sin(a) * cols + (h - 1) / 2,
            jnp.cos(a) * cols - jnp.sin(a) * rows + (w - 1) / 2,
        ]
        read = jax.vmap(lambda x: ndimage.map_coordinates(x, places, 1), -1, -1)
        return read(x)

    return mapped(turned, (h, w, c))


CASES = {
    f"{kind} {shape[0]}x{shape[1]}x{shape[2]}": (kind, shape) for shape in SHAPES for kind in KINDS
}
CONTENDERS: dict[str, Contender] = {
    "scipy": scipy,
    "fnn": fnn,
    "map_coordinates": map_coordinates,
    "plain": plain,
}

ASKED = (
    "each of the four pixels that a place is between is asked whether it counts, so that NaN and "
    "infinities stay where they are and a strength of 0 has a slope; without, it takes 0.4 of this"
)

TASK = Task(
    title=f"Augmentations of {B} images, and a training step with three of them",
    cases={**CASES, STEP: (STEP, SHAPES[0])},
    contenders=CONTENDERS,
    goals=(
        *(
            Goal(
                f"{case}: at most 1.5 x map_coordinates",
                case,
                1.5,
                ("map_coordinates",),
                cause=ASKED,
            )
            for case in CASES
            if case.startswith("rotate")
        ),
        *(
            Goal(f"{case}: at most a tenth of SciPy's time", case, 0.1, ("scipy",), cause=ASKED)
            for case in CASES
            if not case.startswith(("flip", "cutout"))
        ),
        Goal("the CNN's step with a chain: at most 1.1 x without", STEP, 1.1, ("plain",)),
    ),  # fmt: skip
    rounds=9,
    baseline="scipy",
    samples={case: B for case in (*CASES, STEP)},
)
