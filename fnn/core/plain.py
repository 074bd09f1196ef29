"""Layers and transforms as plain data: the calls that build them, and functions by their names."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, NoReturn

from fnn.core import checks, errors
from fnn.core.origins import Origin, origin_of, with_children


def plain(thing: Any, path: str = "") -> Any:
    """A layer, transform or option, with an `Origin` in place of everything that was built.

    What is left is data, and functions that can be imported. Raises InputError for others.
    """
    origin = origin_of(thing)
    if origin is not None:
        return _call(thing, origin, path)
    if isinstance(thing, tuple) and hasattr(thing, "_fields"):
        return Origin(type(thing), tuple(plain(one, path) for one in thing))
    if isinstance(thing, (tuple, list)):
        return type(thing)(plain(one, path) for one in thing)
    if isinstance(thing, dict):
        return {name: plain(one, f"{path}/{name}".lstrip("/")) for name, one in thing.items()}
    if isinstance(thing, functools.partial):
        args = plain((thing.func, *thing.args), path)
        return Origin(functools.partial, args, plain(thing.keywords, path))
    if is_dataclass(thing) and not isinstance(thing, type):
        if hasattr(thing, "specs"):
            refuse(thing, path)  # a layer without origin
        own = {f.name: getattr(thing, f.name) for f in fields(thing) if f.init}
        return Origin(type(thing), (), {name: plain(one, path) for name, one in own.items()})
    return named(thing, path) if is_function(thing) else thing


def named(fn: Any, path: str) -> Origin:
    """A function by its name, as pickle cannot write those that JAX has transformed."""
    if found_at(place_of(fn)) is not fn:
        refuse(fn, path)
    return Origin(imported, place_of(fn))


def built(thing: Any) -> Any:
    """What `plain` was made of, built again."""
    if isinstance(thing, Origin):
        options = {name: built(one) for name, one in thing.options.items()}
        return thing.builder(*map(built, thing.args), **options)
    if isinstance(thing, (tuple, list)):
        return type(thing)(map(built, thing))
    if isinstance(thing, dict):
        return {name: built(one) for name, one in thing.items()}
    return thing


def imported(module: str, name: str) -> Any:
    """What stands under a name in a module."""
    return functools.reduce(getattr, name.split("."), importlib.import_module(module))


def is_function(thing: Any) -> bool:
    return callable(thing) and not isinstance(thing, type) and hasattr(thing, "__name__")


def place_of(fn: Any) -> tuple[str, str]:
    """The module and the name under which a function was defined."""
    name = getattr(fn, "__qualname__", fn.__name__)
    return getattr(fn, "__module__", None) or type(fn).__module__, name


def found_at(place: tuple[str, str]) -> Any:
    """What stands at a place in the modules imported so far; None if nothing does."""
    found = sys.modules.get(place[0])
    for part in place[1].split("."):
        found = getattr(found, part, None)
    return found


def _call(thing: Any, origin: Origin, path: str) -> Origin:
    """The origin of something, its arguments plain as well."""
    now = thing.fields() if hasattr(thing, "fields") else origin.fields
    if any(a is not b for a, b in zip(origin.fields, now, strict=False)):
        with errors.at(path):
            checks.replaced_by_hand(getattr(thing, "name", repr(thing)))
    named(origin.builder, path)
    children = dict(getattr(thing, "children", ()))
    if origin.body is not None and found_at(place_of(origin.body)) is not origin.body:
        return _composed(origin, children, path)
    names = argument_names(origin, children)
    given = zip((*origin.args, *origin.options.values()), names, strict=True)
    values = [plain(one, f"{path}/{name}".strip("/")) for one, name in given]
    args = tuple(values[: len(origin.args)])
    return Origin(origin.builder, args, dict(zip(origin.options, values[len(args) :], strict=True)))


def argument_names(origin: Origin, children: Mapping[str, Any]) -> list[str]:
    """Where each argument of a call stands: under the name of a sublayer, else of the option."""
    given = list(origin.given())
    kinds = {p.kind for p in inspect.signature(origin.builder).parameters.values()}
    if inspect.Parameter.VAR_POSITIONAL in kinds and len(given) == len(children):
        return list(children)  # functions among them have become layers
    by_identity = {id(child): name for name, child in children.items()}
    return [by_identity.get(id(one), "" if hasattr(one, "specs") else name) for name, one in given]


def _composed(origin: Origin, children: Mapping[str, Any], path: str) -> Origin:
    """A layer made by `compose`, by the name of its body, under which the layer stands."""
    body: Any = origin.body
    stands = found_at(place_of(body))
    known = origin_of(stands)
    if known is None or known.body is not body:
        refuse(body, path)
    base = Origin(imported, place_of(body))
    here = dict(stands.children)
    changed = {name: child for name, child in children.items() if not _alike(child, here[name])}
    if not changed:
        return base
    below = {name: plain(child, f"{path}/{name}".strip("/")) for name, child in changed.items()}
    return Origin(with_children, (base, below))


def _alike(a: Any, b: Any) -> bool:
    """Whether two layers are of one call; `fnn.sharding.constrained` changes all but that."""
    one, other = a.origin, b.origin
    return a is b or (one is not None and other is not None and one.options is other.options)


def refuse(thing: Any, path: str) -> NoReturn:
    """Raise for a function that no import gives back, or a layer that no builder made."""
    got, mend = errors.show(thing), "pass data, or a function at the top of a module"
    if is_function(thing):
        module, name = place_of(thing)
        got = f"{module}.{name}"
        mend = "put the function at the top of a module"
        if module not in sys.modules:
            mend = "import its module by `import`, and under its own name"
        if "<locals>" in name:
            mend = "or mark the function that builds the layer around it with @fnn.builder"
            mend = f"put the function at the top of a module, {mend}"
    elif hasattr(thing, "specs"):
        got = f"the layer {thing.name}, made by hand"
        mend = "build it in a function at the top of a module, marked with @fnn.builder"
    with errors.at(path):
        raise errors.InputError("a function that can be imported, or data", got, mend)
