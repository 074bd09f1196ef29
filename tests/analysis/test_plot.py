"""Pictures hold what they were given; that they look right is for eyes."""

import matplotlib
import numpy as np
import pytest

import fnn
from fnn import errors
from fnn.analysis import plot
from fnn.analysis.profile import Profile, Row

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402


@pytest.fixture(autouse=True)
def closed():
    yield
    pyplot.close("all")


def test_curves_are_medians_with_a_band_of_quartiles():
    seeds = np.array([[1.0, 2.0], [3.0, 4.0], [8.0, 9.0]])
    figure = plot.curves({"a": seeds, "b": np.array([5.0, 6.0])}, steps=[10, 20])
    (axes,) = figure.axes
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), [[10, 3], [20, 4]])
    np.testing.assert_array_equal(axes.lines[1].get_ydata(), [5, 6])
    (band,) = axes.collections  # of three seeds; one alone has none
    edges = band.get_paths()[0].vertices[:, 1]
    assert edges.min() == 2.0 and edges.max() == 6.5


def test_runs_draw_every_value_its_mean_and_evaluations():
    nan = np.nan
    first = {
        "step": np.array([1, 2, 3, 4, 4]), "time": 3600.0 * np.array([5, 6, 7, 8, 9]),
        "train/loss": np.array([4.0, 1.0, np.inf, 3.0, nan]),
        "eval/loss": np.array([nan, nan, nan, nan, 2.0]), "lr": np.array([1.0, nan, 3.0, nan, nan]),
    }  # fmt: skip
    second = {"step": np.array([1, 2]), "train/loss": np.array([7.0, 5.0])}
    logs = {"adam": first, "sgd": second}
    (axes,) = plot.runs(logs, smooth=3, log=True).axes
    raw, mean, dots, raw2, mean2, *_ = axes.lines
    np.testing.assert_array_equal(raw.get_xydata(), [[1, 4], [2, 1], [3, np.inf], [4, 3]])
    np.testing.assert_array_equal(mean.get_ydata(), [2.5, 2.5, 2.0, 3.0])  # inf is left out
    np.testing.assert_array_equal(dots.get_xydata(), [[4, 2]])
    np.testing.assert_array_equal(raw2.get_ydata(), [7, 5])
    np.testing.assert_array_equal(mean2.get_ydata(), [6, 6])
    assert axes.get_yscale() == "log" and axes.get_ylabel() == "loss"
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["adam", "sgd", "train", "eval"]
    assert raw.get_color() == mean.get_color() == dots.get_color() != raw2.get_color()

    left, right = plot.runs(first, ["loss", "lr"], x="time", smooth=1, log=["lr"]).axes
    np.testing.assert_array_equal(left.lines[1].get_ydata(), [4, 1, np.nan, 3])
    np.testing.assert_array_equal(left.lines[1].get_xdata(), [0, 1, 2, 3])
    np.testing.assert_array_equal(right.lines[1].get_xydata(), [[0, 1], [2, 3]])
    assert right.get_legend() is None and left.get_yscale() == "linear" != right.get_yscale()
    assert left.get_xlabel() == "time in hours"


@pytest.mark.parametrize("window", [1, 2, 3, 6, 50])
def test_smoothing_is_the_mean_of_a_window(window):
    values = np.random.default_rng(0).normal(size=40)
    values[[3, 4, 20]] = np.inf
    values[30] = 1e20  # after which means are as exact as before
    line = plot.runs({"step": np.arange(40), "loss": values}, smooth=window).axes[0].lines[1]
    for i, found in enumerate(line.get_ydata()):
        part = values[max(0, i - (window - 1) // 2) : i + window // 2 + 1]
        part = part[np.isfinite(part)]
        np.testing.assert_allclose(found, part.mean() if part.size else np.nan, 1e-12, 1e-12)


def test_a_heat_map_frames_the_best_that_is_finite():
    figure = plot.heat_map([[np.nan, 3.0, 2.0], [5.0, np.inf, 4.0]], ["a", "b"], [1, 2, 3])
    (frame,) = figure.axes[0].patches
    assert frame.get_xy() == (1.5, -0.5)  # column 2 of row 0
    figure = plot.heat_map([[np.nan, 3.0], [5.0, 4.0]], ["a", "b"], [1, 2], best="high")
    assert figure.axes[0].patches[0].get_xy() == (-0.5, 0.5)
    assert not plot.heat_map([[np.nan]], [1], [1]).axes[0].patches


def test_a_metric_is_the_median_of_what_is_finite():
    figure = plot.metric([1.0, 10.0, 100.0], [[1.0, 2.0, np.inf], [3.0, np.nan, np.nan]])
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_xydata(), [[1, 2], [10, 2]])


def test_a_confusion_matrix_shows_its_counts():
    figure = plot.confusion(np.array([[5, 1], [0, 7]]))
    assert [text.get_text() for text in figure.axes[0].texts] == ["5", "1", "7"]
    np.testing.assert_allclose(figure.axes[0].images[0].get_array(), [[5 / 6, 1 / 6], [0, 1]])


def test_filters_share_one_scale():
    kernel = np.zeros((2, 2, 1, 3))
    kernel[..., 1], kernel[..., 2] = 1.0, -2.0
    shades = [float(a.images[0].get_array().mean()) for a in plot.filters(kernel).axes]
    assert shades == [0.5, 0.75, 0.0]
    assert plot.filters(np.ones((2, 2, 3, 1))).axes[0].images[0].get_array().shape == (2, 2, 3)


def test_histograms_count_what_is_not_finite():
    figure = plot.histograms({"a": {"w": np.array([1.0, np.nan, 2.0])}, "b": np.zeros((0,))})
    assert [axes.get_title() for axes in figure.axes] == ["a/w, 1 not finite", "b"]
    assert sum(bar.get_height() for bar in figure.axes[0].patches) == 2


def rows_of(*rows):
    return tuple(Row(path, way, 1, flops, 0, time) for path, way, flops, time in rows)


def test_a_profile_is_bars_of_both_passes():
    rows = rows_of(("a", False, 10, 1.0), ("a", True, 20, 4.0), ("b", False, 90, 2.0),
                   ("(loss)", False, 0, 3.0))  # fmt: skip
    (axes,) = plot.profile(Profile(rows, 10.0)).figure.axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["a", "b", "(loss)"]
    bars = [[(bar.get_x(), bar.get_width()) for bar in each] for each in axes.containers]
    assert bars == [[(0, 1), (0, 2), (0, 3)], [(1, 4), (2, 0), (3, 0)]]
    assert [text.get_text() for text in axes.texts] == ["50.0%", "20.0%", "30.0%"]
    (axes,) = plot.profile(Profile(rows, None, "no times"), most=1).figure.axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["b"]
    assert [text.get_text() for text in axes.texts] == ["75.0%"]


def test_given_axes_are_drawn_into():
    own, axes = matplotlib.pyplot.subplots()
    assert plot.curves([1.0, 2.0], axes=axes) is own and axes.lines


@pytest.mark.parametrize(
    "call",
    [
        lambda: plot.curves(np.ones((2, 2, 2))),
        lambda: plot.heat_map([[1.0]], [1, 2], [1]),
        lambda: plot.heat_map([[1.0]], [1], [1], best="middle"),
        lambda: plot.metric([1.0, 2.0], [[1.0], [2.0]]),
        lambda: plot.confusion(np.ones((2, 3))),
        lambda: plot.confusion(np.ones((2, 2)), ["a"]),
        lambda: plot.filters(np.ones((3, 3))),
        lambda: plot.histograms({}),
        lambda: plot.runs({"step": np.arange(2)}),
        lambda: plot.runs({"step": np.arange(2), "loss": np.ones(2)}, x="epochs"),
        lambda: plot.runs({"step": np.arange(2), "loss": np.ones(2)}, smooth=0),
        lambda: plot.runs({"step": np.arange(2), "loss": np.ones(2)}, axes=[]),
    ],
)
def test_wrong_inputs_are_refused(call):
    with pytest.raises(errors.FnnError):
        call()


def test_it_is_part_of_fnn():
    assert fnn.analysis.plot is plot and fnn.analysis.curvature is not None
