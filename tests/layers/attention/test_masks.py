"""Rows that nobody reads, against a loop over queries and keys."""

import jax
import numpy as np

from fnn.layers.attention import masks
from tests.layers.attention.support import SEGMENTS, S

SHAPES = {"keys": (2, 1, 1, S), "queries": (2, 1, S, 1), "each": (2, 3, S, S), "all": (2, 1, 1, 1)}
CASES = [  # mask, causal, window, segments
    ("keys", False, None, None), ("keys", True, None, None), ("keys", True, 2, None),
    ("keys", False, 2, None), ("keys", True, 2, SEGMENTS), ("queries", True, None, None),
    ("queries", True, 2, None), ("queries", False, 3, None), ("queries", False, None, SEGMENTS),
    ("each", True, None, None), ("each", False, 2, SEGMENTS), ("all", True, None, SEGMENTS),
]  # fmt: skip


def drawn(seed, kind):
    return np.random.default_rng(seed).random(SHAPES[kind]) < 0.3


def loop(mask, causal, window, segments):
    """Whether any t sees s, and whether t sees any s: [B, S] and [B, T]."""
    seen = np.broadcast_to(mask, (2, 3, S, S)).any(1).copy()
    for b, t, s in np.ndindex(seen.shape):
        if causal and s > t or window and abs(t - s) >= window:
            seen[b, t, s] = False
        if segments is not None and (segments[b, t] != segments[b, s] or not segments[b, s]):
            seen[b, t, s] = False
    return seen.any(1), seen.any(2)


def test_rows_that_nobody_reads(monkeypatch):
    x = np.random.default_rng(0).normal(size=(2, S, 2)).astype(np.float32)
    x[:, ::2, 1] = np.nan
    monkeypatch.setattr(masks, "ROWS", 3)  # so that masks are read in blocks
    drawings = [[drawn(seed, kind) for kind, *_ in CASES] for seed in range(8)]

    @jax.jit
    def every(x, given):
        return [
            masks.without_hidden(x, mask, *rest)
            for mask, (_, *rest) in zip(given, CASES, strict=True)
        ]

    for given in drawings:
        for mask, (_, *rest), found in zip(given, CASES, every(x, given), strict=True):
            read, reads = loop(mask, *rest)
            clean, stray, is_read = map(np.asarray, found)
            hidden = ~read & np.isnan(x).any(-1)
            np.testing.assert_array_equal(np.broadcast_to(is_read, read.shape), read)
            np.testing.assert_array_equal(stray, hidden & reads)
            np.testing.assert_array_equal(clean, np.where(hidden[..., None], 0, x))
