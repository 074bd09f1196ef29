"""Loading an artifact: the network as a plain function, with its params."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.export

from fnn.core import errors
from fnn.core.errors import ArtifactError
from fnn.core.types import Tree
from fnn.export.files import damaged, read_arrays, read_file, read_manifest
from fnn.export.preprocessing import from_json
from fnn.export.verification import check_program, checked, described


@dataclass(frozen=True, repr=False, eq=False)
class Program:
    """One program of an artifact, with its params and state.

    - `said`: what the manifest says of it: its inputs, outputs and platforms.
    - `given`: params and state; () if they are baked in.
    - `call`: the program, compiled when it is called, which takes what is given first.

    >>> import tempfile, fnn
    >>> path = tempfile.mkdtemp() + "/dense"
    >>> fnn.export.save(path, fnn.dense(3), *fnn.dense(3).init(jax.random.key(0), (1, 4)), (1, 4))
    >>> load(path).apply.said["inputs"]
    [{'name': 'x', 'shape': [1, 4], 'dtype': 'float32'}]
    """

    name: str
    said: Mapping[str, Any]
    given: tuple
    call: Callable

    def __call__(self, *args: Any) -> Any:
        """The outputs at inputs like those of `said`; a step takes its carry first."""
        with errors.within(self.name):
            step = self.said["role"] == "step"
            if step and not args:
                mend = "pass the first carry, artifact.steps[name].first(*xs)"
                raise errors.InputError("a carry and the inputs of one step", "nothing", mend)
            carry, xs = (args[:1], args[1:]) if step else ((), args)
            sizes: dict[str, int] = {}
            xs = checked(self.said["inputs"], xs, sizes, "a carry, " if step else "")
            carry = checked(self.said["carry"], carry, sizes) if step else ()
            return self.call(*self.given, *carry, *xs)


@dataclass(frozen=True, repr=False, eq=False)
class Step:
    """A step of a sequence, `(carry, *xs) -> (carry, y)`, and `first(*xs)`, its first carry.

    >>> import tempfile, fnn, numpy as np
    >>> net, cell, path = fnn.gru(3), fnn.cells.gru(3), tempfile.mkdtemp() + "/gru"
    >>> params, state = net.init(jax.random.key(0), (1, 5, 4))
    >>> steps = {"step": (cell, ("batch", 4))}
    >>> fnn.export.save(path, net, params, state, ("batch", "time", 4), steps=steps)
    >>> step, x = load(path).steps["step"], np.ones((2, 4), np.float32)
    >>> carry, y = step(step.first(x), x)
    >>> y.shape
    (2, 3)
    """

    program: Program
    first: Program

    def __call__(self, carry: Tree, *xs: Any) -> tuple[Tree, Any]:
        return self.program(carry, *xs)


@dataclass(frozen=True, repr=False, eq=False)
class Artifact:
    """A network that was exported, as a function: `y = artifact(*xs)`, in evaluation mode.

    - `manifest`: the manifest: "programs" with their inputs and outputs, "labels", "statistics",
      "preprocessing", "network", "meta", "made_by".
    - `params`, `state`: as stored; {} if they are in the program.
    - `apply`: the program of the call.
    - `steps`: `Step`s by name.
    - `preprocessing`: the fitted functions saved with it, or None.

    >>> import tempfile, fnn
    >>> net, path = fnn.dense(3), tempfile.mkdtemp() + "/dense"
    >>> params, state = net.init(jax.random.key(0), (1, 4))
    >>> fnn.export.save(path, net, params, state, ("batch", 4), bake=True)
    >>> load(path)
    Artifact(x (batch, 4) float32)
    """

    path: pathlib.Path
    manifest: Mapping[str, Any]
    params: Tree
    state: Tree
    apply: Program
    steps: Mapping[str, Step]
    preprocessing: Any

    def __call__(self, *xs: Any) -> Any:
        """y at inputs as the manifest describes them: JAX's arrays or NumPy's."""
        return self.apply(*xs)

    def __repr__(self) -> str:
        return f"Artifact({', '.join(map(described, self.apply.said['inputs']))})"


@errors.named
def load(path: str | os.PathLike) -> Artifact:
    """The artifact in a folder, as `save` wrote it; its sums are checked.

    Nothing of it runs but its programs, when they are called, and those that would call anything
    but libraries, such as back into Python, are refused. The sums tell damage, not who wrote it: a
    program by someone hostile may compute for ever, or take all memory.

    Raises ArtifactError for one that is damaged, incomplete or hostile, or for other platforms than
    JAX's default here; ImportError without flatbuffers (extra `export`). A call raises InputError,
    ShapeError or DtypeError for inputs other than the manifest's.

    >>> import tempfile, fnn
    >>> net, path = fnn.dense(3), tempfile.mkdtemp() + "/dense"
    >>> params, state = net.init(jax.random.key(0), (1, 4))
    >>> fnn.export.save(path, net, params, state, ("batch", 4), labels=["a", "b", "c"])
    >>> artifact = load(path)
    >>> artifact, artifact.manifest["labels"]
    (Artifact(x (batch, 4) float32), ['a', 'b', 'c'])
    """
    folder = pathlib.Path(path)
    manifest = read_manifest(folder)
    trees: dict[str, Any] = {"params": {}, "state": {}}
    arrays = read_arrays(folder, manifest)
    with damaged(folder, "params"):
        for names, array in arrays.items():
            node = trees
            for name in names[:-1]:
                node = node.setdefault(name, {})
            if not isinstance(node, dict) or names[-1] in node:
                raise ValueError("are no tree")
            node[names[-1]] = jax.device_put(array)
    given = () if manifest["baked"] else (trees["params"], trees["state"])
    programs = {
        name: _program(folder, name, said, given) for name, said in manifest["programs"].items()
    }
    with damaged(folder, "preprocessing"):
        fitted = from_json(manifest["preprocessing"])
    steps = {
        name: Step(program, programs[program.said["first"]])
        for name, program in programs.items()
        if program.said["role"] == "step"
    }
    for file in manifest["files"]:
        read_file(folder, file, manifest["files"][file])
    params, state, apply = trees["params"], trees["state"], programs["apply"]
    return Artifact(folder, manifest, params, state, apply, steps, fitted)


def _program(folder: pathlib.Path, name: str, said: dict, given: tuple) -> Program:
    platform = jax.default_backend()
    platform = {"gpu": "cuda"}.get(platform, platform)
    if platform not in said["platforms"]:
        mend = f'save it with platforms=("{platform}",)'
        got = f"one for {errors.names(said['platforms'])}"
        raise ArtifactError(f"an artifact for {platform}", got, mend)
    data = read_file(folder, said["file"], said)
    with damaged(folder, said["file"]):
        try:
            exported = jax.export.deserialize(bytearray(data))
        except ImportError as error:
            raise ImportError("programs need flatbuffers: pip install 'fnn[export]'") from error
        check_program(exported, said, given)
    return Program(name, said, given, jax.jit(exported.call))
