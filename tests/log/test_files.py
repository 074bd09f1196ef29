"""Each step stands in the file once, whatever the driver, the resume and the kill."""

import csv
import itertools
import json
import os

import jax
import numpy as np
import pytest

import fnn
from fnn import errors
from tests.log.support import Run, metrics, strictly

FORMATS = ("jsonl", "csv")


def log(path, **options):
    return getattr(fnn.log, path.suffix[1:])(path, **options)


def rows(path):
    """The rows as Python's own json or csv module reads them: dicts of those values there are."""
    text = path.read_text(encoding="utf-8")
    assert text.endswith("\n")
    if path.suffix == ".jsonl":
        return [strictly(line) for line in text.splitlines()]
    found = list(csv.DictReader(text.splitlines()))
    assert all(None not in row and None not in row.values() for row in found)  # no ragged rows
    return [{k: float(v) for k, v in row.items() if v} for row in found]


def trained(path):
    return {int(row["step"]): row for row in rows(path) if "train/loss" in row}


def steps(path):
    return [int(row["step"]) for row in rows(path) if "train/loss" in row]


def assert_right(path, wanted):
    """The train rows are of these steps, in order, with their values to the last bit."""
    assert steps(path) == list(wanted)
    for step, row in trained(path).items():
        values = metrics(step)
        assert row["train/loss"] == float(values["train/loss"])
        assert row["train/correct"] == int(values["train/correct"])
        assert row["epoch"] == (step - 1) // 100


@pytest.fixture(params=FORMATS)
def path(request, tmp_path):
    return tmp_path / "folder" / f"run.{request.param}"


@pytest.mark.parametrize(("per_call", "every"), [(1, 1), (7, 1), (250, 1), (1, 10), (32, 10)])
@pytest.mark.parametrize("interval", [0.0, 1e9])
def test_each_step_has_a_row_whatever_the_driver_takes_per_call(path, per_call, every, interval):
    Run(per_call=per_call).to(250, log(path, every=every, interval=interval))
    assert_right(path, range(every, 251, every))


def test_evaluations_have_rows_after_those_of_their_steps(path):
    Run(per_call=10, evaluate=100).to(250, log(path, interval=1e9))
    assert_right(path, range(1, 251))
    order = [(int(row["step"]), "eval/accuracy" in row) for row in rows(path)]
    assert order == sorted(order)
    found = [(row["step"], row["eval/accuracy"]) for row in rows(path) if "eval/accuracy" in row]
    assert found == [(step, float(np.float32(step / 1000))) for step in (100, 200)]


def test_an_end_that_tells_the_last_evaluation_again_adds_no_row(path):
    run, callback = Run(), log(path)
    run.to(3, callback, end=False)
    for ended in ("", "done"):
        callback(run.event({"eval/accuracy": np.float32(0.5)}, ended))
    assert sum("eval/accuracy" in row for row in rows(path)) == 1


def test_rows_are_taken_seldom(path):
    run, callback = Run(evaluate=100), log(path, interval=1e9)
    run.to(250, callback, end=False)
    assert run.asked == [1, 100, 200]
    callback.state()
    assert run.asked[3:] == [250]
    eager = Run().to(20, log(path.with_name(f"eager{path.suffix}"), interval=0.0))
    assert eager.asked[:20] == list(range(1, 21))


def test_times_are_those_of_the_events(path, monkeypatch):
    clock = itertools.count(1_000.0)
    monkeypatch.setattr("time.time", lambda: next(clock))
    Run(per_call=2).to(6, log(path, interval=1e9))
    assert [row["time"] for row in rows(path)] == [1000, 1000, 1001, 1001, 1002, 1002]


# --- resuming


@pytest.mark.parametrize("per_call", [1, 8])
@pytest.mark.parametrize(("saved", "killed"), [(40, 40), (40, 77), (8, 120), (120, 127)])
def test_a_resumed_run_repeats_and_loses_no_step(path, saved, killed, per_call):
    first, run = log(path, interval=0.0), Run(per_call=per_call, evaluate=50)
    run.to(saved, first, end=False)
    state = json.loads(json.dumps(first.state()))
    run.to(killed, first, end=False)

    second = log(path, interval=0.0)
    second.restore(jax.tree.map(np.asarray, state))
    resumed = Run(start=saved, per_call=per_call, evaluate=50).to(200, second)
    assert resumed.step == 200
    assert_right(path, range(1, 201))
    evaluated = [int(row["step"]) for row in rows(path) if "eval/accuracy" in row]
    assert len(evaluated) == len(set(evaluated)) == 4


def test_a_state_holds_the_steps_since_the_last_write_too(path):
    """And of a run whose past rows `fit` still has, only later ones are taken."""
    first = log(path, interval=1e9, every=5)
    run = Run().to(42, first, end=False)
    assert path.read_text() == ""  # step 1 alone was looked at
    state = first.state()
    assert_right(path, range(5, 41, 5))
    second = log(path, every=5)
    second.restore(state)
    run.to(60, second)  # its rows(0) begin at 1
    assert_right(path, range(5, 61, 5))


def test_a_checkpoint_before_the_first_step(path):
    callback = log(path)
    state = callback.state()
    assert state["step"] == 0 and not path.exists()
    again = log(path)
    path.parent.mkdir()
    again.restore(state)
    Run().to(5, again)
    assert_right(path, range(1, 6))


def test_state_is_on_disk(path, monkeypatch):
    synced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(os.fstat(file)), fsync(file)))
    callback = log(path)
    Run().to(5, callback, end=False)
    synced.clear()
    callback.state()
    assert os.stat(path).st_ino in [found.st_ino for found in synced]


def test_a_second_fit_goes_on_in_the_same_file(path):
    callback = log(path)
    Run().to(30, callback)
    Run(start=30).to(50, callback)
    assert_right(path, range(1, 51))


@pytest.mark.parametrize("per_call", [1, 30, 45])
def test_another_run_in_the_same_log_is_refused(path, per_call):
    callback = log(path)
    Run().to(30, callback)
    with pytest.raises(errors.InputError, match="log of its own for every run"):
        Run(per_call=per_call).to(45, callback)
    assert_right(path, range(1, 31))


# --- files that are there, missing or damaged


def test_a_new_run_refuses_a_file_that_holds_something(path):
    path.parent.mkdir()
    path.write_text("precious")
    with pytest.raises(errors.InputError, match="holds 8 bytes; .*overwrite=True") as raised:
        Run().to(3, log(path))
    assert str(raised.value).startswith(path.suffix[1:]) and path.read_text() == "precious"
    Run().to(3, log(path, overwrite=True))
    assert_right(path, range(1, 4))


def test_a_new_run_takes_an_empty_file(path):
    path.parent.mkdir()
    path.touch()
    Run().to(3, log(path))
    assert_right(path, range(1, 4))


def missing(path):
    path.unlink()


def shorter(path):
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def another(path):
    path.unlink()
    other = Run(lambda step: {"train/loss": np.float32(step + 0.123456789)})
    other.to(60, log(path))


@pytest.mark.parametrize("damage", [missing, shorter, another])
def test_a_resumed_run_refuses_another_file(path, damage):
    callback = log(path)
    Run().to(20, callback, end=False)
    state = callback.state()
    damage(path)
    before = path.read_bytes() if path.exists() else None
    with pytest.raises(errors.InputError, match="put that file back, or pass overwrite=True"):
        log(path).restore(state)
    assert (path.read_bytes() if path.exists() else None) == before

    callback = log(path, overwrite=True)
    callback.restore(state)
    Run(start=20).to(30, callback)
    assert_right(path, range(21, 31))


def test_a_file_removed_meanwhile_is_begun_again(path):
    callback, run = log(path, interval=0.0), Run()
    run.to(10, callback, end=False)
    path.unlink()
    run.to(15, callback, end=False)
    state = callback.state()
    assert_right(path, range(11, 16))
    again = log(path)
    again.restore(state)
    Run(start=15).to(20, again)
    assert_right(path, range(11, 21))


def test_a_torn_last_line_is_not_read_and_is_cut(path):
    callback, run = log(path, interval=0.0), Run()
    run.to(5, callback, end=False)
    state = callback.state()
    run.to(6, callback, end=False)
    whole = path.read_bytes()
    begins = whole[:-1].rindex(b"\n") + 1
    for end in range(begins, len(whole)):  # within the last line, and at its start
        path.write_bytes(whole[:end])
        np.testing.assert_array_equal(fnn.log.read(path)["step"], range(1, 6))
        again = log(path)
        again.restore(state)
        assert path.read_bytes() == whole[:begins]
    Run(start=5).to(9, again)
    assert_right(path, range(1, 10))


# --- csv: columns that come late


def test_late_columns_widen_the_file_in_one_go(tmp_path, monkeypatch):
    path, seen, replace = tmp_path / "run.csv", [], os.replace

    def looking(old, new):
        seen.append((steps(path), steps(type(path)(old))))
        replace(old, new)

    monkeypatch.setattr(os, "replace", looking)

    def late(step):
        return metrics(step) | ({f"train/from, {n}": step for n in (5, 9) if step >= n})

    callback = fnn.log.csv(path, interval=0.0)
    Run(late).to(7, callback, end=False)
    state = callback.state()
    again = fnn.log.csv(path, interval=0.0)
    again.restore(state)
    Run(late, start=7).to(12, again)
    assert seen == [(list(range(1, first)),) * 2 for first in (5, 9)]  # whole before and after
    assert_right(path, range(1, 13))
    for name in ("train/from, 5", "train/from, 9"):
        first = int(name.split()[1])
        assert [r.get(name) for r in rows(path)] == [None] * (first - 1) + list(range(first, 13))


def test_a_checkpoint_from_before_a_late_column_still_fits(tmp_path):
    path = tmp_path / "run.csv"
    callback, run = fnn.log.csv(path, interval=0.0), Run(evaluate=10)
    run.to(8, callback, end=False)
    state = callback.state()
    run.to(14, callback, end=False)
    again = fnn.log.csv(path)
    again.restore(state)
    Run(start=8, evaluate=10).to(20, again)
    assert_right(path, range(1, 21))
    assert [row["step"] for row in rows(path) if "eval/accuracy" in row] == [10, 20]


# --- many processes, and wrong input


def test_of_many_processes_the_first_writes(path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    callback = log(path)
    run = Run(evaluate=5).to(20, callback)
    state = callback.state()
    callback.restore(state)
    assert not path.parent.exists() and run.asked == []
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    assert jax.tree.structure(log(path).state()) == jax.tree.structure(state)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("train/loss", np.complex64(1j)),
        ("train/loss", "text"),
        ("train/loss", None),
        ("step", np.float32(1)),
        ("time", np.float32(1)),
    ],
)
def test_what_is_no_metric_is_refused(path, name, value):
    with pytest.raises(errors.InputError, match=name) as raised:
        Run(lambda step: {name: value}).to(1, log(path))
    assert str(raised.value).startswith(path.suffix[1:])


def test_names_in_a_csv_file_stand_in_one_line(tmp_path):
    with pytest.raises(errors.InputError, match="fnn.log.jsonl"):
        Run(lambda step: {"a\nb": 1}).to(1, fnn.log.csv(tmp_path / "run.csv"))


@pytest.mark.parametrize("options", [{"every": 0}, {"every": 1.5}, {"interval": -1}])
def test_wrong_options_are_refused(path, options):
    with pytest.raises(errors.OptionError, match=path.suffix[1:]):
        log(path, **options)
