"""The benchmark runner: it compares round by round, fails what disagrees and hides no miss."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from benchmarks import crossover, relative, report
from benchmarks.networks import Case
from benchmarks.task import Goal, load

ROOT = Path(__file__).parents[1]
TOY = """
from benchmarks.task import Goal, Task

def counting(step, fail=False):
    def contender(case):
        if fail:
            raise ValueError("cannot build")
        return lambda: sum(range(case * step))
    return contender

def absent(case):
    import no_such_library

TASK = Task(
    title="Sums", cases={"small": 100},
    contenders={"floor": counting(1), "fnn": counting(1), "wrong": counting(2),
                "broken": counting(1, fail=True), "absent": absent},
    check=lambda contender, case: [float(contender(case)())],
    goals=(Goal("no time at all", "small", 0.0, ("floor",), cause="time passes"),
           Goal("within an hour", "small", 3600.0)),
    samples={"small": 10},
)
"""


def bench(*arguments, path=""):
    env = {**os.environ, "PYTHONPATH": str(path)}
    command = [sys.executable, "-m", "benchmarks.run", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


def row(*seconds):
    return {"seconds": list(seconds), "first_call": 1.0, "peak_mib": 100.0}


def test_ratios_are_paired_by_round():
    """A machine that slows down by ten halfway leaves the ratio alone."""
    assert report.ratio([2.0, 2.0, 20.0], [1.0, 1.0, 10.0]) == 2.0


def test_disagreement():
    assert report.disagreement([1.0, 2.0], [1.0, 2.0001], 1e-3) == ""
    assert "number 1" in report.disagreement([1.0, 2.1], [1.0, 2.0], 1e-3)
    assert "number 0" in report.disagreement([float("nan")], [1.0], 1e-3)
    assert "1 numbers" in report.disagreement([1.0], [1.0, 2.0], 1e-3)


def test_goals_are_judged_and_misses_printed():
    rows = {"fnn": row(1.2, 1.2), "floor": row(1.0, 1.0), "slow": row(3.0, 3.0)}

    def said(*arguments, **options):
        return report.state(report.judge(Goal("quick", "case", *arguments, **options), rows))

    assert said(1.3, ("floor", "slow")) == "met: quick: 1.2 x floor (limit 1.3)."
    assert said(1.1, ("floor",), cause="A reason.") == (
        "**MISSED**: quick: 1.2 x floor (limit 1.1). A reason."
    )
    assert "cause not yet found" in said(1.1, ("floor",))
    assert said(2.0) == "met: quick: 1.2 s."
    assert said(1.0, ("gone",)).startswith("not measured")
    assert "without gone" in said(1.3, ("floor", "gone"))
    assert said(1.1, ("floor",), otherwise=("slow", 0.5)).startswith("met: quick: 1.2 x floor")
    assert said(1.1, ("floor",), otherwise=("slow", 0.3)).startswith("**MISSED**")
    assert said(1.1, ("floor",), otherwise=("gone", 9.0)).startswith("**MISSED**")
    twice = report.judge(Goal("flat", "96", 1.5, ("fnn",), than="4"), {"fnn": row(2.0, 2.0)}, rows)
    assert report.state(twice).startswith("**MISSED**: flat: 1.67 x fnn in 4 (limit 1.5).")
    compiled = {name: rows[name] | {"first_calls": [seconds, 1.0, seconds]}
                for name, seconds in (("fnn", 2.0), ("floor", 4.0))}  # fmt: skip
    first = Goal("early", "case", 1.0, ("floor",), of="first_calls")
    assert report.state(report.judge(first, compiled)) == "met: early: 0.5 x floor (limit 1)."
    rows["fnn"] = {"failed": "wrong losses"}
    assert said(1.3, ("floor",)) == "**MISSED**: quick. fnn: wrong losses."


def test_speed_is_samples_over_the_median():
    rows = {"fnn": row(1.0, 0.5, 0.25), "floor": row(4.0, 1.0, 5.0)}
    names, _, quick, slow = report.table(rows, "floor", samples=2000).splitlines()
    place = [name.strip() for name in names.split("|")].index("samples / s")
    assert [line.split("|")[place].strip() for line in (quick, slow)] == ["4,000", "500"]
    assert "samples" not in report.table(rows, "floor")


def test_a_toy_task_end_to_end(tmp_path):
    """What disagrees or breaks is failed, what is absent is skipped, and both are said."""
    (tmp_path / "toy.py").write_text(TOY)
    done = bench("toy", "--quick", "--out", tmp_path, path=tmp_path)
    assert done.returncode == 1, done.stderr
    result = json.loads((tmp_path / "results/toy-cpu.json").read_text())
    rows = result["cases"]["small"]
    assert len(rows["fnn"]["seconds"]) == len(rows["floor"]["seconds"]) == result["rounds"]
    assert "expected 4950" in rows["wrong"]["failed"]
    assert "cannot build" in rows["broken"]["failed"]
    assert "no_such_library" in rows["absent"]["skipped"]
    assert [goal["met"] for goal in result["goals"]] == [False, True]
    report_text = (tmp_path / "RESULTS.md").read_text()
    said = ("| floor", "| samples / s |", "**FAILED** wrong", "skipped absent", "time passes")
    for words in (*said, "**MISSED**"):
        assert words in report_text and words in done.stdout + report.HEADER


PAIRED = """
import os
from benchmarks.task import Goal, Missing, Task

def counting(step, case=None):
    def contender(n):
        if case and n != case:
            raise Missing("not of this case")
        return lambda: sum(range(n * step))
    return contender

TASK = Task(
    title="Sums", cases={"small": 100, "large": 10_000},
    contenders={"one": counting(1), "all": counting(30), "other": counting(2, 100)},
    check=lambda contender, case: [float(os.getpid())],
    goals=(Goal("no time at all", "small", 0.0, ("one",), "all", cause="time passes"),
           Goal("within a million times", "large", 1e6, ("one",), "all")),
    rounds=5, baseline="one", pairs={"all": "one", "other": "one"},
)
"""


def test_pairs_share_a_process_and_one_table(tmp_path):
    """The number on which they must agree is the process; each pair has a column, a case a row."""
    (tmp_path / "paired.py").write_text(PAIRED)
    done = bench("paired", "--rounds", "4", "--out", tmp_path, path=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "results/paired-cpu.json").read_text())
    pids = [{row["numbers"][0] for row in rows.values() if "numbers" in row}
            for rows in result["cases"].values()]  # fmt: skip
    assert len(pids[0]) == len(pids[1]) == 1 and pids[0] != pids[1]
    lines = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    head, small, large = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines
                          if "---" not in line)  # fmt: skip
    assert head == ["case", "all / one", "other / one"]
    assert float(small[1].split()[0]) > 2 and float(small[2].split()[0]) > 1
    assert large[0] == "large" and large[2] == ""
    assert "1 of 2 goals are met" in done.stdout and "time passes" in done.stdout
    assert "million" not in done.stdout


def test_a_report_keeps_what_it_has_no_data_of(tmp_path):
    """Parts without JSON stay; a part with JSON is written from it, the others in order."""
    old = "## alpha: by hand\n\n| a |\n\n## optim: out of date\n\n## zeta: last\n\n| z |\n"
    (tmp_path / "RESULTS.md").write_text(f"{report.HEADER}\n{old}")
    results = ROOT / "benchmarks/results"
    result = json.loads((results / "optim-cpu.json").read_text())
    for _ in range(2):
        report.write(result, tmp_path)
        text = (tmp_path / "RESULTS.md").read_text()
        assert [line.split(":")[0] for line in text.splitlines() if line.startswith("## ")] == [
            "## alpha", "## optim", "## zeta",
        ]  # fmt: skip
        assert "| a |" in text and "| z |" in text and "out of date" not in text
        assert report.section(result).rstrip() in text


@pytest.mark.full
def test_fnn_and_the_floor_take_the_same_steps(tmp_path):
    """The quickest real task: both contenders run, and their losses agree."""
    pytest.importorskip("optax")
    options = ("--quick", "--cases", "2", "--contenders", "fnn,floor", "--out", tmp_path)
    done = bench("dispatch", *options)
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "results").glob("dispatch-*.json")
    rows = json.loads(path.read_text())["cases"]["2"]
    assert rows["fnn"]["numbers"] == pytest.approx(rows["floor"]["numbers"], rel=1e-3)
    assert len(rows["fnn"]["numbers"]) == 20 and rows["fnn"]["first_call"] > 0


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_fnn_and_the_floor_train_the_same_recurrent_network(kind):
    pytest.importorskip("optax")
    task, case = load("recurrent"), Case((2, 3, 4), ((kind, 5), ("dense", 10)))
    with jax.numpy_dtype_promotion("standard"):  # as in a worker; optax needs it
        of_fnn, of_floor = (task.check(task.contenders[name], case) for name in ("fnn", "floor"))
    assert of_fnn == pytest.approx(of_floor, rel=1e-5)
    assert len(of_fnn) == 3 and len(set(of_fnn)) == 3


def test_runs_side_by_side_end_where_those_of_the_loop_end():
    """A seed is the same weights and the same order of batches, over more than an epoch."""
    pytest.importorskip("optax")
    task, net = load("sweep"), Case((4, 3), (("dense", 5), ("relu", None), ("dense", 10)))
    runs = type(task.cases["16"])(net, rates=2, steps=16)
    with jax.numpy_dtype_promotion("standard"):
        of_loop, of_fnn = (
            task.check(task.contenders[name], runs) for name in ("optax_loop", "fnn_vmap")
        )
    assert len(set(of_loop)) == runs.count == 16
    assert of_fnn == pytest.approx(of_loop, rel=1e-4)


def test_epochs_see_each_example_once_in_whatever_order():
    """The numbers checked are those of plain Adam, and the same for every way to make an epoch."""
    pytest.importorskip("optax")
    task, net = load("epoch"), Case((8, 3), (("dense", 5), ("relu", None), ("dense", 10)))
    with jax.numpy_dtype_promotion("standard"):  # as in a worker; optax needs it
        by_hand, auto, scan = (
            task.check(task.contenders[name], type(task.cases["small"])(net, 32))
            for name in ("jax_loop", "fnn", "fnn_scan")
        )
    assert auto == pytest.approx(by_hand, rel=1e-5) and scan == pytest.approx(by_hand, rel=1e-5)
    first, *later, still = by_hand
    assert first > later[0] > later[1] and still == pytest.approx(first, rel=1e-5)


def test_a_layer_computes_the_same_in_a_scan_and_in_a_loop():
    task = load("scan_layers")
    case = type(task.cases["conv"])(lambda fnn: fnn.conv(2, (3,)), ((2, 5, 3),))
    for name, pair in task.pairs.items():
        if pair != "step":
            mine, theirs = (task.check(task.contenders[one], case) for one in (name, pair))
            assert mine == pytest.approx(theirs, rel=1e-4) and mine[0] > 0


def test_labels_are_spread_no_further_than_needed():
    assert crossover.spread([0.1, 0.5], 0.1) == pytest.approx([0.1, 0.5])
    assert crossover.spread([0.5, 0.5, 0.9], 0.1) == pytest.approx([0.45, 0.55, 0.9])
    assert crossover.spread([0.2, 0.25, 0.3], 0.1) == pytest.approx([0.15, 0.25, 0.35])


def test_the_crossover_is_drawn_from_a_result(tmp_path):
    """Runs per second of the cases that are widths, whichever of them were measured."""
    pytest.importorskip("matplotlib")
    counts = {name: runs.count for name, runs in load("sweep").cases.items()}
    cases = {
        "64": {"fnn": row(1.0, 2.0, 5.0), "torch": {"skipped": "not installed"}},
        "16": {"fnn": row(0.5), "compiled": row(4.0)},
        "cnn": {"fnn": row(1.0)},
    }
    result = {"device": "a device", "cases": cases}
    assert crossover.speeds(result) == {
        "fnn": {16: counts["16"] / 0.5, 64: counts["64"] / 2.0},
        "compiled": {16: counts["16"] / 4.0},
    }
    crossover.draw([result, result], tmp_path / "new/picture.png")
    assert (tmp_path / "new/picture.png").read_bytes().startswith(b"\x89PNG")


def test_times_relative_to_fnn_are_drawn_from_a_result(tmp_path):
    """The report's ratios, of the cases and contenders that were timed."""
    pytest.importorskip("matplotlib")
    cases = {
        "net train": {
            "fnn": row(1.0, 2.0, 9.0),
            "nnx": row(4.0, 5.0, 90.0),
            "torch": row(0.5, 0.5, 0.9),
        },
        "net batch 1": {"fnn": row(0.5), "torch": {"skipped": "not installed"}},
        "other train": {"fnn": {"failed": "killed"}, "torch": row(1.0)},
    }
    result = {"device": "a device", "cases": cases}
    assert relative.relative(result) == {
        "net train": {"fnn": 1.0, "nnx": 4.0, "torch": 0.25},
        "net batch 1": {"fnn": 1.0},
    }
    relative.draw(result, tmp_path / "new/picture.png")
    assert (tmp_path / "new/picture.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks/tasks").glob("[!_]*.py")))
def test_tasks_load_without_any_library(path):
    """Goals name cases and contenders that there are; reading a task imports no library."""
    task = load(path.stem)
    assert "fnn" in task.contenders or task.pairs
    assert {task.baseline, *task.pairs, *task.pairs.values()} <= set(task.contenders)
    for goal in task.goals:
        assert {goal.case, goal.than or goal.case} <= set(task.cases)
        assert {goal.contender, *goal.over} <= set(task.contenders)
    code = f"""import sys; from benchmarks.task import load; load({path.stem!r})
assert not {{"jax", "numpy", "torch", "fnn"}} & set(sys.modules)"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
