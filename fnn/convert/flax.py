"""Flax, linen and nnx: same layouts and names as fnn, except for state and recurrent cells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fnn import tree
from fnn.convert import heads
from fnn.convert.arrays import load, mapping, on_host, store
from fnn.convert.parts import parts
from fnn.convert.table import SAME, Framework, Groups, Names, Part
from fnn.core import errors
from fnn.core.layer import Layer


@errors.named
def from_flax(net: Layer, variables: Mapping, *xs: Any, names: Names = None) -> tuple[dict, dict]:
    """(params, state) of `net` with the values of Flax linen's `variables`.

    - `variables`: {"params": ..., "batch_stats": ...}, nested dicts of arrays.
    - `xs`: as for `net.init`.
    - `names`: {path of a layer in net: its path there}, for layers that nothing else pairs.

    A recurrent layer is a cell there (LSTMCell or OptimizedLSTMCell, GRUCell, SimpleCell), whose
    gates are joined; each layer and direction of an `fnn.lstm` is a cell of its own, with a path
    such as lstm1/lstm2/backward. Attention kernels, which have a heads axis there, are reshaped for
    `fnn.attention`; `to_flax` does not restore that axis.

    Raises ParamsError for arrays that do not fit, DtypeError for another dtype.

    >>> import numpy as np, fnn
    >>> dense = {"kernel": np.ones((3, 2), np.float32), "bias": np.ones(2, np.float32)}
    >>> params, state = from_flax(fnn.serial(fnn.dense(2)), {"params": {"Dense_0": dense}}, (1, 3))
    >>> params["dense1"]["kernel"].shape
    (3, 2)
    """
    flat: dict[str, Any] = {}
    for part, inside in mapping("variables", variables).items():
        if part not in _PARTS.values():
            raise errors.ParamsError(
                f"variables with no more than {errors.names(_PARTS.values())}",
                f"also {part}",
                "leave out the others, which fnn's layers do not have",
            )
        flat |= tree.to_paths(mapping(part, inside))
    ours = parts(FLAX, net, xs)
    return load(FLAX, ours, _regular(ours, flat), names)


@errors.named
def to_flax(
    net: Layer, params: Mapping, state: Mapping, *xs: Any, names: Names = None
) -> dict[str, dict]:
    """Flax linen's `variables`, in NumPy arrays, with the values of `net`: inverts `from_flax`.

    - `xs`: as for `net.init`.
    - `names`: {path of a layer in net: its path there}; a layer without one keeps its path.

    "batch_stats" is there if the network has state. Raises as `from_flax`.

    >>> import jax, fnn
    >>> net = fnn.serial(fnn.dense(2))
    >>> params, state = net.init(jax.random.key(0), (1, 3))
    >>> variables = to_flax(net, params, state, (1, 3), names={"dense1": "Dense_0"})
    >>> jax.tree.map(lambda a: a.shape, variables)
    {'params': {'Dense_0': {'bias': (2,), 'kernel': (3, 2)}}}
    """
    ours = parts(FLAX, net, xs)
    groups = store(FLAX, ours, params, state, names)
    flat: dict[str, dict[str, Any]] = {"params": {}}
    for part, (name, group) in zip(ours, groups.items(), strict=True):
        if part.kind in _GATES:
            gates = _by_gate(part.kind, group).items()
            flat["params"] |= {FLAX.join(name, entry): array for entry, array in gates}
            continue
        for leaf in part.leaves:
            inside = flat.setdefault(_PARTS[leaf.collection], {})
            inside[FLAX.join(name, leaf.entry)] = group[leaf.entry]
    return {part: tree.from_paths(inside) for part, inside in flat.items()}


@errors.named
def from_nnx(net: Layer, pure: Mapping, *xs: Any, names: Names = None) -> tuple[dict, dict]:
    """(params, state) of `net` with the values of a Flax nnx model.

    - `pure`: nested dicts of arrays, `nnx.to_pure_dict(nnx.state(model, kinds))` with the kinds
      `(nnx.Param, nnx.BatchStat)`.
    - `xs`, `names`: as in `from_flax`. Raises as `from_flax`.

    The `recurrent_bias` of a GRU, which nnx.GRUCell lacks, is zero.

    >>> import numpy as np, fnn
    >>> linear = {"kernel": np.ones((3, 2), np.float32), "bias": np.ones(2, np.float32)}
    >>> params, state = from_nnx(fnn.serial(fnn.dense(2)), {"linear": linear}, (1, 3))
    >>> params["dense1"]["kernel"].shape
    (3, 2)
    """
    flat, ours = tree.to_paths(mapping("pure", pure)), parts(FLAX, net, xs)
    return load(FLAX, ours, _regular(ours, flat), names)


@errors.named
def to_nnx(
    net: Layer, params: Mapping, state: Mapping, *xs: Any, names: Names = None
) -> dict[str, Any]:
    """The nested dict of a Flax nnx model with the values of `net`: inverts `from_nnx`.

    - `xs`: as for `net.init`.
    - `names`: {path of a layer in net: its path there}; a layer without one keeps its path.

    `nnx.replace_by_pure_dict(model_state, pure)` takes it; an LSTM is an nnx.OptimizedLSTMCell.
    Raises as `from_flax`, and ParamsError for a GRU whose `recurrent_bias` is not zero.

    >>> import jax, fnn
    >>> net = fnn.serial(fnn.dense(2))
    >>> params, state = net.init(jax.random.key(0), (1, 3))
    >>> pure = to_nnx(net, params, state, (1, 3), names={"dense1": "linear"})
    >>> jax.tree.map(lambda a: a.shape, pure)
    {'linear': {'bias': (2,), 'kernel': (3, 2)}}
    """
    ours = parts(FLAX, net, xs)
    groups = store(FLAX, ours, params, state, names)
    for part, name in zip(ours, list(groups), strict=True):
        if part.kind in _GATES:
            groups[name] = _by_side(part, groups[name])
    return tree.from_paths(FLAX.flat(groups))


# --- the table

_PARTS = {"params": "params", "state": "batch_stats"}
_LINEAR = {"kernel": ("kernel", SAME), "bias": ("bias", SAME)}
_NORM = {"scale": ("scale", SAME), "bias": ("bias", SAME)}

_RNN = {name: (name, SAME) for name in ("kernel", "recurrent_kernel", "bias")}  # see _joined

FLAX = Framework(
    {
        "batch_norm": _NORM | {"mean": ("mean", SAME), "var": ("var", SAME)},
        "conv": _LINEAR,
        "conv_transpose": _LINEAR,
        "dense": _LINEAR,
        "depthwise_conv": _LINEAR,
        "embedding": {"embedding": ("embedding", SAME)},
        "group_norm": _NORM,
        "gru": _RNN | {"recurrent_bias": ("recurrent_bias", SAME)},
        "instance_norm": _NORM,
        "layer_norm": _NORM,
        "lstm": _RNN,
        "parameter": {"value": ("", SAME)},
        "rms_norm": _NORM,
        "simple_rnn": _RNN,
    }
)


# --- recurrent cells: a dense layer for each side and gate, or in nnx for each side

_GATES = {"gru": ("r", "z", "n"), "lstm": ("i", "f", "g", "o"), "simple_rnn": ("",)}


def _regular(ours: list[Part], flat: Mapping[str, Any]) -> Groups:
    return heads.flattened(FLAX, ours, _joined(ours, FLAX.group(flat)))


def _joined(ours: list[Part], groups: Groups) -> Groups:
    """The groups with all arrays of a cell in one, the gates side by side."""
    cells: dict[str, dict[str, str]] = {}
    for name in groups:
        cell, _, part = name.rpartition("/")
        cells.setdefault(cell, {})[part.rstrip("_")] = name  # nnx writes if_
    found, kinds = dict(groups), {part.kind for part in ours}
    for cell, names in cells.items():
        parts = {part.removeprefix("dense_"): groups[name] for part, name in names.items()}
        kind = _kind(parts)
        if kind in kinds:
            for name in names.values():
                del found[name]
            found[cell] = _cell(kind, parts, cell)
    return found


def _kind(parts: Groups) -> str:
    """The kind of a cell with these parts, or ""; nnx's cells differ by the kernel's width."""
    sets = {
        kind: {side + gate for side in "ih" for gate in gates} for kind, gates in _GATES.items()
    }
    kind = next((kind for kind, names in sets.items() if set(parts) == names), "")
    shape = np.shape(parts["h"].get("kernel", 0)) if kind == "simple_rnn" else ()
    gates = shape[1] // max(shape[0], 1) if len(shape) == 2 else 0
    return {3: "gru", 4: "lstm"}.get(gates, kind)


def _entry(kind: str, part: str, entry: str) -> str:
    """Our name for an entry of ii, hi ...; its own path if it has none here."""
    if entry == "kernel":
        return "kernel" if part.startswith("i") else "recurrent_kernel"
    if entry == "bias" and part.startswith("h" if kind == "lstm" else "i"):
        return "bias"
    return "recurrent_bias" if (kind, part, entry) == ("gru", "hn", "bias") else f"{part}/{entry}"


def _cell(kind: str, parts: Groups, cell: str) -> dict[str, Any]:
    gates = [""] if "h" in parts else _GATES[kind]
    found: dict[str, list[np.ndarray]] = {}
    for part in (side + gate for side in "ih" for gate in gates):
        for entry, array in parts[part].items():
            array = on_host(FLAX.join(cell, f"{part}/{entry}"), array)
            found.setdefault(_entry(kind, part, entry), []).append(array)
    with errors.at(cell) if cell else errors.within(kind):
        for entry, arrays in found.items():
            if len({a.shape for a in arrays}) > 1 or not arrays[0].shape:
                shapes = errors.names(str(a.shape) for a in arrays)
                raise errors.ParamsError(
                    f"one shape of {entry} for all gates", shapes, "take the variables of one cell"
                )
    group = {entry: np.concatenate(arrays, axis=-1) for entry, arrays in found.items()}
    if kind == "gru" and "h" in parts and "bias" in group:  # nnx has no other bias
        group["recurrent_bias"] = np.zeros_like(group["bias"][: len(group["bias"]) // 3])
    return group


def _by_gate(kind: str, group: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of a cell of linen, {"ii/kernel": ...}."""
    gates, found = _GATES[kind], {}
    for side, name in (("i", "kernel"), ("h", "recurrent_kernel")):
        for gate, array in zip(gates, np.split(group[name], len(gates), axis=-1), strict=True):
            found[f"{side}{gate}/kernel"] = array.copy()
    if "bias" in group:
        side = "h" if kind == "lstm" else "i"
        for gate, array in zip(gates, np.split(group["bias"], len(gates)), strict=True):
            found[f"{side}{gate}/bias"] = array.copy()
    if "recurrent_bias" in group:
        found["hn/bias"] = group["recurrent_bias"]
    return found


def _by_side(part: Part, group: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of a cell of nnx, {"dense_i/kernel": ...}."""
    found = {"dense_i/kernel": group["kernel"], "dense_h/kernel": group["recurrent_kernel"]}
    if "bias" in group:
        found["dense_h/bias" if part.kind == "lstm" else "dense_i/bias"] = group["bias"]
    if np.any(group.get("recurrent_bias", 0)):
        with errors.at(part.path) if part.path else errors.within(part.kind):
            raise errors.ParamsError(
                "a recurrent_bias of zeros, since nnx.GRUCell has none",
                "other values",
                "use to_flax, or train the layer with recurrent_bias frozen at zero",
            )
    return found
