"""A program that compiles an exported function for devices that are not there.

    python compiler.py FOLDER

It runs in a process of its own, perhaps by another interpreter, and so imports no part of fnn. It
reads request.json and program.bin from the folder, and leaves result.json and program.txt. The
topologies that it asks for are experimental in JAX, and are used nowhere else.
"""

from __future__ import annotations

import json
import pathlib
import sys
import time
from typing import Any

import jax
from jax import export
from jax.experimental import topologies
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def devices_of(platform: str, shape: str, name: str, target: str) -> list[Any]:
    if platform == "tpu":
        one = {"chips_per_host_bounds": (1, 1, 1)} if set(shape) <= {"1", "x"} else {}
        return topologies.get_topology_desc(f"{name}:{shape}", platform="tpu", **one).devices
    jax.devices()  # lets JAX find the plug-in, which says that there is no driver and goes on
    return topologies.get_topology_desc(
        "gpu", platform="cuda", target_config=target, topology=shape
    ).devices


def compiled(request: dict[str, Any], program: bytes) -> Any:
    devices = devices_of(*(request[key] for key in ("platform", "shape", "name", "target")))
    exported = export.deserialize(bytearray(program))
    sizes, names = request["sizes"], request["names"]
    mesh = jax.make_mesh(sizes, names, axis_types=(AxisType.Auto,) * len(sizes), devices=devices)
    whole = NamedSharding(mesh, PartitionSpec())  # where one device needs no sharding
    places = [to or whole for to in exported.in_shardings_jax(mesh)]
    structs = [
        jax.ShapeDtypeStruct(aval.shape, aval.dtype, sharding=to)
        for aval, to in zip(exported.in_avals, places, strict=True)
    ]
    call = jax.jit(
        exported.call,
        donate_argnums=tuple(range(request["donated"])),
        out_shardings=list(exported.out_shardings_jax(mesh)),
    )
    return call.lower(*structs).compile()


def main(folder: pathlib.Path) -> None:
    request = json.loads((folder / "request.json").read_text())
    start, result = time.perf_counter(), {}
    try:
        done = compiled(request, (folder / "program.bin").read_bytes())
    except jax.errors.JaxRuntimeError as error:  # out of memory, among others
        result["error"] = str(error)
    else:
        sizes = done.memory_analysis()
        names = ("argument", "output", "alias", "temp", "generated_code")
        result["memory"] = {name: getattr(sizes, f"{name}_size_in_bytes") for name in names}
        (folder / "program.txt").write_text(done.as_text())
    result["seconds"] = time.perf_counter() - start
    (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
