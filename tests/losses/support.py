"""A table of all losses, each with its oracle and a draw of its arguments."""

import functools
from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from fnn import losses
from tests.losses import oracles as plain
from tests.support import asarray

seeds = st.integers(0, 2**32 - 1)


class Case(NamedTuple):
    """A loss, its oracle of one example, and a draw of arguments: floating ones come first."""

    loss: Callable
    oracle: Callable
    draw: Callable  # (rng, lead) -> NumPy arguments
    tail: tuple = ()  # what an example's losses add to the leading axes
    options: dict = {}
    free: bool = False  # whether an example's own axes may vary

    def call(self, *args, **more):
        return self.loss(*args, **self.options, **more)

    def exact(self, lead, *args):
        oracle = functools.partial(self.oracle, **self.options)
        return plain.over(oracle, lead, self.tail, *args)


def normal(n, *tail, scale=1.0):
    return lambda rng, lead: [scale * rng.normal(size=(*lead, *tail)) for _ in range(n)]


def scored(*tail, classes=2, scale=3.0):
    def draw(rng, lead):
        return [scale * rng.normal(size=(*lead, *tail)), rng.integers(0, classes, lead)]

    return draw


def softly(scale=3.0):
    return lambda rng, lead: [scale * rng.normal(size=lead), rng.uniform(size=lead)]


def distributed(rng, lead):
    """Logits and distributions, some of them with zeros."""
    p = rng.dirichlet(np.ones(5), lead) * rng.choice([0, 1, 1], (*lead, 5))
    return [3 * rng.normal(size=(*lead, 5)), p]


def counted(rng, lead):
    return [rng.normal(size=lead), rng.poisson(2, lead).astype("float64")]


def probable(rng, lead):
    return [rng.dirichlet(np.ones(4), lead), rng.integers(0, 4, lead)]


def probable_softly(rng, lead):
    return [rng.dirichlet(np.ones(4), lead), rng.dirichlet(np.ones(4), lead)]


def chances(rng, lead):
    return [rng.uniform(0.01, 0.99, size=lead), rng.integers(0, 2, lead)]


def spoken(rng, lead):
    """Four times of three classes, up to two labels (not the blank, 1), with lengths."""
    logits = 2 * rng.normal(size=(*lead, 4, 3))
    lengths = [rng.integers(3, 5, lead), rng.integers(0, 3, lead)]
    return [logits, rng.choice([0, 2], (*lead, 2)), *lengths]


def written(rng, lead):
    return [2 * rng.normal(size=(*lead, 4, 5)), rng.integers(0, 5, (*lead, 4))]


CASES = {
    "squared_error": Case(losses.squared_error, plain.squared_error, normal(2)),
    "absolute_error": Case(losses.absolute_error, plain.absolute_error, normal(2)),
    "huber": Case(losses.huber, plain.huber, normal(2, scale=2)),
    "huber 0.5": Case(losses.huber, plain.huber, normal(2), options={"delta": 0.5}),
    "log_cosh": Case(losses.log_cosh, plain.log_cosh, normal(2)),
    "gaussian_nll": Case(losses.gaussian_nll, plain.gaussian_nll, normal(3)),
    "poisson_nll": Case(losses.poisson_nll, plain.poisson_nll, counted),
    "softmax_cross_entropy": Case(
        losses.softmax_cross_entropy, plain.softmax_cross_entropy, scored(5, classes=5), free=True
    ),
    "softmax_cross_entropy of distributions": Case(
        losses.softmax_cross_entropy, plain.softmax_cross_entropy, distributed
    ),
    "softmax_cross_entropy smoothed": Case(
        losses.softmax_cross_entropy,
        plain.softmax_cross_entropy,
        scored(5, classes=5),
        options={"label_smoothing": 0.1},
        free=True,
    ),
    "sigmoid_cross_entropy": Case(
        losses.sigmoid_cross_entropy, plain.sigmoid_cross_entropy, scored()
    ),
    "sigmoid_cross_entropy soft": Case(
        losses.sigmoid_cross_entropy, plain.sigmoid_cross_entropy, softly()
    ),
    "focal": Case(losses.focal, plain.focal, scored()),
    "focal soft": Case(losses.focal, plain.focal, softly(), options={"gamma": 0.5, "alpha": 0.6}),
    "log_loss": Case(losses.log_loss, plain.log_loss, probable, free=True),
    "log_loss soft": Case(losses.log_loss, plain.log_loss, probable_softly, options={"eps": 0.3}),
    "binary_log_loss": Case(losses.binary_log_loss, plain.binary_log_loss, chances),
    "hinge": Case(losses.hinge, plain.hinge, scored(scale=2)),
    "multiclass_hinge": Case(
        losses.multiclass_hinge, plain.multiclass_hinge, scored(4, classes=4), free=True
    ),
    "distillation": Case(
        losses.distillation, plain.distillation, normal(2, 4), options={"temperature": 2.0}
    ),
    "kl_divergence": Case(losses.kl_divergence, plain.kl_divergence, normal(2, 4)),
    "jensen_shannon": Case(losses.jensen_shannon, plain.jensen_shannon, normal(2, 4)),
    "gaussian_kl": Case(losses.gaussian_kl, plain.gaussian_kl, normal(2, 3)),
    "cosine_distance": Case(losses.cosine_distance, plain.cosine_distance, normal(2, 3)),
    "triplet": Case(losses.triplet, plain.triplet, normal(3, 3)),
    "info_nce": Case(losses.info_nce, plain.info_nce, normal(2, 3, 2), (3,), {"temperature": 0.5}),
    "ctc": Case(losses.ctc, plain.ctc, spoken, options={"blank": 1}, free=True),
    "language_model": Case(losses.language_model, plain.language_model, written, (3,), free=True),
}


def within(dtype):
    """The context in which `dtype` exists."""
    return jax.enable_x64(True) if dtype == "float64" else nullcontext()


def floating(args):
    """How many of the arguments are floating; they come first."""
    return sum(np.issubdtype(a.dtype, np.floating) for a in args)


def given_as(dtype, args):
    """(jax arguments in `dtype`, the float64 numbers that they are)."""
    n = floating(args)
    given = [asarray(a, dtype if i < n else "int32") for i, a in enumerate(args)]
    return given, [np.asarray(a, "float64" if i < n else None) for i, a in enumerate(given)]


@functools.cache
def jitted(name):
    return jax.jit(CASES[name].call)


EXTREME = [0.0, 1.0, -3.0, 60.0, -1e4, 1e30, -1e30, -np.inf]


@functools.cache
def with_gradient(name):
    case = CASES[name]

    @jax.jit
    def run(*args):
        n = floating(args)
        out, vjp = jax.vjp(lambda *p: case.call(*p, *args[n:]), *args[:n])
        return out, vjp(jnp.ones_like(out))

    return run


IMPOSSIBLE = asarray([[0.0, 3.0, -jnp.inf], [jnp.inf, 1.0, -2.0]])


NOT_ARRAYS = (
    None, "text", 1.5, 3, [1.0, 2.0], {"x": None}, object(), jnp.float32, (2, 3),
    np.array(["text"]), np.array([None]),
)  # fmt: skip


def shape_mutations(shape):
    for axis in range(len(shape)):
        for change in (1, -1, 1 - shape[axis], -shape[axis]):
            if change:
                yield (*shape[:axis], shape[axis] + change, *shape[axis + 1 :])
    for drop in range(1, len(shape) + 1):
        yield shape[drop:]
    yield (1, *shape)
    yield (*shape, 1)
