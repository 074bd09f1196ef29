"""The files of an artifact: what is written, and what is believed of it when it is read.

classifier/
    manifest.json        {"sha256": of the rest}, then one line of JSON
    params.safetensors   params and state
    apply.jaxexport      a program, as jax.export serializes it; others by their names
    load.py              text, which fnn itself never runs
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import pathlib
import re
import stat
import zlib
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from fnn.core.durable import write_file
from fnn.core.errors import ArtifactError
from fnn.core.sealed import sealed, sha256, unsealed

VERSION = 1
MANIFEST, PARAMS, LOADER = "manifest.json", "params.safetensors", "load.py"
NAME = r"[A-Za-z0-9_-]{1,64}(\.first)?"  # of a program
LARGEST = 1 << 26  # bytes of a manifest


def write_manifest(folder: pathlib.Path, manifest: dict) -> None:
    write_file(folder / MANIFEST, sealed(json.dumps(manifest)))


def read_manifest(folder: pathlib.Path) -> dict[str, Any]:
    """The manifest of an artifact, once its sum is right and what it claims can be."""
    with damaged(folder, MANIFEST):
        file = folder / MANIFEST
        manifest = json.loads(unsealed(_read(file, _size(file, LARGEST))))
        if not isinstance(manifest, dict) or manifest.get("format") != "fnn artifact":
            raise ValueError("is not of an fnn artifact")
        if manifest["version"] != VERSION:
            raise ArtifactError(
                f"an artifact of version {VERSION}",
                f"{folder} of version {str(manifest['version'])[:20]}",
                "load it with the fnn that made it",
            )
        _check(manifest)
    return manifest


def _check(manifest: dict) -> None:
    """Refuse what cannot be: names of other files, shapes that are none, bytes out of place."""
    _claim(isinstance(manifest["baked"], bool))
    for name in ("meta", "made_by", "programs", "files"):
        _claim(isinstance(manifest[name], dict))
    labels, network = manifest["labels"], manifest["network"]
    _claim(labels is None or isinstance(labels, list) and all(type(n) is str for n in labels))
    _claim(network is None or isinstance(network, str))
    for name in ("statistics", "preprocessing"):
        _claim(manifest[name] is None or isinstance(manifest[name], dict))
    _claim("apply" in manifest["programs"])
    for name, said in manifest["programs"].items():
        _claim(bool(re.fullmatch(NAME, name)) and said["file"] == f"{name}.jaxexport")
        _check_file(said)
        _claim(all(type(p) is str for p in said["platforms"]) and bool(said["platforms"]))
        _claim(said["role"] in ("apply", "step", "first"))
        for kind in ("inputs", "outputs", *["carry"] * (said["role"] == "step")):
            for array in _list(said[kind]):
                _claim(type(array["name"]) is str)
                _dtype(array["dtype"])
                _claim(all(type(d) is str or _whole(d) for d in _list(array["shape"])))
        if said["role"] == "step":
            _claim(manifest["programs"][said["first"]]["role"] == "first")
    for name, said in manifest["files"].items():
        _claim(name in (PARAMS, LOADER))
        _check_file(said)
    _claim((PARAMS in manifest["files"]) == bool(manifest["arrays"]))
    end = 0
    for entry in _list(manifest["arrays"]):
        path, shape, (low, high) = entry["path"], _list(entry["shape"]), entry["bytes"]
        _claim(all(type(name) is str for name in _list(path)) and 1 < len(path) <= 256)
        _claim(path[0] in ("params", "state"))
        _claim(len(shape) <= 32 and _whole(*shape, low, high, entry["crc32"]))
        size = math.prod(shape) * _dtype(entry["dtype"]).itemsize
        _claim(low == end and high - low == size)  # many arrays of the same bytes fill the memory
        end = high
    _claim(not end or end <= manifest["files"][PARAMS]["size"])
    _check_statistics(manifest["statistics"], manifest["programs"]["apply"]["inputs"])


def _check_file(said: dict) -> None:
    _claim(_whole(said["size"]) and type(said["sha256"]) is str)


def _check_statistics(statistics: Any, inputs: list) -> None:
    names = {said["name"] for said in inputs}
    for name, said in ({} if statistics is None else statistics).items():
        _claim(name in names and said["axis"] in (-1, None) and _whole(said["count"]))
        found = [said[of] for of in ("mean", "std", "min", "max")]
        found += [said["histogram"][of] for of in ("edges", "counts")]
        for values in found:
            _claim(np.array(values).dtype.kind in "if")  # neither ragged nor anything but numbers


def _dtype(name: Any) -> np.dtype:
    """A dtype by its own name, of numbers or booleans: others would be read as addresses."""
    _claim(type(name) is str)
    dtype = jnp.dtype(name)
    number = dtype.kind == "b" or jnp.issubdtype(dtype, jnp.number)
    _claim(number and dtype.name == name)
    return dtype


def _list(x: Any) -> list:
    _claim(isinstance(x, list))
    return x


def _whole(*numbers: Any) -> bool:
    return all(type(n) is int and 0 <= n < 2**63 for n in numbers)


def _claim(holds: bool) -> None:
    if not holds:
        raise ValueError("claims what cannot be")


def read_file(folder: pathlib.Path, name: str, said: dict) -> bytes:
    """A file of the artifact, which has its size and its sum."""
    with damaged(folder, name):
        file = folder / name
        if _size(file, said["size"]) != said["size"]:
            raise ValueError(f"has another size than {said['size']}")
        data = _read(file, said["size"])
        if sha256(data) != said["sha256"]:
            raise ValueError("does not have its sha256")
    return data


def read_arrays(folder: pathlib.Path, manifest: dict) -> dict[tuple[str, ...], np.ndarray]:
    """All arrays by path, each with its sum."""
    if not manifest["arrays"]:
        return {}
    data = np.frombuffer(read_file(folder, PARAMS, manifest["files"][PARAMS]), np.uint8)
    out: dict[tuple[str, ...], np.ndarray] = {}
    with damaged(folder, PARAMS):
        header = int.from_bytes(data[:8].tobytes(), "little")
        _claim(header <= data.size - 8)
        data = data[8 + header :]
        for entry in manifest["arrays"]:
            path, (low, high) = tuple(entry["path"]), entry["bytes"]
            _claim(path not in out and high <= data.size)
            if zlib.crc32(data[low:high].data) != entry["crc32"]:
                raise ValueError(f"has not the sum of {'/'.join(path)}")
            out[path] = data[low:high].view(jnp.dtype(entry["dtype"])).reshape(entry["shape"])
    return out


def _size(file: pathlib.Path, most: int) -> int:
    """The size of a plain file. Links, pipes and devices are not read, nor what is too large."""
    found = os.lstat(file)
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("is no plain file")
    if found.st_size > most:
        raise ValueError(f"has {found.st_size} bytes, more than {most}")
    return found.st_size


def _read(file: pathlib.Path, size: int) -> bytes:
    with open(file, "rb") as opened:
        return opened.read(size + 1)


@contextlib.contextmanager
def damaged(folder: pathlib.Path, what: str) -> Iterator[None]:
    """Raise whatever goes wrong as one error."""
    try:
        yield
    except (ArtifactError, ImportError, PermissionError):
        raise
    except Exception as error:
        missing = isinstance(error, FileNotFoundError)
        got = f"no {what} in it" if missing else f"{what} that {_line(error)}"
        got = got if os.path.isdir(folder) else "nothing"
        mend = "take another copy, or save it again by fnn.export.save"
        raise ArtifactError(f"a complete artifact at {folder}", got, mend) from error


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
