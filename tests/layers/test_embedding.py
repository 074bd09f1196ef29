"""Learned arrays against their loops, and integers out of range."""

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
from tests.layers import oracles
from tests.layers.support import KEY, drawn, seeds
from tests.support import (
    BAD_OPTIONS,
    NOT_ARRAYS,
    asarray,
    assert_close,
    assert_teaches,
    numeric_vjp,
    outcome,
    same_under_jit,
)


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
    y, dtable = look_up_and_pull(layer, params, asarray(x), dy)
    np.testing.assert_array_equal(y, oracles.embedding(x, exact_table))
    assert y.dtype == dtype
    np.testing.assert_array_equal(layer(params, x), y)  # concrete: values are checked
    assert_close(dtable, oracles.embedding_backward(x, exact_table, exact_dy), dtype=dtype)


def test_embedding_takes_64_bit_integers():
    with jax.enable_x64(True):
        layer = fnn.embedding(5, 2, dtype=jnp.float64)
        params, _ = layer.init(KEY, jnp.zeros(1, "int64"))
        x = np.array([4, 2**40, -(2**40), 2**32, 0])  # 2**32 is 0 in 32 bits
        y = jax.jit(layer)(params, asarray(x))
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
        error = outcome(fnn.serial(embed=layer), {"embed": params}, asarray([5, value], integers))
        assert (error is not None) == out
        if error is not None:
            assert isinstance(error, errors.InputError)
            assert_teaches(error, "embed")
            assert (
                "0 ... 99" in error.expected and f"{min(5, value)} ... {max(5, value)}" in error.got
            )

    for look_up in (jax.jit(layer), lambda p, x: jax.vmap(lambda x: layer(p, x))(x)):
        y = np.asarray(look_up(params, asarray(x)))
        np.testing.assert_array_equal(np.isnan(y), np.repeat(outside[:, None], 3, 1))
        np.testing.assert_array_equal(y[~outside], params["embedding"][np.int64(x[~outside])])

    def inside(params):
        y = layer(params, asarray(x))
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

    x = asarray([[1, 6, 1], [0, 2, 3]])
    params, _ = net.init(KEY, x)
    table = np.float64(params["embed"]["embedding"])
    dy = np.random.default_rng(0).normal(size=(2, 3, 7))

    def want(table):
        return np.tanh(oracles.embedding(np.asarray(x), table)) @ table.T

    y, vjp = jax.vjp(lambda params: net(params, x), params)
    assert_close(y, want(table))
    got = vjp(asarray(dy, "float32"))[0]["embed"]["embedding"]
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
