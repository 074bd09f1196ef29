"""Summary, tap, nan_report, swap and the count of FLOPs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import errors
from fnn.analysis import count_flops, nan_report, summary


def block(features=4):
    return fnn.residual(fnn.serial(fnn.dense(features), jnp.tanh, fnn.dropout(0.5)))


def key(i=0):
    return jax.random.key(i)


# --- FLOPs, against numbers worked out by hand


@pytest.mark.parametrize(
    "fn, shapes, wanted",
    [
        (lambda x, w: x @ w, [(5, 3), (3, 7)], 2 * 5 * 3 * 7),
        (lambda a, b: jnp.einsum("bij,bjk->bik", a, b), [(2, 3, 4), (2, 4, 5)], 2 * 2 * 3 * 4 * 5),
        (lambda x: jnp.tanh(x + 1).reshape(-1), [(4, 5)], 2 * 20),
        (lambda x: jnp.sum(x * x, axis=0), [(4, 5)], 20 + 20),
        (lambda x: jax.lax.scan(lambda c, _: (c @ x, None), x, length=6)[0], [(3, 3)], 6 * 54),
        (jax.jit(jax.checkpoint(lambda x: jnp.sin(x))), [(8,)], 8),
        (
            lambda x: jax.lax.cond(x.sum() > 0, lambda x: x @ x, lambda x: x, x),
            [(3, 3)],
            54 + 9,
        ),
    ],
)
def test_flops(fn, shapes, wanted):
    structs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    assert count_flops(fn, *structs) == wanted


@pytest.mark.parametrize("groups", [1, 2])
def test_flops_of_a_convolution(groups):
    net = fnn.conv(6, (3, 2), groups=groups, padding="VALID", use_bias=False)
    params, _ = net.init(key(), (2, 7, 7, 4))
    out = 2 * 5 * 6 * 6
    assert count_flops(net, params, jnp.ones((2, 7, 7, 4))) == 2 * out * 3 * 2 * 4 // groups


# --- summary


def test_summary_counts_what_stands_in_params_and_what_is_computed():
    net = fnn.serial(
        fnn.dense(4), blocks=fnn.repeat(block(), 3), bn=fnn.batch_norm(), out=fnn.dense(2)
    )
    found = summary(net, (5, 3))
    rows = {row.path: row for row in found.rows}
    params, state = net.init(key(), (5, 3))
    for path in ("dense1", "blocks", "blocks/layer/dense1", "bn", "out", ""):
        tree, states = params, state
        for name in filter(None, path.split("/")):
            tree, states = tree[name], states.get(name, {})
        assert rows[path].params == sum(a.size for a in jax.tree.leaves(tree)), path
        assert rows[path].state == sum(a.size for a in jax.tree.leaves(states)), path
    assert rows["blocks/layer/dense1"].copies == 3
    assert rows["blocks/layer/dense1"].flops == 3 * (2 * 5 * 4 * 4 + 5 * 4)
    assert rows["blocks/layer/tanh_1"].flops == 3 * 20
    assert rows["blocks"].flops == 3 * (160 + 20 + 20 + 20)  # matmul, bias, tanh, residual
    assert rows["out"].output == jax.ShapeDtypeStruct((5, 2), jnp.float32)
    assert found.flops == count_flops(lambda p: net(p, jnp.ones((5, 3)), state=state), params)
    assert found.nbytes == 4 * (found.params + found.state)
    assert list(rows)[-1] == "" and [p for p in rows if p in params] == [n for n, _ in net.children]


def test_summary_is_a_table():
    pytest.importorskip("rich")
    text = str(summary(fnn.serial(fnn.ensemble(fnn.dense(1000), 2), jax.nn.relu), (8, 5)))
    assert (
        "ensemble1" in text and "12,000" in text and "46.9 KiB" in text and "(2, 8, 1000)" in text
    )
    assert "dense" in str(summary(fnn.dense(2), (1, 2)))


def test_summary_of_layers_called_twice_in_other_dtypes_and_reparametrized():
    @fnn.compose(shared=fnn.dense(3), table=fnn.embedding(7, 3))
    def twice(f, x, ids):
        return f.shared(f.shared(x)) @ f.table.params["embedding"].T + f.table(ids).sum()

    shapes = (jax.ShapeDtypeStruct((2, 3), jnp.float32), jax.ShapeDtypeStruct((4,), jnp.int32))

    @fnn.compose(shared=fnn.dense(3), table=fnn.embedding(7, 3))
    def ordered(f, x, ids):
        e = f.table(ids).sum()
        return f.shared(f.shared(x)) @ f.table.params["embedding"].T + e

    rows = {row.path: row for row in summary(ordered, *shapes).rows}
    assert rows["shared"].flops == 2 * (2 * 2 * 9 + 6) and rows["shared"].params == 12
    for net in (
        fnn.cast(ordered, jnp.bfloat16),
        fnn.weight_norm(ordered),
        fnn.lora(ordered, 2),
        fnn.remat(ordered),
    ):
        found = summary(net, *shapes)
        assert found.params == sum(a.size for a in jax.tree.leaves(net.init(key(), *shapes)))
        assert {"shared", "table", ""} <= {row.path for row in found.rows}


# --- tap


def test_tap_gives_what_the_layers_gave():
    net = fnn.serial(fnn.dense(4), jnp.tanh, head=fnn.dense(2))
    params, _ = net.init(key(), (1, 3))
    x = jax.random.normal(key(1), (5, 3))
    y, outputs = jax.jit(fnn.tap(net, "dense1", "*_1", "head"))(params, x)
    first = np.asarray(x) @ np.asarray(params["dense1"]["kernel"])
    np.testing.assert_allclose(outputs["dense1"], first, rtol=1e-5)
    np.testing.assert_allclose(outputs["tanh_1"], np.tanh(first), rtol=1e-5)
    assert set(outputs) == {"dense1", "tanh_1", "head"} and (outputs["head"] == y).all()
    assert set(fnn.tap(net)(params, x)[1]) == {"dense1", "tanh_1", "head", ""}
    grad = jax.grad(lambda p: fnn.tap(net, "dense1")(p, x)[1]["dense1"].sum())(params)
    np.testing.assert_allclose(grad["dense1"]["bias"], 5 * np.ones(4))


def test_tap_out_of_repeat_and_ensemble_with_state_and_keys():
    inner = fnn.serial(fnn.dense(4), fnn.batch_norm(), fnn.dropout(0.5))
    net = fnn.serial(many=fnn.repeat(inner, 3), side=fnn.ensemble(fnn.dense(2), 5))
    params, state = net.init(key(), (6, 4))
    x = jax.random.normal(key(1), (6, 4))
    tapped = fnn.tap(net, "many/*", "side")
    (y, outputs), new = tapped.apply(params, state, x, key=key(2), train=True)
    assert outputs["many/dense1"].shape == (3, 6, 4) and outputs["side"].shape == (5, 6, 2)
    wanted, after = net.apply(params, state, x, key=key(2), train=True)
    np.testing.assert_array_equal(y, wanted)
    jax.tree.map(np.testing.assert_array_equal, new, after)  # the state comes back
    member = jax.tree.map(lambda a: a[1], params["many"]["dense1"])
    dropped = outputs["many/dropout1"][0]
    np.testing.assert_allclose(outputs["many/dense1"][1], dropped @ member["kernel"], rtol=1e-5)


def test_tap_of_wrong_paths_and_missing_state():
    net = fnn.serial(fnn.dense(4), fnn.batch_norm())
    params, _ = net.init(key(), (6, 4))
    with pytest.raises(errors.OptionError, match="tap: .*dense1, batch_norm1, got conv"):
        fnn.tap(net, "conv*")
    with pytest.raises(errors.ParamsError, match="batch_norm1: .*state=state"):
        fnn.tap(net)(params, jnp.ones((6, 4)))
    with pytest.raises(errors.OptionError, match="swap: "):
        fnn.swap(net, {"dense2": jnp.tanh})


def test_swap_leaves_the_rest():
    net = fnn.serial(fnn.repeat(block(), 3), head=fnn.dense(2))
    new = fnn.swap(net, {"repeat1/layer/tanh_1": jnp.sin, "head": fnn.dense(5)})
    params, _ = net.init(key(), (1, 4))
    swapped, _ = new.init(key(), (1, 4))
    assert swapped["head"]["kernel"].shape == (4, 5)
    jax.tree.map(np.testing.assert_array_equal, swapped["repeat1"], params["repeat1"])
    x = jnp.ones((1, 4))
    for i in range(3):
        dense = jax.tree.map(lambda a, i=i: a[i], params["repeat1"]["layer"]["dense1"])
        x = x + jnp.sin(x @ dense["kernel"])
    _, outputs = fnn.tap(new, "repeat1")(swapped, jnp.ones((1, 4)))
    np.testing.assert_allclose(outputs["repeat1"], x, rtol=1e-5)


# --- nan_report


def log_net():
    return fnn.serial(fnn.dense(4), jnp.log, fnn.dense(2))


def test_nothing_to_report():
    net = fnn.serial(fnn.repeat(block(), 2), fnn.batch_norm())
    params, state = net.init(key(), (5, 4))
    options = {"state": state, "key": key(1), "train": True}
    assert nan_report(net, params, jnp.ones((5, 4)), **options) is None


def test_forward_the_first_that_is_bad():
    net = log_net()
    params, _ = net.init(key(), (3, 4))
    found = nan_report(net, params, jax.random.normal(key(1), (3, 4)))
    assert found[:3] == ("log_1", "output", ()) and found.nan > 0 and found.size == 12
    params["dense2"]["kernel"] = params["dense2"]["kernel"].at[0, 0].set(jnp.inf)
    safe = fnn.swap(net, {"log_1": jnp.tanh})
    assert nan_report(safe, params, jnp.ones((3, 4))) == (
        "dense2",
        "kernel",
        (),
        0,
        1,
        8,
    )
    bad = jnp.ones((3, 4)).at[0, 0].set(jnp.nan)
    assert nan_report(safe, params, bad)[:2] == ("", "input")


def test_backward_where_the_gradient_begins_to_be_bad():
    net = fnn.serial(fnn.dense(4), lambda x: jnp.sqrt(jnp.abs(x)), fnn.dense(2))
    params, _ = net.init(key(), (3, 4))
    found = nan_report(net, params, jnp.zeros((3, 4)))  # the root's slope at 0 is infinite
    assert found[:2] == ("lambda_1", "gradient of input")
    fine = nan_report(net, params, jax.random.normal(key(1), (3, 4)), loss=jnp.mean)
    assert fine is None
    found = nan_report(
        net, params, jax.random.normal(key(1), (3, 4)), loss=lambda y: jnp.sqrt(0 * y.sum())
    )
    assert found[:2] == ("", "gradient of output")


def test_the_member_of_a_stack():
    net = fnn.serial(first=fnn.dense(4), many=fnn.repeat(fnn.serial(fnn.dense(4), jnp.tanh), 5))
    params, _ = net.init(key(), (3, 4))
    kernel = params["many"]["dense1"]["kernel"]
    params["many"]["dense1"]["kernel"] = kernel.at[3, 1, 1].set(jnp.nan)
    found = nan_report(net, params, jnp.ones((3, 4)))
    assert found == ("many/dense1", "kernel", (3,), 1, 0, 16)
    assert str(found) == "many/dense1 (member 3): kernel has 1 NaN, 0 inf of 16"
    params["many"]["dense1"]["kernel"] = kernel.at[2].set(3e38)
    found = nan_report(net, params, jnp.ones((3, 4)))
    assert found is None or found[:3] == ("many/dense1", "output", (2,))


def test_layers_inside_a_transform_of_the_body():
    @fnn.compose(inner=log_net(), out=fnn.dense(1))
    def net(f, x):
        return f.out(jax.lax.scan(lambda c, _: (jnp.tanh(c), f.inner(c)), x, length=2)[1][0])

    params, _ = net.init(key(), (3, 4))
    found = nan_report(net, params, -jnp.ones((3, 4)))
    assert found[:2] == ("out", "input")


def test_inside_reparametrizations():
    inside = fnn.serial(fnn.dense(3), jnp.log, fnn.batch_norm())
    x = jax.random.normal(key(1), (4, 3))
    for net in (
        fnn.lora(inside, 2),
        fnn.weight_norm(inside),
        fnn.reparam(inside, lambda p: {"half": p}, lambda p: p["half"]),
    ):
        params, state = net.init(key(), x)
        found = nan_report(net, params, x, state=state)
        assert found[:2] == ("log_1", "output")
        assert fnn.tap(net, "log_1")(params, x, state=state)[1]["log_1"].shape == (4, 3)
    with pytest.raises(errors.ShapeError, match="nan_report: expected a scalar loss"):
        nan_report(net, params, jnp.ones((4, 3)), state=state, loss=lambda y: y)


def test_nan_is_found_where_jax_raises_at_it():
    net = fnn.serial(fnn.dense(3), jnp.log)
    params, _ = net.init(jax.random.key(0), (1, 2))
    x = np.full((1, 2), np.nan, np.float32)
    with jax.debug_nans(True):
        assert nan_report(net, params, x).nan == 2
