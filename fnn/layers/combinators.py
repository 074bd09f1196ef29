"""Layers made of layers by `compose`: in a row, side by side, around a shortcut."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from fnn.core import checks, names, trees
from fnn.core.compose import compose
from fnn.core.inputs import REQUIRED, signature
from fnn.core.layer import Layer, Rebuild, as_layer, inputs_of
from fnn.core.origins import builder


@builder
def serial(*layers: Layer | Callable, **named: Layer | Callable) -> Layer:
    """One layer after the other: y = layer_n(... layer_2(layer_1(*xs))).

    The first layer takes all inputs, every other the one value of the layer before it. Layers are
    named by kind and number from 1 (conv1, conv2, dense1), or by keyword; a plain function is
    named relu_1 and so on.

    Raises OptionError for two layers of one name.

    >>> import jax, jax.numpy as jnp, fnn
    >>> net = serial(fnn.dense(8), jax.nn.relu, fnn.dense(3))
    >>> params, _ = net.init(jax.random.key(0), (1, 4))
    >>> sorted(params)
    ['dense1', 'dense2']
    >>> net(params, jnp.ones((2, 4))).shape
    (2, 3)
    """
    children = numbered(layers, named)

    def serial(f, *xs):
        if len(xs) != 1 and not children:
            checks.wrong_arity(1, 1, len(xs))
        for name in children:
            xs = (getattr(f, name)(*xs),)
        return xs[0]

    return compose(**children)(_with_inputs_of(children, serial))


@builder
def parallel(*layers: Layer | Callable, **named: Layer | Callable) -> Layer:
    """Fan-out: y = {name: layer(*xs)}, every layer on the same inputs.

    Layers are named as in `serial`. To join the branches, add a function of the dict:
    `serial(parallel(a=..., b=...), lambda y: y["a"] + y["b"])`.

    Raises OptionError for two layers of one name.

    >>> import jax, jax.numpy as jnp, fnn
    >>> heads = parallel(policy=fnn.dense(4), value=fnn.dense(1))
    >>> params, _ = heads.init(jax.random.key(0), (1, 8))
    >>> jax.tree.map(jnp.shape, heads(params, jnp.ones((2, 8))))
    {'policy': (2, 4), 'value': (2, 1)}
    """
    children = numbered(layers, named)

    def parallel(f, *xs):
        return {name: getattr(f, name)(*xs) for name in children}

    return compose(**children)(_with_inputs_of(children, parallel))


@builder
def residual(layer: Layer | Callable, shortcut: Layer | Callable | None = None) -> Layer:
    """Add the input to the output: y = shortcut(x) + layer(x) (He et al., 2016).

    - `shortcut`: None adds x itself; where the shapes differ, pass a layer that gives the shape of
      `layer`'s output, such as `fnn.conv(64, (1, 1), strides=2)`.

    Further inputs go to both. Around a recurrent cell it is a cell: y = shortcut(x) + the cell's y.
    Raises ShapeError, and DtypeError, if the two cannot be added: nothing is broadcast.

    >>> import jax, jax.numpy as jnp, fnn
    >>> net = residual(fnn.serial(fnn.dense(8), jax.nn.relu, fnn.dense(4)))
    >>> params, _ = net.init(jax.random.key(0), (1, 4))
    >>> net(params, jnp.ones((2, 4))).shape
    (2, 4)
    """
    children = {"layer": layer} if shortcut is None else {"layer": layer, "shortcut": shortcut}
    cell = as_layer(layer).carry

    def add(f, y, x, *rest):
        old = x if shortcut is None else f.shortcut(x, *rest)
        source = "x" if shortcut is None else "shortcut(x)"
        mend = "give a shortcut that makes them alike, as shortcut=fnn.dense(features)"
        trees.alike("layer(x)", y, source, old, mend)
        return jax.tree.map(jnp.add, old, y)

    def residual_(f, *xs):
        if not xs:
            checks.wrong_arity(1, float("inf"), 0)
        return add(f, f.layer(*xs), *xs)

    def step(f, carry, x):
        carry, y = f.layer(carry, x)
        return carry, add(f, y, x)

    def first(params, x, **mode):
        """The first carry of the cell, for an x of one step."""
        assert cell is not None
        return cell(params.get("layer", {}), x, **mode)

    body = step if cell else _with_inputs_of(children, residual_)
    residual_.__name__ = step.__name__ = "residual"
    net = compose(**children)(body)
    rebuild = Rebuild(lambda new: residual(**new), net.apply)
    return replace(net, name="residual", carry=cell and first, rebuild=rebuild)


# --- what they share


def numbered(layers: tuple, named: Mapping) -> dict[str, Any]:
    """Layers by name; those without one are named by kind and number."""
    return names.numbered(map(_kind, layers), layers, named, "layer")


def _kind(layer: Layer | Callable) -> str:
    kind, mark = as_layer(layer).name, "" if isinstance(layer, Layer) else "_"
    return (kind.strip("<>_") or "layer") + mark  # a lambda's is <lambda>


def _with_inputs_of(children: Mapping[str, Any], body: Callable) -> Callable:
    """A body (f, *xs) whose inputs are named as those of its first layer, which checks them."""
    first = next(iter(children.values()), None)
    if first is not None:
        own, many = signature(body).parameters.values()
        named = inputs_of(as_layer(first)).parameters.values()
        free = [
            p.replace(default=REQUIRED if p.default is p.empty else p.default)
            for p in named
            if p.kind != p.VAR_POSITIONAL
        ]
        body.__signature__ = inspect.Signature([own, *free, many])
    return body
