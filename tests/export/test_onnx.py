"""ONNX files in onnxruntime against the networks: `make test-onnx`."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.core.errors import ArtifactError, InputError
from tests.export.networks import (
    NETWORKS,
    apart_in_onnx,
    initialized,
    network,
    onnx_session,
)

pytest.importorskip("jax2onnx", reason="runs in an environment of its own: make test-onnx")
pytestmark = pytest.mark.filterwarnings("default")  # of the converter's own

IMAGE, SEQUENCE = ("batch", 8, 8, 2), ("batch", "time", 4)
SMALL = {
    "CNN": (
        fnn.serial(
            fnn.conv(4, (3, 3)), fnn.batch_norm(), jax.nn.relu, fnn.max_pool((2, 2)),
            fnn.conv(4, (3, 3), strides=2), fnn.flatten(3), fnn.dense(3),
        ),
        IMAGE,
    ),
    "overlapping pools": (
        fnn.serial(
            fnn.max_pool((3, 3), strides=2, padding="SAME"), fnn.conv(3, (1, 1)),
            fnn.min_pool((3, 3), strides=1), fnn.avg_pool((2, 2), strides=1, padding="SAME"),
        ),
        IMAGE,
    ),
    "depthwise": (fnn.serial(fnn.depthwise_conv((3, 3)), fnn.conv_transpose(2, (2, 2))), IMAGE),
    "LSTM": (fnn.serial(fnn.lstm(5), fnn.dense(2)), SEQUENCE),
    "GRU, both ways": (fnn.bidirectional(fnn.cells.gru(3)), SEQUENCE),
    "transformer": (
        fnn.repeat(fnn.transformer_block(4, 2, causal=True, rotary=10.0, norm=fnn.rms_norm), 2),
        SEQUENCE,
    ),
}  # fmt: skip
REFUSED = {"dryrun": r"^embed: .*bfloat16"}


def written(tmp_path, net, shapes, **options):
    params, state = initialized(net, shapes)
    fnn.export.onnx(tmp_path / "net.onnx", net, params, state, shapes, **options)
    return onnx_session(tmp_path / "net.onnx"), params, state


@pytest.mark.parametrize("name", SMALL)
def test_a_file_computes_what_the_network_does(tmp_path, name):
    net, shapes = SMALL[name]
    session, params, state = written(tmp_path, net, shapes)
    assert apart_in_onnx(session, net, params, state, shapes) < 5e-6
    (given,) = session.get_inputs()
    assert given.name == "x" and given.shape[0] == "batch"
    assert [out.name for out in session.get_outputs()] == ["y"]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_example_or_the_layer_that_refuses(tmp_path, name):
    with jax.numpy_dtype_promotion("standard"):
        net, shapes, options = network(name)
        constraints = options.get("constraints", ())
        if name in REFUSED:
            with pytest.raises(InputError, match=REFUSED[name]):
                written(tmp_path, net, shapes, constraints=constraints)
            return
        session, params, state = written(tmp_path, net, shapes, constraints=constraints)
        assert apart_in_onnx(session, net, params, state, shapes) < 5e-6


def test_what_cannot_be_converted_is_named(tmp_path):
    def strange(x):
        return jax.pure_callback(np.sin, x, x, vmap_method="expand_dims")

    @fnn.compose(a=fnn.dense(3), b=fnn.serial(dense=fnn.dense(3), strange=strange))
    def net(f, x):
        return f.b(f.a(x))

    with pytest.raises(InputError, match=r"^b.*pure_callback"):
        written(tmp_path, net, ("batch", 4))
    assert not list(tmp_path.iterdir())


def test_an_output_that_is_wrong_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("fnn.export.onnx_file.APART", -1.0)
    with pytest.raises(InputError, match="apart"):
        written(tmp_path, fnn.dense(2), ("batch", 4))
    assert not list(tmp_path.iterdir())


def test_examples_and_paths(tmp_path):
    net, x = fnn.embedding(7, 3), jax.ShapeDtypeStruct(("batch", "time"), jnp.int32)
    examples = np.array([[6, 5, 4]], np.int32)
    _, params, state = written(tmp_path, net, x, examples=examples)
    with pytest.raises(ArtifactError, match="does not exist"):
        fnn.export.onnx(tmp_path / "net.onnx", net, params, state, x)


EDGE = """
import sys, numpy as np, onnxruntime
def rss():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 1e6
before = rss()
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
options.enable_cpu_mem_arena = False
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
x = np.zeros((1, 28, 28, 1), np.float32)
for _ in range(50):
    session.run(None, {"x": x})
print(rss() - before)
"""


def test_an_edge_device_with_one_thread_needs_less_than_50_megabytes(tmp_path):
    net, shapes, _ = network("mnist_cnn")
    written(tmp_path, net, shapes)
    command = [sys.executable, "-c", EDGE, str(tmp_path / "net.onnx")]
    grown = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    print(f"{grown:.1f} MB")
    assert grown < 50
