"""Where layers, transforms and schedules come from: the calls of the builders that made them.

A layer is made of closures, which cannot be read, compared or pickled. So a builder notes on what
it returns how it was called. That is enough to describe it, to pickle it and to build it again.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ParamSpec, TypeVar

import numpy as np

from fnn.core import checks, errors

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Origin:
    """The call that made something: `builder(*args, **options)`.

    - `body`: of a layer made by `compose`, the function under whose name the layer may stand.
    - `fields`: of the value that was made, to see whether they were replaced by hand since.
    - `function`: that was made, as `functools.wraps` and `jax.jit` copy its origin to others.
    """

    builder: Callable
    args: tuple = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    body: Callable | None = None
    fields: tuple = ()
    function: Callable | None = None

    def __str__(self) -> str:
        shown = [_shown(value) for value in self.args]
        shown += [f"{name}={_shown(value)}" for name, value in self.options.items()]
        return f"{self.builder.__name__}({', '.join(shown)})"

    def given(self) -> Iterator[tuple[str, Any]]:
        """The arguments by name, in the order of the call; one of `*layers` as layers[0]."""
        names = []
        for name, parameter in inspect.signature(self.builder).parameters.items():
            if parameter.kind == parameter.VAR_POSITIONAL:
                names += [f"{name}[{i}]" for i in range(len(self.args) - len(names))]
            names.append(name)
        yield from zip(names, self.args, strict=False)
        yield from self.options.items()


def _shown(value: Any) -> str:
    origin = origin_of(value)
    if origin is not None and not hasattr(value, "specs"):
        return str(origin)
    return value.__name__ if inspect.isfunction(value) else repr(value)


def builder(build: Callable[P, T]) -> Callable[P, T]:
    """Mark a function that builds layers, transforms or schedules: what it returns knows the call.

    So `fnn.describe`, `pickle` and checkpoints write a network of yours as the name of its builder
    and the options, however it is built inside. The function stands at the top of a module.

    >>> import fnn, jax
    >>> @builder
    ... def mlp(width, depth=2):
    ...     hidden = [layer for _ in range(depth) for layer in (fnn.dense(width), jax.nn.relu)]
    ...     return fnn.serial(*hidden, fnn.dense(1))
    >>> dict(mlp(16, depth=1).origin.given())
    {'width': 16, 'depth': 1}
    """
    inner = errors.named(build)

    @functools.wraps(build)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        origin = Origin(call, _kept(args), _kept(kwargs))  # before anybody changes them
        return marked(inner(*args, **kwargs), origin)

    vars(call)["_is_builder"] = True
    return call


def marked(made: Any, origin: Origin) -> Any:
    """What a builder made, with its origin; what was given to the builder stays as it is."""
    if any(made is one for one in (*origin.args, *origin.options.values())):
        return made
    if hasattr(type(made), "with_origin"):
        return made.with_origin(origin)
    if inspect.isfunction(made) and "<locals>" in made.__qualname__:
        vars(made)["origin"] = replace(origin, function=made)
    return made


def _kept(thing: Any) -> Any:
    """Arguments as they are now, though lists and arrays among them may be changed later."""
    if type(thing) in (tuple, list):
        return type(thing)(map(_kept, thing))
    if type(thing) is dict:
        return {name: _kept(one) for name, one in thing.items()}
    return thing.copy() if type(thing) is np.ndarray else thing


def origin_of(thing: Any) -> Origin | None:
    """The call that made a layer, a transform or a function; None for anything else."""
    origin = None if isinstance(thing, type) else getattr(thing, "origin", None)
    if not isinstance(origin, Origin):
        return None
    return origin if origin.function is None or origin.function is thing else None


def with_children(layer: Any, children: Mapping[str, Any], path: str = "") -> Any:
    """The layer over other sublayers, those of these names; `path` is where it stands."""
    if getattr(layer.rebuild, "apply", layer.apply) is not layer.apply:
        with errors.at(path):
            checks.rebuilt_by_hand(layer.name)
    rebuilt = layer.rebuild({**dict(layer.children), **children})
    rebuilt = replace(rebuilt, name=layer.name, carry=rebuilt.carry or layer.carry)
    before = origin_of(layer)
    if before is not None and before.builder is with_children:  # changed once more
        layer, earlier = before.args
        children = {**earlier, **children}
    return marked(rebuilt, Origin(with_children, (layer, children)))
