"""Layers run in another way: the public `wrap`, and what combinators share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from fnn.core import checks, errors
from fnn.core.declarations import zeros_of
from fnn.core.inputs import arity, by_position, signature
from fnn.core.layer import Layer, Rebuild, as_layer, inputs_of, outline, traced
from fnn.core.origins import builder


@builder
def wrap(
    layer: Layer | Callable,
    apply: Callable[..., tuple[Any, Any]],
    *,
    declare: Callable[..., tuple[tuple[Any, Any], Any]] | None = None,
    carry: Callable[..., Any] | None = None,
    name: str | None = None,
) -> Layer:
    """The layer, run in another way: the one way to change by hand what a layer does.

    - `apply(layer, params, state, *xs, key, train) -> (y, state)`: replaces `layer.apply`. It
      receives the current layer, so the wrapper survives `swap`, `tap` and `map`, which rebuild a
      network over other sublayers.
    - `declare(layer, *xs) -> ((params, state), y)`: the declarations, and the output for traced
      arrays `xs`; needed if the wrapper's params or state differ from the layer's own,
      `layer.specs(*xs)`. None: those of the layer, and the output of `apply`.
    - `carry(layer, params, x, key, train)`: the first carry of a cell; None keeps the layer's, or
      means no carry if `declare` is given.
    - `name`: the kind of layer; None keeps the layer's.

    >>> import fnn, jax.numpy as jnp
    >>> def doubled(layer, params, state, x, *, key, train):
    ...     y, state = layer.apply(params, state, x, key=key, train=train)
    ...     return 2 * y, state
    >>> net = wrap(fnn.serial(fnn.dense(3), jnp.tanh), doubled)
    >>> params, _ = net.init(jax.random.key(0), (1, 4))
    >>> bool((net(params, jnp.ones((1, 4))) == 2 * fnn.serial(fnn.dense(3), jnp.tanh)(
    ...     params, jnp.ones((1, 4)))).all())
    True
    """
    layer = as_layer(layer)
    checks.function("apply", apply, "layer, params, state and the inputs")
    own = inputs_of(layer) if declare is None else signature(declare, skip=1)
    named_here = declare is not None and "xs" not in own.parameters
    inputs = own if named_here else inputs_of(layer)
    least, most = arity(inputs)

    def check_arity(xs):
        if named_here and not least <= len(xs) <= most:
            with errors.within(name or layer.name):
                checks.wrong_arity(least, most, len(xs))

    def declared(*xs):
        check_arity(xs)
        if declare is not None:
            return declare(layer, *xs)
        params, state = found = outline(layer, xs)[0]
        zeros = zeros_of(found)
        return (params, state), run(*zeros, *xs, key=jax.random.key(0), train=True)[0]

    def run(params, state, *xs, key=None, train=False, **named):
        """(y, state) of the wrapped layer; see `fnn.Layer`."""
        with errors.within(name or layer.name):
            xs = by_position(inputs, xs, named)
        check_arity(xs)
        try:
            return apply(layer, params, state, *xs, key=key, train=train)
        except Exception as error:
            with errors.within(name or layer.name):
                checks.automatic_axes(error, params, xs)
            raise

    def first(params, x, *, key=None, train=False):
        """The first carry of the wrapped cell, for one step's x."""
        assert carry is not None
        return carry(layer, params, x, key=key, train=train)

    def again(new):
        assert layer.rebuild is not None
        return wrap(layer.rebuild(new), apply, declare=declare, carry=carry, name=name)

    return Layer(
        name or layer.name,
        traced(declared, inputs),
        run,
        layer.children,
        Rebuild(again, run) if layer.rebuild else None,
        first if carry else None if declare else layer.carry,
    )


def same(layer: Layer, *xs) -> tuple[tuple[Any, Any], Any]:
    """The `declare` of a wrapper with the params, the state and the outputs of the layer."""
    return outline(layer, xs)


def same_carry(layer: Layer, params: Any, x: Any, **mode: Any) -> Any:
    """The `carry` of a wrapper with the params of the cell."""
    assert layer.carry is not None
    return layer.carry(params, x, **mode)
