"""Damaged and hostile artifacts: one error, no code run, no memory taken."""

import contextlib
import copy
import hashlib
import json
import os
import random
import shutil
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.core.errors import ArtifactError
from fnn.export.files import read_manifest

QUICK = "FNN_QUICK" in os.environ
MANIFEST = "manifest.json"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """An artifact with all parts: two programs besides, statistics, preprocessing."""
    folder = tmp_path_factory.mktemp("artifacts") / "good"
    learner = fnn.serial(rnn=fnn.gru(3), head=fnn.dense(2))
    writer = fnn.cells.serial(rnn=fnn.cells.gru(3), head=fnn.dense(2))
    x = np.random.default_rng(0).normal(size=(4, 3, 2)).astype(np.float32)
    params, state = learner.init(jax.random.key(0), x)
    fnn.export.save(
        folder, learner, params, state, ("batch", "time", 2), examples=x, labels=["a", "b"],
        steps={"step": (writer, ("batch", 2))}, preprocessing=fnn.data.standardize(x),
        meta={"n": 1},
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Another artifact, of the same inputs."""
    folder = tmp_path_factory.mktemp("artifacts") / "other"
    net = fnn.dense(2)
    params, state = net.init(jax.random.key(1), (1, 2))
    fnn.export.save(folder, net, params, state, ("batch", "time", 2))
    return folder


def manifest_of(folder):
    return json.loads((folder / MANIFEST).read_text().split("\n", 1)[1])


def put(folder, manifest):
    """Write a manifest, or a text that stands for one, with the right sum."""
    text = manifest if isinstance(manifest, str) else json.dumps(manifest)
    first = json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest()})
    (folder / MANIFEST).write_text(f"{first}\n{text}")


def replaced(folder, name, data):
    """Other bytes in a file, and the manifest right about them."""
    (folder / name).write_bytes(data)
    manifest = manifest_of(folder)
    found = [*manifest["programs"].values(), manifest["files"].get(name, {})]
    for said in found:
        if said.get("file", name) == name:
            said |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    put(folder, manifest)


def spoil(rng, folder, other):
    """Damage one file at random; return whether it differs now."""
    file = rng.choice(sorted(folder.iterdir()))
    raw = file.read_bytes()
    at, kind = (
        rng.randrange(len(raw)),
        rng.choice(["flip", "cut", "insert", "zero", "swap", "lose"]),
    )
    if kind == "flip":
        new = raw[:at] + bytes([raw[at] ^ (1 << rng.randrange(8))]) + raw[at + 1 :]
    elif kind == "cut":
        new = raw[:at]
    elif kind == "insert":
        new = raw[:at] + bytes([rng.randrange(256)]) + raw[at:]
    elif kind == "zero":
        new = raw[:at] + bytes(min(64, len(raw) - at)) + raw[at + 64 :]
    elif kind == "swap":  # for another file of this artifact, or the same one of another
        files = [
            *folder.iterdir(),
            *[f for f in other.iterdir() if f.name not in (file.name, MANIFEST)],
        ]
        new = rng.choice(sorted(files)).read_bytes()
    else:
        file.unlink()
        return True
    file.write_bytes(new)
    return new != raw


def test_no_damage_is_silent(good, other, tmp_path):
    rng, damaged = random.Random(0), 0
    for _ in range(60 if QUICK else 1000):
        shutil.rmtree(tmp_path / "bad", ignore_errors=True)
        shutil.copytree(good, tmp_path / "bad")
        if spoil(rng, tmp_path / "bad", other):
            damaged += 1
            with pytest.raises(ArtifactError):
                fnn.export.load(tmp_path / "bad")
    assert damaged > 50


VALUES = [
    None, True, -1, 0, 1, 3, 2**62, 2**70, 10**12, 1e308, float("nan"), "", "x", "../../etc/passwd",
    "/etc/passwd", "params.safetensors", "object", "O", "S8", "V4", "f4,f4", "float64", "batch", [],
    {}, [[1], 2], ["params"], "a" * 10_000, [0] * 1000, {"type": "Chain", "fields": {}},
]  # fmt: skip


def mutate(rng, manifest):
    """Put something else at a random place of a manifest."""
    node = manifest
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = rng.choice(keys)
        deeper = isinstance(node[key], (dict, list)) and node[key]
        if not deeper or rng.random() < 0.15:
            if rng.random() < 0.2:
                del node[key]
            else:
                node[key] = copy.deepcopy(rng.choice(VALUES))
            return
        node = node[key]


def same(a, b):
    a, b = ({p: np.asarray(x) for p, x in fnn.tree.to_paths(tree).items()} for tree in (a, b))
    return a.keys() == b.keys() and all(a[p].tobytes() == b[p].tobytes() for p in a)


def test_hostile_manifests_with_right_sums(good, tmp_path):
    """A lie is refused when it is loaded, or changes nothing that the programs compute."""
    bad, rng = tmp_path / "bad", random.Random(1)
    shutil.copytree(good, bad)
    x = np.ones((2, 3, 2), np.float32)
    whole = fnn.export.load(good)
    wanted, refused, called, most = whole(x), 0, 0, 0
    for _ in range(40 if QUICK else 1000):
        manifest = manifest_of(good)
        for _ in range(rng.choice([1, 1, 3])):
            mutate(rng, manifest)
        put(bad, manifest)
        tracemalloc.start()
        try:
            artifact = fnn.export.load(bad)
        except ArtifactError:
            refused += 1
            continue
        finally:
            most = max(most, tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        if called < 20 and same(artifact.params, whole.params):  # each call compiles
            called += 1
            with contextlib.suppress(fnn.FnnError):
                np.testing.assert_array_equal(artifact(x), wanted)
    assert refused > 20 and called > 3 and most < 10e6


HUGE = [
    lambda m: m["arrays"][0].update(shape=[2**40]),
    lambda m: m["arrays"][0].update(shape=[0, 2**62], bytes=[0, 0]),
    lambda m: m["arrays"][0].update(shape=[-1]),
    lambda m: m["arrays"][0].update(dtype="object"),
    lambda m: m["arrays"].append(m["arrays"][-1]),
    lambda m: m["arrays"].extend([m["arrays"][0] | {"path": ["state", str(i)]} for i in range(9)]),
    lambda m: m["programs"]["apply"].update(size=2**40),
    lambda m: m["programs"]["apply"].update(file="../good/apply.jaxexport"),
    lambda m: m["programs"].update({"../apply": m["programs"]["apply"]}),
    lambda m: m["files"].update({"../../x": m["files"]["load.py"]}),
    lambda m: m["preprocessing"]["fields"]["mean"].update(shape=[2**39]),
    lambda m: m["preprocessing"].update(type="load"),
    lambda m: m["preprocessing"]["fields"]["mean"].update(array="object"),
    lambda m: m["programs"]["step"].update(first="apply"),
    lambda m: m["programs"]["apply"]["platforms"].remove("cpu"),
    lambda m: m["programs"]["apply"]["inputs"][0]["shape"].reverse(),
    lambda m: m["programs"]["apply"]["outputs"][0].update(dtype="int8"),
    lambda m: m.update(version=2),
    lambda m: m.update(format="fnn checkpoint"),
]  # fmt: skip


@pytest.mark.parametrize("lie", range(len(HUGE)))
def test_a_lie_is_refused(good, tmp_path, lie):
    shutil.copytree(good, tmp_path / "bad")
    manifest = manifest_of(good)
    HUGE[lie](manifest)
    put(tmp_path / "bad", manifest)
    with pytest.raises(ArtifactError):
        fnn.export.load(tmp_path / "bad")


def test_arrays_that_share_their_bytes_are_refused_before_they_are_read(good, tmp_path):
    """Or a small file would fill the memory."""
    shutil.copytree(good, tmp_path / "bad")
    manifest = manifest_of(good)
    first = manifest["arrays"][0]
    manifest["arrays"][1:1] = [first | {"path": ["params", "copies", str(i)]} for i in range(9)]
    put(tmp_path / "bad", manifest)
    with pytest.raises(ArtifactError, match="claims what cannot be"):
        read_manifest(tmp_path / "bad")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "1" * 10_000, "null", "[]", ""])
def test_texts_that_are_no_manifest(good, tmp_path, text):
    shutil.copytree(good, tmp_path / "bad")
    put(tmp_path / "bad", text)
    with pytest.raises(ArtifactError):
        fnn.export.load(tmp_path / "bad")


def test_links_pipes_and_huge_files_are_not_read(good, tmp_path):
    for name in (MANIFEST, "apply.jaxexport", "params.safetensors"):
        for make in (
            lambda file: file.symlink_to("/dev/zero"),
            os.mkfifo,
            lambda file: file.mkdir(),
        ):
            shutil.copytree(good, tmp_path / "bad")
            (tmp_path / "bad" / name).unlink()
            make(tmp_path / "bad" / name)
            with pytest.raises(ArtifactError, match="no plain file"):
                fnn.export.load(tmp_path / "bad")
            shutil.rmtree(tmp_path / "bad")
    shutil.copytree(good, tmp_path / "bad")
    os.truncate(tmp_path / "bad" / MANIFEST, 2**34)  # a hole, of no blocks
    with pytest.raises(ArtifactError, match="more than"):
        fnn.export.load(tmp_path / "bad")


def test_nothing_of_an_artifact_is_run_but_its_programs(good, tmp_path):
    shutil.copytree(good, tmp_path / "bad")
    ran = tmp_path / "ran"
    replaced(tmp_path / "bad", "load.py", f"open({str(ran)!r}, 'w')".encode())
    fnn.export.load(tmp_path / "bad")
    assert not ran.exists()


def test_a_program_that_calls_back_is_refused(tmp_path):
    def net(x):
        return jnp.linalg.cholesky(x)

    net = fnn.serial(net)
    fnn.export.save(tmp_path / "a", net, {}, {}, (3, 3), platforms=("cpu",))
    np.testing.assert_array_equal(fnn.export.load(tmp_path / "a")(jnp.eye(3)), np.eye(3))
    data = (tmp_path / "a" / "apply.jaxexport").read_bytes()
    assert b"lapack_spotrf_ffi" in data
    replaced(
        tmp_path / "a", "apply.jaxexport", data.replace(b"lapack_spotrf_ffi", b"xla_python_cpu_cb")
    )
    with pytest.raises(ArtifactError, match="calls xla_python_cpu_cb"):
        fnn.export.load(tmp_path / "a")
    for junk in (b"", b"junk", bytes(1000), data[:2000]):
        replaced(tmp_path / "a", "apply.jaxexport", junk)
        with pytest.raises(ArtifactError):
            fnn.export.load(tmp_path / "a")
