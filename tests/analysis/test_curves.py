"""Metrics of a run, as a table and small drawings."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fnn import errors
from fnn.analysis import curves, marks
from tests.parsed_html import Parsed


def test_rows_hold_the_last_value_and_the_range():
    history = {
        "train": {"loss": jnp.array([4.0, np.nan, 1.0, 2.0]), "n": np.array([3, 5])},
        "eval": {"<b>": np.array([0.5, np.inf])}, "eval_step": np.array([2, 4]),
        "driver": "scan", "ended": "2 <epochs>", "runs": np.array([[1.0, 2], [1, 4], [1, np.nan]]),
        "images": np.zeros((2, 3, 3)), "none": np.zeros(0),
    }  # fmt: skip
    found = curves(history)
    rows = {row.name: (row.last, *row.ends(), row.wrong) for row in found.rows}
    nan = np.nan
    expected = {"train/loss": (2, 1, 4, 1), "train/n": (5, 3, 5, 0), "runs": (3, 1, 4, 1),
                "eval/<b>": (np.inf, 0.5, 0.5, 1), "none": (nan, nan, nan, 0)}  # fmt: skip
    assert rows.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(rows[name], values)
    html = Parsed(found._repr_html_())
    cells = {row[0]: row[1:5] for row in html.rows(7)}
    assert cells["train/loss"] == ["4", "2", "1", "4"] and cells["runs"] == ["2", "3", "1", "4"]
    assert cells["eval/<b>"] == ["2", "inf", "0.5", "0.5"] and "2 <epochs>" in html.texts
    assert "median of 3 runs, 1 not finite" in html.texts and html.count("svg") == 4
    assert "median of 3 runs" in repr(found) and repr(found).endswith("2 <epochs>")


def test_a_curve_is_drawn_where_it_is_finite():
    svg = marks.curves(np.array([[0.0, 10.0, np.nan, 5.0]]), "a < b", width=101, height=33)
    (title,) = Parsed(svg).texts
    (path,) = [dict(attrs)["d"] for tag, attrs in Parsed(svg).tags if tag == "path"]
    assert title == "a < b"
    assert path == "M1.0 31.5L34.0 1.5M100.0 16.5h.1"


@given(hnp.arrays(np.float64, st.integers(0, 900), elements=st.floats(width=64)))
@settings(max_examples=30, deadline=None)
def test_any_values_are_drawn_and_long_runs_keep_their_peaks(a):
    found = curves({"a": a})
    assert len(found._repr_html_()) < 10_000
    Parsed(found._repr_html_())
    repr(found)
    thin, good = marks.thinned(a), a[np.isfinite(a)]
    assert len(thin) <= 200
    if good.size:
        kept = thin[np.isfinite(thin)]
        assert (kept.min(), kept.max()) == (good.min(), good.max())


def test_many_runs_are_bounded():
    found = curves({"loss": np.random.default_rng(0).normal(size=(1000, 500))})
    html = Parsed(found._repr_html_())
    assert html.count("path") == 12 and "median of 1,000 runs, 12 drawn" in html.texts


def test_a_histogram_has_the_heights_of_its_counts():
    svg = marks.histogram([0, 1, 4, 2], "t", width=40, height=16)
    (path,) = [dict(attrs)["d"] for tag, attrs in Parsed(svg).tags if tag == "path"]
    columns = [part.split("v")[1].split("h")[0] for part in path.split("M")[1:]]
    assert [float(c) for c in columns] == [-4, -16, -8]
    assert marks.bars([0, 1, 4, 2]) == " ▂█▄"


def test_wrong_inputs_are_refused():
    with pytest.raises(errors.FnnError):
        curves(np.ones(3))
    assert repr(curves({})) and Parsed(curves({})._repr_html_())
