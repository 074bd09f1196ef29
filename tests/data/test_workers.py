"""Worker processes: what they do, what they say of errors, and that they end."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from fnn import errors
from fnn.data import batches, files, stream
from tests.data.support import REPO, run, with_pid
from tests.support import QUICK


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_processes_have_the_same_batches_and_name_a_broken_file(tmp_path):
    for i in range(6):
        np.save(tmp_path / f"{i}.npy", np.full(3, i))
    (tmp_path / "5.npy").write_bytes(b"not an array")
    options = {"transform": with_pid, "device": False}
    made = stream(files(tmp_path, np.load), 2, None, processes=1, **options)(0)
    here = stream(files(tmp_path, np.load), 2, None, threads=0, **options)(0)
    for _ in range(2):
        one, two = next(made), next(here)
        np.testing.assert_array_equal(one["x"], two["x"])
        assert one["pid"][0] != two["pid"][0] == os.getpid()
    with pytest.raises(errors.DataError, match=r"example 5 \(.*5.npy\) to be read, got") as error:
        next(made)
    assert "in _read" in str(error.value.__cause__)  # where in the worker
    assert not multiprocessing.active_children()


def test_a_killed_worker_is_one_clear_error():
    made = stream(range(100), 2, None, transform=with_pid, processes=1, device=False)(0)
    os.kill(int(next(made)["pid"][0]), signal.SIGKILL)
    with pytest.raises(errors.DataError, match="^stream: expected worker .* killed, as for"):
        list(made)
    assert not multiprocessing.active_children()


def test_what_cannot_be_sent_is_refused():
    with pytest.raises(errors.InputError, match="that can be pickled, .*; define functions at the"):
        next(stream(range(4), 2, None, transform=lambda x: x, processes=1)(0))


@pytest.mark.full
@pytest.mark.parametrize("workers", ["threads=2", "processes=1"])
def test_python_ends_in_silence_while_a_stream_is_open(workers):
    code = f"import fnn\nmade = fnn.data.stream(range(99), 2, None, {workers})(0)\nnext(made)"
    assert run(code).stderr == ""


SCRIPT = """
import signal
import time
import fnn
from tests.data.support import with_pid

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
for batch in fnn.data.stream(range(10**6), 1, None, transform=with_pid, processes=2)(0):
    print(batch["pid"][0], flush=True)
    time.sleep(0.02)
"""


@pytest.mark.parametrize("number", ["SIGINT"] if QUICK else ["SIGINT", "SIGTERM", "SIGKILL"])
def test_no_process_is_left(number):
    """Ctrl-C goes to all processes of a terminal; the others to one, which cannot tell them."""
    number = signal.Signals[number]
    command, pids = [sys.executable, "-c", SCRIPT], set()
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=REPO, start_new_session=True, **pipe) as process:
        while len(pids) < 2:
            pids.add(int(process.stdout.readline()))
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        said = process.communicate(timeout=30)[1]
        assert process.returncode == -number
    end = time.monotonic() + 10
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(alive, pids))
    assert said.count("Traceback") == (number == signal.SIGINT)


@pytest.mark.parametrize("workers", [{"threads": 2}, {"processes": 1}], ids=str)
def test_workers_are_in_the_callers_mode_of_64_bits(workers):
    data = {"x": np.array([2**40, 1, 2, 3]), "y": np.array([0.1, 0.2, 0.3, 0.4])}
    with jax.enable_x64(True):
        made = stream(data, 2, jax.random.key(0), **workers)(0)
        for got, want in zip(made, batches(data, 2, key=jax.random.key(0)), strict=True):
            for name, x in want.items():
                assert got[name].dtype == x.dtype and x.dtype.itemsize == 8
                np.testing.assert_array_equal(got[name], x)
