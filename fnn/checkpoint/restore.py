"""Restoring a tree, by path, and looking into a checkpoint without one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Sharding, SingleDeviceSharding

from fnn.checkpoint.files import url_of
from fnn.checkpoint.folder import Folder
from fnn.checkpoint.leaves import (
    HOST,
    Entry,
    Path,
    Place,
    describe,
    dtype_of,
    entry_of,
    is_value,
    joined,
    leaves_of,
    nbytes_of,
    separate,
)
from fnn.checkpoint.stores import Store
from fnn.core import errors
from fnn.core.errors import CheckpointError
from fnn.core.types import Tree

SHOWN = 8  # differences in a message


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
    saved = opened(path)
    leaves = {joined(names): _struct(entry) for names, entry in saved.entries.items()}
    total = sum(nbytes_of(entry) for entry in saved.entries.values())
    return Contents(leaves, saved.manifest["meta"], saved.manifest["made_by"], total)


def opened(path: str | os.PathLike) -> Folder | Store:
    url = url_of(path)
    return Folder(path) if url is None else Store(url)


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

    - `path`: a folder, or a URL of an object store (extra `orbax`).
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
    saved, top = opened(path), separate(at)
    entries = {names: e for names, e in saved.entries.items() if names[: len(top)] == top}
    wanted = {(*top, *names): leaf for names, leaf in leaves_of(like)}
    if len(wanted) < sum(1 for _ in leaves_of(like)):
        got = "several, such as those of the keys 1 and '1'"
        raise errors.InputError("one leaf of like for each path", got, "rename one of them")
    if wanted and top and not entries:
        tops = sorted({names[0] for names in saved.entries if names})
        mend = "see fnn.checkpoint.inspect(path)"
        raise CheckpointError(f"leaves at {at}", f"only {errors.names(tops)}", mend)
    if like is None:
        stored = saved.arrays({n: HOST for n, entry in entries.items() if "value" not in entry})
        return _nested({n[len(top) :]: _leaf(stored.get(n), e) for n, e in entries.items()})
    _check_same(path, entries, {names: entry_of(names, leaf) for names, leaf in wanted.items()})
    shards = zip(wanted.items(), _shardings(shardings, like), strict=True)
    places: dict[Path, Place] = {
        names: _place(names, leaf, entries[names], sharding)
        for (names, leaf), sharding in shards
        if not is_value(leaf)
    }
    arrays = saved.arrays(places)
    leaves = [_leaf(arrays.pop(names, None), entries[names]) for names in wanted]
    leaves = [
        leaf[()] if isinstance(old, np.generic) else leaf
        for leaf, old in zip(leaves, wanted.values(), strict=True)
    ]
    treedef = jax.tree.structure(like, is_leaf=lambda x: x is None)
    return jax.tree.unflatten(treedef, leaves)


def _nested(leaves: dict[Path, Any]) -> Any:
    """Leaves by path as nested dicts."""
    if set(leaves) == {()}:
        return leaves[()]
    out: dict[str, Any] = {}
    for names, leaf in leaves.items():
        inside = out
        for name in names[:-1]:
            inside = inside.setdefault(name, {})
        inside[names[-1]] = leaf
    return out


def _leaf(array: Any, entry: Entry) -> Any:
    """A leaf of the tree, of its stored array."""
    if "value" in entry:
        return entry["value"]
    return jax.random.wrap_key_data(array, impl=entry["impl"]) if "key" in entry else array


def _check_same(path: Any, saved: dict, wanted: dict) -> None:
    """Refuse a checkpoint of another tree, and say how it differs."""
    differences = list(_differences(saved, wanted))
    if differences:
        more = len(differences) - SHOWN
        shown = differences[:SHOWN] + ([f"and {more} more"] if more > 0 else [])
        raise CheckpointError(
            "a checkpoint of the same tree",
            f"{path} with " + ", ".join(shown),
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


def _place(names: Path, leaf: Any, entry: Entry, sharding: Sharding | None) -> Place:
    """Where an array goes: as NumPy's where `like` has one, or to devices."""
    if isinstance(leaf, (np.ndarray, np.generic)):
        return HOST
    dtype = dtype_of(entry)
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise errors.DtypeError(
            f"jax_enable_x64 for {joined(names)} {describe(entry)}",
            "it disabled",
            "enable it, or pass a NumPy array in like to get one",
        )
    return sharding
