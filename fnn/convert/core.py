"""What all conversions share: a table of layers, pairing them, and moving their arrays."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from fnn import errors, tree
from fnn.convert import origins
from fnn.layer import Layer
from fnn.shapes import arrays_of, as_struct, native
from fnn.tree.selection import unknown

Groups = dict[str, dict[str, Any]]  # the layers of the other network: {name: {entry: array}}
Names = Mapping[str, str] | None  # {path of a layer here: its name there}


class Way(NamedTuple):
    """How an array's axes lie: from theirs to ours, and from ours to theirs."""

    ours: Callable[[np.ndarray, Slot], np.ndarray]
    theirs: Callable[[np.ndarray, Slot], np.ndarray]


class Slot(NamedTuple):
    """One array of a layer, here and in the other framework."""

    leaf: str  # our name of it, "kernel"
    part: str  # "params" or "state"
    array: jax.ShapeDtypeStruct
    axes: tuple[str, ...]  # the logical names of its axes, as far as they have any
    x: tuple[int, ...]  # the shape of the layer's input
    entry: str  # their name of it, "weight"
    way: Way
    order: np.ndarray | None = None  # row i of our axis "in" is row order[i] of theirs

    def ours(self, theirs: np.ndarray) -> np.ndarray:
        array = self.way.ours(theirs, self)
        return array if self.order is None else np.take(array, self.order, self.axes.index("in"))

    def theirs(self, ours: np.ndarray) -> np.ndarray:
        if self.order is not None:
            ours = np.take(ours, np.argsort(self.order), self.axes.index("in"))
        return self.way.theirs(ours, self)

    def shape(self) -> tuple[int, ...]:
        """The shape of their array."""
        return self.theirs(np.broadcast_to(np.zeros((), bool), self.array.shape)).shape


class Part(NamedTuple):
    """A layer of the network that has arrays: its path, its kind, its input and its arrays."""

    path: str
    kind: str
    origin: Any
    slots: tuple[Slot, ...]


class Framework(NamedTuple):
    """Another framework: what it calls the arrays of each kind of layer, and what it keeps besides.

    - `table`: {kind: {our leaf: (their entry, Way)}}, a layer's arrays in their order.
    - `separator`: what stands between the names in a path.
    - `ordered`: whether its layers come in order of declaration.
    - `unused`: entries that have no place here.
    - `inside(where, entry)`: what an entry of lstm2/backward, say, is called, where all layers and
      directions of a recurrent layer are one; None where each is a layer of its own.
    """

    table: Mapping[str, Mapping[str, tuple[str, Way]]]
    separator: str = "/"
    ordered: bool = False
    unused: tuple[str, ...] = ()
    inside: Callable[[str, str], str] | None = None

    def join(self, name: str, entry: str) -> str:
        return self.separator.join(filter(None, (name, entry)))

    def group(self, flat: Mapping[str, Any]) -> Groups:
        """The arrays of one path each by layer; one that is no layer's stands by itself."""
        known = {entry for rows in self.table.values() for entry, _ in rows.values() if entry}
        groups: Groups = {}
        for path, array in flat.items():
            if not isinstance(path, str):
                raise errors.InputError("names that are strings", errors.show(path), "rename it")
            entry = self._entry(path, known)
            if self._entry(path, self.unused) is None:
                name = path if entry is None else path[: len(path) - len(entry)]
                name = name.removesuffix(self.separator)
                groups.setdefault(name, {})[entry or ""] = array
        return groups

    def flat(self, groups: Groups) -> dict[str, Any]:
        """The arrays of all layers by path."""
        return {self.join(n, entry): a for n, group in groups.items() for entry, a in group.items()}

    def _entry(self, path: str, entries: Any) -> str | None:
        ends = [e for e in entries if path == e or path.endswith(self.separator + e)]
        return max(ends, key=len, default=None)


# --- the ways that more than one framework has


def turned(a: np.ndarray) -> np.ndarray:
    """[*kernel_size, A, B] turned around in space, with A and B swapped.

    It makes the kernel that slides over the spread input of the kernel of the convolution whose
    adjoint a transposed convolution is, and back.
    """
    return np.swapaxes(np.flip(a, tuple(range(a.ndim - 2))), -1, -2)


def stores_adjoint(slot: Slot) -> bool:
    """Whether a transposed convolution of ours has `transpose_kernel=True`."""
    return slot.axes[-2:] == ("out", "in")


def _adjoint(a: np.ndarray, slot: Slot) -> np.ndarray:
    return a if stores_adjoint(slot) else turned(a)


SAME = Way(lambda a, slot: a, lambda a, slot: a)
ADJOINT = Way(_adjoint, _adjoint)  # [*kernel_size, out, in] of the other convolution


# --- the layers of a network


def parts(framework: Framework, net: Layer, xs: tuple) -> list[Part]:
    """The layers of `net` that have arrays, in order of declaration."""
    if not isinstance(net, Layer):
        raise errors.InputError("a layer", errors.show(net), "as fnn.serial(...)")
    declared = dict(zip(("params", "state"), net.specs(*xs), strict=True))
    inputs = origins.inputs(net, declared["params"], declared["state"], tuple(map(as_struct, xs)))
    nodes = {
        path: (part, node)
        for part, specs in declared.items()
        for path, node in tree.flatten(specs).items()
    }
    found = []
    for path, layer in _leaves(net, whole=framework.inside is not None):
        own = {
            name: nodes.pop(full)
            for full in list(nodes)
            if (name := full.removeprefix(f"{path}/" if path else "")) != full or not path
        }
        if own:
            first = next(x for p, x in inputs.items() if f"{p}/".startswith(path and f"{path}/"))
            with errors.at(path) if path else errors.within(layer.name):
                kind = _kind(layer.name, own)
                slots = _slots(framework, kind, own, first.shape)
            found.append(Part(path, kind, first.origin, slots))
    for path in nodes:
        with errors.at(path):
            raise errors.ParamsError("an array of a layer", "one of none", "convert it by hand")
    return found


_LAYERS = ("gru", "lstm", "simple_rnn")  # of recurrent layers, one or more
_CELLS = ("bidirectional", "gru_cell", "lstm_cell", "rnn", "rnn_cell")  # of which kind, they tell
_WITHIN = re.compile(r"((gru|lstm|simple_rnn)(\d+)/?)?(forward|backward)?")


def _leaves(layer: Layer, path: str = "", *, whole: bool) -> Iterator[tuple[str, Layer]]:
    """The layers that have no others within; `whole`: nor recurrent layers within theirs."""
    names = [name for name, _ in layer.children if name != "dropout"]
    recurrent = layer.name in (*_LAYERS, "bidirectional") and all(map(_WITHIN.fullmatch, names))
    if not layer.children or (whole and recurrent):
        yield path, layer
        return
    for name, child in layer.children:
        yield from _leaves(child, f"{path}/{name}" if path else name, whole=whole)


def _kind(name: str, own: Mapping[str, Any]) -> str:
    """The kind of a layer; of one made of a cell, told by the number of gates."""
    shapes = {leaf.rpartition("/")[2]: arrays_of(node).shape for leaf, (_, node) in own.items()}
    shape = shapes.get("recurrent_kernel", ())
    if name not in _CELLS or len(shape) != 2:
        return name
    features = shapes.get("projection", shape)[0]
    return {1: "simple_rnn", 3: "gru", 4: "lstm"}.get(shape[1] // features, name)


def _place(leaf: str) -> tuple[int, bool]:
    """Sorts lstm1/forward, lstm1/backward, lstm2/forward ... lstm10/backward."""
    within = _WITHIN.fullmatch(leaf.rpartition("/")[0])
    return (int(within[3] or 0), within[4] == "backward") if within else (0, False)


def _slots(framework: Framework, kind: str, own: Mapping, x: tuple) -> tuple[Slot, ...]:
    rows = framework.table.get(kind, {})
    within = [leaf.rpartition("/") for leaf in own]
    if not all(name in rows and _WITHIN.fullmatch(where) for where, _, name in within):
        raise errors.ParamsError(
            f"a layer of a kind that this framework has, {errors.names(sorted(framework.table))}",
            f"{kind} with {errors.names(own)}",
            "convert its network without it, and put its values in with fnn.tree.merge",
        )
    slots, order = [], list(rows)
    for leaf in sorted(own, key=lambda leaf: (_place(leaf), order.index(leaf.rpartition("/")[2]))):
        part, node = own[leaf]
        if getattr(node, "stack", ()):
            raise errors.ParamsError(
                "layers that are not stacked",
                f"{leaf} of a stack of {node.stack}",
                "convert the members one by one, and stack them",
            )
        where, _, name = leaf.rpartition("/")
        entry, way = rows[name]
        entry = framework.inside(where, entry) if where and framework.inside else entry
        axes = getattr(node, "axes", None) or ()
        slots.append(Slot(leaf, part, arrays_of(node), axes, x, entry, way))
    _check_reset(kind, [name for _, _, name in within])
    return tuple(slots)


def _check_reset(kind: str, names: list[str]) -> None:
    """Of a GRU with reset_after, which all frameworks have, each bias has its recurrent_bias."""
    if kind == "gru" and names.count("bias") != names.count("recurrent_bias"):
        raise errors.ParamsError(
            "a GRU that resets after the product with h, as that of the other framework does",
            "one without recurrent_bias",
            "build it with reset_after=True",
        )


# --- pairing and moving


def load(framework: Framework, ours: list[Part], groups: Groups, names: Names) -> tuple[dict, dict]:
    """(params, state) of the network with the arrays of the other one."""
    flat: dict[str, dict[str, Any]] = {"params": {}, "state": {}}
    for part, name in _pairs(framework, ours, groups, names):
        group = groups[name]
        with errors.at(part.path) if part.path else errors.within(part.kind):
            _check_entries(framework, part, name, group)
            for slot in part.slots:
                array = _read(framework.join(name, slot.entry), group[slot.entry], slot)
                path = f"{part.path}/{slot.leaf}" if part.path else slot.leaf
                flat[slot.part][path] = jnp.array(slot.ours(array))
    return tree.unflatten(flat["params"]), tree.unflatten(flat["state"])


def store(framework: Framework, ours: list[Part], params: Any, state: Any, names: Names) -> Groups:
    """The arrays of the network by layer of the other one, in our order."""
    wanted: dict[str, dict[str, Any]] = {"params": {}, "state": {}}
    for part in ours:
        for slot in part.slots:
            path = f"{part.path}/{slot.leaf}" if part.path else slot.leaf
            wanted[slot.part][path] = slot.array
    errors.check_same("params", params, tree.unflatten(wanted["params"]))
    errors.check_same("state", state, tree.unflatten(wanted["state"]))
    flat = {"params": tree.flatten(params), "state": tree.flatten(state)}
    theirs = _check_names(ours, names)
    groups: Groups = {}
    for part in ours:
        name = theirs.get(part.path, part.path.replace("/", framework.separator))
        if name in groups:
            raise errors.OptionError("one name for each layer", f"two of {name}", "name both")
        groups[name] = {}
        for slot in part.slots:
            path = f"{part.path}/{slot.leaf}" if part.path else slot.leaf
            array = np.array(slot.theirs(on_host(path, flat[slot.part][path])), order="C")
            groups[name][slot.entry] = array
    return groups


def _check_names(ours: list[Part], names: Names) -> dict[str, str]:
    if names is None:
        return {}
    if not isinstance(names, Mapping) or not all(isinstance(n, str) for n in names.values()):
        raise errors.OptionError(
            "names to be a dict of strings", errors.show(names), 'as {"conv1": "features.0"}'
        )
    paths = [part.path for part in ours]
    for path in names:
        if path not in paths:
            unknown(str(path), paths, "layers")
    return dict(names)


def _pairs(
    framework: Framework, ours: list[Part], groups: Groups, names: Names
) -> list[tuple[Part, str]]:
    """Each layer of ours with the name of theirs, in our order; see `fnn.convert`."""
    chosen = _check_names(ours, names)
    for name in chosen.values():
        if name not in groups:
            unknown(name, groups, "layers of the other network")
    if len(set(chosen.values())) < len(chosen):
        twice = next(n for n in chosen.values() if list(chosen.values()).count(n) > 1)
        raise errors.OptionError("one layer for each name", f"two for {twice}", "change one")
    rest = [part for part in ours if part.path not in chosen]
    left = [name for name in groups if name not in chosen.values()]
    plain = {part.path: part.path.replace("/", framework.separator) for part in rest}
    if set(plain.values()) == set(left):
        chosen |= plain
    elif framework.ordered:
        if len(rest) != len(left):
            _unpaired(framework, rest, left, groups)
        chosen |= {part.path: name for part, name in zip(rest, left, strict=True)}
    else:
        chosen |= _by_shape(framework, rest, left, groups)
    return [(part, chosen[part.path]) for part in ours]


def _by_shape(
    framework: Framework, ours: list[Part], theirs: list[str], groups: Groups
) -> dict[str, str]:
    """Layers paired by the shapes of their arrays, and where these are equal, by number."""
    found: dict[str, str] = {}
    for look in dict.fromkeys(_look(part) for part in ours):
        here = [part for part in ours if _look(part) == look]
        there = [name for name in theirs if _look_of(groups[name]) == look]
        if len(here) != len(there):
            continue
        stems = {_numbers(name, framework.separator)[0] for name in there}
        if len(stems) > 1:
            raise errors.ParamsError(
                f"names for {errors.names(part.path for part in here)}, whose shapes are equal",
                f"{errors.names(there)}, which tell no order",
                f'say which is which: names={{"{here[0].path}": ...}}',
            )
        there.sort(key=lambda name: _numbers(name, framework.separator)[1])
        found |= {part.path: name for part, name in zip(here, there, strict=True)}
    if len(found) != len(ours) or len(found) != len(theirs):
        rest = [part for part in ours if part.path not in found]
        left = [name for name in theirs if name not in found.values()]
        _unpaired(framework, rest, left, groups)
    return found


def _look(part: Part) -> tuple:
    return tuple(sorted((slot.entry, slot.shape()) for slot in part.slots))


def _look_of(group: Mapping[str, Any]) -> tuple:
    return tuple(sorted((entry, np.shape(array)) for entry, array in group.items()))


def _numbers(name: str, separator: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """A name without the numbers at the end of its parts, and these; none comes before 0."""
    split = [re.fullmatch(r"(.*?)_?(\d*)", part) for part in name.split(separator)]
    found = [match.groups() for match in split if match]
    return tuple(stem for stem, _ in found), tuple(int(n) if n else -1 for _, n in found)


def _unpaired(framework: Framework, ours: list[Part], theirs: list[str], groups: Groups) -> None:
    here = [f"{part.path or part.kind} {_shown(dict(_look(part)))}" for part in ours]
    there = [f"{name} {_shown(dict(_look_of(groups[name])))}".strip() for name in theirs]
    raise errors.ParamsError(
        f"a layer for each of {errors.names(here)}",
        errors.names(there),
        "build the same layers, or pair them with names=",
    )


def _shown(shapes: Mapping[str, tuple]) -> str:
    inner = ", ".join(f"{entry} {shape}".strip() for entry, shape in shapes.items())
    return f"({inner})"


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
            "cast it, or give xs of the dtype that the network is to compute in",
        )
    return array


def on_host(name: str, value: Any) -> np.ndarray:
    value = value.detach() if hasattr(value, "detach") else value  # a tensor that takes gradients
    if not (hasattr(value, "shape") and hasattr(value, "dtype")):
        raise errors.InputError(f"{name} to be an array", errors.show(value), "pass an array")
    value = native(value, name)
    try:
        return np.asarray(value)
    except (TypeError, RuntimeError):
        raise errors.InputError(
            f"{name} with values that NumPy can read",
            f"{type(value).__name__} {tuple(value.shape)} {value.dtype}",
            "convert outside jit; a tensor on another device or in bfloat16: .cpu().float()",
        ) from None


def mapping(name: str, value: Any) -> Mapping:
    if not isinstance(value, Mapping):
        raise errors.InputError(f"{name} to be a dict of arrays", errors.show(value), "pass a dict")
    return value
