"""Artifacts against the networks that they are of."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.core.errors import ArtifactError, DtypeError, InputError, OptionError, ShapeError
from tests.export.networks import NETWORKS, exported, in_a_fresh_process, network

QUICK = "FNN_QUICK" in os.environ
X = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)


def saved(tmp_path, net, shapes=("batch", 4), **options):
    params, state = net.init(jax.random.key(0), X)
    fnn.export.save(tmp_path / "a", net, params, state, shapes, **options)
    return fnn.export.load(tmp_path / "a"), params, state


def manifest_of(folder):
    return json.loads((folder / "manifest.json").read_text().split("\n", 1)[1])


def test_an_artifact_is_its_network(tmp_path):
    net = fnn.serial(fnn.dense(5), fnn.batch_norm(), jnp.tanh, fnn.dropout(0.5), fnn.dense(2))
    artifact, params, state = saved(tmp_path, net, labels=["a", "b"])
    run = jax.jit(lambda p, s, x: net.apply(p, s, x)[0])
    for n in (1, 3):
        np.testing.assert_array_equal(artifact(X[:n]), run(params, state, X[:n]))
    np.testing.assert_array_equal(jax.jit(artifact)(X), run(params, state, X))
    said = artifact.manifest["programs"]["apply"]
    assert said["inputs"] == [{"name": "x", "shape": ["batch", 4], "dtype": "float32"}]
    assert said["outputs"] == [{"name": "y", "shape": ["batch", 2], "dtype": "float32"}]
    assert artifact.manifest["labels"] == ["a", "b"]
    assert repr(fnn.build(artifact.manifest["network"])) == repr(net)
    assert said["platforms"] == ["cpu", "cuda", "tpu"]
    assert not fnn.tree.compare((artifact.params, artifact.state), (params, state))
    load_file = pytest.importorskip("safetensors.numpy").load_file
    read = load_file(tmp_path / "a" / "params.safetensors")  # by the format's own reader
    np.testing.assert_array_equal(read["params/dense1/kernel"], params["dense1"]["kernel"])
    np.testing.assert_array_equal(read["state/batch_norm1/var"], state["batch_norm1"]["var"])


def test_examples_loaded_without_fnn_give_the_same_bits(tmp_path):
    """At three batch sizes, and what they say of steps; all in one fresh process."""
    names = ["xor", "lstm_sequences: GRU"] if QUICK else list(NETWORKS)
    folders = [tmp_path / str(i) for i in range(len(names))]
    with jax.numpy_dtype_promotion("standard"):
        for name, folder in zip(names, folders, strict=True):
            folder.mkdir()
            exported(folder, *network(name))
    found = in_a_fresh_process(folders)
    same = {name: found[folder.name]["same"] for name, folder in zip(names, folders, strict=True)}
    assert same == dict.fromkeys(names, True)


def test_a_recurrent_cell_step_by_step(tmp_path):
    learner = fnn.serial(rnn=fnn.lstm(3), head=fnn.dense(2))
    writer = fnn.cells.serial(rnn=fnn.cells.lstm(3), head=fnn.dense(2))
    x = np.random.default_rng(0).normal(size=(2, 5, 4)).astype(np.float32)
    params, state = learner.init(jax.random.key(0), x)
    steps = {"step": (writer, ("batch", 4))}
    fnn.export.save(tmp_path / "a", learner, params, state, ("batch", "time", 4), steps=steps)
    artifact = fnn.export.load(tmp_path / "a")
    whole, step = artifact(x), artifact.steps["step"]
    carry = step.first(x[:, 0])
    assert jax.tree.map(jnp.shape, carry) == {"rnn": ((2, 3), (2, 3))}
    for t in range(5):
        carry, y = step(carry, x[:, t])
        np.testing.assert_allclose(y, whole[:, t], atol=1e-6)
    said = artifact.manifest["programs"]["step"]
    assert [c["shape"] for c in said["carry"]] == [["batch", 3], ["batch", 3]]
    with pytest.raises(ShapeError, match="batch is 2"):  # a carry of another batch
        step(step.first(x[:1, 0]), x[:, 0])
    with pytest.raises(InputError, match="carry"):
        step(x[:, 0])


def test_attention_with_a_cache_in_pieces(tmp_path):
    def transformer(cache=None):
        return fnn.serial(
            embed=fnn.embedding(7, 4),
            block=fnn.transformer_block(4, 2, causal=True, rotary=10.0, cache=cache),
            norm=fnn.batch_norm(),
        )

    net, writer, words = transformer(), transformer(8), jnp.array([[1, 2, 3, 4, 5, 6]])
    params, state = net.init(jax.random.key(0), words)
    state = jax.tree.map(lambda a: a + 0.5, state)  # trained statistics go along
    tokens = jax.ShapeDtypeStruct(("batch", "time"), jnp.int32)
    options = dict(steps={"write": (writer, tokens)}, constraints=["time <= 8"])
    with pytest.raises(InputError, match=r"write/.*any named sizes.*time <= 128"):
        fnn.export.save(tmp_path / "a", net, params, state, tokens, steps=options["steps"])
    fnn.export.save(tmp_path / "a", net, params, state, tokens, **options)
    artifact = fnn.export.load(tmp_path / "a")
    whole, write = artifact(words), artifact.steps["write"]
    np.testing.assert_allclose(whole, net(params, words, state=state), atol=1e-6)
    carry, first = write(write.first(words[:, :4]), words[:, :4])
    carry, second = write(carry, words[:, 4:5])
    carry, third = write(carry, words[:, 5:])
    pieces = jnp.concatenate([first, second, third], axis=1)
    np.testing.assert_allclose(pieces, whole, atol=1e-5)


DTYPES = ["int4", "uint4", "int8", "float8_e4m3fn", "float8_e5m2", "bfloat16", "float16", "bool"]


def test_params_of_any_dtype_come_back_bit_for_bit(tmp_path):
    def specs(x):
        kinds = {name: fnn.Param((3,), fnn.initializers.zeros, jnp.dtype(name)) for name in DTYPES}
        return kinds, {"empty": fnn.Param((0, 2), fnn.initializers.zeros, jnp.int32)}

    def apply(params, state, x, *, key, train):
        return sum((a.astype(jnp.float32) for a in params.values()), x), state

    net = fnn.leaf("all", specs, apply)
    values = np.array([0, 1, 3])
    params = {name: jnp.asarray(values.astype(jnp.dtype(name))) for name in DTYPES}
    state = {"empty": jnp.zeros((0, 2), jnp.int32)}
    fnn.export.save(tmp_path / "a", net, params, state, (3,))
    artifact = fnn.export.load(tmp_path / "a")
    assert not fnn.tree.compare((artifact.params, artifact.state), (params, state))
    np.testing.assert_array_equal(artifact(np.zeros(3, np.float32)), [0, 8, 22])  # True counts 1


def test_params_stored_narrow_are_computed_wide(tmp_path):
    net = fnn.serial(fnn.dense(5), fnn.dense(2))
    params, state = net.init(jax.random.key(0), X)
    nearest = jax.tree.map(lambda a: a.astype(jnp.bfloat16).astype(jnp.float32), params)

    def rounded(w):  # per output, by a loop
        w = np.array(w, np.float64)
        for o in range(w.shape[-1] if w.ndim > 1 else 0):
            scale = np.abs(w[:, o]).max() / 127
            w[:, o] = np.round(w[:, o] / scale) * scale
        return jnp.asarray(w, jnp.float32)

    for dtype, wanted in (("bfloat16", nearest), ("int8", jax.tree.map(rounded, params))):
        fnn.export.save(tmp_path / dtype, net, params, state, ("b", 4), params_dtype=dtype)
        artifact = fnn.export.load(tmp_path / dtype)
        np.testing.assert_allclose(artifact(X), net(wanted, X), atol=1e-6)
    assert artifact.params["dense1"]["kernel"]["int8"].dtype == jnp.int8
    assert artifact.params["dense1"]["bias"].dtype == jnp.float32
    with pytest.raises(OptionError, match="floating dtype"):
        fnn.export.save(tmp_path / "x", net, params, state, ("b", 4), params_dtype="int16")


def test_baked_params_are_in_the_program(tmp_path):
    net = fnn.serial(fnn.dense(5), fnn.dense(2))
    artifact, params, _ = saved(tmp_path, net, bake=True, network="two layers")
    assert artifact.manifest["network"] == "two layers"
    np.testing.assert_allclose(artifact(X), net(params, X), atol=1e-6)
    assert artifact.params == {} and not (tmp_path / "a" / "params.safetensors").exists()


def test_what_was_fitted_goes_along(tmp_path):
    table = {
        "x": np.array([[1.0, np.nan], [3.0, 10.0], [8.0, 20.0]]),
        "kind": np.array(["b", "a", None], object),
    }
    fits = {"x": [fnn.data.impute, fnn.data.standardize], "kind": fnn.data.encode}
    _, fitted = fnn.data.prepare({"train": table}, fits)
    fitted["limits"] = fnn.data.clip_outliers(np.arange(9.0))
    fitted["range"] = fnn.data.minmax(table["x"])
    fitted["hot"] = fnn.data.one_hot(np.array([3, 5]))
    artifact, *_ = saved(tmp_path, fnn.dense(2), preprocessing=fitted)
    assert not fnn.tree.compare(artifact.preprocessing, fitted)
    for name, column in table.items():
        np.testing.assert_array_equal(artifact.preprocessing[name](column), fitted[name](column))
    assert type(artifact.preprocessing["limits"]) is fnn.data.Limits
    with pytest.raises(InputError, match="fitted functions of fnn.data"):
        saved(tmp_path / "b", fnn.dense(2), preprocessing=np.log1p)


def test_statistics_of_examples(tmp_path):
    x = np.random.default_rng(0).normal(2, 3, (200, 4)).astype(np.float32)
    x[0, 0] = np.nan
    artifact, *_ = saved(tmp_path, fnn.dense(2), examples=x)
    said = artifact.manifest["statistics"]["x"]
    for name, of in (
        ("mean", np.nanmean),
        ("std", np.nanstd),
        ("min", np.nanmin),
        ("max", np.nanmax),
    ):
        np.testing.assert_allclose(said[name], of(x.astype(float), axis=0), rtol=1e-5)
    seen = {name: np.array(a, np.float32) for name, a in said["histogram"].items()}
    assert seen["counts"].shape == (4, 11) and seen["counts"].sum() == 800
    drift = fnn.metrics.drift(seen)
    assert drift.compute(drift.update(drift.init(), jnp.asarray(x + 3), None)).min() > 0.25
    tokens = jax.ShapeDtypeStruct(("batch", "time"), jnp.int32)
    params, state = fnn.embedding(9, 2).init(jax.random.key(0), jnp.zeros((1, 2), int))
    words = np.arange(18, dtype=np.int32).reshape(3, 6) % 9
    path = tmp_path / "words"
    fnn.export.save(path, fnn.embedding(9, 2), params, state, tokens, examples=words)
    assert fnn.export.load(path).manifest["statistics"]["x"]["mean"] == 4
    with pytest.raises(ShapeError, match="examples of x"):
        saved(tmp_path / "b", fnn.dense(2), examples=x[:, :3])


def test_inputs_that_are_trees(tmp_path):
    @fnn.compose(a=fnn.dense(2), b=fnn.dense(2))
    def net(f, x, more):
        return {"sum": f.a(x) + f.b(more["there"]), "x": x}

    shapes = [("batch", 4), {"there": ("batch", 3)}]
    params, state = net.init(jax.random.key(0), (1, 4), {"there": (1, 3)})
    fnn.export.save(tmp_path / "a", net, params, state, shapes)
    artifact, more = fnn.export.load(tmp_path / "a"), {"there": X[:, :3]}
    y = artifact(X, more)
    np.testing.assert_array_equal(y["sum"], jax.jit(net)(params, X, more)["sum"])
    said = artifact.manifest["programs"]["apply"]
    assert [i["name"] for i in said["inputs"]] == ["x", "more/there"]
    assert [o["name"] for o in said["outputs"]] == ["y/sum", "y/x"]
    for wrong in ((X,), (X, X[:, :3]), (X, {"here": X[:, :3]}), ()):
        with pytest.raises(InputError, match="more/there"):
            artifact(*wrong)
    with pytest.raises(ShapeError, match=r"more/there \(batch, 3\) float32, where batch is 3"):
        artifact(X, {"there": X[:1, :3]})


def test_wrong_inputs_name_what_is_expected(tmp_path):
    artifact, *_ = saved(tmp_path, fnn.dense(2))
    for wrong, error in (
        (X[0], ShapeError), (X[:, :3], ShapeError), (X[:0], ShapeError),
        (X.astype(np.int32), DtypeError), (X.astype(np.float16), DtypeError), ([1.0], InputError),
        (1.0, InputError),
    ):  # fmt: skip
        with pytest.raises(error, match=r"x \(batch, 4\) float32"):
            artifact(wrong)
    np.testing.assert_array_equal(artifact(X.astype(np.float64)), artifact(X))  # as layers do


def test_options_that_cannot_be(tmp_path):
    net = fnn.dense(2)
    for options, error in (
        (dict(shapes=("batch size", 4)), OptionError),
        (dict(shapes=[1.5]), InputError),
        (dict(constraints=["batch is large"]), OptionError),
        (dict(labels="abc"), OptionError),
        (dict(network=net), OptionError),
        (dict(meta={"x": X}), InputError),
        (dict(steps={"apply": (net, ("batch", 4))}), OptionError),
        (dict(steps={"../x": (net, ("batch", 4))}), OptionError),
    ):
        with pytest.raises(error):
            saved(tmp_path, net, **{"shapes": ("batch", 4), **options})
    assert not (tmp_path / "a").exists()
    saved(tmp_path, net, platforms=("tpu", "cpu"))
    with pytest.raises(ArtifactError, match="a path that does not exist"):
        saved(tmp_path, net)
    params, state = net.init(jax.random.key(0), X)
    fnn.export.save(tmp_path / "b", net, params, state, (3, 4), platforms=("tpu",))
    with pytest.raises(ArtifactError, match=r"for cpu.*tpu"):
        fnn.export.load(tmp_path / "b")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]  # nothing left beside


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(file, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fnn.export.writer.write_file", full)
    with pytest.raises(OSError, match="No space"):
        saved(tmp_path, fnn.dense(2))
    assert not list(tmp_path.iterdir())


@pytest.mark.cpu
def test_params_over_several_devices_are_written_whole(tmp_path):
    net = fnn.dense(8)
    params, state = net.init(jax.random.key(0), (1, 4))
    mesh = jax.make_mesh((8,), ("data",))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "data"))
    sharded = params | {"kernel": jax.device_put(params["kernel"], spread)}
    fnn.export.save(tmp_path / "net", net, sharded, state, ("batch", 4), platforms=["cpu"])
    loaded = fnn.export.load(tmp_path / "net")
    np.testing.assert_array_equal(loaded.params["kernel"], np.asarray(params["kernel"]))
