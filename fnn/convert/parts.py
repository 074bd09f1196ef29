"""The layers of a network that have arrays, one by one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax

from fnn import tree
from fnn.convert import origins
from fnn.convert.table import Framework, Part, Slot
from fnn.core import errors
from fnn.core.declarations import arrays_of
from fnn.core.layer import Layer
from fnn.core.shapes import as_struct


def parts(framework: Framework, net: Layer, xs: tuple) -> list[Part]:
    """The layers of `net` that have arrays, in order of declaration."""
    if not isinstance(net, Layer):
        raise errors.InputError("a layer", errors.show(net), "as fnn.serial(...)")
    declared = dict(zip(("params", "state"), net.specs(*xs), strict=True))
    inputs = origins.inputs(net, declared["params"], declared["state"], tuple(map(as_struct, xs)))
    nodes = {
        path: (part, node)
        for part, specs in declared.items()
        for path, node in tree.to_paths(specs).items()
    }
    found, used = [], set()
    for at in _leaves(net, nodes, whole=framework.inside is not None):
        own = _below(at.path, nodes)
        if own:
            first = next(x for p, x in inputs.items() if _is_below(p, at.path))
            with errors.at(at.path) if at.path else errors.within(at.layer.name):
                kind = _kind(at.layer.name, own)
                slots = _slots(framework, kind, at, own, first.shape)
            found.append(Part(at.shown, kind, first.origin, slots))
            used |= {f"{at.path}/{name}" if at.path else name for name in own}
    for path in nodes:
        if path not in used:
            with errors.at(path):
                raise errors.ParamsError("an array of a layer", "one of none", "convert it by hand")
    return found


def _is_below(path: str, above: str) -> bool:
    return not above or f"{path}/".startswith(f"{above}/")


def _below(above: str, nodes: Mapping[str, Any]) -> dict[str, Any]:
    """What lies below a path, by what is left of its path."""
    start = len(above) + 1 if above else 0
    return {path[start:]: node for path, node in nodes.items() if _is_below(path, above)}


class _Leaf(NamedTuple):
    """A layer that has no others within, and which one of each stack around it."""

    layer: Layer
    path: str = ""
    shown: str = ""  # the path with the numbers of the members
    member: tuple[int, ...] = ()
    stack: tuple[int, ...] = ()  # how many there are of it

    def child(self, name: str, layer: Layer) -> _Leaf:
        path, shown = (f"{p}/{name}" if p else name for p in (self.path, self.shown))
        return self._replace(layer=layer, path=path, shown=shown)


_LAYERS = ("gru", "lstm", "simple_rnn")  # of recurrent layers, one or more
_CELLS = ("bidirectional", "gru_cell", "lstm_cell", "rnn", "rnn_cell")  # of which kind, they tell
_WITHIN = re.compile(r"((gru|lstm|simple_rnn)(\d+)/?)?(forward|backward)?")


def _leaves(net: Layer, nodes: Mapping[str, Any], *, whole: bool) -> Iterator[_Leaf]:
    """The layers that have no others within; `whole`: nor recurrent layers within theirs."""

    def visit(at: _Leaf) -> Iterator[_Leaf]:
        n = _count(at, nodes) if at.layer.name in ("ensemble", "repeat") else None
        if n is None:
            yield from inside(at)
            return
        for i in range(n):
            shown = f"{at.shown}/{i}" if at.shown else str(i)
            member, stack = (*at.member, i), (*at.stack, n)
            yield from inside(at._replace(shown=shown, member=member, stack=stack))

    def inside(at: _Leaf) -> Iterator[_Leaf]:
        names = [name for name, _ in at.layer.children if name != "dropout"]
        kinds = (*_LAYERS, "bidirectional")
        recurrent = at.layer.name in kinds and all(map(_WITHIN.fullmatch, names))
        if not at.layer.children or (whole and recurrent):
            yield at
            return
        for name, child in at.layer.children:
            yield from visit(at.child(name, child))

    return visit(_Leaf(net))


def _count(at: _Leaf, nodes: Mapping[str, Any]) -> int | None:
    """How many layers a stack has, as far as its arrays tell."""
    for _, node in _below(at.path, nodes).values():
        return node.stack[len(at.stack)] if len(node.stack) > len(at.stack) else None
    return None


def _kind(name: str, own: Mapping[str, Any]) -> str:
    """The kind of a layer; of one made of a cell, told by the number of gates."""
    shapes = {leaf.rpartition("/")[2]: arrays_of(node).shape for leaf, (_, node) in own.items()}
    shape = shapes.get("recurrent_kernel", ())
    if name not in _CELLS or len(shape) < 2:
        return name
    features = shapes.get("projection", shape)[-2]
    return {1: "simple_rnn", 3: "gru", 4: "lstm"}.get(shape[-1] // features, name)


def _place(leaf: str) -> tuple[int, bool]:
    """Sorts lstm1/forward, lstm1/backward, lstm2/forward ... lstm10/backward."""
    within = _WITHIN.fullmatch(leaf.rpartition("/")[0])
    return (int(within[3] or 0), within[4] == "backward") if within else (0, False)


def _slots(framework: Framework, kind: str, at: _Leaf, own: Mapping, x: tuple) -> tuple[Slot, ...]:
    rows = framework.table.get(kind, {})
    within = [leaf.rpartition("/") for leaf in own]
    if kind in ("ensemble", "repeat"):
        raise errors.ParamsError(
            "a stack whose layers have a name", f"{kind} of one layer", "put it in fnn.serial"
        )
    if not all(name in rows and _WITHIN.fullmatch(where) for where, _, name in within):
        raise errors.ParamsError(
            f"a layer of a kind that this framework has, {errors.names(sorted(framework.table))}",
            f"{kind} with {errors.names(own)}",
            "convert its network without it, and put its values in with fnn.tree.merge",
        )
    slots, order = [], list(rows)
    for leaf in sorted(own, key=lambda leaf: (_place(leaf), order.index(leaf.rpartition("/")[2]))):
        part, node = own[leaf]
        array, stack = arrays_of(node), node.stack
        if stack != at.stack:
            raise errors.ParamsError(
                "layers that fnn.repeat and fnn.ensemble stack",
                f"{leaf} of another stack of {stack}",
                "convert the members one by one, and stack them",
            )
        where, _, name = leaf.rpartition("/")
        entry, way = rows[name]
        slots.append(
            Slot(
                leaf=leaf,
                part=part,
                path=f"{at.path}/{leaf}" if at.path else leaf,
                array=jax.ShapeDtypeStruct(array.shape[len(stack) :], array.dtype),
                axes=getattr(node, "axes", None) or (),
                x=x,
                entry=framework.inside(where, entry) if where and framework.inside else entry,
                way=way,
                stack=stack,
                member=at.member,
            )
        )
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
