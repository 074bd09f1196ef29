"""Processes that end together, resume together, and refuse what they do not share."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

LIVES = pathlib.Path(__file__).with_name("lives.py")
QUICK = "FNN_QUICK" in os.environ


@pytest.mark.cpu
def test_broken_runs_end_in_time_and_resume_to_the_bit(tmp_path):
    """Two processes broken twice; or four of them, by 15 kills and 5 stops."""
    count, kills, stops = (2, 1, 1) if QUICK else (4, 15, 5)
    root = str(pathlib.Path(__file__).parents[2])
    command = [sys.executable, str(LIVES), str(tmp_path), str(count), str(kills), str(stops)]
    environment = os.environ | {"PYTHONPATH": root, "JAX_NUMPY_DTYPE_PROMOTION": "standard"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.stdout.endswith("done\n"), done.stdout + done.stderr
    texts = [(tmp_path / "whole" / f"{i}.txt").read_text() for i in range(count)]
    refused = [dict(re.findall(r"REFUSED ([\w ]+): (.*)", text)) for text in texts]
    assert all(of == refused[0] for of in refused)  # the same in every process
    expected = {
        "rows": r"batch/image: \(8, 8\) float32 in process 0, \(7, 8\) float32 in process 1",
        "params": "train_state/key .* in process 0, .* in process 1",
        "program": r"0.00999999977> : tensor<f32> in process 0, .*2.000000e-02> .* in process 1",
        "alone": "a training state over the devices of all 2 processes",
        "epochs": "run/epochs: '1' in process 0, '2' in process 1",
        "data": r"data, some rows/image: \(64, 8\) float32, values .* in process 0",
        "stream": "stream/order: .* in process 0, .* in process 1",
        "batches": "another batch: yes in process 1, no in process 0|"
        r"batch/image: none in process 0, \(8, 8\) float32 in process 1",
        "whole stream": "device=placed.batch_sharding",
        "facts": "options/rate: 0.0 in process 0, 0.1 in process 1",
    }
    assert set(refused[0]) == set(expected)
    if count == 2:
        for name, pattern in expected.items():
            assert re.search(pattern, refused[0][name]), (name, refused[0][name])
    # One process writes the log, a row for each step and each of the 6 evaluations.
    log = (tmp_path / "whole" / "log.jsonl").read_text().splitlines()
    assert len(log) == 36 + 6 and log[0].startswith('{"step":1,')
