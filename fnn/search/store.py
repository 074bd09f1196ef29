"""The runs of one program, and their results on disk."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import pathlib
import threading
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np

from fnn.core import errors
from fnn.core.types import Key, Tree

EVERY = 5.0  # seconds; the least work per file, except the last
DAMAGED = (OSError, EOFError, KeyError, ValueError, RuntimeError, zipfile.BadZipFile)

Finished: TypeAlias = tuple[np.ndarray, Tree]  # runs' numbers [runs], results [runs, ...]


class Group(NamedTuple):
    """The runs of one program: its static values, and all its points, each with all keys."""

    fixed: dict[str, Any]
    labels: dict[str, str]  # the names of the static values
    points: dict[str, np.ndarray]  # by setting, its value at each point [P, ...]
    keys: Key  # [K]
    rows: np.ndarray  # the number of each run in the sweep [P, K]


class Store:
    """The results of a group's runs in a directory, if there is one, as files of several runs."""

    def __init__(self, directory: pathlib.Path | None, group: Group):
        self.directory, self.group = directory, group
        self.unwritten: list[Finished] = []
        self.seconds = 0.0  # of the unwritten runs

    @functools.cached_property
    def _digest(self) -> str:
        """A hash that identifies these runs by their settings and keys."""
        fixed = {name: _content(value) for name, value in self.group.fixed.items()}
        digest = hashlib.sha256(repr((self.group.labels, fixed)).encode())
        for name, values in sorted(self.group.points.items()):
            digest.update(f"{name} {values.dtype} {values.shape}".encode() + values.tobytes())
        digest.update(str(jax.random.key_impl(self.group.keys)).encode())
        digest.update(np.asarray(jax.random.key_data(self.group.keys)).tobytes())
        return digest.hexdigest()[:16]

    def keep(self, runs: np.ndarray, result: Tree, seconds: float) -> None:
        """Add runs that took `seconds`; write once `EVERY` seconds of work could be lost."""
        if self.directory and len(runs):
            self.unwritten.append((runs, result))
            self.seconds += seconds
            if self.seconds >= EVERY:
                self.write()

    def write(self) -> None:
        """Write all runs that are not yet on disk, as one file."""
        if not self.directory or not self.unwritten:
            return
        runs, result = jax.tree.map(lambda *parts: np.concatenate(parts), *self.unwritten)
        name = hashlib.sha256(runs.tobytes()).hexdigest()[:8]
        path = self.directory / f"{self._digest}-{runs[0]}-{len(runs)}-{name}.npz"
        temporary = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}.tmp")
        with open(temporary, "wb") as file:
            np.savez(file, *jax.tree.leaves(result), rows=runs, names=_names(result))
        os.replace(temporary, path)
        self.unwritten, self.seconds = [], 0.0

    def kept(self, one: Callable[..., Tree]) -> Iterator[Finished]:
        """All runs on disk, their results as trees like those of `one(point, key)`."""
        paths = sorted(self.directory.glob(f"{self._digest}-*.npz")) if self.directory else []
        if not paths:
            return
        outline = jax.eval_shape(one, np.int32(0), np.int32(0))
        wanted, treedef = jax.tree.flatten(outline)
        total = self.group.rows.size
        for path in paths:
            try:
                with open(path, "rb") as whole, np.load(whole, allow_pickle=False) as file:
                    leaves = [file[f"arr_{i}"] for i in range(len(file.files) - 2)]
                    rows, names = file["rows"], file["names"].tolist()
                if not all(len(a) == len(rows) for a in leaves) or max(rows) >= total:
                    raise ValueError("its rows are not from this sweep")
            except DAMAGED as error:
                mend = "remove it, and its runs are computed again"
                raise errors.InputError("a complete file", f"{path}: {error}", mend) from error
            if len(leaves) == len(wanted):  # NumPy reads bfloat16 as two raw bytes
                pairs = zip(leaves, wanted, strict=True)
                leaves = [
                    a.view(w.dtype) if a.dtype == f"V{w.dtype.itemsize}" else a for a, w in pairs
                ]
            found = [jax.ShapeDtypeStruct(a.shape[1:], a.dtype) for a in leaves]
            shown = [(a.shape, a.dtype) for a in wanted], [(a.shape, a.dtype) for a in found]
            if names != _names(outline) or shown[0] != shown[1]:
                raise errors.InputError(
                    f"a directory of this sweep, with results {errors.show(outline)}",
                    f"{names} {errors.show(found)} in {path}",
                    "use one directory per run_fn, and another with x64",
                )
            yield rows, jax.tree.unflatten(treedef, leaves)


def _names(tree: Tree) -> list[str]:
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def _content(value: Any) -> Any:
    """What identifies a static value in any process; a function is identified by its name."""
    if isinstance(value, functools.partial):
        return _content((value.func, value.args, value.keywords))
    if isinstance(value, dict):
        return "dict", _content(list(value.items()))
    if isinstance(value, (tuple, list)):
        return type(value).__name__, [_content(v) for v in value]
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        array = np.asarray(value)
        own = array.tolist() if array.dtype.kind == "O" else array.tobytes()
        return str(array.dtype), array.shape, _content(own)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [getattr(value, field.name) for field in dataclasses.fields(value)]
        return type(value).__name__, _content(fields)
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return type(value).__name__, value
    return getattr(value, "__name__", None) or type(value).__name__
