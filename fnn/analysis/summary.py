"""A network layer by layer, as a table and as data."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax

from fnn import tree
from fnn.analysis.flops import operations
from fnn.analysis.units import of_bytes, short
from fnn.core import errors
from fnn.core.declarations import Param, arrays_of
from fnn.core.inputs import by_position
from fnn.core.layer import Layer, as_layer, inputs_of, outline, traced
from fnn.core.reserved import without, without_here
from fnn.core.shapes import as_struct, struct
from fnn.core.types import Tree
from fnn.initializers import zeros
from fnn.layers.frozen import held_in

_MARK = "(mark)"  # a state in every layer; its stack gives the number of copies


class Row(NamedTuple):
    """One layer of a summary.

    - `path`: in the network, "" for the network itself; `kind`: the layer's name.
    - `output`: of one call, a tree of ShapeDtypeStructs.
    - `copies`: the number of copies that `repeat` and `ensemble` make of it.
    - `params`, `state`: the numbers of values in all copies; `frozen`: of frozen params.
    - `flops`: of all calls of all copies, sublayers included; a cell's in every step of its `rnn`.
    - `leaf`: whether it has no sublayers.
    """

    path: str
    kind: str
    output: Tree
    copies: int
    params: int
    state: int
    flops: int
    leaf: bool
    frozen: int


@dataclass(frozen=True)
class Summary:
    """The rows of a network in the order of calls, the network itself last; `str` gives a table."""

    rows: tuple[Row, ...]
    nbytes: int

    @property
    def params(self) -> int:
        return self.rows[-1].params

    @property
    def frozen(self) -> int:
        return self.rows[-1].frozen

    @property
    def state(self) -> int:
        return self.rows[-1].state

    @property
    def flops(self) -> int:
        return self.rows[-1].flops

    def table(self) -> Any:
        """The table of the leaf layers and the totals, for `rich.print` (extra `table`)."""
        try:
            from rich.table import Table
        except ImportError:
            raise ImportError("the table needs rich: pip install 'fnn[table]'") from None
        table = Table(show_footer=True)
        total = f"{self.params:,}\n{of_bytes(self.nbytes)}"
        total += f"\n{self.frozen:,} frozen" if self.frozen else ""
        for header, footer in (("layer", "total"), ("output", "")):
            table.add_column(header, footer, no_wrap=True)
        for header, footer in (("params", total), ("FLOPs", short(self.flops))):
            table.add_column(header, footer, no_wrap=True, justify="right")
        for row in self.rows:
            if row.leaf or len(self.rows) == 1:
                times = f"{row.copies} x " if row.copies > 1 else ""
                output = times + _shapes(row.output)
                params = f"{row.params:,}" if row.params else ""
                table.add_row(
                    row.path or row.kind, output, params, short(row.flops) if row.flops else ""
                )
        return table

    def __str__(self) -> str:
        from io import StringIO

        table = self.table()
        from rich.console import Console

        text = StringIO()
        Console(file=text, width=120, color_system=None).print(table)
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


@errors.named
def summary(net: Layer, *xs: Any, train: bool = False, **inputs: Any) -> Summary:
    """A row per layer: its path, output shape, parameters and FLOPs; and the totals.

    - `xs`: inputs as for `net.init`: arrays, ShapeDtypeStructs or shapes, by position or by name.
      Nothing is computed.
    - `train`: whether to count the operations of training mode.

    FLOPs are those of one forward pass on `xs` (see `count_flops`). The row of a body includes what
    it computes between its sublayers. A layer called many times has one row, with the FLOPs of all
    calls: of n members in `repeat` and `ensemble`, of T steps for a cell in `rnn`. `print` shows
    the table, which needs the extra `table`.

    >>> import fnn
    >>> net = fnn.serial(fnn.dense(8), jax.nn.relu, fnn.dense(3))
    >>> found = fnn.analysis.summary(net, (2, 4))
    >>> found.params, [(row.path, row.params) for row in found.rows]
    (67, [('dense1', 40), ('relu_1', 0), ('dense2', 27), ('', 67)])
    """
    net, found = as_layer(net), dict[str, Row]()

    def watch(path: str, layer: Layer) -> Layer:
        def look(*xs):
            (params, state), y = outline(layer, xs)
            specs = arrays_of((params, without(_MARK, state)))
            held = tree.count(held_in(specs[1]))
            own, kept = tree.count(specs[0]) + held, tree.count(specs[1]) - held
            output, leaf = jax.tree.map(struct, y), not layer.children
            found.setdefault(path, Row(path, layer.name, output, 1, own, kept, 0, leaf, held))
            return (params, {**state, _MARK: Param((), zeros)}), y

        def apply(params, state, *xs, key=None, train=False):
            y, after = layer.apply(params, without_here(_MARK, state), *xs, key=key, train=train)
            return y, {**after, _MARK: state[_MARK]} if _MARK in state else after

        return replace(layer, specs=traced(look, inputs_of(layer)), apply=apply)

    watched = net.map(watch)
    xs = tuple(map(as_struct, by_position(inputs_of(watched), xs, inputs)))
    params, state = traced(lambda *xs: outline(watched, xs), inputs_of(watched)).declare(*xs)
    arrays = arrays_of((params, without(_MARK, state)))
    flops = _flops_by_path(jax.make_jaxpr(_Run(net, train))(*arrays, *xs).jaxpr)
    rows = tuple(
        _times(row, _copies(state, path))._replace(flops=flops[path]) for path, row in found.items()
    )
    return Summary(rows, tree.nbytes(arrays))


def _flops_by_path(jaxpr: Any) -> Counter[str]:
    """The operations of every layer, its sublayers included; the network's are at ""."""
    found: Counter[str] = Counter()
    for op in operations(jaxpr):
        names = op.place.names
        for depth in range(len(names) + 1):
            found["/".join(names[:depth])] += op.times * op.flops
    return found


class _Run(NamedTuple):
    layer: Layer
    train: bool

    def __call__(self, params, state, *xs):
        key = jax.random.key(0) if self.train else None
        return self.layer.apply(params, state, *xs, key=key, train=self.train)


def _copies(state: Tree, path: str) -> int:
    for name in filter(None, path.split("/")):
        state = state[name]
    return math.prod(state[_MARK].stack)


def _times(row: Row, n: int) -> Row:
    counts = {name: n * getattr(row, name) for name in ("params", "state", "frozen")}
    return row._replace(copies=n, **counts)


def _shapes(output: Tree) -> str:
    return ", ".join(errors.show(a).replace(" float32", "") for a in jax.tree.leaves(output))
