"""Moving the arrays of layers that are paired."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fnn import tree
from fnn.convert.pairs import named, pairs
from fnn.convert.table import Framework, Groups, Names, Part, Slot
from fnn.core import errors, trees
from fnn.core.shapes import native


def load(
    framework: Framework,
    ours: list[Part],
    groups: Groups,
    names: Names,
    *,
    registered: bool = False,
) -> tuple[dict, dict]:
    """(params, state) of the network with the arrays of the other one; see `pairs`."""
    flat: dict[str, dict[str, np.ndarray]] = {"params": {}, "state": {}}
    for part, name in pairs(framework, ours, groups, names, registered=registered):
        group = groups[name]
        with errors.at(part.path) if part.path else errors.within(part.kind):
            _check_entries(framework, part, name, group)
            for slot in part.slots:
                array = _read(framework.join(name, slot.entry), group[slot.entry], slot)
                whole = np.empty(slot.stack + slot.array.shape, array.dtype)
                flat[slot.part].setdefault(slot.path, whole)[slot.member] = slot.ours(array)
    params, state = (
        tree.from_paths({path: jnp.array(array) for path, array in flat[part].items()})
        for part in ("params", "state")
    )
    return params, state


def store(framework: Framework, ours: list[Part], params: Any, state: Any, names: Names) -> Groups:
    """The arrays of the network by layer of the other one, in our order."""
    wanted: dict[str, dict[str, Any]] = {"params": {}, "state": {}}
    for slot in (slot for part in ours for slot in part.slots):
        whole = jax.ShapeDtypeStruct(slot.stack + slot.array.shape, slot.array.dtype)
        wanted[slot.part][slot.path] = whole
    trees.check_same("params", params, tree.from_paths(wanted["params"]))
    trees.check_same("state", state, tree.from_paths(wanted["state"]))
    given = {"params": tree.to_paths(params), "state": tree.to_paths(state)}
    arrays = {
        (part, path): on_host(path, given[part][path]) for part in given for path in wanted[part]
    }
    theirs = named(framework, ours, names)
    groups: Groups = {}
    for part in ours:
        name = theirs[part.path]
        if name in groups:
            raise errors.OptionError("one name for each layer", f"two of {name}", "name both")
        groups[name] = {}
        for slot in part.slots:
            own = arrays[slot.part, slot.path][slot.member]
            groups[name][slot.entry] = np.array(slot.theirs(own), order="C")
    return groups


def _check_entries(framework: Framework, part: Part, name: str, group: Mapping[str, Any]) -> None:
    """The layer has the arrays there that it has here, no less and no more."""
    wanted = [slot.entry for slot in part.slots]
    missing = [slot for slot in part.slots if slot.entry not in group]
    extra = [framework.join(name, entry) for entry in group if entry not in wanted]
    if missing:
        raise errors.ParamsError(
            errors.names(f"{framework.join(name, s.entry)} for {s.leaf}" for s in missing),
            errors.names(framework.join(name, entry) for entry in group),
            "build the layer with the same options, or pair it with names=",
        )
    if extra:
        raise errors.ParamsError(
            f"no more than {errors.names(framework.join(name, entry) for entry in wanted)}",
            f"also {errors.names(extra)}",
            "build the layer with the same options, or pair it with names=",
        )


def _read(name: str, value: Any, slot: Slot) -> np.ndarray:
    """Their array, if it is what the slot asks for."""
    array = on_host(name, value)
    if array.shape != slot.shape():
        raise errors.ParamsError(
            f"{name} {slot.shape()} for {slot.leaf} {slot.array.shape}",
            f"{name} {array.shape}",
            "build the layer with the same options, or pair it with names=",
        )
    if array.dtype != slot.array.dtype:
        raise errors.DtypeError(
            f"{name} of {slot.array.dtype} for {slot.leaf}",
            f"{name} of {array.dtype}",
            f"cast all of them to {slot.array.dtype}, or give xs of {array.dtype}, as "
            f"jax.ShapeDtypeStruct(shape, jnp.{array.dtype})",
        )
    return array


def on_host(name: str, value: Any) -> np.ndarray:
    value = value.detach() if hasattr(value, "detach") else value  # a tensor that takes gradients
    if not (hasattr(value, "shape") and hasattr(value, "dtype")):
        raise errors.InputError(f"{name} to be an array", errors.show(value), "pass an array")
    checked = native(value, name)
    if checked is not value and checked.dtype.itemsize == value.dtype.itemsize:  # else it is told
        value = checked
    narrow = str(value.dtype).removeprefix("torch.")
    try:
        if str(value.dtype) != narrow and narrow.startswith(("bfloat16", "float8")):
            return np.asarray(value.float()).astype(jnp.dtype(narrow))  # NumPy alone has none
        return np.asarray(value)
    except (TypeError, RuntimeError):
        raise errors.InputError(
            f"{name} with values that NumPy can read",
            f"{type(value).__name__} {errors.show(value)}",
            "convert outside jit; a tensor on another device: .cpu()",
        ) from None


def mapping(name: str, value: Any) -> Mapping:
    if not isinstance(value, Mapping):
        raise errors.InputError(f"{name} to be a dict of arrays", errors.show(value), "pass a dict")
    return value
