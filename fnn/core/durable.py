"""Files that are to survive a kill or a power cut."""

import os
import pathlib
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
