"""Plots of a model in use: what has drifted, and whether its confidence is still right."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax.typing import ArrayLike

from fnn import metrics
from fnn.analysis.figures import plain, pyplot
from fnn.core import checks, errors

CHANGED, MUCH = 0.1, 0.25  # the usual thresholds of the population stability index


@errors.named
def drift(
    reference: Mapping[str, ArrayLike],
    current: Mapping[str, ArrayLike] | ArrayLike,
    names: Sequence[str] | None = None,
    *,
    most: int = 6,
) -> Any:
    """The features that drifted most: their stability index, and their histograms then and now.

    - `reference`: from `fnn.metrics.histogram`, of features [...].
    - `current`: a histogram with the same edges, or its counts [..., bins], as the value of
      `fnn.metrics.drift(reference, "counts")`.
    - `names`: of the features, one for each, in the order of the array; None numbers them.
    - `most`: how many features are shown, those with the largest index.

    Bars are green up to 0.1, then orange, and red above 0.25. Histograms show the share of the
    values in each bin, with edges between the bins; bins that are always empty are left out at the
    ends. Raises ShapeError for counts that do not fit, OptionError for another number of names.

    >>> import matplotlib; matplotlib.use("Agg")
    >>> import fnn
    >>> x = np.random.default_rng(0).normal(size=(500, 3))
    >>> reference = fnn.metrics.histogram(x)
    >>> now = fnn.metrics.histogram(x + np.array([0, 0.3, 1]), reference["edges"])
    >>> [axes.get_title() for axes in drift(reference, now, ["a", "b", "c"]).axes[1:]]
    ['c', 'b', 'a']
    """
    edges, then = (np.asarray(reference[name], float) for name in ("edges", "counts"))
    now = np.asarray(current["counts"] if isinstance(current, Mapping) else current, float)
    for counts in (then, now):
        if counts.shape != (*edges.shape[:-1], edges.shape[-1] + 2):
            wanted = f"counts [..., E + 2] for edges {edges.shape}"
            raise errors.ShapeError(wanted, f"{counts.shape}", "count in the reference's bins")
    index = np.asarray(metrics.population_stability_index(then, now, None)).ravel()
    if names is None:
        names = [", ".join(map(str, at)) or "values" for at in np.ndindex(then.shape[:-1])]
    names = list(names)
    if len(names) != index.size:
        raise errors.OptionError(f"{index.size} names", f"{len(names)}", "one for each feature")
    worst = np.argsort(-np.nan_to_num(index), kind="stable")[: checks.count("most", most)]

    plt = pyplot()
    columns = min(len(worst), 3)
    rows = math.ceil(len(worst) / columns)
    figure = plt.figure(figsize=(3.2 + 2.2 * columns, max(1.9 * rows, 2.4)), layout="constrained")
    left, right = figure.add_gridspec(1, 2, width_ratios=(1, 0.75 * columns))
    _bars(figure.add_subplot(left), index[worst], [names[i] for i in worst], index.size)
    grid = right.subgridspec(rows, columns)
    edges, then, now = (x.reshape(index.size, -1) for x in (edges, then, now))
    for place, i in enumerate(worst):
        axes = figure.add_subplot(grid[place])
        _then_and_now(axes, edges[i], then[i], now[i], _colour(float(index[i])))
        axes.set_title(names[i], fontsize=9)
        if not place:
            axes.set_ylabel("share", fontsize=8)
            reference_and_now = axes.get_legend_handles_labels()
    figure.legend(*reference_and_now, frameon=False, fontsize=8, ncols=2, loc="outside upper right")
    return figure


@errors.named
def calibration_over_time(
    error: ArrayLike,
    accuracy: ArrayLike | None = None,
    confidence: ArrayLike | None = None,
    *,
    time: ArrayLike | None = None,
    label: str = "batch",
) -> Any:
    """The calibration error of a model in use, and how sure it was beside how often it was right.

    - `error`: [T], as `fnn.metrics.over_time` gives of a `windowed` `calibration_error`.
    - `accuracy`, `confidence`: [T], the mean of the largest probability; both or neither. Between
      them, the model is too sure (red) or not sure enough (blue).
    - `time`: of each value, [T]; None counts from 1. `label`: what it is counted in.

    Raises ShapeError for series that are not all [T], OptionError for one of the two alone.

    >>> import matplotlib; matplotlib.use("Agg")
    >>> figure = calibration_over_time([0.02, 0.1], [0.9, 0.8], [0.91, 0.9])
    >>> [axes.get_ylabel() for axes in figure.axes]
    ['share', 'calibration error']
    """
    if (accuracy is None) != (confidence is None):
        raise errors.OptionError("accuracy and confidence", "one of them", "pass both or neither")
    series = {"error": error, "accuracy": accuracy, "confidence": confidence, "time": time}
    got = {name: np.asarray(x, float) for name, x in series.items() if x is not None}
    if any(x.shape != got["error"].shape or x.ndim != 1 for x in got.values()):
        raise errors.ShapeError("series [T]", errors.show(got), "give one value for each time")
    t = got.get("time", np.arange(1, got["error"].size + 1))
    both = accuracy is not None
    figure, panels = pyplot().subplots(
        1 + both, 1, figsize=(6, 4.5 if both else 2.5), sharex=True, squeeze=False,
        layout="constrained", height_ratios=(3, 2) if both else None,
    )  # fmt: skip
    (*above, below) = panels[:, 0]
    for axes in above:
        right, sure = got["accuracy"], got["confidence"]
        fill = {"alpha": 0.25, "linewidth": 0, "interpolate": True}
        axes.fill_between(t, right, sure, where=sure > right, color="tab:red", **fill)
        axes.fill_between(t, right, sure, where=sure <= right, color="tab:blue", **fill)
        axes.plot(t, sure, "--", color="tab:gray", label="mean confidence")
        axes.plot(t, right, color="black", label="accuracy")
        axes.set(ylabel="share")
        axes.legend(frameon=False, loc="lower left")
        plain(figure, axes)
    below.plot(t, got["error"], color="tab:red")
    below.fill_between(t, got["error"], color="tab:red", alpha=0.15, linewidth=0)
    below.set(xlabel=label, ylabel="calibration error", ylim=(0, None), xlim=(t[0], t[-1]))
    return plain(figure, below)


def _bars(axes: Any, index: np.ndarray, names: list[str], features: int) -> None:
    """The index of each feature as a bar, the worst on top, with both thresholds."""
    y = np.arange(len(index))[::-1]
    axes.barh(y, index, color=[_colour(i) for i in index], height=0.65)
    for limit, side in ((CHANGED, "right"), (MUCH, "left")):
        axes.axvline(limit, color="gray", linestyle="--", linewidth=0.8)
        axes.annotate(f" {limit} ", (limit, 1), (0, 2), xycoords=("data", "axes fraction"),
                      textcoords="offset points", ha=side, fontsize=8, color="gray")  # fmt: skip
    for at, i in zip(y, index, strict=True):
        axes.annotate(f"{i:.2f}", (i, at), (3, 0), textcoords="offset points", va="center",
                      fontsize=8)  # fmt: skip
    axes.set_yticks(y, names, fontsize=9)
    axes.set(xlim=(0, max(1.2 * np.nanmax(index, initial=0), 0.32)))
    many = f", {len(index)} of {features} features" if features > len(index) else ""
    axes.set_xlabel(f"stability index{many}", fontsize=9)
    axes.tick_params(axis="x", labelsize=8)
    plain(axes.figure, axes)


def _then_and_now(
    axes: Any, edges: np.ndarray, then: np.ndarray, now: np.ndarray, colour: str
) -> None:
    """The shares of the bins: the reference filled, the current ones as a line."""
    share = [x / max(x.sum(), 1) for x in (then, now)]
    counted, bins = (then + now) > 0, len(edges) + 1
    # Empty ones are shown between others, unless their edges coincide.
    wide = np.r_[False, np.diff(edges) > 0, False]
    used = np.flatnonzero(counted[:bins])
    inside = (np.arange(bins) > used.min(initial=bins)) & (np.arange(bins) < used.max(initial=0))
    shown = np.flatnonzero(np.r_[counted[:bins] | inside & wide, counted[bins]])
    x = np.arange(len(shown) + 1)
    axes.stairs(share[0][shown], x, fill=True, color="lightgray", label="reference")
    axes.stairs(share[1][shown], x, color=colour, linewidth=1.6, label="now")
    missing = int(counted[bins])
    inner = x[1 : len(shown) - missing]
    some = inner[:: max(math.ceil(len(inner) / 4), 1)]
    ticks = [*some, *([len(shown) - 0.5] if missing else [])]
    labels = [f"{edges[shown[i] - 1] + 0.0:.2g}" for i in some] + ["NaN"] * missing
    axes.set_xticks(ticks, labels, fontsize=7)
    axes.tick_params(axis="y", labelsize=7)
    axes.set(ylim=(0, None))
    plain(axes.figure, axes)


def _colour(index: float) -> str:
    return "tab:green" if index <= CHANGED else "tab:orange" if index <= MUCH else "tab:red"
