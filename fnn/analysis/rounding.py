"""What rounding the weights of each layer alone does to the outputs of a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fnn.analysis.units import of_bytes
from fnn.core import errors, trees
from fnn.core.declarations import arrays_of, declared
from fnn.core.dtypes import widened
from fnn.core.inputs import by_position
from fnn.core.layer import Layer, as_layer, inputs_of
from fnn.core.shapes import as_array
from fnn.core.types import Dtype, Tree
from fnn.layers.reparam import by_path, check_chosen, check_param_names, of_members
from fnn.layers.rounding import checked_group_size, number_format, rounded

DTYPES = (jnp.bfloat16, jnp.float8_e4m3fn, jnp.float8_e5m2, jnp.int8, jnp.int4)


class Row(NamedTuple):
    """One layer.

    - `path`: in the network, "" for the network itself, all of whose weights are rounded.
    - `nbytes`: of the weights that are rounded.
    - `errors`: by the name of a dtype, the change of the network's outputs, relative to them.
    """

    path: str
    nbytes: int
    errors: Mapping[str, float]


@dataclass(frozen=True)
class Rounding:
    """The rows of a network, in the order of its params, and all layers together last.

    `str` gives a table.
    """

    rows: tuple[Row, ...]

    def __str__(self) -> str:
        names = list(self.rows[-1].errors)
        lines = [["layer", "bytes", *names]] + [
            [row.path or "all", of_bytes(row.nbytes), *(f"{row.errors[n]:.2e}" for n in names)]
            for row in self.rows
        ]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = [
            "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
            for line in lines
        ]
        rule = "-" * max(map(len, text))
        return "\n".join([text[0], rule, *text[1:-1], rule, text[-1]])


@errors.named
def rounding(
    net: Layer,
    params: Tree,
    *xs: Any,
    state: Tree = None,
    dtypes: tuple[Dtype, ...] = DTYPES,
    names: tuple[str, ...] = ("kernel",),
    group_size: int | None = None,
    **inputs: Any,
) -> Rounding:
    """How much the outputs change if the weights of one layer alone are rounded: |y' - y| / |y|.

    The layers that change them most are those to leave out of `fnn.stored`, or to keep in a wider
    dtype. The members of a `repeat` are one layer. The norms are over all outputs in evaluation
    mode, in float32 or wider; the network is compiled once.

    - `xs`: a batch, as for the network.
    - `dtypes`, `names`, `group_size`: as in `fnn.stored`.

    >>> import fnn
    >>> net, x = fnn.serial(fnn.dense(8), jnp.tanh, fnn.dense(3)), jnp.ones((2, 4))
    >>> params, _ = net.init(jax.random.key(0), x)
    >>> found = fnn.analysis.rounding(net, params, x, dtypes=(jnp.int8, jnp.int4))
    >>> [row.path for row in found.rows], list(found.rows[-1].errors)
    (['dense1', 'dense2', ''], ['int8', 'int4'])
    """
    check_param_names(names)
    group_size = checked_group_size(group_size)
    formats = [number_format(dtype) for dtype in dtypes]
    net, state = as_layer(net), {} if state is None else state
    xs = tuple(jax.tree.map(as_array, by_position(inputs_of(net), xs, inputs)))
    specs = net.specs(*xs)[0]
    trees.check_same("params", params, arrays_of(specs))
    check_chosen(params, names)
    of_layer: dict[str, dict] = {"": {}}
    for path, param in by_path(declared(specs)).items():
        if path.split("/")[-1] in names:
            of_layer.setdefault(path[1:].rpartition("/")[0], {})[path] = param
            of_layer[""][path] = param

    @partial(jax.jit, static_argnames="name")
    def near(params, name):
        def one(keys, w):
            path = f"/{errors.path_of(keys)}"
            if path not in of_layer[""]:
                return w
            param = of_layer[""][path]
            how = {"param": param, "name": name, "group_size": group_size}
            return of_members(partial(rounded, **how), param.stack)(w)

        return jax.tree_util.tree_map_with_path(one, params)

    @jax.jit
    def run(params):
        return jax.tree.map(widened, net(params, *xs, state=state))

    @jax.jit
    def apart(params, y):
        change = jax.tree.map(jnp.subtract, run(params), y)
        return _length(change) / _length(y)

    y = run(params)
    few = {name: near(params, name) for name in formats}
    rows = []
    for layer in sorted(of_layer, key=lambda path: path == ""):
        ways = {name: _mixed(params, few[name], set(of_layer[layer])) for name in formats}
        found = {name: float(apart(way, y)) for name, way in ways.items()}
        rows.append(Row(layer, _nbytes(params, set(of_layer[layer])), found))
    return Rounding(tuple(rows))


def _length(tree: Tree) -> jax.Array:
    return jnp.sqrt(sum(jnp.sum(jnp.square(jnp.abs(a))) for a in jax.tree.leaves(tree)))


def _mixed(params: Tree, others: Tree, paths: set[str]) -> Tree:
    """params, with those at some paths from another tree."""

    def pick(keys, a, b):
        return b if f"/{errors.path_of(keys)}" in paths else a

    return jax.tree_util.tree_map_with_path(pick, params, others)


def _nbytes(params: Tree, paths: set[str]) -> int:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return sum(a.nbytes for keys, a in leaves if f"/{errors.path_of(keys)}" in paths)
