"""What a step will be on devices that one does not have, by their own compilers."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export

from fnn.analysis.flops import operations
from fnn.analysis.hlo import parse
from fnn.analysis.scopes import in_program, prefixes, strays
from fnn.core import checks, errors
from fnn.core.placement import Placement
from fnn.core.types import Tree
from fnn.sharding.collectives import by_layer
from fnn.sharding.machines import Topology, topology
from fnn.sharding.report import Array, Memory, Report
from fnn.train.step import TrainState

_PACKAGES = {"tpu": ("libtpu",), "cuda": ("jax_cuda12_plugin", "jax_cuda13_plugin")}
_TPU = {  # without these, the compiler asks a server that only a TPU machine has
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
_UNITS = {unit: 1024**i for i, unit in enumerate("BKMGT")}
_USED = re.compile(r"Used ([\d.]+)([BKMGT]) of|\(([\d.]+)([BKMGT])\) exceeds available")


@errors.named
def dryrun(
    step: Callable,
    train_state: Tree,
    batch: Tree,
    *,
    on: str,
    shardings: Placement | None = None,
    donate: bool = True,
    advise: bool = False,
    python: str | None = None,
) -> Report:
    """A `Report` of one step on devices that this machine lacks: whether it fits, and what moves.

    XLA's own compiler for these devices compiles the step, in a process of its own; nothing runs.
    Memory and collectives are those of the program that the devices would get. Times are on paper.

    - `step`: a training step, `(train_state, batch) -> ...`; any function of two trees will do,
      with `donate=False`.
    - `train_state`, `batch`: arrays or `jax.ShapeDtypeStruct`s; only shapes and dtypes matter. The
      former are `shardings.shapes`, or `fnn.train.shapes(net, tx, x)`.
    - `on`: the devices: "v5e:2x4", "v5p:4x4x4", "v6e:16x16" are chips of a TPU slice, "h100:16",
      "h200:8", "a100:8" GPUs in hosts of eight. See `fnn.sharding.machines`.
    - `shardings`: from `fnn.sharding.plan`, with `fnn.sharding.mesh(on=..., data=...)`; needed for
      more than one device.
    - `donate`: whether the new training state takes the memory of the old one, as in `fit`.
    - `advise`: whether to compile once more, with half of the batch, and say what that saves.
    - `python`: the interpreter of another environment, to compile there; the default is this one.

    The report has the bytes of params, optimizer, batch and temporaries on each device, FLOPs, each
    collective with its layer, and what would help. A step that does not fit is reported, not
    raised; if its arguments alone do not fit, it is not compiled.

    Raises ImportError if the compiler is not installed, OptionError if the mesh has another number
    of devices than `on`.

    >>> import fnn
    >>> net, tx = fnn.serial(fnn.dense(50_000), fnn.dense(50_000)), fnn.optim.adam(1e-3)
    >>> step = fnn.train.step(fnn.train.supervised(net, fnn.losses.squared_error), tx)
    >>> x = jax.ShapeDtypeStruct((8, 50_000), "float32")
    >>> report = fnn.dryrun(step, fnn.train.shapes(net, tx, x), (x, x), on="v5e:1x1")
    >>> report.fits, round(report.params / 1e9), round(report.optimizer / 1e9)
    (False, 20, 40)
    """
    checks.function("step", step, "a training state and a batch")
    place = topology(on)
    sizes = _mesh_sizes(place, shardings)
    args = _structs((train_state, batch), shardings)
    shared = {
        "topology": place, "mesh": sizes, "whole": sum(map(_bytes, jax.tree.leaves(args[0]))),
        **{name: sum(map(_local, jax.tree.leaves(tree))) for name, tree in _parts(*args).items()},
    }  # fmt: skip
    held = sum(shared[name] for name in ("params", "optimizer", "state", "batch"))
    if held > place.machine.memory:
        return Report(**shared, refusal="its arguments alone do not fit; it was not compiled")
    _check_compiler(place, python)
    report = _compiled(step, args, place, sizes, donate, python, shared)
    if advise and report.memory:
        half = jax.tree.map(_half, args[1])
        less = _compiled(step, (args[0], half), place, sizes, donate, python, shared)
        report = report.advised(less)
    return report


def _compiled(
    step: Callable, args: tuple, place: Topology, sizes: dict, donate: bool, python: str | None,
    shared: dict,
) -> Report:  # fmt: skip
    """The report of what the compiler makes of a step."""
    leaves, tree = jax.tree.flatten(args)
    donated = len(jax.tree.leaves(args[0])) if donate else 0

    def flat(*leaves):
        return jax.tree.leaves(step(*jax.tree.unflatten(tree, leaves)))

    program = jax.jit(flat, donate_argnums=tuple(range(donated)))
    counted = operations(program.trace(*leaves).jaxpr.jaxpr)
    request = {
        "platform": place.machine.platform, "name": place.machine.name, "shape": place.shape,
        "target": place.machine.target, "donated": donated,
        "names": list(sizes) or ["device"], "sizes": list(sizes.values()) or [1],
    }  # fmt: skip
    exported = _exported(program, place.machine.platform, leaves)
    text, result = _in_process(request, exported, python)
    shared = shared | {
        "flops": sum(op.times * op.flops for op in counted) // place.devices,
        "seconds": result["seconds"],
    }
    if "error" in result:
        return Report(**shared, **_refused(result["error"], place))
    found = result["memory"]
    memory = Memory(
        found["argument"], found["output"], found["alias"], found["temp"], found["generated_code"]
    )
    return Report(**shared, memory=memory, peak=memory.peak, **_read(text, counted, place))


def _read(text: str, counted: list, place: Topology) -> dict[str, Any]:
    """Collectives and the largest arrays of a compiled program, by layer."""
    program, known = parse(text), prefixes(op.place for op in counted)
    moved = strays(op.place for op in counted)

    def layer(op_name: str) -> tuple[str, bool]:
        at = in_program(op_name, known)
        names = moved.get(at.names, at.names)
        return "/".join(names) or ("(loss)" if at.differentiated else "(other)"), at.backward

    def bandwidth(groups: np.ndarray) -> float:
        """Rings pass each host once, and use the networks of all its devices that take part."""
        machine = place.machine
        hosts = groups[0] // int(place.shape.split("x")[-1])
        if machine.network is None or len(set(hosts)) == 1:
            return machine.link
        return min(machine.link, machine.network * np.bincount(hosts).max())

    arrays: dict[tuple[str, str, bool], int] = {}
    for each in program.moved():
        one = each.instruction
        if one.opcode not in ("while", "custom-call") and not one.shape.startswith("("):
            shape = re.sub(r"\{.*\}", "", one.shape)
            arrays[shape, *layer(one.op_name)] = one.nbytes
    largest = sorted(arrays.items(), key=lambda item: -item[1])[:5]
    return {
        "text": text,
        "operations": dict(program.kinds().most_common()),
        "recomputes": "rematted_computation" in text,
        "collectives": by_layer(program, place.devices, layer, bandwidth),
        "largest": tuple(Array(*key, nbytes) for key, nbytes in largest),
    }


def _refused(error: str, place: Topology) -> dict[str, Any]:
    """What the compiler says of a program that it refuses for its size; other errors are raised."""
    if "RESOURCE_EXHAUSTED" not in error:
        raise RuntimeError(f"the compiler for {place} failed: {error}")
    found = _USED.search(error)
    numbers = [part for part in found.groups() if part] if found else []
    peak = int(float(numbers[0]) * _UNITS[numbers[1]]) if numbers else None
    return {"peak": peak, "refusal": "the compiler finds no way to fit it"}


# --- arguments


def _mesh_sizes(place: Topology, shardings: Placement | None) -> dict[str, int]:
    sizes = dict(shardings.mesh.shape) if shardings else {}
    if math.prod(sizes.values()) != place.devices:
        raise errors.OptionError(
            f"shardings over {place.devices} devices, as {place} has",
            f"a mesh of {', '.join(f'{k}={v}' for k, v in sizes.items())}" if sizes else "none",
            "plan them: fnn.sharding.plan(fnn.sharding.mesh(on=on, data=-1), net, tx, x)",
        )
    return sizes


def _structs(args: tuple[Tree, Tree], shardings: Placement | None) -> tuple[Tree, Tree]:
    if not shardings:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), args)
    shardings.check(args[0], shardings.train_state)
    places = shardings.train_state, jax.tree.map(shardings.of_batch, args[1])
    return jax.tree.map(
        lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to), args, places
    )


def _parts(train_state: Tree, batch: Tree) -> dict[str, Tree]:
    if not isinstance(train_state, TrainState):
        return {"params": train_state, "optimizer": (), "state": (), "batch": batch}
    step, params, state, opt_state, key = train_state
    return {"params": params, "optimizer": opt_state, "state": (step, state, key), "batch": batch}


def _bytes(x: jax.ShapeDtypeStruct) -> int:
    return math.prod(x.shape) * x.dtype.itemsize


def _local(x: jax.ShapeDtypeStruct) -> int:
    shape = x.sharding.shard_shape(x.shape) if x.sharding else x.shape
    return math.prod(shape) * x.dtype.itemsize


def _half(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    shape = (x.shape[0] // 2, *x.shape[1:]) if x.shape else ()
    return jax.ShapeDtypeStruct(shape, x.dtype, sharding=x.sharding)


# --- the compiler


def _exported(program: Any, platform: str, leaves: list) -> bytes:
    """A program as bytes, lowered for another platform than that of this process."""
    if importlib.util.find_spec("flatbuffers") is None:
        raise ImportError("fnn.dryrun needs flatbuffers: pip install 'fnn[dryrun]'")
    try:
        exported = export.export(program, platforms=[platform])(*leaves)
    except ValueError as error:  # of custom calls that JAX may change later: not before we compile
        targets = set(re.findall(r"custom_call @([\w.$]+)", str(error)))
        if not targets:
            raise
        allowed = [export.DisabledSafetyCheck.custom_call(target) for target in targets]
        exported = export.export(program, platforms=[platform], disabled_checks=allowed)(*leaves)
    return bytes(exported.serialize())


def _check_compiler(place: Topology, python: str | None) -> None:
    names = _PACKAGES[place.machine.platform]
    if python is None:
        found = any(importlib.util.find_spec(name) for name in names)
    else:
        code = f"from importlib.util import find_spec as f; exit(not any(map(f, {names})))"
        found = subprocess.run([python, "-c", code]).returncode == 0
    if not found:
        where = f" for {python}" if python else ""
        raise ImportError(
            f"the compiler for {place.machine.name} needs {names[0]}: "
            f"pip install 'fnn[dryrun]'{where}"
        )


def _in_process(request: dict, program: bytes, python: str | None) -> tuple[str, dict]:
    """(the text of the compiled program, what else its compiler says)."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMP")}
    kept.pop("XLA_FLAGS", None)  # those of this process's devices
    environ = kept | _TPU | {"JAX_PLATFORMS": "cpu"}
    with tempfile.TemporaryDirectory(prefix="fnn-dryrun-") as name:
        folder = Path(name)
        (folder / "request.json").write_text(json.dumps(request))
        (folder / "program.bin").write_bytes(program)
        command = [python or sys.executable, str(Path(__file__).with_name("compiler.py")), name]
        done = subprocess.run(command, env=environ, capture_output=True, text=True)
        if not (folder / "result.json").exists():
            raise RuntimeError(f"the compiler ended with {done.returncode}:\n{done.stderr[-3000:]}")
        text = folder / "program.txt"
        return (
            text.read_text() if text.exists() else "",
            json.loads((folder / "result.json").read_text()),
        )
