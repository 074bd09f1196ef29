"""Which checkpoints stay, which is the best, and the way back into a run."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import checkpoint, errors
from tests.train.support import assert_same_bits, conv_net, data, setup


def save_all(keeper, values, name="eval/loss"):
    for step, value in enumerate(values, 1):
        keeper.save({"w": jnp.full(2, step)}, step, metrics={name: value})
    keeper.wait()


@pytest.mark.parametrize(
    ("mode", "values", "best", "steps"),
    [
        ("min", [3.0, 1.0, 2.0, 4.0, 5.0], 2, [2, 4, 5]),
        ("max", [3.0, 1.0, 2.0, 2.5, 1.0], 1, [1, 4, 5]),
        ("min", [np.nan, 1.0, np.nan, np.nan, 2.0], 2, [2, 4, 5]),
        ("max", [np.nan] * 4, None, [3, 4]),
        ("max", [-np.inf, np.inf, 1.0, 1.0], 2, [2, 3, 4]),
        ("min", [1.0, 1.0, 1.0, 1.0], 1, [1, 3, 4]),  # the first of equal ones
    ],
)
def test_the_newest_and_the_best_stay(mode, values, best, steps, tmp_path):
    keeper = checkpoint.Keeper(tmp_path, keep=2, best="eval/loss", mode=mode)
    save_all(keeper, values)
    assert (keeper.best(), keeper.steps(), keeper.latest()) == (best, steps, len(values))
    later = checkpoint.Keeper(tmp_path, keep=2, best="eval/loss", mode=mode)  # another process
    assert (later.best(), later.steps()) == (best, steps)
    assert later.restore({"w": jnp.zeros(2, int)}, step=steps[0])["w"].tolist() == [steps[0]] * 2


def test_leftovers_are_swept_and_nothing_else(tmp_path):
    keeper = checkpoint.Keeper(tmp_path)
    (tmp_path / ".step-3.0123abcd.tmp").mkdir()
    (tmp_path / "step-notes").mkdir()
    (tmp_path / "mine.txt").write_text("mine")
    assert keeper.steps() == [] and keeper.latest() is None and keeper.resume("like") == "like"
    save_all(keeper, [1.0])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.txt", "step-1", "step-notes"]


def test_wrong_uses_are_refused(tmp_path):
    with pytest.raises(errors.OptionError, match="Keeper.*mode"):
        checkpoint.Keeper(tmp_path, mode="most")
    with pytest.raises(errors.OptionError, match="keep"):
        checkpoint.Keeper(tmp_path, keep=0)
    keeper = checkpoint.Keeper(tmp_path)
    save_all(keeper, [1.0, 2.0])
    for step in (1, 2):  # the first would be removed at once
        with pytest.raises(errors.CheckpointError, match="after 2, the newest.*another directory"):
            keeper.save({}, step)
    with pytest.raises(errors.CheckpointError, match="among 1, 2"):
        keeper.restore({}, step=3)
    (tmp_path / "step-2" / "manifest.json").unlink()
    with pytest.raises(errors.CheckpointError, match="goes on from step 1"):
        keeper.resume({"w": jnp.zeros(2, int)})


def test_a_run_does_not_mix_with_an_older_one(tmp_path):
    """Its checkpoints would be removed as older than the other's, or not be saved at all."""
    ts, step = setup()
    options = {"batch_size": 5, "progress": False}
    fnn.train.fit(step, ts, data(), epochs=2, callbacks=[checkpoint.Keeper(tmp_path)], **options)
    for every in (1, 4, 8):
        keeper = checkpoint.Keeper(tmp_path, every=every)
        with pytest.raises(errors.CheckpointError, match="after 8, the newest"):
            fnn.train.fit(step, ts, data(), epochs=2, callbacks=[keeper], **options)
    assert checkpoint.Keeper(tmp_path).steps() == [8]


def test_the_metric_is_there_and_a_scalar(tmp_path):
    ts, step = setup()

    def run(value, best="eval/m"):
        keeper = checkpoint.Keeper(tmp_path / str(np.shape(value)), keep=1, best=best)
        counts = iter(range(0, -4, -1))
        fnn.train.fit(
            step, ts, data(), epochs=3, batch_size=5, progress=False, callbacks=[keeper],
            evaluate=lambda _: {"m": value + next(counts), "tree": {"a": (1.0,)}},
        )  # fmt: skip
        return keeper.best(), keeper.steps()

    assert run(np.zeros(())) == run(jnp.zeros((1, 1), int)) == (4, [4, 12])
    with pytest.raises(errors.OptionError, match="scalar eval/m.*float64"):
        run(np.zeros(3))
    with pytest.raises(errors.OptionError, match="scalar eval/n.*among eval/m"):
        run(np.zeros(2), "eval/n")


def test_a_reader_sees_past_what_a_run_removes(tmp_path, monkeypatch):
    writer = checkpoint.Keeper(tmp_path, keep=1, best="eval/loss", mode="min")
    save_all(writer, [2.0, 3.0])
    reader = checkpoint.Keeper(tmp_path, best="eval/loss", mode="min")
    listed = reader.steps

    def late():
        """The run goes on between the look at the directory and the look at a checkpoint."""
        steps = listed()
        if steps == [1, 2]:
            writer.save({"w": jnp.full(2, 3)}, 3, metrics={"eval/loss": 1.0}).wait()
            writer.wait()
        return steps

    monkeypatch.setattr(reader, "steps", late)
    assert reader.restore({"w": jnp.zeros(2, int)})["w"].tolist() == [3, 3]
    assert writer.steps() == [3]
    (tmp_path / "step-007").mkdir()
    monkeypatch.setattr(reader, "steps", lambda: [1, 2, *listed()])
    assert reader.best() == 3 and listed() == [3]


def test_a_failure_that_nobody_waits_for_is_told_at_exit(tmp_path):
    code = """
import jax.numpy as jnp, fnn, os
os.fsync = lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device"))
fnn.checkpoint.save("one", {"w": jnp.ones(2)}, wait=False)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, check=False,
    )  # fmt: skip
    assert "No space left on device" in done.stderr and os.listdir(tmp_path) == []


# --- runs that go on


def stop_at(step, final=False):
    def callback(event):
        return fnn.train.Stop("enough", final=final) if event.step == step else None

    return callback


def evaluate(train_state):
    return {"norm": fnn.optim.global_norm(train_state.params)}


@pytest.mark.parametrize("driver", ["loop", "chunk", "scan"])
@pytest.mark.parametrize("net", ["dense", "conv"])
def test_a_resumed_run_is_bitwise_the_run(net, driver, tmp_path):
    """In the middle of an epoch, with its history, evaluations and early stopping."""
    shape = (4,) if net == "dense" else (4, 4, 1)
    ts, step = setup(None if net == "dense" else conv_net(), shape=shape)
    options = {"epochs": 4, "batch_size": 5, "driver": driver, "chunk": 3, "progress": False,
               "evaluate": evaluate, "evaluate_every": 5}  # fmt: skip

    def run(name, *more):
        early = fnn.train.patience("eval/norm", 9, mode="max")
        keeper = checkpoint.Keeper(tmp_path / name, every=3, keep=9)
        stops = [keeper, early, *more]
        return fnn.train.fit(step, ts, data(shape), callbacks=stops, resume=keeper, **options)

    whole, history = run("whole")
    for end in (3, 6, 9, 15):  # of 4 steps in an epoch
        _, part = run("parts", stop_at(end))
        assert part["ended"] == "enough" and len(part["train"]["loss"]) == end
    parts, again = run("parts")
    assert_same_bits(parts, whole)
    for name in ("loss", "accuracy"):
        np.testing.assert_array_equal(again["train"][name], history["train"][name])
    np.testing.assert_array_equal(again["eval"]["norm"], history["eval"]["norm"])
    assert again["eval_step"].tolist() == history["eval_step"].tolist() == [5, 10, 15]
    finished, last = run("parts")  # nothing is left to do
    assert_same_bits(finished, whole)
    assert len(last["train"]["loss"]) == 16


def test_a_stream_goes_on_where_it_was(tmp_path):
    ts, step = setup()

    def batches(epoch):
        rows = np.random.default_rng(epoch).permutation(24)
        for start in range(0, 20, 5):
            yield jax.tree.map(lambda a: a[rows[start : start + 5]], data())  # noqa: B023

    def run(name, *more):
        keeper = checkpoint.Keeper(tmp_path / name, every=1)
        options = {"callbacks": [keeper, *more], "resume": keeper, "progress": False}
        return fnn.train.fit(step, ts, batches, epochs=2, **options)

    whole, history = run("whole")
    for end in (3, 4):
        run("parts", stop_at(end))
    parts, again = run("parts")
    assert_same_bits(parts, whole)
    np.testing.assert_array_equal(again["train"]["loss"], history["train"]["loss"])


def resumable(folder, **options):
    """A function that runs 2 epochs there, or goes on to more."""
    ts, step = setup()
    options = {"batch_size": 5, "data": data(), "step": step, "progress": False, **options}

    def run(epochs=2, callbacks=(), **more):
        keeper = checkpoint.Keeper(folder)
        both = {**options, **more, "epochs": epochs, "callbacks": [keeper, *callbacks]}
        return fnn.train.fit(train_state=ts, resume=keeper, **both)

    return run


def test_a_run_goes_on_with_its_own_data_alone(tmp_path):
    run = resumable(tmp_path)
    run()
    with pytest.raises(errors.OptionError, match="batch_size=5, examples=24.*batch_size=6"):
        run(4, batch_size=6)
    with pytest.raises(errors.OptionError, match="examples=24.*examples=23"):
        run(4, data=data(n=23))
    with pytest.raises(errors.OptionError, match="examples=24.*from a function"):
        run(4, data=lambda epoch: [data(n=5)])
    assert len(run(1)[1]["train"]["loss"]) == 8  # fewer epochs: it is over
    assert len(run(3)[1]["train"]["loss"]) == 12


def test_a_run_goes_on_with_another_driver(tmp_path):
    run = resumable(tmp_path, driver="scan")
    assert run()[1]["driver"] == "scan"
    parts, history = run(4, driver="loop")
    assert history["driver"] == "loop"
    assert_same_bits(parts, resumable(tmp_path / "whole")(4)[0])


class Count:
    every = 1

    def __init__(self):
        self.n = 0

    def __call__(self, event):
        self.n += not event.ended

    def state(self):
        return {"n": self.n}

    def restore(self, state):
        self.n = state["n"]


def test_callbacks_find_their_state_in_another_order(tmp_path):
    run = resumable(tmp_path, evaluate=evaluate)
    early = [fnn.train.patience("eval/norm", 9) for _ in range(2)]
    run(callbacks=[Count(), early[0]])
    new, other = Count(), Count()
    run(4, callbacks=[early[1], new, other])
    assert (new.n, other.n) == (16, 8)  # a second one of its class starts anew


@pytest.mark.parametrize("driver", ["loop", "scan"])
def test_histories_of_trees_go_on(driver, tmp_path):
    _, step = setup()

    def nested(train_state, batch):
        train_state, metrics = step(train_state, batch)
        n = train_state.step
        return train_state, {"a/b": n, "none": None, "t": (n, [n + i for i in range(12)], {})}

    def evaluate(train_state):
        n = int(train_state.step)
        return {"x/y": n, "p": (n, [np.full(2, n)])}

    run = resumable(tmp_path, step=nested, driver=driver, evaluate=evaluate)
    run()
    history = run(4)[1]
    steps = np.arange(1, 17)
    assert set(history["train"]) == {"a/b", "none", "t"}
    one, many, nothing = history["train"]["t"]
    for i, got in enumerate([one, history["train"]["a/b"], *many]):
        np.testing.assert_array_equal(got, steps + max(i - 2, 0))
    assert nothing == {} and history["eval"]["x/y"].tolist() == [4, 8, 12, 16]
    assert history["eval"]["p"][1][0].tolist() == [[4, 4], [8, 8], [12, 12], [16, 16]]
    with pytest.raises(errors.InputError, match="metrics with .*t/0.*, as before, got loss"):
        run(5, step=lambda ts, batch: (ts._replace(step=ts.step + 1), {"loss": ts.step}))
    with pytest.raises(errors.InputError, match="an evaluation with p/0"):
        run(5, evaluate=lambda _: {"p": 1.0})


def test_early_stopping_is_final(tmp_path):
    ts, step = setup()

    def run(epochs):
        keeper = checkpoint.Keeper(tmp_path, best="eval/norm", mode="min")
        early = fnn.train.patience("eval/norm", 2)
        return fnn.train.fit(
            step, ts, data(), epochs=epochs, batch_size=5, progress=False, evaluate=evaluate,
            callbacks=[early, keeper], resume=keeper,
        )  # fmt: skip

    stopped, history = run(20)
    norms = history["eval"]["norm"]
    assert "has not improved" in history["ended"] and len(norms) == int(norms.argmin()) + 3
    best = float(fnn.optim.global_norm(stopped.params))
    assert best == pytest.approx(float(norms.min()), rel=1e-6)  # the best are back
    again, after = run(20)
    assert_same_bits(again, stopped)
    assert after["ended"] == history["ended"] and len(after["eval"]["norm"]) == len(norms)


def test_run_goes_on_bitwise_from_a_checkpoint(tmp_path):
    ts, step = setup()
    options = {"batch_size": 5}
    whole, _ = fnn.train.run(step, ts, data(), steps=10, **options)
    half, _ = fnn.train.run(step, ts, data(), steps=5, **options)
    checkpoint.save(tmp_path / "half", half)
    back = checkpoint.restore(tmp_path / "half", ts)
    assert_same_bits(fnn.train.run(step, back, data(), steps=5, **options)[0], whole)
