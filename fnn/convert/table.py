"""What a framework calls the arrays of each kind of layer, and how their axes lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from fnn.core import errors

Groups = dict[str, dict[str, Any]]  # the layers of the other network: {name: {entry: array}}
Names = Mapping[str, str] | None  # {path of a layer here: its name there}


class Way(NamedTuple):
    """How an array's axes lie: from theirs to ours, and from ours to theirs."""

    ours: Callable[[np.ndarray, Slot], np.ndarray]
    theirs: Callable[[np.ndarray, Slot], np.ndarray]


class Slot(NamedTuple):
    """One array of a layer, here and in the other framework."""

    leaf: str  # our name of it, "kernel"
    part: str  # "params" or "state"
    path: str  # where it lies in that tree
    array: jax.ShapeDtypeStruct
    axes: tuple[str, ...]  # the logical names of its axes, as far as they have any
    x: tuple[int, ...]  # the shape of the layer's input
    entry: str  # their name of it, "weight"
    way: Way
    stack: tuple[int, ...] = ()  # the leading axes of our array, if it holds those of many layers
    member: tuple[int, ...] = ()  # and which of them this one is
    order: np.ndarray | None = None  # row i of ours is row order[i] of theirs

    def ours(self, theirs: np.ndarray) -> np.ndarray:
        array = self.way.ours(theirs, self)
        return array if self.order is None else np.take(array, self.order, 0)

    def theirs(self, ours: np.ndarray) -> np.ndarray:
        if self.order is not None:
            ours = np.take(ours, np.argsort(self.order), 0)
        return self.way.theirs(ours, self)

    def shape(self) -> tuple[int, ...]:
        """The shape of their array."""
        return self.theirs(np.broadcast_to(np.zeros((), bool), self.array.shape)).shape


class Part(NamedTuple):
    """A layer of the network that has arrays: its path, its kind, its input and its arrays.

    Of a stack of layers each is a part of its own, with its number in the path: blocks/0/dense1.
    """

    path: str
    kind: str
    origin: Any
    slots: tuple[Slot, ...]


class Framework(NamedTuple):
    """Another framework: what it calls the arrays of each kind of layer, and what it keeps besides.

    - `table`: {kind: {our leaf: (their entry, Way)}}, a layer's arrays in their order.
    - `separator`: what stands between the names in a path.
    - `whole`: what of theirs keeps the layers in order, for a message.
    - `unused`: entries that have no place here.
    - `inside(where, entry)`: what an entry of lstm2/backward, say, is called, where all layers and
      directions of a recurrent layer are one; None where each is a layer of its own.
    """

    table: Mapping[str, Mapping[str, tuple[str, Way]]]
    separator: str = "/"
    whole: str = ""
    unused: tuple[str, ...] = ()
    inside: Callable[[str, str], str] | None = None

    def join(self, name: str, entry: str) -> str:
        return self.separator.join(filter(None, (name, entry)))

    def group(self, flat: Mapping[str, Any]) -> Groups:
        """The arrays of one path each by layer; one that is no layer's stands by itself."""
        known = {entry for rows in self.table.values() for entry, _ in rows.values() if entry}
        groups: Groups = {}
        for path, array in flat.items():
            if not isinstance(path, str):
                raise errors.InputError("names that are strings", errors.show(path), "rename it")
            entry = self._entry(path, known)
            if self._entry(path, self.unused) is None:
                name = path if entry is None else path[: len(path) - len(entry)]
                name = name.removesuffix(self.separator)
                groups.setdefault(name, {})[entry or ""] = array
        return groups

    def flat(self, groups: Groups) -> dict[str, Any]:
        """The arrays of all layers by path."""
        return {self.join(n, entry): a for n, group in groups.items() for entry, a in group.items()}

    def _entry(self, path: str, entries: Any) -> str | None:
        ends = [e for e in entries if path == e or path.endswith(self.separator + e)]
        return max(ends, key=len, default=None)


# --- the ways that more than one framework has


def turned(a: np.ndarray) -> np.ndarray:
    """[*kernel_size, A, B] turned around in space, with A and B swapped.

    It makes the kernel that slides over the spread input of the kernel of the convolution whose
    adjoint a transposed convolution is, and back.
    """
    return np.swapaxes(np.flip(a, tuple(range(a.ndim - 2))), -1, -2)


def stores_adjoint(slot: Slot) -> bool:
    """Whether a transposed convolution of ours has `transpose_kernel=True`."""
    return slot.axes[-2:] == ("out", "in")


def _adjoint(a: np.ndarray, slot: Slot) -> np.ndarray:
    return a if stores_adjoint(slot) else turned(a)


SAME = Way(lambda a, slot: a, lambda a, slot: a)
ADJOINT = Way(_adjoint, _adjoint)  # [*kernel_size, out, in] of the other convolution
