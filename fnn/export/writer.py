"""Writing an artifact: programs, params and manifest in a folder that is complete or absent."""

from __future__ import annotations

import json
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from fnn.checkpoint.files import Part, write_arrays
from fnn.checkpoint.leaves import leaves_of
from fnn.checkpoint.network import network_of
from fnn.checkpoint.save import described, made_by, own_parts
from fnn.core import errors
from fnn.core.durable import complete_folder, write_file
from fnn.core.layer import Layer
from fnn.core.sealed import sha256
from fnn.core.types import Dtype, Tree
from fnn.export.files import LOADER, NAME, PARAMS, VERSION, write_manifest
from fnn.export.narrow import narrowed
from fnn.export.preprocessing import as_json
from fnn.export.programs import apply_program, step_programs
from fnn.export.shapes import inputs_of, scope_of
from fnn.export.statistics import statistics_of

PLATFORMS = ("cpu", "cuda", "tpu")


@errors.named
def save(
    path: str | os.PathLike,
    net: Layer,
    params: Tree,
    state: Tree,
    shapes: Any,
    *,
    steps: Mapping[str, tuple[Layer, Any]] | None = None,
    platforms: Sequence[str] = PLATFORMS,
    constraints: Iterable[str] = (),
    params_dtype: Dtype | None = None,
    bake: bool = False,
    examples: Any = None,
    preprocessing: Any = None,
    labels: Sequence[str] | None = None,
    network: str | None = None,
    meta: Mapping[str, Any] | None = None,
) -> None:
    """Write a network as an artifact: a folder that runs where fnn is not.

        params.safetensors   params and state, for any reader of safetensors
        apply.jaxexport      the program (params, state, *xs) -> y, in evaluation mode
        load.py              loads and runs them, with jax, numpy and flatbuffers alone
        manifest.json        inputs, outputs, arrays and sums of all files

    - `shapes`: the input, or several in a list: arrays, structs or shapes, whose sizes may be
      names, as in ("batch", 28, 28, 1). A named size may be any number from 1, the same wherever
      the name is; names may be computed with, as in "2*time".
    - `steps`: further programs by name, each a layer that takes the same params, and the shapes of
      one step: a recurrent cell, or a network with a cache. It becomes (carry, *xs) -> (carry, y),
      and a program that gives its first carry.
    - `platforms`: what the programs run on. All of them are compiled for where they are loaded.
    - `constraints`: what a network must know of named sizes, such as "time <= 128".
    - `params_dtype`: stores floating params in this dtype, or kernels and embeddings as int8 with a
      scale for each output; the program computes in their own. None stores them as they are.
    - `bake`: puts params and state into the programs, as constants.
    - `examples`: a batch of training inputs, like `shapes`; its mean, std, min, max and histogram
      go into the manifest, for `fnn.metrics.drift`.
    - `preprocessing`: what `fnn.data.standardize`, `prepare` and the like fitted, or a dict of it.
    - `labels`: names of the outputs.
    - `network`: a text that describes the network; None is `fnn.describe(net)`, or null if that
      cannot describe it.
    - `meta`: anything else that JSON holds.

    Raises ArtifactError if `path` exists, InputError for a network that must know more of a named
    size, and what the network raises; ImportError without flatbuffers (extra `export`).

    >>> import tempfile, fnn, jax, jax.numpy as jnp
    >>> net, path = fnn.dense(3), tempfile.mkdtemp() + "/dense"
    >>> params, state = net.init(jax.random.key(0), (1, 4))
    >>> save(path, net, params, state, ("batch", 4))
    >>> artifact = fnn.export.load(path)
    >>> artifact(jnp.ones((2, 4))).shape
    (2, 3)
    """
    target = pathlib.Path(os.path.abspath(path))
    if target.exists():
        raise errors.ArtifactError(
            "a path that does not exist", f"{target}", "choose another, or remove the old one"
        )
    manifest: dict[str, Any] = {
        "format": "fnn artifact",
        "version": VERSION,
        "made_by": made_by(),
        "baked": bool(bake),
        "labels": _labels(labels),
        "network": _text(network, net),
        "preprocessing": as_json(preprocessing),
        "meta": _json(meta),
    }
    scope = scope_of(constraints)
    xs = inputs_of(shapes, scope)
    stored, decode = narrowed(params, net.specs(*xs)[0], params_dtype)
    args = stored, state, bake
    programs = {"apply": apply_program(net, args, xs, decode, platforms)}
    for name, (layer, of_step) in ({} if steps is None else steps).items():
        if not re.fullmatch(NAME, name) or name in (*programs, "load"):
            mend = 'call it "step", or in other letters and digits'
            raise errors.OptionError("a name for each program", errors.show(name), mend)
        with errors.at(name):
            ins = inputs_of(of_step, scope)
            programs |= step_programs(name, layer, args, ins, decode, platforms)
    statistics = None
    if examples is not None:
        statistics = statistics_of(examples, programs["apply"].said["inputs"])
    manifest["statistics"] = statistics
    manifest["constraints"] = list(constraints)
    manifest["programs"] = {
        name: {
            "file": f"{name}.jaxexport",
            "size": len(program.data),
            "sha256": sha256(program.data),
            "platforms": list(platforms),
            **program.said,
        }
        for name, program in programs.items()
    }
    try:
        with complete_folder(target) as folder:
            for name, program in programs.items():
                write_file(folder / f"{name}.jaxexport", program.data)
            loader = (pathlib.Path(__file__).parent / "standalone.py").read_bytes()
            write_file(folder / LOADER, loader)
            manifest["files"] = {LOADER: {"size": len(loader), "sha256": sha256(loader)}}
            manifest["arrays"] = [] if bake else _write_params(folder, stored, state)
            if manifest["arrays"]:
                data = (folder / PARAMS).read_bytes()
                manifest["files"][PARAMS] = {"size": len(data), "sha256": sha256(data)}
            write_manifest(folder, manifest)
    except FileExistsError as error:
        mend = "choose another, or remove the old one"
        raise errors.ArtifactError("a path that does not exist", f"{target}", mend) from error


def _write_params(folder: pathlib.Path, params: Tree, state: Tree) -> list[dict]:
    """Write both trees as one file; return what the manifest says of each array."""
    tree = {"params": params, "state": state}
    for path, leaf in leaves_of(tree):
        node: Any = tree
        for name in path:
            node = node[name] if isinstance(node, dict) and name in node else None
        if node is not leaf or not hasattr(leaf, "dtype"):
            where, mend = "/".join(path), "pass those of net.init"
            raise errors.InputError("params and state as dicts of arrays", where, mend)
    whole = jax.tree.map(np.asarray, tree)  # params over several devices would be several parts
    entries, arrays = described(whole)
    parts: list[Part] = own_parts(arrays, copy=False)
    if not parts:
        return []
    _, slices = write_arrays(folder / PARAMS, parts)
    return [
        {"path": list(part.path), **entries[part.path], "bytes": s["bytes"], "crc32": s["crc32"]}
        for part, s in zip(parts, slices, strict=True)
    ]


def _labels(labels: Any) -> list[str] | None:
    if labels is None:
        return None
    found = list(labels)
    if isinstance(labels, str) or not all(isinstance(label, str) for label in found):
        raise errors.OptionError("labels to be strings", errors.show(labels), "pass a list of str")
    return found


def _text(network: Any, net: Layer) -> str | None:
    if network is None:
        return network_of(net).get("description")
    if not isinstance(network, str):
        mend = "pass a description as str"
        raise errors.OptionError("network to be a text", errors.show(network), mend)
    return network


def _json(meta: Any) -> dict:
    try:
        return json.loads(json.dumps({} if meta is None else dict(meta)))
    except (TypeError, ValueError) as error:
        got = f"{errors.show(meta)} ({error})"
        raise errors.InputError("meta that JSON can hold", got, "pass str or float") from error
