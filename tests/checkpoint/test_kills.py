"""Kills at random moments: what was acknowledged is there, and the run ends as if unkilled."""

import os
import pathlib
import subprocess
import sys

import pytest

QUICK = "FNN_QUICK" in os.environ
SCRIPT = pathlib.Path(__file__).parent / "kills.py"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.cpu
def test_a_killed_run_ends_bitwise_as_if_it_had_lived(tmp_path):
    kills, epochs = (2, 12) if QUICK else (200, 24)
    root = SCRIPT.parents[2]
    flags = [flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag]
    environ = os.environ | {
        "XLA_FLAGS": " ".join(flags),  # one device
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "PYTHONPATH": str(root),
    }
    (tmp_path / "runs").mkdir()
    command = [sys.executable, str(SCRIPT), str(tmp_path / "runs"), str(kills), "1", str(epochs)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(f"{kills} kills")
