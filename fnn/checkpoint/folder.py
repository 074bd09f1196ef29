"""Reading the arrays of a checkpoint in a folder, slice by slice, each with its sum."""

from __future__ import annotations

import functools
import os
import pathlib
import re
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from fnn.checkpoint.files import open_arrays, read_manifest, url_of
from fnn.checkpoint.leaves import HOST, Entry, Path, Place, dtype_of, empty, from_bytes, joined
from fnn.core.errors import CheckpointError

PIECE = 1 << 20  # bytes read at a time
BYTE = np.dtype(np.uint8)
STEP = re.compile(r"step-(0|[1-9][0-9]*)")


def steps_in(directory: pathlib.Path) -> list[int]:
    """The steps whose checkpoints a keeper has in its directory, in order."""
    if not directory.is_dir():
        return []
    found = (STEP.fullmatch(path.name) for path in directory.iterdir())
    return sorted(int(match[1]) for match in found if match)


def newest_of(path: str | os.PathLike) -> str | os.PathLike:
    """The newest checkpoint in a keeper's directory; any other path as it is."""
    steps = [] if url_of(path) else steps_in(pathlib.Path(path))
    return pathlib.Path(path) / f"step-{steps[-1]}" if steps else path


class Folder:
    """A checkpoint whose arrays are read and checked when they are asked for."""

    def __init__(self, path: str | os.PathLike):
        self.directory = pathlib.Path(path)
        self.manifest = read_manifest(self.directory)
        self.entries: dict[Path, Entry] = {}
        self.slices: dict[Path, list[dict]] = {}
        for names, entry, slices in self.manifest["leaves"]:
            self.entries[tuple(names)], self.slices[tuple(names)] = entry, slices
        self.bytes_of = functools.cache(self._bytes_of)

    def arrays(self, places: Mapping[Path, Place]) -> dict[Path, Any]:
        """The arrays at these paths, each at its place."""
        return {names: self._array(names, place) for names, place in places.items()}

    def _array(self, names: Path, place: Place) -> Any:
        shape = tuple(self.entries[names]["shape"])
        if place is None or place == HOST:
            whole = self.region(names, (slice(None),) * len(shape))
            return whole if place == HOST else jax.device_put(whole)  # on a CPU, this memory itself
        region = functools.partial(self.region, names)
        return jax.make_array_from_callback(shape, place, region)

    def _bytes_of(self, process: int) -> np.ndarray:
        return open_arrays(self.directory, process, self.manifest["files"][process])

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

    def _damage(self, names: Path, what: str) -> CheckpointError:
        return CheckpointError(
            f"an undamaged checkpoint at {self.directory}",
            f"{joined(names)}, which {what}",
            "take another checkpoint",
        )
