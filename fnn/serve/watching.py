"""The recent inputs of a server, compared with those of training."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fnn.metrics.drift import drift
from fnn.serve.interface import Form

WINDOW = 1000  # examples
MOST = 64 << 20  # bytes of examples that are kept
VALUES = 1 << 17  # of a feature that are compared
FEATURES = 256  # the first so many of an input


class Found(NamedTuple):
    """Of an input, by feature: the population stability index and the shift of the mean."""

    psi: np.ndarray
    shift: np.ndarray


class Watch:
    """The last examples that were asked about, at least WINDOW if MOST bytes hold them.

    - `statistics`: the manifest's: of each input a histogram, the mean and the standard deviation,
      of each feature along "axis", or of all values.
    """

    def __init__(self, statistics: Mapping[str, Any], inputs: Sequence[Form]):
        self.of = {
            i: statistics[form.name]
            for i, form in enumerate(inputs)
            if form.name in statistics and form.dtype.kind not in "bc"
        }
        self.inputs = inputs
        self.rows = 0
        self._kept: deque[tuple[np.ndarray, ...]] = deque()
        self.drift()  # compiles

    def add(self, xs: Sequence[np.ndarray]) -> None:
        """Keep the inputs of a request, and forget the oldest."""
        self._kept.append(tuple(xs))
        self.rows += len(xs[0])
        most = min(WINDOW, MOST // max(sum(x.nbytes // len(x) for x in xs), 1))
        while self._kept and self.rows - len(self._kept[0][0]) >= most:
            self.rows -= len(self._kept.popleft()[0])

    def drift(self) -> dict[str, Found]:
        """By the name of each input what has changed; NaN where nothing is known yet."""
        kept = self._kept.copy()
        return {
            self.inputs[i].name: compared(said, [xs[i] for xs in kept])
            for i, said in self.of.items()
        }


def compared(said: Mapping[str, Any], parts: Sequence[np.ndarray]) -> Found:
    """Values of an input against their statistics at training."""
    edges, counts = (np.asarray(said["histogram"][key]) for key in ("edges", "counts"))
    features = edges.shape[:-1]
    flat = [np.asarray(part, np.float32).reshape(-1, *features) for part in parts]
    values = np.concatenate(flat) if flat else np.zeros((0, *features), np.float32)
    most = VALUES
    while most >= 2 * len(values) and most > 1024:
        most //= 2  # few sizes, so that few programs are compiled
    values = values[:: -(-len(values) // most) or 1]
    mask = np.arange(most) < len(values)
    padded = np.zeros((most, *features), np.float32)
    padded[: len(values)] = values
    metric = drift({"edges": edges, "counts": counts})
    with jax.numpy_dtype_promotion("standard"):
        psi = metric.compute(metric.update(metric.init(), padded, None, mask))
    std = np.asarray(said["std"])
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = values.mean(0, dtype=np.float64) if len(values) else np.full(features, np.nan)
        shift = abs(mean - np.asarray(said["mean"])) / std
    return Found(*(np.ravel(np.asarray(a))[:FEATURES] for a in (psi, shift)))
