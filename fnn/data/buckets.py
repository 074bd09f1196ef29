"""Buckets: sequences of about one length in each batch, padded to one of a few lengths."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from fnn.core import checks, errors
from fnn.core.types import Key, Tree
from fnn.data.reader import Cut, Reader
from fnn.data.sources import Source, source_of
from fnn.data.stream import (
    LAST,
    Stream,
    checked_key,
    checked_transform,
    checked_workers,
    cuts_of,
    order_of,
    shown_key,
)


@errors.named
def bucketed(
    source: Any,
    batch_size: int,
    key: Key | None,
    *,
    buckets: Sequence[int],
    lengths: Any,
    pad: Mapping[str, Any],
    last: str = "drop",
    transform: Callable[[Tree], Tree] | None = None,
    threads: int = 1,
    processes: int = 0,
    ahead: int | None = None,
    device: Any = True,
    shard: tuple[int, int] | None = None,
) -> Stream:
    """A stream of sequences, each batch from one bucket and padded to its length.

    A step compiles once for each bucket, and little of a batch is padding. The order of each epoch
    is a function of (key, epoch): its permutation of all examples, bucket by bucket, is cut into
    batches, and these come in an order of their own.

    - `source`, `batch_size`, `key`, `transform` and the rest: as in `fnn.data.stream`. Without a
      key the buckets come in turn. An example, after `transform`, is a dict.
    - `buckets`: their lengths, such as (32, 64, 128). A sequence is in the first that holds it.
    - `lengths`: of all sequences, ints [n]; or a function of an example (before `transform`), which
      is called for all of them once, here.
    - `pad`: what fills the sequences up, by their names: `{"tokens": 0}`. Each is [T, ...] in an
      example, of one T, and [batch_size, bucket, ...] in a batch. All else is stacked as it is.
    - `last`: of the last partial batch of each bucket, as in `fnn.data.stream`.

    Returns a `Stream`, whose batches also have `lengths`, T as int32 [batch_size], for
    `fnn.train.supervised(..., lengths="lengths")`. Raises OptionError for a sequence longer than
    the last bucket, and for a bucket with fewer examples than a batch, all of which
    `last="drop"` would leave out; DataError for an example on which `lengths` fails; else as
    `fnn.data.stream`.

    >>> source = [{"tokens": np.arange(1, 1 + n)} for n in (2, 5, 3, 4, 1)]
    >>> batches = bucketed(
    ...     source, 2, None, buckets=(3, 5), lengths=lambda e: len(e["tokens"]), pad={"tokens": 0}
    ... )
    >>> for batch in batches(0):
    ...     print(batch["tokens"].tolist(), batch["lengths"])
    [[1, 2, 0], [1, 2, 3]] [2 3]
    [[1, 2, 3, 4, 5], [1, 2, 3, 4, 0]] [5 4]
    """
    known, batch_size = source_of(source), checks.count("batch_size", batch_size)
    sizes = checks.counts("buckets", tuple(buckets) if np.iterable(buckets) else buckets)
    if list(sizes) != sorted(set(sizes)):
        raise errors.OptionError("buckets in rising order", f"{sizes}", "sort them, each once")
    checks.choice("last", last, LAST)
    if not isinstance(pad, Mapping) or not pad:
        mend = 'name what fills them up, as {"tokens": 0}'
        raise errors.OptionError("pad to be a dict by the sequences' names", errors.show(pad), mend)
    found = lengths_of(known, lengths)
    most = max(found.max(initial=0), 0)
    if most > sizes[-1]:
        wanted = f"sequences of at most {sizes[-1]}, the last of the buckets"
        got = f"{int((found > sizes[-1]).sum())} longer ones, up to {most}"
        raise errors.OptionError(wanted, got, "add a bucket, or cut them")
    plan = Buckets(found, sizes, batch_size, checked_key(key), last == "fill")
    if not plan.n:
        raise errors.OptionError("examples", "none", "pass a source that has some")
    few = [
        f"{n} of length {size}"
        for size, n in zip(sizes, plan.counts, strict=True)
        if 0 < n < batch_size
    ]
    if few and last == "drop":
        raise errors.OptionError(
            f"buckets with at least the {batch_size} examples of a batch",
            errors.names(few),
            'none of them would come: choose other buckets, or pass last="fill"',
        )
    workers = checked_workers(batch_size, threads, processes, ahead, device, shard)
    return Stream(Reader(known, checked_transform(transform), dict(pad)), plan, **workers)


def lengths_of(source: Source, lengths: Any) -> np.ndarray:
    """int64 [n]; a function is called for one example after another."""
    n = len(source)
    if callable(lengths):
        lengths = list(map(Reader(source, lengths).one, range(n)))
    found = np.asarray(lengths, None if n else np.int64)
    if found.shape != (n,) or found.dtype.kind not in "iu" or found.min(initial=0) < 0:
        mend = "pass one for each example, or a function of an example"
        raise errors.ShapeError(f"lengths, ints [{n}], at least 0", errors.show(found), mend)
    return found.astype(np.int64)


@dataclass(frozen=True, eq=False)
class Buckets:
    """The plan of `bucketed`."""

    lengths: np.ndarray
    sizes: tuple[int, ...]
    batch_size: int
    key: Key | None
    fill: bool

    @property
    def n(self) -> int:
        return len(self.lengths)

    @functools.cached_property
    def bucket(self) -> np.ndarray:
        """The number of each example's bucket."""
        return np.searchsorted(self.sizes, self.lengths)

    @functools.cached_property
    def counts(self) -> list[int]:
        """The examples in each bucket."""
        return np.bincount(self.bucket, minlength=len(self.sizes)).tolist()

    @property
    def batches(self) -> int:
        size, more = self.batch_size, self.batch_size - 1 if self.fill else 0
        return sum((n + more) // size for n in self.counts)

    @property
    def order(self) -> str:
        lengths = zlib.crc32(self.lengths.astype("<i8").tobytes())
        filled = ", filled" if self.fill else ""
        return f"{shown_key(self.key)}, buckets {self.sizes}, lengths {lengths:08x}{filled}"

    def cuts(self, epoch: int, start: int) -> Iterator[Cut]:
        order = order_of(self.key, epoch, self.n)
        bucket = self.bucket[order]
        cuts = [
            cut
            for i, size in enumerate(self.sizes)
            for cut in cuts_of(order[bucket == i], self.batch_size, self.fill, length=size)
        ]
        own = self.key if self.key is None else jax.random.fold_in(self.key, _BATCHES)
        for i in order_of(own, epoch, len(cuts))[start:].tolist():
            yield cuts[i]


_BATCHES = zlib.crc32(b"buckets")  # folded into the key for the order of batches
