"""Attention as other frameworks store it: q, k and v in one array, or with an axis for the heads.

The parts of attn.in_proj are called attn.in_proj.q, .k and .v, in `names` too, and parts of these
names are joined on the way back. PyTorch's MultiheadAttention has in_proj_weight, or, where k and v
come from other features, q_proj_weight, k_proj_weight and v_proj_weight; GPT-2 has c_attn, and most
others have qkv.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fnn.convert.arrays import on_host
from fnn.convert.table import Framework, Groups, Part
from fnn.convert.words import role
from fnn.core import errors

_JOINT = ("in_proj", "c_attn", "qkv", "qkv_proj", "to_qkv", "wqkv", "Wqkv")
_HEADS = ("q", "k", "v")


def regular(flat: Mapping[Any, Any]) -> dict[Any, Any]:
    """The same dict with in_proj.weight for in_proj_weight, in_proj.q.weight for q_proj_weight."""

    def path(name: str) -> str:
        name = re.sub(r"(^|\.)in_proj_(weight|bias)$", r"\1in_proj.\2", name)
        return re.sub(r"(^|\.)([qkv])_proj_weight$", r"\1in_proj.\2.weight", name)

    return {path(name) if isinstance(name, str) else name: array for name, array in flat.items()}


def split(framework: Framework, ours: list[Part], groups: Groups) -> Groups:
    """The groups with q, k and v split, where the network has them so."""
    looks = [{leaf.entry: leaf.shape() for leaf in part.leaves} for part in ours]
    sizes = _sizes(ours)
    found: Groups = {}
    for name, group in groups.items():
        shapes = {entry: tuple(getattr(array, "shape", ())) for entry, array in group.items()}
        if name.rpartition(".")[2] not in _JOINT or shapes in looks:
            found.setdefault(name, {}).update(group)
            continue
        rows = {shape[0] for shape in shapes.values() if shape}
        fits = [own for own in sizes if rows == {sum(own)}]
        if len(fits) != 1:
            _check_turned(framework.join(name, "weight"), shapes.get("weight", ()), sizes)
            found.setdefault(name, {}).update(group)
            continue
        ends = np.cumsum(fits[0])[:-1]
        for entry, array in group.items():
            split = np.split(on_host(framework.join(name, entry), array), ends)
            for head, own in zip(_HEADS, split, strict=True):
                found.setdefault(f"{name}.{head}", {})[entry] = own
    return found


def flattened(framework: Framework, ours: list[Part], groups: Groups) -> Groups:
    """The groups with an axis [heads * D] where Flax and Keras have two in their attention."""
    looks = [{leaf.entry: leaf.shape() for leaf in part.leaves} for part in ours]
    found: Groups = {}
    for name, group in groups.items():
        shapes = {entry: tuple(getattr(array, "shape", ())) for entry, array in group.items()}
        own, kernel = role(name), shapes.get("kernel", ())
        found[name] = dict(group)
        if len(kernel) != 3 or own not in (*_HEADS, "out") or shapes in looks:
            continue
        array = on_host(framework.join(name, "kernel"), group["kernel"])
        rows = kernel[0] if own in _HEADS else kernel[0] * kernel[1]
        found[name]["kernel"] = array.reshape(rows, -1)
        if own in _HEADS and "bias" in group:
            found[name]["bias"] = on_host(framework.join(name, "bias"), group["bias"]).reshape(-1)
    return found


def joined(framework: Framework, groups: Groups) -> dict[str, np.ndarray]:
    """The arrays by path, with in_proj.q, .k and .v joined again."""
    flat: dict[str, Any] = {}
    for name, group in groups.items():
        where, _, head = name.rpartition(".")
        joint = where.rpartition(".")[2]
        heads = [groups.get(f"{where}.{h}", {}) for h in _HEADS]
        if head not in _HEADS or joint not in _JOINT or not all(heads):
            flat |= framework.flat({name: group})
        elif head == "q":
            flat |= _joint(where, joint, heads)
    return flat


def _joint(
    where: str, joint: str, heads: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    above = where.removesuffix(joint)
    for entry in heads[0]:
        arrays = [head[entry] for head in heads]
        path = f"{above}in_proj_{entry}" if joint == "in_proj" else f"{where}.{entry}"
        if len({a.shape[1:] for a in arrays}) == 1:
            found[path] = np.concatenate(arrays)
        elif joint == "in_proj":
            for head, array in zip(_HEADS, arrays, strict=True):
                found[f"{above}{head}_proj_{entry}"] = array
        else:
            raise errors.ParamsError(
                f"q, k and v of as many inputs for {path}",
                errors.names(str(a.shape) for a in arrays),
                "name them apart",
            )
    return found


def _sizes(ours: list[Part]) -> set[tuple[int, ...]]:
    """How many rows q, k and v have, for each attention of the network."""
    rows: dict[str, dict[str, int]] = {}
    for part in ours:
        above, _, last = part.path.rpartition("/")
        head, weight = role(last), [s.shape() for s in part.leaves if s.name == "kernel"]
        if head in _HEADS and weight:
            rows.setdefault(above, {})[head] = weight[0][0]
    return {tuple(own[h] for h in _HEADS) for own in rows.values() if len(own) == len(_HEADS)}


def _check_turned(path: str, shape: tuple[int, ...], sizes: set[tuple[int, ...]]) -> None:
    if len(shape) == 2 and shape[1] in map(sum, sizes):
        raise errors.ParamsError(
            f"{path} {shape[::-1]}, with a row for each output",
            f"{shape}, as in a Conv1D of transformers",
            "transpose the weights of all its Conv1D, as {name: w.T if the layer is one else w}",
        )
