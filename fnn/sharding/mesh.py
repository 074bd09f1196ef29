"""Devices in named axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, overload

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh

from fnn.core import checks, errors
from fnn.sharding.machines import topology


@overload
def mesh(devices: Sequence[Any] | None = None, *, on: None = None, **sizes: int) -> Mesh: ...
@overload
def mesh(devices: None = None, *, on: str, **sizes: int) -> AbstractMesh: ...


@errors.named
def mesh(
    devices: Sequence[Any] | None = None, *, on: str | None = None, **sizes: int
) -> Mesh | AbstractMesh:
    """All devices as a `jax.sharding.Mesh` with these axes, in the order that suits the machine.

    - `sizes`: the size of each axis, by name; one of them may be -1, for all that is left.
    - `devices`: those to use; by default all, those of other processes included.
    - `on`: devices that are not here, such as "v5p:4x4x4", for `fnn.dryrun`; the mesh is abstract.

    The axes are automatic: XLA's partitioner places what a program computes between the arrays that
    are placed. Raises OptionError if the sizes do not multiply to the number of devices.

    >>> mesh(data=-1, model=1).shape["model"]
    1
    >>> mesh(on="v5p:4x4x4", data=-1, model=8).shape["data"]
    8
    """
    if devices is None and on is None:
        devices = jax.devices()
    available = topology(on).devices if on is not None else len(devices or ())
    if not sizes:
        raise errors.OptionError("at least one axis", "none", "name them, as mesh(data=8)")
    known = {name: checks.count(name, n) for name, n in sizes.items() if n != -1}
    others, rest = math.prod(known.values()), [name for name in sizes if name not in known]
    if len(rest) == 1 and not available % others:
        known[rest[0]] = available // others
    if len(known) < len(sizes) or math.prod(known.values()) != available:
        raise errors.OptionError(
            f"sizes whose product is {available}, the number of devices",
            ", ".join(f"{name}={n}" for name, n in sizes.items()),
            "change one, give one axis as -1, or pass fewer devices, as devices=jax.devices()[:4]",
        )
    shape = tuple(known[name] for name in sizes)
    kinds = (AxisType.Auto,) * len(shape)
    if on is not None:
        return AbstractMesh(shape, tuple(sizes), axis_types=kinds)
    return jax.make_mesh(shape, tuple(sizes), axis_types=kinds, devices=devices)
