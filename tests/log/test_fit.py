"""Logs beside `fit` itself: what they hold is its history, also when it is killed and resumed."""

import jax
import numpy as np
import pytest

import fnn
from tests.log.test_tensorboard import scalars

NET, TX = fnn.dense(3), fnn.optim.sgd(0.1)
X = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
DATA = {"image": X, "label": np.arange(40) % 3}
LOSS = fnn.losses.softmax_cross_entropy
STEP = fnn.train.step(fnn.train.supervised(NET, LOSS, {"accuracy": fnn.metrics.accuracy()}), TX)
EVALUATE = fnn.train.evaluator(NET, DATA, {"loss": LOSS})


def trained(callbacks, epochs=6, resume=None, driver="loop"):
    ts = fnn.train.init(NET, TX, jax.random.key(0), (1, 4))
    return fnn.train.fit(
        STEP, ts, DATA, epochs=epochs, batch_size=8, evaluate=EVALUATE, driver=driver, chunk=3,
        callbacks=callbacks, resume=resume, progress=False,
    )[1]  # fmt: skip


def assert_is(columns, history):
    """Each step and each evaluation once, with the values of the history."""
    for kind, steps in (("train", np.arange(1, 31)), ("eval", history["eval_step"])):
        there = ~np.isnan(columns[f"{kind}/loss"])
        np.testing.assert_array_equal(columns["step"][there], steps)
        np.testing.assert_array_equal(columns["epoch"][there], (steps - 1) // 5)
        for name, values in history[kind].items():
            np.testing.assert_array_equal(columns[f"{kind}/{name}"][there], values)


@pytest.mark.parametrize("driver", ["loop", "chunk", "scan"])
def test_logs_hold_the_history(tmp_path, driver):
    paths = tmp_path / "run.jsonl", tmp_path / "run.csv"
    logs = fnn.log.jsonl(paths[0]), fnn.log.csv(paths[1], interval=0.0)
    history = trained(logs, driver=driver)
    for path in paths:
        assert_is(fnn.log.read(path), history)


class Killed(Exception):
    pass


@pytest.mark.parametrize("killed", [7, 13, 25])
def test_a_killed_and_resumed_run_has_the_log_of_one_that_was_not(tmp_path, killed):
    def kill(event):
        if event.step == killed:
            raise Killed

    def callbacks(*more):
        paths = (tmp_path / "run.jsonl", tmp_path / "run.csv")
        keeper = fnn.checkpoint.Keeper(tmp_path / "kept", every=4)
        logs = fnn.log.jsonl(paths[0], interval=0.0), fnn.log.csv(paths[1], interval=0.0)
        board = fnn.log.tensorboard(tmp_path / "board", interval=0.0)
        return [*logs, board, keeper, *more]

    first = callbacks(kill)
    with pytest.raises(Killed):
        trained(first)
    first[3].wait()
    second = callbacks()
    history = trained(second, resume=second[3])
    second[3].wait()
    for name in ("run.jsonl", "run.csv"):
        assert_is(fnn.log.read(tmp_path / name), history)
    found = scalars(tmp_path / "board")
    for kind, steps in (("train", range(1, 31)), ("eval", history["eval_step"])):
        wanted = list(zip(steps, history[kind]["loss"].astype(float), strict=True))
        assert found[f"{kind}/loss"] == wanted
    again = callbacks()  # one that is over adds nothing
    before = (tmp_path / "run.jsonl").read_bytes(), (tmp_path / "run.csv").read_bytes()
    trained(again, resume=again[3])
    assert before == ((tmp_path / "run.jsonl").read_bytes(), (tmp_path / "run.csv").read_bytes())
