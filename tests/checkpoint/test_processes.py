"""Two processes save one tree in one folder; one process reads it."""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from fnn import checkpoint

PROCESS = pathlib.Path(__file__).with_name("processes.py")


@pytest.mark.cpu
def test_two_processes_save_one_tree(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, str(PROCESS)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"}
    processes = [
        subprocess.Popen(
            [*command, str(me), port, str(tmp_path)], env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for me in (0, 1)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all("failed failed done 1 3" in text for text in said), said
    assert not (tmp_path / "failed0").exists() and not (tmp_path / "failed1").exists()
    arrays = [f"arrays-0000{i}.safetensors" for i in (0, 1)]
    assert sorted(os.listdir(tmp_path / "one")) == [*arrays, "manifest.json"]
    assert sorted(os.listdir(tmp_path / "keeper")) == ["step-1", "step-3"]
    mesh = jax.make_mesh((8,), ("d",))
    sharding = jax.NamedSharding(mesh, jax.P("d"))
    values = np.arange(32, dtype=np.float32).reshape(8, 4)
    plain = checkpoint.restore(tmp_path / "one")
    np.testing.assert_array_equal(plain["w"], values)
    np.testing.assert_array_equal(plain["whole"], 2 * values)
    w = jax.ShapeDtypeStruct((8, 4), np.float32)
    like = {"w": w, "whole": w, "n": np.zeros(3, int), "step": 0}
    back = checkpoint.restore(tmp_path / "one", like, shardings=sharding)
    assert back["w"].sharding == sharding
    np.testing.assert_array_equal(back["w"], values)
    # Each process writes half of what is sharded, and one of them what is not.
    sizes = [(tmp_path / "one" / name).read_bytes().count(values[7].tobytes()) for name in arrays]
    assert sizes == [0, 1]
