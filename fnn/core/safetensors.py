"""The format of safetensors files: 8 bytes (length of the header), a JSON header, arrays.

    {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...}

https://github.com/huggingface/safetensors describes it. Nothing in such a file is ever run.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

CODES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "uint16": "U16", "int16": "I16", "uint32": "U32",
    "int32": "I32", "uint64": "U64", "int64": "I64", "float16": "F16", "bfloat16": "BF16",
    "float32": "F32", "float64": "F64", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip
DTYPES = {code: name for name, code in CODES.items()}
LARGEST = 100_000_000  # bytes of a header, by the format


def head(header: Mapping[str, Any]) -> bytes:
    """The length of a header and the header, so that arrays begin at a multiple of 8 bytes."""
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def mapped(file: str | os.PathLike) -> dict[str, np.ndarray]:
    """The arrays of a file, as views of a memory map: only what is used is read.

    Raises ValueError for a header that cannot be, whatever its bytes.
    """
    with open(file, "rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        size = os.fstat(opened.fileno()).st_size
        _claim(size >= 8, "is too short for a header")
        _claim(length <= min(size - 8, LARGEST), f"has a header of {length} bytes, beyond its end")
        header = _parsed(opened.read(length))
    header.pop("__metadata__", None)
    places = {name: _place(name, entry) for name, entry in header.items()}
    _check_cover(places, size - 8 - length)
    data = np.memmap(file, np.uint8, "r")[8 + length :].view(np.ndarray)
    return {
        name: data[start:end].view(dtype).reshape(shape)
        for name, (start, end, dtype, shape) in places.items()
    }


def _parsed(text: bytes) -> dict[str, Any]:
    def once(pairs):
        found = dict(pairs)
        _claim(len(found) == len(pairs), "has a header that names one array twice")
        return found

    try:
        header = json.loads(text.decode(), object_pairs_hook=once)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        raise ValueError("has a header that is no JSON") from None
    _claim(isinstance(header, dict), "has a header that is no JSON object")
    return header


def _place(name: str, entry: Any) -> tuple[int, int, np.dtype, tuple[int, ...]]:
    """(start, end, dtype, shape) of an array."""
    what = f"has a header in which {name!r} "
    _claim(isinstance(entry, dict), what + "is no object")
    code, shape, offsets = (entry.get(of) for of in ("dtype", "shape", "data_offsets"))
    _claim(isinstance(code, str) and code in DTYPES, what + f"is of dtype {code!r}")
    _claim(_whole(shape), what + f"has the shape {shape!r}")
    _claim(_whole(offsets) and len(offsets) == 2, what + f"lies at {offsets!r}")
    dtype = np.dtype(jnp.dtype(DTYPES[code]))
    size = math.prod(shape) * dtype.itemsize
    _claim(offsets[1] - offsets[0] == size, what + f"needs {size} bytes, and lies at {offsets}")
    return offsets[0], offsets[1], dtype, tuple(shape)


def _check_cover(places: Mapping[str, tuple], size: int) -> None:
    """Refuse arrays that overlap, leave holes, or end elsewhere than the file."""
    at = 0
    for name, (start, end, *_) in sorted(places.items(), key=lambda item: item[1][:2]):
        _claim(start == at, f"has a header in which {name!r} begins at {start}, not at {at}")
        at = end
    _claim(at == size, f"holds {size} bytes of arrays, and its header says {at}")


def _whole(numbers: Any) -> bool:
    return isinstance(numbers, list) and all(type(n) is int and n >= 0 for n in numbers)


def _claim(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)
