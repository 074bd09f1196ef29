"""Checkpoints in object stores, such as gs:// and s3://, which orbax writes and reads.

A store has no fsync and no rename of folders; orbax knows how each of them commits. It takes arrays
alone: what it refuses (random keys, arrays without elements, Python scalars, strings and None)
stands in a manifest, and the arrays by their paths, so that any reader of orbax finds them. It
reads a bit that has changed in an array as if it were right, so the manifest has a sum of each.

    gs://bucket/run/step-500/
        arrays/     orbax's PyTree of {"params/conv1/kernel": array}
        manifest/   orbax's JSON: {"sha256": of the rest, "manifest": text}, which has every leaf by
                    path as in files.py, with a sum in place of slices
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from fnn.checkpoint.files import check_format, damaged
from fnn.checkpoint.leaves import HOST, Entry, Path, Place, dtype_of, joined
from fnn.core.errors import CheckpointError
from fnn.core.sealed import sha256

AS_NUMBERS, AS_BITS = ("uint2", "uint4"), ("float8_e4m3",)  # dtypes that tensorstore 0.1 refuses
BELOW_A_BYTE = ("int2", "uint2", "int4", "uint4", "float4_e2m1fn")


def start(
    url: str, entries: Mapping[Path, Entry], arrays: Mapping[Path, Any], manifest: dict
) -> Callable[[], None]:
    """Begin to save; return, once the arrays may change, a function that waits for the end."""
    ocp = _orbax()
    sums = {path: int(bit_sum(array)) for path, array in arrays.items()}
    leaves = [[list(path), entry, sums.get(path)] for path, entry in entries.items()]
    text = json.dumps({**manifest, "leaves": leaves})
    items = {"manifest": ocp.args.JsonSave({"sha256": sha256(text.encode()), "manifest": text})}
    stored = {
        joined(path): _taken_by_orbax(array) for path, array in arrays.items() if np.size(array)
    }
    if stored:
        items["arrays"] = ocp.args.PyTreeSave(stored)
    checkpointer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
    try:
        checkpointer.save(url, args=ocp.args.Composite(**items))
    except BaseException as error:
        checkpointer.close()
        if isinstance(error, ValueError) and "already exists" in str(error):
            raise taken(url) from error
        raise

    def wait() -> None:
        try:
            checkpointer.wait_until_finished()
        finally:
            checkpointer.close()

    return wait


def taken(path: Any) -> CheckpointError:
    mend = "choose another, or remove the old one"
    return CheckpointError("a path that does not exist", f"{path}", mend)


class Store:
    """A checkpoint in an object store, whose arrays are read when they are asked for."""

    def __init__(self, url: str):
        self.url, ocp = url, _orbax()
        read = self._read("manifest", ocp.args.JsonRestore())
        with damaged(url, "manifest"):
            if read["sha256"] != sha256(read["manifest"].encode()):
                raise ValueError("does not have its sha256")
            self.manifest = check_format(url, read["manifest"])
        self.entries: dict[Path, Entry] = {}
        self.sums: dict[Path, int] = {}
        for names, entry, total in self.manifest["leaves"]:
            self.entries[tuple(names)], self.sums[tuple(names)] = entry, total

    def arrays(self, places: Mapping[Path, Place]) -> dict[Path, Any]:
        """The arrays at these paths, each at its place, in one call of orbax."""
        ocp = _orbax()
        how, out = {}, {}
        for path, place in places.items():
            dtype, shape = dtype_of(self.entries[path]), tuple(self.entries[path]["shape"])
            if 0 in shape:
                empty = np.empty(shape, dtype)
                out[path] = empty if place == HOST else jax.device_put(empty, place)
            elif place == HOST:
                how[joined(path)] = ocp.RestoreArgs(restore_type=np.ndarray)
            else:
                place = SingleDeviceSharding(jax.devices()[0]) if place is None else place
                how[joined(path)] = ocp.ArrayRestoreArgs(sharding=place, global_shape=shape)
        if how:
            item = dict.fromkeys(how, 0)
            args = ocp.args.PyTreeRestore(item=item, restore_args=how, partial_restore=True)
            read = self._read("arrays", args)
            for path in places.keys() - out.keys():
                out[path] = self._checked(path, read[joined(path)])
        return out

    def _checked(self, path: Path, array: Any) -> Any:
        """An array as the manifest describes it."""
        entry = self.entries[path]
        name = entry["dtype"]
        if array.dtype == np.uint8 and name in AS_NUMBERS + AS_BITS:
            cast = array.astype if name in AS_NUMBERS else array.view
            array = cast(dtype_of(entry))
        same = array.dtype == dtype_of(entry) and list(array.shape) == entry["shape"]
        if not same or int(bit_sum(array)) != self.sums[path]:
            got = f"{joined(path)}, which is not what was saved"
            wanted, mend = f"an undamaged checkpoint at {self.url}", "take another checkpoint"
            raise CheckpointError(wanted, got, mend)
        return array

    def _read(self, item: str, args: Any) -> Any:
        ocp = _orbax()
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            with damaged(self.url, item):
                return checkpointer.restore(self.url, args=ocp.args.Composite(**{item: args}))[item]


def bit_sum(array: Any) -> Any:
    """The bytes of an array, each times an odd number of its place, summed modulo 2**32.

    Any byte that changes changes it, however the array is sharded.

    >>> int(bit_sum(np.array([1, 2], np.uint8)))  # 1 x 1 + 2 x 3
    7
    """
    if array.dtype.name in BELOW_A_BYTE:
        array = array.astype(np.float32)  # which has all their values
    if not isinstance(array, jax.Array):
        array = np.ascontiguousarray(array).reshape(-1).view(np.uint8)  # x64 or not
    return _bit_sum(array)


@jax.jit
def _bit_sum(array: jax.Array) -> jax.Array:
    data = jnp.atleast_1d(array).view(np.uint8)
    place = jnp.zeros(data.shape, np.uint32)
    for axis, size in enumerate(data.shape):
        index = jax.lax.broadcasted_iota(np.uint32, data.shape, axis)
        place = place * np.uint32(size % 2**32) + index
    return jnp.sum(data.astype(np.uint32) * (2 * place + 1), dtype=np.uint32)


def _taken_by_orbax(array: Any) -> Any:
    """An array of a dtype that orbax takes."""
    if array.dtype.name in AS_NUMBERS:
        return array.astype(np.uint8)
    return array.view(np.uint8) if array.dtype.name in AS_BITS else array


def _orbax() -> Any:
    try:
        return importlib.import_module("orbax.checkpoint")
    except ImportError as error:
        raise ImportError("a URL needs orbax: pip install 'fnn[orbax]'") from error
