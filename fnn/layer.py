"""The heart: a network is a pure function over a parameter tree.

    net.specs(*xs)                     -> (params_spec, state_spec)     declarations, no arrays
    net.init(key, *xs)                 -> (params, state)               nested dicts of arrays
    net.apply(params, state, *xs, key=None, train=False) -> (y, state)
    net(params, *xs, state=None)       -> y                             evaluation mode

A layer is these functions under a name. There are two ways to get one: `leaf` makes a layer of
declarations and mathematics, `compose` makes a layer of layers. A network is a layer.
"""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from keyword import iskeyword
from typing import Any

import jax
import jax.numpy as jnp

from fnn import checks, errors
from fnn.dtypes import wide
from fnn.initializing import Constant, Derived, Param, draw
from fnn.notes import NOTES, add_notes
from fnn.shapes import (
    arity,
    arrays_of,
    as_array,
    as_struct,
    by_position,
    from_numpy,
    is_traced_shape,
    signature,
    struct,
    zeros_of,
)

__all__ = ["Derived", "Layer", "Param", "Scope", "Sublayer", "compose", "leaf", "wrap"]


@dataclass(frozen=True, eq=False, repr=False)
class Layer:
    """A pure function with declared parameters; a value, compared and hashed by identity.

    - `name`: what kind of layer this is, as "dense".
    - `specs(*xs) -> (params_spec, state_spec)`: the declarations for inputs like `xs`.
    - `apply(params, state, *xs, key=None, train=False) -> (y, state)`: the mathematics. It takes
      the state second, by position; calling the layer takes it last, `state=`, and returns y
      alone, in evaluation mode. Under `jit`, `train` is static:
      `jax.jit(net.apply, static_argnames="train")`.
    - `children`, `rebuild`: its sublayers, (name, Layer) pairs, and the same layer over others.
    - `carry(params, x, key=None, train=False)`: a recurrent cell's first carry for one step's x,
      of which only shape and dtype matter; None for any other layer.

    Inputs go by position or by name, as `rnn(params, x, lengths=lengths)`: the names are those of a
    leaf's `specs`, or of a body's arguments. To run a layer in another way, `fnn.wrap` it:
    `dataclasses.replace(layer, apply=...)` would be undone where the layer is rebuilt.

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

    def init(self, key, *xs, **inputs) -> tuple[dict, dict]:
        """First (params, state) for inputs like `xs`: arrays, ShapeDtypeStructs or shapes.

        No forward pass is run. `(2, 4)` is the shape of one float32 input; other tuples and dicts
        are trees of inputs. Values depend on `key` and on the names of the layers alone.
        """
        return declare_and_draw(self, key, xs, inputs)[1]

    def __call__(self, params, *xs, state=None, **inputs) -> Any:
        """The network as a plain function, in evaluation mode."""
        if "key" in inputs or "train" in inputs:
            errors.not_apply(self.name)
        return self.apply(params, {} if state is None else state, *xs, **inputs)[0]

    def __repr__(self) -> str:
        inner = ", ".join(f"{name}={child!r}" for name, child in self.children)
        return f"{self.name}({inner})" if inner else self.name

    def map(self, fn: Callable[[str, Layer], Layer], path: str = "") -> Layer:
        """Rebuild bottom-up with `fn(path, layer)`; the root's path is ""."""
        below = {
            name: child.map(fn, f"{path}/{name}" if path else name) for name, child in self.children
        }
        layer = self
        if self.rebuild and any(below[name] is not child for name, child in self.children):
            if isinstance(self.rebuild, Rebuild) and self.rebuild.apply is not self.apply:
                with errors.at(path):
                    errors.rebuilt_by_hand(self.name)
            rebuilt = self.rebuild(below)
            layer = replace(rebuilt, name=self.name, carry=rebuilt.carry or self.carry)
        return fn(path, layer)


def declare_and_draw(layer: Layer, key: Any, xs: tuple, inputs: dict) -> tuple[tuple, tuple]:
    """The declarations of (params, state), and their first values."""
    with errors.within(layer.name):
        checks.key(key)
        if any(map(is_traced_shape, xs)):
            errors.traced_shape()
        params, state = specs = layer.specs(*xs, **inputs)
        drawn = draw(key, {"params": params, "state": state})
    return specs, (drawn["params"], drawn["state"])


@dataclass(frozen=True)
class Rebuild:
    """How to build a layer over other sublayers, and the `apply` that this leads to."""

    fn: Callable[[Mapping[str, Layer]], Layer]
    apply: Callable

    def __call__(self, children: Mapping[str, Layer]) -> Layer:
        return self.fn(children)


@dataclass(frozen=True)
class Specs:
    """A layer's declarations, `specs(*xs)`.

    Declaring a network means walking through it, since each layer's inputs are another's outputs.
    `outline` is one step of that walk: called while tracing, it gives `((params, state), y)`, so
    that a network traces each of its bodies once, however deep they are nested. `inputs` are the
    names of what goes in.
    """

    declare: Callable[..., tuple[dict, dict]]
    outline: Callable[..., tuple[tuple[Any, Any], Any]]
    inputs: inspect.Signature

    def __call__(self, *xs, **inputs) -> tuple[dict, dict]:
        return self.declare(*map(as_struct, by_position(self.inputs, xs, inputs)))


def inputs_of(layer: Layer) -> inspect.Signature:
    """The names of a layer's inputs; also of one with hand-made specs."""
    return layer.specs.inputs if isinstance(layer.specs, Specs) else signature(layer.specs)


def traced(outline: Callable[..., tuple[tuple[Any, Any], Any]], inputs: inspect.Signature) -> Specs:
    """Specs of a layer that must be walked through to be declared."""

    def declare(*xs):
        found = []
        jax.eval_shape(lambda *xs: found.append(outline(*xs)[0]), *xs)
        return found[0]

    return Specs(declare, outline, inputs)


def leaf(
    name: str,
    specs: Callable[..., tuple[dict, dict]],
    apply: Callable,
    carry: Callable[..., Any] | None = None,
) -> Layer:
    """A layer without sublayers, from its declarations and its mathematics.

    - `specs(*xs)`: the declarations, `(params, state)`, for inputs of which shape and dtype are
      known; it raises what is wrong with them. Its arguments name the inputs.
    - `apply(params, state, *xs, key, train) -> (y, state)`: run once the inputs, and the names,
      shapes and dtypes of params and state, have been held against the declarations.
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
                errors.wrong_arity(least, most, len(xs))
            declared = specs(*xs)
            if not (isinstance(declared, tuple) and len(declared) == 2):
                errors.not_a_pair("specs", "(params, state)", declared)
            return declared

    def outline(*xs):
        declared = declare(*jax.tree.map(struct, xs))
        with errors.within(name):
            params, state = zeros_of(declared)
            xs = jax.tree.map(as_array, xs)
            return declared, apply(params, state, *xs, key=jax.random.key(0), train=False)[0]

    def checked_apply(params, state, *xs, key=None, train=False, **named):
        """(y, state) of this layer at params, state and inputs; see `fnn.Layer`."""
        with errors.within(name):
            xs = jax.tree.map(as_array, by_position(inputs, xs, named))
            structs = jax.tree.map(struct, xs)
            params_spec, state_spec = declare(*structs)
            structs = structs[1:] if carry else structs
            errors.check_tree("params", params, params_spec, arrays_of(params_spec), structs)
            errors.check_tree("state", state, state_spec, arrays_of(state_spec), structs)
            if key is not None:
                checks.key(key)
            out = apply(params, state, *xs, key=key, train=train)
            if not (isinstance(out, tuple) and len(out) == 2):
                errors.not_a_pair("apply", "(y, state)", out)
            if out[1] is not state:
                errors.check_tree("the new state", out[1], state_spec, arrays_of(state_spec), xs)
            return out

    return Layer(name, Specs(declare, outline, inputs), checked_apply, carry=carry)


def as_layer(fn: Any) -> Layer:
    """A layer as it is; any other callable as a layer without parameters."""
    if isinstance(fn, Layer):
        return fn
    name = getattr(fn, "__name__", type(fn).__name__)
    if not callable(fn) or errors.is_builder(fn):
        got = f"the builder {name}" if callable(fn) else errors.show(fn)
        raise errors.InputError("a layer or a function", got, "build it, as fnn.dense(10)")

    inputs = signature(fn)

    def apply(params, state, *xs, key=None, train=False, **named):
        with errors.within(name):
            errors.check_names("params", params, ())
            errors.check_names("state", state, ())
            xs = by_position(inputs, xs, named)
        return fn(*xs), state

    return Layer(name, Specs(lambda *xs: ({}, {}), lambda *xs: (({}, {}), fn(*xs)), inputs), apply)


# --- composition


def compose(**layers: Layer | Callable) -> Callable[[Callable], Layer]:
    """A layer of layers: sublayers are declared here, by name, and the body is the mathematics.

    The body is called with `f` and the inputs. `f.name` is that sublayer, bound to its params,
    state and key for this call; calling it twice shares its weights; `f.name.params` are its
    params, and `f.name.params_for(x)` those for inputs like x, without a call; `f.key("noise")` is
    a key of the body's own, `f.train` the mode, and `f.note("balance", value)` hands a scalar to
    whoever trains (see `fnn.notes`).

    Raises ComposeError if a declared sublayer is not called, or if two calls of it need different
    params, and TransformError if one needs its key, or changes its state, inside a transform
    that the body opens.

    >>> import fnn, jax.numpy as jnp
    >>> @fnn.compose(up=fnn.dense(8), down=fnn.dense(3))
    ... def block(f, x):  # [..., 3]
    ...     return x + f.down(jax.nn.relu(f.up(x)))
    >>> params, _ = block.init(jax.random.key(0), (1, 3))
    >>> jax.tree.map(jnp.shape, params)
    {'down': {'bias': (3,), 'kernel': (8, 3)}, 'up': {'bias': (8,), 'kernel': (3, 8)}}
    """
    children: dict[str, Layer] = {}
    for name, layer in layers.items():
        reserved = name in ("key", "note", "train") or name.startswith("_") or iskeyword(name)
        if reserved or not name.isidentifier():
            raise errors.OptionError(
                "a name that `f.name` can have, other than key, note and train", name, "rename it"
            )
        with errors.at(name):
            children[name] = as_layer(layer)

    def build(body: Callable) -> Layer:
        name = getattr(body, "__name__", type(body).__name__)
        inputs = signature(body, skip=1)  # without f
        least, most = arity(inputs)

        def call(f, xs):
            if not least <= len(xs) <= most:
                errors.wrong_arity(least, most, len(xs))
            return body(f, *xs)

        def outline(*xs):
            declared: dict[str, Any] = {}
            with errors.within(name):
                f = Scope(children, {}, {}, jax.random.key(0), True, declared)
                y = call(f, xs)
                if missing := [child for child in children if child not in declared]:
                    errors.uncalled(missing, name)
            params = {child: declared[child][0] for child in children if declared[child][0]}
            state = {child: declared[child][1] for child in children if declared[child][1]}
            if f._notes:
                zero = Constant(0.0)
                state[NOTES] = {k: Param((), zero, v.dtype, "note") for k, v in f._notes.items()}
            return (params, state), y

        def apply(params, state, *xs, key=None, train=False, **named):
            """(y, state) of this network at params, state and inputs; see `fnn.Layer`."""
            with errors.within(name):
                xs = jax.tree.map(from_numpy, by_position(inputs, xs, named))
                errors.check_names("params", params, children)
                errors.check_names("state", state, (*children, NOTES))
                if key is not None:
                    checks.key(key)
                f = Scope(children, params, state, key, train)
                y = call(f, xs)
                if train and (f._notes or NOTES in state):
                    errors.check_names("notes in state", state.get(NOTES, {}), f._notes, f._notes)
                    f._state[NOTES] = f._notes
            return y, {name: f._state[name] for name in state}

        rebuild = Rebuild(lambda new: compose(**new)(body), apply)
        return Layer(name, traced(outline, inputs), apply, tuple(children.items()), rebuild)

    return build


class Scope:
    """What a body sees as `f`, for one call: `f.<sublayer>`, `f.key(name)` and `f.train`."""

    def __init__(self, layers, params, state, key, train, declared=None):
        self._layers, self._params, self._key = layers, params, key
        self._state = dict(state)  # by name, as the calls leave it
        self._calls: dict[str, int] = {}  # how often each name has been called
        self._called: set[str] = set()
        self._notes: dict[str, jax.Array] = {}  # by name, the sum of what was noted
        self._declared: Any = declared  # by name, while specs are collected; otherwise None
        self._trace = _trace_state()
        self.train = train

    def __getattr__(self, name: str) -> Sublayer:
        if name not in self._layers:
            errors.unknown_name(name, self._layers)
        return Sublayer(self, name)

    def key(self, name: str) -> jax.Array:
        """A key for the body's own randomness, folded from `name` and its call number."""
        if self._inside_transform():
            raise errors.key_in_transform(f"f.key({name!r})")
        checks.need_key(self._key)
        return self._fold(f"{name}()")

    def note(self, name: str, value: Any) -> None:
        """Hand a scalar, as an auxiliary loss, to whoever trains; see `fnn.notes`."""
        value = jnp.asarray(value)
        if value.shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
            raise errors.ShapeError(
                f"f.note({name!r}, a floating scalar)", errors.show(value), "sum it, or average it"
            )
        if self._inside_transform():
            raise errors.state_in_transform()
        value = value.astype(wide(value.dtype))
        self._notes[name] = self._notes[name] + value if name in self._notes else value

    def _declare(self, name: str, declared: tuple, xs: tuple) -> None:
        """Remember what a sublayer needs, the same at each of its calls."""
        first = self._declared.setdefault(name, (*declared, jax.tree.map(struct, xs)))
        if arrays_of(first[:2]) != arrays_of(declared):
            errors.disagreement(arrays_of(first[:2]), first[2], arrays_of(declared), xs)

    def _trees(self, name: str) -> tuple[dict, dict]:
        """A sublayer's params and state; while specs are collected, zeros in their place."""
        if self._declared is None:
            return self._params.get(name, {}), self._state.get(name, {})
        if name not in self._declared:
            errors.unknown_params(name)
        return zeros_of(self._declared[name][:2])

    def _fold(self, name: str):
        call = self._calls[name] = self._calls.get(name, -1) + 1
        return jax.random.fold_in(self._key, zlib.crc32(f"{name}#{call}".encode()))

    def _inside_transform(self) -> bool:
        return _trace_state() != self._trace


class Sublayer:
    """`f.name`: a sublayer bound to its params, state and key for one call of the body."""

    def __init__(self, scope: Scope, name: str):
        self._scope, self._name = scope, name

    @property
    def params(self) -> dict:
        """The sublayer's own params, raw: `f.embed.params["embedding"]`."""
        return self._scope._trees(self._name)[0]

    def params_for(self, *xs, **inputs) -> dict:
        """The sublayer's own params for inputs like `xs`, of which only shape and dtype matter.

        It declares them as a call does, and computes nothing: for params that the body uses itself.
        """
        f, name = self._scope, self._name
        if f._declared is not None:
            layer = f._layers[name]
            xs = tuple(map(as_struct, by_position(inputs_of(layer), xs, inputs)))
            with errors.at(name):
                f._declare(name, layer.specs(*xs), xs)
        return self.params

    def carry(self, *xs) -> Any:
        """The first carry of a recurrent cell."""
        carry = self._scope._layers[self._name].carry
        if carry is None:
            errors.no_carry(self._name)
        return carry(self.params, *xs)

    def __call__(self, *xs, **inputs) -> Any:
        f, name = self._scope, self._name
        layer, inside = f._layers[name], f._inside_transform()
        with errors.at(name):
            xs = by_position(inputs_of(layer), xs, inputs) if inputs else xs
            if f._declared is not None:
                declared, y = outline(layer, xs)
                f._declare(name, declared, xs)
                return y
            params, before = f._trees(name)
            key = None if inside or f._key is None else f._fold(name)
            try:
                y, after = layer.apply(params, before, *xs, key=key, train=f.train)
            except errors.RandomKeyError as error:
                raise errors.key_in_transform(error) if inside else error from None
            if inside and not same_arrays(before, after):
                raise errors.state_in_transform()
        if not inside:
            again = f.train and name in f._called
            f._state[name] = add_notes(before, after) if again else after
            f._called.add(name)
        return y


def wrap(
    layer: Layer | Callable,
    apply: Callable[..., tuple[Any, Any]],
    *,
    declare: Callable[..., tuple[tuple[Any, Any], Any]] | None = None,
    carry: Callable[..., Any] | None = None,
    name: str | None = None,
) -> Layer:
    """The layer, run in another way: the one way to change what a layer does by hand.

    - `apply(layer, params, state, *xs, key, train) -> (y, state)`: what to do instead of
      `layer.apply`. It gets the layer as it is when it runs, so that `swap`, `tap` and `map`, which
      rebuild a network over other sublayers, keep the wrapper.
    - `declare(layer, *xs) -> ((params, state), y)`: the declarations, and the output for arrays
      `xs` that are traced; needed where the wrapper has other params or state than the layer, whose
      own are `layer.specs(*xs)`. None: those, and the output that `apply` gives.
    - `carry(layer, params, x, key, train)`: of a cell; None is the layer's own, or no carry where
      `declare` makes it another layer.
    - `name`: what kind of layer it is; None keeps the layer's.

    >>> import fnn
    >>> def doubled(layer, params, state, x, *, key, train):
    ...     y, state = layer.apply(params, state, x, key=key, train=train)
    ...     return 2 * y, state
    >>> net = wrap(fnn.serial(fnn.dense(3), jnp.tanh), doubled)
    >>> params, _ = net.init(jax.random.key(0), (1, 4))
    >>> bool((net(params, jnp.ones((1, 4))) == 2 * fnn.serial(fnn.dense(3), jnp.tanh)(
    ...     params, jnp.ones((1, 4)))).all())
    True
    """
    with errors.within("wrap"):
        layer = as_layer(layer)
        checks.function("apply", apply, "layer, params, state and the inputs")
    own = None if declare is None else signature(declare, skip=1)
    inputs = inputs_of(layer) if own is None or "xs" in own.parameters else own
    least, most = arity(inputs)

    def check_arity(xs):
        if own is not None and not least <= len(xs) <= most:
            with errors.within(name or layer.name):
                errors.wrong_arity(least, most, len(xs))

    def declared(*xs):
        check_arity(xs)
        if declare is not None:
            return declare(layer, *xs)
        params, state = found = outline(layer, xs)[0]
        zeros = zeros_of(found)
        return (params, state), run(*zeros, *xs, key=jax.random.key(0), train=True)[0]

    def run(params, state, *xs, key=None, train=False, **named):
        """(y, state) of the wrapped layer; see `fnn.Layer`."""
        xs = by_position(inputs, xs, named)
        check_arity(xs)
        return apply(layer, params, state, *xs, key=key, train=train)

    def first(params, x, *, key=None, train=False):
        """The first carry of the wrapped cell, for an x of one step."""
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
    """The declaration of a wrapper that has the params, the state and the outputs of the layer."""
    return outline(layer, xs)


def same_carry(layer: Layer, params: Any, x: Any, **mode: Any) -> Any:
    """The carry of a wrapper that has the params of the cell within."""
    assert layer.carry is not None
    return layer.carry(params, x, **mode)


def outline(layer: Layer, xs: tuple) -> tuple[tuple[dict, dict], Any]:
    """((params, state), y) of a layer, while tracing; also of one with hand-made specs."""
    if isinstance(layer.specs, Specs):
        return layer.specs.outline(*xs)
    declared = layer.specs(*xs)
    return declared, layer.apply(*zeros_of(declared), *xs, key=jax.random.key(0), train=True)[0]


def _trace_state() -> Any:
    """Which transforms the program is inside of, to be compared."""
    # Imported late, since it takes as long as all of fnn.
    from jax.extend.core import get_opaque_trace_state

    return get_opaque_trace_state()


def same_arrays(before: Any, after: Any) -> bool:
    """Whether two trees hold the very same arrays."""
    old, new = jax.tree.leaves(before), jax.tree.leaves(after)
    return len(old) == len(new) and all(a is b for a, b in zip(old, new, strict=True))
