"""From the numbers of a batch's examples to the batch: what a worker does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from fnn.core import errors
from fnn.core.shapes import natives
from fnn.core.types import Tree
from fnn.data.sources import Source


class Cut(NamedTuple):
    """One batch of an epoch.

    - `rows`: the numbers of its examples, int [B].
    - `real`: bool [B], False where an example is there only to fill the batch; None if none is.
    - `length`: to which its sequences are padded; None for examples of one shape.
    """

    rows: np.ndarray
    real: np.ndarray | None = None
    length: int | None = None


@dataclass(frozen=True, eq=False)
class Reader:
    """Reads a batch, on any thread or process.

    - `transform(example) -> example`, or None.
    - `pad`: by name, what sequences are filled up with, if they are; the batch then has `lengths`.
    """

    source: Source
    transform: Callable[[Tree], Tree] | None = None
    pad: Mapping[str, Any] | None = None

    def __call__(self, cut: Cut) -> Tree:
        with errors.within("stream"):
            batch = self._batch(cut)
            return batch if cut.real is None else (batch, cut.real)

    def one(self, row: int) -> Any:
        """What `transform` makes of one example."""
        taken = self._read([row])
        example = jax.tree.map(lambda x: x[0], taken) if self.source.stacked else taken[0]
        return self._transformed(row, example)

    def _batch(self, cut: Cut) -> Tree:
        rows = cut.rows.tolist()
        read = self._read(rows)
        if self.source.stacked and self.transform is None and self.pad is None:
            return natives(read, "source", others=True)
        examples = read
        if self.source.stacked:
            leaves, structure = jax.tree.flatten(read)
            examples = [structure.unflatten(x[i] for x in leaves) for i in range(len(rows))]
        if self.transform is not None:
            examples = [self._transformed(*pair) for pair in zip(rows, examples, strict=True)]
        if self.pad is not None:
            length = cut.length or 0
            examples = [
                self._padded(row, example, length)
                for row, example in zip(rows, examples, strict=True)
            ]
        return natives(self._stacked(rows, examples), "source", others=True)

    def _read(self, rows: list[int]) -> Any:
        try:
            return self.source.take(rows)
        except Exception as error:
            for row in rows:  # which of them it was
                try:
                    self.source.take([row])
                except Exception as single:
                    raise self._failed(row, "read", single) from single
            raise self._failed(rows[0], "read, with those after it", error) from error

    def _transformed(self, row: int, example: Tree) -> Tree:
        assert self.transform is not None
        try:
            return self.transform(example)
        except Exception as error:
            raise self._failed(row, "transformed", error) from error

    def _failed(self, row: int, what: str, error: Exception) -> errors.DataError:
        got = f"{type(error).__name__}: {error}"
        return errors.DataError(f"{self._name(row)} to be {what}", got, "mend it, or leave it out")

    def _name(self, row: int) -> str:
        where = self.source.where(row)
        return f"example {row}" + (f" ({where})" if where else "")

    def _padded(self, row: int, example: Tree, length: int) -> dict[str, Any]:
        """A dict of arrays whose sequences [T, ...] are [length, ...], and `lengths`, T."""
        assert self.pad is not None
        if not isinstance(example, Mapping) or not self.pad.keys() <= example.keys():
            wanted = f"{self._name(row)} to be a dict with {errors.names(self.pad)}"
            mend = "name its sequences, as transform=lambda x: {'tokens': x}, and pad= likewise"
            raise errors.InputError(wanted, errors.show(example), mend)
        given = natives({name: example[name] for name in self.pad}, "source", others=True)
        sequences = {name: np.asarray(x) for name, x in given.items()}
        sizes = {x.shape[:1] for x in sequences.values()}
        ends = max(sizes, default=())
        if len(sizes) != 1 or not ends or ends[0] > length or "lengths" in example:
            wanted = f"{self._name(row)} with sequences of one length, at most {length}"
            mend = "lengths= must say how long they are, and 'lengths' is the name of what is added"
            raise errors.ShapeError(wanted, errors.show(example), mend)
        filled = {}
        for name, x in sequences.items():
            with errors.at(name):
                filled[name] = _filled(x, length, self.pad[name])
        return {**example, **filled, "lengths": np.int32(ends[0])}

    def _stacked(self, rows: list[int], examples: list[Tree]) -> Tree:
        """The examples as one tree of arrays, which must all be of one kind."""
        first = jax.tree.structure(examples[0])
        for row, example in zip(rows, examples, strict=True):
            if jax.tree.structure(example) != first:
                self._differs(rows[0], examples[0], row, example)
        try:
            return jax.tree.map(_stack, *examples)
        except ValueError:
            forms = [jax.tree.map(_form, example) for example in examples]
            for row, example, form in zip(rows, examples, forms, strict=True):
                if form != forms[0]:
                    self._differs(rows[0], examples[0], row, example)
            raise

    def _differs(self, row: int, one: Tree, other: int, two: Tree) -> None:
        raise errors.ShapeError(
            f"examples of one structure, shape and kind, as {self._name(row)}: {errors.show(one)}",
            f"{self._name(other)}: {errors.show(two)}",
            "make them alike by transform=, or see fnn.data.bucketed for sequences",
        )


def _form(x: Any) -> tuple:
    return np.shape(x), np.asarray(x).dtype.kind


def _stack(*xs: Any) -> np.ndarray:
    """Arrays of one shape and kind: NumPy would make floats of ints, and strings of numbers."""
    arrays = list(map(np.asanyarray, xs))
    if len({x.dtype.kind for x in arrays}) > 1:
        raise ValueError("several kinds")
    return np.stack(arrays)


def _filled(x: np.ndarray, length: int, value: Any) -> np.ndarray:
    """[T, ...] -> [length, ...], with a value that the dtype of x holds."""
    try:
        with np.errstate(invalid="ignore"):
            fill = np.full(x.shape[1:], value, x.dtype)
        held = x.dtype.kind in "fcV" or bool(np.all(fill == value))  # floats may be rounded
    except (OverflowError, TypeError, ValueError):
        held, fill = False, None
    if not held:
        mend = "pass another pad=, or make the sequences of a dtype that holds it by transform="
        raise errors.OptionError(f"a value to pad {x.dtype} with", errors.show(value), mend)
    out = np.empty((length, *x.shape[1:]), x.dtype)
    out[: len(x)], out[len(x) :] = x, fill
    return out
