"""Layers against the NumPy oracles: forward, backward, and every mode of differentiation."""

from contextlib import nullcontext
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

import fnn
from fnn import errors
from tests.layers import oracles
from tests.support import assert_close, numeric_vjp

DTYPES = ("float64", "float32", "bfloat16")
leading = st.lists(st.integers(0, 2), max_size=2).map(tuple)
seeds = st.integers(0, 2**32 - 1)


def wide(dtype):
    """The context in which `dtype` exists."""
    return jax.enable_x64(True) if dtype == "float64" else nullcontext()


def rounded(tree, dtype):
    """NumPy arrays as jax arrays of `dtype`, and the same values in float64 for the oracle."""
    arrays = jax.tree.map(lambda a: jnp.asarray(a, dtype), tree)
    return arrays, jax.tree.map(lambda a: np.asarray(a, np.float64), arrays)


def assert_trees_close(actual, expected, dtype, tolerance=None):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for got, want in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert_close(got, want, dtype=dtype, tolerance=tolerance)


def spec_shapes(layer, x):
    params, state = layer.specs(jax.ShapeDtypeStruct(x.shape, jnp.float32))

    def shape(spec):
        return tuple(spec.shape)

    def is_spec(node):
        return hasattr(node, "init")

    return (
        jax.tree.map(shape, params, is_leaf=is_spec),
        jax.tree.map(shape, state, is_leaf=is_spec),
    )


@partial(jax.jit, static_argnums=0)
def run_and_pull(layer, params, x, dy):
    """y and the gradients of sum(y * dy), as one program: compiling is what these tests cost."""
    y, vjp = jax.vjp(layer, params, x)
    return y, *vjp(dy)


def assert_linear_layer(layer, arrays, dtype, forward, backward):
    """y, dx, dkernel and dbias of dense or conv are the oracle's."""
    assert spec_shapes(layer, arrays["x"])[0] == {k: v.shape for k, v in arrays["params"].items()}
    with wide(dtype):
        (arrays, exact) = rounded(arrays, dtype)
        want = forward(exact["x"], **exact["params"])
        dy, dy_exact = rounded(np.random.default_rng(7).normal(size=want.shape), dtype)
        y, dparams, dx = run_and_pull(layer, arrays["params"], arrays["x"], dy)
        assert_close(y, want, dtype=dtype)
        want_dx, want_dkernel, want_dbias = backward(
            exact["x"], exact["params"]["kernel"], dy_exact
        )
        want = {"kernel": want_dkernel, "bias": want_dbias}
        assert_close(dx, want_dx, dtype=dtype)
        assert_trees_close(dparams, {k: want[k] for k in exact["params"]}, dtype)


# --- dense -----------------------------------------------------------------------------------


@given(
    lead=leading,
    cin=st.integers(1, 3),
    features=st.integers(1, 3),
    bias=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    seed=seeds,
)
def test_dense_is_the_loop(lead, cin, features, bias, dtype, seed):
    draw = np.random.default_rng(seed).normal
    params = {"kernel": draw(size=(cin, features))}
    if bias:
        params["bias"] = draw(size=features)
    assert_linear_layer(
        fnn.dense(features, use_bias=bias),
        {"params": params, "x": draw(size=(*lead, cin))},
        dtype,
        oracles.dense,
        oracles.dense_backward,
    )


# --- convolution -----------------------------------------------------------------------------


@st.composite
def conv_cases(draw, with_groups=True):
    """(features, kernel_size, options, x shape): every one has at least one output position."""
    rank = draw(st.sampled_from([1, 2, 2, 3]))
    small = rank == 3

    def per_axis(low, high):
        one_int = st.integers(low, high)
        return draw(one_int | st.tuples(*[one_int] * rank))

    kernel_size = draw(st.tuples(*[st.integers(1, 2 if small else 3)] * rank))
    strides, dilation = per_axis(1, 3), per_axis(1, 2)
    pairs = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=rank, max_size=rank)
    padding = draw(
        st.sampled_from(["SAME", "VALID", "CAUSAL", "CIRCULAR", "REFLECT"])
        | st.integers(0, 2)
        | pairs
    )
    spatial = []
    for axis in range(rank):
        reach = (kernel_size[axis] - 1) * oracles.per_axis(dilation, rank)[axis] + 1
        least = 1
        if not isinstance(padding, str):
            least = max(1, reach - sum(oracles.pad_amounts(padding, axis, 1, 1, 1)))
        elif padding == "VALID":
            least = reach
        elif padding == "REFLECT":
            least = reach  # beyond one reflection nobody agrees
        spatial.append(draw(st.integers(least, least + (1 if small else 3))))
    groups = draw(st.integers(1, 3)) if with_groups else 1
    cin, features = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    options = dict(strides=strides, dilation=dilation, padding=padding, groups=groups)
    return features, kernel_size, options, (*draw(leading), *spatial, cin)


def conv_arrays(case, bias, seed):
    features, kernel_size, options, shape = case
    draw = np.random.default_rng(seed).normal
    params = {"kernel": draw(size=(*kernel_size, shape[-1] // options["groups"], features))}
    if bias:
        params["bias"] = draw(size=features)
    return {"params": params, "x": draw(size=shape)}


@pytest.mark.parametrize("weight_grad", ["conv", "matmul"])
@given(case=conv_cases(), bias=st.booleans(), dtype=st.sampled_from(DTYPES), seed=seeds)
def test_conv_is_the_loop(weight_grad, case, bias, dtype, seed):
    features, kernel_size, options, _ = case
    assert_linear_layer(
        fnn.conv(features, kernel_size, use_bias=bias, weight_grad=weight_grad, **options),
        conv_arrays(case, bias, seed),
        dtype,
        lambda x, kernel, bias=None: oracles.conv(x, kernel, bias, **options),
        lambda x, kernel, dy: oracles.conv_backward(x, kernel, dy, **options),
    )


@pytest.mark.parametrize("padding", ["SAME", "VALID", "CAUSAL", "CIRCULAR", "REFLECT", 1])
@pytest.mark.parametrize("shape", [(4, 5, 2), (0, 4, 5, 2), (1, 4, 5, 2), (2, 1, 4, 5, 2)])
def test_conv_takes_any_leading_axes_in_every_padding(padding, shape):
    options = dict(padding=padding, strides=(2, 1))
    draw = np.random.default_rng(0).normal
    params = {"kernel": draw(size=(3, 2, 2, 3)), "bias": draw(size=3)}
    arrays, exact = rounded({"params": params, "x": draw(size=shape)}, "float32")
    y = fnn.conv(3, (3, 2), **options)(arrays["params"], arrays["x"])
    assert_close(y, oracles.conv(exact["x"], **exact["params"], **options), dtype="float32")


@pytest.mark.parametrize("padding", ["SAME", "CIRCULAR", "CAUSAL"])
def test_conv_of_one_element_axes(padding):
    draw = np.random.default_rng(1).normal
    params = {"kernel": draw(size=(3, 3, 1, 1)), "bias": draw(size=1)}
    arrays, exact = rounded({"params": params, "x": draw(size=(1, 1, 1, 1))}, "float32")
    y = fnn.conv(1, (3, 3), padding=padding)(arrays["params"], arrays["x"])
    assert_close(y, oracles.conv(exact["x"], **exact["params"], padding=padding), dtype="float32")


def test_causal_conv_does_not_see_the_future():
    layer = fnn.conv(2, (3,), padding="CAUSAL", dilation=2)
    params = {"kernel": jnp.ones((3, 1, 2)), "bias": jnp.zeros(2)}
    seen = jax.jacobian(lambda x: layer(params, x[:, None])[:, 0])(jnp.arange(6.0))
    assert (np.triu(seen, 1) == 0).all()
    assert (np.diag(seen) == 1).all()


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("weight_grad", ["conv", "matmul"])
def test_conv_differentiates_in_every_mode(weight_grad, groups):
    """A convolution is bilinear, so its jvp is two convolutions and its Hessian is known."""
    options = dict(strides=2, padding="SAME", dilation=(1, 2), groups=groups)
    layer = fnn.conv(4, (3, 2), use_bias=False, weight_grad=weight_grad, **options)
    draw, size = np.random.default_rng(2).normal, (3, 2, 4 // groups, 4)
    x, dx, kernel, dkernel = (draw(size=s) for s in [(2, 5, 4, 4)] * 2 + [size] * 2)
    with jax.enable_x64(True):

        def f(kernel, x):
            return layer({"kernel": kernel}, x)

        args = jnp.asarray(kernel), jnp.asarray(x)
        tangents = jnp.asarray(dkernel), jnp.asarray(dx)
        _, dy = jax.jvp(f, args, tangents)
        want = oracles.conv(dx, kernel, **options) + oracles.conv(x, dkernel, **options)
        assert_close(dy, want, dtype="float64")

        # L = |y|^2 / 2 has dL/dkernel = A(x)' y; its derivative along (dkernel, dx) by hand:
        y = oracles.conv(x, kernel, **options)
        want = (
            oracles.conv_backward(dx, kernel, y, **options)[1]
            + oracles.conv_backward(x, kernel, want, **options)[1]
        )

        def loss(*args):
            return jnp.sum(f(*args) ** 2) / 2

        forward_over_reverse = jax.jvp(jax.grad(loss), args, tangents)[1]
        assert_close(forward_over_reverse, want, dtype="float64")

        def along(*args):
            return jax.jvp(loss, args, tangents)[1]

        assert_close(jax.grad(along)(*args), want, dtype="float64")


def test_conv_vmap_and_jit_and_scan_are_the_batch():
    layer = fnn.conv(3, (3, 3), weight_grad="matmul")
    params, _ = layer.init(jax.random.key(0), (4, 5, 5, 2))
    x = jax.random.normal(jax.random.key(1), (4, 5, 5, 2))
    y = layer(params, x)
    assert_close(jax.vmap(layer, (None, 0))(params, x), y)
    assert_close(jax.jit(layer)(params, x), y)
    assert_close(jax.lax.scan(lambda _, x: (None, layer(params, x)), None, x)[1], y)


# --- max pool --------------------------------------------------------------------------------


@st.composite
def pool_cases(draw):
    """(window, options, x shape): every window sees at least one element that is no padding."""
    rank = draw(st.sampled_from([1, 2, 2, 3]))
    window = draw(st.tuples(*[st.integers(1, 3)] * rank))
    strides = draw(st.none() | st.integers(1, 3) | st.tuples(*[st.integers(1, 3)] * rank))
    pairs = st.tuples(*[st.tuples(*[st.integers(0, w - 1)] * 2) for w in window]).map(list)
    padding = draw(st.sampled_from(["SAME", "VALID"]) | st.integers(0, min(window) - 1) | pairs)
    spatial = []
    for axis in range(rank):
        least = window[axis]
        if not isinstance(padding, str):
            least = max(1, least - sum(oracles.pad_amounts(padding, axis, 1, 1, 1)))
        elif padding == "SAME":
            least = 1
        spatial.append(draw(st.integers(least, least + (1 if rank == 3 else 4))))
    options = dict(strides=strides, padding=padding)
    return window, options, (*draw(leading), *spatial, draw(st.integers(1, 2)))


def assert_pool(layer, x, dtype, forward, backward):
    assert layer.specs(jax.ShapeDtypeStruct(x.shape, jnp.float32)) == ({}, {})
    with wide(dtype):
        x, exact = rounded(x, dtype)
        want = forward(exact)
        dy, dy_exact = rounded(np.random.default_rng(7).normal(size=want.shape), dtype)
        y, _, dx = run_and_pull(layer, {}, x, dy)
        assert_close(y, want, dtype=dtype)
        assert_close(dx, backward(exact, dy_exact), dtype=dtype)


@given(case=pool_cases(), dtype=st.sampled_from(DTYPES), seed=seeds)
def test_max_pool_is_the_loop(case, dtype, seed):
    """Values are multiples of 1/2, so there are ties."""
    window, options, shape = case
    assert_pool(
        fnn.max_pool(window, **options),
        np.round(2 * np.random.default_rng(seed).normal(size=shape)) / 2,
        dtype,
        lambda x: oracles.max_pool(x, window, **options)[0],
        lambda x, dy: oracles.max_pool_backward(x, dy, window, **options),
    )


POOLS = [  # window, strides, spatial shape: apart, not dividing the axis, overlapping, with gaps
    ((2, 2), None, (4, 6)),
    ((2, 3), None, (5, 7)),
    ((3, 2), (2, 1), (5, 4)),
    ((2, 1), (3, 2), (7, 3)),
    ((4,), None, (8,)),
    ((2, 2, 2), None, (2, 4, 3)),
]


@cache
def pool_layer(window, strides):
    """One layer a case, so that each is compiled once."""
    return fnn.max_pool(window, strides=strides)


@partial(jax.jit, static_argnums=(0, 1))
def lax_run_and_pull(window, strides, x, dy):
    y, vjp = jax.vjp(lambda x: lax_max_pool(x, window, strides), x)
    return y, *vjp(dy)


def lax_max_pool(x, window, strides):
    strides = strides or window
    return jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (1, *window, 1), (1, *strides, 1), "VALID"
    )


def special_values(shape, values, seed=0):
    return np.random.default_rng(seed).choice(np.float32(values), size=shape)


@pytest.mark.parametrize("window, strides, spatial", POOLS)
@pytest.mark.parametrize(
    "values",
    [[3.0], [0.0, -0.0], [0, 1], [-np.inf], [np.inf, 0, -np.inf], [np.nan], [np.nan, 0, 1, np.inf]],
    ids=["one tie", "signed zeros", "ties", "-inf", "infinities", "nan", "nan among others"],
)
def test_max_pool_of_special_values_is_reduce_window(window, strides, spatial, values):
    x = special_values((3, *spatial, 2), values)
    want, _ = oracles.max_pool(x, window, strides=strides)
    dy = np.float32(np.random.default_rng(1).integers(1, 9, want.shape))
    want_dx = oracles.max_pool_backward(x, dy, window, strides=strides)
    y, _, dx = run_and_pull(pool_layer(window, strides), {}, x, dy)
    lax_y, lax_dx = lax_run_and_pull(window, strides, x, dy)
    for got, lax, oracle in [(y, lax_y, want), (dx, lax_dx, want_dx)]:
        np.testing.assert_array_equal(got, oracle)
        np.testing.assert_array_equal(got, lax)


@pytest.mark.parametrize("strides", [None, (1, 2)])
@pytest.mark.parametrize("padding", ["SAME", 1, [(1, 0), (0, 1)]])
def test_max_pool_padding_is_never_the_maximum(padding, strides):
    x = special_values((2, 5, 4, 1), [-np.inf, -1e30, -5, np.nan])
    options = dict(strides=strides, padding=padding)
    y = fnn.max_pool((2, 3), **options)({}, jnp.asarray(x))
    np.testing.assert_array_equal(y, oracles.max_pool(x, (2, 3), **options)[0])


@pytest.mark.parametrize("window, strides, spatial", POOLS)
def test_max_pool_jvp_is_the_transpose_of_its_vjp(window, strides, spatial):
    """<dy, J dx> = <J' dy, dx>, where ties, infinities and NaN sit, and dy, dx are integers."""
    x = special_values((3, *spatial, 2), [0, 1, 1, np.inf, -np.inf, np.nan], 3)
    rng = np.random.default_rng(4)
    layer = pool_layer(window, strides)
    winner = oracles.max_pool(x, window, strides=strides)[1]
    dx, dy = (np.float32(rng.integers(-9, 9, shape)) for shape in (x.shape, winner.shape))
    _, tangent = jax.jit(lambda x, dx: jax.jvp(partial(layer, {}), (x,), (dx,)))(x, dx)
    _, _, pulled = run_and_pull(layer, {}, x, dy)
    assert np.vdot(dy, tangent) == np.vdot(pulled, dx)
    np.testing.assert_array_equal(tangent, dx.ravel()[winner])


@pytest.mark.parametrize("window, strides, spatial", POOLS)
def test_max_pool_second_derivatives(window, strides, spatial):
    """f = sum c y^3 has the Hessian P' diag(6 c y) P, where row o of P picks the winner of o."""
    shape = (*spatial, 1)
    rng = np.random.default_rng(5)
    x = rng.permutation(np.prod(shape)).reshape(shape) / 8
    y, winner = oracles.max_pool(x, window, strides=strides)
    c = rng.normal(size=y.shape)
    picks = np.eye(x.size)[winner.ravel()]
    want = picks.T @ np.diag((6 * c * y).ravel()) @ picks
    layer = fnn.max_pool(window, strides=strides)
    with jax.enable_x64(True):
        x, c = jnp.asarray(x.ravel()), jnp.asarray(c)

        def loss(x):
            return jnp.sum(c * layer({}, x.reshape(shape)) ** 3)

        f, r = jax.jacfwd, jax.jacrev
        hessians = jax.jit(lambda x: [f(r(loss))(x), r(f(loss))(x), r(r(loss))(x), f(f(loss))(x)])
        for hessian in hessians(x):
            assert_close(hessian, want, dtype="float64")


@pytest.mark.parametrize("strides", [None, (1, 2)])
def test_max_pool_gradients_are_numeric(strides):
    layer = fnn.max_pool((2, 2), strides=strides, padding="SAME")
    x = np.random.default_rng(6).permutation(15).reshape(5, 3, 1) / 8
    with jax.enable_x64(True):
        f = jax.jit(lambda x: jnp.sin(layer({}, x)))
        check_grads(f, (jnp.asarray(x),), order=2, modes=("fwd", "rev"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window, strides, spatial", [p for p in POOLS if p[1] is None])
def test_max_pool_of_windows_apart_needs_no_select_and_scatter(window, strides, spatial):
    x = jnp.zeros((2, *spatial, 3))
    ours = jax.grad(lambda x: fnn.max_pool(window)({}, x).sum())
    theirs = jax.grad(lambda x: lax_max_pool(x, window, strides).sum())
    assert "select_and_scatter" in str(jax.make_jaxpr(theirs)(x))  # what we look for exists
    assert "select_and_scatter" not in str(jax.make_jaxpr(ours)(x))
    assert "select_and_scatter" not in jax.jit(ours).lower(x).as_text()
    assert "select_and_scatter" not in str(jax.make_jaxpr(jax.vmap(ours))(x))


# --- average pool ----------------------------------------------------------------------------


@given(
    case=pool_cases(), count_include_pad=st.booleans(), dtype=st.sampled_from(DTYPES), seed=seeds
)
def test_avg_pool_is_the_loop(case, count_include_pad, dtype, seed):
    window, options, shape = case
    options = options | dict(count_include_pad=count_include_pad)
    assert_pool(
        fnn.avg_pool(window, **options),
        np.random.default_rng(seed).normal(size=shape),
        dtype,
        lambda x: oracles.avg_pool(x, window, **options),
        lambda x, dy: oracles.avg_pool_backward(x, dy, window, **options),
    )


def test_avg_pool_differentiates_forward():
    layer = fnn.avg_pool((2, 2), strides=1, padding="SAME")
    x, dx = np.random.default_rng(0).normal(size=(2, 3, 4, 2)).astype("float32")[:, None]
    _, tangent = jax.jvp(lambda x: layer({}, x), (jnp.asarray(x),), (jnp.asarray(dx),))
    assert_close(tangent, oracles.avg_pool(dx, (2, 2), strides=1, padding="SAME"))


# --- flatten, reshape ------------------------------------------------------------------------


@pytest.mark.parametrize("lead", [(), (2,), (2, 0, 3)])
@pytest.mark.parametrize(
    "n, tail, shape, wanted",
    [
        (1, (12,), (3, 4), (3, 4)),
        (1, (12,), (2, -1, 3), (2, 2, 3)),
        (2, (3, 4), (-1,), (12,)),
        (2, (3, 4), (4, 3), (4, 3)),
        (3, (2, 3, 2), (12, 1), (12, 1)),
        (1, (1,), (), ()),
        (2, (0, 4), (4, 0), (4, 0)),
        (2, (0, 4), (2, -1), (2, 0)),
    ],
)
def test_reshape_gives_the_last_axes_another_shape(lead, n, tail, shape, wanted):
    x = np.arange(np.prod((*lead, *tail))).reshape(*lead, *tail)
    net = fnn.reshape(shape, n)
    assert net.init(jax.random.key(0), x) == ({}, {})
    np.testing.assert_array_equal(jax.jit(net)({}, x), x.reshape((*lead, *wanted)))


def test_a_shape_that_does_not_fit_is_refused():
    for shape in ((-1, -1), (-1, 0), (2.5,), (-2,), 3, None, "text", (True,), (jnp.ones(2),)):
        with pytest.raises(errors.OptionError, match="^reshape: expected .*shape"):
            fnn.reshape(shape)
    with pytest.raises(errors.OptionError, match="n to be"):
        fnn.reshape((3,), 0)
    for shape, n, x in (((5,), 1, (2, 4)), ((3, -1), 1, (2, 4)), ((4,), 3, (2, 4)), ((), 1, (4,))):
        with pytest.raises(errors.ShapeError, match="^reshape: "):
            fnn.reshape(shape, n).init(jax.random.key(0), x)


# --- flatten ---------------------------------------------------------------------------------


@given(lead=leading, tail=st.lists(st.integers(0, 3), min_size=1, max_size=3))
def test_flatten_joins_the_last_axes(lead, tail):
    x = np.arange(np.prod((*lead, *tail))).reshape(*lead, *tail).astype("float32")
    y = fnn.flatten(len(tail))({}, jnp.asarray(x))
    assert_close(y, x.reshape(*lead, int(np.prod(tail))), dtype="float32")


# --- batch norm ------------------------------------------------------------------------------


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
        numbers = jnp.asarray(momentum, dtype), jnp.asarray(eps, dtype)
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
    y, vjp, new = jax.vjp(run, UNIT, jnp.asarray(x), has_aux=True)
    want, mean, var = oracles.batch_norm_train(x, **UNIT, **START, momentum=0.5)
    np.testing.assert_allclose(y, want, atol=2e-3)  # in deviations
    np.testing.assert_allclose(new["mean"], mean, atol=2e-4)
    np.testing.assert_allclose(2 * new["var"] - 1, 2 * var - 1, rtol=1e-3)
    np.testing.assert_allclose(np.var(y, (0, 1, 2)), 0.01 / (0.01 + 1e-5), rtol=0.1)
    dy = np.float32(np.random.default_rng(1).normal(size=x.shape))
    dx = vjp(jnp.asarray(dy))[1]
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

    y, vjp, new = jax.vjp(lanes, params, jnp.asarray(x), has_aux=True)
    want, mean, var = oracles.batch_norm_train(x, **params, **START)
    atol = 1e-5 if at == 0 else 2e-3
    np.testing.assert_allclose(y, want, atol=5 * atol)
    for lane in range(4):  # every lane holds the same new statistics
        np.testing.assert_allclose(new["mean"][lane], mean, atol=1e-6 * (1 + at))
        np.testing.assert_allclose(new["var"][lane], var, rtol=1e-4)
    dy = np.float32(np.random.default_rng(1).normal(size=x.shape))
    dparams, dx = vjp(jnp.asarray(dy))
    want_dx, dscale, dbias = oracles.batch_norm_train_backward(x, params["scale"], dy)
    np.testing.assert_allclose(dx, want_dx, atol=5 * atol * np.abs(want_dx).max())
    np.testing.assert_allclose(dparams["scale"], dscale, atol=50 * atol)
    np.testing.assert_allclose(dparams["bias"], dbias, atol=1e-5)


@pytest.mark.parametrize("train", [True, False])
def test_batch_norm_of_bfloat16_keeps_float32_statistics(train):
    """Statistics summed in bfloat16 would be off by percents over 288 rows."""
    x = jnp.asarray(far_from_zero() - 999, "bfloat16")  # mean 1
    params = {k: jnp.asarray(v, "bfloat16") for k, v in UNIT.items()}
    y, new = fnn.batch_norm().apply(params, START, x, train=train)
    want, mean, var = oracles.batch_norm_train(np.float64(x), **UNIT, **START)
    if not train:
        want = oracles.batch_norm_eval(np.float64(x), **UNIT, **START)
        mean, var = START["mean"], START["var"]
    assert_close(y, want, dtype="bfloat16", tolerance=1e-2)
    assert_trees_close(new, {"mean": mean, "var": var}, "float32")


@pytest.mark.parametrize("layer", [fnn.dense(3), fnn.conv(3, (2,)), fnn.batch_norm()])
def test_x_of_another_dtype_than_the_parameters_is_refused(layer):
    params, state = layer.init(jax.random.key(0), (2, 4, 3))
    with jax.numpy_dtype_promotion("standard"), pytest.raises(Exception, match="cast"):
        layer(params, jnp.ones((2, 4, 3), "bfloat16"), state=state)


@pytest.mark.parametrize("use_scale", [True, False])
@pytest.mark.parametrize("use_bias", [True, False])
def test_batch_norm_without_scale_or_bias(use_scale, use_bias):
    layer = fnn.batch_norm(use_scale=use_scale, use_bias=use_bias)
    x = np.float32(np.random.default_rng(0).normal(size=(6, 3)))
    params, state = layer.init(jax.random.key(0), x)
    assert set(params) == {k for k, used in [("scale", use_scale), ("bias", use_bias)] if used}
    np.testing.assert_array_equal(state["mean"], START["mean"])
    np.testing.assert_array_equal(state["var"], START["var"])
    y, _ = layer.apply(params, state, jnp.asarray(x), train=True)
    assert_close(y, oracles.batch_norm_train(x, **UNIT, **START)[0], dtype="float32")


# --- dropout ---------------------------------------------------------------------------------


def drop(rate, x, key, train=True):
    y, state = fnn.dropout(rate).apply({}, {}, x, key=key, train=train)
    assert state == {}
    return y


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dropout_drops_at_its_rate_and_scales_the_rest(rate, dtype):
    n = 40_000
    y = drop(rate, jnp.full((n,), 3, dtype), jax.random.key(0))
    assert y.dtype == dtype
    dropped = np.asarray(y) == 0
    assert abs(dropped.mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / n)
    kept = np.float64(y)[~dropped]
    np.testing.assert_allclose(kept, 3 / (1 - rate), rtol=1e-6 if dtype == "float32" else 1e-2)


def test_dropout_masks_are_independent_over_axes_and_keys():
    n, keys = 32, jax.random.split(jax.random.key(1), 32)
    masks = np.asarray(jax.vmap(lambda key: drop(0.5, jnp.ones((n, n)), key))(keys)) > 0
    for axis in range(3):  # means over one axis still vary over the others, by chance alone
        np.testing.assert_allclose(masks.mean(axis).std(), 0.5 / np.sqrt(n), rtol=0.1)


def test_dropout_repeats_its_mask_for_the_same_key_only():
    x = jnp.ones((100,))
    y = drop(0.5, x, jax.random.key(0))
    np.testing.assert_array_equal(y, drop(0.5, x, jax.random.key(0)))
    np.testing.assert_array_equal(y, jax.jit(lambda x, k: drop(0.5, x, k))(x, jax.random.key(0)))
    assert (np.asarray(y) != drop(0.5, x, jax.random.key(1))).any()


def test_dropout_is_the_identity_at_rate_0_and_in_evaluation():
    x = jax.random.normal(jax.random.key(0), (3, 4))
    np.testing.assert_array_equal(drop(0.0, x, jax.random.key(1)), x)
    np.testing.assert_array_equal(drop(0.5, x, jax.random.key(1), train=False), x)
    np.testing.assert_array_equal(fnn.dropout(0.5)({}, x), x)


def test_dropout_without_a_key_raises():
    with pytest.raises(Exception, match="key"):
        drop(0.5, jnp.ones(3), None)


def test_dropout_of_everything_is_zero_not_nan():
    y, vjp = jax.vjp(lambda x: drop(1.0, x, jax.random.key(0)), jnp.ones((20,)))
    np.testing.assert_array_equal(y, np.zeros(20))
    np.testing.assert_array_equal(vjp(y + 1)[0], np.zeros(20))


def test_dropout_gradient_is_its_mask():
    x = jax.random.normal(jax.random.key(0), (200,))

    def f(x):
        return drop(0.25, x, jax.random.key(1))

    y, tangent = jax.jvp(f, (x,), (jnp.ones_like(x),))
    np.testing.assert_allclose(tangent, np.where(np.asarray(y) == 0, 0, 1 / 0.75), rtol=1e-6)
    np.testing.assert_array_equal(jax.vjp(f, x)[1](jnp.ones_like(x))[0], tangent)


def test_dropout_rate_may_be_a_tracer():
    x, rates = jnp.ones((4000,)), jnp.asarray([0.0, 0.25, 0.75], "float32")
    y = np.asarray(jax.jit(jax.vmap(lambda rate: drop(rate, x, jax.random.key(0))))(rates))
    for lane, rate in enumerate([0, 0.25, 0.75]):
        assert abs((y[lane] == 0).mean() - rate) < 0.05
        np.testing.assert_allclose(y[lane][y[lane] != 0], 1 / (1 - rate), rtol=1e-6)


def test_dropout_layers_of_one_network_drop_differently():
    net = fnn.serial(fnn.dropout(0.5), fnn.dropout(0.5))
    n = 10_000
    y, _ = net.apply({}, {}, jnp.ones((n,)), key=jax.random.key(0), train=True)
    assert abs((np.asarray(y) > 0).mean() - 0.25) < 0.03  # one mask twice would keep half


# --- the oracles themselves --------------------------------------------------------------------


def test_oracle_backwards_are_numeric_derivatives():
    draw = np.random.default_rng(0).normal
    x, kernel = draw(size=(2, 5, 4, 2)), draw(size=(3, 2, 1, 4))
    options = dict(strides=(2, 1), padding="REFLECT", dilation=(1, 2), groups=2)
    dy = draw(size=oracles.conv(x, kernel, **options).shape)
    dx, dkernel, dbias = oracles.conv_backward(x, kernel, dy, **options)
    numeric = numeric_vjp
    assert_close(dx, numeric(lambda x: oracles.conv(x, kernel, **options), x, dy), tolerance=1e-7)
    by_kernel = numeric(lambda kernel: oracles.conv(x, kernel, **options), kernel, dy)
    assert_close(dkernel, by_kernel, tolerance=1e-7)
    assert_close(dbias, dy.sum((0, 1, 2)))

    options = dict(strides=(2, 1), padding="SAME")
    dy = draw(size=oracles.avg_pool(x, (3, 2), **options).shape)
    for forward, backward in [
        (lambda x: oracles.avg_pool(x, (3, 2), **options), oracles.avg_pool_backward),
        (lambda x: oracles.max_pool(x, (3, 2), **options)[0], oracles.max_pool_backward),
    ]:
        dx = backward(x, dy, (3, 2), **options)
        assert_close(dx, numeric(forward, x, dy), tolerance=1e-7)

    scale, bias, dy = draw(size=2), draw(size=2), draw(size=x.shape)

    def forward(x):
        return oracles.batch_norm_train(x, scale, bias, 0, 1)[0]

    dx, _, _ = oracles.batch_norm_train_backward(x, scale, dy)
    assert_close(dx, numeric(forward, x, dy), tolerance=1e-7)


def test_oracle_forwards_are_torchs():
    torch = pytest.importorskip("torch")
    draw = np.random.default_rng(0).normal
    x, kernel, bias = draw(size=(2, 6, 5, 4)), draw(size=(3, 2, 2, 6)), draw(size=6)

    def first(x):
        return torch.tensor(np.moveaxis(x, -1, 1))

    def last(y):
        return np.moveaxis(y.numpy(), 1, -1)

    functional = torch.nn.functional
    y = functional.conv2d(
        first(x), torch.tensor(kernel.transpose(3, 2, 0, 1)), torch.tensor(bias), (2, 1), 1, 2, 2
    )
    options = dict(strides=(2, 1), padding=1, dilation=2, groups=2)
    assert_close(oracles.conv(x, kernel, bias, **options), last(y))
    y = functional.max_pool2d(first(x), (3, 2), (2, 1), (1, 1))
    assert_close(oracles.max_pool(x, (3, 2), strides=(2, 1), padding=1)[0], last(y))
    for count_include_pad in (False, True):
        y = functional.avg_pool2d(first(x), 3, 2, 1, count_include_pad=count_include_pad)
        options = dict(strides=2, padding=1, count_include_pad=count_include_pad)
        assert_close(oracles.avg_pool(x, (3, 3), **options), last(y))
    mean, var = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    scale, bias = draw(size=4), draw(size=4)
    y = functional.batch_norm(
        first(x), mean, var, torch.tensor(scale), torch.tensor(bias), True, 0.1, 1e-5
    )
    want, want_mean, want_var = oracles.batch_norm_train(x, scale, bias, np.zeros(4), np.ones(4))
    assert_close(want, last(y))
    assert_close(mean.numpy(), want_mean)
    n = x.size / 4  # torch keeps the unbiased variance
    assert_close((var.numpy() - 0.9) * (n - 1) / n, want_var - 0.9)


def test_batch_norm_of_large_constant_channels_is_zero():
    values = np.random.default_rng(0).normal(size=(1, 2000)) * 1e8
    x = jnp.asarray(np.broadcast_to(values, (7, 2000)), jnp.float32)
    net = fnn.batch_norm()
    params, state = net.init(jax.random.key(0), x)
    y, new = jax.jit(lambda x: net.apply(params, state, x, train=True))(x)
    assert np.isfinite(y).all() and (np.asarray(new["var"]) >= 0).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("rate", [0.1, 0.001])
def test_dropout_scales_before_it_rounds(dtype, rate):
    x = jnp.full((4000,), 3.0, dtype)
    y, _ = fnn.dropout(rate).apply({}, {}, x, key=jax.random.key(0), train=True)
    kept = np.unique(np.asarray(y, np.float32))[-1]
    wanted = np.asarray(jnp.asarray(3.0 / (1 - rate), dtype), np.float32)
    np.testing.assert_allclose(kept, wanted, rtol=0 if dtype == jnp.bfloat16 else 2e-7)


@pytest.mark.parametrize("pool", [fnn.max_pool, fnn.avg_pool])
def test_no_window_lies_in_the_padding(pool):
    with pytest.raises(fnn.FnnError, match="padding below the window"):
        pool((2,), padding=((2, 0),))


def test_traced_options_are_scalars():
    def drop(rate):
        return fnn.dropout(rate)({}, jnp.ones((2, 3)))

    for call in (drop, jax.jit(drop)):
        with pytest.raises(fnn.FnnError, match="rate to be a number"):
            call(jnp.array([0.0, 0.5, 1.0]))
    with pytest.raises(fnn.FnnError, match="one number as scale"):
        init = fnn.initializers.normal(jnp.ones((5, 1)))
        fnn.dense(3, kernel_init=init).init(jax.random.key(0), (1, 5))


def test_large_max_pools_are_first_maxima_too():
    """Windows too large to be unrolled are pooled axis by axis: values, ties and padding agree."""
    for shape, window, padding in (
        ((2, 14, 21, 2), (7, 7), "VALID"),
        ((2, 13, 12, 2), (6, 8), ((1, 0), (0, 4))),
        ((1, 28, 28, 1), (28, 28), "VALID"),
    ):
        pool = fnn.max_pool(window, padding=padding)
        x = np.random.default_rng(0).integers(-3, 3, shape).astype(np.float32)  # many ties
        y, pull = jax.vjp(lambda x, pool=pool: pool({}, x), jnp.asarray(x))
        np.testing.assert_array_equal(y, oracles.max_pool(x, window, padding=padding)[0])
        dy = np.random.default_rng(1).normal(size=y.shape).astype(np.float32)
        wanted = oracles.max_pool_backward(x, dy, window, padding=padding)
        np.testing.assert_allclose(pull(jnp.asarray(dy))[0], wanted, rtol=1e-6)
