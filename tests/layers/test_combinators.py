"""Layers made of layers: values, keys, state, params and errors of each combinator."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import errors
from fnn.testing.layers import (
    check_jit,
    check_rows,
    check_sharded,
    check_specs,
    check_state,
    check_strict,
)


def key(i=0):
    return jax.random.key(i)


def normal(*shape, seed=1):
    return jax.random.normal(key(seed), shape)


def member(tree, i):
    return jax.tree.map(lambda a: a[i], tree)


def assert_trees_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def inner():
    return fnn.serial(fnn.dense(4), fnn.batch_norm(), jnp.tanh, fnn.dropout(0.5))


# --- parallel and residual


def test_parallel_is_a_dict_of_what_each_gives():
    net = fnn.parallel(fnn.dense(2), fnn.dense(3), act=jnp.sin)
    params, _ = net.init(key(), (1, 4))
    x = normal(5, 4)
    y = net(params, x)
    assert list(y) == ["dense1", "dense2", "act"]
    for name in ("dense1", "dense2"):
        np.testing.assert_allclose(y[name], np.asarray(x) @ params[name]["kernel"], rtol=1e-5)
    np.testing.assert_allclose(y["act"], np.sin(x), rtol=1e-6)
    joined = fnn.serial(net, lambda y: y["dense1"] + y["dense2"][:, :2])
    assert joined.init(key(), (1, 4))[0]["parallel1"]["dense2"]["kernel"].shape == (4, 3)


def test_residual_adds_and_never_broadcasts():
    net = fnn.residual(fnn.dense(4))
    params, _ = net.init(key(), (1, 4))
    x = normal(5, 4)
    wanted = np.asarray(x) + np.asarray(x) @ params["layer"]["kernel"]
    np.testing.assert_allclose(net(params, x), wanted, rtol=1e-5)
    short = fnn.residual(fnn.dense(3), fnn.dense(3))
    params, _ = short.init(key(), (1, 4))
    wanted = np.asarray(x) @ (params["layer"]["kernel"] + params["shortcut"]["kernel"])
    np.testing.assert_allclose(short(params, x), wanted, rtol=1e-5)
    with pytest.raises(errors.ShapeError, match="shortcut"):
        fnn.residual(fnn.dense(1)).init(key(), (1, 4))
    with pytest.raises(errors.DtypeError, match="bfloat16"):
        fnn.residual(lambda x: x.astype(jnp.bfloat16))({}, x)


# --- repeat


def test_repeat_is_the_loop_over_its_members():
    net = fnn.repeat(inner(), 3)
    params, state = net.init(key(), (6, 4))
    x = normal(6, 4)
    y, wanted = net(params, x, state=state), x
    for i in range(3):
        wanted = inner()(member(params, i), wanted, state=member(state, i))
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-6)
    kernel = params["dense1"]["kernel"]
    assert not np.allclose(kernel[0], kernel[1])
    np.testing.assert_allclose(kernel.std(), 0.5, rtol=0.3)  # fans are one member's


def test_repeat_in_training_has_a_key_and_statistics_for_each_member():
    net = fnn.repeat(inner(), 3)
    params, state = net.init(key(), (50, 4))
    x = normal(50, 4)
    y, after = net.apply(params, state, x, key=key(5), train=True)
    wanted = x
    for i in range(3):
        own = jax.random.fold_in(key(5), i)
        wanted, new = inner().apply(
            member(params, i), member(state, i), wanted, key=own, train=True
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
                     member(after, i), new)  # fmt: skip
    np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-5)
    dropped = fnn.repeat(fnn.dropout(0.5), 4)
    y, _ = dropped.apply({}, {}, jnp.ones(4000), key=key(), train=True)
    assert abs((np.asarray(y) != 0).mean() - 1 / 16) < 0.02  # four masks, not one


def test_members_do_not_depend_on_how_many_there_are():
    for combine in (fnn.repeat, fnn.ensemble):
        few, _ = combine(inner(), 2).init(key(), (1, 4))
        many, _ = combine(inner(), 5).init(key(), (1, 4))
        assert_trees_equal(member(many, 1), member(few, 1))


def test_repeat_compiles_one_member():
    traced = []

    def act(x):
        traced.append(None)
        return jnp.tanh(x)

    def lines(n):
        net = fnn.repeat(fnn.serial(fnn.dense(4), act), n)
        params, _ = net.init(key(), (2, 4))
        return len(jax.jit(net).lower(params, normal(2, 4)).as_text().splitlines())

    assert lines(3) == lines(100)
    assert len(traced) == 4  # each: once for specs, once for the program


def test_repeat_passes_further_inputs_to_all():
    @fnn.compose(dense=fnn.dense(4))
    def masked(f, x, mask):
        return jnp.where(mask, f.dense(x), x)

    net = fnn.serial(fnn.repeat(masked, 3))
    mask = jnp.arange(4) < 2
    params, _ = net.init(key(), (2, 4), mask)
    x = normal(2, 4)
    np.testing.assert_array_equal(net(params, x, mask)[:, 2:], x[:, 2:])


def test_repeat_of_what_changes_its_input():
    with pytest.raises(errors.ShapeError, match="repeat: expected layer\\(x\\) .* as in x"):
        fnn.repeat(fnn.dense(3), 2).init(key(), (1, 4))
    cast = fnn.serial(r=fnn.repeat(lambda x: x.astype(jnp.bfloat16), 2))
    for call in (cast, jax.jit(cast)):
        with pytest.raises(errors.DtypeError, match=r"^r: expected layer\(x\) .* as in x"):
            call({}, normal(1, 4))
    with pytest.raises(errors.InputError, match="1 or more inputs, got 0"):
        fnn.repeat(fnn.dense(3), 2).init(key())


@pytest.mark.parametrize("combine", [fnn.repeat, fnn.ensemble])
def test_params_of_another_number_are_refused(combine):
    net = fnn.serial(r=combine(inner(), 2))
    params, state = net.init(key(), (2, 4))
    others, _ = fnn.serial(r=combine(inner(), 3)).init(key(), (2, 4))
    for call in (net, jax.jit(net)):
        with pytest.raises(errors.ParamsError, match="^r: expected batch_norm1/bias with first"):
            call(others, normal(2, 4), state=state)
    for n in (0, -1, 2.5, None, True, "3"):
        with pytest.raises(errors.OptionError, match="n to be an int of at least 1"):
            combine(inner(), n)


def test_repeat_of_repeat_and_of_derived():
    net = fnn.repeat(fnn.repeat(fnn.weight_norm(fnn.dense(4)), 2), 3)
    params, _ = net.init(key(), (1, 4))
    assert params["kernel"]["direction"].shape == (3, 2, 4, 4)
    gain = np.linalg.norm(params["kernel"]["direction"], axis=-2)
    np.testing.assert_allclose(params["kernel"]["gain"], gain, rtol=1e-5)
    again, _ = jax.jit(lambda k: net.init(k, (1, 4)))(key())
    wanted = params["kernel"]["direction"]
    np.testing.assert_allclose(again["kernel"]["direction"], wanted, rtol=1e-5, atol=1e-6)


# --- ensemble and remat


def test_ensemble_is_its_members_side_by_side():
    net = fnn.ensemble(inner(), 3)
    params, state = net.init(key(), (50, 4))
    x = normal(50, 4)
    y, after = net.apply(params, state, x, key=key(5), train=True)
    for i in range(3):
        own = jax.random.fold_in(key(5), i)
        wanted, new = inner().apply(member(params, i), member(state, i), x, key=own, train=True)
        np.testing.assert_allclose(y[i], wanted, rtol=1e-4, atol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
                     member(after, i), new)  # fmt: skip


def test_remat_is_the_layer_with_less_kept():
    net, plain = fnn.remat(inner()), inner()
    params, state = net.init(key(), (6, 4))
    assert_trees_equal((params, state), plain.init(key(), (6, 4)))
    x = normal(6, 4)

    def loss(net):
        def fn(params):
            y, after = net.apply(params, state, x, key=key(3), train=True)
            return jnp.sum(y**2), after

        return jax.value_and_grad(fn, has_aux=True)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        loss(net)(params),
        loss(plain)(params),
    )
    text = str(jax.make_jaxpr(loss(net))(params))
    assert "remat" in text or "checkpoint" in text
    kept = jax.checkpoint_policies.everything_saveable
    assert_trees_equal(
        fnn.remat(inner(), kept)(params, x, state=state), plain(params, x, state=state)
    )


def test_wrapping_renames_nothing():
    names = [path for path in _paths(inner())]
    for wrapped in (
        fnn.remat(inner()), fnn.cast(inner(), jnp.bfloat16), fnn.repeat(inner(), 2),
        fnn.ensemble(inner(), 2), fnn.spectral_norm(inner()),
    ):  # fmt: skip
        assert _paths(wrapped) == names
        assert _paths(wrapped.map(lambda path, layer: layer)) == names
        params, _ = wrapped.init(key(), (1, 4))
        assert list(params) == ["batch_norm1", "dense1"] or set(params) == {"batch_norm1", "dense1"}
    assert fnn.serial(fnn.remat(fnn.dense(2))).init(key(), (1, 4))[0].keys() == {"dense1"}


def _paths(net):
    found = []
    net.map(lambda path, layer: found.append(path) or layer)
    return found


# --- cast


def test_cast_computes_in_one_dtype_and_keeps_params_in_another():
    seen = []

    def look(x):
        seen.append(x.dtype)
        return x

    net = fnn.cast(fnn.serial(fnn.dense(4), look, fnn.batch_norm()), jnp.bfloat16)
    params, state = net.init(key(), (6, 3))
    dtypes = {a.dtype for a in jax.tree.leaves((params, state))}
    assert dtypes == {jnp.dtype("float32")}
    x = normal(6, 3)
    y, after = net.apply(params, state, x, train=True)
    assert set(seen) == {jnp.dtype("bfloat16")} and y.dtype == x.dtype
    assert after["batch_norm1"]["mean"].dtype == jnp.float32
    plain = fnn.serial(fnn.dense(4), look, fnn.batch_norm())
    np.testing.assert_allclose(y, plain.apply(params, state, x, train=True)[0], atol=0.05)
    grads = jax.grad(lambda p: net(p, x, state=state).sum())(params)
    assert {a.dtype for a in jax.tree.leaves(grads)} == {jnp.dtype("float32")}
    assert fnn.cast(plain, jnp.bfloat16, output_dtype=jnp.float16)(
        params, x, state=state
    ).dtype == (jnp.float16)
    plain_params, _ = plain.init(key(), (6, 3))
    assert_trees_equal(plain_params, params)  # drawn in float32, not rounded


def test_cast_of_a_tied_embedding():
    @fnn.compose(embed=fnn.embedding(11, 4), dense=fnn.dense(4))
    def tied(f, ids):
        return f.dense(f.embed(ids)) @ f.embed.params["embedding"].T

    ids = jnp.arange(6).reshape(2, 3)
    net = fnn.cast(tied, jnp.bfloat16, output_dtype=jnp.float32)
    params, _ = net.init(key(), ids)
    assert {a.dtype for a in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    y = jax.jit(net)(params, ids)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, tied(params, ids), atol=0.05)
    assert fnn.cast(tied, jnp.bfloat16)(params, ids).dtype == jnp.bfloat16


def test_cast_holds_the_contract_but_for_precision():
    net = fnn.cast(fnn.serial(fnn.dense(3), fnn.batch_norm(), fnn.dropout(0.2)), jnp.bfloat16)
    params, state = net.init(key(), (6, 4))
    xs = (normal(6, 4),)
    for check in (check_specs, check_state, check_strict):
        check(net, params, state, xs)
    for bad in (jnp.int32, None, "text", 3, bool):
        with pytest.raises(errors.OptionError, match="compute_dtype to be a floating dtype"):
            fnn.cast(fnn.dense(3), bad)


# --- reparam, and what follows from it


def test_reparam_draws_what_the_layer_would():
    plain, _ = fnn.dense(3).init(key(), (1, 4))
    net = fnn.reparam(fnn.dense(3), lambda p: {"log": jax.tree.map(jnp.exp, p)},
                      lambda p: jax.tree.map(jnp.log, p["log"]))  # fmt: skip
    params, _ = net.init(key(), (1, 4))
    np.testing.assert_allclose(params["log"]["kernel"], np.exp(plain["kernel"]), rtol=1e-6)
    x = normal(2, 4)
    np.testing.assert_allclose(net(params, x), np.asarray(x) @ plain["kernel"], atol=1e-5)
    with pytest.raises(errors.ParamsError, match="^dense: .*log"):
        net(plain, x)
    with pytest.raises(errors.ParamsError, match="encode to return a dict"):
        fnn.reparam(fnn.dense(3), lambda p: p["kernel"], lambda p: p).init(key(), (1, 4))


def test_encode_with_a_key_draws_anew_for_each_layer_and_seed():
    def noisy(layer):
        return fnn.reparam(
            layer,
            lambda p, k: {**p, "noise": jax.random.normal(k, (3,))},
            lambda p: {"kernel": p["kernel"], "bias": p["bias"] + p["noise"]},
        )

    net = fnn.serial(noisy(fnn.dense(3)), noisy(fnn.dense(3)))
    a, _ = net.init(key(), (1, 3))
    b, _ = jax.jit(lambda k: net.init(k, (1, 3)))(key())
    c, _ = net.init(key(1), (1, 3))
    np.testing.assert_array_equal(a["dense1"]["noise"], b["dense1"]["noise"])
    assert not np.allclose(a["dense1"]["noise"], a["dense2"]["noise"])
    assert not np.allclose(a["dense1"]["noise"], c["dense1"]["noise"])


def test_weight_norm():
    net = fnn.weight_norm(fnn.conv(5, (3,), padding="VALID"))
    params, _ = net.init(key(), (1, 6, 2))
    x = normal(2, 6, 2)
    plain, _ = fnn.conv(5, (3,), padding="VALID").init(key(), (1, 6, 2))
    np.testing.assert_allclose(
        net(params, x), fnn.conv(5, (3,), padding="VALID")(plain, x), rtol=1e-4, atol=1e-5
    )
    longer = {**params, "kernel": {**params["kernel"], "direction": 7 * plain["kernel"]}}
    np.testing.assert_allclose(net(longer, x), net(params, x), rtol=1e-4, atol=1e-5)
    zero = jax.tree.map(jnp.zeros_like, params)
    for leaf in jax.tree.leaves(jax.grad(lambda p: net(p, x).sum())(zero)):
        assert np.isfinite(leaf).all()
    with pytest.raises(errors.OptionError, match="params called scale"):
        fnn.weight_norm(fnn.dense(2), ("scale",)).init(key(), (1, 2))


def test_spectral_norm_is_numpys():
    net = fnn.spectral_norm(fnn.dense(5, use_bias=False), iterations=200)
    params, _ = net.init(key(), (1, 4))
    matrix = np.asarray(params["kernel"], np.float64)
    wanted = matrix / np.linalg.svd(matrix)[1][0]
    np.testing.assert_allclose(net(params, jnp.eye(4)), wanted, rtol=1e-4, atol=1e-5)
    zero = jax.tree.map(jnp.zeros_like, params)
    assert np.isfinite(jax.grad(lambda p: net(p, jnp.eye(4)).sum())(zero)["kernel"]).all()

    def weighed(matrix):  # by weights that tell its entries apart
        return np.sum(np.arange(20).reshape(4, 5) * matrix / np.linalg.svd(matrix)[1][0])

    grad = jax.grad(lambda p: jnp.sum(jnp.arange(20.0).reshape(4, 5) * net(p, jnp.eye(4))))(params)
    for i in np.ndindex(4, 5):
        step = np.zeros((4, 5))
        step[i] = 1e-6
        slope = (weighed(matrix + step) - weighed(matrix - step)) / 2e-6
        np.testing.assert_allclose(grad["kernel"][i], slope, rtol=1e-3, atol=1e-3)


def test_lora_starts_as_its_base_and_moves_only_the_change():
    plain = fnn.serial(fnn.dense(6), jnp.tanh, fnn.dense(5))
    net = fnn.lora(plain, 2, alpha=4.0)
    trained, _ = plain.init(key(9), (1, 4))
    params, state = fnn.unmerge(net, trained, {}, (1, 4), key=key(1))
    x = normal(3, 4)
    np.testing.assert_array_equal(net(params, x, state=state), plain(trained, x))
    grads = jax.grad(lambda p: jnp.sum(net(p, x, state=state) ** 2))(params)
    assert set(grads) == {"a", "b"} and all(np.any(g) for g in jax.tree.leaves(grads["b"]))
    params["b"] = jax.tree.map(lambda b: b + 0.1, params["b"])
    merged = jax.tree.map(lambda w: w, trained)
    for name in ("dense1", "dense2"):
        a, b = (np.asarray(params[side][name]["kernel"]) for side in "ab")
        merged[name] = {**merged[name], "kernel": merged[name]["kernel"] + 2 * a @ b}
    y = net(params, x, state=state)
    np.testing.assert_allclose(y, plain(merged, x), rtol=1e-5, atol=1e-6)
    found, _ = fnn.merge(net, params, state, (1, 4))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found, merged)


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_prune_holds_the_smallest_at_zero(fraction):
    net = fnn.prune(fnn.dense(5, use_bias=False), fraction)
    params, state = net.init(key(), (1, 4))
    value = np.asarray(params["kernel"]["value"])
    dropped = round(fraction * value.size)
    least = set(np.argsort(np.abs(value).ravel())[:dropped])
    wanted = np.where([i in least for i in range(20)], 0, value.ravel()).reshape(4, 5)
    np.testing.assert_array_equal(net(params, jnp.eye(4), state=state), wanted)
    grads = jax.grad(lambda p: net(p, jnp.eye(4), state=state).sum())(params)["kernel"]
    np.testing.assert_array_equal(grads["value"], wanted != 0)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_quantize_rounds_and_lets_the_gradient_through(bits):
    net = fnn.quantize(fnn.dense(3, use_bias=False), bits)
    params, _ = net.init(key(), (1, 50))
    kernel = np.asarray(params["kernel"], np.float64)
    step = np.abs(kernel).max(0) / (2 ** (bits - 1) - 1)
    y = np.asarray(net(params, jnp.eye(50)))
    np.testing.assert_allclose(y, np.round(kernel / step) * step, atol=1e-5)
    assert len(np.unique(np.round(y[:, 0] / step[0]))) <= 2**bits - 1
    grad = jax.grad(lambda p: net(p, jnp.eye(50)).sum())(params)["kernel"]
    np.testing.assert_array_equal(grad, np.ones((50, 3)))


def test_reparametrizations_hold_the_contract_but_for_what_they_stop():
    for net in (
        fnn.lora(fnn.serial(fnn.dense(3), fnn.dense(2)), 2),
        fnn.prune(fnn.dense(3), 0.5),
        fnn.quantize(fnn.dense(3), 4),
        fnn.spectral_norm(fnn.dense(3)),
    ):
        params, state = net.init(key(), (8, 4))
        xs = (normal(8, 4),)
        for check in (check_specs, check_jit, check_state, check_strict, check_rows, check_sharded):
            check(net, params, state, xs)
