"""What `run` finds in arguments and the environment, and the launcher of one machine."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import fnn
from fnn.core import agreement
from fnn.core.placement import part_of
from fnn.distributed import run
from fnn.distributed.run import COORDINATOR, PROCESS, PROCESSES

VARIABLES = COORDINATOR, PROCESSES, PROCESS


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_one_process_runs_main_and_returns_what_it_does():
    assert run(lambda: 5) == 5
    assert run(lambda: 6, processes=1, process=0, coordinator="127.0.0.1:1") == 6
    with pytest.raises(KeyError, match="own"):
        run(lambda: {}["own"])


def test_what_does_not_fit_is_refused(monkeypatch):
    with pytest.raises(fnn.errors.OptionError, match="process below the number of processes, 2"):
        run(lambda: 0, coordinator="127.0.0.1:1", processes=2, process=2)
    with pytest.raises(fnn.errors.OptionError, match="heartbeat"):
        run(lambda: 0, heartbeat=0)
    with pytest.raises(fnn.FnnError, match="main"):
        run(3)  # pyright: ignore[reportArgumentType]
    jax.devices()
    with pytest.raises(fnn.errors.InputError, match="started already"):
        run(lambda: 0, coordinator="127.0.0.1:1", processes=2, process=1)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    with pytest.raises(fnn.errors.InputError, match="started already"):
        run(lambda: 0)
    monkeypatch.setenv(PROCESSES, "four")
    with pytest.raises(fnn.errors.OptionError, match=f"{PROCESSES}, got four"):
        run(lambda: 0)


def test_with_one_process_there_is_nothing_to_compare():
    fnn.distributed.check_agreement({"a": np.ones(3), "key": jax.random.key(0)})
    assert agreement.in_any(True, None) and not agreement.in_any(False, None)


def test_facts_tell_values_shapes_and_kinds_apart():
    def facts(x):
        return agreement.facts_of({"x": x}, "tree")

    same = np.arange(6, dtype=np.float32)
    assert facts(same) == facts(same.copy())
    others = [same[::-1], same.astype(np.int32), same.reshape(2, 3), same + 1, 3.0, "text", None]
    assert len({str(facts(x)) for x in [same, *others]}) == 8
    one, two = (facts(jax.random.key(i)) for i in (0, 1))
    assert one[0] == two[0] and one[1] != two[1]
    mesh = jax.make_mesh((2, 4), ("data", "model"))
    cut = jax.device_put(same, jax.NamedSharding(mesh, jax.P("data")))
    assert list(facts(cut)[1]) == ["tree/x [0:3]", "tree/x [3:6]"]  # once for each slice


def test_gathered_bytes_come_back():
    for data in (b"", b"a", bytes(range(256)) * 5):
        assert agreement.gather(data) == [data]


def test_the_part_of_a_batch_is_that_of_the_devices():
    mesh = jax.make_mesh((8,), ("data",))
    assert part_of(jax.NamedSharding(mesh, jax.P("data")), 16) == (0, 1)
    assert part_of(jax.NamedSharding(mesh, jax.P()), 16) == (0, 1)


# --- the launcher


def launch(tmp_path, text, count=3, *arguments):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys, time, signal\nme = int(os.environ['JAX_PROCESS_ID'])\n" + text
    )
    command = [sys.executable, "-m", "fnn.distributed", "--processes", str(count)]
    root = str(pathlib.Path(__file__).parents[2])
    return subprocess.Popen(
        [*command, str(script), *arguments], env=os.environ | {"PYTHONPATH": root},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def gone(pids):
    """Whether processes end within a few seconds."""
    end = time.monotonic() + 5
    while time.monotonic() < end:
        if not any(pathlib.Path(f"/proc/{pid}").exists() for pid in pids):
            return True
        time.sleep(0.05)
    return False


def test_the_launcher_marks_lines_and_passes_on_arguments_and_status(tmp_path):
    text = """
print(os.environ['JAX_NUM_PROCESSES'], sys.argv[1:], os.environ['JAX_LOCAL_DEVICE_IDS'])
print('aside', file=sys.stderr)
sys.exit(3 if me == 1 else 0)
"""
    process = launch(tmp_path, text, 3, "--epochs", "4")
    out, error = process.communicate(timeout=60)
    assert sorted(out.splitlines()) == [f"[{i}] 3 ['--epochs', '4'] {i}" for i in range(3)]
    assert error.count("aside") == 3 and "process 1 ended with status 3" in error
    assert process.returncode == 3


@pytest.mark.skipif(not pathlib.Path("/proc").exists(), reason="looks at /proc")
@pytest.mark.full
def test_processes_end_when_their_launcher_is_killed(tmp_path):
    text = """
import fnn
def main():
    print(os.getpid(), flush=True)
    time.sleep(100)
fnn.distributed.run(main)
"""
    process = launch(tmp_path, text, 2)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(2)]
    process.kill()
    process.communicate()
    assert gone([line.split()[1] for line in lines])


def test_the_launcher_leaves_no_process_behind(tmp_path):
    stay = """
import subprocess
child = subprocess.Popen(['sleep', '100'])  # in the same group
print(os.getpid(), child.pid, flush=True)
if me == 1 and sys.argv[1:]:
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(100)
"""
    process = launch(tmp_path, stay, 2, "dies")
    out, error = process.communicate(timeout=60)
    assert "process 1 was ended by SIGKILL" in error and process.returncode == 128 + 9
    assert gone([pid for line in out.splitlines() for pid in line.split()[1:]])
    process = launch(tmp_path, stay, 2)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(2)]
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 128 + 15
    process.communicate()
    assert gone([pid for line in lines for pid in line.split()[1:]])
