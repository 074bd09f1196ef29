"""Disks that are full, read-only or of someone else: an error, and what was there stays."""

import os
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parent / "full.py"
ALONE = ["unshare", "--map-root-user", "--mount"]  # may mount, in a namespace of its own


def may_mount():
    try:
        return subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not may_mount(), reason="needs a mount namespace")
def test_full_and_read_only(tmp_path):
    environ = os.environ | {"PYTHONPATH": str(SCRIPT.parents[2])}
    command = [*ALONE, sys.executable, str(SCRIPT), str(tmp_path)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.stdout == "done\n", done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_without_permission(tmp_path):
    """A folder that may be read and not written, as a user who is not root."""
    code = """
import os, sys
import numpy as np
from fnn import checkpoint
run, root = sys.argv[1], os.getuid() == 0
keeper = checkpoint.Keeper(run)
keeper.save({"w": np.ones(3)}, 1).wait()
keeper.restore()  # imports what another user may not read
os.chmod(run, 0o555)
if root:
    os.setuid(65534)
try:
    keeper.save({"w": np.ones(3)}, 2).wait()
except PermissionError:
    print(keeper.steps(), keeper.restore()["w"].sum())
"""
    folder = tmp_path / "run"
    for above in folder.parents:  # pytest's are for the owner alone
        if above.stat().st_uid == os.getuid() and not above.stat().st_mode & 0o001:
            above.chmod(above.stat().st_mode | 0o011)
    command = [sys.executable, "-c", code, str(folder)]
    environ = os.environ | {"PYTHONPATH": str(SCRIPT.parents[2])}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.stdout == "[1] 3.0\n", done.stderr
