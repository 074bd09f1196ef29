"""Norms, noise, embeddings, bilinear forms and PReLU against float64 loops and statistics."""

from contextlib import nullcontext
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fnn
from fnn import errors
from fnn.testing import layers as testing
from fnn.testing import mutations
from tests.layers import oracles_kit as oracles
from tests.support import (
    BAD_OPTIONS,
    NOT_ARRAYS,
    assert_close,
    assert_teaches,
    numeric_vjp,
    outcome,
    same_under_jit,
    shape_mutations,
)

DTYPES = ("float64", "float32", "bfloat16")
seeds = st.integers(0, 2**32 - 1)
KEY = jax.random.key(0)


def wide(dtype):
    """The context in which `dtype` exists."""
    return jax.enable_x64(True) if dtype == "float64" else nullcontext()


def drawn(dtype, seed, *shapes):
    """Standard normal jax arrays of `dtype`, and the same values in float64 for the oracle."""
    rng = np.random.default_rng(seed)
    arrays = [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]
    return arrays, [np.asarray(a, np.float64) for a in arrays]


@partial(jax.jit, static_argnums=0)
def run_and_pull(layer, params, xs, dy):
    y, vjp = jax.vjp(lambda params, xs: layer(params, *xs), params, xs)
    return y, *vjp(dy)


# --- norms -----------------------------------------------------------------------------------

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
        y, dparams, dx = norm_and_pull(name, jnp.asarray(eps, dtype), params, x, dy)
        eps = float(jnp.asarray(eps, dtype))
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
    y, _, dx = norm_and_pull(name, jnp.float32(1e-5), params, jnp.asarray(x), jnp.asarray(dy))
    want = oracles.group_norm(x, groups, spatial_axes, one, zero, 1e-5)
    np.testing.assert_allclose(y, want, atol=3e-5)
    want = oracles.group_norm_backward(x, groups, spatial_axes, one, dy, 1e-5)
    np.testing.assert_allclose(dx, want, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize("name", CENTRED)
def test_norms_of_bfloat16_keep_wide_statistics(name):
    """Sums of hundreds of values in bfloat16 would be off by percents."""
    make, oracle, _ = NORMS[name]
    shape = {"layer": (2, 600), "group of vectors": (2, 600)}.get(name, (2, 20, 20, 2))
    x = jnp.asarray(3 + np.random.default_rng(0).normal(size=shape), "bfloat16")
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

    dx = jnp.asarray(np.random.default_rng(0).normal(size=shape), "float32")
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
    y, *gradients = run_and_pull(layer, params, (jnp.zeros(shape),), jnp.zeros(shape))
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


# --- noise -----------------------------------------------------------------------------------


@partial(jax.jit, static_argnums=0)
def noisy(build, option, x, key):
    """y and the gradient of its sum, with the option traced."""

    def f(x):
        return build(option).apply({}, {}, x, key=key, train=True)[0]

    y, vjp = jax.vjp(f, x)
    return y, vjp(jnp.ones_like(y))[0]


def spatial(rate):
    return fnn.spatial_dropout(rate, spatial_axes=2)


def path(rate):
    return fnn.drop_path(rate, 2)


N = 20_000
DROPS = {  # a builder, x's shape, the axes over which one mask is shared
    "dropout": (fnn.dropout, (N,), ()),
    "spatial_dropout": (spatial, (N // 10, 2, 3, 10), (1, 2)),
    "drop_path": (path, (N, 2, 3), (1, 2)),
}


@pytest.mark.parametrize(
    "name, dtype",
    [
        ("dropout", "float32"),
        ("dropout", "bfloat16"),
        ("spatial_dropout", "float32"),
        ("drop_path", "bfloat16"),
    ],
)
def test_drops_share_one_mask_and_keep_the_mean(name, dtype):
    build, shape, shared = DROPS[name]
    for rate in (0.1, 0.5, 0.9):
        y, dx = noisy(build, jnp.float32(rate), jnp.full(shape, 3, dtype), KEY)
        assert y.dtype == dtype
        y, dx = np.float64(y), np.float64(dx)
        assert (y == y.max(shared, keepdims=True)).all()
        dropped = y == 0
        draws = dropped[(slice(None), *(0,) * len(shared))]
        bound = 5 * np.sqrt(rate * (1 - rate) / N)  # five standard deviations
        assert abs(draws.mean() - rate) < bound
        np.testing.assert_allclose(
            y[~dropped], 3 / (1 - rate), rtol=1e-6 if dtype == "float32" else 1e-2
        )
        np.testing.assert_allclose(dx, y / 3, rtol=1e-6 if dtype == "float32" else 1e-2)
    if draws.ndim > 1:  # channels of an example are dropped independently
        rows = draws.sum(1)
        assert abs(rows.var() - 10 * rate * (1 - rate)) < 0.2


ALL_DROPS = {**DROPS, "alpha_dropout": (fnn.alpha_dropout, (N,), ())}


@pytest.mark.parametrize("name", ALL_DROPS)
def test_rates_0_and_1_are_exact(name):
    build, shape, _ = ALL_DROPS[name]
    shape = (4, *shape[1:])
    x = np.random.default_rng(0).normal(size=shape).astype("float32")
    x[0], x[1] = np.inf, 0
    y, dx = noisy(build, jnp.float32(0), x, KEY)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(dx, np.ones(shape))
    y, dx = noisy(build, jnp.float32(1), x, KEY)
    np.testing.assert_array_equal(y, np.zeros(shape))
    np.testing.assert_array_equal(dx, np.zeros(shape))
    np.testing.assert_array_equal(build(1.0)({}, x), x)  # in evaluation


@pytest.mark.parametrize("name", ALL_DROPS)
def test_slopes_by_the_rate_are_finite(name):
    build, shape, _ = ALL_DROPS[name]
    x = jnp.ones((4, *shape[1:]))

    def total(rate):
        return build(rate).apply({}, {}, x, key=KEY, train=True)[0].sum()

    assert np.isfinite(jax.jit(jax.vmap(jax.grad(total)))(jnp.array([0.0, 0.3, 1.0]))).all()


@given(rate=st.floats(0.01, 0.95), seed=seeds)
def test_alpha_dropout_is_the_affine_map_of_the_paper(rate, seed):
    x = jnp.asarray(np.random.default_rng(seed).normal(size=300), "float32")
    y, dx = noisy(fnn.alpha_dropout, jnp.float32(rate), x, jax.random.key(seed))
    kept = np.asarray(dx) != 0
    np.testing.assert_allclose(y, oracles.alpha_dropout(x, kept, rate), rtol=1e-4, atol=1e-5)
    assert abs(kept.mean() - (1 - rate)) < 6 * np.sqrt(rate * (1 - rate) / 300) + 1 / 300


@pytest.mark.parametrize("rate", [0.05, 0.2, 0.5])
def test_alpha_dropout_keeps_mean_0_and_variance_1(rate):
    n = 400_000
    x = jax.random.normal(jax.random.key(1), (n,))
    y = np.float64(noisy(fnn.alpha_dropout, jnp.float32(rate), x, KEY)[0])
    assert abs(y.mean()) < 5 / np.sqrt(n)
    fourth = np.mean((y - y.mean()) ** 4)
    assert abs(y.var() - 1) < 5 * np.sqrt((fourth - 1) / n)


@pytest.mark.parametrize("stddev", [0.0, 1e-3, 2.0])
def test_gaussian_noise_has_its_mean_and_deviation(stddev):
    n = 100_000
    x = jnp.full((n,), 0.5)
    y, dx = noisy(fnn.gaussian_noise, jnp.float32(stddev), x, KEY)
    noise = np.float64(y) - 0.5
    assert abs(noise.mean()) <= 5 * stddev / np.sqrt(n) + 1e-12
    assert abs(noise.std() - stddev) <= 5 * stddev / np.sqrt(2 * n)
    np.testing.assert_array_equal(dx, np.ones(n))
    if stddev:
        z = np.sort(noise / stddev)  # the quantiles of a normal
        np.testing.assert_allclose(z[[n // 40, n // 2, -n // 40]], [-1.96, 0, 1.96], atol=0.05)


def test_gaussian_noise_is_added_before_bfloat16_rounds():
    x = jax.random.normal(KEY, (1000,), jnp.bfloat16)
    noise = noisy(fnn.gaussian_noise, jnp.float32(0.1), jnp.zeros(1000), jax.random.key(1))[0]
    y = noisy(fnn.gaussian_noise, jnp.float32(0.1), x, jax.random.key(1))[0]
    want = jnp.asarray(np.asarray(x, np.float32) + np.asarray(noise), jnp.bfloat16)
    np.testing.assert_array_equal(y, want)


@pytest.mark.parametrize("build", [fnn.dropout, spatial, path, fnn.alpha_dropout])
def test_layers_of_one_network_drop_differently(build):
    """One mask twice would keep half; two keep a quarter."""
    net = fnn.serial(build(0.5), build(0.5))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(500, 2, 1, 4)), "float32")
    dx = jax.jit(jax.grad(lambda x: net.apply({}, {}, x, key=KEY, train=True)[0].sum()))(x)
    assert abs((np.asarray(dx) != 0).mean() - 0.25) < 0.1


# --- embedding -------------------------------------------------------------------------------


@partial(jax.jit, static_argnums=0)
def look_up_and_pull(layer, params, x, dy):
    y, vjp = jax.vjp(lambda params: layer(params, x), params)
    return y, vjp(dy)[0]["embedding"]


ROWS = {dtype: fnn.embedding(300, 2, dtype=dtype) for dtype in ("float32", "bfloat16", "float16")}
LOOKUPS = [
    ("int8", (2, 3), "float32"),
    ("uint8", (2, 3), "bfloat16"),
    ("int16", (2, 3), "float16"),
    ("uint32", (5,), "float32"),
    ("int32", (), "float32"),
    ("int32", (0,), "float32"),
]


@given(case=st.sampled_from(LOOKUPS), seed=seeds)
def test_embedding_is_the_loop(case, seed):
    """Also for uint8 and int8, in which 300 rows cannot be counted."""
    integers, shape, dtype = case
    rng, layer = np.random.default_rng(seed), ROWS[dtype]
    x = rng.integers(0, min(300, np.iinfo(integers).max + 1), shape).astype(integers)
    (table, dy), (exact_table, exact_dy) = drawn(dtype, seed, (300, 2), (*shape, 2))
    params = {"embedding": table}
    y, dtable = look_up_and_pull(layer, params, jnp.asarray(x), dy)
    np.testing.assert_array_equal(y, oracles.embedding(x, exact_table))
    assert y.dtype == dtype
    np.testing.assert_array_equal(layer(params, x), y)  # concrete: values are checked
    assert_close(dtable, oracles.embedding_backward(x, exact_table, exact_dy), dtype=dtype)


def test_embedding_takes_64_bit_integers():
    with jax.enable_x64(True):
        layer = fnn.embedding(5, 2, dtype=jnp.float64)
        params, _ = layer.init(KEY, jnp.zeros(1, "int64"))
        x = np.array([4, 2**40, -(2**40), 2**32, 0])  # 2**32 is 0 in 32 bits
        y = jax.jit(layer)(params, jnp.asarray(x))
        np.testing.assert_array_equal(np.isnan(y).any(-1), [False, True, True, True, False])
        assert y.dtype == "float64"
        assert isinstance(outcome(layer, params, x), errors.InputError)


@pytest.mark.parametrize("integers", ["int8", "uint8", "int32", "uint32"])
def test_embedding_refuses_or_marks_integers_out_of_range(integers):
    layer = fnn.embedding(100, 3)
    params, _ = layer.init(KEY, jnp.zeros((), integers))
    info = np.iinfo(integers)
    x = np.array([0, 99, 100, info.max, info.min, max(info.min, -1)], integers)
    outside = (np.int64(x) < 0) | (np.int64(x) > 99)
    for value, out in zip(x, outside, strict=True):
        error = outcome(
            fnn.serial(embed=layer), {"embed": params}, jnp.asarray([5, value], integers)
        )
        assert (error is not None) == out
        if error is not None:
            assert isinstance(error, errors.InputError)
            assert_teaches(error, "embed")
            assert (
                "0 ... 99" in error.expected and f"{min(5, value)} ... {max(5, value)}" in error.got
            )

    for look_up in (jax.jit(layer), lambda p, x: jax.vmap(lambda x: layer(p, x))(x)):
        y = np.asarray(look_up(params, jnp.asarray(x)))
        np.testing.assert_array_equal(np.isnan(y), np.repeat(outside[:, None], 3, 1))
        np.testing.assert_array_equal(y[~outside], params["embedding"][np.int64(x[~outside])])

    def inside(params):
        y = layer(params, jnp.asarray(x))
        return jnp.where(jnp.isnan(y), 0, y).sum()

    gradient = jax.jit(jax.grad(inside))(params)["embedding"]
    want = np.zeros((100, 3))
    for value in x[~outside]:
        want[value] += 1
    np.testing.assert_array_equal(gradient, want)


def test_gradients_of_a_frequent_bfloat16_row_are_summed_in_float32():
    """In bfloat16, 1 + 1 + ... stops at 256."""
    layer = fnn.embedding(4, 3, dtype=jnp.bfloat16)
    params, _ = layer.init(KEY, jnp.zeros(1, int))
    x = jnp.full((1000,), 2)
    dtable = look_up_and_pull(layer, params, x, jnp.ones((1000, 3), jnp.bfloat16))[1]
    np.testing.assert_array_equal(np.float32(dtable[:, 0]), [0, 0, 1000, 0])


def test_embedding_starts_with_vectors_of_length_one():
    params, _ = fnn.embedding(2000, 64).init(KEY, jnp.zeros(1, int))
    lengths = np.linalg.norm(params["embedding"], axis=1)
    assert params["embedding"].shape == (2000, 64)
    assert abs(np.mean(lengths**2) - 1) < 5 * np.sqrt(2 / 64 / 2000)
    assert fnn.embedding(3, 2).specs(jnp.zeros(1, int))[0]["embedding"].kind == "embedding"


def test_an_embedding_decodes_too():
    """The gradient of a tied table is the sum of both uses."""

    @fnn.compose(embed=fnn.embedding(7, 4))
    def net(f, x):
        return jnp.tanh(f.embed(x)) @ f.embed.params["embedding"].T

    x = jnp.array([[1, 6, 1], [0, 2, 3]])
    params, _ = net.init(KEY, x)
    table = np.float64(params["embed"]["embedding"])
    dy = np.random.default_rng(0).normal(size=(2, 3, 7))

    def want(table):
        return np.tanh(oracles.embedding(np.asarray(x), table)) @ table.T

    y, vjp = jax.vjp(lambda params: net(params, x), params)
    assert_close(y, want(table))
    got = vjp(jnp.asarray(dy, "float32"))[0]["embed"]["embedding"]
    assert_close(got, numeric_vjp(want, table, dy), tolerance=1e-4)


def test_embedding_holds_the_contract():
    """As `check_layer`, with what an integer input leaves of it."""
    x = (jnp.arange(12).reshape(4, 3) % 5,)
    layer = fnn.embedding(5, 3)
    params, state = layer.init(KEY, *x)
    for check in (testing.check_specs, testing.check_jit, testing.check_state):
        check(layer, params, state, x)
    for check in (testing.check_strict, testing.check_rows, testing.check_sharded):
        check(layer, params, state, x)
    with jax.enable_x64(True):
        testing.check_derivatives(fnn.embedding(5, 3, dtype=jnp.float64), x)


def test_embedding_refuses_other_inputs():
    layer = fnn.embedding(5, 3)
    net = fnn.serial(inner=fnn.serial(layer=layer))
    params, _ = net.init(KEY, jnp.zeros(2, int))
    for dtype in (bool, "float32", "bfloat16", "complex64"):
        error = same_under_jit(partial(net, params), jnp.zeros(2, dtype))
        assert isinstance(error, errors.DtypeError) and "astype" in error.mend
        assert_teaches(error, "inner/layer")
    for wrong in NOT_ARRAYS:
        assert_teaches(outcome(net, params, wrong), "inner/layer")
    for count in (0, 2):
        error = outcome(layer, params["inner"]["layer"], *[jnp.zeros(2, int)] * count)
        assert isinstance(error, errors.InputError) and f"got {count}" in str(error)
    for _, wrong in mutations(params):
        assert same_under_jit(lambda p: net(p, jnp.zeros(2, int)), wrong) is not None


# --- parameter -------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_a_parameter_is_its_array(shape):
    layer = fnn.parameter(shape, fnn.initializers.normal(1.0))
    params, state = layer.init(KEY)
    assert params["value"].shape == shape and state == {}
    np.testing.assert_array_equal(layer(params), params["value"])
    gradient = jax.grad(lambda params: (layer(params) ** 2).sum())(params)["value"]
    np.testing.assert_allclose(gradient, 2 * params["value"])
    if shape == (0,):
        return
    for check in (testing.check_specs, testing.check_jit, testing.check_strict):
        check(layer, params, state, ())
    with jax.enable_x64(True):
        testing.check_derivatives(
            fnn.parameter(shape, fnn.initializers.normal(1.0), dtype=jnp.float64), ()
        )


def test_a_parameter_has_its_dtype_kind_and_zeros():
    layer = fnn.parameter((3,), dtype=jnp.bfloat16, kind="bias")
    params, _ = layer.init(KEY)
    np.testing.assert_array_equal(params["value"], jnp.zeros(3, jnp.bfloat16))
    assert layer(params).dtype == jnp.bfloat16
    assert layer.specs()[0]["value"].kind == "bias"
    assert fnn.parameter(()).specs()[0]["value"].kind == "value"


def test_a_parameter_in_a_body():
    @fnn.compose(gain=fnn.parameter((), fnn.initializers.constant(2.0)), pos=fnn.parameter((3, 2)))
    def net(f, x):
        return f.gain() * x + f.pos()

    x = jnp.arange(12.0).reshape(2, 3, 2)
    params, _ = net.init(KEY, x)
    assert jax.tree.map(jnp.shape, params) == {"gain": {"value": ()}, "pos": {"value": (3, 2)}}
    np.testing.assert_array_equal(net(params, x), 2 * x)
    np.testing.assert_array_equal(jax.vmap(net, (None, 0))(params, x), 2 * x)
    error = outcome(fnn.parameter((3,)), {"value": jnp.ones(3)}, x)
    assert isinstance(error, errors.InputError) and "got 1" in str(error)


@pytest.mark.parametrize(
    "build, options, x",
    [
        (
            fnn.embedding,
            {"num_embeddings": 5, "features": 3, "dtype": "float32",
             "embedding_init": fnn.initializers.zeros},
            (jnp.zeros(2, int),),
        ),
        (fnn.parameter, {"shape": (2, 3), "init": fnn.initializers.zeros, "kind": "x"}, ()),
        (fnn.bilinear, {"features": 3}, ((2, 3), (2, 4))),
    ],
    ids=["embedding", "parameter", "bilinear"],
)  # fmt: skip
def test_bad_options_are_refused_by_the_builder(build, options, x):
    for option in options:
        refused = 0
        for bad in BAD_OPTIONS:
            if isinstance(bad, int) and bad == 10**6:
                continue
            error = outcome(lambda o=option, b=bad: build(**{**options, o: b}).init(KEY, *x))
            if error is not None:
                refused += 1
                assert_teaches(error, build.__name__)
        assert refused >= 8, option


# --- bilinear and prelu ----------------------------------------------------------------------


BILINEAR = {bias: fnn.bilinear(2, use_bias=bias) for bias in (False, True)}


FORMS = [  # use_bias, dtype, leading axes, A, B
    (True, "float64", (2,), 3, 2),
    (False, "float32", (2, 1), 1, 3),
    (True, "bfloat16", (2,), 3, 2),
    (True, "float32", (), 2, 2),
    (True, "float32", (0,), 2, 2),
    (True, "float32", (2,), 2, 0),
]


@given(case=st.sampled_from(FORMS), seed=seeds)
def test_bilinear_is_the_loop(case, seed):
    bias, dtype, lead, a, b = case
    with wide(dtype):
        arrays, exact = drawn(dtype, seed, (*lead, a), (*lead, b), (a, b, 2), (2,), (*lead, 2))
        x1, x2, kernel, shift, dy = arrays
        exact[3] = exact[3] * bias
        params = {"kernel": kernel, "bias": shift} if bias else {"kernel": kernel}
        y, dparams, (dx1, dx2) = run_and_pull(BILINEAR[bias], params, (x1, x2), dy)
        assert_close(y, oracles.bilinear(*exact[:4]), dtype=dtype)
        if dtype == "bfloat16":
            return
        tolerance = 1e-8 if dtype == "float64" else 1e-5
        for i, got in enumerate([dx1, dx2, dparams["kernel"], dparams.get("bias")]):

            def f(value, i=i):
                return oracles.bilinear(*exact[:i], value, *exact[i + 1 : 4])

            if got is not None:
                want = numeric_vjp(f, exact[i], exact[4])
                assert_close(got, want, dtype=dtype, tolerance=tolerance)


def test_bilinear_refuses_inputs_that_do_not_fit():
    net = fnn.serial(form=fnn.bilinear(2))
    params, _ = net.init(KEY, (5, 3), (5, 4))

    def call(x1, x2):
        return net(params, x1, x2)

    for right, wrong in (((5, 3), (5, 4)), ((5, 4), (5, 3))):
        for shape in shape_mutations(wrong):
            pair = [np.ones(right, "float32"), np.ones(shape, "float32")]
            error = same_under_jit(call, *(pair if right == (5, 3) else pair[::-1]))
            assert isinstance(error, (errors.ShapeError, errors.ParamsError)), shape
            assert_teaches(error, "form")
            assert str(shape) in str(error)
    x1, x2 = jnp.ones((5, 3)), jnp.ones((5, 4))
    for dtype in (int, bool, "complex64", "bfloat16"):
        for pair in ((x1.astype(dtype), x2), (x1, x2.astype(dtype))):
            assert isinstance(same_under_jit(call, *pair), errors.DtypeError)
    low = [x.astype("bfloat16") for x in (x1, x2)]
    assert isinstance(same_under_jit(call, *low), errors.DtypeError)
    for count in (0, 1, 3):
        error = outcome(net, params, *[x1] * count)
        assert isinstance(error, errors.InputError) and f"got {count}" in str(error)
    for wrong in NOT_ARRAYS:
        assert_teaches(outcome(net, params, wrong, x2), "form")
        assert_teaches(outcome(net, params, x1, wrong), "form")
    for _, wrong in mutations(params):
        assert same_under_jit(lambda p: net(p, x1, x2), wrong) is not None


def test_bilinear_keeps_the_variance_of_products():
    layer = fnn.bilinear(400, use_bias=False)
    params, _ = layer.init(KEY, (1, 30), (1, 20))
    assert params["kernel"].shape == (30, 20, 400)
    (x1, x2), _ = drawn("float32", 0, (100, 30), (100, 20))
    y = np.asarray(layer(params, x1, x2))
    wanted = np.mean(np.asarray(x1) ** 2, 1) * np.mean(np.asarray(x2) ** 2, 1)  # of each row
    assert abs(np.mean(y**2) / np.mean(wanted) - 1) < 0.05


PRELU = fnn.prelu()


@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.sampled_from([(0, 2), (2, 1, 2)]),
    seed=seeds,
)
def test_prelu_is_the_loop(dtype, shape, seed):
    with wide(dtype):
        (x, alpha, dy), (exact_x, exact_alpha, exact_dy) = drawn(
            dtype, seed, shape, shape[-1:], shape
        )
        y, dparams, (dx,) = run_and_pull(PRELU, {"alpha": alpha}, (x,), dy)
        assert_close(y, oracles.prelu(exact_x, exact_alpha), dtype=dtype)
        assert_close(dx, exact_dy * np.where(exact_x > 0, 1, exact_alpha), dtype=dtype)
        want = numeric_vjp(lambda alpha: oracles.prelu(exact_x, alpha), exact_alpha, exact_dy)
        tolerance = 1e-8 if dtype == "float64" else None
        assert_close(dparams["alpha"], want, dtype=dtype, tolerance=tolerance)


def test_prelu_at_zero_and_infinity():
    x = jnp.array([-jnp.inf, -0.0, 0.0, jnp.inf])[:, None]
    params, _ = PRELU.init(KEY, x)
    np.testing.assert_array_equal(params["alpha"], [0.25])
    y, dparams, (dx,) = run_and_pull(PRELU, params, (x,), jnp.array([0.0, 1, 1, 1])[:, None])
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(dx[1:, 0], [0.25, 0.25, 1])
    y, dparams, _ = run_and_pull(PRELU, params, (x[1:],), jnp.ones((3, 1)))
    np.testing.assert_array_equal(dparams["alpha"], [0])


def test_prelu_init_may_be_a_tracer():
    drawn = jax.vmap(lambda a: fnn.prelu(a).init(KEY, (1, 2))[0]["alpha"])(jnp.array([0.1, 0.5]))
    np.testing.assert_array_equal(drawn, np.float32([[0.1, 0.1], [0.5, 0.5]]))


# --- the oracles themselves --------------------------------------------------------------------


def test_the_backward_oracle_is_a_numeric_derivative():
    rng = np.random.default_rng(0)
    x, dy, scale = rng.normal(size=(2, 3, 2, 4)), rng.normal(size=(2, 3, 2, 4)), rng.normal(size=4)

    def forward(x):
        return oracles.group_norm(x, 2, 2, scale, np.zeros(4), 0.1)

    dx = oracles.group_norm_backward(x, 2, 2, scale, dy, 0.1)
    assert_close(dx, numeric_vjp(forward, x, dy), tolerance=1e-7)


def test_oracles_are_torchs():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x, scale, bias = rng.normal(size=(2, 3, 5, 4)), rng.normal(size=4), rng.normal(size=4)
    functional, tensor = torch.nn.functional, torch.tensor

    def first(x):
        return tensor(np.moveaxis(x, -1, 1))

    def last(y):
        return np.moveaxis(y.numpy(), 1, -1)

    affine = tensor(scale), tensor(bias)
    y = functional.layer_norm(tensor(x), (4,), *affine, 1e-5)
    assert_close(oracles.layer_norm(x, scale, bias, 1e-5), y.numpy())
    y = functional.rms_norm(tensor(x), (4,), affine[0], 1e-6)
    assert_close(oracles.rms_norm(x, scale, 1e-6), y.numpy())
    y = functional.group_norm(first(x), 2, *affine, 1e-5)
    assert_close(oracles.group_norm(x, 2, 2, scale, bias, 1e-5), last(y))
    y = functional.instance_norm(first(x), None, None, *affine, eps=1e-5)
    assert_close(oracles.group_norm(x, 4, 2, scale, bias, 1e-5), last(y))
    y = functional.prelu(first(x), affine[0])
    assert_close(oracles.prelu(x, scale), last(y))
    x1, x2, kernel = rng.normal(size=(6, 3)), rng.normal(size=(6, 2)), rng.normal(size=(3, 2, 4))
    y = functional.bilinear(tensor(x1), tensor(x2), tensor(kernel.transpose(2, 0, 1)), affine[1])
    assert_close(oracles.bilinear(x1, x2, kernel, bias), y.numpy())
    ids = rng.integers(0, 3, (2, 5))
    assert_close(oracles.embedding(ids, x1), functional.embedding(tensor(ids), tensor(x1)).numpy())
