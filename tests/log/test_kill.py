"""A process killed while it writes leaves whole rows, and a run resumed from any state is whole."""

import ast
import json
import os
import pathlib
import random
import signal
import time

import numpy as np
import pytest

import fnn
from tests.log.support import Run, metrics
from tests.support import python


def wide(step):
    """Rows of a few kilobytes, and in csv new columns now and then: more time to be killed in."""
    late = {f"train/late{step // 40}": np.float32(step)}
    return metrics(step) | {"train/many": np.full(300, step, np.float32)} | late


def make(path):
    return getattr(fnn.log, path.suffix[1:])(path, interval=0.0)


def write(path):
    """Rows without end, and beside them each state that a checkpoint would hold."""
    callback, run = make(path), Run(wide, per_call=3)
    beside = path.with_suffix(".state")
    for last in range(3, 30_000, 3):
        run.to(last, callback, end=False)
        if last % 30 == 0:
            pathlib.Path(f"{beside}.new").write_text(json.dumps(callback.state()))
            os.replace(f"{beside}.new", beside)


def killed(folder, times):
    """Fork writers and kill each; the forks begin at once, as the import is done."""
    paths = []
    for i in range(times):
        path = pathlib.Path(folder) / f"run{i}.{'csv' if i % 2 else 'jsonl'}"
        child = os.fork()
        if not child:
            write(path)
            os._exit(0)
        late = time.monotonic() + 30
        while not path.with_suffix(".state").exists() and time.monotonic() < late:
            time.sleep(0.001)
        time.sleep(random.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        paths.append(str(path))
    return paths


@pytest.mark.skipif(os.name != "posix", reason="needs fork")
def test_a_killed_writer(tmp_path):
    call = f"print(test_kill.killed({str(tmp_path)!r}, 6))"
    paths = ast.literal_eval(python(f"from tests.log import test_kill; {call}"))
    for path in map(pathlib.Path, paths):
        found = fnn.log.read(path)["step"]
        np.testing.assert_array_equal(found, np.arange(1, len(found) + 1))
        state = json.loads(path.with_suffix(".state").read_text())
        assert 30 <= state["step"] <= len(found)

        callback, last = make(path), state["step"] + 50
        callback.restore(state)
        Run(wide, start=state["step"]).to(last, callback)
        columns = fnn.log.read(path)
        np.testing.assert_array_equal(columns["step"], np.arange(1, last + 1))
        np.testing.assert_array_equal(columns["train/many"][:, 7], columns["step"])
