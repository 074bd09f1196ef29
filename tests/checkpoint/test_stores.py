"""Checkpoints in a bucket: a server on this machine that speaks Google Cloud Storage's protocol.

Needs the packages of `make test-orbax`.
"""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fnn import checkpoint, errors
from fnn.checkpoint.stores import bit_sum
from tests.checkpoint.test_save import assert_same, tree_of_everything
from tests.optim.table import ROWS
from tests.support import asarray

try:
    import gcsfs  # noqa: F401, which orbax needs
    import orbax.checkpoint
    from gcp_storage_emulator.server import create_server
except ImportError:
    pytestmark = pytest.mark.skip(reason="needs orbax-checkpoint, gcsfs and gcp-storage-emulator")
else:
    # What orbax, gcsfs and jax warn of themselves is not ours.
    pytestmark = pytest.mark.filterwarnings("ignore")

MESH = Mesh(np.array(jax.devices()[:8]), "d")


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """Where the server keeps its files."""
    return tmp_path_factory.mktemp("bucket")


@pytest.fixture(scope="module")
def bucket(disk):
    server = create_server("localhost", 0, data_dir=str(disk), default_bucket="fnn")
    server.start()
    address = f"http://localhost:{server._api._httpd.server_address[1]}"
    names = {"STORAGE_EMULATOR_HOST": address, "TENSORSTORE_GCS_HTTP_URL": address}
    os.environ.update(names)
    yield "gs://fnn"
    for name in names:
        del os.environ[name]
    server.stop()


@pytest.mark.parametrize("wait", [True, False])
def test_every_leaf_comes_back_byte_by_byte(bucket, wait):
    tree, url = tree_of_everything(), f"{bucket}/everything-{wait}"
    checkpoint.save(url, tree, meta={"run": 3}, wait=wait).wait()
    assert_same(checkpoint.restore(url, tree), tree)
    contents = checkpoint.inspect(url)
    assert contents.meta == {"run": 3} and contents.made_by["jax"] == jax.__version__
    assert contents.leaves["a~1b~0c/d"].shape == (1,) and contents.leaves["python/5"] == "text"
    plain = checkpoint.restore(url)
    assert plain["python"]["5"] == "text" and plain["empty"].shape == (0, 3)
    np.testing.assert_array_equal(plain["wide"], np.arange(3))


@pytest.mark.parametrize("name", ["adafactor", "shampoo", "soap"])
def test_states_with_arrays_without_elements(bucket, name):
    params = {"w": jnp.ones((3, 4)), "b": jnp.ones(3)}
    state = ROWS[name].build(**ROWS[name].usual).init(params)
    checkpoint.save(f"{bucket}/{name}", state)
    assert_same(checkpoint.restore(f"{bucket}/{name}", jax.eval_shape(lambda: state)), state)


def test_a_part_and_another_mesh(bucket):
    w = np.arange(32, dtype=np.float32).reshape(8, 4)
    rows = jax.device_put(w, NamedSharding(MESH, PartitionSpec("d")))
    url = f"{bucket}/sharded"
    checkpoint.save(url, {"params": {"w": rows}, "step": 4})
    small = NamedSharding(Mesh(MESH.devices[:4], "d"), PartitionSpec(None, "d"))
    back = checkpoint.restore(
        url, {"w": jax.eval_shape(lambda: rows)}, at="params", shardings=small
    )
    assert back["w"].sharding == small
    np.testing.assert_array_equal(back["w"], w)
    assert checkpoint.restore(url, {"w": rows}, at="params")["w"].sharding == rows.sharding


def test_what_is_saved_in_the_background_may_change(bucket):
    w, donated = np.ones(1000), jnp.ones(1000)
    saving = checkpoint.save(f"{bucket}/changed", {"w": w, "donated": donated}, wait=False)
    w[:] = 0
    jax.jit(lambda x: x + 1, donate_argnums=0)(donated)
    saving.wait()
    back = checkpoint.restore(f"{bucket}/changed")
    assert back["w"].sum() == back["donated"].sum() == 1000


def test_paths_of_pathlib_and_numpy_scalars(bucket):
    tree = {"yes": np.bool_(True), "big": np.arange(3, dtype=">f4")}
    checkpoint.save(pathlib.Path(f"{bucket}/plain"), tree)
    back = checkpoint.restore(f"{bucket}/plain", tree)
    assert back["yes"] and back["big"].tolist() == [0, 1, 2]


def test_a_script_that_does_not_wait_ends(bucket):
    code = "from fnn import checkpoint; checkpoint.save('gs://fnn/end', {'w': 2.0}, wait=False)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert checkpoint.restore(f"{bucket}/end") == {"w": 2.0}


def test_other_readers_read_it_by_path(bucket):
    checkpoint.save(f"{bucket}/others", {"params": {"w": jnp.arange(3)}})
    reader = orbax.checkpoint.PyTreeCheckpointer()
    assert reader.restore(f"{bucket}/others/arrays")["params/w"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", ["float32", "bool", "int4", "complex64", "bfloat16"])
def test_the_sum_is_that_of_the_bytes(name):
    values = (np.random.default_rng(0).integers(0, 5, (8, 3, 2)) - 2).astype(jnp.dtype(name))
    wide = values.astype("f4") if name == "int4" else values
    data = np.frombuffer(wide.tobytes(), np.uint8)
    wanted = sum(int(byte) * (2 * i + 1) for i, byte in enumerate(data)) % 2**32
    rows = jax.device_put(values, NamedSharding(MESH, PartitionSpec("d")))
    assert int(bit_sum(values)) == int(bit_sum(asarray(values))) == int(bit_sum(rows)) == wanted


def test_errors_name_the_url(bucket):
    url = f"{bucket}/errors"
    checkpoint.save(url, {"w": jnp.ones(3), "step": 1})
    with pytest.raises(errors.CheckpointError, match="does not exist"):
        checkpoint.save(url, {"w": jnp.ones(3)})
    with pytest.raises(errors.CheckpointError, match=r"w \(3,\) float32 for \(4,\) float32"):
        checkpoint.restore(url, {"w": jnp.ones(4), "step": 0})
    with pytest.raises(errors.CheckpointError, match="nothing"):
        checkpoint.restore(f"{bucket}/absent", {"w": jnp.ones(4)})
    with pytest.raises(errors.OptionError, match="a directory"):
        checkpoint.Keeper(url)


def test_damage_is_not_silent(bucket, disk):
    url, tree = f"{bucket}/damaged", {"w": jnp.arange(4000.0), "step": 1}
    checkpoint.save(url, tree)
    rng, refused = np.random.default_rng(0), 0
    for file in sorted((disk / ".cloudstorage/fnn/damaged").rglob("*")):
        if not file.is_file() or file.stat().st_size == 0:
            continue
        whole = file.read_bytes()
        for _ in range(5):
            hurt = bytearray(whole)
            hurt[rng.integers(len(whole))] ^= 1 << rng.integers(8)
            file.write_bytes(hurt)
            try:
                assert_same(checkpoint.restore(url, tree), tree)
            except errors.CheckpointError:
                refused += 1
        file.write_bytes(whole)
    assert refused > 5
    assert_same(checkpoint.restore(url, tree), tree)
