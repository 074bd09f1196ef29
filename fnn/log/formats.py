"""Files of rows that only grow: what is in them stays whole, whenever the process is killed."""

from __future__ import annotations

import os
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any, BinaryIO, Protocol, TypeAlias

from fnn.core import errors
from fnn.core.durable import sync_directory, write_all
from fnn.log.read import cells
from fnn.log.values import RESERVED, key, text

Record: TypeAlias = tuple[int, int, float, Mapping[str, Any]]  # step, epoch, time, metrics


class File(Protocol):
    """What both formats do."""

    name: str

    def begin(self, overwrite: bool) -> None:
        """Start a new file; refuse one that holds something, unless told otherwise."""
        ...

    def append(self, records: list[Record]) -> None:
        """Add rows in one write."""
        ...

    def sync(self) -> None:
        """Return once all rows are safe on disk."""
        ...

    def position(self) -> dict[str, int]:
        """Where the file ends, and a checksum of its last row."""
        ...

    def cut(self, position: dict[str, int], overwrite: bool) -> None:
        """Make it end there again."""
        ...


class Jsonl:
    """A JSON object in each line."""

    name = "jsonl"

    def __init__(self, path: pathlib.Path):
        self.path, self.bytes, self.last = path, 0, b""

    def begin(self, overwrite: bool) -> None:
        begin(self.path, overwrite)
        self.bytes, self.last = 0, b""

    def append(self, records: list[Record]) -> None:
        lines = []
        for step, epoch, when, metrics in records:
            cells = [f",{key(name)}:{text(name, value)}" for name, value in metrics.items()]
            lines.append(f'{{"step":{step},"epoch":{epoch},"time":{when:.3f}{"".join(cells)}}}\n')
        if lines:
            added = "".join(lines).encode()
            self.bytes, self.last = extend(self.path, added), lines[-1].encode()

    def sync(self) -> None:
        sync(self.path)

    def position(self) -> dict[str, int]:
        return {"bytes": self.bytes, "check": check(self.last)}

    def cut(self, position: dict[str, int], overwrite: bool) -> None:
        end = position["bytes"]
        with reopened(self.path, overwrite or not end) as file:
            holds = file.seek(0, os.SEEK_END)
            last = last_line(file, end) if holds >= end else b""
            if holds < end or check(last) != position["check"]:
                if not overwrite:
                    raise other_file(self.path, f"{end:,} bytes", f"{holds:,} bytes", holds < end)
                end, last = 0, b""
            file.truncate(end)
        self.bytes, self.last = end, last


class Csv:
    """Comma-separated values under a header that may grow."""

    name = "csv"

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.names: list[str] = []
        self.count, self.last = 0, b""

    def begin(self, overwrite: bool) -> None:
        begin(self.path, overwrite)
        self.names, self.count, self.last = [], 0, b""

    def append(self, records: list[Record]) -> None:
        if not records:
            return
        if not size(self.path):  # new, or removed meanwhile
            self.names, self.count = [], 0
        known = set(self.names)
        found = dict.fromkeys(name for *_, metrics in records for name in metrics)
        new = [name for name in found if name not in known]
        for name in new:
            if key(name) and ("\n" in name or "\r" in name):
                mend = "rename the metric, or use fnn.log.jsonl"
                raise errors.InputError("names of one line in a csv file", repr(name), mend)
        header, names = b"", self.names + new
        if not self.count:
            header = self._header(names)
        elif new:
            self._widen(new)
        lines = []
        for step, epoch, when, metrics in records:
            row = [_cell(text(name, metrics[name])) if name in metrics else "" for name in names]
            lines.append(",".join([f"{step},{epoch},{when:.3f}", *row]) + "\n")
        extend(self.path, header + "".join(lines).encode())
        self.names, self.count = names, self.count + len(lines)
        self.last = lines[-1].encode()

    def _header(self, names: list[str]) -> bytes:
        return (",".join(map(_cell, [*RESERVED, *names])) + "\n").encode()

    def _widen(self, new: list[str]) -> None:
        """Write the file again with more columns, empty in all rows so far."""
        beside = self.path.with_name(f"{self.path.name}.tmp")
        with open(self.path, "rb") as old, open(beside, "wb") as wider:
            old.readline()
            wider.write(self._header(self.names + new))
            empty = b"," * len(new) + b"\n"
            for line in old:
                wider.write(line[:-1] + empty)
            wider.flush()
            os.fsync(wider.fileno())
        os.replace(beside, self.path)

    def sync(self) -> None:
        sync(self.path)

    def position(self) -> dict[str, int]:
        return {"rows": self.count, "check": check(self.last)}

    def cut(self, position: dict[str, int], overwrite: bool) -> None:
        rows = position["rows"]
        with reopened(self.path, overwrite or not rows) as file:
            header, count, last = file.readline(), 0, b""
            for line in file:
                if count == rows or not line.endswith(b"\n"):
                    break
                count, last = count + 1, line
            if count < rows or check(last) != position["check"]:
                if not overwrite:
                    raise other_file(self.path, f"{rows:,} rows", f"{count:,} rows", count < rows)
                rows = 0
            end = 0
            if rows:
                file.seek(0)
                end = sum(len(line) for _, line in zip(range(rows + 1), file, strict=False))
            file.truncate(end)
        self.names = cells(header[:-1])[3:] if rows else []
        self.count, self.last = rows, last if rows else b""


def _cell(value: str) -> str:
    if value in ('"NaN"', '"Infinity"', '"-Infinity"'):
        return value[1:-1]
    if "," in value or '"' in value:
        return '"' + value.replace('"', '""') + '"'
    return value


# --- what both do to files


def size(path: pathlib.Path) -> int:
    return path.stat().st_size if path.exists() else 0


def begin(path: pathlib.Path, overwrite: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not overwrite and size(path):
        raise errors.InputError(
            "the log of a new run to be a new file",
            f"{path}, which holds {size(path):,} bytes",
            "give the run a path of its own, remove the file, resume the run that wrote it from "
            "its checkpoint, or pass overwrite=True",
        )
    path.write_bytes(b"")


def extend(path: pathlib.Path, added: bytes) -> int:
    """Append in one write, so that readers seldom see half a line; return where the file ends.

    The file is not kept open: a run that raises leaves nothing behind, and network drives show the
    rows to other machines.
    """
    with open(path, "ab", buffering=0) as file:
        write_all(file, added)
        return file.tell()


def sync(path: pathlib.Path) -> None:
    with open(path, "ab") as file:
        os.fsync(file.fileno())
    sync_directory(path.parent)  # which has the name of a new file


def check(line: bytes) -> int:
    """A checksum of a row; new columns of a csv file do not change it."""
    return zlib.crc32(line.rstrip(b",\n")) & 0x7FFFFFFF  # an int32, wherever it is kept


def reopened(path: pathlib.Path, overwrite: bool) -> BinaryIO:
    try:
        return open(path, "r+b")
    except OSError as error:
        if not overwrite:
            raise other_file(path, "its rows", error.strerror or "none", True) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    return open(path, "w+b")


def last_line(file: BinaryIO, end: int) -> bytes:
    """The line that ends at `end`; b"" if none does."""
    size = 4096
    while True:
        start = max(0, end - size)
        file.seek(start)
        tail = file.read(end - start)
        at = tail.rfind(b"\n", 0, len(tail) - 1)
        if at >= 0 or not start:
            return tail[at + 1 :] if tail.endswith(b"\n") else b""
        size *= 4


def other_file(path: pathlib.Path, wanted: str, got: str, short: bool) -> errors.InputError:
    return errors.InputError(
        f"the log that the checkpoint goes on with, {path} with {wanted}",
        f"{got}" if short else "another file, whose row there differs",
        "put that file back, or pass overwrite=True to begin a new one that has the rows from here "
        "on",
    )
