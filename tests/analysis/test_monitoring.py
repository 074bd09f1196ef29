"""Pictures of drift and calibration hold what they were given; that they look right is for eyes."""

import matplotlib
import numpy as np
import pytest

import fnn
from fnn import errors
from fnn.analysis import plot

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402


@pytest.fixture(autouse=True)
def closed():
    yield
    pyplot.close("all")


EDGES = np.array([[0.0, 1.0], [0.0, 1.0], [5.0, 6.0]])
THEN = {"edges": EDGES, "counts": np.array([[50, 50, 0, 0], [40, 40, 20, 0], [40, 40, 20, 0]])}
COUNTS = np.array([[50, 50, 0, 0], [10, 40, 40, 10], [30, 40, 30, 0]])


def index(p, q):
    p, q = (np.maximum(x / x.sum(), 1e-4) for x in (p, q))
    return np.sum((q - p) * np.log(q / p))


def test_drift_shows_the_worst_features_first():
    figure = plot.drift(THEN, COUNTS, ["same", "much", "some"])
    bars, *panels = figure.axes
    want = [index(THEN["counts"][i], COUNTS[i]) for i in (1, 2, 0)]
    assert want[0] > 0.25 > 0.1 > want[1] > want[2] == 0
    np.testing.assert_allclose([bar.get_width() for bar in bars.patches], want, rtol=1e-5)
    assert [label.get_text() for label in bars.get_yticklabels()] == ["much", "some", "same"]
    assert [panel.get_title() for panel in panels] == ["much", "some", "same"]
    colours = [matplotlib.colors.to_hex(bar.get_facecolor()) for bar in bars.patches]
    assert colours[0] != colours[1] == colours[2]
    then, now = panels[0].patches
    np.testing.assert_allclose(then.get_data().values, [0.4, 0.4, 0.2, 0])
    np.testing.assert_allclose(now.get_data().values, [0.1, 0.4, 0.4, 0.1])
    assert [t.get_text() for t in panels[0].get_xticklabels()] == ["0", "1", "NaN"]
    assert [t.get_text() for t in panels[1].get_xticklabels()] == ["5", "6"]
    assert panels[2].patches[0].get_data().values.tolist() == [0.5, 0.5]  # no empty bins


def test_drift_of_many_features_and_of_one():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 3, 4))
    reference = fnn.metrics.histogram(x)
    now = fnn.metrics.histogram(x + np.eye(3, 4), reference["edges"])
    bars, *panels = plot.drift(reference, now, most=2).axes
    assert {p.get_title() for p in panels} <= {"0, 0", "1, 1", "2, 2"} and len(panels) == 2
    assert "2 of 12 features" in bars.get_xlabel()
    one = fnn.metrics.histogram(x[:, 0, 0])
    assert plot.drift(one, one).axes[1].get_title() == "values"


def test_calibration_over_time_shows_its_series():
    error, right, sure = [0.1, 0.2, 0.3], [0.9, 0.7, 0.6], [0.8, 0.9, 0.9]
    above, below = plot.calibration_over_time(error, right, sure, time=[1, 5, 9], label="day").axes
    np.testing.assert_array_equal(below.lines[0].get_xydata(), [[1, 0.1], [5, 0.2], [9, 0.3]])
    drawn = {line.get_label(): line.get_ydata() for line in above.lines}
    np.testing.assert_array_equal(drawn["accuracy"], right)
    np.testing.assert_array_equal(drawn["mean confidence"], sure)
    assert below.get_xlabel() == "day"
    (alone,) = plot.calibration_over_time(error).axes
    np.testing.assert_array_equal(alone.lines[0].get_xdata(), [1, 2, 3])


@pytest.mark.parametrize(
    "call",
    [
        lambda: plot.drift(THEN, COUNTS[:2]),
        lambda: plot.drift(THEN | {"edges": EDGES[:, :1]}, COUNTS),
        lambda: plot.drift(THEN, COUNTS, ["a"]),
        lambda: plot.drift(THEN, COUNTS, most=0),
        lambda: plot.calibration_over_time([0.1, 0.2], [0.5, 0.5]),
        lambda: plot.calibration_over_time([0.1, 0.2], [0.5], [0.5]),
        lambda: plot.calibration_over_time(0.1),
    ],
)
def test_wrong_inputs_are_refused(call):
    with pytest.raises(errors.FnnError):
        call()
