"""Plots of networks, runs and profiles: functions that return a matplotlib figure, not shown.

They need the extra `plot`. Functions that take `axes` draw into them if given, else into a new
figure; `figure.savefig(path)` writes it to a file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike

from fnn import tree
from fnn.analysis.diagram.network import network
from fnn.analysis.figures import new_axes, plain, pyplot
from fnn.analysis.monitoring import calibration_over_time, drift
from fnn.analysis.profile import Profile
from fnn.analysis.runs import runs
from fnn.core import checks, errors
from fnn.core.types import Tree

__all__ = [
    "calibration_over_time", "confusion", "curves", "drift", "filters", "heat_map", "histograms",
    "metric", "network", "profile", "runs",
]  # fmt: skip


@errors.named
def curves(
    histories: Mapping[str, Any] | Any,
    *,
    steps: ArrayLike | None = None,
    label: str = "loss",
    log: bool = False,
    axes: Any = None,
) -> Any:
    """Learning curves against steps: the median over seeds, and a band of their quartiles.

    - `histories`: curves by name, each [steps] or [seeds, steps]; or one such array.
    - `steps`: the step of each point; None counts from 1.
    - `label`: of the y axis. `log`: whether that axis is logarithmic.

    >>> import matplotlib; matplotlib.use("Agg")
    >>> figure = curves({"adam": np.ones((5, 20)), "sgd": np.ones(20)})
    >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    ['adam', 'sgd']
    """
    named = histories if isinstance(histories, Mapping) else {"": histories}
    rows = {name: _rows(name, values) for name, values in named.items()}
    figure, axes = new_axes(axes)
    for name, values in rows.items():
        x = np.arange(1, values.shape[1] + 1) if steps is None else np.asarray(steps)
        low, middle, high = np.nanquantile(values, (0.25, 0.5, 0.75), axis=0)
        (line,) = axes.plot(x, middle, label=name or None)
        if len(values) > 1:
            axes.fill_between(x, low, high, color=line.get_color(), alpha=0.25, linewidth=0)
    axes.set(xlabel="step", ylabel=label, yscale="log" if log else "linear")
    if any(rows):
        axes.legend(frameon=False)
    return plain(figure, axes)


@errors.named
def heat_map(
    values: ArrayLike,
    rows: Sequence[Any],
    columns: Sequence[Any],
    *,
    names: tuple[str, str] = ("", ""),
    label: str = "",
    best: str = "low",
    axes: Any = None,
) -> Any:
    """A sweep over two hyperparameters: the metric as colour, the best setting framed.

    - `values`: [rows, columns]; values that are not finite stay white.
    - `rows`, `columns`: the settings; `names`: of the two hyperparameters.
    - `label`: of the metric. `best`: "low" or "high".

    >>> import matplotlib; matplotlib.use("Agg")
    >>> figure = heat_map([[3.0, 1.0], [2.0, 4.0]], [0.1, 1.0], [8, 16], names=("rate", "width"))
    >>> figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()
    ('width', 'rate')
    """
    checks.choice("best", best, ("low", "high"))
    grid, wanted = np.asarray(values, float), (len(rows), len(columns))
    if grid.shape != wanted or not grid.size:
        raise errors.ShapeError(f"values {wanted}", f"{grid.shape}", "one for each setting")
    figure, axes = new_axes(axes)
    finite = np.where(np.isfinite(grid), grid, np.nan)
    colours = "viridis_r" if best == "low" else "viridis"
    image = axes.imshow(finite, cmap=colours, aspect="auto", origin="lower")
    if np.isfinite(grid).any():
        flat = np.nanargmin(finite) if best == "low" else np.nanargmax(finite)
        row, column = np.unravel_index(flat, grid.shape)
        frame = {"fill": False, "edgecolor": "tab:red", "linewidth": 2}
        from matplotlib.patches import Rectangle

        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, **frame))
    axes.set_xticks(range(len(columns)), [_short(v) for v in columns], rotation=45, ha="right")
    axes.set_yticks(range(len(rows)), [_short(v) for v in rows])
    axes.set(xlabel=names[1], ylabel=names[0])
    figure.colorbar(image, ax=axes, label=label)
    return figure


@errors.named
def metric(
    settings: ArrayLike,
    values: Mapping[str, Any] | Any,
    *,
    name: str = "",
    label: str = "",
    log: bool = True,
    axes: Any = None,
) -> Any:
    """A final metric against a hyperparameter: the median over seeds, and every seed as a dot.

    - `settings`: [n]; `name`: of the hyperparameter. `log`: whether its axis is logarithmic.
    - `values`: [n] or [seeds, n], or several of these by name; only finite ones are drawn.

    >>> import matplotlib; matplotlib.use("Agg")
    >>> figure = metric([0.1, 1.0], [[1.0, 2.0], [1.5, 3.0]], name="learning rate")
    >>> figure.axes[0].get_xlabel()
    'learning rate'
    """
    x = np.asarray(settings)
    named = values if isinstance(values, Mapping) else {"": values}
    rows = {key: _rows(key, value) for key, value in named.items()}
    for key, value in rows.items():
        if value.shape[1:] != x.shape:
            wanted = f"values [{x.size}], or [seeds, {x.size}]"
            raise errors.ShapeError(wanted, f"{key} {value.shape}", "transpose them")
    figure, axes = new_axes(axes)
    for key, value in rows.items():
        value = np.where(np.isfinite(value), value, np.nan)
        some = np.isfinite(value).any(axis=0)
        middle = np.nanmedian(value[:, some], axis=0)
        (line,) = axes.plot(x[some], middle, label=key or None)
        axes.plot(x, value.T, ".", color=line.get_color(), markersize=4, alpha=0.5)
    axes.set(xlabel=name, ylabel=label, xscale="log" if log else "linear")
    if any(rows):
        axes.legend(frameon=False)
    return plain(figure, axes)


@errors.named
def confusion(counts: ArrayLike, names: Sequence[str] | None = None, *, axes: Any = None) -> Any:
    """A confusion matrix, as from `fnn.metrics.confusion_matrix`: rows are labels, columns guesses.

    Colours are shares of the label's examples; the numbers are counts.

    >>> import matplotlib; matplotlib.use("Agg")
    >>> figure = confusion([[5, 1], [0, 7]], ["cat", "dog"])
    >>> figure.axes[0].get_ylabel()
    'label'
    """
    grid = np.asarray(counts)
    if grid.ndim != 2 or grid.shape[0] != grid.shape[1]:
        raise errors.ShapeError("counts [classes, classes]", f"{grid.shape}", "square it")
    names = [str(i) for i in range(len(grid))] if names is None else list(names)
    if len(names) != len(grid):
        raise errors.ShapeError(f"{len(grid)} names", f"{len(names)}", "one for each class")
    figure, axes = new_axes(axes, square=True)
    share = grid / np.maximum(grid.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(grid):
        if count:
            colour = "white" if share[row, column] > 0.5 else "black"
            size = min(9, 90 / len(grid))
            axes.text(column, row, f"{count:g}", ha="center", va="center", color=colour,
                      fontsize=size)  # fmt: skip
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="guess", ylabel="label")
    return figure


@errors.named
def filters(kernel: ArrayLike, *, columns: int = 8) -> Any:
    """The filters of a first convolution, each as a picture.

    - `kernel`: [H, W, C, features]; in colour if C is 3, else the mean over channels. Grey is zero;
      all share one scale.

    >>> import matplotlib; matplotlib.use("Agg")
    >>> figure = filters(np.ones((3, 3, 1, 10)), columns=5)
    >>> len(figure.axes)
    10
    """
    plt = pyplot()
    kernel, columns = np.asarray(kernel, float), checks.count("columns", columns)
    if kernel.ndim != 4 or not kernel.size:
        raise errors.ShapeError("kernel [H, W, C, features]", f"{kernel.shape}", "of a conv")
    *_, channels, features = kernel.shape
    columns = min(columns, features)
    rows = math.ceil(features / columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(columns * 0.8, rows * 0.8), squeeze=False, layout="constrained"
    )
    largest = np.abs(kernel).max() or 1.0
    for i, axes in enumerate(grid.flat):
        if i >= features:
            axes.remove()
            continue
        one = kernel[..., i] if channels == 3 else kernel[..., i].mean(axis=-1)
        shade = (one / largest + 1) / 2  # grey is zero
        axes.imshow(shade, cmap="gray", vmin=0, vmax=1)
        axes.set(xticks=[], yticks=[])
    return figure


@errors.named
def histograms(params: Tree, *, bins: int = 50, columns: int = 3) -> Any:
    """A histogram of every array of a tree, such as params or gradients, under its path.

    Values that are not finite are left out of the bars and counted in the title.

    >>> import matplotlib; matplotlib.use("Agg")
    >>> figure = histograms({"dense1": {"bias": np.zeros(4), "kernel": np.ones((3, 4))}})
    >>> [axes.get_title() for axes in figure.axes]
    ['dense1/bias', 'dense1/kernel']
    """
    plt = pyplot()
    arrays = {path: np.asarray(a, float) for path, a in tree.to_paths(params).items()}
    if not arrays:
        raise errors.ParamsError("a tree with arrays", "none", "pass params")
    columns = min(checks.count("columns", columns), len(arrays))
    rows = math.ceil(len(arrays) / columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(columns * 2.6, rows * 1.8), squeeze=False, layout="constrained"
    )
    for axes in grid.flat[len(arrays) :]:
        axes.remove()
    for axes, (path, values) in zip(grid.flat, arrays.items(), strict=False):
        finite = values[np.isfinite(values)]
        wrong = values.size - finite.size
        axes.hist(finite, bins=bins)
        axes.set_title(path + (f", {wrong} not finite" if wrong else ""), fontsize=9)
        axes.set(yticks=[])
        plain(figure, axes)
    return figure


@errors.named
def profile(found: Profile, *, of: str | None = None, most: int = 25, axes: Any = None) -> Any:
    """The costs of a `fnn.analysis.profile` by path, as bars: the forward pass, then the backward.

    - `of`: "seconds", "flops", "nbytes" or "calls"; None is seconds, or flops without times.
    - `most`: the number of paths; the largest are drawn, in the order of the network.

    The number at each bar is its share of the whole program.

    >>> import matplotlib; matplotlib.use("Agg")
    >>> import fnn
    >>> net = fnn.serial(fnn.dense(8), fnn.dense(3))
    >>> params, _ = net.init(jax.random.key(0), (2, 4))
    >>> figure = profile(fnn.analysis.profile(net, params, jax.ShapeDtypeStruct((2, 4), float)))
    >>> [text.get_text() for text in figure.axes[0].get_yticklabels()]
    ['dense1', 'dense2']
    """
    of = of or ("flops" if found.note else "seconds")
    checks.choice("of", of, ("calls", "flops", "nbytes", "seconds"))
    if of == "seconds" and found.note:
        raise errors.OptionError('of="flops", "nbytes" or "calls"', found.note, "choose one")
    ways = {path: [0.0, 0.0] for path in dict.fromkeys(row.path for row in found.rows)}
    for row in found.rows:
        ways[row.path][row.backward] += getattr(row, of)
    largest = sorted(ways, key=lambda path: -sum(ways[path]))[: checks.count("most", most)]
    ways = {path: two for path, two in ways.items() if path in largest and sum(two)}
    if axes is None:
        size = (6, 0.9 + 0.24 * max(len(ways), 3))
        axes = pyplot().subplots(figsize=size, layout="constrained")[1]
    whole, y = getattr(found.under(""), of), np.arange(len(ways))
    values, left = np.array(list(ways.values())).reshape(-1, 2), np.zeros(len(ways))
    for name, part in zip(("forward", "backward"), values.T, strict=True):
        if part.any():
            axes.barh(y, part, 0.7, left, label=name)
        left = left + part
    for at, total in enumerate(left):  # now the ends of the bars
        axes.annotate(f"{total / whole:.1%}", (total, at), (3, 0), fontsize=8, va="center",
                      textcoords="offset points")  # fmt: skip
    axes.set_yticks(y, list(ways))
    axes.invert_yaxis()
    axes.margins(x=0.12)
    units = {"seconds": "s", "flops": "", "nbytes": "B", "calls": ""}
    labels = {"seconds": "time", "flops": "FLOPs", "nbytes": "bytes", "calls": "operations"}
    from matplotlib.ticker import EngFormatter

    axes.xaxis.set_major_formatter(EngFormatter(units[of]))
    axes.set(xlabel=labels[of])
    axes.set_xlim(0)
    axes.legend(frameon=False, loc="lower right")
    return plain(axes.figure, axes)


# --- shared helpers


def _rows(name: str, values: Any) -> np.ndarray:
    """[seeds, steps]."""
    rows = np.atleast_2d(np.asarray(jax.device_get(values), float))
    if rows.ndim != 2:
        got, mend = f"{name} {rows.shape}".strip(), "flatten the seeds"
        raise errors.ShapeError("curves [steps], or [seeds, steps]", got, mend)
    return rows


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, (float, np.floating)) else str(value)
