"""A network from its description."""

from __future__ import annotations

import base64
import functools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fnn.core import errors
from fnn.core.compose import composed
from fnn.core.layer import Layer, as_layer, leaf
from fnn.core.origins import with_children
from fnn.core.params import Constant, Distribution
from fnn.description.names import resolve
from fnn.description.writer import FORMAT, VERSION

DEPTH = 600  # calls inside calls
UNMARKED = {  # builders that are not marked, as what they make knows the call anyway
    "fnn.leaf": leaf,
    "fnn.core.params.Constant": Constant,
    "fnn.core.params.Distribution": Distribution,
}


def build(text: str, *, allow: Sequence[str] = ()) -> Layer:
    """The network that `fnn.describe` wrote.

    Nothing in the text can run code of its own: a name stands for one of fnn's builders or one of
    JAX's functions of arrays, or for what is in a module that you allow.

    - `allow`: modules that may be imported besides, such as `("my_models",)`, packages with all
      that is in them. A script is a module under the name of its file.

    Raises DescriptionError for text that is damaged, names what is not allowed, or does not fit
    this version of fnn.

    >>> import fnn, jax
    >>> net = build(fnn.describe(fnn.serial(fnn.dense(4), jax.nn.relu)))
    >>> jax.tree.map(jax.numpy.shape, net.init(jax.random.key(0), (1, 3))[0])
    {'dense1': {'bias': (4,), 'kernel': (3, 4)}}
    """
    with errors.within("build"):
        if isinstance(allow, str):
            raise errors.OptionError("a tuple of modules", repr(allow), f"pass ({allow!r},)")
        try:
            said = json.loads(text)
            if not isinstance(said, dict) or said.get("format") != FORMAT:
                raise ValueError("not the description of a network")
            if said["version"] != VERSION:
                raise ValueError(f"version {said['version']}, not {VERSION}")
            return as_layer(decoded(said["network"], tuple(allow)))
        except errors.DescriptionError:
            raise
        except Exception as error:  # whatever a builder raises for options that nobody gave it
            got = f"{type(error).__name__}: {error}"
            mend = "describe the network again, with this version of fnn"
            raise errors.DescriptionError("a description by fnn.describe", got, mend) from error


def decoded(thing: Any, allow: tuple[str, ...], depth: int = 0) -> Any:
    """What a value of the text stands for; see `writer.encoded`."""
    if depth > DEPTH:
        raise ValueError(f"more than {DEPTH} calls inside one another")
    inner = functools.partial(decoded, allow=allow, depth=depth + 1)
    if not isinstance(thing, dict):
        return tuple(map(inner, thing)) if isinstance(thing, list) else thing
    if "build" in thing:
        options = {name: inner(option) for name, option in thing.get("options", {}).items()}
        return _builder(thing["build"], allow)(*inner(thing.get("args", [])), **options)
    if "partial" in thing:
        options = {name: inner(option) for name, option in thing["options"].items()}
        return functools.partial(inner(thing["partial"]), *inner(thing["args"]), **options)
    if "compose" in thing or "over" in thing:
        first = inner(thing.get("compose", thing.get("over")))
        children = {name: inner(child) for name, child in thing["children"].items()}
        return (composed if "compose" in thing else with_children)(first, children)
    ((kind, value),) = thing.items()
    if kind == "import":
        return resolve(value, allow)
    if kind == "list":
        return list(inner(value))
    if kind == "dict":
        return {inner(k): inner(v) for k, v in value}
    if kind == "float":
        return {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}[value]
    if kind == "dtype":
        return jnp.dtype(value)
    if kind == "array":
        return _array(**value)
    raise ValueError(f"an object of kind {kind!r}")


def _builder(name: Any, allow: tuple[str, ...]) -> Callable:
    if name in UNMARKED:
        return UNMARKED[name]
    found = resolve(name, allow)
    if not errors.is_builder(found) and not _is_record(found):
        raise errors.DescriptionError("a builder", f"{name}", "mark it with @fnn.builder")
    return found


def _is_record(found: Any) -> bool:
    """Whether it is a dataclass or a named tuple, which are data with names."""
    of_tuple = isinstance(found, type) and issubclass(found, tuple) and hasattr(found, "_fields")
    return of_tuple or isinstance(found, type) and is_dataclass(found)


def _array(of: str, dtype: str, shape: list[int], data: str, impl: str | None = None) -> Any:
    held = np.frombuffer(base64.b64decode(data, validate=True), jnp.dtype(dtype)).reshape(shape)
    if impl is not None:
        return jax.random.wrap_key_data(jnp.asarray(held), impl=impl)
    if of == "scalar":
        return held[()]
    return jnp.asarray(held) if of == "jax" else held.copy()
