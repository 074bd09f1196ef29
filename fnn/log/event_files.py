"""The event files of TensorBoard: records that only grow, in one file per start of a run.

A record is its length, a checksum of the length, a serialized `Event`, and a checksum of that.
"""

from __future__ import annotations

import os
import pathlib
import struct
import zlib
from typing import Any

from fnn.core import errors
from fnn.log.formats import extend, other_file, reopened, sync


class EventFiles:
    """The files of one run in a folder, of which the last is written."""

    def __init__(self, folder: pathlib.Path):
        try:
            from tensorboardX.proto import event_pb2
            from tensorboardX.record_writer import masked_crc32c
        except ImportError:
            raise ImportError(
                "fnn.log.tensorboard needs tensorboardX: pip install 'fnn[log]'"
            ) from None
        made: Any = event_pb2  # its names are made when it is imported
        self.folder, self.number, self.bytes = folder, 0, 0
        self.event, self.start = made.Event, made.SessionLog.START
        self.masked = masked_crc32c

    def path(self, number: int) -> pathlib.Path:
        """TensorBoard reads the files in the order of their names."""
        return self.folder / f"events.out.tfevents.{number:010d}.fnn"

    def begin(self, overwrite: bool) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        found = sorted(self.folder.glob("*tfevents*"))
        own = [path for path in found if path.suffix == ".fnn"]
        if found and not (overwrite and found == own):
            raise errors.InputError(
                "the folder of a new run to hold no event files",
                f"{found[0]}",
                "give the run a folder of its own, remove the files, resume the run that wrote "
                "them from its checkpoint, or pass overwrite=True, which replaces those of fnn",
            )
        for path in own:
            path.unlink()
        self._open(1, after=0)

    def _open(self, number: int, after: int) -> None:
        """A new file; readers forget what they have read of steps later than `after`.

        They take the first start for that of the run, and so it has one too.
        """
        self.number, self.bytes = number, 0
        start = self.event(step=after + 1, session_log={"status": self.start})
        self.append([self.event(file_version="brain.Event:2"), start])

    def append(self, events: list[Any]) -> None:
        added = b"".join(self._record(event.SerializeToString()) for event in events)
        if added:
            self.bytes = extend(self.path(self.number), added)

    def _record(self, data: bytes) -> bytes:
        length = struct.pack("<Q", len(data))
        sums = (struct.pack("<I", self.masked(part)) for part in (length, data))
        return length + next(sums) + data + next(sums)

    def sync(self) -> None:
        sync(self.path(self.number))

    def position(self) -> dict[str, int]:
        if not self.number:
            return {"file": 0, "bytes": 0, "check": 0}
        with open(self.path(self.number), "rb") as file:
            return {"file": self.number, "bytes": self.bytes, "check": _check(file, self.bytes)}

    def cut(self, position: dict[str, int], step: int, overwrite: bool) -> None:
        """Make the files end there again, and go on after `step` in a new one."""
        number, end = position["file"], position["bytes"]
        if number:
            path = self.path(number)
            with reopened(path, overwrite) as file:
                holds = file.seek(0, os.SEEK_END)
                if holds < end or _check(file, end) != position["check"]:
                    if not overwrite:
                        raise other_file(path, f"{end:,} bytes", f"{holds:,} bytes", holds < end)
                    end = 0
                file.truncate(end)
        for path in self.folder.glob("*tfevents*.fnn"):  # of steps after the checkpoint
            if path > self.path(number):
                path.unlink()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._open(number + 1, step)


def _check(file: Any, end: int) -> int:
    """A checksum of the last bytes before `end`."""
    file.seek(max(0, end - 256))
    return zlib.crc32(file.read(min(end, 256))) & 0x7FFFFFFF
