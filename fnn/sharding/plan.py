"""The placement of a training state, by rules over the logical axes that its layers declare."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from fnn.core import checks, errors
from fnn.core.declarations import Param, declared, output_axis
from fnn.core.layer import Layer
from fnn.core.placement import Placement
from fnn.core.reserved import FROZEN, is_under
from fnn.core.types import Tree
from fnn.optim.transform import Transform
from fnn.train.step import TrainState
from fnn.train.step import shapes as shapes_of

To: TypeAlias = str | tuple[str, ...]  # one or several axes of the mesh
Rule: TypeAlias = tuple[str, Mapping[str, To]]  # a glob of paths, and from logical axes to the mesh

# Tensor parallelism (Shoeybi et al. 2019): what leads into heads, hidden units and the vocabulary
# is cut by columns, what leads out of them by rows, so a block sums over devices twice.
MEGATRON: tuple[Rule, ...] = (
    ("*", {axis: "model" for axis in ("heads", "kv_heads", "hidden", "vocabulary")}),
)


@errors.named
def plan(
    mesh: Mesh | AbstractMesh,
    net: Layer,
    tx: Transform,
    *xs: Any,
    rules: Sequence[Rule] = (),
    fsdp: To | None = None,
    batch: To | None = None,
    least: int = 1024,
) -> Placement:
    """Where each array of a training state is to be: a `Placement`, made without any array.

    Data parallelism needs no more than the mesh: every device has all params, and its part of each
    batch. `fsdp` cuts each param, with all that the optimizer keeps of it, along the longest axis
    that the devices divide (fully sharded data parallelism, as in Rajbhandari et al. 2020, "ZeRO",
    stage 3); along its output axis only if no other divides, since a partitioner that meets outputs
    cut over the devices of the batch gathers the batch instead of the param. `rules` cut by name:
    tensor parallelism.

    - `mesh`: from `mesh`, with automatic axes.
    - `xs`: inputs like the network's, as for `net.init`.
    - `rules`: pairs (glob, {logical axis: mesh axis}), where the glob is over paths, as in
      `fnn.tree.select`, and the axes are those of `fnn.Param`. Of each array the first rule counts
      that matches its path and names one of its axes; one with {} leaves the array whole, and an
      axis that goes to () is cut by `fsdp` alone. "stack" names the axis of members, such as the
      experts of `moe`. Heads are cut whole: where the devices are more than the heads of k and v,
      ("*attention/[kv]/*", {"kv_heads": ()}) before `MEGATRON` gives each of them all of these.
    - `fsdp`: the mesh axis, or axes.
    - `batch`: the mesh axes over which batches are cut: by default `fsdp`, else the first axis.
    - `least`: the number of values below which `fsdp` leaves an array whole.

    The stack axis of `repeat` is never cut by `fsdp`, since its scan needs each layer whole in
    turn. Optimizer state follows its param by path; where its shape is another (factored moments),
    `fsdp` cuts its longest axis. State, such as batch norm's, is whole on each device, but for what
    `frozen` and `lora` keep there, which is placed as params are.

    Raises OptionError for a rule that matches nothing, for axes that the mesh lacks or that are
    explicit, and ShapeError by path for an axis that does not divide.

    >>> import fnn
    >>> net, tx = fnn.transformer_block(8, 2), fnn.optim.adam(1e-3)
    >>> placed = plan(fnn.sharding.mesh(data=-1, model=1), net, tx, (2, 5, 8), rules=MEGATRON)
    >>> len(list(placed.rows())) > 10
    True
    """
    _check_mesh(mesh)
    fsdp, batch = _axes(mesh, "fsdp", fsdp), _axes(mesh, "batch", batch)
    batch = batch or fsdp or (mesh.axis_names[0],)
    shapes = shapes_of(net, tx, *xs)
    rules = [(glob, {name: _axes(mesh, "rules", to) for name, to in to_of.items()})
             for glob, to_of in rules]  # fmt: skip
    params, state = map(declared, net.specs(*xs))
    frozen = {path: param for path, param in _by_path(state).items() if _is_frozen(path)}
    specs = _specs(mesh, _by_path(params) | frozen, rules, fsdp, least)

    def sharding(spec):
        return NamedSharding(mesh, spec)

    def of_opt_state(keys, x):
        path = errors.path_of(keys)
        known = [p for p in specs if path == p or path.endswith(f"/{p}")]
        if known:
            spec, shape = specs[max(known, key=len)]
            more = len(x.shape) - len(shape)
            if more >= 0 and x.shape[more:] == shape:
                return sharding(PartitionSpec(*[None] * more, *spec))
        cut: list[Any] = [None] * len(x.shape)
        return sharding(_spec(_fully(mesh, cut, x.shape, range(len(x.shape)), fsdp, least)))

    whole = sharding(PartitionSpec())

    def of_network(keys, _):
        path = errors.path_of(keys)
        return sharding(specs[path][0]) if path in specs else whole

    train_state = TrainState._make((
        whole,
        jax.tree_util.tree_map_with_path(of_network, shapes.params),
        jax.tree_util.tree_map_with_path(of_network, shapes.state),
        jax.tree_util.tree_map_with_path(of_opt_state, shapes.opt_state),
        whole,
    ))  # fmt: skip
    return Placement(mesh, train_state, shapes, batch)


def _check_mesh(mesh: Any) -> None:
    if not isinstance(mesh, (Mesh, AbstractMesh)):
        wanted = "a mesh of devices"
        raise errors.InputError(wanted, errors.show(mesh), "make one: fnn.sharding.mesh(data=8)")
    if any(kind != AxisType.Auto for kind in mesh.axis_types):
        raise errors.OptionError(
            "a mesh of automatic axes",
            f"axis types {', '.join(kind.name for kind in mesh.axis_types)}",
            "make it by fnn.sharding.mesh(data=8), or pass axis_types to jax.make_mesh",
        )


def _axes(mesh: Mesh | AbstractMesh, option: str, to: To | None) -> tuple[str, ...]:
    """Axes of the mesh, as a tuple."""
    axes = () if to is None else (to,) if isinstance(to, str) else tuple(to)
    for axis in axes:
        checks.choice(option, axis, mesh.axis_names)
    return axes


def _by_path(declarations: Tree) -> dict[str, Param]:
    found = jax.tree_util.tree_leaves_with_path(declarations)
    return {errors.path_of(keys): param for keys, param in found}


def _is_frozen(path: str) -> bool:
    return any(is_under(FROZEN, name) for name in path.split("/"))


def _specs(
    mesh: Mesh | AbstractMesh,
    arrays: Mapping[str, Param],
    rules: Sequence[tuple[str, Mapping[str, tuple[str, ...]]]],
    fsdp: tuple[str, ...],
    least: int,
) -> dict[str, tuple[PartitionSpec, tuple[int, ...]]]:
    """The spec and the shape of every declared array, by path."""
    specs, used = {}, set()
    for path, param in arrays.items():
        shape, names = param.stack + param.shape, _names(param)
        rule = next(
            (rule for rule in rules if fnmatch.fnmatchcase(path, rule[0])
             and (not rule[1] or set(rule[1]) & set(names))),
            None,
        )  # fmt: skip
        cut = [rule[1].get(name) if rule else None for name in names]
        _check_cut(mesh, path, param, names, cut)
        if rule:
            used.add(rules.index(rule))
        if rule is None or rule[1]:
            cut = _fully(mesh, cut, shape, _inputs(param), fsdp, least)
        specs[path] = _spec(cut), shape
    unused = [rule for i, rule in enumerate(rules) if i not in used]
    if unused:
        known = sorted({name for p in arrays.values() for name in p.axes or ()})
        raise errors.OptionError(
            "rules that each match an array's path and one of its axes",
            f"{unused[0]!r}, which matches none",
            f"see fnn.tree.paths(params); the axes here are {errors.names(known)}",
        )
    return specs


def _names(param: Param) -> tuple[str, ...]:
    """A name for each axis of a param: "stack" is the innermost axis of its stack."""
    inner = ("",) * (len(param.stack) - 1) + ("stack",) * bool(param.stack)
    return inner + (param.axes or ("",) * len(param.shape))


def _inputs(param: Param) -> list[int]:
    """The axes of one member's array, but for that of its outputs if there are others."""
    stack, axes = len(param.stack), range(len(param.shape))
    inner = [i for i in axes if i != output_axis(param)] or axes
    return [stack + i for i in inner]


def _fully(
    mesh: Mesh | AbstractMesh,
    cut: list[Any],
    shape: tuple[int, ...],
    first: Sequence[int],
    fsdp: tuple[str, ...],
    least: int,
) -> list[Any]:
    """The cut that `fsdp` takes further: along the longest of the axes `first`, else of those after
    the stack, of which its devices and those that cut it already divide the size."""
    fsdp = tuple(axis for axis in fsdp if not any(axis in (of or ()) for of in cut))
    if not fsdp or math.prod(shape) < least:
        return cut
    cuts = [(*(of or ()), *fsdp) for of in cut]
    ways = [math.prod(mesh.shape[axis] for axis in of) for of in cuts]
    for axes in (first, range(min(first, default=0), len(shape))):
        free = [i for i in axes if shape[i] and not shape[i] % ways[i]]
        if free:
            longest = max(free, key=lambda i: shape[i])
            return [cuts[i] if i == longest else of for i, of in enumerate(cut)]
    return cut


def _spec(cut: list[Any]) -> PartitionSpec:
    """One axis of the mesh by its name, several as a tuple."""
    return PartitionSpec(*(to[0] if to and len(to) == 1 else to or None for to in cut))


def _check_cut(
    mesh: Mesh | AbstractMesh, path: str, param: Param, names: Sequence[str], cut: Sequence[Any]
) -> None:
    axes, stack = [axis for to in cut if to for axis in to], len(param.stack)
    if len(set(axes)) < len(axes):
        wanted, mend = (
            f"{path}: each axis of the mesh once",
            f"give it a rule before: ({path!r}, ...)",
        )
        raise errors.OptionError(wanted, f"{dict(zip(names, cut, strict=True))}", mend)
    shape = param.stack + param.shape
    parts = (None,) * stack + (param.parts or (None,) * len(param.shape))
    for name, size, n, to in zip(names, shape, parts, cut, strict=True):
        ways = math.prod(mesh.shape[axis] for axis in to or ())
        if (n or size) % ways:
            layer = "/".join((*path.split("/")[:-1], "*"))
            raise errors.ShapeError(
                f"{path}: an axis {name!r} that {' x '.join(to)} = {ways} devices divide",
                f"{size} in {shape}" + (f", {n} parts" if n else ""),
                f"choose a multiple of {ways}, or put a rule before: ({layer!r}, {{{name!r}: ()}})",
            )
