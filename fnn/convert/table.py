"""What a framework calls the arrays of each kind of layer, and how it lays them out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from fnn.core import errors
from fnn.core.types import Shape

Groups = dict[str, dict[str, Any]]  # the layers of the other network: {name: {entry: array}}
Names = Mapping[str, str] | None  # {path of a layer here: its name there}


class Layout(NamedTuple):
    """How an array is laid out: from theirs to ours, and from ours to theirs."""

    ours: Callable[[np.ndarray, Leaf], np.ndarray]
    theirs: Callable[[np.ndarray, Leaf], np.ndarray]


class Leaf(NamedTuple):
    """One array of a layer, here and in the other framework."""

    name: str  # our name, "kernel"
    collection: str  # "params" or "state"
    path: str  # in that collection
    array: jax.ShapeDtypeStruct
    axes: tuple[str, ...]  # the logical names of its axes, if any
    x: Shape  # the shape of the layer's input
    entry: str  # their name, "weight"
    layout: Layout
    stack: Shape = ()  # the leading axes of our array, if it stacks many layers
    member: tuple[int, ...] = ()  # and the index of this one
    order: np.ndarray | None = None  # row i of ours is row order[i] of theirs

    def ours(self, theirs: np.ndarray) -> np.ndarray:
        array = self.layout.ours(theirs, self)
        return array if self.order is None else np.take(array, self.order, 0)

    def theirs(self, ours: np.ndarray) -> np.ndarray:
        if self.order is not None:
            ours = np.take(ours, np.argsort(self.order), 0)
        return self.layout.theirs(ours, self)

    def shape(self) -> Shape:
        """The shape of their array."""
        return self.theirs(np.broadcast_to(np.zeros((), bool), self.array.shape)).shape


class Part(NamedTuple):
    """A layer of the network that holds arrays: its path, kind, input and arrays.

    Each layer of a stack is a part of its own, with its number in the path: blocks/0/dense1.
    """

    path: str
    kind: str
    origin: Any
    leaves: tuple[Leaf, ...]


class Framework(NamedTuple):
    """Another framework: what it calls the arrays of each kind of layer, and what else it keeps.

    - `table`: {kind: {our leaf: (their entry, Layout)}}, a layer's arrays in their order.
    - `separator`: joins the names of a path.
    - `whole`: what keeps the order of their layers, for a message.
    - `unused`: entries without a counterpart here.
    - `inside(where, entry)`: the name of an entry of lstm2/backward, say, where all layers and
      directions of a recurrent layer are one; None where each is a layer of its own.
    """

    table: Mapping[str, Mapping[str, tuple[str, Layout]]]
    separator: str = "/"
    whole: str = ""
    unused: tuple[str, ...] = ()
    inside: Callable[[str, str], str] | None = None

    def join(self, name: str, entry: str) -> str:
        return self.separator.join(filter(None, (name, entry)))

    def group(self, flat: Mapping[str, Any]) -> Groups:
        """The arrays by layer; one that belongs to no known layer is a group of its own."""
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


# --- layouts that several frameworks share


def turned(a: np.ndarray) -> np.ndarray:
    """[*kernel_size, A, B] turned around in space, with A and B swapped.

    A transposed convolution is the adjoint of a convolution. This turns that convolution's kernel
    into the one that slides over the dilated input, and back.
    """
    return np.swapaxes(np.flip(a, tuple(range(a.ndim - 2))), -1, -2)


def stores_adjoint(leaf: Leaf) -> bool:
    """Whether our transposed convolution has `transpose_kernel=True`."""
    return leaf.axes[-2:] == ("out", "in")


def _adjoint(a: np.ndarray, leaf: Leaf) -> np.ndarray:
    return a if stores_adjoint(leaf) else turned(a)


SAME = Layout(lambda a, leaf: a, lambda a, leaf: a)
ADJOINT = Layout(_adjoint, _adjoint)  # [*kernel_size, out, in] of the other convolution
