"""Augmentations made of augmentations: in a row, one at random, now and then."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from fnn.core import checks, errors, names, trees
from fnn.core.origins import builder
from fnn.core.shapes import natives
from fnn.core.types import Key, Scalar
from fnn.data.augment.contract import Augmentation, check_function, f32


@builder
def chain(*fs: Augmentation, **named: Augmentation) -> Augmentation:
    """One augmentation after the other: x = f_n(key_n, ... f_1(key_1, x)).

    Each one's key is folded from its name: its kind and number from 1 (flip1, rotate1, rotate2), as
    `fnn.serial` names layers, or a keyword. Adding, removing or moving a named one thus changes no
    draw of the others. Any function `(key, x) -> x` may be among them, as
    `lambda key, x: jnp.clip(x, 0, 1)`.

    Raises OptionError for two of one name.

    >>> from fnn.data import augment
    >>> f = augment.chain(augment.flip(), augment.rotate(15), noise=augment.noise(0.1))
    >>> keys, images = jax.random.split(jax.random.key(0), 8), jnp.ones((8, 28, 28, 1))
    >>> jax.jit(jax.vmap(f))(keys, images).shape
    (8, 28, 28, 1)
    """
    steps = _by_name(fs, named)

    def chain(key: Key, x: Any) -> Any:
        with errors.within("chain"):
            key = checks.typed_key(key)
        for name, f in steps.items():
            with errors.at(name):
                x = f(names.folded(key, name), x)
        return x

    return chain


@builder
def choose(
    *fs: Augmentation, weights: Sequence[Scalar] | jax.Array | None = None, **named: Augmentation
) -> Augmentation:
    """One of several augmentations, at random.

    Names and keys are as in `chain`. Under `vmap` all are computed, and one is taken for each
    example.

    - `weights`: proportional to the probabilities, one for each; None makes them equal. May be
      traced.

    Raises OptionError for no augmentation, or weights that do not fit; the function raises
    ShapeError if two return different shapes or dtypes.

    >>> from fnn.data import augment
    >>> f = augment.choose(augment.cutout(8), augment.erase(), weights=[0.75, 0.25])
    >>> f(jax.random.key(0), jnp.ones((28, 28, 1))).shape
    (28, 28, 1)
    """
    branches = _by_name(fs, named)
    if not branches:
        raise errors.OptionError("at least one augmentation", "none", "pass some")
    weights = _weights([1.0] * len(branches) if weights is None else weights, len(branches))

    def choose(key: Key, x: Any) -> Any:
        with errors.within("choose"):
            key, x = checks.typed_key(key), natives(x, "x")
            calls = [_call(name, f, key) for name, f in branches.items()]
            first, *others = [jax.eval_shape(call, x) for call in calls]
            for name, other in zip(list(branches)[1:], others, strict=True):
                _check_alike(name, other, next(iter(branches)), first)
        chances = jnp.stack([f32(w) for w in weights])
        index = jax.random.categorical(names.folded(key, "choose/which"), jnp.log(chances))
        return jax.lax.switch(index, calls, x)

    return choose


@builder
def with_probability(p: Scalar, f: Augmentation) -> Augmentation:
    """`f` with probability p, else x as it is.

    Under `vmap`, f is computed for every example, and taken for some.

    - `p`: in [0, 1]; a traced number is not checked.
    - `f`: keeps shape and dtype, else the function raises ShapeError.

    >>> from fnn.data import augment
    >>> f = augment.with_probability(0.5, augment.erase())
    >>> f(jax.random.key(0), jnp.ones((28, 28, 1))).shape
    (28, 28, 1)
    """
    checks.number("p", p, 0.0, 1.0)
    check_function("f", f)

    def with_probability(key: Key, x: Any) -> Any:
        with errors.within("with_probability"):
            key, x = checks.typed_key(key), natives(x, "x")
            call = _call(_kind(f), f, key)
            _check_alike(_kind(f), jax.eval_shape(call, x), "x", jax.eval_shape(lambda x: x, x))
        coin = jax.random.bernoulli(names.folded(key, "with_probability/coin"), f32(p))
        return jax.lax.cond(coin, call, lambda x: x, x)

    return with_probability


def _by_name(fs: tuple, named: dict[str, Augmentation]) -> dict[str, Augmentation]:
    for f in (*fs, *named.values()):
        check_function("each augmentation", f)
    return names.numbered(map(_kind, fs), fs, named, "augmentation")


def _kind(f: Augmentation) -> str:
    return getattr(f, "__name__", type(f).__name__).strip("<>_")


def _call(name: str, f: Augmentation, key: Key) -> Callable[[Any], Any]:
    def call(x):
        with errors.at(name):
            return f(names.folded(key, name), x)

    return call


def _check_alike(name: str, out: Any, other: str, wanted: Any) -> None:
    if not trees.is_alike(out, wanted):
        raise errors.ShapeError(
            f"{name} to return what {other} is, {errors.show(wanted)}",
            errors.show(out),
            "make shapes and dtypes equal",
        )


def _weights(weights: Any, n: int) -> list[Scalar]:
    array = isinstance(weights, (jax.Array, np.ndarray))
    if not array and not isinstance(weights, (tuple, list)) or array and weights.ndim != 1:
        mend = "pass one number for each"
        raise errors.OptionError(f"{n} weights", errors.show(weights), mend)
    weights = list(weights)
    if len(weights) != n:
        raise errors.OptionError(f"{n} weights", f"{len(weights)}", "pass one number for each")
    for w in weights:
        checks.number("weights", w, 0.0, float("inf"), open_high=True)
    if not any(isinstance(w, jax.core.Tracer) for w in weights):
        if not any(float(w) > 0 for w in weights):
            raise errors.OptionError("a weight above 0", "none", "make one larger")
    return weights
