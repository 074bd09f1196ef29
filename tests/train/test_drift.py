"""The callback that watches drift: when it measures, what it hands on, what it ends."""

import sys
import warnings

import numpy as np
import pytest

import fnn
from fnn import errors
from fnn.train.events import Event, Stop
from tests.metrics import oracles
from tests.support import refused

RNG = np.random.default_rng(0)
THEN = RNG.normal(size=(300, 2)).astype("float32")
REFERENCE = fnn.metrics.histogram(THEN)
NOW = {step: THEN[:200] + np.float32([0, 0.02 * step]) for step in range(0, 60, 10)}


def event(step, evaluation=None, ended=""):
    return Event(step, 0, None, {}, evaluation or {}, ended, None, None, None)


def now(event):
    return NOW[event.step]


def index(step):
    """In float64, of both features."""
    found = []
    for then, values in zip(THEN.T, NOW[step].T, strict=True):
        edges = oracles.edges(then, 10)
        found.append(oracles.psi(oracles.counts(edges, then), oracles.counts(edges, values)))
    return np.array(found)


def test_it_stops_where_the_worst_feature_passes_the_threshold():
    rows = []
    watch = fnn.train.drift(
        now, REFERENCE, then="stop", report=lambda event, value: rows.append((event.step, value))
    )
    passing = [step for step in NOW if index(step).max() > 0.25]
    assert 10 < passing[0] < 50
    answers = {step: watch(event(step, {"eval/loss": 1.0})) for step in NOW}
    assert [step for step, answer in answers.items() if answer] == passing
    first = answers[passing[0]]
    assert isinstance(first, Stop) and first.train_state is None
    assert first.why == (
        f"psi {index(passing[0])[1]:.2f} above 0.25 at step {passing[0]}, of feature 1"
    )
    assert [step for step, _ in rows] == list(NOW)
    for step, value in rows:
        assert isinstance(value, np.ndarray)
        np.testing.assert_allclose(value, index(step), rtol=1e-5, atol=1e-6)


def test_it_warns_and_goes_on():
    watch = fnn.train.drift(now, REFERENCE)
    with pytest.warns(RuntimeWarning, match="drift: psi .* above 0.25 at step 50, of feature 1"):
        assert watch(event(50, {"eval/loss": 1.0})) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watch(event(0, {"eval/loss": 1.0}))
        fnn.train.drift(now, REFERENCE, threshold=None)(event(50, {"eval/loss": 1.0}))


def test_the_distance_of_distributions_and_one_feature():
    values = THEN[:, 0]
    watch = fnn.train.drift(
        lambda event: values + 9, fnn.metrics.histogram(values), statistic="ks", threshold=0.5,
        then="stop",
    )  # fmt: skip
    assert watch(event(3, {"a": 1})).why == "ks 0.90 above 0.5 at step 3"  # 0.1 above the last edge


@pytest.mark.parametrize("every", [None, 20])
def test_when_it_measures(every):
    """A step, its evaluation and the end of the run may be three events: one measurement."""
    rows = []
    watch = fnn.train.drift(
        now, REFERENCE, threshold=None, every=every, report=lambda event, _: rows.append(event.step)
    )
    for _ in range(2):  # runs
        for step in NOW:
            watch(event(step))
            if step in (30, 50):
                watch(event(step, {"eval/loss": 1.0}))
        watch(event(50, ended="epochs"))
    assert rows == 2 * ([30, 50] if every is None else [0, 20, 40])
    assert watch.every == (every or sys.maxsize)
    one = fnn.train.drift(
        now, REFERENCE, threshold=None, every=10, report=lambda *_: rows.append(0)
    )
    rows.clear()
    for _ in range(2):
        one(event(10)), one(event(10, {"eval/loss": 1.0})), one(event(10, ended="epochs"))
    assert len(rows) == 2


@pytest.mark.parametrize(
    "options",
    [{"then": "pray"}, {"statistic": "counts"}, {"threshold": -1.0}, {"every": 0}, {"report": 3}],
)
def test_wrong_options_are_refused(options):
    assert next(iter(options)) in str(
        refused(lambda: fnn.train.drift(now, REFERENCE, **options), errors.OptionError)
    )
    refused(lambda: fnn.train.drift(now, THEN), errors.InputError)
    refused(lambda: fnn.train.drift(None, REFERENCE), errors.OptionError)
