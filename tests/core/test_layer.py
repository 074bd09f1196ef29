"""The heart: compose and its hard cases, strictness, keys, shapes."""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import fnn
from fnn import errors
from fnn.initializers import normal, zeros


def key(i=0):
    return jax.random.key(i)


# --- what a network is


def test_serial_is_the_composition_of_functions():
    net = fnn.serial(fnn.dense(8), jnp.tanh, fnn.dense(3))
    params, state = net.init(key(), (1, 4))
    x = jax.random.normal(key(1), (5, 4))
    a, b = params["dense1"], params["dense2"]
    hidden = np.tanh(np.asarray(x) @ np.asarray(a["kernel"]) + np.asarray(a["bias"]))
    wanted = hidden @ np.asarray(b["kernel"]) + np.asarray(b["bias"])
    np.testing.assert_allclose(net(params, x), wanted, rtol=1e-5, atol=1e-6)
    assert state == {}


def test_names_are_kind_and_number_and_functions_do_not_count():
    net = fnn.serial(
        fnn.conv(2, (3,)),
        jax.nn.relu,
        fnn.conv(2, (3,)),
        lambda x: x,
        fnn.dense(1),
        head=fnn.dense(1),
    )
    params, _ = net.init(key(), (1, 4, 1))
    assert list(params) == ["conv1", "conv2", "dense1", "head"]
    assert [name for name, _ in net.children] == [
        "conv1", "relu_1", "conv2", "lambda_1", "dense1", "head",
    ]  # fmt: skip


def test_serial_loses_no_layer():
    def named(name):
        return fnn.leaf(name, lambda x: ({}, {}), lambda p, s, x, *, key, train: (x, s))

    with pytest.raises(errors.OptionError, match="two of block11"):
        fnn.serial(named("block1"), *[named("block") for _ in range(11)])
    with pytest.raises(errors.OptionError, match="two of dense1"):
        fnn.serial(fnn.dense(1), dense1=fnn.dense(1))
    with pytest.raises(errors.InputError, match="expected 1 input, got 2"):
        fnn.serial()({}, jnp.ones(1), jnp.ones(1))
    with pytest.raises(
        errors.InputError, match="^batch_norm: |^a: .*the builder batch_norm; build"
    ):
        fnn.compose(a=fnn.batch_norm)

    def _private(x):
        return x + 1

    assert fnn.serial(_private, lambda x: x)({}, jnp.ones(1)) == 2


def test_a_layer_is_a_value_with_identity():
    one, two = fnn.dense(3), fnn.dense(3)
    assert one != two and len({one, two, one}) == 2
    assert jax.tree.leaves(one) == [one]  # a leaf, never a tree
    with pytest.raises(AttributeError):
        one.name = "other"


def test_tuples_pass_as_one_value():
    net = fnn.serial(lambda x: (x, 2 * x), lambda pair: pair[0] + pair[1])
    assert net({}, jnp.ones(2)).tolist() == [3, 3]


def test_several_inputs_and_outputs():
    @fnn.compose(a=fnn.dense(2), b=fnn.dense(3))
    def both(f, x, tree):
        return {"sum": f.a(x) + 1, "rest": (f.b(tree["y"]), x)}

    params, _ = both.init(key(), (1, 4), {"y": (1, 5)})
    out = both(params, jnp.ones((2, 4)), {"y": jnp.ones((2, 5))})
    assert jax.tree.map(jnp.shape, out) == {"sum": (2, 2), "rest": ((2, 3), (2, 4))}


def test_inputs_may_be_any_tree():
    class Pair(NamedTuple):
        left: Any
        right: Any

    net = fnn.compose(d=fnn.dense(2))(lambda f, pair: f.d(pair.left) + f.d(pair.right))
    params, _ = net.init(key(), Pair((1, 3), (1, 3)))
    assert net(params, Pair(jnp.ones((4, 3)), jnp.ones((4, 3)))).shape == (4, 2)
    scalars = fnn.serial(lambda x: (x.sum(), x.argmax()), fnn.compose()(lambda f, two: two[0]))
    assert jax.jit(lambda x: scalars.init(key(), x) and scalars({}, x))(jnp.ones(3)) == 3


def test_init_runs_no_body_eagerly_and_takes_shapes_structs_and_arrays():
    def body(f, x):
        assert isinstance(x, jax.core.Tracer)
        return f.dense(x)

    net = fnn.compose(dense=fnn.dense(2))(body)
    inits = [
        net.init(key(), x)[0]
        for x in ((3, 4), jax.ShapeDtypeStruct((3, 4), "f4"), np.zeros((3, 4), "f4"))
    ]
    assert all(jnp.array_equal(p["dense"]["kernel"], inits[0]["dense"]["kernel"]) for p in inits)


def test_jit_of_init_with_a_shape_says_what_to_do():
    with pytest.raises(errors.InputError, match=r"close over it, as jax.jit\(lambda key"):
        jax.jit(fnn.dense(3).init)(key(), (2, 4))


def test_shared_weights_are_one_entry():
    @fnn.compose(d=fnn.dense(4, use_bias=False))
    def twice(f, x):
        return f.d(f.d(x))

    params, _ = twice.init(key(), (1, 4))
    k = params["d"]["kernel"]
    np.testing.assert_allclose(twice(params, jnp.eye(4)), k @ k, rtol=1e-5, atol=1e-6)


def test_raw_params_of_a_sublayer():
    @fnn.compose(d=fnn.dense(3, use_bias=False))
    def tied(f, x):
        return f.d(x) @ f.d.params["kernel"].T

    params, _ = tied.init(key(), (1, 4))
    k = params["d"]["kernel"]
    np.testing.assert_allclose(tied(params, jnp.eye(4)), k @ k.T, rtol=1e-5, atol=1e-6)

    early = fnn.compose(d=fnn.dense(3))(lambda f, x: f.d(x * f.d.params["kernel"].sum()))
    with pytest.raises(errors.ComposeError, match="call f.d first"):
        early.init(key(), (1, 4))


def test_one_example_and_a_batch():
    net = fnn.serial(fnn.conv(4, (3, 3)), fnn.max_pool((2, 2)), fnn.flatten(3), fnn.dense(2))
    params, _ = net.init(key(), (28, 28, 1))
    x = jax.random.normal(key(1), (2, 3, 28, 28, 1))
    many = net(params, x)
    assert many.shape == (2, 3, 2)
    np.testing.assert_allclose(net(params, x[1, 2]), many[1, 2], rtol=1e-4, atol=1e-5)


def test_map_rebuilds_bottom_up_with_paths():
    net = fnn.serial(fnn.serial(fnn.dense(2), jnp.tanh), fnn.dense(2))
    seen = []

    def note(path, layer):
        seen.append(path)
        return layer

    assert net.map(note) is net
    assert seen == ["serial1/dense1", "serial1/tanh_1", "serial1", "dense1", ""]
    wide = net.map(lambda path, layer: fnn.dense(7) if path == "serial1/dense1" else layer)
    params, _ = wide.init(key(), (1, 3))
    assert params["serial1"]["dense1"]["kernel"].shape == (3, 7)
    assert params["dense1"]["kernel"].shape == (7, 2)


# --- randomness


def test_first_values_depend_on_the_name_alone():
    a = fnn.serial(one=fnn.dense(4), two=fnn.dense(4)).init(key(), (1, 4))[0]
    b = fnn.serial(two=fnn.dense(4), three=fnn.dense(4)).init(key(), (1, 4))[0]
    assert jnp.array_equal(a["two"]["kernel"], b["two"]["kernel"])
    assert not jnp.array_equal(a["one"]["kernel"], a["two"]["kernel"])


def test_dropout_depends_on_the_name_alone():
    def masks(**extra):
        net = fnn.serial(**extra, drop=fnn.dropout(0.5))
        return net.apply({}, {}, jnp.ones(64), key=key(3), train=True)[0]

    assert jnp.array_equal(masks(), masks(relu=jax.nn.relu, noise=fnn.dropout(0.0)))


def test_two_calls_draw_twice_and_f_key_is_ones_own():
    @fnn.compose(drop=fnn.dropout(0.5))
    def body(f, x):
        noise = jax.random.normal(f.key("noise"), x.shape)
        again = jax.random.normal(f.key("noise"), x.shape)
        return f.drop(x), f.drop(x), noise, again

    outs, _ = body.apply({}, {}, jnp.ones(64), key=key(), train=True)
    assert not any(jnp.array_equal(a, b) for a, b in itertools.combinations(outs, 2))
    same, _ = body.apply({}, {}, jnp.ones(64), key=key(), train=True)
    assert all(jnp.array_equal(a, b) for a, b in zip(outs, same, strict=True))
    with pytest.raises(errors.RandomKeyError, match="pass key="):
        body.apply({}, {}, jnp.ones(64), train=True)


def test_f_train_is_the_mode():
    net = fnn.compose()(lambda f, x: x if f.train else -x)
    assert net.apply({}, {}, 1.0 * jnp.ones(()), train=True)[0] == 1
    assert net({}, jnp.ones(())) == -1


@pytest.mark.parametrize("bad", [0, None, jnp.zeros((2, 2)), "key"])
def test_a_wrong_key(bad):
    with pytest.raises(errors.RandomKeyError, match=r"jax.random.key\(0\)"):
        fnn.serial(fnn.dense(2)).init(bad, (1, 2))


def test_many_keys_for_one_init():
    with pytest.raises(errors.RandomKeyError, match="vmap"):
        fnn.dense(2).init(jax.random.split(key(), 3), (1, 2))


# --- the hard cases


def test_every_declared_sublayer_must_be_called():
    net = fnn.compose(a=fnn.dense(2), b=fnn.dense(2))(lambda f, x: f.a(x))
    with pytest.raises(errors.ComposeError, match="no call of b"):
        net.init(key(), (1, 2))


def test_calls_must_agree():
    net = fnn.compose(a=fnn.dense(2))(lambda f, x: f.a(f.a(x)))
    with pytest.raises(errors.ComposeError) as raised:
        net.init(key(), (1, 3))
    for shape in ("(3, 2)", "(2, 2)", "(1, 3)", "(1, 2)"):
        assert shape in str(raised.value)


def test_unknown_sublayer():
    net = fnn.compose(a=fnn.dense(2))(lambda f, x: f.b(x))
    with pytest.raises(AttributeError, match="declared sublayers a, got b"):
        net.init(key(), (1, 2))


@pytest.mark.parametrize("name", ["key", "train", "_x", "a/b", "class"])
def test_reserved_names(name):
    with pytest.raises(errors.OptionError, match="rename"):
        fnn.compose(**{name: fnn.dense(2)})


def inside_scan(g, x):
    return jax.lax.scan(lambda carry, row: (carry, g(row)), 0, x)[1]


def inside_cond(g, x):
    return jax.lax.cond(x.sum() > 1e9, jnp.zeros_like, g, x)


def inside_grad(g, x):
    return jax.grad(lambda x: g(x).sum())(x)


TRANSFORMS = {
    "scan": inside_scan,
    "vmap": lambda g, x: jax.vmap(g)(x),
    "cond": inside_cond,
    "grad": inside_grad,
    "checkpoint": lambda g, x: jax.checkpoint(g)(x),
    "jit": lambda g, x: jax.jit(g)(x),
}


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_sublayers_inside_a_transform_of_the_body(name, jit):
    within, maybe = TRANSFORMS[name], jax.jit if jit else lambda f: f
    x = jax.random.normal(key(1), (4, 3))

    dense = fnn.compose(d=fnn.dense(3))(lambda f, x: within(f.d, x))
    params, _ = dense.init(key(), x)  # no key and no state: it works
    d = lambda x: x @ params["d"]["kernel"] + params["d"]["bias"]  # noqa: E731
    got = maybe(lambda p, x: dense.apply(p, {}, x, key=key(), train=True)[0])(params, x)
    np.testing.assert_allclose(got, within(d, x), rtol=1e-5, atol=1e-6)

    drop = fnn.compose(d=fnn.dropout(0.5))(lambda f, x: within(f.d, x))
    assert maybe(drop)({}, x).shape == x.shape  # evaluation draws nothing
    with pytest.raises(errors.TransformError, match="^d: .*repeat, rnn, ensemble or remat"):
        maybe(lambda x: drop.apply({}, {}, x, key=key(), train=True)[0])(x)
    assert drop.init(key(), x) == ({}, {})  # and so does init

    own = fnn.compose()(lambda f, x: within(lambda x: x + jax.random.normal(f.key("n"), ()), x))
    with pytest.raises(errors.TransformError, match=r"f.key\('n'\).*repeat, rnn"):
        maybe(lambda x: own.apply({}, {}, x, key=key())[0])(x)

    norm = fnn.compose(n=fnn.batch_norm())(lambda f, x: within(f.n, x))
    state = {"n": {"mean": jnp.zeros(3), "var": jnp.ones(3)}}
    params = {"n": {"scale": jnp.ones(3), "bias": jnp.zeros(3)}}
    assert maybe(lambda x: norm(params, x, state=state))(x).shape == x.shape
    with pytest.raises(errors.TransformError, match="^n: .*state.*repeat, rnn"):
        maybe(lambda x: norm.apply(params, state, x, train=True)[0])(x)


def test_the_path_in_a_transform_is_the_whole_path():
    inner = fnn.serial(drop=fnn.dropout(0.5))
    net = fnn.compose(inner=inner)(lambda f, x: jax.vmap(f.inner)(x))
    with pytest.raises(errors.TransformError, match="^inner/drop: "):
        net.apply({}, {}, jnp.ones((2, 3)), key=key(), train=True)


def test_the_whole_network_inside_transforms():
    net = fnn.serial(fnn.dense(3), fnn.batch_norm(), fnn.dropout(0.5))
    params, state = net.init(key(), (1, 3))

    def run(x):
        return net.apply(params, state, x, key=key(), train=True)[0]

    x = jnp.ones((2, 4, 3))
    assert jax.vmap(run)(x).shape == x.shape
    assert jax.lax.scan(lambda c, x: (c, run(x)), 0, x)[1].shape == x.shape
    assert jax.jit(jax.vmap(jax.grad(lambda x: run(x).sum())))(x).shape == x.shape


def test_twelve_nested_bodies_are_traced_few_times():
    traces = []

    def nest(layer, depth):
        def body(f, x):
            traces.append(depth)
            return f.inner(x)

        return fnn.compose(inner=layer)(body)

    net = fnn.dense(3)
    for depth in range(12):
        net = nest(net, depth)
    params, state = net.init(key(), (1, 3))
    net(params, jnp.ones((1, 3)))
    assert len(traces) < 100


def test_specs_trace_each_body_once():
    traces = []
    net = fnn.dense(3)
    for _ in range(6):

        def body(f, x):
            traces.append(None)
            return f.inner(x)

        net = fnn.compose(inner=net)(body)
    net.specs((1, 3))
    assert len(traces) == 6


def test_batch_norm_over_a_mapped_axis_initializes_inside_a_network():
    net = fnn.serial(fnn.dense(3), inner=fnn.serial(fnn.batch_norm(axis_name="i")))
    params, state = net.init(key(), (2, 4))
    x = jax.random.normal(key(1), (2, 5, 4))

    def run(x):
        return net.apply(params, state, x, train=True)

    with pytest.raises(NameError, match="unbound axis name"):
        run(x[0])  # training without the axis must not go on silently
    y, new = jax.vmap(run, axis_name="i")(x)
    whole = fnn.serial(fnn.dense(3), inner=fnn.serial(fnn.batch_norm()))
    wanted, _ = whole.apply(params, state, x, train=True)
    np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-5)


def test_no_tracer_leaks():
    net = fnn.serial(fnn.dense(3), fnn.batch_norm(), fnn.dropout(0.5))
    with jax.checking_leaks():
        params, state = net.init(key(), (2, 4))
        jax.jit(lambda x: net.apply(params, state, x, key=key(), train=True))(jnp.ones((2, 4)))


def test_symbolic_spatial_dimensions():
    net = fnn.serial(fnn.conv(2, (3, 3)), fnn.max_pool((2, 2)), fnn.avg_pool((2, 2)))
    shape = export.symbolic_shape("b, 4*h, 4*w, 1")
    params, _ = net.init(key(), shape)
    run = jax.jit(lambda x: net(params, x))
    exported = export.export(run)(jax.ShapeDtypeStruct(shape, jnp.float32))
    x = jax.random.normal(key(1), (2, 8, 12, 1))
    np.testing.assert_allclose(exported.call(x), run(x), rtol=1e-5, atol=1e-6)


def test_symbolic_dimensions_go_through_specs_and_export():
    net = fnn.serial(
        fnn.conv(4, (3, 3)), fnn.batch_norm(), fnn.max_pool((2, 2)), fnn.flatten(3), fnn.dense(2)
    )
    shape = export.symbolic_shape("b, 4, 4, 1")
    params_spec, state_spec = net.specs(shape)
    assert params_spec["dense1"]["kernel"].shape == (16, 2)
    params, state = net.init(key(), shape)
    run = jax.jit(lambda x: net(params, x, state=state))
    exported = export.export(run)(jax.ShapeDtypeStruct(shape, jnp.float32))
    for n in (1, 3):
        x = jax.random.normal(key(n), (n, 4, 4, 1))
        np.testing.assert_allclose(exported.call(x), run(x), rtol=1e-5, atol=1e-6)


# --- state


def test_state_threads_through_two_calls():
    net = fnn.compose(n=fnn.batch_norm(momentum=0.5))(lambda f, x: (f.n(x), f.n(x + 8)))
    params, state = net.init(key(), (4, 2))
    x = jnp.zeros((4, 2))
    _, after = net.apply(params, state, x, train=True)
    np.testing.assert_allclose(after["n"]["mean"], [4, 4])  # 0.5 (0.5 0 + 0.5 0) + 0.5 8
    assert state["n"]["mean"].tolist() == [0, 0]


def test_missing_state_names_the_call_that_mends_it():
    net = fnn.serial(fnn.dense(2), fnn.batch_norm())
    params, _ = net.init(key(), (1, 2))
    with pytest.raises(errors.ParamsError, match=r"^batch_norm1: .*net\(params, x, state=state\)"):
        net(params, jnp.ones((1, 2)))


def test_a_plain_function_comes_with_no_params():
    net = fnn.serial(act=jnp.tanh)
    with pytest.raises(errors.ParamsError, match="^act: .*also w"):
        net({"act": {"w": jnp.ones(1)}}, jnp.ones(2))


# --- errors


def test_the_message_of_the_design():
    inner = fnn.serial(dense1=fnn.dense(4))
    net = fnn.serial(conv2=inner)
    params, _ = net.init(key(), (2, 3))
    wanted = r"^conv2/dense1: expected last axis 3 \(kernel is \(3, 4\)\), got x \(2, 5\)"
    for call in (net, jax.jit(net)):
        with pytest.raises(errors.ShapeError, match=wanted):
            call(params, jnp.ones((2, 5)))


def test_other_dtype_names_the_cast_whatever_the_promotion():
    net = fnn.dense(2)
    params, _ = net.init(key(), (1, 2))
    for promotion in ("standard", "strict"):
        with jax.numpy_dtype_promotion(promotion):
            with pytest.raises(errors.DtypeError, match=r"x.astype\(jnp.float32\)"):
                net(params, jnp.ones((1, 2), jnp.bfloat16))


def test_a_users_exception_passes_with_its_path():
    def broken(x):
        raise ZeroDivisionError("mine")

    net = fnn.serial(outer=fnn.serial(inner=broken))
    for call in (net, jax.jit(net)):
        with pytest.raises(ZeroDivisionError, match="mine") as raised:
            call({}, jnp.ones(1))
        assert "in the fnn layer outer/inner" in raised.value.__notes__


def test_fnn_errors_are_values_or_types():
    kinds = [
        v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, errors.FnnError)
    ]
    assert len(kinds) > 8
    assert all(issubclass(k, (ValueError, TypeError)) for k in kinds if k is not errors.FnnError)


# --- a layer of one's own


def test_a_hand_made_layer():
    def specs(x, y):
        shape = (x.shape[-1], y.shape[-1])
        return {"kernel": fnn.Param(shape, normal(0.1), x.dtype)}, {
            "count": fnn.Param((), zeros, jnp.float32, "statistic")
        }

    def apply(params, state, x, y, *, key, train):
        return x @ params["kernel"] @ y.T, {"count": state["count"] + 1} if train else state

    bilinear = fnn.leaf("bilinear", specs, apply)
    params, state = bilinear.init(key(), (2, 3), (2, 4))
    y, state = bilinear.apply(params, state, jnp.ones((2, 3)), jnp.ones((2, 4)), train=True)
    assert y.shape == (2, 2) and state["count"] == 1
    with pytest.raises(errors.InputError, match="^bilinear: expected 2 inputs, got 1"):
        bilinear.init(key(), (2, 3))


def test_a_hand_made_layer_is_held_to_its_word():
    def one(returned, declared=({}, {})):
        return fnn.leaf("own", lambda x: declared, lambda p, s, x, *, key, train: returned(x, s))

    x = jnp.ones((2, 3))
    with pytest.raises(errors.InputError, match=r"^own: expected apply to return \(y, state\)"):
        one(lambda x, s: x)({}, x)
    with pytest.raises(
        errors.ParamsError, match="^own: expected the new state to be empty, got also n"
    ):
        one(lambda x, s: (x, {"n": x}))({}, x)
    with pytest.raises(errors.InputError, match=r"^own: expected specs to return \(params, state"):
        one(lambda x, s: (x, s), {})({}, x)
    with pytest.raises(errors.OptionError, match="shape to be a tuple"):
        fnn.Param(3, zeros)
    with pytest.raises(errors.OptionError, match="build it, as fnn.initializers"):
        fnn.dense(3, kernel_init=fnn.initializers.lecun_normal)
    assert repr(fnn.serial(fnn.dense(3), jnp.tanh)) == "serial(dense1=dense, tanh_1=tanh)"


def test_derived_params():
    def specs(x):
        drawn = {"a": fnn.Param((2, 3), normal()), "b": fnn.Param((2, 3), normal())}
        return {"pair": fnn.Derived(lambda t: {"sum": t["a"] + t["b"]}, drawn)}, {}

    def apply(params, state, x, *, key, train):
        return x @ params["pair"]["sum"], state

    layer = fnn.leaf("pair", specs, apply)
    params, _ = layer.init(key(), (1, 2))
    assert jax.tree.map(jnp.shape, params) == {"pair": {"sum": (2, 3)}}
    assert layer(params, jnp.ones((1, 2))).shape == (1, 3)
    with pytest.raises(errors.ParamsError):
        layer({"pair": {}}, jnp.ones((1, 2)))


def test_map_keeps_name_and_carry():
    inner = fnn.serial(d=fnn.dense(2))
    cell = fnn.Layer(
        "cell", inner.specs, inner.apply, inner.children, inner.rebuild, lambda params, x: 0
    )
    swapped = cell.map(lambda path, layer: fnn.dense(3) if path == "d" else layer)
    assert swapped.name == "cell" and swapped.carry is cell.carry and swapped is not cell


def test_carry_is_reached_through_f():
    @fnn.compose(d=fnn.dense(2))
    def cell(f, carry, x):
        y = f.d(x) + carry
        return y, y

    cell = fnn.Layer("cell", cell.specs, cell.apply, carry=lambda params, x: jnp.zeros(2))
    net = fnn.compose(cell=cell)(lambda f, x: f.cell(f.cell.carry(x), x)[1])
    params = {"cell": {"d": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}}}
    np.testing.assert_allclose(net(params, jnp.ones(3)), [4, 4])


def test_a_combinator_has_no_params_of_its_own():
    with pytest.raises(fnn.errors.InputError, match=r"declare it in a fnn\.leaf"):
        fnn.compose(alpha=fnn.Param((), fnn.initializers.zeros))(lambda f, x: x)
