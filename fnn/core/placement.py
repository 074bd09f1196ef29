"""Where the arrays of a training run are on a mesh of devices."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec, Sharding

from fnn.core import errors
from fnn.core.agreement import is_spread
from fnn.core.types import Tree


class Row(NamedTuple):
    """One array of a placement."""

    path: str
    shape: tuple[int, ...]
    dtype: Any
    spec: PartitionSpec
    bytes: int  # of a device


@dataclass(frozen=True)
class Placement:
    """Where a training state and its batches are: what `fnn.sharding.plan` returns.

    `fnn.train.init`, `fnn.train.step` and `fnn.train.evaluator` take it as `shardings=`.

    - `mesh`: the devices, in named axes.
    - `train_state`: a tree like the training state, of `jax.sharding.NamedSharding`.
    - `shapes`: the same, of `jax.ShapeDtypeStruct`.
    - `batch`: the mesh axes over which the first axis of every array of a batch is cut.

    Printed, it is a table of every array with its PartitionSpec and its bytes on each device.

    >>> import fnn
    >>> net, tx = fnn.dense(8), fnn.optim.sgd(0.1)
    >>> placed = fnn.sharding.plan(fnn.sharding.mesh(data=-1), net, tx, (8, 4))
    >>> placed.batch, [row.path for row in placed.rows()][:3]
    (('data',), ['step', 'params/bias', 'params/kernel'])
    """

    mesh: Mesh | AbstractMesh
    train_state: Any
    shapes: Any
    batch: tuple[str, ...]

    def rows(self) -> Iterator[Row]:
        """Every array of the training state."""
        shapes = jax.tree_util.tree_leaves_with_path(self.shapes)
        for (keys, x), sharding in zip(shapes, jax.tree.leaves(self.train_state), strict=True):
            local = math.prod(sharding.shard_shape(x.shape)) * x.dtype.itemsize
            yield Row(errors.path_of(keys), x.shape, x.dtype, sharding.spec, local)

    def __str__(self) -> str:
        rows = list(self.rows())
        sizes = ", ".join(f"{name}={size}" for name, size in self.mesh.shape.items())
        paths = [row.path for row in rows]
        specs = [", ".join(str(part) for part in row.spec) or "whole" for row in rows]
        width, wide = max(map(len, paths)), max(map(len, specs))
        lines = [f"mesh {sizes}; a batch over {', '.join(self.batch) or 'none'}"]
        lines += [
            f"{row.path:{width}}  {spec:{wide}}  {row.bytes:>14,}"
            for row, spec in zip(rows, specs, strict=True)
        ]
        for name in ("params", "state", "opt_state"):
            here = [row for row in rows if row.path.split("/")[0] == name]
            whole = sum(math.prod(row.shape) * row.dtype.itemsize for row in here)
            local = sum(row.bytes for row in here)
            if here:
                lines.append(f"{name}: {local:,} bytes a device, of {whole:,}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"Placement({dict(self.mesh.shape)})"

    # --- of a batch

    @property
    def batch_sharding(self) -> NamedSharding:
        """The sharding of an array [B, ...], for `fnn.data.stream(device=...)`."""
        return NamedSharding(self.mesh, PartitionSpec(self.batch))

    @property
    def whole(self) -> NamedSharding:
        """The sharding of an array that every device has all of."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def ways(self) -> int:
        """In how many parts a batch is cut."""
        return math.prod(self.mesh.shape[axis] for axis in self.batch)

    def of_batch(self, x: Any) -> NamedSharding:
        """The sharding of one array of a batch."""
        return self.batch_sharding if np.ndim(x) else self.whole

    def put(self, batch: Tree, name: str = "batch", *, whole: bool = False) -> Tree:
        """A batch with its host arrays on the devices, each of which gets its own part alone.

        Of several processes each passes the part that its devices hold, or, with `whole`, all.
        """
        ways = self.ways
        several = jax.process_count() > 1
        parts = part_of(self.batch_sharding, ways)[1] if several and not whole else 1

        def one(keys, x):
            if isinstance(x, jax.Array):  # traced, or placed by its owner; the step constrains it
                return x
            self.check_here()
            if np.ndim(x) and len(x) * parts % ways:
                path = errors.path_in(name, keys)
                own = " in each process" if parts > 1 else ""
                raise errors.ShapeError(
                    f"a first axis that {ways // parts} devices divide{own}",
                    f"{path} {errors.show(x)}",
                    f"choose a batch_size that is a multiple of {ways}",
                )
            if several and (whole or not np.ndim(x)):
                x = np.asarray(x)
                return jax.make_array_from_callback(x.shape, self.of_batch(x), x.__getitem__)
            if several:
                return joined(self.of_batch(x), np.asarray(x), parts)
            return jax.device_put(x, self.of_batch(x))

        return jax.tree_util.tree_map_with_path(one, batch)

    def everywhere(self, tree: Tree) -> Tree:
        """Host arrays, whole on every device; each process passes the same."""
        self.check_here()
        if jax.process_count() == 1:
            return jax.device_put(tree, self.whole)

        def one(x):
            if is_spread(x):  # placed by its owner
                return x
            x = np.asarray(x)
            return jax.make_array_from_callback(x.shape, self.whole, x.__getitem__)

        return jax.tree.map(one, tree)

    def constrain_batch(self, batch: Tree) -> Tree:
        """The same batch inside a program, cut as batches are."""
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, self.of_batch(x)), batch)

    def check_here(self) -> None:
        """Refuse arrays for devices that only a dry run knows."""
        if isinstance(self.mesh, AbstractMesh):
            raise errors.InputError(
                "a plan on devices that are here",
                f"one on {dict(self.mesh.shape)} by fnn.sharding.mesh(on=...), for fnn.dryrun",
                "plan on fnn.sharding.mesh(data=8), with as many devices as there are",
            )

    def spread(self, x: jax.Array, axis: int) -> jax.Array:
        """An array inside a program, cut along this axis over all devices, if they divide it."""
        if x.shape[axis] % self.mesh.size:
            return x
        spec = PartitionSpec(*[None] * axis, self.mesh.axis_names)
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))

    # --- of a training state

    def constrain(self, train_state: Any) -> Any:
        """The same training state inside a program, placed as this says; its key stays."""
        fixed = self.train_state._replace(key=None)
        here = train_state._replace(key=None)
        self.check(here, fixed)
        placed = jax.lax.with_sharding_constraint(here, fixed)
        return placed._replace(key=train_state.key)

    def check(self, train_state: Any, planned: Any) -> None:
        """Refuse a training state of another structure."""
        if jax.tree.structure(train_state) != jax.tree.structure(planned):
            raise errors.InputError(
                f"the training state that was planned, {errors.show(self.shapes)}",
                errors.show(train_state),
                "make a plan for this network and optimizer: fnn.sharding.plan(mesh, net, tx, x)",
            )


def joined(sharding: Sharding, x: np.ndarray, parts: int) -> jax.Array:
    """One array of the parts of all processes."""
    whole = None if jax.process_count() == 1 else (len(x) * parts, *x.shape[1:])
    return jax.make_array_from_process_local_data(sharding, x, whole)


def part_of(sharding: Sharding, batch_size: int) -> tuple[int, int]:
    """(index, count): which of how many equal parts of a batch the devices of this process hold."""
    if isinstance(sharding, NamedSharding):
        sharding = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[:1]))
    held = sharding.addressable_devices_indices_map((batch_size,)).values()
    rows = sorted({(of[0].start or 0, of[0].stop or batch_size) for of in held if of is not None})
    start, stop = (rows[0][0], rows[-1][1]) if rows else (0, 0)
    size = sum(b - a for a, b in rows)
    if not size or size != stop - start or start % size or batch_size % size:
        raise errors.OptionError(
            "devices of each process that hold one contiguous part of a batch, as large as others'",
            f"rows {', '.join(f'{a} to {b}' for a, b in rows)} of {batch_size}",
            "make the mesh by fnn.sharding.mesh(data=-1), whose order follows the processes",
        )
    return start // size, batch_size // size
