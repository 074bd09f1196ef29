"""Streams: batches of data that outgrow memory, read when they are needed."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np

from fnn.core import checks, errors
from fnn.core.placement import joined, part_of
from fnn.core.shapes import native_dtype
from fnn.core.types import Key, Tree
from fnn.data.batching import permutation
from fnn.data.reader import Cut, Reader
from fnn.data.sources import source_of
from fnn.data.workers import in_order

LAST = ("drop", "fill")


class Plan(Protocol):
    """Which examples are in which batch of which epoch.

    - `n`, `batch_size`: the number of examples, and of those in a batch.
    - `fill`: whether the last partial batch is filled up; otherwise it is dropped.
    - `batches`: per epoch.
    - `cuts(epoch, start)`: the batches of an epoch from number `start` on.
    - `order`: what tells this order from others, in words.
    """

    @property
    def n(self) -> int: ...

    @property
    def batch_size(self) -> int: ...

    @property
    def fill(self) -> bool: ...

    @property
    def batches(self) -> int: ...

    @property
    def order(self) -> str: ...

    def cuts(self, epoch: int, start: int) -> Iterator[Cut]: ...


@dataclass(frozen=True, eq=False)
class Stream:
    """Batches of every epoch, from any batch on; made by `fnn.data.stream` or `bucketed`.

        stream(epoch, start)    the batches of an epoch, from batch number `start` on
        stream.from_step(step)  those of all epochs, from the batch of a step on, without end
        len(stream)             batches per epoch

    The batch of step s is batch `s % len(stream)` of epoch `s // len(stream)`: going on from there
    reads nothing that came before. Each iterator has workers of its own, which start with its first
    batch and end when it is exhausted, closed (`contextlib.closing`) or no longer referred to.

    >>> from fnn.data import stream
    >>> batches = stream({"x": np.arange(5)}, 2, jax.random.key(0), device=False)
    >>> len(batches), [batch["x"].tolist() for batch in batches(0)]
    (2, [[0, 2], [4, 1]])
    >>> print(next(batches.from_step(1))["x"], next(batches(0, start=1))["x"])
    [4 1] [4 1]
    """

    read: Callable[[Cut], Tree]
    plan: Plan
    threads: int
    processes: int
    ahead: int
    device: Any
    shard: tuple[int, int]

    def __len__(self) -> int:
        return self.plan.batches

    @property
    def batch_size(self) -> int:
        return self.plan.batch_size

    @property
    def examples(self) -> int:
        """How many the source has."""
        return self.plan.n

    @property
    def fills(self) -> bool:
        """Whether it has every example, and a mask beside each batch."""
        return self.plan.fill

    @property
    def order(self) -> str:
        """What tells its order from that of other streams of so many examples."""
        return self.plan.order

    def __call__(self, epoch: int, start: int = 0) -> Generator[Tree, None, None]:
        with errors.within("stream"):
            epoch, start = checks.count("epoch", epoch, 0), checks.count("start", start, 0)
        return self._batches(self.plan.cuts(epoch, start))

    def from_step(self, step: int) -> Generator[Tree, None, None]:
        """The batches of step `step` and all after it, epoch after epoch, without end."""
        with errors.within("stream"):
            epoch, start = divmod(checks.count("step", step, 0), len(self))
        later = (self.plan.cuts(after, 0) for after in itertools.count(epoch + 1))
        cuts = itertools.chain(self.plan.cuts(epoch, start), itertools.chain.from_iterable(later))
        return self._batches(cuts)

    def _batches(self, cuts: Iterable[Cut]) -> Generator[Tree, None, None]:
        shares = (_share(cut, *self.shard) for cut in cuts)
        made = in_order(self.read, shares, self.threads, self.processes, self.ahead)
        with contextlib.closing(made):
            for batch in made:
                yield batch if self.device is False else _put(batch, self.device, self.shard[1])


def _put(batch: Tree, device: Any, parts: int) -> Tree:
    """On the device, except strings and the like; the copy runs while the device computes."""
    leaves, structure = jax.tree.flatten(batch)
    goes = [native_dtype(x.dtype) is not None for x in leaves]
    numbers = list(itertools.compress(leaves, goes))
    if device is True:
        numbers = jax.device_put(numbers)  # in one call, which is quicker
    else:
        numbers = [joined(device, x, parts) for x in numbers]
    put = iter(numbers)
    return structure.unflatten(
        next(put) if is_number else x for is_number, x in zip(goes, leaves, strict=True)
    )


def _share(cut: Cut, index: int, count: int) -> Cut:
    """A contiguous part of a batch."""
    if count == 1:
        return cut
    size = len(cut.rows) // count
    own = slice(index * size, (index + 1) * size)
    return cut._replace(rows=cut.rows[own], real=None if cut.real is None else cut.real[own])


@errors.named
def stream(
    source: Any,
    batch_size: int,
    key: Key | None,
    *,
    last: str = "drop",
    transform: Callable[[Tree], Tree] | None = None,
    threads: int = 1,
    processes: int = 0,
    ahead: int | None = None,
    device: Any = True,
    shard: tuple[int, int] | None = None,
) -> Stream:
    """Shuffled batches of data that need not fit into memory, read ahead by workers.

        order = permutation(key, epoch, n)
        batch i = source[order[i * batch_size : (i + 1) * batch_size]]

    The batches are those of `fnn.data.batches`, and `fnn.train.fit` takes a stream as it takes
    arrays: with `key = fnn.train.data_key(train_state)` the run is bitwise the same.

    - `source`: what gives any example by its number, in either form:

      a tree of arrays [n, ...], as dicts and tuples of NumPy's, `np.load(..., mmap_mode="r")`,
      HDF5's or Zarr's: only the rows of a batch are read. A memory map is read from its file, so it
      takes no memory, unless its rows are not contiguous or it was opened to be changed in memory;

      or an object with `__len__` and `__getitem__(int)` that returns an example, a tree of arrays
      and numbers: a list, `fnn.data.files`, a data source of tensorflow-datasets, ArrayRecord or
      Grain. With `__getitems__` it is asked for many at once.
    - `batch_size`: examples a batch, over all processes.
    - `key`: `jax.random.key(0)`, or None for the examples in order, as for evaluation.
    - `last`: of the last partial batch: `"drop"` leaves it out; `"fill"` repeats its last example,
      and every batch is a pair `(batch, mask)`, as from `fnn.data.eval_batches`.
    - `transform(example) -> example`: decodes or prepares one example, in the workers. It should
      depend on nothing else; what is random belongs in the step, which has a key.
    - `threads`: that read batches, one each at a time. 0 reads in the caller, when a batch is asked
      for. Reading files, NumPy and decoding images let threads run side by side; other Python
      does not.
    - `processes`: that read batches, instead of threads, for a transform that is Python. Each is a
      new interpreter with a copy of the source, so a source should be files or memory maps. They
      see the CPU alone, a script starts them below `if __name__ == "__main__":`, and batches come
      back by copies: keep images in uint8, and convert them in the step.
    - `ahead`: how many batches are read, or being read, before they are asked for: the memory that
      a stream takes. None is one more than there are workers.
    - `device`: True puts batches on the default device. A `jax.sharding.Sharding`, such as the
      `batch_sharding` of `fnn.sharding.plan`, makes of the processes' parts one array. False leaves
      them NumPy's.
    - `shard`: `(index, count)`: this process reads part `index` of `count` equal, contiguous parts
      of each batch. None is the part that its devices hold by the sharding, or all.

    Returns a `Stream`. Raises at the call: InputError for what is no source, ShapeError for leading
    axes that differ, OptionError for options out of range, such as a batch_size > n, RandomKeyError
    for what is no key. With a batch: `fnn.errors.DataError` that names the example (and its file)
    that cannot be read or transformed, or says that a worker has died; ShapeError for examples
    that do not stack.

    >>> source = [{"x": np.full(2, i)} for i in range(4)]
    >>> halved = stream(source, 3, None, last="fill", transform=lambda e: {"x": e["x"] / 2})
    >>> for batch, mask in halved(0):
    ...     print(batch["x"][:, 0], mask)
    [0.  0.5 1. ] [ True  True  True]
    [1.5 1.5 1.5] [ True False False]
    """
    known, fill = source_of(source), _fills(last)
    batch_size = checks.count("batch_size", batch_size)
    plan = Shuffled(len(known), batch_size, checked_key(key), fill)
    if not plan.batches:
        raise errors.OptionError(
            f"batch_size of at most the {plan.n} examples" if plan.n else "examples",
            f"{batch_size}" if plan.n else "none",
            'the last partial batch is dropped: lower batch_size, or pass last="fill"',
        )
    workers = checked_workers(batch_size, threads, processes, ahead, device, shard)
    return Stream(Reader(known, checked_transform(transform)), plan, **workers)


@dataclass(frozen=True, eq=False)
class Shuffled:
    """The plan of `fnn.data.batches`; without a key, examples in order."""

    n: int
    batch_size: int
    key: Key | None
    fill: bool

    @property
    def batches(self) -> int:
        return -(-self.n // self.batch_size) if self.fill else self.n // self.batch_size

    @property
    def order(self) -> str:
        return shown_key(self.key) + (", filled" if self.fill else "")

    def cuts(self, epoch: int, start: int) -> Iterator[Cut]:
        order = order_of(self.key, epoch, self.n)
        return cuts_of(order, self.batch_size, self.fill, start)


def order_of(key: Key | None, epoch: int, n: int) -> np.ndarray:
    return np.arange(n) if key is None else np.asarray(permutation(key, epoch, n))


def cuts_of(
    order: np.ndarray, batch_size: int, fill: bool, start: int = 0, length: int | None = None
) -> Iterator[Cut]:
    """Examples in order, cut into batches; a partial one is filled with the last, or dropped."""
    for at in range(start * batch_size, len(order), batch_size):
        if not fill and at + batch_size <= len(order):
            yield Cut(order[at : at + batch_size], None, length)
        elif fill:
            index = np.arange(at, at + batch_size)
            rows = order[np.minimum(index, len(order) - 1)]
            yield Cut(rows, index < len(order), length)


def shown_key(key: Key | None) -> str:
    if key is None:
        return "in order"
    words = " ".join(f"{word:08x}" for word in np.asarray(jax.random.key_data(key)).tolist())
    return f"{jax.random.key_impl(key)} {words}"


# --- options


def checked_key(key: Any) -> Key | None:
    return None if key is None else checks.typed_key(key)


def checked_transform(transform: Any) -> Any:
    if transform is not None:
        checks.function("transform", transform, "an example")
    return transform


def _fills(last: str) -> bool:
    checks.choice("last", last, LAST)
    return last == "fill"


def checked_workers(
    batch_size: int, threads: Any, processes: Any, ahead: Any, device: Any, shard: Any
) -> dict[str, Any]:
    """The options of `Stream` about where and how batches are read."""
    threads, processes = (
        checks.count("threads", threads, 0),
        checks.count("processes", processes, 0),
    )
    most = 1 + (processes or threads)
    ahead = most if ahead is None else checks.count("ahead", ahead)
    if not isinstance(device, (bool, jax.sharding.Sharding)):
        mend = "pass True, False or a jax.sharding.Sharding"
        raise errors.OptionError("device to be a bool or a sharding", errors.show(device), mend)
    if shard is None:
        shard = (0, 1)
        if not isinstance(device, bool) and jax.process_count() > 1:
            shard = part_of(device, batch_size)
    index, count = checks.counts("shard", shard, 2, least=0)
    if index >= count or batch_size % count:
        wanted = f"shard=(index, count) with index < count, which divides batch_size={batch_size}"
        mend = "pass (jax.process_index(), jax.process_count()), or a sharding as device="
        raise errors.OptionError(wanted, f"{(index, count)}", mend)
    return {
        "threads": threads, "processes": processes, "ahead": ahead, "device": device,
        "shard": (index, count),
    }  # fmt: skip
