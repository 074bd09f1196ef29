"""Layers of layers: the body is the mathematics, and its sublayers are declared by name."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from keyword import iskeyword
from typing import Any

import jax
import jax.numpy as jnp

from fnn.core import checks, errors, trees
from fnn.core.declarations import Param, arrays_of, zeros_of
from fnn.core.dtypes import wide
from fnn.core.inputs import arity, by_position, signature
from fnn.core.layer import Layer, Rebuild, as_layer, inputs_of, outline, same_arrays, traced
from fnn.core.notes import add_notes
from fnn.core.params import Constant
from fnn.core.reserved import NOTES
from fnn.core.shapes import as_struct, from_numpy, struct

__all__ = ["Scope", "Sublayer", "compose"]


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
                checks.wrong_arity(least, most, len(xs))
            return body(f, *xs)

        def outline(*xs):
            declared: dict[str, Any] = {}
            with errors.within(name):
                f = Scope(children, {}, {}, jax.random.key(0), True, declared)
                y = call(f, xs)
                if missing := [child for child in children if child not in declared]:
                    checks.uncalled(missing, name)
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
                trees.check_names("params", params, children)
                trees.check_names("state", state, (*children, NOTES))
                if key is not None:
                    checks.key(key)
                f = Scope(children, params, state, key, train)
                y = call(f, xs)
                if train and (f._notes or NOTES in state):
                    trees.check_names("notes in state", state.get(NOTES, {}), f._notes, f._notes)
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
            checks.unknown_name(name, self._layers)
        return Sublayer(self, name)

    def key(self, name: str) -> jax.Array:
        """A key for the body's own randomness, folded from `name` and its call number."""
        if self._inside_transform():
            raise checks.key_in_transform(f"f.key({name!r})")
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
            raise checks.state_in_transform()
        value = value.astype(wide(value.dtype))
        self._notes[name] = self._notes[name] + value if name in self._notes else value

    def _declare(self, name: str, declared: tuple, xs: tuple) -> None:
        """Remember what a sublayer needs, the same at each of its calls."""
        first = self._declared.setdefault(name, (*declared, jax.tree.map(struct, xs)))
        if arrays_of(first[:2]) != arrays_of(declared):
            checks.disagreement(arrays_of(first[:2]), first[2], arrays_of(declared), xs)

    def _trees(self, name: str) -> tuple[dict, dict]:
        """A sublayer's params and state; while specs are collected, zeros in their place."""
        if self._declared is None:
            return self._params.get(name, {}), self._state.get(name, {})
        if name not in self._declared:
            checks.unknown_params(name)
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
            checks.no_carry(self._name)
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
                raise checks.key_in_transform(error) if inside else error from None
            if inside and not same_arrays(before, after):
                raise checks.state_in_transform()
        if not inside:
            again = f.train and name in f._called
            f._state[name] = add_notes(before, after) if again else after
            f._called.add(name)
        return y


def _trace_state() -> Any:
    """Which transforms the program is inside of, to be compared."""
    # Imported late, since it takes as long as all of fnn.
    from jax.extend.core import get_opaque_trace_state

    return get_opaque_trace_state()
