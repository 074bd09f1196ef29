"""The table shows the last values, and survives whatever the files and the terminal are."""

import io
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console

import fnn
from fnn.log import terminal
from tests.log.support import Run, metrics


def shown(capsys, monkeypatch, *arguments, columns=100, code=0):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert terminal.main([*map(str, arguments), "--once"]) == code
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= columns
    return out


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "run.jsonl"
    Run(evaluate=50).to(200, fnn.log.jsonl(path))
    return path


def test_once_prints_the_last_values_of_each_run(path, tmp_path, capsys, monkeypatch):
    other = tmp_path / "other.csv"
    Run(evaluate=50).to(120, fnn.log.csv(other))
    out = shown(capsys, monkeypatch, path, other, columns=200)
    assert "step 200, epoch 2" in out and "step 120, epoch 1" in out
    for last in (200, 120):
        assert f"{float(metrics(last)['train/loss']):.4g}" in out
    lines = [line for line in out.splitlines() if line.startswith("eval/accuracy")]
    assert [line.split()[1:4] for line in lines] == [["0.2", "0.05", "0.2"], ["0.1", "0.05", "0.1"]]
    assert lines[0].rstrip().endswith("▁▃▆█")  # 0.05, 0.1, 0.15, 0.2


def test_a_missing_and_an_empty_file_wait(path, tmp_path, capsys, monkeypatch):
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    out = shown(capsys, monkeypatch, path, tmp_path / "none.jsonl", empty, code=1, columns=200)
    assert "none.jsonl: no such file" in out and "empty.jsonl: no rows so far" in out
    assert "step 200" in out


def test_a_damaged_file_says_so(tmp_path, capsys, monkeypatch):
    path = tmp_path / "run.jsonl"
    path.write_text("nonsense\n")
    assert "line 1 of" in shown(capsys, monkeypatch, path, code=1, columns=200)


@pytest.mark.parametrize("columns", [12, 30, 59, 200])
def test_terminals_of_any_width(path, capsys, monkeypatch, columns):
    with open(path, "a") as file:
        row = {f"train/a long name of a metric, {i:03d}": "NaN" for i in range(90)}
        file.write(json.dumps({"step": 201, "epoch": 2, "time": 1.0} | row) + "\n")
        file.write('{"step": 202, "ep')
    out = shown(capsys, monkeypatch, path, columns=columns)
    assert out.count("nan") >= 90 or columns < 30


def test_without_unicode_it_is_ascii(path):
    env = os.environ | {"PYTHONIOENCODING": "ascii", "COLUMNS": "80", "JAX_PLATFORMS": "nonsense"}
    done = subprocess.run(
        [sys.executable, "-m", "fnn.log", str(path), "--once"], env=env, capture_output=True
    )  # a backend is not started either: the run beside may hold the device
    out = done.stdout.decode("ascii")
    assert done.returncode == 0 and not done.stderr
    assert "train/loss" in out and "eval/accuracy" in out and "@" in out


@pytest.mark.parametrize("width", [6, 12, 40, 100])
def test_ascii_at_any_width(path, width):
    tail = terminal.Tail(path)
    tail.update()
    text = io.StringIO()
    look = terminal.Look(width, 8, plain=True)
    Console(file=text, width=width, highlight=False).print(terminal.view([tail], look, 0.0))
    assert text.getvalue().isascii() and "and 1 more" in " ".join(text.getvalue().split())


def test_a_growing_file_is_read_on_and_a_cut_one_again(tmp_path):
    path = tmp_path / "run.csv"
    tail, callback, run = terminal.Tail(path), fnn.log.csv(path, interval=0.0), Run(evaluate=20)
    tail.update()
    assert tail.problem == "no such file or directory" and not tail.rows.count
    for last in (3, 7, 25, 26):  # at 20 the header grows, and the file is another one
        run.to(last, callback, end=False)
        if last == 7:
            state = callback.state()
        with open(path, "a") as file:  # half a line, that is there when it looks
            file.write("999,")
        tail.update()
        assert not tail.problem
        assert tail.rows.columns["step"][-1] == last
        os.truncate(path, path.stat().st_size - 4)
    assert len(tail.rows.columns["eval/accuracy"]) == tail.rows.count == 27

    again = fnn.log.csv(path, interval=0.0)
    again.restore(state)
    Run(start=7, evaluate=100).to(60, again, end=False)  # longer than it was
    tail.update()
    assert tail.rows.columns["step"] == list(range(1, 61))


@pytest.mark.parametrize("width", [1, 4, 7, 10, 33])
def test_a_sparkline_has_the_means_of_its_parts(width):
    values = list(np.random.default_rng(width).random(33))
    cuts = [33 * i // width for i in range(width + 1)]
    means = np.array([np.mean(values[a:b]) for a, b in zip(cuts, cuts[1:], strict=False)])
    levels = np.round((means - means.min()) / max(np.ptp(means), 1e-12) * 7).astype(int)
    assert terminal.spark(values, width) == "".join("▁▂▃▄▅▆▇█"[level] for level in levels)


def test_sparklines_at_the_edges():
    assert terminal.spark([], 5) == ""
    assert terminal.spark([2.0, 2.0], 5) == "▁▁"
    assert terminal.spark([1.0, 10.0, 1e7, math.nan], 5, log=True) == "▁▂█!"
    assert terminal.spark([0.0, 10.0, 1e7], 5, log=True) == "▁▁█"
    assert terminal.spark([math.nan, math.inf, 1.0], 5) == "!!▁"
    assert terminal.spark([0.1e308, 1e308, -1e308], 3, "ab") == "bba"


def test_it_goes_on_until_it_is_interrupted(path, capsys, monkeypatch):
    looks = iter([None, None, KeyboardInterrupt])

    def sleep(seconds):
        if (error := next(looks)) is not None:
            raise error

    monkeypatch.setattr(terminal.time, "sleep", sleep)
    monkeypatch.setenv("COLUMNS", "200")
    assert terminal.main([str(path)]) == 0
    assert capsys.readouterr().out.count("step 200") == 3
