"""Norms against their loops: values, derivatives, dtypes and statistics."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fnn
from fnn import errors
from tests.layers import oracles
from tests.layers.support import (
    DTYPES,
    KEY,
    assert_trees_close,
    drawn,
    rounded,
    run_and_pull_all,
    seeds,
    spec_shapes,
    wide,
)
from tests.support import asarray, assert_close, numeric_vjp, same_under_jit


@jax.jit
def train_and_pull(momentum, eps, params, state, x, dy):
    """y, the new state, and the gradients of sum(y * dy), as one program: options are tracers."""
    layer = fnn.batch_norm(momentum=momentum, eps=eps)

    def run(params, x):
        return layer.apply(params, state, x, train=True)

    y, vjp, state = jax.vjp(run, params, x, has_aux=True)
    return y, state, *vjp(dy)


@jax.jit
def evaluate_and_pull(params, state, x, dy):
    layer = fnn.batch_norm()
    y, vjp, state = jax.vjp(lambda x: layer.apply(params, state, x), x, has_aux=True)
    return y, state, layer(params, x, state=state), *vjp(dy)


def batch_norm_arrays(shape, seed):
    draw = np.random.default_rng(seed).normal
    c = shape[-1]
    params = {"scale": draw(size=c), "bias": draw(size=c)}
    state = {"mean": draw(size=c), "var": draw(size=c) ** 2}
    return params, state, draw(size=shape) * 2 + 1


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@given(
    shape=st.sampled_from([(1, 2), (2, 1), (7, 1), (2, 3, 2)]),
    momentum=st.sampled_from([0.0, 0.9]),
    eps=st.sampled_from([1e-5, 1e-1]),
    seed=seeds,
)
def test_batch_norm_training_is_the_formula(dtype, shape, momentum, eps, seed):
    params, state, x = batch_norm_arrays(shape, seed)
    c = (shape[-1],)
    assert spec_shapes(fnn.batch_norm(), x) == ({"scale": c, "bias": c}, {"mean": c, "var": c})
    tolerance = 1e-10 if dtype == "float64" else 1e-4  # 1 / sqrt(eps) is up to 300
    with wide(dtype):
        (params, state, x), (exact, old, exact_x) = rounded((params, state, x), dtype)

        dy, exact_dy = rounded(np.random.default_rng(7).normal(size=x.shape), dtype)
        numbers = asarray(momentum, dtype), asarray(eps, dtype)
        y, new, dparams, dx = train_and_pull(*numbers, params, state, x, dy)
        want, mean, var = oracles.batch_norm_train(
            exact_x, **exact, **old, momentum=momentum, eps=eps
        )
        assert_close(y, want, dtype=dtype, tolerance=tolerance)
        assert_trees_close(new, {"mean": mean, "var": var}, dtype)
        want_dx, dscale, dbias = oracles.batch_norm_train_backward(
            exact_x, exact["scale"], exact_dy, eps=eps
        )
        # with few rows dx is a small difference of terms of size scale / sqrt(eps)
        assert_close(dx, want_dx, dtype=dtype, tolerance=tolerance * (1 if len(x) > 2 else 10))
        assert_trees_close(dparams, {"scale": dscale, "bias": dbias}, dtype, tolerance)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@given(shape=st.sampled_from([(2,), (0, 2), (1, 1), (2, 3, 2)]), seed=seeds)
def test_batch_norm_evaluation_uses_the_running_statistics(dtype, shape, seed):
    params, state, x = batch_norm_arrays(shape, seed)
    with wide(dtype):
        (params, state, x), (exact, old, exact_x) = rounded((params, state, x), dtype)
        dy, exact_dy = rounded(np.random.default_rng(7).normal(size=x.shape), dtype)
        y, new, called, dx = evaluate_and_pull(params, state, x, dy)
        assert_close(y, oracles.batch_norm_eval(exact_x, **exact, **old), dtype=dtype)
        np.testing.assert_array_equal(called, y)
        assert jax.tree.all(jax.tree.map(np.array_equal, new, state))
        assert_close(dx, exact_dy * exact["scale"] / np.sqrt(old["var"] + 1e-5), dtype=dtype)


@pytest.mark.parametrize("shape", [(4,), (1, 4), (1, 1, 1, 4)])
def test_batch_norm_of_one_row_is_its_bias_and_has_no_gradient(shape):
    params, state, x = batch_norm_arrays(shape, 0)
    (params, state, x), (exact, old, exact_x) = rounded((params, state, x), "float32")
    layer = fnn.batch_norm()

    def run(params, x):
        return layer.apply(params, state, x, train=True)

    y, vjp, new = jax.vjp(run, params, x, has_aux=True)
    assert_close(y, np.broadcast_to(exact["bias"], shape), dtype="float32")
    _, mean, var = oracles.batch_norm_train(exact_x, **exact, **old)
    assert_trees_close(new, {"mean": mean, "var": var}, "float32")
    dparams, dx = vjp(jnp.ones_like(y))
    np.testing.assert_array_equal(dx, np.zeros(shape))
    np.testing.assert_array_equal(dparams["scale"], np.zeros(4))


def far_from_zero(shape=(8, 6, 6, 3)):
    """Mean 1000, deviation 0.1, as float32 holds it."""
    return np.float32(1000 + 0.1 * np.random.default_rng(0).normal(size=shape))


UNIT = {"scale": np.ones(3, "float32"), "bias": np.zeros(3, "float32")}
START = {"mean": np.zeros(3, "float32"), "var": np.ones(3, "float32")}


@pytest.mark.parametrize("jit", [False, True])
def test_batch_norm_float32_is_right_at_mean_1000(jit):
    x = far_from_zero()

    def run(params, x):
        return fnn.batch_norm(momentum=0.5).apply(params, START, x, train=True)

    run = jax.jit(run) if jit else run
    y, vjp, new = jax.vjp(run, UNIT, asarray(x), has_aux=True)
    want, mean, var = oracles.batch_norm_train(x, **UNIT, **START, momentum=0.5)
    np.testing.assert_allclose(y, want, atol=2e-3)  # in deviations
    np.testing.assert_allclose(new["mean"], mean, atol=2e-4)
    np.testing.assert_allclose(2 * new["var"] - 1, 2 * var - 1, rtol=1e-3)
    np.testing.assert_allclose(np.var(y, (0, 1, 2)), 0.01 / (0.01 + 1e-5), rtol=0.1)
    dy = np.float32(np.random.default_rng(1).normal(size=x.shape))
    dx = vjp(asarray(dy))[1]
    want_dx, _, _ = oracles.batch_norm_train_backward(x, UNIT["scale"], dy)
    np.testing.assert_allclose(dx, want_dx, atol=2e-3 * np.abs(want_dx).max())


@pytest.mark.parametrize("at", [0, 1000])
def test_batch_norm_axis_name_takes_the_statistics_of_all_lanes(at):
    x = far_from_zero((4, 5, 3)) - 1000 + at
    layer = fnn.batch_norm(axis_name="lane")
    params = {"scale": np.float32([1, 2, 3]), "bias": np.float32([0, 1, -1])}

    def lanes(params, x):
        def run(x):
            return layer.apply(params, START, x, train=True)

        return jax.vmap(run, axis_name="lane")(x)

    y, vjp, new = jax.vjp(lanes, params, asarray(x), has_aux=True)
    want, mean, var = oracles.batch_norm_train(x, **params, **START)
    atol = 1e-5 if at == 0 else 2e-3
    np.testing.assert_allclose(y, want, atol=5 * atol)
    for lane in range(4):  # every lane holds the same new statistics
        np.testing.assert_allclose(new["mean"][lane], mean, atol=1e-6 * (1 + at))
        np.testing.assert_allclose(new["var"][lane], var, rtol=1e-4)
    dy = np.float32(np.random.default_rng(1).normal(size=x.shape))
    dparams, dx = vjp(asarray(dy))
    want_dx, dscale, dbias = oracles.batch_norm_train_backward(x, params["scale"], dy)
    np.testing.assert_allclose(dx, want_dx, atol=5 * atol * np.abs(want_dx).max())
    np.testing.assert_allclose(dparams["scale"], dscale, atol=50 * atol)
    np.testing.assert_allclose(dparams["bias"], dbias, atol=1e-5)


@pytest.mark.parametrize("train", [True, False])
def test_batch_norm_of_bfloat16_keeps_float32_statistics(train):
    """Statistics summed in bfloat16 would be off by percents over 288 rows."""
    x = asarray(far_from_zero() - 999, "bfloat16")  # mean 1
    params = {k: asarray(v, "bfloat16") for k, v in UNIT.items()}
    y, new = fnn.batch_norm().apply(params, START, x, train=train)
    want, mean, var = oracles.batch_norm_train(np.float64(x), **UNIT, **START)
    if not train:
        want = oracles.batch_norm_eval(np.float64(x), **UNIT, **START)
        mean, var = START["mean"], START["var"]
    assert_close(y, want, dtype="bfloat16", tolerance=1e-2)
    assert_trees_close(new, {"mean": mean, "var": var}, "float32")


@pytest.mark.parametrize("use_scale", [True, False])
@pytest.mark.parametrize("use_bias", [True, False])
def test_batch_norm_without_scale_or_bias(use_scale, use_bias):
    layer = fnn.batch_norm(use_scale=use_scale, use_bias=use_bias)
    x = np.float32(np.random.default_rng(0).normal(size=(6, 3)))
    params, state = layer.init(jax.random.key(0), x)
    assert set(params) == {k for k, used in [("scale", use_scale), ("bias", use_bias)] if used}
    np.testing.assert_array_equal(state["mean"], START["mean"])
    np.testing.assert_array_equal(state["var"], START["var"])
    y, _ = layer.apply(params, state, asarray(x), train=True)
    assert_close(y, oracles.batch_norm_train(x, **UNIT, **START)[0], dtype="float32")


def test_batch_norm_of_large_constant_channels_is_zero():
    values = np.random.default_rng(0).normal(size=(1, 2000)) * 1e8
    x = asarray(np.broadcast_to(values, (7, 2000)), jnp.float32)
    net = fnn.batch_norm()
    params, state = net.init(jax.random.key(0), x)
    y, new = jax.jit(lambda x: net.apply(params, state, x, train=True))(x)
    assert np.isfinite(y).all() and (np.asarray(new["var"]) >= 0).all()


NORMS = {  # the layer for an eps, its oracle for (x, scale, bias, eps), and shapes of x
    "layer": (
        lambda eps: fnn.layer_norm(eps=eps),
        oracles.layer_norm,
        [(4,), (2, 1, 3)],
    ),
    "rms": (
        lambda eps: fnn.rms_norm(eps=eps),
        lambda x, scale, bias, eps: oracles.rms_norm(x, scale, eps),
        [(2, 1, 3)],
    ),
    "group": (
        lambda eps: fnn.group_norm(2, 2, eps=eps),
        lambda x, *args: oracles.group_norm(x, 2, 2, *args),
        [(2, 1, 4), (2, 3, 2, 2)],
    ),
    "group of vectors": (
        lambda eps: fnn.group_norm(3, 0, eps=eps),
        lambda x, *args: oracles.group_norm(x, 3, 0, *args),
        [(2, 6)],
    ),
    "instance": (
        lambda eps: fnn.instance_norm(1, eps=eps),
        lambda x, *args: oracles.group_norm(x, x.shape[-1], 1, *args),
        [(2, 3, 2)],
    ),
}
CENTRED = [name for name in NORMS if name != "rms"]


@partial(jax.jit, static_argnums=0)
def norm_and_pull(name, eps, params, x, dy):
    y, vjp = jax.vjp(NORMS[name][0](eps), params, x)
    return y, *vjp(dy)


def norm_params(name, scale, bias):
    return {"scale": scale} if name == "rms" else {"scale": scale, "bias": bias}


@pytest.mark.parametrize("name", NORMS)
@given(data=st.data(), dtype=st.sampled_from(DTYPES), eps=st.sampled_from([1e-5, 0.5]), seed=seeds)
def test_norms_are_their_loops(name, data, dtype, eps, seed):
    _, oracle, shapes = NORMS[name]
    shape = data.draw(st.sampled_from(shapes))
    c = shape[-1:]
    with wide(dtype):
        (x, scale, bias, dy), exact = drawn(dtype, seed, shape, c, c, shape)
        exact_x, exact_scale, exact_bias, exact_dy = exact
        params = norm_params(name, scale, bias)
        y, dparams, dx = norm_and_pull(name, asarray(eps, dtype), params, x, dy)
        eps = float(asarray(eps, dtype))
        tolerance = {"float64": 1e-10, "float32": 1e-4, "bfloat16": 3e-2}[dtype]
        want = oracle(exact_x, exact_scale, exact_bias, eps)
        assert_close(y, want, dtype=dtype, tolerance=tolerance)
        if dtype == "bfloat16" or np.prod(shape) > 12:
            return
        tolerance = 1e-4 if dtype == "float64" else 1e-2  # differences; 1 / sqrt(eps) is up to 300
        pull = {
            "x": (dx, lambda x: oracle(x, exact_scale, exact_bias, eps), exact_x),
            "scale": (dparams["scale"], lambda s: oracle(exact_x, s, exact_bias, eps), exact_scale),
        }
        if name != "rms":
            pull["bias"] = (
                dparams["bias"],
                lambda b: oracle(exact_x, exact_scale, b, eps),
                exact_bias,
            )
        for got, f, at in pull.values():
            step = 1e-5 * min(1.0, eps**0.5)
            assert_close(got, numeric_vjp(f, at, exact_dy, step), dtype=dtype, tolerance=tolerance)


@pytest.mark.parametrize("name", CENTRED)
def test_norms_in_float32_are_right_at_mean_1000(name):
    """A variance from sums of squares would be off by 100% here; a mean alone, by 1e-3 in y."""
    shape = {"layer": (8, 300), "group of vectors": (8, 300)}.get(name, (3, 12, 12, 6))
    groups, spatial_axes = {"layer": (1, 0), "group": (2, 2), "group of vectors": (3, 0)}.get(
        name, (6, 1)
    )
    x = np.float32(1000 + 0.1 * np.random.default_rng(0).normal(size=shape))
    dy = np.float32(np.random.default_rng(1).normal(size=shape))
    one, zero = np.ones(shape[-1], "float32"), np.zeros(shape[-1], "float32")
    params = {"scale": one, "bias": zero}
    y, _, dx = norm_and_pull(name, jnp.float32(1e-5), params, asarray(x), asarray(dy))
    want = oracles.group_norm(x, groups, spatial_axes, one, zero, 1e-5)
    np.testing.assert_allclose(y, want, atol=3e-5)
    want = oracles.group_norm_backward(x, groups, spatial_axes, one, dy, 1e-5)
    np.testing.assert_allclose(dx, want, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize("name", CENTRED)
def test_norms_of_bfloat16_keep_wide_statistics(name):
    """Sums of hundreds of values in bfloat16 would be off by percents."""
    make, oracle, _ = NORMS[name]
    shape = {"layer": (2, 600), "group of vectors": (2, 600)}.get(name, (2, 20, 20, 2))
    x = asarray(3 + np.random.default_rng(0).normal(size=shape), "bfloat16")
    one, zero = jnp.ones(shape[-1], x.dtype), jnp.zeros(shape[-1], x.dtype)
    y = make(1e-5)({"scale": one, "bias": zero}, x)
    want = oracle(np.float64(x), np.ones(shape[-1]), np.zeros(shape[-1]), 1e-5)
    np.testing.assert_allclose(np.float64(y), want, rtol=5e-3, atol=5e-3)  # a rounding of y


@pytest.mark.parametrize("name", NORMS)
def test_norms_of_constants_are_their_bias_with_finite_derivatives(name):
    make, _, shapes = NORMS[name]
    shape, c = shapes[-1], shapes[-1][-1]
    params = norm_params(name, jnp.full(c, 2.0), jnp.arange(1.0, c + 1))

    @jax.jit
    def run(x):
        def loss(params, x):
            y = make(1e-5)(params, x)
            return jnp.sum(jnp.sin(y)), y

        gradient, y = jax.grad(loss, (0, 1), has_aux=True)(params, x)
        second = jax.jvp(jax.grad(lambda x: loss(params, x)[0]), (x,), (dx,))[1]
        return y, gradient, second

    dx = asarray(np.random.default_rng(0).normal(size=shape), "float32")
    for value in (0.0, 3.0, 1e8):
        y, *derivatives = run(jnp.full(shape, value))
        want = 2 * np.sign(value) if name == "rms" else params["bias"]
        np.testing.assert_allclose(y, np.broadcast_to(want, shape), rtol=1e-5)
        assert all(np.isfinite(a).all() for a in jax.tree.leaves(derivatives))


@pytest.mark.parametrize(
    "layer, shape",
    [
        (fnn.layer_norm(), (0, 3)),
        (fnn.layer_norm(), (2, 0)),
        (fnn.rms_norm(), (0, 3)),
        (fnn.rms_norm(), (2, 0)),
        (fnn.group_norm(2, 1), (0, 3, 4)),
        (fnn.group_norm(2, 1), (2, 0, 4)),
        (fnn.group_norm(2, 1), (2, 3, 0)),
        (fnn.instance_norm(1), (0, 3, 4)),
        (fnn.instance_norm(1), (2, 0, 4)),
    ],
)
def test_norms_of_nothing(layer, shape):
    params, state = layer.init(KEY, shape)
    y, *gradients = run_and_pull_all(layer, params, (jnp.zeros(shape),), jnp.zeros(shape))
    assert y.shape == shape and state == {}
    for gradient in jax.tree.leaves(gradients):
        np.testing.assert_array_equal(gradient, np.zeros(gradient.shape))


def test_norms_leave_out_what_is_not_used():
    for build in (
        fnn.layer_norm, partial(fnn.group_norm, 2, 1), partial(fnn.instance_norm, 1)
    ):  # fmt: skip
        for scale in (False, True):
            for bias in (False, True):
                layer = build(use_scale=scale, use_bias=bias)
                params, _ = layer.init(KEY, (2, 3, 4))
                assert set(params) == {k for k, on in [("scale", scale), ("bias", bias)] if on}
                assert layer(params, jnp.ones((2, 3, 4))).shape == (2, 3, 4)
    assert fnn.rms_norm(use_scale=False).init(KEY, (2, 3)) == ({}, {})


def test_group_norm_refuses_channels_that_do_not_divide():
    error = same_under_jit(partial(fnn.group_norm(3, 1), {}), jnp.ones((2, 3, 4)))
    assert isinstance(error, errors.ShapeError) and "divisible by groups=3" in str(error)


def slope(f, at, along, h=1e-3):
    """The derivative of f(x, eps) along a direction, to h^4."""
    values = [f(*(a + k * h * d for a, d in zip(at, along, strict=True))) for k in (-2, -1, 1, 2)]
    return np.dot([1, -8, 8, -1], values) / (12 * h)


@pytest.mark.parametrize("x", [[1.0, -2.0, 0.5, 4.0], [1e3, 1e3 + 0.1, 1e3 - 0.2, 1e3]])
def test_the_derivatives_of_layer_norm_are_numeric(x):
    """By x and eps at once, forward and backward, once and twice."""
    rng = np.random.default_rng(0)
    dy, at, along = rng.normal(size=4), (np.array(x), np.array(0.1)), (rng.normal(size=4), 0.3)

    def oracle(x, eps):
        return np.sum(dy * oracles.layer_norm(x, np.ones(4), np.zeros(4), eps))

    def loss(x, eps):
        net = fnn.layer_norm(eps=eps, use_scale=False, use_bias=False)
        return jnp.sum(asarray(dy) * net({}, x))

    @jax.jit
    def derivatives(at, along):
        def first(*at):
            return jax.jvp(loss, at, along)[1]

        return first(*at), jax.grad(loss, (0, 1))(*at), jax.jvp(first, at, along)[1]

    with jax.enable_x64(True):
        found = derivatives(*jax.tree.map(asarray, (at, along)))
    first, (by_x, by_eps), second = jax.tree.map(np.asarray, found)
    want = slope(oracle, at, along)
    np.testing.assert_allclose(first, want, rtol=1e-7)
    np.testing.assert_allclose(np.vdot(by_x, along[0]) + by_eps * along[1], want, rtol=1e-7)
    twice = slope(lambda *at: slope(oracle, at, along), at, along)
    np.testing.assert_allclose(second, twice, rtol=1e-5)


@pytest.mark.cpu
def test_the_gradient_of_a_transformer_of_twice_the_depth_is_twice_as_long():
    """A compiler that computes the gradient of each norm again for all below it makes it thrice."""

    def operations(depth):
        block = (fnn.layer_norm(), fnn.dense(8), jax.nn.relu, fnn.dense(4))
        net = fnn.serial(*(fnn.residual(fnn.serial(*block)) for _ in range(depth)))
        params, _ = net.init(jax.random.key(0), (2, 4))
        grad = jax.jit(jax.grad(lambda params, x: jnp.square(net(params, x)).mean()))
        return grad.lower(params, jnp.ones((2, 4))).compile().as_text().count(" = ")

    assert operations(8) < 2.25 * operations(4)
