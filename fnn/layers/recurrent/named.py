"""Recurrent layers by the name of their cell, and in both directions at once."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax.numpy as jnp

from fnn.core import checks, errors, trees
from fnn.core.compose import compose
from fnn.core.layer import Layer
from fnn.core.origins import builder
from fnn.core.types import Scalar
from fnn.layers.dropout import dropout as dropout_layer
from fnn.layers.recurrent import cells
from fnn.layers.recurrent.cells.combinators import check_parts
from fnn.layers.recurrent.rnn import RnnOptions, along_time, rnn


@builder
def bidirectional(
    forward: Layer,
    backward: Layer | None = None,
    merge: str | Callable[[Any, Any], Any] = "concat",
    *,
    return_sequence: bool = True,
    return_carry: bool = False,
    **options: Any,
) -> Layer:
    """Two cells along time, one from the first step, one from the last, and their y's merged.

    [..., T, C] -> [..., T, 2 H], called like `fnn.rnn`: `net(params, x, mask, carry, resets,
    lengths)`. Held by the mask, the second cell starts at the last real step, so each sequence of a
    padded batch is read as if it were alone (Schuster & Paliwal, 1997).

    - `forward`, `backward`: cells; None is another one like `forward`.
    - `merge`: `"concat"` (last axis), `"sum"`, `"mean"`, `"mul"`, or a function of both y's.
    - `return_sequence`, `return_carry`: as in `fnn.rnn`; a single y is that of each cell's final
      step, and the carry is a dict of `forward` and `backward`.
    - `options`: other options of `fnn.rnn`.

    Params: `forward`, `backward`, as the cells'. Raises as `fnn.rnn`.

    >>> import jax, jax.numpy as jnp, fnn
    >>> net = fnn.bidirectional(fnn.cells.gru(3))
    >>> params, _ = net.init(jax.random.key(0), (1, 5, 4))
    >>> net(params, jnp.ones((2, 5, 4))).shape
    (2, 5, 6)
    """
    if not callable(merge):
        checks.choice("merge", merge, tuple(_MERGES))
    join = merge if callable(merge) else _MERGES[merge]
    options |= {"return_sequence": return_sequence, "return_carry": True}
    backward = forward if backward is None else backward

    @compose(
        forward=rnn(forward, **options, reverse=False),
        backward=rnn(backward, **options, reverse=True),
    )
    def bidirectional(f, x, mask=None, carry=None, resets=None, lengths=None):
        starts = {"forward": None, "backward": None} if carry is None else carry
        check_parts(starts, ("forward", "backward"))
        y1, end1 = f.forward(x, mask, starts["forward"], resets, lengths)
        y2, end2 = f.backward(x, mask, starts["backward"], resets, lengths)
        if merge in ("sum", "mean", "mul") and not trees.is_alike(y1, y2):
            raise errors.ShapeError(
                "two cells whose y have one shape and dtype",
                f"{errors.show(y1)} and {errors.show(y2)}",
                'give both the same features, or merge="concat"',
            )
        y = join(y1, y2)
        return (y, {"forward": end1, "backward": end2}) if return_carry else y

    return bidirectional


_MERGES: dict[str, Callable[[Any, Any], Any]] = {
    "concat": lambda a, b: jnp.concatenate([a, b], axis=-1),
    "sum": lambda a, b: a + b,
    "mean": lambda a, b: (a + b) / 2,
    "mul": lambda a, b: a * b,
}


@builder
def lstm(
    features: int,
    *,
    layers: int = 1,
    dropout: Scalar = 0.0,
    bidirectional: bool = False,
    return_sequence: bool = True,
    return_carry: bool = False,
    **options: Any,
) -> Layer:
    """Layers of `fnn.cells.lstm` along time: [..., T, C] -> [..., T, features].

    Called like `fnn.rnn`: `net(params, x, mask, carry, resets, lengths)`.

    - `features`: of each layer (a bidirectional one gives twice as many).
    - `layers`: how many, each on the whole sequence of the one below.
    - `dropout`: the rate of the dropout between layers.
    - `bidirectional`: every layer is a `fnn.bidirectional`.
    - `return_sequence`, `return_carry`: as in `fnn.rnn`, for the last layer.
    - `options`: all others of `fnn.cells.lstm` and of `fnn.rnn`.

    Params and carry are those of the cell; with several layers, a dict by `lstm1`, `lstm2` ...
    Raises as `fnn.cells.lstm` and `fnn.rnn`.

    >>> import jax, jax.numpy as jnp, fnn
    >>> net = fnn.lstm(3, layers=2, return_sequence=False)
    >>> params, _ = net.init(jax.random.key(0), (1, 5, 4))
    >>> net(params, jnp.ones((2, 5, 4))).shape, sorted(params)
    ((2, 3), ['lstm1', 'lstm2'])
    """
    shared = layers, dropout, bidirectional, return_sequence, return_carry
    return _layers("lstm", cells.lstm, features, *shared, options)


@builder
def gru(
    features: int,
    *,
    layers: int = 1,
    dropout: Scalar = 0.0,
    bidirectional: bool = False,
    return_sequence: bool = True,
    return_carry: bool = False,
    **options: Any,
) -> Layer:
    """Layers of `fnn.cells.gru` along time: [..., T, C] -> [..., T, features].

    As `fnn.lstm`, with the names `gru1`, `gru2` ... and the options of `fnn.cells.gru`.

    >>> import jax, jax.numpy as jnp, fnn
    >>> net = fnn.gru(3)
    >>> params, _ = net.init(jax.random.key(0), (1, 5, 4))
    >>> net(params, jnp.ones((2, 5, 4)), lengths=jnp.array([5, 2])).shape
    (2, 5, 3)
    """
    shared = layers, dropout, bidirectional, return_sequence, return_carry
    return _layers("gru", cells.gru, features, *shared, options)


@builder
def simple_rnn(
    features: int,
    *,
    layers: int = 1,
    dropout: Scalar = 0.0,
    bidirectional: bool = False,
    return_sequence: bool = True,
    return_carry: bool = False,
    **options: Any,
) -> Layer:
    """Layers of `fnn.cells.simple_rnn` along time: [..., T, C] -> [..., T, features].

    As `fnn.lstm`, with the names `simple_rnn1`, `simple_rnn2` ... and the options of
    `fnn.cells.simple_rnn`.

    >>> import jax, jax.numpy as jnp, fnn
    >>> net = fnn.simple_rnn(3, activation=jax.nn.relu)
    >>> params, _ = net.init(jax.random.key(0), (1, 5, 4))
    >>> net(params, jnp.ones((2, 5, 4))).shape
    (2, 5, 3)
    """
    shared = layers, dropout, bidirectional, return_sequence, return_carry
    return _layers("simple_rnn", cells.simple_rnn, features, *shared, options)


_OF_RNN = ("reverse", "stateful", "checkpoint_every", "truncate", "unroll")


def _layers(
    name: str,
    build: Callable,
    features: int,
    layers: int,
    dropout: Scalar,
    both: bool,
    return_sequence: bool,
    return_carry: bool,
    options: dict,
) -> Layer:
    count = checks.count("layers", layers)
    drop = dropout_layer(dropout)
    along = {option: options.pop(option) for option in _OF_RNN if option in options}
    if both and along.pop("reverse", False):
        raise errors.OptionError("reverse=False with bidirectional", "reverse=True", "leave it out")

    def one(last: bool) -> Layer:
        cell = build(features, **options)
        sequence = return_sequence or not last
        outputs = {"return_sequence": sequence, "return_carry": return_carry}
        if both:
            return replace(bidirectional(cell, **outputs, **along), name=name)
        return along_time(name, cell, RnnOptions(**outputs, **along))

    if count == 1:
        return one(last=True)
    names = [f"{name}{i + 1}" for i in range(count)]
    children = {own: one(last=own == names[-1]) for own in names}

    @compose(**children, dropout=drop)
    def layered(f, x, mask=None, carry=None, resets=None, lengths=None):
        starts = dict.fromkeys(names) if carry is None else carry
        check_parts(starts, names)
        ends = {}
        for own in names:
            x = f.dropout(x) if own != names[0] else x
            x = getattr(f, own)(x, mask, starts[own], resets, lengths)
            if return_carry:
                x, ends[own] = x
        return (x, ends) if return_carry else x

    return replace(layered, name=name)
