"""The layers of a network that hold arrays, one by one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax

from fnn import tree
from fnn.convert import origins
from fnn.convert.table import Framework, Leaf, Part
from fnn.core import errors
from fnn.core.declarations import arrays_of
from fnn.core.layer import Layer
from fnn.core.shapes import as_struct
from fnn.core.types import Shape


def parts(framework: Framework, net: Layer, xs: tuple) -> list[Part]:
    """The layers of `net` that hold arrays, in order of declaration."""
    if not isinstance(net, Layer):
        raise errors.InputError("a layer", errors.show(net), "as fnn.serial(...)")
    declared = dict(zip(("params", "state"), net.specs(*xs), strict=True))
    inputs = origins.inputs(net, declared["params"], declared["state"], tuple(map(as_struct, xs)))
    nodes = {
        path: (collection, node)
        for collection, specs in declared.items()
        for path, node in tree.to_paths(specs).items()
    }
    found, used = [], set()
    for at in _innermost(net, nodes, whole=framework.inside is not None):
        own = _below(at.path, nodes)
        if own:
            first = next(x for p, x in inputs.items() if _is_below(p, at.path))
            with errors.at(at.path) if at.path else errors.within(at.layer.name):
                kind = _kind(at.layer.name, own)
                leaves = _leaves(framework, kind, at, own, first.shape)
            found.append(Part(at.shown, kind, first.origin, leaves))
            used |= {f"{at.path}/{name}" if at.path else name for name in own}
    for path in nodes:
        if path not in used:
            with errors.at(path):
                raise errors.ParamsError("an array of a layer", "one of none", "convert it by hand")
    return found


def _is_below(path: str, above: str) -> bool:
    return not above or f"{path}/".startswith(f"{above}/")


def _below(above: str, nodes: Mapping[str, Any]) -> dict[str, Any]:
    """The nodes below a path, by the rest of their paths."""
    start = len(above) + 1 if above else 0
    return {path[start:]: node for path, node in nodes.items() if _is_below(path, above)}


class _Innermost(NamedTuple):
    """A layer without inner layers, and its place in each stack around it."""

    layer: Layer
    path: str = ""
    shown: str = ""  # the path with the numbers of the members
    member: tuple[int, ...] = ()
    stack: tuple[int, ...] = ()  # and the sizes of these stacks

    def child(self, name: str, layer: Layer) -> _Innermost:
        path, shown = (f"{p}/{name}" if p else name for p in (self.path, self.shown))
        return self._replace(layer=layer, path=path, shown=shown)


_LAYERS = ("gru", "lstm", "simple_rnn")  # recurrent layers, one or more
_CELLS = ("bidirectional", "gru_cell", "lstm_cell", "rnn", "rnn_cell")  # whose arrays tell the kind
_WITHIN = re.compile(r"((gru|lstm|simple_rnn)(\d+)/?)?(forward|backward)?")


def _innermost(net: Layer, nodes: Mapping[str, Any], *, whole: bool) -> Iterator[_Innermost]:
    """The layers without inner layers; `whole`: a recurrent layer counts as one."""

    def visit(at: _Innermost) -> Iterator[_Innermost]:
        n = _count(at, nodes) if at.layer.name in ("ensemble", "repeat") else None
        if n is None:
            yield from inside(at)
            return
        for i in range(n):
            shown = f"{at.shown}/{i}" if at.shown else str(i)
            member, stack = (*at.member, i), (*at.stack, n)
            yield from inside(at._replace(shown=shown, member=member, stack=stack))

    def inside(at: _Innermost) -> Iterator[_Innermost]:
        names = [name for name, _ in at.layer.children if name != "dropout"]
        kinds = (*_LAYERS, "bidirectional")
        recurrent = at.layer.name in kinds and all(map(_WITHIN.fullmatch, names))
        if not at.layer.children or (whole and recurrent):
            yield at
            return
        for name, child in at.layer.children:
            yield from visit(at.child(name, child))

    return visit(_Innermost(net))


def _count(at: _Innermost, nodes: Mapping[str, Any]) -> int | None:
    """How many layers a stack has, according to its arrays."""
    for _, node in _below(at.path, nodes).values():
        return node.stack[len(at.stack)] if len(node.stack) > len(at.stack) else None
    return None


def _kind(name: str, own: Mapping[str, Any]) -> str:
    """The kind of a layer; for one made of a cell, from the number of gates."""
    shapes = {leaf.rpartition("/")[2]: arrays_of(node).shape for leaf, (_, node) in own.items()}
    shape = shapes.get("recurrent_kernel", ())
    if name not in _CELLS or len(shape) < 2:
        return name
    features = shapes.get("projection", shape)[-2]
    return {1: "simple_rnn", 3: "gru", 4: "lstm"}.get(shape[-1] // features, name)


def _place(leaf: str) -> tuple[int, bool]:
    """Sort key for lstm1/forward, lstm1/backward, lstm2/forward ... lstm10/backward."""
    within = _WITHIN.fullmatch(leaf.rpartition("/")[0])
    return (int(within[3] or 0), within[4] == "backward") if within else (0, False)


def _leaves(
    framework: Framework, kind: str, at: _Innermost, own: Mapping, x: Shape
) -> tuple[Leaf, ...]:
    rows = framework.table.get(kind, {})
    within = [below.rpartition("/") for below in own]
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
    leaves, order = [], list(rows)
    for below in sorted(own, key=lambda p: (_place(p), order.index(p.rpartition("/")[2]))):
        collection, node = own[below]
        array, stack = arrays_of(node), node.stack
        if stack != at.stack:
            raise errors.ParamsError(
                "layers that fnn.repeat and fnn.ensemble stack",
                f"{below} of another stack of {stack}",
                "convert the members one by one, and stack them",
            )
        where, _, name = below.rpartition("/")
        entry, layout = rows[name]
        leaves.append(
            Leaf(
                name=below,
                collection=collection,
                path=f"{at.path}/{below}" if at.path else below,
                array=jax.ShapeDtypeStruct(array.shape[len(stack) :], array.dtype),
                axes=getattr(node, "axes", None) or (),
                x=x,
                entry=framework.inside(where, entry) if where and framework.inside else entry,
                layout=layout,
                stack=stack,
                member=at.member,
            )
        )
    _check_reset(kind, [name for _, _, name in within])
    return tuple(leaves)


def _check_reset(kind: str, names: list[str]) -> None:
    """In a GRU with reset_after, as in all frameworks, each bias has its recurrent_bias."""
    if kind == "gru" and names.count("bias") != names.count("recurrent_bias"):
        raise errors.ParamsError(
            "a GRU that resets after the product with h, as in the other framework",
            "one without recurrent_bias",
            "build it with reset_after=True",
        )
