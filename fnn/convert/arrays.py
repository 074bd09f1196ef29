"""Moving arrays between paired layers."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fnn import tree
from fnn.convert.pairs import named, pairs
from fnn.convert.table import Framework, Groups, Leaf, Names, Part
from fnn.core import errors, trees
from fnn.core.shapes import empty, native
from fnn.core.types import Tree


def load(
    framework: Framework,
    ours: list[Part],
    groups: Groups,
    names: Names,
    *,
    registered: bool = False,
) -> tuple[dict, dict]:
    """(params, state) of the network with the other network's arrays; see `pairs`."""
    flat: dict[str, dict[str, np.ndarray]] = {"params": {}, "state": {}}
    for part, name in pairs(framework, ours, groups, names, registered=registered):
        group = groups[name]
        with errors.at(part.path) if part.path else errors.within(part.kind):
            _check_entries(framework, part, name, group)
            for leaf in part.leaves:
                array = _read(framework.join(name, leaf.entry), group[leaf.entry], leaf)
                whole = empty(leaf.stack + leaf.array.shape, array.dtype)
                flat[leaf.collection].setdefault(leaf.path, whole)[leaf.member] = leaf.ours(array)
    params, state = (tree.from_paths(_taken(flat[of])) for of in ("params", "state"))
    return params, state


def _taken(flat: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """The arrays as JAX's, which takes them as they are where it can, or one after another."""
    return {path: jax.device_put(flat.pop(path)) for path in list(flat)}


def store(
    framework: Framework, ours: list[Part], params: Tree, state: Tree, names: Names
) -> Groups:
    """The network's arrays by layer of the other network, in our order."""
    wanted: dict[str, dict[str, Any]] = {"params": {}, "state": {}}
    for leaf in (leaf for part in ours for leaf in part.leaves):
        whole = jax.ShapeDtypeStruct(leaf.stack + leaf.array.shape, leaf.array.dtype)
        wanted[leaf.collection][leaf.path] = whole
    trees.check_same("params", params, tree.from_paths(wanted["params"]))
    trees.check_same("state", state, tree.from_paths(wanted["state"]))
    given = {"params": tree.to_paths(params), "state": tree.to_paths(state)}
    arrays = {(c, path): on_host(path, given[c][path]) for c in given for path in wanted[c]}
    theirs = named(framework, ours, names)
    groups: Groups = {}
    for part in ours:
        name = theirs[part.path]
        if name in groups:
            raise errors.OptionError("one name for each layer", f"two of {name}", "name both")
        groups[name] = {}
        for leaf in part.leaves:
            own = arrays[leaf.collection, leaf.path][leaf.member]
            groups[name][leaf.entry] = np.array(leaf.theirs(own), order="C")
    return groups


def _check_entries(framework: Framework, part: Part, name: str, group: Mapping[str, Any]) -> None:
    """Check that the layer has the same arrays there as here."""
    wanted = [leaf.entry for leaf in part.leaves]
    missing = [leaf for leaf in part.leaves if leaf.entry not in group]
    extra = [framework.join(name, entry) for entry in group if entry not in wanted]
    if missing:
        raise errors.ParamsError(
            errors.names(f"{framework.join(name, leaf.entry)} for {leaf.name}" for leaf in missing),
            errors.names(framework.join(name, entry) for entry in group),
            "build the layer with the same options, or pair it with names=",
        )
    if extra:
        raise errors.ParamsError(
            f"no more than {errors.names(framework.join(name, entry) for entry in wanted)}",
            f"also {errors.names(extra)}",
            "build the layer with the same options, or pair it with names=",
        )


def _read(name: str, value: Any, leaf: Leaf) -> np.ndarray:
    """Their array, checked against the leaf."""
    array = on_host(name, value)
    if array.shape != leaf.shape():
        raise errors.ParamsError(
            f"{name} {leaf.shape()} for {leaf.name} {leaf.array.shape}",
            f"{name} {array.shape}",
            "build the layer with the same options, or pair it with names=",
        )
    if array.dtype != leaf.array.dtype:
        raise errors.DtypeError(
            f"{name} of {leaf.array.dtype} for {leaf.name}",
            f"{name} of {array.dtype}",
            f"cast all of them to {leaf.array.dtype}, or give xs of {array.dtype}, as "
            f"jax.ShapeDtypeStruct(shape, jnp.{array.dtype})",
        )
    return array


def on_host(name: str, value: Any) -> np.ndarray:
    value = value.detach() if hasattr(value, "detach") else value  # a tensor with requires_grad
    if not (hasattr(value, "shape") and hasattr(value, "dtype")):
        raise errors.InputError(f"{name} to be an array", errors.show(value), "pass an array")
    checked = native(value, name)
    if checked is not value and checked.dtype.itemsize == value.dtype.itemsize:  # else _read raises
        value = checked
    narrow = str(value.dtype).removeprefix("torch.")
    try:
        if str(value.dtype) != narrow and narrow.startswith(("bfloat16", "float8")):
            return np.asarray(value.float()).astype(jnp.dtype(narrow))  # NumPy alone lacks them
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
