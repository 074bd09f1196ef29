"""The heart of fnn: a network is a pure function over a parameter tree.

    net.specs(*xs)                     -> (params_spec, state_spec)     declarations, no arrays
    net.init(key, *xs)                 -> (params, state)               nested dicts of arrays
    net.apply(params, state, *xs, key=None, train=False) -> (y, state)
    net(params, *xs, state=None)       -> y                             evaluation mode

A layer is these functions and a name. There are two ways to build one: `leaf`, from declarations
and mathematics, and `compose`, from other layers. A network is a layer.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax

from fnn.core import checks, errors, html, trees
from fnn.core.declarations import Derived, Param, arrays_of, zeros_of
from fnn.core.inputs import arity, by_position, signature
from fnn.core.origins import Origin, with_children
from fnn.core.params import draw
from fnn.core.plain import built, plain
from fnn.core.shapes import as_array, as_struct, is_traced_shape, struct

__all__ = ["Derived", "Layer", "Param", "leaf"]


@dataclass(frozen=True, eq=False, repr=False)
class Layer:
    """A pure function with declared parameters; compared and hashed by identity.

    - `name`: the kind of layer, such as "dense".
    - `specs(*xs) -> (params_spec, state_spec)`: the declarations for inputs like `xs`: trees of
      `fnn.Param` in place of arrays. Masks by kind and stacked optimizers take `specs(x)[0]`.
    - `apply(params, state, *xs, key=None, train=False) -> (y, state)`: the mathematics. It takes
      the state second, by position. Calling the layer takes it last, as `state=`, and returns y
      alone, in evaluation mode (there is no eval mode to set, or to forget). Under `jit`, `train`
      is static: `jax.jit(net.apply, static_argnames="train")`.
    - `children`, `rebuild`: the sublayers, (name, Layer) pairs, and the same layer over others.
    - `carry(params, x, key=None, train=False)`: the first carry of a recurrent cell, for one step's
      x, of which only shape and dtype matter; None for other layers.
    - `origin`: the call of the builder that made it, for `fnn.describe`; None if none did.

    Inputs are passed by position or by name, as in `rnn(params, x, lengths=lengths)`: the names are
    those of a leaf's `specs`, or of a body's arguments. To run a layer in another way, use
    `fnn.wrap`: rebuilding the layer would undo `dataclasses.replace(layer, apply=...)`.

    >>> import fnn, jax.numpy as jnp
    >>> net = fnn.dense(3)
    >>> params, state = net.init(jax.random.key(0), (1, 4))
    >>> net(params, jnp.ones((2, 4))).shape
    (2, 3)
    """

    name: str
    specs: Callable[..., tuple[Any, Any]]
    apply: Callable[..., tuple[Any, Any]]
    children: tuple[tuple[str, Layer], ...] = ()
    rebuild: Callable[[Mapping[str, Layer]], Layer] | None = None
    carry: Callable[..., Any] | None = None
    origin: Origin | None = None

    def init(self, key, *xs, **inputs) -> tuple[dict, dict]:
        """The first (params, state) for inputs like `xs`: arrays, ShapeDtypeStructs or shapes.

        No forward pass runs. `(2, 4)` is the shape of one float32 input; other tuples and dicts are
        trees of inputs. Values depend on `key` and on the names of the layers alone.
        """
        return declare_and_draw(self, key, xs, inputs)[1]

    def __call__(self, params, *xs, state=None, **inputs) -> Any:
        """The network as a plain function, in evaluation mode."""
        if "key" in inputs or "train" in inputs:
            checks.not_apply(self.name)
        return self.apply(params, {} if state is None else state, *xs, **inputs)[0]

    def __copy__(self) -> Layer:
        return self

    def __deepcopy__(self, memo) -> Layer:
        return self

    def __reduce_ex__(self, protocol):
        return built, (plain(self),)

    def fields(self) -> tuple:
        """What a builder decides."""
        return self.name, self.specs, self.apply, self.carry

    def with_origin(self, origin: Origin) -> Layer:
        return replace(self, origin=replace(origin, fields=self.fields()))

    def __repr__(self) -> str:
        inner = ", ".join(f"{name}={child!r}" for name, child in self.children)
        return f"{self.name}({inner})" if inner else self.name

    def _repr_html_(self) -> str:
        return html.of_layer(self)

    def map(self, fn: Callable[[str, Layer], Layer], path: str = "") -> Layer:
        """Rebuild the network bottom-up with `fn(path, layer)`; the root's path is ""."""
        below = {
            name: child.map(fn, f"{path}/{name}" if path else name) for name, child in self.children
        }
        new = {name: below[name] for name, child in self.children if below[name] is not child}
        return fn(path, with_children(self, new, path) if self.rebuild and new else self)


def declare_and_draw(
    layer: Layer, key: Any, xs: tuple, inputs: dict, spread: Callable | None = None
) -> tuple[tuple, tuple]:
    """The declarations of params and state, and their first values (`spread`: see `draw`)."""
    with errors.within(layer.name):
        checks.key(key)
        if any(map(is_traced_shape, xs)):
            checks.traced_shape()
        params, state = specs = layer.specs(*xs, **inputs)
        drawn = draw(key, {"params": params, "state": state}, spread)
    return specs, (drawn["params"], drawn["state"])


@dataclass(frozen=True)
class Rebuild:
    """How to build a layer over other sublayers, and the `apply` of the layer as it is."""

    fn: Callable[[Mapping[str, Layer]], Layer]
    apply: Callable

    def __call__(self, children: Mapping[str, Layer]) -> Layer:
        return self.fn(children)


@dataclass(frozen=True)
class Declarer:
    """What a layer built here has as `specs`.

    To declare a network is to trace it, since each layer's inputs are another layer's outputs. Each
    body is traced once, however deep the nesting, because every layer gives its declarations and
    its output together.

    - `declare(*xs) -> (params, state)`: the declarations, for shapes and dtypes `xs`.
    - `with_output(*xs) -> ((params, state), y)`: the same and the output, for traced arrays `xs`.
    - `inputs`: the names of the inputs.
    """

    declare: Callable[..., tuple[dict, dict]]
    with_output: Callable[..., tuple[tuple[Any, Any], Any]]
    inputs: inspect.Signature

    def __call__(self, *xs, **inputs) -> tuple[dict, dict]:
        return self.declare(*map(as_struct, by_position(self.inputs, xs, inputs)))


def inputs_of(layer: Layer) -> inspect.Signature:
    """The names of a layer's inputs; also for a layer with specs written by hand."""
    return layer.specs.inputs if isinstance(layer.specs, Declarer) else signature(layer.specs)


def traced(with_output: Callable, inputs: inspect.Signature) -> Declarer:
    """The specs of a layer that must be traced to be declared."""

    def declare(*xs):
        declared = None

        def trace(*xs):
            nonlocal declared  # declarations are not arrays, which are all that a trace can return
            declared = with_output(*xs)[0]

        jax.eval_shape(trace, *xs)
        assert declared is not None
        return declared

    return Declarer(declare, with_output, inputs)


def leaf(
    name: str,
    specs: Callable[..., tuple[dict, dict]],
    apply: Callable,
    carry: Callable[..., Any] | None = None,
) -> Layer:
    """A layer without sublayers, from its declarations and its mathematics.

    - `specs(*xs)`: the declarations, `(params, state)`, for the shapes and dtypes of the inputs; it
      raises errors about them. Its arguments name the inputs.
    - `apply(params, state, *xs, key, train) -> (y, state)`: called after the names, shapes and
      dtypes of params and state have been checked against the declarations.
    - `carry`: makes it a recurrent cell, whose first input is the carry; see `fnn.Layer`.

    >>> def scale():
    ...     def specs(x):
    ...         return {"scale": Param(x.shape[-1:], fnn.initializers.ones, x.dtype)}, {}
    ...
    ...     def apply(params, state, x, *, key, train):
    ...         return x * params["scale"], state
    ...
    ...     return leaf("scale", specs, apply)
    >>> import fnn
    >>> params, _ = scale().init(jax.random.key(0), (2, 3))
    >>> params
    {'scale': Array([1., 1., 1.], dtype=float32)}
    """
    inputs = signature(specs)
    least, most = arity(inputs)

    def declare(*xs):
        with errors.within(name):
            if not least <= len(xs) <= most:
                checks.wrong_arity(least, most, len(xs))
            declared = specs(*xs)
            if not (isinstance(declared, tuple) and len(declared) == 2):
                checks.not_a_pair("specs", "(params, state)", declared)
            return declared

    def with_output(*xs):
        declared = declare(*jax.tree.map(struct, xs))
        with errors.within(name):
            params, state = zeros_of(declared)
            xs = jax.tree.map(as_array, xs)
            # The mode does not change the shape of y, and evaluation is the shorter program.
            return declared, apply(params, state, *xs, key=jax.random.key(0), train=False)[0]

    def checked_apply(params, state, *xs, key=None, train=False, **named):
        """(y, state) of this layer at params, state and inputs; see `fnn.Layer`."""
        with errors.within(name):
            xs = jax.tree.map(as_array, by_position(inputs, xs, named))
            structs = jax.tree.map(struct, xs)
            params_spec, state_spec = declare(*structs)
            structs = structs[1:] if carry else structs
            trees.check_tree("params", params, params_spec, arrays_of(params_spec), structs)
            trees.check_tree("state", state, state_spec, arrays_of(state_spec), structs)
            if key is not None:
                checks.key(key)
            try:
                out = apply(params, state, *xs, key=key, train=train)
            except Exception as error:
                checks.automatic_axes(error, params, xs)
                raise
            if not (isinstance(out, tuple) and len(out) == 2):
                checks.not_a_pair("apply", "(y, state)", out)
            if out[1] is not state:
                want, mend = arrays_of(state_spec), "return from apply what specs declares"
                trees.check_tree("the new state", out[1], state_spec, want, xs, mend)
            return out

    layer = Layer(name, Declarer(declare, with_output, inputs), checked_apply, carry=carry)
    return layer.with_origin(Origin(leaf, (name, specs, apply, carry)))


def as_layer(fn: Any) -> Layer:
    """A layer unchanged; any other callable as a layer without parameters."""
    if isinstance(fn, Layer):
        return fn
    name = getattr(fn, "__name__", type(fn).__name__)
    if not callable(fn) or errors.is_builder(fn):
        got = f"the builder {name}" if callable(fn) else errors.show(fn)
        mend = "build it, as fnn.dense(10)"
        if not callable(fn):
            mend = "unpack it: serial(*layers)" if isinstance(fn, (list, tuple)) else mend
            mend = "pass the function itself, such as jax.nn.relu" if isinstance(fn, str) else mend
            mend = "declare it in a fnn.leaf, beside the others" if isinstance(fn, Param) else mend
        raise errors.InputError("a layer or a function", got, mend)

    inputs = signature(fn)

    def apply(params, state, *xs, key=None, train=False, **named):
        with errors.within(name):
            trees.check_names("params", params, ())
            trees.check_names("state", state, ())
            xs = by_position(inputs, xs, named)
        return fn(*xs), state

    def with_output(*xs):
        return ({}, {}), fn(*xs)

    layer = Layer(name, Declarer(lambda *xs: ({}, {}), with_output, inputs), apply)
    return layer.with_origin(Origin(as_layer, (fn,)))


def outline(layer: Layer, xs: tuple) -> tuple[tuple[dict, dict], Any]:
    """((params, state), y): a layer's declarations and its output, for traced arrays `xs`."""
    if isinstance(layer.specs, Declarer):
        return layer.specs.with_output(*xs)
    declared = layer.specs(*xs)  # written by hand
    return declared, layer.apply(*zeros_of(declared), *xs, key=jax.random.key(0), train=True)[0]


def same_arrays(before: Any, after: Any) -> bool:
    """Whether two trees hold the same array objects."""
    old, new = jax.tree.leaves(before), jax.tree.leaves(after)
    return len(old) == len(new) and all(a is b for a, b in zip(old, new, strict=True))
