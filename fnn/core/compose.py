"""Layers of layers: sublayers declared by name, and a body that is the mathematics."""

from __future__ import annotations

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
from fnn.core.names import folded
from fnn.core.notes import add_notes
from fnn.core.origins import Origin
from fnn.core.params import Constant
from fnn.core.reserved import NOTES
from fnn.core.shapes import as_struct, from_numpy, struct
from fnn.core.types import Key


def compose(*bodies: Callable, **layers: Layer | Callable) -> Callable[[Callable], Layer]:
    """A layer of layers: sublayers are declared here, by name, and the body is the mathematics.

    The body is called with `f` and the inputs. `f.name` is that sublayer, bound to its params,
    state and key for this call; calling it twice shares its weights. `f.name.params` are its
    params, and `f.name.params_for(x)` those for inputs like x, without a call. `f.key("noise")` is
    a key of the body's own, `f.train` the mode, and `f.note("balance", value)` passes a scalar to
    the training loop (see `fnn.notes`). Sublayers run under `jax.named_scope` of their names, so
    profiles and compiled programs speak of "blocks/attention/q".

    Raises ComposeError if a declared sublayer is not called, or if two calls of it need different
    params, and TransformError if one needs its key, or changes its state, inside a transform that
    the body opens.

    >>> import fnn, jax.numpy as jnp
    >>> @fnn.compose(up=fnn.dense(8), down=fnn.dense(3))
    ... def block(f, x):  # [..., 3]
    ...     return x + f.down(jax.nn.relu(f.up(x)))
    >>> params, _ = block.init(jax.random.key(0), (1, 3))
    >>> jax.tree.map(jnp.shape, params)
    {'down': {'bias': (3,), 'kernel': (8, 3)}, 'up': {'bias': (8,), 'kernel': (3, 8)}}
    """
    if bodies:
        raise errors.ComposeError(
            "sublayers, by name", "a body", "decorate it by @fnn.compose(), with the parentheses"
        )
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

        def run(call, xs):
            if not least <= len(xs) <= most:
                checks.wrong_arity(least, most, len(xs))
            return body(Scope(call), *xs)

        def with_output(*xs):
            with errors.within(name):  # in training mode: evaluation would leave out notes
                call = Call(children, {}, {}, jax.random.key(0), True, declared={})
                y = run(call, xs)
                return call.declarations(name), y

        def apply(params, state, *xs, key=None, train=False, **named):
            """(y, state) of this network at params, state and inputs; see `fnn.Layer`."""
            with errors.within(name):
                xs = jax.tree.map(from_numpy, by_position(inputs, xs, named))
                trees.check_names("params", params, children)
                trees.check_names("state", state, (*children, NOTES))
                if key is not None:
                    checks.key(key)
                call = Call(children, params, state, key, train)
                return run(call, xs), call.new_state(state)

        rebuild = Rebuild(lambda new: compose(**new)(body), apply)
        layer = Layer(name, traced(with_output, inputs), apply, tuple(children.items()), rebuild)
        return layer.with_origin(Origin(composed, (body, children), body=body))

    return build


def composed(body: Callable, layers: dict[str, Layer]) -> Layer:
    """The layer that `compose` makes of a body and its sublayers."""
    return compose(**layers)(body)


class Scope:
    """What a body sees as `f`: `f.<sublayer>`, `f.key(name)`, `f.note(name, value)`, `f.train`."""

    def __init__(self, call: Call):
        self._call = call
        self.train = call.train

    def __getattr__(self, name: str) -> Sublayer:
        if name not in self._call.layers:
            checks.unknown_name(name, self._call.layers)
        return Sublayer(self._call, name)

    def key(self, name: str) -> Key:
        """A key for the body's own randomness, folded from `name` and its call number."""
        return self._call.own_key(name)

    def note(self, name: str, value: Any) -> None:
        """Hand a scalar, such as an auxiliary loss, to the training loop; see `fnn.notes`."""
        self._call.note(name, value)


class Sublayer:
    """`f.name`: a sublayer bound to its params, state and key for one call of the body."""

    def __init__(self, call: Call, name: str):
        self._call, self._name = call, name

    @property
    def params(self) -> dict:
        """The sublayer's own params, raw: `f.embed.params["embedding"]`."""
        return self._call.params_and_state(self._name)[0]

    def params_for(self, *xs, **inputs) -> dict:
        """The sublayer's params for inputs like `xs`, of which only shape and dtype matter.

        Declares them as a call does, without computing: for params that the body itself uses.
        """
        layer = self._call.layers[self._name]
        if self._call.declared is not None:
            xs = tuple(map(as_struct, by_position(inputs_of(layer), xs, inputs)))
            with errors.at(self._name):
                self._call.declare(self._name, layer.specs(*xs), xs)
        return self.params

    def carry(self, *xs) -> Any:
        """The first carry of a recurrent cell."""
        carry = self._call.layers[self._name].carry
        if carry is None:
            checks.no_carry(self._name)
        return carry(self.params, *xs)

    def __call__(self, *xs, **inputs) -> Any:
        with errors.at(self._name), jax.named_scope(self._name):
            layer = self._call.layers[self._name]
            xs = by_position(inputs_of(layer), xs, inputs) if inputs else xs
            if self._call.declared is not None:
                return self._call.outline(self._name, xs)
            return self._call.apply(self._name, xs)


class Call:
    """One call of a body: what its sublayers run with, and what they leave behind.

    - `declared`: while specs are collected, the declarations by sublayer; None in a real call.
    """

    def __init__(self, layers, params, state, key, train, declared: dict | None = None):
        self.layers, self.train, self.declared = layers, train, declared
        self._params, self._key = params, key
        self._state = dict(state)  # by sublayer, as the calls leave it
        self._count: dict[str, int] = {}  # how often each name was called
        self._notes: dict[str, jax.Array] = {}  # by name, the sum of what was noted
        self._trace = _trace_state()

    # --- while specs are collected

    def outline(self, name: str, xs: tuple) -> Any:
        """The output of a sublayer, whose declarations are collected on the way."""
        declared, y = outline(self.layers[name], xs)
        self.declare(name, declared, xs)
        return y

    def declare(self, name: str, declared: tuple, xs: tuple) -> None:
        """Remember what a sublayer needs, the same at each of its calls."""
        assert self.declared is not None
        first = self.declared.setdefault(name, (*declared, jax.tree.map(struct, xs)))
        if arrays_of(first[:2]) != arrays_of(declared):
            checks.disagreement(arrays_of(first[:2]), first[2], arrays_of(declared), xs)

    def declarations(self, body: str) -> tuple[dict, dict]:
        """(params, state) of all sublayers, each of which must have been called."""
        assert self.declared is not None
        if missing := [name for name in self.layers if name not in self.declared]:
            checks.uncalled(missing, body)
        found = [(name, *self.declared[name][:2]) for name in self.layers]
        params = {name: own for name, own, _ in found if own}
        state = {name: own for name, _, own in found if own}
        if self._notes:
            zero = Constant(0.0)
            state[NOTES] = {k: Param((), zero, v.dtype, "note") for k, v in self._notes.items()}
        return params, state

    # --- in a real call

    def params_and_state(self, name: str) -> tuple[dict, dict]:
        """A sublayer's params and state; while specs are collected, zeros in their place."""
        if self.declared is None:
            return self._params.get(name, {}), self._state.get(name, {})
        if name not in self.declared:
            checks.unknown_params(name)
        return zeros_of(self.declared[name][:2])

    def apply(self, name: str, xs: tuple) -> Any:
        """The output of a sublayer; it may draw and change state only outside transforms."""
        params, before = self.params_and_state(name)
        if self._inside_transform():
            try:
                y, after = self.layers[name].apply(params, before, *xs, train=self.train)
            except errors.RandomKeyError as error:
                raise checks.key_in_transform(error) from None
            if not same_arrays(before, after):
                raise checks.state_in_transform()
            return y
        key = self._fold(name)
        y, after = self.layers[name].apply(params, before, *xs, key=key, train=self.train)
        again = self.train and self._count[name] > 0
        self._state[name] = add_notes(before, after) if again else after
        return y

    def own_key(self, name: str) -> Key:
        if self._inside_transform():
            raise checks.key_in_transform(f"f.key({name!r})")
        checks.need_key(self._key)
        return self._fold(f"{name}()")

    def note(self, name: str, value: Any) -> None:
        value = jnp.asarray(value)
        if value.shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
            raise errors.ShapeError(
                f"f.note({name!r}, a floating scalar)", errors.show(value), "sum it, or average it"
            )
        if self._inside_transform():
            raise checks.state_in_transform()
        value = value.astype(wide(value.dtype))
        self._notes[name] = self._notes[name] + value if name in self._notes else value

    def new_state(self, state: dict) -> dict:
        """The state after the call, under the names that it had before."""
        if self.train and (self._notes or NOTES in state):
            trees.check_names("notes in state", state.get(NOTES, {}), self._notes, self._notes)
            self._state[NOTES] = self._notes
        return {name: self._state[name] for name in state}

    def _fold(self, name: str) -> Any:
        """The key of this call of a name: folded from both; None where there is no key."""
        number = self._count[name] = self._count.get(name, -1) + 1
        if self._key is None:
            return None
        return folded(self._key, f"{name}#{number}")

    def _inside_transform(self) -> bool:
        return _trace_state() != self._trace


def _trace_state() -> Any:
    """The transforms that are open here, for comparison."""
    # Imported late: it takes as long to import as all of fnn.
    from jax.extend.core import get_opaque_trace_state

    return get_opaque_trace_state()
