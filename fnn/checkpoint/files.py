"""The files of a checkpoint: one safetensors file for each process, and a manifest.

    step-500/
        arrays-00000.safetensors   8 bytes (length of the header), JSON header, arrays
        manifest.json              {"sha256": of the rest}, then one line of JSON

The manifest lists every leaf by path, with the slices of each array: their file, start, shape,
bytes and crc32; and of each file its size and the crc32 of its header. All is written to a folder
beside, fsynced, and renamed: a checkpoint is complete or absent.

The format of the arrays is https://github.com/huggingface/safetensors; any reader of it reads them.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import pathlib
import re
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from fnn.checkpoint.leaves import Path, as_bytes, is_value, joined
from fnn.core import errors, safetensors
from fnn.core.durable import write_all, write_file
from fnn.core.errors import CheckpointError
from fnn.core.sealed import sealed, unsealed

VERSION = 1
MANIFEST = "manifest.json"
PIECE = 1 << 24  # bytes written at a time


class Part(NamedTuple):
    """A slice of an array, which starts at `start` [rank]."""

    path: Path
    start: list[int]
    array: np.ndarray


def url_of(path: str | os.PathLike) -> str | None:
    """The URL of a path in an object store, which pathlib spells "gs:/bucket/x"; None of others."""
    match = re.match(r"([a-z][a-z0-9+.-]+):/+", os.fspath(path))
    if not match:
        return None
    if match[1] not in ("gs", "s3"):
        wanted = "a folder, or a URL of gs:// or s3://"
        raise errors.OptionError(wanted, f"{path}", "pass the path of a folder")
    return f"{match[1]}://{os.fspath(path)[match.end() :]}"


def arrays_name(process: int) -> str:
    return f"arrays-{process:05d}.safetensors"


def write_arrays(file: pathlib.Path, parts: Iterable[Part]) -> tuple[dict, list[dict]]:
    """Write slices as one safetensors file; return what the manifest says of it and of each."""
    parts, header, slices, at = list(parts), {}, [], 0
    for i, part in enumerate(parts):
        data, dtype, shape = as_bytes(part.array), part.array.dtype.name, list(part.array.shape)
        code = safetensors.CODES.get(dtype)  # other dtypes are raw bytes to other readers
        name = joined(part.path)
        header[name if name not in header else f"{name}#{i}"] = {
            "dtype": code or "U8",
            "shape": shape if code else [data.size],
            "data_offsets": [at, at + data.size],
        }
        slices.append({"start": part.start, "shape": shape, "bytes": [at, at + data.size]})
        at += data.size
    head = safetensors.head(header)
    with open(file, "wb", buffering=0) as out:
        write_all(out, head)
        for part, said in zip(parts, slices, strict=True):
            data, crc = as_bytes(part.array), 0
            for i in range(0, data.size, PIECE):
                piece = data[i : i + PIECE].data
                write_all(out, piece)
                crc = zlib.crc32(piece, crc)
            said["crc32"] = crc
        os.fsync(out.fileno())
    return {"size": len(head) + at, "header": len(head), "crc32": zlib.crc32(head)}, slices


def write_manifest(directory: pathlib.Path, manifest: dict) -> None:
    write_file(directory / MANIFEST, sealed(json.dumps(manifest)))


def read_manifest(directory: pathlib.Path) -> dict:
    """The manifest of a checkpoint, once its sum is right."""
    with damaged(directory, MANIFEST):
        text = unsealed((directory / MANIFEST).read_bytes())
        manifest = check_format(directory, text)
        _check_slices(manifest)
    return manifest


def check_format(path: str | os.PathLike, text: str) -> dict:
    """A manifest, whose sum is right; one of another version or format is refused."""
    manifest = json.loads(text)
    if not isinstance(manifest, dict) or manifest.get("format") != "fnn checkpoint":
        raise ValueError("is not of an fnn checkpoint")
    if manifest["version"] != VERSION:
        raise CheckpointError(
            f"a checkpoint of version {VERSION}",
            f"{path} of version {manifest['version']}, from fnn {manifest['made_by']['fnn']}",
            "read it with that version of fnn",
        )
    for name in ("meta", "made_by"):
        _claim(isinstance(manifest[name], dict))
    for names, entry, _ in manifest["leaves"]:
        _claim(isinstance(names, list) and all(isinstance(name, str) for name in names))
        _claim(is_value(entry["value"]) if "value" in entry else _whole(*entry["shape"]))
    return manifest


def _check_slices(manifest: dict) -> None:
    """Refuse slices that are not in their files, or not as large as their arrays."""
    files = manifest["files"]
    _claim(all(_whole(file["size"], file["header"], file["crc32"]) for file in files))
    for _, entry, slices in manifest["leaves"]:
        if "value" in entry:
            continue
        shape, size = entry["shape"], np.dtype(jnp.dtype(entry["dtype"])).itemsize
        for said in slices:
            start, own, (low, high) = said["start"], said["shape"], said["bytes"]
            _claim(_whole(*start, *own, low, high, said["file"], said["crc32"]))
            _claim(said["file"] < len(files) and len(start) == len(own) == len(shape))
            _claim(all(a + n <= m for a, n, m in zip(start, own, shape, strict=True)))
            _claim(high - low == math.prod(own) * size)
            _claim(high <= files[said["file"]]["size"] - files[said["file"]]["header"])
        _claim(sum(math.prod(said["shape"]) for said in slices) == math.prod(shape))


def _whole(*numbers: Any) -> bool:
    return all(type(n) is int and n >= 0 for n in numbers)


def _claim(holds: bool) -> None:
    if not holds:
        raise ValueError("claims what cannot be")


def open_arrays(directory: pathlib.Path, process: int, said: dict) -> np.ndarray:
    """The bytes of one file after its header, as a memory map: only what is used is read."""
    name = arrays_name(process)
    with damaged(directory, name):
        file = directory / name
        size, header = said["size"], said["header"]
        if file.stat().st_size != size:
            raise ValueError(f"has {file.stat().st_size} bytes, not {size}")
        whole = np.memmap(file, np.uint8, "r")
        if zlib.crc32(whole[:header].data) != said["crc32"]:
            raise ValueError("has a damaged header")
        return whole[header:]


@contextlib.contextmanager
def damaged(path: str | os.PathLike, what: str) -> Iterator[None]:
    """Raise what goes wrong as one error. A missing checkpoint is named as such."""
    try:
        yield
    except (CheckpointError, PermissionError):
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        missing = isinstance(error, FileNotFoundError)
        there = not missing if url_of(path) else os.path.isdir(path)
        got = "nothing" if not there else f"no {what} in it" if missing else f"{what} that {error}"
        mend = "take another checkpoint" if there else "see fnn.checkpoint.Keeper.steps"
        raise CheckpointError(f"a complete checkpoint at {path}", got, mend) from error
