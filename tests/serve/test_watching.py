import numpy as np
import pytest

from fnn.metrics.drift import histogram
from fnn.serve import watching
from fnn.serve.interface import Form
from fnn.serve.watching import Watch, counted


def statistics(x, axis=-1):
    values = x.reshape(-1, x.shape[-1]) if axis == -1 else x.reshape(-1)
    seen = {key: np.asarray(value).tolist() for key, value in histogram(values).items()}
    mean, std = values.mean(0).tolist(), values.std(0).tolist()
    return {"axis": axis, "mean": mean, "std": std, "histogram": seen}


def psi(then, now, bins=10):
    """Of one feature, value by value."""
    ranked = sorted(then)
    edges = [ranked[-(-len(then) * k // bins) - 1] for k in range(1, bins)]
    p, q = ([0.0] * bins for _ in range(2))
    for share, values in ((p, then), (q, now)):
        for value in values:
            share[sum(edge < value for edge in edges)] += 1 / len(values)
    p, q = ([max(s, 1e-4) for s in share] for share in (p, q))
    return sum((b - a) * np.log(b / a) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize("axis", [-1, None])
def test_drift_is_the_index_of_the_recent_inputs(axis):
    key = np.random.default_rng(0)
    then, now = key.normal(size=(400, 2)), key.normal([0, 1], [1, 2], (300, 2))
    then, now = then.astype(np.float32), now.astype(np.float32)
    watch = Watch({"x": statistics(then, axis)}, [Form("x", ("batch", 2), np.dtype("f4"))])
    assert np.isnan(watch.drift()["x"].psi).all()
    for part in np.split(now, [1, 100, 250]):
        watch.add((part,))
    found = watch.drift()["x"]
    columns = [(then[:, i], now[:, i]) for i in (0, 1)] if axis else [(then.ravel(), now.ravel())]
    np.testing.assert_allclose(found.psi, [psi(*pair) for pair in columns], rtol=1e-4)
    shift = [abs(b.mean() - a.mean()) / a.std() for a, b in columns]
    np.testing.assert_allclose(found.shift, shift, rtol=1e-4)


def test_the_window_forgets_and_is_bounded_in_bytes(monkeypatch):
    x = np.zeros((10, 2), np.float32)
    watch = Watch({"x": statistics(x)}, [Form("x", ("batch", 2), np.dtype("f4"))])
    monkeypatch.setattr(watching, "WINDOW", 25)
    for _ in range(9):
        watch.add((x,))
    assert watch.rows == 30
    monkeypatch.setattr(watching, "MOST", 10 * 2 * 4)
    watch.add((x,))
    assert watch.rows == 10


def test_values_beyond_what_is_compared_are_thinned_out(monkeypatch):
    monkeypatch.setattr(watching, "VALUES", 1000)
    then = np.linspace(0, 1, 1000, dtype=np.float32)[:, None]
    watch = Watch({"x": statistics(then)}, [Form("x", ("batch", 1), np.dtype("f4"))])
    watch.add((np.linspace(0, 1, 3001, dtype=np.float32)[:, None],))
    assert watch.drift()["x"].psi < 0.02


def test_bins_are_those_of_the_histogram_also_where_edges_coincide():
    then = np.array([0, 0, 0, 0, 0, 1, 2, 3, 3, 9], np.float32)
    seen = histogram(then)
    now = np.array([-1, 0, 0.5, 1, 2.5, 3, 3, 8, 9, 10], np.float32)
    want = histogram(now, seen["edges"])["counts"]
    np.testing.assert_array_equal(counted(np.asarray(seen["edges"]), now), want)
