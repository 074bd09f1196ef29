"""Packs: short sequences side by side in rows of one length, so that little is padding."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Any

import numpy as np

from fnn.core import checks, errors
from fnn.core.shapes import natives
from fnn.data.buckets import lengths_of
from fnn.data.sources import Source, source_of


@dataclass(frozen=True, eq=False)
class Packed:
    """Rows of sequences as a source; see `packed`."""

    source: Source
    length: int
    lengths: np.ndarray  # [n]: of the sequences
    pieces: np.ndarray  # [pieces, 3]: the number of a sequence, where the piece begins and ends
    ends: np.ndarray  # [rows]: how many pieces there are up to the end of each row

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        first = 0 if index in (0, -len(self)) else self.ends[index - 1]
        pieces = self.pieces[first : self.ends[index]]
        numbers, begins, ends = pieces.T.tolist()
        given = natives(list(self.source.take(numbers)), "sequences", others=True)
        sequences = list(map(np.asarray, given))
        if [x.shape for x in sequences] != [(size,) for size in self.lengths[numbers].tolist()]:
            wanted, mend = "sequences [T] as long as lengths= says", "pass their own lengths"
            raise errors.ShapeError(wanted, errors.show(sequences), mend)
        triples = zip(sequences, begins, ends, strict=True)
        parts = [x[begin:end] for x, begin, end in triples]
        sizes = list(map(len, parts))
        row = {
            "tokens": np.concatenate(parts),
            "segments": np.repeat(np.arange(1, 1 + len(sizes), dtype=np.int32), sizes),
            "positions": np.concatenate([np.arange(size, dtype=np.int32) for size in sizes]),
        }
        rest = self.length - sum(sizes)
        return {name: np.pad(x, (0, rest)) for name, x in row.items()}


@errors.named
def packed(sequences: Any, length: int, *, lengths: Any = len, cut: bool = False) -> Packed:
    """Sequences packed into rows of one length, as a source for `fnn.data.stream`.

    Each sequence, in order, goes into the first row with room for it (first fit). A row is
    `{"tokens": [length], "segments": [length], "positions": [length]}`: the sequences one after
    another; their numbers in the row, from 1, with 0 for padding; and places in their sequence,
    from 0. Padding is 0 in all three.

    - `sequences`: a list of ints [T], or another source of them, as in `fnn.data.stream`; they are
      read when their row is.
    - `length`: of the rows.
    - `lengths`: of all sequences, ints [n]; or a function of a sequence, called for each, here.
    - `cut`: whether a sequence longer than `length` becomes pieces of that length and a rest, each
      a segment of its own. Otherwise it is refused. A sequence without tokens is in no row.

    `fnn.attention` takes the segments as they are, so that tokens see their own alone; and the next
    token is a label only within its segment. With s = batch["segments"]:

        y = net(params, x, segments=s)
        known = (s[..., 1:] == s[..., :-1]) & (s[..., 1:] > 0)

    Rotary positions and biases by distance need no change, as only differences count in them; for
    others there are `positions`. Raises OptionError for sequences that are too long, and as
    `fnn.data.stream`.

    >>> rows = packed([np.array([5, 6]), np.array([7, 8, 9]), np.array([4])], 4)
    >>> for name, values in rows[0].items():
    ...     print(f"{name:9}", values)
    tokens    [5 6 4 0]
    segments  [1 1 2 0]
    positions [0 1 0 0]
    >>> import fnn, jax
    >>> batch = next(fnn.data.stream(rows, 2, None)(0))
    >>> net = fnn.attention(8, 2, causal=True, rotary=10_000.0)
    >>> x = jax.nn.one_hot(batch["tokens"], 10)
    >>> params, _ = net.init(jax.random.key(0), x)
    >>> net(params, x, segments=batch["segments"]).shape
    (2, 4, 8)
    """
    source, length = source_of(sequences), checks.count("length", length)
    found = lengths_of(source, lengths)
    if not cut and (long := int((found > length).sum())):
        got = f"{long} of up to {found.max()}"
        mend = "pass cut=True, which makes pieces of them, or a greater length"
        raise errors.OptionError(f"sequences of at most length={length}", got, mend)
    pieces = [
        (i, begin, min(begin + length, size))
        for i, size in enumerate(found.tolist())
        for begin in range(0, size, length)
    ]
    rows = _first_fit([end - begin for _, begin, end in pieces], length)
    order = [piece for row in rows for piece in row]
    table = np.array(pieces, np.int64).reshape(-1, 3)[order]
    ends = np.cumsum([len(row) for row in rows], dtype=np.int64)
    return Packed(source, length, found, table, ends)


def _first_fit(sizes: list[int], length: int) -> list[list[int]]:
    """The numbers of the sizes in each row: each goes into the first row with room for it."""
    rows: list[list[int]] = []
    of_room: list[list[int]] = [[] for _ in range(length + 1)]  # heaps: the rows with just so much
    first = np.full(length + 1, len(sizes))  # the first of them; len(sizes) if there is none
    for i, size in enumerate(sizes):
        room = size + int(np.argmin(first[size:]))
        if of_room[room]:
            row = heapq.heappop(of_room[room])
            first[room] = of_room[room][0] if of_room[room] else len(sizes)
        else:
            row, room = len(rows), length
            rows.append([])
        rows[row].append(i)
        heapq.heappush(of_room[room - size], row)
        first[room - size] = of_room[room - size][0]
    return rows
