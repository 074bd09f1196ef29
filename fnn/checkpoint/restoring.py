"""Restoring a tree, by path, and looking into a checkpoint without one."""

from __future__ import annotations

import functools
import os
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Sharding, SingleDeviceSharding

from fnn.checkpoint.files import open_arrays, read_manifest
from fnn.checkpoint.leaves import (
    Entry,
    Path,
    describe,
    dtype_of,
    empty,
    entry_of,
    from_bytes,
    is_value,
    joined,
    leaves_of,
    nbytes_of,
    separate,
)
from fnn.core import errors
from fnn.core.errors import CheckpointError
from fnn.core.types import Tree

SHOWN = 8  # differences in a message
PIECE = 1 << 20  # bytes read at a time
BYTE = np.dtype(np.uint8)


class Contents(NamedTuple):
    """What a checkpoint holds; it prints as a table.

    - `leaves`: by path, a struct of shape and dtype (of the data, for random keys), or the value
      of a Python scalar, a string or None.
    - `meta`: as it was saved.
    - `made_by`: the versions of fnn, jax, jaxlib and Python, and the git commit, or None.
    - `nbytes`: of all arrays.
    """

    leaves: dict[str, Any]
    meta: dict[str, Any]
    made_by: dict[str, str | None]
    nbytes: int

    def __str__(self) -> str:
        rows = [(path, errors.show(leaf)) for path, leaf in self.leaves.items()]
        width = max((len(path) for path, _ in rows), default=0)
        lines = [f"{path:{width}}  {shown}" for path, shown in rows]
        made = ", ".join(f"{name} {of}" for name, of in self.made_by.items() if of)
        return "\n".join([*lines, f"{self.nbytes:,} bytes; {made}; meta {self.meta}"])


@errors.named
def inspect(path: str | os.PathLike) -> Contents:
    """What a checkpoint holds: paths, shapes, dtypes, meta. Reads the manifest alone.

    Raises CheckpointError for a damaged one.

    >>> import tempfile, fnn, jax.numpy as jnp
    >>> path = tempfile.mkdtemp() + "/first"
    >>> saving = fnn.checkpoint.save(path, {"w": jnp.ones((2, 3)), "n": 4}, meta={"run": 1})
    >>> contents = fnn.checkpoint.inspect(path)
    >>> contents.leaves["w"].shape, contents.leaves["n"], contents.meta
    ((2, 3), 4, {'run': 1})
    """
    manifest = read_manifest(pathlib.Path(path))
    leaves, total = {}, 0
    for names, entry, _ in manifest["leaves"]:
        total += nbytes_of(entry)
        leaves[joined(names)] = _struct(entry)
    return Contents(leaves, manifest["meta"], manifest["made_by"], total)


def _struct(entry: Entry) -> Any:
    if "value" in entry:
        return entry["value"]
    return jax.ShapeDtypeStruct(tuple(entry["shape"]), dtype_of(entry))


@errors.named
def restore(
    path: str | os.PathLike,
    like: Tree = None,
    *,
    at: str = "",
    shardings: Tree = None,
) -> Tree:
    """The tree that was saved at `path`, with the same bits, in the structure of `like`.

    - `like`: arrays, or structs as from `jax.eval_shape`. Leaves are matched by path and must
      have the same shapes and dtypes; none may be missing or left over. Where `like` has NumPy
      arrays, so has the result; else it has JAX arrays, with the sharding of an array of `like`
      that is on several devices. Without `like`, the result is nested dicts of NumPy arrays, with
      the names of attributes and the numbers of positions as keys.
    - `at`: restores the part of the tree at this path, such as "params"; only its bytes are read.
    - `shardings`: a sharding for all, or a tree of them like `like`; each process reads the slices
      that its devices need, whatever mesh and number of processes wrote them.

    Raises CheckpointError if the checkpoint is damaged, absent, or of another tree, with the paths
    that differ; DtypeError for dtypes of 64 bits if x64 is disabled. Nothing that is read can run
    code.

    >>> import tempfile, fnn, jax.numpy as jnp
    >>> path = tempfile.mkdtemp() + "/first"
    >>> saving = fnn.checkpoint.save(path, {"params": {"w": jnp.ones(2)}, "step": 4})
    >>> fnn.checkpoint.restore(path, {"w": jnp.zeros(2)}, at="params")
    {'w': Array([1., 1.], dtype=float32)}
    >>> fnn.checkpoint.restore(path)["step"]
    4
    """
    directory = pathlib.Path(path)
    wanted = {names: entry_of(names, leaf) for names, leaf in leaves_of(like)}
    saved = _Saved(directory, separate(at), may_be_empty=not wanted)
    if like is None:
        return saved.plain()
    _check_same(directory, saved.entries, wanted)
    placed = _shardings(shardings, like)
    leaves = [
        _like(names, leaf, saved, sharding)
        for (names, leaf), sharding in zip(leaves_of(like), placed, strict=True)
    ]
    treedef = jax.tree.structure(like, is_leaf=lambda x: x is None)
    return jax.tree.unflatten(treedef, leaves)


class _Saved:
    """The leaves of a checkpoint below a path, read and checked when they are asked for."""

    def __init__(self, directory: pathlib.Path, at: Path, may_be_empty: bool):
        self.directory = directory
        manifest = read_manifest(directory)
        self.files = manifest["files"]
        self.entries: dict[Path, Entry] = {}
        self.slices: dict[Path, list[dict]] = {}
        for names, entry, slices in manifest["leaves"]:
            if tuple(names[: len(at)]) == at:
                own = tuple(names[len(at) :])
                self.entries[own], self.slices[own] = entry, slices
        if not (self.entries or may_be_empty) and at:
            tops = sorted({names[0] for names, *_ in manifest["leaves"] if names})
            mend = "see fnn.checkpoint.inspect(path)"
            raise CheckpointError(f"leaves at {joined(at)}", f"only {errors.names(tops)}", mend)
        self.bytes_of = functools.cache(self._bytes_of)

    def _bytes_of(self, process: int) -> np.ndarray:
        return open_arrays(self.directory, process, self.files[process])

    def piece(self, names: Path, said: dict) -> np.ndarray:
        """One slice, whose sum is checked."""
        entry = self.entries[names]
        start, stop = said["bytes"]
        there, data, crc = self.bytes_of(said["file"])[start:stop], empty([stop - start], BYTE), 0
        for i in range(0, data.size, PIECE):  # one read; what is checked is what is used
            piece = data[i : i + PIECE]
            piece[:] = there[i : i + PIECE]
            crc = zlib.crc32(piece.data, crc)  # while it is in the cache
        if crc != said["crc32"]:
            raise self._damage(names, "does not have its crc32")
        return from_bytes(data, entry, said["shape"])

    def region(self, names: Path, index: Any) -> np.ndarray:
        """The values of an array at an index, of any slices."""
        entry, slices = self.entries[names], self.slices[names]
        shape = entry["shape"]
        bounds = [i.indices(n)[:2] for i, n in zip(index, shape, strict=True)]
        for said in slices:
            corners = zip(said["start"], said["shape"], strict=True)
            if [(a, a + n) for a, n in corners] == bounds:
                return self.piece(names, said)
        out = empty([stop - start for start, stop in bounds], dtype_of(entry))
        filled = 0
        for said in slices:
            low = [max(a, start) for a, (start, _) in zip(said["start"], bounds, strict=True)]
            ends = [a + n for a, n in zip(said["start"], said["shape"], strict=True)]
            high = [min(end, stop) for end, (_, stop) in zip(ends, bounds, strict=True)]
            if any(a >= b for a, b in zip(low, high, strict=True)):
                continue
            into = [slice(a - s, b - s) for a, b, (s, _) in zip(low, high, bounds, strict=True)]
            of = [slice(a - s, b - s) for a, b, s in zip(low, high, said["start"], strict=True)]
            out[tuple(into)] = self.piece(names, said)[tuple(of)]
            filled += out[tuple(into)].size
        if filled != out.size:
            raise self._damage(names, "is not covered by its slices")
        return out

    def whole(self, names: Path) -> np.ndarray:
        return self.region(names, (slice(None),) * len(self.entries[names]["shape"]))

    def plain(self) -> Any:
        """All leaves, as nested dicts of NumPy arrays."""
        if set(self.entries) == {()}:
            return self._plain_leaf(())
        out: dict[str, Any] = {}
        for names in self.entries:
            inside = out
            for name in names[:-1]:
                inside = inside.setdefault(name, {})
            inside[names[-1]] = self._plain_leaf(names)
        return out

    def _plain_leaf(self, names: Path) -> Any:
        entry = self.entries[names]
        if "value" in entry:
            return entry["value"]
        return _wrapped(self.whole(names), entry)

    def _damage(self, names: Path, what: str) -> CheckpointError:
        return CheckpointError(
            f"an undamaged checkpoint at {self.directory}",
            f"{joined(names)}, which {what}",
            "take another checkpoint",
        )


def _wrapped(values: Any, entry: Entry) -> Any:
    return jax.random.wrap_key_data(values, impl=entry["impl"]) if "key" in entry else values


def _check_same(directory: pathlib.Path, saved: dict, wanted: dict) -> None:
    """Refuse a checkpoint of another tree, and say how it differs."""
    differences = list(_differences(saved, wanted))
    if differences:
        more = len(differences) - SHOWN
        shown = differences[:SHOWN] + ([f"and {more} more"] if more > 0 else [])
        raise CheckpointError(
            "a checkpoint of the same tree",
            f"{directory} with " + ", ".join(shown),
            "restore(path) without like gives plain dicts to rename, as with fnn.tree.to_paths; "
            "at= restores a part",
        )


def _differences(saved: dict[Path, Entry], wanted: dict[Path, Entry]) -> Iterator[str]:
    for names, entry in wanted.items():
        path = joined(names)
        if names not in saved:
            yield f"no {path}"
        elif not _fits(saved[names], entry):
            yield f"{path} {describe(saved[names])} for {describe(entry)}"
    for names in saved:
        if names not in wanted:
            yield f"also {joined(names)}"


def _fits(saved: Entry, wanted: Entry) -> bool:
    if "value" in saved or "value" in wanted:
        return type(saved.get("value", saved)) is type(wanted.get("value", wanted))
    return all(saved.get(of) == wanted.get(of) for of in ("dtype", "shape", "key"))


def _shardings(shardings: Tree, like: Tree) -> list[Sharding | None]:
    """A sharding or None for each leaf of `like`."""
    leaves = [leaf for _, leaf in leaves_of(like)]
    if isinstance(shardings, Sharding):
        return [shardings] * len(leaves)
    if shardings is None:
        return [_own_sharding(leaf) for leaf in leaves]
    given, wanted = (
        jax.tree.structure(tree, is_leaf=lambda x: x is None) for tree in (shardings, like)
    )
    if given != wanted:
        raise errors.InputError(
            "shardings like the tree to restore, or one for all",
            f"another structure, {given}",
            "build them with jax.tree.map(lambda a: ..., like)",
        )
    return [sharding for _, sharding in leaves_of(shardings)]


def _own_sharding(leaf: Any) -> Sharding | None:
    sharding = getattr(leaf, "sharding", None)
    return None if isinstance(sharding, SingleDeviceSharding) else sharding


def _like(names: Path, leaf: Any, saved: _Saved, sharding: Sharding | None) -> Any:
    """A leaf, where and as `like` has it."""
    entry = saved.entries[names]
    if is_value(leaf):
        return entry["value"]
    if isinstance(leaf, (np.ndarray, np.generic)):
        whole = saved.whole(names)
        return whole[()] if isinstance(leaf, np.generic) else whole
    dtype, shape = dtype_of(entry), tuple(entry["shape"])
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise errors.DtypeError(
            f"jax_enable_x64 for {joined(names)} {describe(entry)}",
            "it disabled",
            "enable it, or pass a NumPy array in like to get one",
        )
    if sharding is None:
        values = jax.device_put(saved.whole(names))  # on a CPU, this memory itself
    else:
        region = functools.partial(saved.region, names)
        values = jax.make_array_from_callback(shape, sharding, region)
    return _wrapped(values, entry)
