import contextlib
import json
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

import fnn
from fnn.serve.__main__ import main

from .support import connect, get, meters, post, read, stand_in


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    """A folder with a network of which NumPy computes the same, and its params."""
    path = tmp_path_factory.mktemp("artifact") / "net"
    net = fnn.dense(2)
    params, state = net.init(jax.random.key(0), (1, 3))
    fnn.export.save(path, net, params, state, ("batch", 3), platforms=["cpu"])
    return path, jax.tree.map(np.asarray, params)


def start(stack, *arguments):
    """The command, which ends with the stack, and the address that it prints."""
    command = [sys.executable, "-m", "fnn.serve", *map(str, arguments), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    stack.enter_context(process)
    stack.callback(process.kill)
    line = process.stdout.readline()
    assert line.startswith("serving at http://127.0.0.1:"), line + process.stderr.read()
    return process, line.removeprefix("serving at ").strip()


def test_a_signal_ends_the_command_after_the_answers(artifact):
    path, params = artifact
    body, want = post({"x": [1, 2, 3]}), np.array([1, 2, 3]) @ params["kernel"] + params["bias"]
    with contextlib.ExitStack() as stack:
        process, address = start(stack, path, "--max-batch", 2, "--timeout", 5, "--queue", 3)
        assert json.loads(get(address, "/manifest").body)["predicts"]["rows"] == [1, 2]
        idle, slow, asking = (stack.enter_context(connect(address)) for _ in range(3))
        slow.sendall(body[:-3])
        asking.sendall(body)
        np.testing.assert_allclose(json.loads(read(asking).body)["y"], want, rtol=1e-5)
        process.send_signal(signal.SIGTERM)
        assert read(idle).status == read(asking).status == 0
        with pytest.raises(OSError):
            connect(address)
        slow.sendall(body[-3:])
        assert read(slow).status == 200
        assert process.wait(10) == 0
        assert process.stdout.read() == process.stderr.read() == ""


def test_what_cannot_be_served_is_said_in_one_line(artifact, tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert main([str(artifact[0]), "--queue", "0"]) == 2
    assert main([str(artifact[0]), "--size", "time=3"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all(line.startswith("python -m fnn.serve: ") for line in lines)


def test_a_port_that_is_taken_is_an_error():
    with fnn.serve.running(stand_in(), max_batch=1) as address:
        port = int(address.rsplit(":", 1)[1])
        with pytest.raises(OSError, match="in use"):
            with fnn.serve.running(stand_in(), max_batch=1, port=port):
                pass
        assert meters(address)["fnn_batch_rows_count"] == 0


def test_without_the_extra_the_error_names_it(monkeypatch):
    for module in ("starlette.applications", "prometheus_client", "uvicorn"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            with pytest.raises(ImportError, match=r"pip install 'fnn\[serve\]'"):
                with fnn.serve.running(stand_in(), max_batch=1):
                    pass
