"""The inputs of a layer: how many, and their names."""

import inspect
from collections.abc import Callable
from typing import Any

from fnn.core import checks

REQUIRED: Any = type("Required", (), {"__repr__": lambda self: "required"})()
"""The default of an input whose absence is reported elsewhere."""


def signature(fn: Callable, skip: int = 0) -> inspect.Signature:
    """The inputs of a function after the first `skip`; any number if its signature is unknown.

    >>> signature(lambda f, x, mask=None: x, skip=1)
    <Signature (x, mask=None)>
    """
    try:
        found = inspect.signature(fn).parameters.values()
    except ValueError:
        found = inspect.signature(lambda *xs: None).parameters.values()
    either, many = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.VAR_POSITIONAL
    plain = [p for p in found if p.kind in (inspect.Parameter.POSITIONAL_ONLY, either, many)]
    inputs = [p if p.kind == many else p.replace(kind=either) for p in plain]
    return inspect.Signature(inputs[skip:])


def arity(inputs: inspect.Signature) -> tuple[int, float]:
    """The least and the greatest number of inputs."""
    parameters = inputs.parameters.values()
    plain = [p for p in parameters if p.kind != p.VAR_POSITIONAL]
    many = len(plain) < len(parameters)
    return sum(p.default is p.empty for p in plain), float("inf") if many else len(plain)


def by_position(inputs: inspect.Signature, xs: tuple, named: dict[str, Any]) -> tuple:
    """All inputs by position, with defaults for those left out in between."""
    if not named:
        return xs
    plain = [p for p in inputs.parameters.values() if p.kind != p.VAR_POSITIONAL]
    known = [p.name for p in plain]
    for name in named:
        if name not in known:
            checks.unknown_input(name, known)
        if name in known[: len(xs)]:
            checks.input_twice(name)
    values = list(xs)
    for p in plain[len(xs) : 1 + max(map(known.index, named))]:
        if p.name not in named and p.default in (p.empty, REQUIRED):
            checks.missing_input(p.name)
        values.append(named.get(p.name, p.default))
    return tuple(values)
