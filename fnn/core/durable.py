"""Files that are to survive a kill or a power cut."""

import contextlib
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterator
from typing import BinaryIO


def write_all(file: BinaryIO, data: bytes | memoryview) -> None:
    """Write all of it to an unbuffered file, whose own `write` may be short."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def sync_directory(directory: pathlib.Path) -> None:
    """Make the names of new and renamed files in a directory last."""
    if os.name == "posix":  # elsewhere directories cannot be opened
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def complete_folder(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to write files into, which takes the name `target` at the end, or is removed.

    FileExistsError if the name is taken.
    """
    beside = target.parent / f".{target.name}.{secrets.token_hex(4)}.tmp"
    beside.mkdir(parents=True)
    try:
        yield beside
        sync_directory(beside)
        if target.exists():  # rename would take an empty folder's place
            raise FileExistsError(target)
        os.rename(beside, target)
        sync_directory(target.parent)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def write_file(file: pathlib.Path, data: bytes | memoryview) -> None:
    """A new file that lasts."""
    with open(file, "xb", buffering=0) as out:
        write_all(out, data)
        os.fsync(out.fileno())


@contextlib.contextmanager
def complete_file(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """A file to write, which takes the name `target` at the end, or is removed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.parent / f".{target.name}.{secrets.token_hex(4)}.tmp"
    try:
        yield beside
        with open(beside, "rb") as written:
            os.fsync(written.fileno())
        os.replace(beside, target)
        sync_directory(target.parent)
    finally:
        beside.unlink(missing_ok=True)
