"""Kernels kept in few bits."""

from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import fnn
from fnn import errors
from tests.layers.support import key, normal

LARGEST = {"int4": 7, "int8": 127, "float8_e4m3fn": 448, "float8_e5m2": 57344}


def near(w, dtype, group):
    """Weights [in, out] as they are kept, group by group; and the scales."""
    out, scales = np.zeros(w.shape), np.zeros((-(-w.shape[0] // group), w.shape[1]))
    for i in range(0, w.shape[0], group):
        for o in range(w.shape[1]):
            part = np.asarray(w[i : i + group, o], np.float64)
            scale = scales[i // group, o] = np.abs(part).max() / LARGEST[dtype] or 1.0
            values = np.round(part / scale)
            if dtype.startswith("float8"):
                values = (part / scale).astype(np.float32).astype(getattr(ml_dtypes, dtype))
            out[i : i + group, o] = values.astype(np.float64) * scale
    return out, scales


@pytest.mark.parametrize(
    ("dtype", "group"),
    [("int8", None), ("int4", 2), ("float8_e4m3fn", 2), ("float8_e5m2", None)],
)
def test_kernels_are_rounded_by_a_scale_for_each_output_feature_or_group(dtype, group):
    plain = fnn.dense(3)
    net = fnn.stored(plain, dtype, group_size=group)
    trained = {"kernel": normal(5, 3).at[:, 1].set(0.0), "bias": jnp.ones(3)}
    params, state = fnn.unmerge(net, trained, {}, (1, 5))
    wanted, scales = near(trained["kernel"], dtype, group or 5)
    np.testing.assert_allclose(fnn.merge(net, params, state, (1, 5))[0]["kernel"], wanted, 1e-6)
    np.testing.assert_allclose(net(params, jnp.eye(5)) - 1, wanted, atol=1e-6)
    kept = params["kernel"]
    np.testing.assert_allclose(np.where(kept["scale"] == 0, 1, kept["scale"]), scales, 1e-6)
    assert kept["values"].nbytes == (9 if dtype == "int4" else 15)
    np.testing.assert_array_equal(params["bias"], 1)


@pytest.mark.parametrize("dtype", ["float16"])
def test_floats_of_16_bits_are_rounded_as_they_are_unless_too_large(dtype):
    net, w = fnn.stored(fnn.dense(2, use_bias=False), dtype), normal(4, 2).at[0, 0].set(1e6)
    params, _ = fnn.unmerge(net, {"kernel": w}, {}, (1, 4))
    y = net(params, jnp.eye(4))
    np.testing.assert_array_equal(y[:, 1], w[:, 1].astype(dtype).astype("float32"))
    np.testing.assert_allclose(y[:, 0], w[:, 0], rtol=5e-3, atol=2e-5)


def test_groups_lie_along_the_inputs_of_any_kernel():
    net, w = fnn.stored(fnn.conv(2, (3,)), "int8", group_size=2), normal(3, 5, 2)
    params, _ = fnn.unmerge(net, {"kernel": w, "bias": jnp.zeros(2)}, {}, (1, 4, 5))
    assert params["kernel"]["scale"].shape == (1, 3, 2)
    for i in range(3):
        part = np.abs(w[:, 2 * i : 2 * i + 2])
        np.testing.assert_allclose(params["kernel"]["scale"][0, i], part.max((0, 1)) / 127, 1e-6)


@pytest.mark.parametrize(("bits", "group", "dtype"), [(4, 2, "float32"), (8, None, "bfloat16")])
def test_what_was_trained_rounded_is_stored_without_a_loss(bits, group, dtype):
    body = fnn.serial(fnn.repeat(fnn.dense(5), 2), fnn.dense(3))
    learner = fnn.quantize(body, bits, group_size=group)
    net = fnn.stored(body, f"int{bits}", group_size=group)
    x = normal(2, 5).astype(dtype)
    trained, _ = learner.init(key(), x)
    wanted, rounded = learner(trained, x), fnn.merge(learner, trained, {}, x)[0]
    np.testing.assert_array_equal(net(fnn.unmerge(net, trained, {}, x)[0], x), wanted)
    if dtype == "float32":  # once more rounded, by a scale that may be an ulp away
        again = fnn.unmerge(net, rounded, {}, x)[0]
        np.testing.assert_allclose(net(again, x), wanted, rtol=1e-5, atol=1e-6)


def test_members_of_a_stack_are_stored_as_each_alone():
    store = partial(fnn.stored, dtype="int4", group_size=2)
    member, x = fnn.residual(fnn.dense(3)), normal(2, 3)
    trained, _ = fnn.repeat(member, 2).init(key(), x)
    inside, outside = fnn.repeat(store(member), 2), store(fnn.repeat(member, 2))
    params, _ = fnn.unmerge(inside, trained, {}, x)
    same = np.testing.assert_array_equal
    jax.tree.map(same, fnn.unmerge(outside, trained, {}, x)[0], params)
    for i in range(2):
        alone = fnn.unmerge(store(member), jax.tree.map(lambda a, i=i: a[i], trained), {}, x)[0]
        jax.tree.map(lambda a, b, i=i: same(a, b[i]), alone, params)
    np.testing.assert_allclose(inside(params, x), outside(params, x), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["int4", "float8_e4m3fn"])
def test_zeros_single_and_empty_axes_are_kept_and_what_is_not_finite_shows(dtype):
    for shape in ((1, 1), (0, 2)):
        net = fnn.stored(fnn.dense(shape[1], use_bias=False), dtype, group_size=2)
        for w in (jnp.zeros(shape), jnp.full(shape, -3.0)):
            params, _ = fnn.unmerge(net, {"kernel": w}, {}, (1, shape[0]))
            np.testing.assert_allclose(net(params, jnp.eye(shape[0])), w, rtol=1e-6)
    net, eye = fnn.stored(fnn.dense(2, use_bias=False), dtype, group_size=2), jnp.eye(4)
    for bad in (jnp.nan, jnp.inf):
        w = jnp.ones((4, 2)).at[0, 0].set(bad)
        kept = fnn.merge(net, *fnn.unmerge(net, {"kernel": w}, {}, eye), eye)[0]["kernel"]
        assert not np.isfinite(kept[:2, 0]).any()
        np.testing.assert_allclose(np.r_[kept[2:, 0], kept[:, 1]], 1, rtol=1e-6)


def test_stored_params_are_frozen_or_adapted_not_trained():
    plain = fnn.serial(fnn.dense(6), fnn.repeat(fnn.dense(6), 2))
    trained, x = plain.init(key(), (1, 4))[0], normal(3, 4)
    kept, tx = fnn.stored(plain, "int4", group_size=2), fnn.optim.adamw(0.01)
    with pytest.raises(errors.DtypeError, match="kernel/values.*fnn.frozen"):
        fnn.train.init(kept, tx, key(), x)
    values, _ = fnn.unmerge(kept, trained, {}, x)
    biases = fnn.unmerge(fnn.frozen(kept, kinds=("kernel",)), trained, {}, x)[0]
    assert list(fnn.tree.paths(biases)) == ["dense1/bias", "repeat1/bias"]

    net = fnn.lora(kept, 2)  # QLoRA
    params, state = fnn.unmerge(net, trained, {}, x, key=key(1))
    np.testing.assert_array_equal(net(params, x, state=state), kept(values, x))
    ts = fnn.train.init(net, tx, key(), x, params=params, state=state)

    def loss(params, state, batch, key):
        y, state = net.apply(params, state, batch, key=key, train=True)
        return jnp.mean(y**2), (state, {})

    step = fnn.train.step(loss, tx)
    losses = []
    for _ in range(3):
        ts, metrics = step(ts, x)
        losses.append(float(metrics["loss"]))
    assert losses[2] < losses[1] < losses[0]
    same = np.testing.assert_array_equal
    jax.tree.map(same, ts.state["(frozen)"]["base"], values)  # bitwise
    merged, own = fnn.merge(net, ts.params, ts.state, x)
    base = fnn.merge(kept, values, {}, x)[0]
    a, b = (np.asarray(ts.params[side]["repeat1"]["kernel"], np.float64) for side in "ab")
    for i in range(2):  # each member has a change of its own
        wanted = np.asarray(base["repeat1"]["kernel"][i]) + a[i] @ b[i]
        np.testing.assert_allclose(merged["repeat1"]["kernel"][i], wanted, rtol=1e-5, atol=1e-6)
    wanted = net(ts.params, x, state=ts.state)
    np.testing.assert_allclose(plain(merged, x, state=own), wanted, rtol=1e-5, atol=1e-5)


def test_stored_params_go_where_others_go(tmp_path):
    plain = fnn.serial(fnn.embedding(7, 4), fnn.dense(3))
    net = fnn.stored(plain, "float8_e5m2", ("kernel", "embedding"))
    x = jnp.array([[0, 6], [3, 3]])
    params, state = net.init(key(), x)
    wanted = net(params, x)
    fnn.checkpoint.save(tmp_path / "few", params)
    back = fnn.checkpoint.restore(tmp_path / "few", params)
    jax.tree.map(np.testing.assert_array_equal, back, params)
    run = jax.export.export(jax.jit(net))(params, x)
    np.testing.assert_allclose(run.call(params, x), wanted, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(net, (None, 0))(params, x), wanted, rtol=1e-6)
    low = fnn.cast(net, jnp.bfloat16, output_dtype=jnp.float32)
    np.testing.assert_allclose(low(params, x), wanted, rtol=0.05, atol=0.05)


def test_rules_cut_scales_as_their_kernels():
    net = fnn.stored(fnn.transformer_block(8, 2), "int8", group_size=4)
    rules = fnn.sharding.MEGATRON
    mesh = jax.sharding.AbstractMesh((2,), ("model",))
    placed = fnn.sharding.plan(mesh, fnn.frozen(net), fnn.optim.sgd(0.1), (2, 3, 8), rules=rules)
    found = {path: tuple(s.spec) for path, s in _leaves(placed.train_state.state)}
    assert found["(frozen)/attention/q/kernel/scale"] == (None, "model")
    assert found["(frozen)/down/kernel/values"] == ("model", None)
    assert found["(frozen)/down/kernel/scale"] == (None, None)


def _leaves(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(errors.path_of(keys), leaf) for keys, leaf in leaves]


def test_what_cannot_be_stored_is_said():
    def of(dtype):
        init = fnn.initializers.zeros
        return fnn.leaf(
            "counts",
            lambda x: ({"kernel": fnn.Param((2,), init, dtype)}, {}),
            lambda params, state, x, **mode: (x, state),
        )

    for dtype in ("int32", "complex64"):
        with pytest.raises(errors.DtypeError, match=f"^kernel: .*{dtype}"):
            fnn.stored(of(dtype), "int8").init(key(), (1, 2))
    with pytest.raises(errors.OptionError, match="one of int4, int8, float8_e4m3fn, .*got int32"):
        fnn.stored(fnn.dense(2), jnp.int32)
    net = fnn.stored(fnn.dense(2), "int8")
    params, _ = net.init(key(), (1, 3))
    with pytest.raises(errors.ParamsError, match="^kernel/values: .*int8.*float32"):
        net({**params, "kernel": {**params["kernel"], "values": jnp.ones((3, 2))}}, normal(1, 3))
