"""A sweep: its settings beside their results, its table and its errors."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import errors
from tests.search.support import KEYS, RATES, expected, run_fn, swept


def test_settings_stand_beside_their_results():
    found = swept(static=["power"])
    for row in range(18):
        rate, power, seed = (found.settings[name][row] for name in ("rate", "power", "seed"))
        loss, _ = expected(rate, power, seed)
        np.testing.assert_allclose(found.results["loss"][row], loss, rtol=1e-5, atol=1e-6)
    assert list(found.rows()) == ["rate", "power", "seed", "loss"]


def test_functions_and_words_are_static_by_themselves():
    def run_fn(key, fn, word, rate):
        return fn(rate) * len(word)

    found = fnn.search.sweep(
        run_fn,
        {"fn": [jnp.sin, jnp.cos], "word": ["a", "bc"], "rate": RATES},
        keys=KEYS[:1],
        progress=False,
    )
    expected = [[[np.sin(r) * n for r in RATES] for n in (1, 2)] for _ in "s"]
    np.testing.assert_allclose(found.grid(found.results)[:1, ..., 0], expected, rtol=1e-6)
    np.testing.assert_allclose(found.grid(found.results)[1, 1, :, 0], 2 * np.cos(RATES), rtol=1e-6)
    assert set(found.strategy) == set(itertools.product(("sin", "cos"), ("a", "bc")))


def test_rows_of_an_array_are_lists_of_settings():
    pairs = np.float32([[0.5, 1.0], [2.0, 3.0]])
    found = fnn.search.sweep(
        lambda key, pair: run_fn(key, pair[0], pair[1]), {"pair": pairs}, keys=KEYS, progress=False
    )
    for row, (rate, power) in enumerate(pairs):
        for seed in range(3):
            loss = found.grid(found.results["loss"])[row, seed]
            np.testing.assert_allclose(loss, expected(rate, power, seed)[0], rtol=1e-5, atol=1e-6)


def test_a_run_that_breaks_leaves_the_others_alone():
    def run_fn(key, rate):
        return jnp.log(rate)

    found = fnn.search.sweep(
        run_fn, {"rate": np.float32([1, -1, 2])}, keys=KEYS[:1], strategy="vmap", progress=False
    )
    np.testing.assert_allclose(found.results, [0, np.nan, np.log(2)], rtol=1e-6)


def test_narrow_floats_are_traced():
    found = fnn.search.sweep(
        lambda key, a: a * 2,
        {"a": jnp.arange(3, dtype=jnp.bfloat16)},
        keys=KEYS[:1],
        progress=False,
    )
    assert len(found.strategy) == 1 and found.results.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found.results.astype(np.float32), [0, 2, 4])


def test_results_of_other_shapes_are_refused():
    with pytest.raises(errors.ShapeError, match="as in the first run"):
        fnn.search.sweep(
            lambda key, n: jnp.zeros(n), {"n": [2, 3]}, keys=KEYS, static=["n"], progress=False
        )


def test_the_table_shows_the_best_first():
    found = swept(run_fn=lambda key, rate, power: {"loss": rate * power})
    table = found.table()
    columns = [list(column.cells) for column in table.columns]
    assert [column.header for column in table.columns][:3] == ["rate", "power", "loss, median"]
    assert columns[2] == ["0.5", "1", "1.5", "2", "4", "6"]
    assert found.table(best="high", limit=1).row_count == 1


def test_a_frame_holds_every_run():
    pandas = pytest.importorskip("pandas")
    frame = swept().frame()
    assert isinstance(frame, pandas.DataFrame) and frame.shape == (18, 4)


def test_points_are_shown_by_their_numbers():
    pairs = np.float32([[1, 2], [3, 4]])
    found = fnn.search.sweep(lambda key, p: p.sum(), {"p": pairs}, keys=KEYS[:1], progress=False)
    assert found.rows()["p"].tolist() == ["[1.0, 2.0]", "[3.0, 4.0]"]


def test_seeds_and_rates_of_a_network():
    data = fnn.data.load("digits", "train")
    data = {"image": data["image"][:256].astype(np.float32) / 255, "label": data["label"][:256]}
    net = fnn.serial(fnn.flatten(3), fnn.dense(10))

    def run_fn(key, rate):
        tx = fnn.optim.adam(rate)
        loss = fnn.train.supervised(net, fnn.losses.softmax_cross_entropy)
        ts = fnn.train.init(net, tx, key, data["image"][:1])
        _, history = fnn.train.run(fnn.train.step(loss, tx), ts, data, steps=40, batch_size=64)
        return history["train"]["loss"]

    found = fnn.search.sweep(
        run_fn, {"rate": np.geomspace(1e-4, 1e-1, 4)}, keys=KEYS, progress=False
    )
    last = found.grid(found.results)[..., -1]
    assert last.shape == (4, 3) and (last[3] < last[0]).all()


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"keys": jax.random.key(0)}, errors.RandomKeyError, "split"),
        ({"keys": 3}, errors.RandomKeyError, "split"),
        ({"rate": 0.1}, errors.OptionError, "values of rate"),
        ({"rate": []}, errors.OptionError, "at least one"),
        ({"static": ["width"]}, errors.OptionError, "width"),
        ({"strategy": "fast"}, errors.OptionError, "strategy"),
        ({"chunk": 0}, errors.OptionError, "chunk"),
    ],
)
def test_wrong_inputs_are_refused(options, kind, text):
    with pytest.raises(kind, match=text):
        swept(**options)
