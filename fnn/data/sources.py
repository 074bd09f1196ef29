"""Sources: what gives any of its examples by number, however large it is."""

from __future__ import annotations

import mmap
import os
import pathlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np

from fnn.core import checks, errors
from fnn.core.shapes import natives
from fnn.core.types import Tree
from fnn.data.batching import check_leaves


class Source(Protocol):
    """`take(rows)`: some examples, stacked if the source is `stacked`, else as a list."""

    stacked: bool

    def __len__(self) -> int: ...

    def take(self, rows: list[int]) -> Any: ...

    def where(self, row: int) -> str: ...


def source_of(source: Any) -> Source:
    """A tree of arrays, or an object with `__len__` and `__getitem__(int)`, as a source."""
    is_tree = isinstance(source, (Mapping, tuple)) or _is_array(source) or hasattr(source, "iloc")
    if not is_tree and hasattr(source, "__len__") and hasattr(source, "__getitem__"):
        return Examples(source)
    leaves = [] if hasattr(source, "__next__") else jax.tree.leaves(source)
    check_leaves(leaves)
    if not leaves or not all(map(_is_array, leaves)):
        raise errors.InputError(
            "arrays [n, ...], or a source with __len__ and __getitem__(int)",
            errors.show(source),
            "wrap what only iterates: a stream reads examples by number",
        )
    sizes = {leaf.shape[:1] for leaf in leaves}
    if len(sizes) != 1 or sizes == {()}:
        wanted, mend = "arrays with one leading axis [n, ...]", "give each one row an example"
        raise errors.ShapeError(wanted, errors.show(source), mend)
    return Arrays(jax.tree.map(_leaf, source), sizes.pop()[0])


def _is_array(x: Any) -> bool:
    return hasattr(x, "shape") and hasattr(x, "dtype")


def _leaf(x: Any) -> Any:
    """What reads rows of an array: from memory, from a mapped file, or row by row."""
    if isinstance(x, jax.Array) or hasattr(x, "iloc"):  # whose rows have labels
        return np.asarray(x)
    if not isinstance(x, np.ndarray):
        return x
    natives(x[:0], "source", others=True)  # refuses masked arrays
    return _mapped(x) if isinstance(x, np.memmap) else x


@dataclass(frozen=True, eq=False)
class Arrays:
    """A tree of arrays [n, ...], of which no more is read than the rows that are asked for."""

    tree: Tree
    n: int
    stacked = True

    def __len__(self) -> int:
        return self.n

    def take(self, rows: list[int]) -> Tree:
        def of(x: Any) -> np.ndarray:
            if isinstance(x, (np.ndarray, Mapped)):
                return x[np.asarray(rows, np.int64)]
            return np.stack([np.asarray(x[row]) for row in rows])  # such as HDF5's or Zarr's

        return jax.tree.map(of, self.tree)

    def where(self, row: int) -> str:
        return ""


@dataclass(frozen=True, eq=False)
class Examples:
    """An object that gives one example by its number, or many by `__getitems__`."""

    source: Any
    stacked = False

    def __len__(self) -> int:
        return len(self.source)

    def take(self, rows: list[int]) -> list[Tree]:
        if not hasattr(self.source, "__getitems__"):
            return [self.source[row] for row in rows]
        taken = list(self.source.__getitems__(rows))
        if len(taken) != len(rows):
            raise ValueError(f"{len(taken)} examples for {len(rows)} numbers")
        return taken

    def where(self, row: int) -> str:
        return self.source.paths[row] if isinstance(self.source, Files) else ""


@dataclass(frozen=True, eq=False)
class Mapped:
    """A memory-mapped array that is read from its file.

    Rows read through the mapping would stay in the memory of the process until the system is short
    of it. A file that is opened for each batch is also cheap to send to another process.
    """

    path: str
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        out = np.empty((len(rows), *self.shape[1:]), self.dtype)
        if not out.size:
            return out
        each = out.reshape(len(rows), -1).view(np.uint8)  # [rows, bytes of a row]
        with open(self.path, "rb", buffering=0) as file:
            for into, row in zip(each, rows.tolist(), strict=True):
                file.seek(self.offset + row * into.nbytes)
                left = into.data
                while left.nbytes:
                    done = file.readinto(left)
                    if not done:
                        raise OSError(f"{self.path} ends before row {row}")
                    left = left[done:]
        return out


def _mapped(x: np.memmap) -> Any:
    """As its file, unless it has changes of its own, no name, or rows that are not contiguous."""
    base: Any = x
    while isinstance(base, np.ndarray):
        base = base.base
    known = isinstance(base, mmap.mmap) and x.filename is not None
    if not known or x.mode == "c" or not x.flags.c_contiguous:
        return np.asarray(x)
    start = np.frombuffer(base, np.uint8).ctypes.data
    begins = x.offset - x.offset % mmap.ALLOCATIONGRANULARITY  # of the mapping, in the file
    offset = begins + x.ctypes.data - start  # a slice keeps the attribute of the whole
    return Mapped(str(x.filename), offset, x.shape, x.dtype)


@dataclass(frozen=True, eq=False)
class Files:
    """A file an example; see `files`."""

    paths: tuple[str, ...]
    read: Callable[[str], Tree]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tree:
        return self.read(self.paths[index])


@errors.named
def files(folder: str | os.PathLike, read: Callable[[str], Tree], pattern: str = "*") -> Files:
    """The files of a folder as a source for `fnn.data.stream`, an example each.

    - `folder`: where they are, sorted by their paths below it, so that each has its number.
    - `read(path) -> example`: such as an image and, from the name of the file, its label.
    - `pattern`: which of them, as `pathlib.Path.glob` has it: `"**/*.png"` goes into folders.

    Returns a source with `len`, `[i]` and `paths`. The folder is listed once, at the call; a file
    is read when its example is. Raises InputError if no file is there.

    >>> import tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> for i in range(3):
    ...     np.save(folder / f"{i}.npy", np.full(2, i))
    >>> source = files(folder, np.load, "*.npy")
    >>> len(source), source[2]
    (3, array([2, 2]))
    """
    checks.function("read", read, "a path")
    root = pathlib.Path(folder)
    found = (path for path in root.glob(pattern) if path.is_file())
    paths = sorted(found, key=lambda path: path.relative_to(root).as_posix())
    if not paths:
        wanted = f"files that match {pattern} in {root}"
        raise errors.InputError(wanted, "none", 'pass another folder, or pattern="**/*" for all')
    return Files(tuple(map(str, paths)), read)
