"""Transposed, depthwise and local convolutions, the further pools and resizings, by the oracles."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import fnn
from fnn import errors
from tests.layers import oracles
from tests.layers.conv import oracles as kit
from tests.layers.test_layers import (
    assert_trees_close,
    leading,
    pool_cases,
    rounded,
    run_and_pull,
    seeds,
    wide,
)
from tests.support import assert_close

DTYPES = ("float64", "float32", "bfloat16", "float16")


def assert_bilinear(layer, x, params, dtype, out, terms):
    """y, dx, dkernel and dbias are those of the terms; the kernel is the one declared."""
    declared, _ = layer.specs(x.shape)
    arrays = {k: spec.stack + spec.shape for k, spec in declared.items()}
    assert arrays == {k: v.shape for k, v in params.items()}
    with wide(dtype):
        (params, x), (exact, exact_x) = rounded((params, x), dtype)
        want = kit.bilinear(exact_x, exact["kernel"], exact.get("bias"), out, terms)
        dy, exact_dy = rounded(np.random.default_rng(7).normal(size=want.shape), dtype)
        y, dparams, dx = run_and_pull(layer, params, x, dy)
        assert_close(y, want, dtype=dtype)
        want_dx, dkernel = kit.bilinear_backward(exact_x, exact["kernel"], exact_dy, out, terms)
        want = {"kernel": dkernel}
        if "bias" in params:
            want["bias"] = kit.bias_backward(exact_dy, params["bias"].shape)
        assert_close(dx, want_dx, dtype=dtype)
        assert_trees_close(dparams, want, dtype)


# --- transposed convolution --------------------------------------------------------------------


@st.composite
def transposed_cases(draw):
    """(features, kernel_size, options, x shape), with at least one output."""
    rank = draw(st.sampled_from([1, 2]))

    def per_axis(low, high):
        one = st.integers(low, high)
        return draw(one | st.tuples(*[one] * rank))

    size = draw(st.tuples(*[st.integers(1, 4)] * rank))
    options = dict(strides=per_axis(1, 3), dilation=per_axis(1, 2))
    pairs = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=rank, max_size=rank)
    options["padding"] = draw(st.sampled_from(["SAME", "VALID"]) | st.integers(0, 2) | pairs)
    spatial = []
    for a in range(rank):
        cut = 0
        if not isinstance(options["padding"], str):
            cut = sum(oracles.pad_amounts(options["padding"], a, 1, 1, 1))
        reach = (size[a] - 1) * oracles.per_axis(options["dilation"], rank)[a] + 1
        least = 1
        while (least - 1) * oracles.per_axis(options["strides"], rank)[a] + reach <= cut:
            least += 1
        spatial.append(draw(st.integers(least, least + 2)))
    shape = (*draw(leading), *spatial, draw(st.integers(1, 2)))
    return draw(st.integers(1, 2)), size, options, shape


SMALL = dict(bias=False, dtype="float32", seed=0)
TINY = [  # on these and their like XLA would abort, or on their gradients
    (1, (4, 2), dict(strides=(1, 2), dilation=1, padding=((0, 0), (1, 1))), (2, 3, 1)),
    (1, (3, 4), dict(strides=(1, 2), dilation=1, padding=((0, 0), (3, 3))), (2, 3, 1)),
    (1, (4, 6), dict(strides=(1, 3), dilation=(1, 2), padding=((0, 0), (10, 10))), (2, 5, 1)),
]


@given(
    case=transposed_cases(),
    transpose=st.booleans(),
    bias=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    seed=seeds,
)
@example(case=TINY[0], transpose=False, **SMALL)
@example(case=TINY[1], transpose=False, **SMALL)
@example(case=TINY[2], transpose=False, **SMALL)
def test_conv_transpose_is_the_loop(case, transpose, bias, dtype, seed):
    features, size, options, shape = case
    draw, cin = np.random.default_rng(seed).normal, shape[-1]
    channels = (features, cin) if transpose else (cin, features)
    params = {"kernel": draw(size=(*size, *channels))}
    if bias:
        params["bias"] = draw(size=features)
    terms = kit.conv_transpose_terms(
        shape[-len(size) - 1 : -1], size, cin, features, transpose=transpose, **options
    )
    layer = fnn.conv_transpose(features, size, use_bias=bias, transpose_kernel=transpose, **options)
    assert_bilinear(layer, draw(size=shape), params, dtype, *terms)


@pytest.mark.parametrize("padding", ["SAME", "VALID", 1, ((0, 1), (2, 1))])
def test_conv_transpose_is_the_gradient_of_conv(padding):
    """With the kernel stored as the convolution's, it is what pulls y's image back to x's."""
    draw = np.random.default_rng(0).normal
    options = dict(strides=2, dilation=(1, 2), padding=padding)
    image = {"SAME": (6, 8), "VALID": (5, 9), 1: (5, 7)}.get(padding, (6, 8))
    kernel = draw(size=(3, 2, 3, 2))
    y = oracles.conv(draw(size=(2, *image, 3)), kernel, **options)
    dx, _, _ = oracles.conv_backward(np.zeros((2, *image, 3)), kernel, y, **options)
    layer = fnn.conv_transpose(3, (3, 2), use_bias=False, transpose_kernel=True, **options)
    got = layer({"kernel": jnp.float32(kernel)}, jnp.float32(y))
    assert_close(got, dx, dtype="float32")


def test_conv_transpose_output_sizes_are_the_fields():
    """SAME and VALID as in TensorFlow, pairs as PyTorch's padding, for every small geometry."""
    for n in (1, 2, 5):
        for k in (1, 2, 3, 5):
            for s in (1, 2, 3):
                for d in (1, 2):
                    reach = (k - 1) * d + 1
                    sizes = {"SAME": n * s, "VALID": (n - 1) * s + max(reach, s)}
                    sizes |= {p: (n - 1) * s - 2 * p + d * (k - 1) + 1 for p in (0, 1)}
                    for padding, size in sizes.items():
                        layer = fnn.conv_transpose(
                            1, (k,), strides=s, dilation=d, padding=padding, use_bias=False
                        )
                        params = {"kernel": jax.ShapeDtypeStruct((k, 1, 1), jnp.float32)}
                        x = jax.ShapeDtypeStruct((n, 1), jnp.float32)
                        if size < 1:
                            with pytest.raises(errors.ShapeError, match="spatial axes of at least"):
                                layer.specs((n, 1))
                            continue
                        assert jax.eval_shape(layer, params, x).shape == (size, 1)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("strides", [(2, 1), (3, 2)])
def test_conv_transpose_is_lax(padding, transpose, strides):
    draw = np.random.default_rng(1).normal
    x = jnp.float32(draw(size=(2, 4, 3, 2)))
    kernel = jnp.float32(draw(size=(2, 4, 3, 2) if transpose else (2, 4, 2, 3)))
    layer = fnn.conv_transpose(
        3, (2, 4), strides=strides, padding=padding, use_bias=False, transpose_kernel=transpose
    )
    want = jax.lax.conv_transpose(
        x,
        kernel,
        strides,
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        transpose_kernel=transpose,
    )
    assert_close(layer({"kernel": kernel}, x), want)


@pytest.mark.parametrize("strides, padding, dilation", [((2, 3), (1, 0), (1, 2)), (1, 2, 1)])
def test_conv_transpose_is_torchs(strides, padding, dilation):
    torch = pytest.importorskip("torch")
    draw = np.random.default_rng(2).normal
    x, weight, bias = (np.float32(draw(size=s)) for s in [(2, 3, 5, 4), (3, 2, 3, 2), (2,)])
    theirs = torch.nn.functional.conv_transpose2d(
        *map(torch.tensor, (x, weight, bias)), stride=strides, padding=padding, dilation=dilation
    )
    pairs = padding if isinstance(padding, int) else [(p, p) for p in padding]
    layer = fnn.conv_transpose(
        2, (3, 2), strides=strides, padding=pairs, dilation=dilation, transpose_kernel=True
    )
    params = {"kernel": jnp.asarray(weight.transpose(2, 3, 1, 0)), "bias": jnp.asarray(bias)}
    y = layer(params, jnp.asarray(x.transpose(0, 2, 3, 1)))
    assert_close(y, theirs.numpy().transpose(0, 2, 3, 1))


@pytest.mark.parametrize("transpose", [False, True])
def test_conv_transpose_starts_with_the_variance_of_its_fan(transpose):
    layer = fnn.conv_transpose(7, (3, 3), transpose_kernel=transpose)
    kernel = np.asarray(layer.init(jax.random.key(0), (1, 5, 5, 90))[0]["kernel"])
    assert kernel.shape == ((3, 3, 7, 90) if transpose else (3, 3, 90, 7))
    assert abs(kernel.var() * 90 * 9 - 1) < 5 * np.sqrt(2 / kernel.size)


# --- depthwise, separable and local convolution ------------------------------------------------


TINY_SLIDING = (3, 2), dict(strides=2, dilation=1, padding=1), (4, 4, 1)
MANY_TAPS = (129,), dict(strides=1, dilation=1, padding="VALID"), (1, 130, 2)


@st.composite
def sliding_cases(draw):
    """(kernel_size, options, x shape), with at least one output."""
    rank = draw(st.sampled_from([1, 2]))
    size = draw(st.tuples(*[st.integers(1, 3)] * rank))
    strides, dilation = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    padding = draw(
        st.sampled_from(["SAME", "VALID", "CAUSAL", "CIRCULAR", "REFLECT"]) | st.integers(0, 1)
    )
    reach = [(k - 1) * dilation + 1 for k in size]
    spatial = [draw(st.integers(r, r + 2)) for r in reach]
    options = dict(strides=strides, dilation=dilation, padding=padding)
    return size, options, (*draw(leading), *spatial, draw(st.integers(1, 3)))


@given(
    local=st.booleans(),
    case=sliding_cases(),
    more=st.integers(1, 2),
    bias=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    seed=seeds,
)
@example(local=False, case=TINY_SLIDING, more=1, **SMALL)
@example(local=False, case=MANY_TAPS, more=1, **SMALL)
def test_depthwise_and_local_conv_are_the_loops(local, case, more, bias, dtype, seed):
    size, options, shape = case
    draw, spatial, cin = np.random.default_rng(seed).normal, shape[-len(size) - 1 : -1], shape[-1]
    if local:
        layer = fnn.local_conv(more, size, use_bias=bias, **options)
        out, terms = kit.local_terms(spatial, size, cin, more, **options)
        params = {"kernel": draw(size=(*out[:-1], *size, cin, more)), "bias": draw(size=out)}
    else:
        layer = fnn.depthwise_conv(size, multiplier=more, use_bias=bias, **options)
        out, terms = kit.depthwise_terms(spatial, size, cin, more, **options)
        params = {"kernel": draw(size=(*size, 1, cin * more)), "bias": draw(size=cin * more)}
    if not bias:
        del params["bias"]
    assert_bilinear(layer, draw(size=shape), params, dtype, out, terms)


def test_depthwise_conv_is_torchs_grouped_conv():
    torch = pytest.importorskip("torch")
    draw = np.random.default_rng(3).normal
    x, weight = (np.float32(draw(size=s)) for s in [(2, 3, 5, 4), (6, 1, 3, 2)])
    theirs = torch.nn.functional.conv2d(torch.tensor(x), torch.tensor(weight), groups=3, padding=1)
    layer = fnn.depthwise_conv((3, 2), multiplier=2, padding=1, use_bias=False)
    params = {"kernel": jnp.asarray(weight.transpose(2, 3, 1, 0))}
    y = layer(params, jnp.asarray(x.transpose(0, 2, 3, 1)))
    assert_close(y, theirs.numpy().transpose(0, 2, 3, 1))


def test_separable_conv_is_the_two_loops():
    options = dict(strides=2, padding="SAME", dilation=1)
    layer = fnn.separable_conv(3, (3, 2), multiplier=2, **options)
    params, _ = layer.init(jax.random.key(0), (2, 5, 4, 2))
    x = np.random.default_rng(4).normal(size=(2, 5, 4, 2))
    out, terms = kit.depthwise_terms((5, 4), (3, 2), 2, 2, **options)
    between = kit.bilinear(x, np.asarray(params["depthwise"]["kernel"]), None, out, terms)
    want = oracles.conv(between, **{k: np.asarray(v) for k, v in params["pointwise"].items()})
    assert_close(layer(params, jnp.float32(x)), want, dtype="float32")
    assert sorted(params["depthwise"]) == ["kernel"]


def test_local_conv_draws_each_place_by_itself():
    """Each place's kernel has the variance of `conv`'s, and no two are the same."""
    layer = fnn.local_conv(4, (3, 3))
    kernel = np.asarray(layer.init(jax.random.key(0), (1, 6, 5, 30))[0]["kernel"])
    assert kernel.shape == (6, 5, 3, 3, 30, 4)
    places = kernel.reshape(30, -1)
    assert abs(kernel.var() * 270 - 1) < 5 * np.sqrt(2 / kernel.size)
    assert np.abs(np.corrcoef(places) - np.eye(30)).max() < 6 / np.sqrt(places.shape[1])


def test_local_conv_refuses_another_size_of_image():
    layer = fnn.local_conv(2, (3,))
    params, _ = layer.init(jax.random.key(0), (1, 6, 2))
    with pytest.raises(errors.ParamsError, match=r"kernel \(7, 3, 2, 2\) for x \(1, 7, 2\)"):
        layer(params, jnp.ones((1, 7, 2)))


# --- pools -------------------------------------------------------------------------------------


def assert_unary(layer, x, dtype, want, backward=None):
    """y is the oracle's, and so is dx; without a backward, y is linear and dx its adjoint."""
    with wide(dtype):
        x, exact = rounded(x, dtype)
        y_want = want(exact)
        dy, exact_dy = rounded(np.random.default_rng(7).normal(size=y_want.shape), dtype)
        y, _, dx = run_and_pull(layer, {}, x, dy)
        assert_close(y, y_want, dtype=dtype)
        if backward is not None:
            assert_close(dx, backward(exact, exact_dy), dtype=dtype)
        elif x.size:
            basis = np.eye(x.size).reshape(x.size, *x.shape)
            columns = np.array([want(e) for e in basis])  # [size of x, *y's shape]
            assert_close(dx, np.tensordot(columns, exact_dy, exact_dy.ndim).reshape(x.shape))


@given(
    kind=st.sampled_from(["min", "sum", "lp"]),
    case=pool_cases(),
    p=st.sampled_from([1, 2, 3.5]),
    dtype=st.sampled_from(DTYPES),
    seed=seeds,
)
def test_pools_are_the_loops(kind, case, p, dtype, seed):
    """Values are multiples of 1/2, so there are ties and zeros."""
    window, options, shape = case
    x = np.round(2 * np.random.default_rng(seed).normal(size=shape)) / 2
    size = int(np.prod(window))
    layer, want, backward = {
        "min": (
            fnn.min_pool(window, **options),
            lambda x: kit.min_pool(x, window, **options)[0],
            lambda x, dy: kit.min_pool_backward(x, dy, window, **options),
        ),
        "sum": (
            fnn.sum_pool(window, **options),
            lambda x: size * oracles.avg_pool(x, window, count_include_pad=True, **options),
            lambda x, dy: oracles.avg_pool_backward(
                x, size * dy, window, count_include_pad=True, **options
            ),
        ),
        "lp": (
            fnn.lp_pool(window, p, **options),
            lambda x: kit.lp_pool(x, window, p, **options),
            lambda x, dy: kit.lp_pool_backward(x, dy, window, p, **options),
        ),
    }[kind]
    assert_unary(layer, x, dtype, want, backward)


@pytest.mark.parametrize("strides", [None, (1, 2)])
def test_min_pool_of_special_values_and_padding(strides):
    """NaN wins, padding never does; apart or overlapping."""
    values = np.float32([-np.inf, np.inf, 0, 1, np.nan])
    x = np.random.default_rng(0).choice(values, size=(3, 5, 4, 2), p=[0.1, 0.6, 0.1, 0.1, 0.1])
    options = dict(strides=strides, padding=[(1, 0), (0, 1)])
    want = -oracles.max_pool(-x, (2, 3), **options)[0]
    np.testing.assert_array_equal(fnn.min_pool((2, 3), **options)({}, jnp.asarray(x)), want)
    assert np.isnan(want).any() and np.isposinf(want).any()


def test_min_pool_of_windows_apart_needs_no_select_and_scatter():
    x = jnp.zeros((2, 4, 6, 3))
    text = str(jax.make_jaxpr(jax.grad(lambda x: fnn.min_pool((2, 2))({}, x).sum()))(x))
    assert "select_and_scatter" not in text and "reduce_window" not in text


def test_lp_pool_of_large_small_and_infinite_values():
    """Powers that float32 cannot hold, and exponents near the maximum."""
    x = np.float32([[3e30, 4e30], [3e-30, 4e-30], [np.inf, 1], [np.nan, 1], [0, 0], [-2, 1]])
    want = [[5e30], [5e-30], [np.inf], [np.nan], [0], [np.sqrt(5)]]
    layer = fnn.lp_pool((2,), 2)
    np.testing.assert_allclose(layer({}, jnp.asarray(x)[..., None])[..., 0], want, rtol=1e-6)
    sharp = fnn.lp_pool((2,), 1000.0)({}, jnp.asarray(x)[..., None])[..., 0]
    np.testing.assert_allclose(sharp[-1], [2], rtol=1e-6)
    assert fnn.lp_pool((2,), 2)({}, jnp.float16([[300.0], [400.0]]))[0, 0] == 500


@pytest.mark.parametrize("strides", [None, (1, 1)])
def test_lp_pool_of_zeros_has_finite_derivatives(strides):
    x = jnp.zeros((4, 4, 1)).at[0, 1].set(2.0)

    def loss(x, p):
        return jnp.sum(jnp.sin(fnn.lp_pool((2, 2), p, strides=strides)({}, x)))

    @jax.jit
    def derivatives(x, p):
        slope = jax.grad(loss)
        return slope(x, p), *jax.jvp(slope, (x, p), (x + 1, 1.0)), jax.jacrev(slope)(x, p)

    for p in (1.0, 1.5, 2.0, 3.0):
        slope, *others = derivatives(x, p)
        assert np.all(slope[2:] == 0) and slope[0, 1] != 0
        assert all(np.isfinite(d).all() for d in (slope, *others))


def test_lp_pool_has_the_hessian_of_a_norm_at_zero_entries():
    """Of |x| it is (1 - u u') / |x| with u = x / |x|; a rectifier leaves such zeros."""
    x = np.array([3.0, 0.0, 0.0, -4.0])
    with jax.enable_x64(True):

        def norm(x):
            return fnn.lp_pool((4,), 2)({}, x[:, None])[0, 0]

        u, slope = x / 5, jax.grad(norm)
        hessians = jax.jit(lambda x: [jax.jacfwd(slope)(x), jax.jacrev(slope)(x)])
        for hessian in hessians(jnp.asarray(x)):
            assert_close(hessian, (np.eye(4) - np.outer(u, u)) / 5)


def test_lp_pool_takes_a_traced_exponent_and_its_derivative():
    x = np.array([3.0, -1.0, 0.0, 0.5, 2.0, 2.0]).reshape(6, 1)
    with jax.enable_x64(True):

        @jax.jit
        def total(p):
            return fnn.lp_pool((3,), p)({}, jnp.asarray(x)).sum()

        for p in (1.5, 2.0, 4.0):
            assert_close(total(p), kit.lp_pool(x, (3,), p).sum())
            slope = kit.lp_pool(x, (3,), p + 1e-6).sum() - kit.lp_pool(x, (3,), p - 1e-6).sum()
            assert_close(jax.grad(total)(p), slope / 2e-6, tolerance=1e-7)
            assert_close(jax.jvp(total, (p,), (1.0,))[1], slope / 2e-6, tolerance=1e-7)


# --- pools of the whole image ------------------------------------------------------------------


@given(
    largest=st.booleans(),
    n=st.integers(1, 3),
    lead=leading,
    dtype=st.sampled_from(DTYPES),
    seed=seeds,
)
def test_global_pools_are_the_loops(largest, n, lead, dtype, seed):
    """The pools over windows as large as the image, ties to the first."""
    spatial = (3, 2, 2)[:n]
    x = np.round(np.random.default_rng(seed).normal(size=(*lead, *spatial, 2)))
    at = tuple(range(len(lead), len(lead) + n))
    layer = (fnn.global_max_pool if largest else fnn.global_avg_pool)(n)
    pull = oracles.max_pool_backward if largest else oracles.avg_pool_backward

    def want(x):
        y = oracles.max_pool(x, spatial)[0] if largest else oracles.avg_pool(x, spatial)
        return y.squeeze(at)

    assert_unary(layer, x, dtype, want, lambda x, dy: pull(x, np.expand_dims(dy, at), spatial))


def test_global_max_pool_of_special_values():
    x = jnp.float32([[-np.inf, 1, np.nan], [-np.inf, np.inf, 2], [-np.inf, np.inf, 3]])
    y, pull = jax.vjp(partial(fnn.global_max_pool(1), {}), x)
    np.testing.assert_array_equal(y, [-np.inf, np.inf, np.nan])
    np.testing.assert_array_equal(pull(jnp.ones(3))[0], [[1, 0, 1], [0, 1, 0], [0, 0, 0]])


@given(
    spatial=st.lists(st.integers(1, 5), min_size=1, max_size=2),
    bins=st.lists(st.integers(1, 6), min_size=2, max_size=2),
    lead=leading,
    dtype=st.sampled_from(DTYPES),
    seed=seeds,
)
def test_adaptive_avg_pool_is_the_loop(spatial, bins, lead, dtype, seed):
    output_size = tuple(bins[: len(spatial)])
    x = np.random.default_rng(seed).normal(size=(*lead, *spatial, 1))
    layer = fnn.adaptive_avg_pool(output_size)
    assert_unary(layer, x, dtype, lambda x: kit.adaptive_avg_pool(x, output_size))


def test_adaptive_avg_pool_is_torchs():
    torch = pytest.importorskip("torch")
    x = np.float32(np.random.default_rng(5).normal(size=(2, 3, 7, 5)))
    for size in [(3, 2), (7, 5), (1, 1), (10, 4)]:
        theirs = torch.nn.functional.adaptive_avg_pool2d(torch.tensor(x), size)
        y = fnn.adaptive_avg_pool(size)({}, jnp.asarray(x.transpose(0, 2, 3, 1)))
        assert_close(y, theirs.numpy().transpose(0, 2, 3, 1))


# --- resolution --------------------------------------------------------------------------------


@given(
    method=st.sampled_from(["nearest", "linear", "cubic"]),
    spatial=st.lists(st.integers(1, 4), min_size=1, max_size=2),
    scale=st.lists(st.integers(1, 4), min_size=2, max_size=2),
    lead=leading,
    dtype=st.sampled_from(DTYPES),
    seed=seeds,
)
def test_upsample_is_the_loop(method, spatial, scale, lead, dtype, seed):
    scale = tuple(scale[: len(spatial)])
    x = np.random.default_rng(seed).normal(size=(*lead, *spatial, 1))
    rule = {"nearest": kit.nearest, "linear": kit.linear, "cubic": kit.cubic}[method]
    assert_unary(fnn.upsample(scale, method), x, dtype, lambda x: kit.upsample(x, scale, rule))


def test_one_scale_stands_for_all_axes_whose_number_is_said():
    x = jnp.arange(12.0).reshape(1, 2, 3, 2)
    for method in ("nearest", "linear"):
        y = fnn.upsample(2, method, spatial_axes=2)({}, x)
        np.testing.assert_array_equal(y, fnn.upsample((2, 2), method)({}, x))
    with pytest.raises(errors.OptionError, match="spatial_axes=2 for images, or scale=.3, 3."):
        fnn.upsample(3)
    for wrong in (0, 2.5, True):
        with pytest.raises(errors.OptionError):
            fnn.upsample(2, spatial_axes=wrong)
    with pytest.raises(errors.OptionError, match="3 ints"):
        fnn.upsample((2, 2), spatial_axes=3)


def test_upsample_is_torchs_and_jaxs():
    """PyTorch's nearest and bilinear; jax.image's cubic away from the border, which it weighs."""
    x = np.float32(np.random.default_rng(6).normal(size=(2, 6, 7, 3)))
    for method, theirs in [("nearest", "nearest"), ("linear", "linear"), ("cubic", "cubic")]:
        y = np.asarray(fnn.upsample((3, 2), method)({}, jnp.asarray(x)))
        want = jax.image.resize(x, (2, 18, 14, 3), theirs)
        inner = (slice(None), slice(6, -6), slice(4, -4))
        assert_close(y[inner], np.asarray(want)[inner])
    torch = pytest.importorskip("torch")
    for method, theirs in [("nearest", "nearest"), ("linear", "bilinear")]:
        y = fnn.upsample((3, 2), method)({}, jnp.asarray(x))
        want = torch.nn.functional.interpolate(
            torch.tensor(x.transpose(0, 3, 1, 2)), scale_factor=(3, 2), mode=theirs
        )
        assert_close(y, want.numpy().transpose(0, 2, 3, 1))


@pytest.mark.parametrize("method, reach", [("nearest", 0), ("linear", 1), ("cubic", 2)])
def test_upsample_keeps_an_infinity_where_it_is(method, reach):
    x = jnp.zeros((9, 1)).at[4].set(jnp.inf)
    bad = ~np.isfinite(fnn.upsample((3,), method)({}, x)[:, 0])
    assert bad[12:15].all() and not bad[: 12 - 3 * reach].any() and not bad[15 + 3 * reach :].any()


@given(
    lead=leading,
    size=st.tuples(*[st.integers(0, 3)] * 3),
    r=st.integers(1, 3),
    dtype=st.sampled_from(DTYPES),
)
def test_pixel_shuffle_is_the_loop_and_unshuffle_its_inverse(lead, size, r, dtype):
    height, width, channels = size
    x = np.arange(np.prod((*lead, *size, r, r)), dtype="float64")
    x = x.reshape(*lead, height, width, channels * r * r)
    with wide(dtype):
        x, exact = rounded(x, dtype)
        y = fnn.pixel_shuffle(r)({}, x)
        assert y.dtype == x.dtype
        np.testing.assert_array_equal(np.float64(y), kit.pixel_shuffle(exact, r))
        np.testing.assert_array_equal(fnn.pixel_unshuffle(r)({}, y), x)


def test_pixel_shuffle_is_torchs():
    torch = pytest.importorskip("torch")
    x = np.float32(np.random.default_rng(7).normal(size=(2, 12, 3, 4)))
    theirs = torch.nn.functional.pixel_shuffle(torch.tensor(x), 2).numpy()
    y = fnn.pixel_shuffle(2)({}, jnp.asarray(x.transpose(0, 2, 3, 1)))
    np.testing.assert_array_equal(y, theirs.transpose(0, 2, 3, 1))


# --- what they refuse, and empty batches -------------------------------------------------------


BUILDERS = {
    "conv_transpose": (fnn.conv_transpose(2, (3,), strides=2), (4, 2)),
    "depthwise_conv": (fnn.depthwise_conv((3,)), (4, 2)),
    "separable_conv": (fnn.separable_conv(2, (3,)), (4, 2)),
    "local_conv": (fnn.local_conv(2, (3,)), (4, 2)),
    "min_pool": (fnn.min_pool((2,)), (4, 2)),
    "sum_pool": (fnn.sum_pool((2,)), (4, 2)),
    "lp_pool": (fnn.lp_pool((2,), 2), (4, 2)),
    "global_avg_pool": (fnn.global_avg_pool(1), (4, 2)),
    "global_max_pool": (fnn.global_max_pool(1), (4, 2)),
    "adaptive_avg_pool": (fnn.adaptive_avg_pool((3,)), (4, 2)),
    "upsample": (fnn.upsample((2,), "cubic"), (4, 2)),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_empty_batches_and_empty_images(name):
    layer, shape = BUILDERS[name]
    params, _ = layer.init(jax.random.key(0), shape)
    full = jax.eval_shape(layer, params, jax.ShapeDtypeStruct((3, *shape), jnp.float32))
    y, dparams, dx = run_and_pull(
        layer, params, jnp.zeros((0, *shape)), jnp.zeros((0, *full.shape[1:]))
    )
    assert y.shape == (0, *full.shape[1:]) and dx.shape == (0, *shape)
    assert all(not leaf.any() for leaf in jax.tree.leaves(dparams))
    with pytest.raises(errors.ShapeError, match="spatial axes of at least"):
        layer.specs((3, 0, 2))


@pytest.mark.parametrize("transpose", [False, True])
def test_conv_transpose_of_other_channels(transpose):
    layer = fnn.conv_transpose(2, (3,), transpose_kernel=transpose)
    params, _ = layer.init(jax.random.key(0), (1, 4, 5))
    kernel = "(3, 2, 5)" if transpose else "(3, 5, 2)"
    for call in (layer, jax.jit(layer)):
        with pytest.raises(errors.ShapeError) as caught:
            call(params, jnp.ones((1, 4, 3)))
        said = caught.value.expected, caught.value.got
        assert said == (f"last axis 5 (kernel is {kernel})", "x (1, 4, 3)")


def test_layers_say_what_is_wrong():
    wrong = [
        (fnn.conv_transpose(1, (2,), padding=2), (3, 2, 1), "spatial axes of at least 4"),
        (fnn.depthwise_conv((1,)), (3, 2, 0), "at least one channel"),
        (fnn.pixel_shuffle(2), (3, 2, 6), "divisible by r\\^2 = 4"),
        (fnn.pixel_unshuffle(2), (3, 2, 6), "divisible by r = 2"),
    ]
    for layer, shape, text in wrong:
        with pytest.raises(errors.ShapeError, match=text):
            layer.specs(shape)
    for padding in ("CAUSAL", "REFLECT"):
        with pytest.raises(errors.OptionError, match="conv_transpose: expected padding"):
            fnn.conv_transpose(1, (2,), padding=padding)
    with pytest.raises(errors.OptionError, match="no window lies in it wholly"):
        fnn.lp_pool((2,), 2, padding=2)


def test_separable_conv_names_itself_in_mistakes():
    bad = (0, -1, 2.5, True, None, "text", (), (2.5,), float("nan"), [None], {}, jnp.ones(2))
    for option in ("features", "kernel_size", "multiplier", "strides", "padding", "dilation"):
        options = {"features": 2, "kernel_size": (3, 3)}
        refused = 0
        for value in bad:
            try:
                fnn.separable_conv(**{**options, option: value})
            except errors.FnnError as error:
                refused += 1
                assert isinstance(error, errors.OptionError)
                assert str(error).startswith("separable_conv: expected")
        assert refused >= len(bad) - 1
    layer = fnn.separable_conv(2, (3, 3))
    params, _ = layer.init(jax.random.key(0), (1, 4, 4, 2))
    for x in (jnp.ones((4, 4)), jnp.ones((1, 4, 4, 3)), jnp.ones((1, 4, 4, 2), int)):
        texts = set()
        for call in (layer, jax.jit(layer)):
            with pytest.raises(errors.FnnError, match="^depthwise: expected") as caught:
                call(params, x)
            texts.add(str(caught.value))
        assert len(texts) == 1


def test_lp_pool_differentiates_under_scan_and_checkpoint():
    """The norm's derivatives pass through the transforms that training uses."""
    layer = fnn.lp_pool((2,), 3)
    x = jax.random.normal(jax.random.key(0), (5, 4, 2))

    def loss(x):
        return jax.lax.scan(lambda t, x: (t + layer({}, x).sum(), None), 0.0, x)[0]

    want = kit.lp_pool_backward(np.float64(x), np.ones((5, 2, 2)), (2,), 3)
    assert_close(jax.grad(jax.checkpoint(loss))(x), want)


@pytest.mark.parametrize(
    "strides, padding, dilation, kernel, shape",
    [
        ((2, 3), ((3, 3), (1, 1)), 1, (4, 2), (1, 2, 3, 1)),
        ((1, 1, 3), ((1, 1),) * 3, (1, 2, 1), (2, 3, 1), (1, 2, 4, 4, 2)),
    ],
)
def test_second_derivatives_on_which_xla_would_abort(strides, padding, dilation, kernel, shape):
    """The penalty |dl/dx|^2 + |dl/dk|^2 of l = |y|^2 has a gradient, by differences in float64."""
    with jax.enable_x64(True):
        draw = np.random.default_rng(0).normal
        layer = fnn.conv(1, kernel, strides=strides, padding=padding, dilation=dilation)
        x, way = draw(size=shape), draw(size=shape)
        params = {"kernel": draw(size=(*kernel, shape[-1], 1)), "bias": draw(size=1)}

        def penalty(x):
            grads = jax.grad(lambda params, x: jnp.sum(layer(params, x) ** 2), (0, 1))(params, x)
            return sum(jnp.sum(a**2) for a in jax.tree.leaves(grads))

        found = jnp.vdot(jax.jit(jax.grad(penalty))(x), way)
        wanted = (penalty(x + 1e-5 * way) - penalty(x - 1e-5 * way)) / 2e-5
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
