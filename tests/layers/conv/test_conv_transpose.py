"""Transposed convolutions against the loop, lax and PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import fnn
from fnn import errors
from tests.layers.conv import oracles
from tests.layers.conv.support import FLOATS, SMALL, TINY, assert_bilinear
from tests.layers.support import leading, seeds
from tests.support import asarray, assert_close


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


@given(
    case=transposed_cases(),
    transpose=st.booleans(),
    bias=st.booleans(),
    dtype=st.sampled_from(FLOATS),
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
    terms = oracles.conv_transpose_terms(
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
    params = {"kernel": asarray(weight.transpose(2, 3, 1, 0)), "bias": asarray(bias)}
    y = layer(params, asarray(x.transpose(0, 2, 3, 1)))
    assert_close(y, theirs.numpy().transpose(0, 2, 3, 1))


@pytest.mark.parametrize("transpose", [False, True])
def test_conv_transpose_starts_with_the_variance_of_its_fan(transpose):
    layer = fnn.conv_transpose(7, (3, 3), transpose_kernel=transpose)
    kernel = np.asarray(layer.init(jax.random.key(0), (1, 5, 5, 90))[0]["kernel"])
    assert kernel.shape == ((3, 3, 7, 90) if transpose else (3, 3, 90, 7))
    assert abs(kernel.var() * 90 * 9 - 1) < 5 * np.sqrt(2 / kernel.size)


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
