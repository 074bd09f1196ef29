"""A network as text."""

from __future__ import annotations

import base64
import functools
import inspect
import json
import math
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from fnn.core import errors
from fnn.core.compose import composed
from fnn.core.dtypes import is_key
from fnn.core.layer import Layer, as_layer
from fnn.core.origins import Origin, with_children
from fnn.core.plain import imported, place_of, plain, refuse
from fnn.description.names import name_of

FORMAT, VERSION = "fnn network", 1
WIDTH = 96


def describe(net: Layer) -> str:
    """A network as JSON: the builders that made it and their options, nested as the network is.

    `fnn.build(text)` gives an equal network back: the same names and declarations, the same first
    values at a key, outputs to the last bit. Functions, such as activations, are written by the
    names under which they are imported.

    Raises InputError, with the path of the layer, for what has no name: lambdas, and functions and
    bodies of `fnn.compose` that stand inside another function. Mark that function with
    `fnn.builder`, or put them at the top of a module.

    >>> import fnn, jax
    >>> text = describe(fnn.serial(fnn.dense(8), jax.nn.relu, fnn.dense(3, use_bias=False)))
    >>> fnn.build(text)
    serial(dense1=dense, relu_1=relu, dense2=dense)
    >>> json.loads(text)["network"]["args"][2]
    {'build': 'fnn.dense', 'options': {'features': 3, 'use_bias': False}}
    """
    with errors.within("describe"):
        network = encoded(plain(as_layer(net)), "")
    return _laid_out({"format": FORMAT, "version": VERSION, "network": network})


def _laid_out(value: Any, indent: str = "") -> str:
    """JSON with a line for each value that fits in one."""
    text = json.dumps(value)
    if len(indent) + len(text) <= WIDTH or not isinstance(value, (dict, list)):
        return text
    below = indent + "  "
    if isinstance(value, list):
        lines = [_laid_out(one, below) for one in value]
        return "[\n" + ",\n".join(below + line for line in lines) + f"\n{indent}]"
    rows = [f"{below}{json.dumps(name)}: {_laid_out(one, below)}" for name, one in value.items()]
    return "{\n" + ",\n".join(rows) + f"\n{indent}}}"


def encoded(thing: Any, path: str) -> Any:
    """What JSON holds of a plain value: itself, or an object that says how to make it.

    A tuple is an array, a list {"list": [...]}; other objects have the key that `reader` looks for.
    """
    each = functools.partial(_all, path=path)
    if thing is None or isinstance(thing, (bool, str)) or type(thing) is int:
        return thing
    if type(thing) is float:
        return thing if math.isfinite(thing) else {"float": str(thing)}
    if isinstance(thing, Origin):
        return _call(thing, path)
    if type(thing) is tuple:
        return each(thing)
    if type(thing) is list:
        return {"list": each(thing)}
    if isinstance(thing, dict):
        return {"dict": [[encoded(k, path), encoded(v, path)] for k, v in thing.items()]}
    if isinstance(thing, (np.ndarray, np.generic, jax.Array)):
        return {"array": _array(thing, path)}
    if isinstance(thing, np.dtype) or _is_scalar_type(thing):
        return {"dtype": jnp.dtype(thing).name}
    refuse(thing, path)


def _all(things: Any, path: str) -> list:
    return [encoded(one, path) for one in things]


def _call(origin: Origin, path: str) -> dict:
    if origin.builder is imported:
        return {"import": _named(origin.args, path)}
    if origin.builder is as_layer:
        return encoded(origin.args[0], path)
    if origin.builder in (composed, with_children):
        first, children = origin.args
        of = "compose" if origin.builder is composed else "over"
        layers = {name: encoded(child, f"{path}/{name}") for name, child in children.items()}
        return {of: encoded(first, path), "children": layers}
    if origin.builder is functools.partial:
        fn, *args = _all(origin.args, path)
        options = {name: encoded(one, path) for name, one in origin.options.items()}
        return {"partial": fn, "args": args, "options": options}
    name = _named(place_of(origin.builder), path)
    kinds = {p.kind for p in inspect.signature(origin.builder).parameters.values()}
    by_place = kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY}
    if by_place:
        call: dict[str, Any] = {"build": name, "args": _all(origin.args, path)}
        options = origin.options
    else:
        call, options = {"build": name}, dict(origin.given())
    inner = {option: encoded(value, path) for option, value in options.items()}
    return {**call, "options": inner} if inner else call


def _named(place: tuple[str, str], path: str) -> str:
    name = name_of(place)
    if name is None:
        with errors.at(path):
            mend = "put it into a file that can be imported"
            raise errors.InputError("a function of a module", f"{place[1]}, typed in", mend)
    return name


def _is_scalar_type(thing: Any) -> bool:
    """Whether it is a dtype by another name, such as jnp.float32 or float."""
    try:
        return isinstance(thing, type) and jnp.dtype(thing).kind != "O"
    except TypeError:
        return False


def _array(array: Any, path: str) -> dict:
    if isinstance(array, jax.core.Tracer):
        with errors.at(path):
            mend = "describe the network outside of jit, vmap and grad"
            raise errors.InputError("numbers", f"{errors.show(array)}, which is traced", mend)
    of = "jax" if isinstance(array, jax.Array) else "numpy"
    if type(array) is not np.ndarray and of == "numpy":  # one of NumPy's scalars
        of = "scalar"
    impl = None
    if is_key(array):
        impl, array = str(jax.random.key_impl(array)), jax.random.key_data(array)
    held = np.asarray(array)
    if held.dtype.kind in "OUSMm":
        refuse(array, path)
    held = held.astype(held.dtype.newbyteorder("="))
    data = base64.b64encode(held.tobytes()).decode()
    said = {"of": of, "dtype": held.dtype.name, "shape": list(held.shape), "data": data}
    return {**said, "impl": impl} if impl else said
