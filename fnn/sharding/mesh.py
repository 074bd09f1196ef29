"""Devices in named axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

from fnn.core import checks, errors


@errors.named
def mesh(devices: Sequence[Any] | None = None, **sizes: int) -> Mesh:
    """All devices as a `jax.sharding.Mesh` with these axes, in the order that suits the machine.

    - `sizes`: the size of each axis, by name; one of them may be -1, for all that is left.
    - `devices`: those to use; by default all, those of other processes included.

    The axes are automatic: XLA's partitioner places what a program computes between the arrays that
    are placed. Raises OptionError if the sizes do not multiply to the number of devices.

    >>> mesh(data=-1, model=1).shape["model"]
    1
    """
    devices = jax.devices() if devices is None else list(devices)
    if not sizes:
        raise errors.OptionError("at least one axis", "none", "name them, as mesh(data=8)")
    known = {name: checks.count(name, n) for name, n in sizes.items() if n != -1}
    others, rest = math.prod(known.values()), [name for name in sizes if name not in known]
    if len(rest) == 1 and not len(devices) % others:
        known[rest[0]] = len(devices) // others
    if len(known) < len(sizes) or math.prod(known.values()) != len(devices):
        raise errors.OptionError(
            f"sizes whose product is {len(devices)}, the number of devices",
            ", ".join(f"{name}={n}" for name, n in sizes.items()),
            "change one, give one axis as -1, or pass fewer devices, as devices=jax.devices()[:4]",
        )
    shape = tuple(known[name] for name in sizes)
    kinds = (AxisType.Auto,) * len(shape)
    return jax.make_mesh(shape, tuple(sizes), axis_types=kinds, devices=devices)
