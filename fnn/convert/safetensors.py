"""Arrays by name, in the files in which pretrained weights come."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from fnn.convert.arrays import mapping, on_host
from fnn.core import errors, safetensors
from fnn.core.durable import complete_file
from fnn.core.errors import CheckpointError

INDEX = "model.safetensors.index.json"


@errors.named
def read_safetensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """{name: array} of a safetensors file, of an index of such files, or of a folder.

    The arrays are views of memory maps: however large the files are, only what is used is read,
    and converting them takes the memory of the params alone. They cannot be written to, and the
    files must stay. bfloat16 and float8 keep their dtype.

    - `path`: a `.safetensors` file; an index (`.index.json`), which says in which file beside it
      each array is; or a folder with `model.safetensors.index.json`, `model.safetensors`, or one
      other `.safetensors` file.

    Raises CheckpointError for a file that is missing, cut, or has a header that cannot be; a file
    is checked by its header alone, as the format has no sums of its arrays.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_safetensors(f"{folder}/model.safetensors", {"fc.bias": np.arange(2.0)})
    ...     print(read_safetensors(folder)["fc.bias"])
    [0. 1.]
    """
    path = pathlib.Path(path)
    if path.is_dir():
        path = _in_folder(path)
    if not path.name.endswith(".index.json"):
        return _file(path)
    files: dict[str, dict[str, np.ndarray]] = {}
    found = {}
    for name, file in _index(path).items():
        if file not in files:
            files[file] = _file(path.parent / file)
        if name not in files[file]:
            _refuse(path.parent / file, f"has no {name}, which {path.name} says it has")
        found[name] = files[file][name]
    return found


@errors.named
def write_safetensors(path: str | os.PathLike, arrays: Mapping[str, Any]) -> None:
    """Write {name: array} as one safetensors file, as other frameworks read it.

    - `arrays`: such as `fnn.convert.to_torch` gives.

    A file that is there is replaced. Raises InputError for what is no array, DtypeError for a dtype
    that the format lacks.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_safetensors(f"{folder}/a.safetensors", {"w": np.ones((2, 3), np.float32)})
    ...     print(os.path.getsize(f"{folder}/a.safetensors") % 8)
    0
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    found, at = {}, 0
    for name, value in mapping("arrays", arrays).items():
        array = np.asarray(on_host(name, value), order="C")
        if array.dtype.name not in safetensors.CODES:
            wanted = f"{name} of {errors.names(safetensors.CODES)}"
            raise errors.DtypeError(wanted, f"{name} {errors.show(array)}", "cast it")
        header[name] = {
            "dtype": safetensors.CODES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [at, at + array.nbytes],
        }
        found[name] = array
        at += array.nbytes
    with complete_file(pathlib.Path(path)) as file, open(file, "wb") as out:
        out.write(safetensors.head(header))
        for array in found.values():
            out.write(array.reshape(-1).view(np.uint8).data)


def _in_folder(folder: pathlib.Path) -> pathlib.Path:
    """The file of a folder to begin with."""
    for name in (INDEX, "model.safetensors"):
        if (folder / name).exists():
            return folder / name
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        got = errors.names(file.name for file in files)
        raise CheckpointError(
            f"{INDEX} or model.safetensors in {folder}", got, "name the file, or its index"
        )
    return files[0]


def _file(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        return safetensors.mapped(path)
    except FileNotFoundError:
        _refuse(path, "is not there")
    except (ValueError, IsADirectoryError) as error:
        _refuse(path, str(error))


def _index(path: pathlib.Path) -> dict[str, str]:
    """{name of an array: its file, in the folder of the index}."""
    try:
        files = json.loads(path.read_text())["weight_map"]
        plain = all(isinstance(f, str) and pathlib.PurePath(f).name == f for f in files.values())
    except FileNotFoundError:
        _refuse(path, "is not there")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        _refuse(path, "has no weight_map of names and files")
    if not plain:
        _refuse(path, "names files outside of its folder")
    return files


def _refuse(path: pathlib.Path, reason: str) -> NoReturn:
    raise CheckpointError(
        f"a whole safetensors file at {path}", f"one that {reason}", "copy it again from its source"
    )
