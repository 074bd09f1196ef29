"""The recent inputs of a server, compared with those of training."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fnn.metrics.drift import population_stability_index
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
        self._lock = threading.Lock()  # requests are added in one thread, meters read in another

    def add(self, xs: Sequence[np.ndarray]) -> None:
        """Keep the inputs of a request, and forget the oldest."""
        most = min(WINDOW, MOST // max(sum(x.nbytes // len(x) for x in xs), 1))
        with self._lock:
            self._kept.append(tuple(xs))
            self.rows += len(xs[0])
            while self._kept and self.rows - len(self._kept[0][0]) >= most:
                self.rows -= len(self._kept.popleft()[0])

    def drift(self) -> dict[str, Found]:
        """By the name of each input what has changed; NaN where nothing is known yet."""
        with self._lock:
            kept = self._kept.copy()
        return {
            self.inputs[i].name: compared(said, [xs[i] for xs in kept])
            for i, said in self.of.items()
        }


def compared(said: Mapping[str, Any], parts: Sequence[np.ndarray]) -> Found:
    """Values of an input against their statistics at training."""
    edges, counts = (np.asarray(said["histogram"][key], np.float32) for key in ("edges", "counts"))
    features = edges.shape[:-1]
    flat = [np.asarray(part, np.float32).reshape(-1, math.prod(features)) for part in parts]
    values = np.concatenate(flat or [np.zeros((0, math.prod(features)), np.float32)])
    values = values[:: len(values) // VALUES + 1, :FEATURES]
    then = counts.reshape(-1, counts.shape[-1])[:FEATURES]
    pairs = zip(edges.reshape(-1, edges.shape[-1]), values.T, strict=False)
    now = np.array([counted(*pair) for pair in pairs], np.float32)
    psi = np.asarray(population_stability_index(then, now, None))
    mean, std = (np.ravel(said[name])[:FEATURES] for name in ("mean", "std"))
    with np.errstate(invalid="ignore", divide="ignore"):  # nothing known yet, or no deviation
        recent = values.sum(0, dtype=np.float64) / len(values)
        return Found(psi, abs(recent - mean) / std)


def counted(edges: np.ndarray, x: np.ndarray) -> np.ndarray:
    """How many values are in each bin of a feature, as `fnn.metrics.histogram` divides them."""
    below, up_to = (np.searchsorted(edges, x, side) for side in ("left", "right"))
    return np.bincount(below + (up_to - below > 1), minlength=len(edges) + 2)
