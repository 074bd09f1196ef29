"""What differs between two networks."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from fnn.core import errors
from fnn.core.layer import Layer, as_layer
from fnn.core.origins import Origin, origin_of, with_children
from fnn.core.plain import argument_names, is_function, place_of, plain
from fnn.description.writer import encoded


class Difference(NamedTuple):
    """One difference between two networks: what each has at `path`; None is nothing.

    The path is that of a layer, followed by a dot and the name of an option, if that differs:
    "blocks/attention.heads".
    """

    path: str
    a: Any
    b: Any

    def __str__(self) -> str:
        return f"{self.path or '(network)'}: {_shown(self.a)} -> {_shown(self.b)}"


def diff(a: Layer, b: Layer) -> list[Difference]:
    """How two networks differ: in their layers by name, and in the options of each.

    Equal networks give an empty list. Functions without a name, such as lambdas, are equal if they
    are the same code. What follows from an option that differs is not told again.

    >>> import fnn, jax
    >>> a = fnn.serial(fnn.dense(8), jax.nn.relu, fnn.dense(3))
    >>> b = fnn.serial(fnn.dense(16), jax.nn.relu, fnn.dense(3), fnn.dropout(0.1))
    >>> print(*diff(a, b), sep="\\n")
    dense1.features: 8 -> 16
    dropout1: None -> dropout
    """
    with errors.within("diff"):
        found = _layers(as_layer(a), as_layer(b), "")
    return list({(one.path, _shown(one.a), _shown(one.b)): one for one in found}.values())


def _layers(a: Layer, b: Layer, path: str) -> Iterator[Difference]:
    if _same(a, b):
        return
    call_a, call_b = _call(a), _call(b)
    alike = call_a and call_b and call_a.builder is call_b.builder
    if not alike and (a.name != b.name or not (a.children and b.children)):
        yield Difference(path, a, b)
        return
    below_a, below_b = dict(a.children), dict(b.children)
    if call_a and call_b and alike:
        own = list(_options(_own(call_a, a), _own(call_b, b), path))
        yield from own
        if own:  # sublayers that the builder made follow from its options
            below_a, below_b = _given(call_a, below_a), _given(call_b, below_b)
    for name in dict.fromkeys([*below_a, *below_b]):
        one, other = below_a.get(name), below_b.get(name)
        below = f"{path}/{name}".lstrip("/")
        if one is None or other is None:
            yield Difference(below, one, other)
        else:
            yield from _layers(one, other, below)


def _call(layer: Layer) -> Origin | None:
    """The call that made a layer; of one over other sublayers, that of the layer before."""
    origin = origin_of(layer)
    while origin is not None and origin.builder is with_children:
        origin = origin_of(origin.args[0])
    return origin


def _own(call: Origin, layer: Layer) -> dict[str, Any]:
    """The options of a call by name, without the sublayers."""
    names = argument_names(call, dict(layer.children))
    given = {
        option: value
        for (option, value), name in zip(call.given(), names, strict=True)
        if name == option and not _holds_layers(value) or not name
    }
    parameters = inspect.signature(call.builder).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty} | given


def _holds_layers(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(one, Layer) for one in value.values())


def _given(call: Origin, children: dict[str, Layer]) -> dict[str, Layer]:
    """The sublayers that were given to the builder."""
    names = argument_names(call, children)
    return {name: child for name, child in children.items() if name in names}


def _options(a: dict[str, Any], b: dict[str, Any], path: str) -> Iterator[Difference]:
    for name in dict.fromkeys([*a, *b]):
        one, other = a.get(name), b.get(name)
        if isinstance(one, Layer) and isinstance(other, Layer):  # what a wrapper runs
            yield from _layers(one, other, path)
        elif not _same(one, other):
            yield Difference(f"{path}.{name}".lstrip("."), one, other)


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    try:
        return encoded(plain(a), "") == encoded(plain(b), "")
    except errors.InputError:
        return getattr(a, "__code__", a) is getattr(b, "__code__", b)


def _shown(value: Any) -> str:
    if isinstance(value, (np.ndarray, jax.Array)):
        return errors.show(value)
    if not is_function(value):
        return repr(value)
    code = getattr(value, "__code__", None)
    return ".".join(place_of(value)) + (f" in line {code.co_firstlineno}" if code else "")
