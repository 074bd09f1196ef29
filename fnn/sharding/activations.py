"""Activations that stay on the devices of their examples."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeAlias

import jax
from jax.sharding import NamedSharding, PartitionSpec

from fnn.core import checks, errors
from fnn.core.layer import Layer, as_layer
from fnn.core.placement import Placement
from fnn.core.wrapping import same, same_carry, wrap

To: TypeAlias = str | None  # an axis of the mesh, or None for whole
Rule: TypeAlias = tuple[str, tuple[To, ...], tuple[To, ...]]  # a glob of paths, inputs, outputs

# Sequence parallelism (Korthikanti et al. 2022): where MEGATRON leaves activations whole, positions
# are cut, so a block keeps as little of them on each device as of all else.
COLUMNS, ROWS = ((None, None), (None, "model")), ((None, "model"), ("model", None))
SEQUENCE: tuple[Rule, ...] = (
    ("*attention/[qkv]", *COLUMNS),
    ("*attention/out", *ROWS),
    ("*up", *COLUMNS),
    ("*down", *ROWS),
    ("*norm*", ("model", None), ("model", None)),
)


@errors.named
def constrained(net: Layer, placed: Placement, rules: Sequence[Rule] = ()) -> Layer:
    """The same network, whose layers keep their inputs and outputs where their examples are.

    XLA's partitioner chooses by itself where activations go. Where params are cut, that may be
    along features instead of examples, and then whole batches move between devices. This leaves it
    no such choice. Build the loss on the result; params, state, keys and values are the network's,
    and so is what `fnn.describe` writes of it.

    - `placed`: from `plan`. What goes into and comes out of every layer with params of its own has
      its first axis over `placed.batch`, so that axis counts examples: do not `vmap` over them. One
      that the devices do not divide, as may be that of the example for `init`, stays free.
    - `rules`: triples (glob, inputs, outputs). The glob is over the paths of layers with params;
      the others are the mesh axes for the second axis of each input and output, the third and so
      on, None for whole. The first that matches counts; without one, these axes are free.
      `SEQUENCE`, beside a plan by `MEGATRON`, is sequence parallelism for `transformer_block`.

    Raises OptionError for a rule that matches no layer, ShapeError by path for an axis that does
    not divide.

    >>> import fnn
    >>> net, devices = fnn.serial(fnn.dense(8), jax.nn.relu), fnn.sharding.mesh(data=-1)
    >>> placed = fnn.sharding.plan(devices, net, fnn.optim.sgd(0.1), (8, 3), fsdp="data")
    >>> constrained(net, placed)
    serial(dense1=dense, relu_1=relu)
    """
    used = set()
    for _, *sides in rules:
        for axis in {axis for side in sides for axis in side if axis is not None}:
            checks.choice("rules", axis, placed.mesh.axis_names)

    def around(path: str, layer: Layer) -> Layer:
        if layer.children:
            return layer
        found = (i for i, (glob, *_) in enumerate(rules) if fnmatch.fnmatchcase(path, glob))
        number = next(found, None)
        used.add(number)
        before, after = ((), ()) if number is None else rules[number][1:]

        def apply(layer, params, state, *xs, key, train):
            if not (params and xs):
                return layer.apply(params, state, *xs, key=key, train=train)
            xs = jax.tree.map(partial(_cut, placed, path, before), xs)
            y, state = layer.apply(params, state, *xs, key=key, train=train)
            return jax.tree.map(partial(_cut, placed, path, after), y), state

        return _described_as(
            layer, wrap(layer, apply, declare=same, carry=layer.carry and same_carry)
        )

    whole = as_layer(net)
    net = _described_as(whole, whole.map(around))
    unused = [rule for i, rule in enumerate(rules) if i not in used]
    if unused:
        wanted, mend = "rules that each match a layer", "print the network, which names its layers"
        raise errors.OptionError(wanted, f"{unused[0]!r}, which matches none", mend)
    return net


def _described_as(layer: Layer, changed: Layer) -> Layer:
    """The changed layer with the origin of the other: devices are no part of a network."""
    return changed if layer.origin is None else changed.with_origin(layer.origin)


def _cut(placed: Placement, path: str, axes: tuple[To, ...], x: Any) -> Any:
    """x [B, ...]: its examples where they are, the next axes as given, and the others anyhow."""
    if x.ndim <= len(axes):
        if axes:
            wanted, mend = f"{path}: more than {len(axes)} axes", "name fewer in its rule"
            raise errors.ShapeError(wanted, errors.show(x), mend)
        return x
    for size, axis in zip(x.shape[1:], axes, strict=False):
        ways = 1 if axis is None else placed.mesh.shape[axis]
        if size % ways:
            raise errors.ShapeError(
                f"{path}: an axis that {axis} = {ways} devices divide",
                f"{size} in {x.shape}",
                f"choose a multiple of {ways}, or put a rule before: ({path!r}, (), ())",
            )
    free = PartitionSpec.UNCONSTRAINED
    batch = free if x.shape[0] % placed.ways else placed.batch
    spec = PartitionSpec(batch, *axes, *[free] * (x.ndim - 1 - len(axes)))
    return jax.lax.with_sharding_constraint(x, NamedSharding(placed.mesh, spec))
