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
    ],
)
def test_wrong_inputs_are_refused(call):
    with pytest.raises(errors.FnnError):
        call()


def test_it_is_part_of_fnn():
    assert fnn.analysis.plot is plot and fnn.analysis.curvature is not None
