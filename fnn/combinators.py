"""Layers made of layers: each a few lines over `compose`."""

from __future__ import annotations

from collections.abc import Callable

from fnn import errors
from fnn.layer import Layer, as_layer, compose


@errors.builder
def serial(*layers: Layer | Callable, **named: Layer | Callable) -> Layer:
    """One layer after the other: y = layer_n(... layer_2(layer_1(*xs))).

    The first layer takes all inputs, every other the one value of the layer before it. Layers are
    named by kind and number from 1 (conv1, conv2, dense1), or by keyword; a plain function is
    named relu_1, and does not count.

    Raises OptionError for two layers of one name.

    >>> import jax, jax.numpy as jnp, fnn
    >>> net = serial(fnn.dense(8), jax.nn.relu, fnn.dense(3))
    >>> params, _ = net.init(jax.random.key(0), (1, 4))
    >>> sorted(params)
    ['dense1', 'dense2']
    >>> net(params, jnp.ones((2, 4))).shape
    (2, 3)
    """
    counts: dict[str, int] = {}
    children: dict[str, Layer | Callable] = {}
    for layer in layers:
        kind, mark = as_layer(layer).name, "" if isinstance(layer, Layer) else "_"
        kind = (kind.strip("<>_") or "layer") + mark  # a lambda's is <lambda>
        counts[kind] = counts.get(kind, 0) + 1
        name = f"{kind}{counts[kind]}"
        if name in children or name in named:
            raise errors.OptionError("one layer of each name", f"two of {name}", "rename one")
        children[name] = layer

    def serial(f, *xs):
        if len(xs) != 1 and not children | named:
            errors.wrong_arity(1, 1, len(xs))
        for name in children | named:
            xs = (getattr(f, name)(*xs),)
        return xs[0]

    return compose(**children, **named)(serial)
