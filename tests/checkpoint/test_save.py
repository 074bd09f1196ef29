"""Round trips of every kind of leaf, byte by byte; what a kill, a full disk and damage leave."""

import collections
import json
import os
import pathlib
import random
import shutil
import typing
import zlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import fnn
from fnn import checkpoint, errors
from tests.optim.table import ROWS
from tests.support import asarray

QUICK = "FNN_QUICK" in os.environ


class Pair(typing.NamedTuple):
    first: typing.Any
    second: typing.Any


def bits(leaf):
    if leaf is None or isinstance(leaf, (bool, int, float, str)):
        return type(leaf).__name__, repr(leaf)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return str(leaf.dtype), leaf.shape, np.asarray(jax.random.key_data(leaf)).tobytes()
    return type(leaf).__name__, str(leaf.dtype), leaf.shape, np.asarray(leaf).tobytes()


def assert_same(one, two):
    leaves = [jax.tree.leaves(tree, is_leaf=lambda x: x is None) for tree in (one, two)]
    assert jax.tree.structure(one) == jax.tree.structure(two)
    assert list(map(bits, leaves[0])) == list(map(bits, leaves[1]))


def tree_of_everything():
    dtypes = ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "float16", "bfloat16",
              "float32", "complex64", "int4", "uint4", "float8_e4m3fn", "float8_e5m2",
              "float8_e4m3b11fnuz"]  # fmt: skip
    values = np.arange(6).reshape(2, 3) % 5
    return {
        "dtypes": {name: asarray(values).astype(name) for name in dtypes},
        "special": asarray([jnp.nan, -0.0, jnp.inf, 1e-45], jnp.float32),
        "empty": jnp.zeros((0, 3)),
        "none": None,
        "scalar": jnp.float32(3.5),
        "key": jax.random.key(3),
        "keys": jax.random.split(jax.random.key(1, impl="rbg"), 4),
        "pair": Pair(jnp.ones(2), (jnp.zeros(1), [jnp.int32(4)])),
        "a/b~c": {"d": jnp.ones(1), "d#1": jnp.zeros(1)},
        "numpy": np.float64(0.1),
        "wide": np.arange(3, dtype=np.int64),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "python": [True, 3, 2**70, 0.1, float("inf"), "text"],
    }


@pytest.mark.parametrize("wait", [True, False])
def test_every_leaf_comes_back_byte_by_byte(tmp_path, wait):
    tree = tree_of_everything()
    checkpoint.save(tmp_path / "one", tree, meta={"run": 3}, wait=wait).wait()
    assert_same(checkpoint.restore(tmp_path / "one", tree), tree)
    contents = checkpoint.inspect(tmp_path / "one")
    assert contents.meta == {"run": 3} and contents.made_by["jax"] == jax.__version__
    assert contents.leaves["a~1b~0c/d"].shape == (1,) and contents.leaves["python/5"] == "text"
    assert "dtypes/bfloat16" in str(contents)
    plain = checkpoint.restore(tmp_path / "one")
    assert plain["pair"]["second"]["1"]["0"] == 4 and plain["python"]["2"] == 2**70
    assert plain["dtypes"]["int4"].dtype == ml_dtypes.int4


def test_structs_are_enough(tmp_path):
    tree = {"w": jnp.ones((2, 3), jnp.bfloat16), "key": jax.random.key(0)}
    checkpoint.save(tmp_path / "one", tree)
    structs = jax.eval_shape(lambda: tree)
    assert_same(checkpoint.restore(tmp_path / "one", structs), tree)


def test_other_readers_read_the_arrays(tmp_path):
    """By the format's definition: a length, a JSON header, the bytes."""
    checkpoint.save(tmp_path / "one", {"w": jnp.arange(6.0).reshape(2, 3), "n": jnp.int32(7)})
    raw = (tmp_path / "one" / "arrays-00000.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    start, stop = header["w"]["data_offsets"]
    values = np.frombuffer(raw[8 + length :][start:stop], "<f4").reshape(header["w"]["shape"])
    np.testing.assert_array_equal(values, [[0, 1, 2], [3, 4, 5]])
    assert header["n"]["dtype"] == "I32" and header["w"]["dtype"] == "F32"


def test_a_part_reads_only_its_bytes(tmp_path):
    tree = {"params": {"w": jnp.ones(3)}, "opt_state": (jnp.full(3, 2.0),)}
    checkpoint.save(tmp_path / "one", tree)
    file = tmp_path / "one" / "arrays-00000.safetensors"
    raw = bytearray(file.read_bytes())
    place = raw.index(np.full(3, 2.0, np.float32).tobytes())
    raw[place] ^= 1
    file.write_bytes(raw)
    assert_same(checkpoint.restore(tmp_path / "one", tree["params"], at="params"), tree["params"])
    with pytest.raises(errors.CheckpointError, match="opt_state/0"):
        checkpoint.restore(tmp_path / "one", tree)


@pytest.mark.parametrize("name", ROWS)
def test_the_state_of_every_optimizer(name, tmp_path):
    row = ROWS[name]
    state = row.build(**row.usual).init({"a": jnp.ones((2, 3)), "b": jnp.ones(4)})
    checkpoint.save(tmp_path / "one", state)
    assert_same(checkpoint.restore(tmp_path / "one", state), state)


def mesh(count):
    return Mesh(np.array(jax.devices()[:count]), "d")


@pytest.mark.cpu
def test_other_meshes_read_it(tmp_path):
    values = {"w": np.arange(64.0, dtype=np.float32).reshape(8, 8), "b": np.arange(8)}
    eight = {"w": PartitionSpec("d"), "b": PartitionSpec()}
    four = {"w": PartitionSpec(None, "d"), "b": PartitionSpec("d")}
    split = jax.tree.map(lambda s: NamedSharding(mesh(8), s), eight)
    checkpoint.save(tmp_path / "8", jax.device_put(values, split))
    sharded = jax.tree.map(lambda s: NamedSharding(mesh(4), s), four)
    like = jax.eval_shape(lambda: jax.tree.map(asarray, values))
    on_four = checkpoint.restore(tmp_path / "8", like, shardings=sharded)
    assert on_four["w"].sharding == sharded["w"]
    checkpoint.save(tmp_path / "4", on_four)
    on_one = checkpoint.restore(tmp_path / "4", like)
    for name in values:
        assert np.asarray(on_one[name]).tobytes() == np.asarray(asarray(values[name])).tobytes()
    again = checkpoint.restore(tmp_path / "4", on_four)  # where like has it
    assert again["w"].sharding == sharded["w"]


def test_sixty_four_bits_are_not_narrowed(tmp_path):
    with jax.enable_x64(True):
        checkpoint.save(tmp_path / "one", {"w": jnp.ones(2, jnp.float64)})
        like = jax.eval_shape(lambda: {"w": jnp.ones(2, jnp.float64)})
    with pytest.raises(errors.DtypeError, match="x64"):
        checkpoint.restore(tmp_path / "one", like)
    kept = checkpoint.restore(tmp_path / "one", {"w": np.zeros(2)})["w"]
    assert kept.dtype == np.float64


DIFFERENT = {
    "missing": ({"a": jnp.ones(2), "c": jnp.ones(1)}, "no c"),
    "extra": ({}, "also a"),
    "shape": ({"a": jnp.ones(3)}, r"a \(2,\) float32 for \(3,\) float32"),
    "dtype": ({"a": jnp.ones(2, jnp.bfloat16)}, r"a \(2,\) float32 for \(2,\) bfloat16"),
    "none": ({"a": None}, "for null"),
    "key": ({"a": jax.random.key(0)}, "key<fry>"),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_another_tree_is_refused_by_path(what, tmp_path):
    checkpoint.save(tmp_path / "one", {"a": jnp.ones(2)})
    like, text = DIFFERENT[what]
    with pytest.raises(errors.CheckpointError, match=text):
        checkpoint.restore(tmp_path / "one", like)


def test_bytes_of_the_other_order_are_the_same_numbers(tmp_path):
    values = np.arange(3, dtype=">f4"), np.array([1, 2], ">i8")
    checkpoint.save(tmp_path / "one", values)
    one, two = checkpoint.restore(tmp_path / "one", values)
    assert one.tolist() == [0, 1, 2] and two.tolist() == [1, 2]


def test_a_url_is_not_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("file:///x", "memory://x/y", pathlib.Path("http://x/y")):
        with pytest.raises(errors.OptionError, match="gs:// or s3://"):
            checkpoint.save(path, {"w": jnp.ones(2)})
    assert not any(tmp_path.iterdir())


def test_two_leaves_of_one_path_are_refused(tmp_path):
    checkpoint.save(tmp_path / "one", {"1": 2.0})
    with pytest.raises(errors.InputError, match="one leaf of like for each path"):
        checkpoint.restore(tmp_path / "one", collections.OrderedDict([(1, 2.0), ("1", 3.0)]))


def test_a_manifest_of_garbage_is_named_as_such(tmp_path):
    checkpoint.save(tmp_path / "one", {"w": 2.0})
    for text in (b"", b"1\n{}", b"[]\n{}", b"null\nnull", b"[" * 100_000 + b"\n"):
        (tmp_path / "one" / "manifest.json").write_bytes(text)
        with pytest.raises(errors.CheckpointError, match="manifest.json") as caught:
            checkpoint.restore(tmp_path / "one")
        assert len(str(caught.value)) < 300 + len(str(tmp_path))


def test_what_cannot_be_saved_is_refused(tmp_path):
    checkpoint.save(tmp_path / "one", {"a": jnp.ones(2)})
    with pytest.raises(errors.CheckpointError, match="does not exist"):
        checkpoint.save(tmp_path / "one", {})
    with pytest.raises(errors.InputError, match="f: *|at f"):
        checkpoint.save(tmp_path / "two", {"f": object()})
    with pytest.raises(errors.DtypeError, match="numbers"):
        checkpoint.save(tmp_path / "two", {"f": np.array(["a"])})
    with pytest.raises(errors.InputError, match="JSON"):
        checkpoint.save(tmp_path / "two", {}, meta={"f": object()})
    with pytest.raises(errors.CheckpointError, match="nothing"):
        checkpoint.restore(tmp_path / "none", {})
    with pytest.raises(errors.CheckpointError, match="only a"):
        checkpoint.restore(tmp_path / "one", at="b")
    with pytest.raises(errors.CheckpointError, match="only a"):
        checkpoint.restore(tmp_path / "one", {"c": 1}, at="b")
    with pytest.raises(errors.InputError, match="at f, which jit has not computed"):
        jax.jit(lambda x: checkpoint.save(tmp_path / "two", {"f": x}) and x)(jnp.ones(3))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one"]


def test_a_part_without_leaves_comes_back(tmp_path):
    """Such as the state of a network that has none: the files have no trace of it."""
    tree = {"params": {"w": jnp.ones(2)}, "state": {"dense": {}}, "opt_state": ()}
    checkpoint.save(tmp_path / "one", tree)
    assert checkpoint.restore(tmp_path / "one", tree["state"], at="state") == {"dense": {}}
    assert checkpoint.restore(tmp_path / "one", (), at="opt_state") == ()
    assert_same(checkpoint.restore(tmp_path / "one", tree), tree)


def test_large_arrays_are_read_in_pieces_and_taken_without_a_copy(tmp_path):
    values = np.random.default_rng(0).standard_normal(2**18 + 3, dtype=np.float32)  # > 1 MiB
    checkpoint.save(tmp_path / "one", {"w": asarray(values), "z": np.zeros((0, 2))})
    whole = checkpoint.restore(tmp_path / "one")
    assert whole["w"].tobytes() == values.tobytes() and whole["z"].shape == (0, 2)
    assert whole["w"].ctypes.data % 64 == 0 and whole["w"].flags.writeable
    like = {"w": jnp.zeros(values.shape), "z": np.zeros((0, 2))}
    ours = checkpoint.restore(tmp_path / "one", like)["w"]
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    for _ in range(3):  # what a step that donates writes into is its own
        ours = add(ours)
    again = checkpoint.restore(tmp_path / "one", like)["w"]
    assert np.asarray(ours).tobytes() == (((values + 1) + 1) + 1).tobytes()
    assert np.asarray(again).tobytes() == values.tobytes()
    file = tmp_path / "one" / "arrays-00000.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1  # in the second piece
    file.write_bytes(raw)
    with pytest.raises(errors.CheckpointError, match="crc32"):
        checkpoint.restore(tmp_path / "one")


def corrupted(rng, folder):
    """Change one file in one of six ways; False if it is as before."""
    file = rng.choice(sorted(folder.iterdir()))
    raw = file.read_bytes()
    at = rng.randrange(len(raw))
    kind = rng.choice(["flip", "truncate", "insert", "delete", "append", "zero"])
    if kind == "flip":
        new = raw[:at] + bytes([raw[at] ^ (1 << rng.randrange(8))]) + raw[at + 1 :]
    elif kind == "truncate":
        new = raw[:at]
    elif kind == "insert":
        new = raw[:at] + bytes([rng.randrange(256)]) + raw[at:]
    elif kind == "delete":
        if rng.random() < 0.2:
            file.unlink()
            return True
        new = raw[:at] + raw[at + 1 + rng.randrange(8) :]
    elif kind == "append":
        new = raw + bytes(rng.randrange(1, 9))
    else:
        new = raw[:at] + bytes(min(64, len(raw) - at)) + raw[at + 64 :]
    file.write_bytes(new)
    return new != raw


def test_no_damage_is_silent(tmp_path):
    tree = {
        "w": jax.random.normal(jax.random.key(0), (20, 10)),
        "n": jnp.arange(50),
        "b": jnp.ones(3, jnp.bfloat16),
    }
    checkpoint.save(tmp_path / "good", tree)
    rng, damaged = random.Random(0), 0
    for _ in range(100 if QUICK else 1000):
        shutil.rmtree(tmp_path / "bad", ignore_errors=True)
        shutil.copytree(tmp_path / "good", tmp_path / "bad")
        if corrupted(rng, tmp_path / "bad"):
            damaged += 1
            with pytest.raises(errors.CheckpointError):
                checkpoint.restore(tmp_path / "bad", tree)
    assert damaged > 90


def with_manifest(folder, change):
    """A checkpoint whose manifest claims something else, with the right sum."""
    import hashlib

    file = folder / "manifest.json"
    manifest = json.loads(file.read_text().split("\n", 1)[1])
    change(manifest)
    text = json.dumps(manifest)
    first = json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest()})
    file.write_text(f"{first}\n{text}")


@pytest.mark.parametrize("claim", [[10**12], [2, 10**9], [-2], [10**30]])
def test_a_false_claim_takes_no_memory(claim, tmp_path):
    checkpoint.save(tmp_path / "one", {"w": jnp.ones(2)})

    def change(manifest):
        manifest["leaves"][0][1]["shape"] = claim
        manifest["leaves"][0][2][0]["shape"] = claim
        manifest["leaves"][0][2][0]["start"] = [0] * len(claim)

    with_manifest(tmp_path / "one", change)
    with pytest.raises(errors.CheckpointError):
        checkpoint.restore(tmp_path / "one")


def test_a_failing_disk_raises_at_wait_or_at_the_next_call(tmp_path, monkeypatch):
    keeper = checkpoint.Keeper(tmp_path)
    keeper.save({"w": jnp.ones(2)}, 1).wait()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    saving = keeper.save({"w": jnp.ones(2)}, 2)
    with pytest.raises(OSError, match="No space"):
        saving.wait()
    keeper._saving = None
    saving = keeper.save({"w": jnp.ones(2)}, 3)
    with pytest.raises(OSError, match="No space"):
        keeper.save({"w": jnp.ones(2)}, 4)  # the next call raises
    monkeypatch.undo()
    assert keeper.steps() == [1] and keeper.restore({"w": jnp.zeros(2)})["w"].tolist() == [1, 1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-1"]


def test_crc32_is_that_of_the_bytes(tmp_path):
    checkpoint.save(tmp_path / "one", {"w": jnp.arange(3.0)})
    manifest = json.loads((tmp_path / "one" / "manifest.json").read_text().split("\n", 1)[1])
    (names, entry, slices) = manifest["leaves"][0]
    assert names == ["w"] and entry == {"dtype": "float32", "shape": [3]}
    assert slices[0]["crc32"] == zlib.crc32(np.arange(3, dtype="<f4").tobytes())


# Written by earlier versions; every later one must read them.
GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.mark.parametrize("folder", sorted(GOLDEN.glob("*-params")), ids=lambda path: path.name)
def test_golden_params(folder):
    tree = checkpoint.restore(folder)
    np.testing.assert_array_equal(tree["params"]["dense1"]["kernel"], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(tree["params"]["dense1"]["bias"].astype("f4"), [1, 0.5, -2])
    assert jax.random.key_data(tree["key"]).tolist() == [0, 42]
    assert tree["step"] == 7 and tree["nothing"] is None
    assert checkpoint.inspect(folder).meta == {"note": "golden"}
    assert fnn.tree.to_paths(tree["params"]).keys() == {"dense1/kernel", "dense1/bias"}


@pytest.mark.parametrize("folder", sorted(GOLDEN.glob("*-every-leaf")), ids=lambda path: path.name)
def test_golden_leaves_of_every_kind(folder):
    tree = tree_of_everything()
    assert_same(checkpoint.restore(folder, tree), tree)
