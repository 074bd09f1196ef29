"""Convolutions against the loop: forward, backward, and every mode of differentiation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fnn
from tests.layers.conv import oracles
from tests.layers.support import DTYPES, assert_linear_layer, leading, rounded, seeds
from tests.support import asarray, assert_close


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

        args = asarray(kernel), asarray(x)
        tangents = asarray(dkernel), asarray(dx)
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
