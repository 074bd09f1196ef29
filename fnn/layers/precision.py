"""Mixed precision: a network computed in another dtype than that of its params."""

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp

from fnn.core import checks, errors
from fnn.core.declarations import Derived
from fnn.core.dtypes import is_floating
from fnn.core.layer import Layer, as_layer, inputs_of, outline, same_arrays, traced
from fnn.core.origins import builder
from fnn.core.reserved import FROZEN, map_under
from fnn.core.shapes import as_array, as_dtype
from fnn.core.types import Dtype, Tree
from fnn.core.wrapping import same_carry, wrap


@builder
def cast(
    layer: Layer | Callable,
    compute_dtype: Dtype,
    *,
    output_dtype: Dtype = None,
    param_dtype: Dtype = jnp.float32,
) -> Layer:
    """Mixed precision: params kept in one dtype, the layer computed in another.

        y = layer(params as compute_dtype, x as compute_dtype) as output_dtype

    - `compute_dtype`: of the computation, such as `jnp.bfloat16`. Floating inputs and all params,
      frozen ones too, are cast to it; integers and the rest of the state are not (statistics are
      float32 or wider anyway).
    - `output_dtype`: of y. None is the dtype of x (compute_dtype, if no input is floating).
    - `param_dtype`: params are drawn and kept in it, so that small updates are not rounded away.

    Gradients come back in `param_dtype`. Raises OptionError for a dtype that is not floating.

    >>> import jax, jax.numpy as jnp, fnn
    >>> net = cast(fnn.dense(3), jnp.bfloat16)
    >>> params, _ = net.init(jax.random.key(0), (1, 4))
    >>> params["kernel"].dtype, net(params, jnp.ones((2, 4))).dtype
    (dtype('float32'), dtype('float32'))
    """
    layer = as_layer(layer)
    compute_dtype = checks.floating("compute_dtype", compute_dtype)
    param_dtype = checks.floating("param_dtype", param_dtype)
    if output_dtype is not None:
        output_dtype = checks.floating("output_dtype", output_dtype)

    def finish(y, xs):
        came = [x.dtype for x in jax.tree.leaves(xs) if is_floating(x)]
        return as_dtype(y, output_dtype or (came[0] if came else compute_dtype))

    def apply(layer, params, state, *xs, key, train):
        with errors.within(layer.name):
            xs = jax.tree.map(as_array, xs)
        low = as_dtype((params, xs), compute_dtype)
        held = map_under(FROZEN, lambda tree: as_dtype(tree, compute_dtype), state)
        y, after = layer.apply(low[0], held, *low[1], key=key, train=train)
        return finish(y, xs), _as_before(state, held, after)

    def declare(layer, *xs):
        inside = layer.map(lambda path, inner: _lowered(inner, compute_dtype))
        (params, state), y = outline(inside, as_dtype(xs, compute_dtype))
        state = map_under(FROZEN, lambda specs: _declared_in(specs, param_dtype), state)
        return (_declared_in(params, param_dtype), state), finish(y, xs)

    return wrap(layer, apply, declare=declare, carry=layer.carry and same_carry)


def _as_before(state: Tree, held: Tree, after: Tree) -> Tree:
    """The state `after` a call, with the frozen params as they were before they were cast."""
    if same_arrays(held, after):
        return state
    return map_under(FROZEN, lambda new, old: old, after, state)


def _lowered(layer: Layer, dtype: Dtype) -> Layer:
    """A layer without floating inputs (an embedding), in the dtype its params are cast to."""

    def declare(*xs):
        declared, y = outline(layer, xs)
        if any(is_floating(x) for x in jax.tree.leaves(xs)):
            return declared, y
        return (_declared_in(declared[0], dtype), declared[1]), as_dtype(y, dtype)

    return layer if layer.children else replace(layer, specs=traced(declare, inputs_of(layer)))


def _declared_in(specs: Tree, dtype: Dtype) -> Tree:
    """The declarations with every floating dtype replaced."""

    def declared(node):
        if isinstance(node, Derived):
            return replace(node, specs=_declared_in(node.specs, dtype))
        return replace(node, dtype=dtype) if is_floating(node) else node

    return jax.tree.map(declared, specs)
