"""Convolutions as matrix products: of 1 x 1 taps, and by the kernel for inputs with gaps."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fnn
from tests.layers.conv.support import assert_derives_as_jaxs_own
from tests.support import asarray, assert_close


@pytest.mark.parametrize("gaps", [True, False], ids=["gaps", "strides"])
@given(data=st.data(), seed=st.integers(0, 99))
def test_values_and_derivatives_are_those_of_jaxs_own_convolution(gaps, data, seed):
    assert_derives_as_jaxs_own(data, gaps, seed)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("strides", [1, 2])
def test_a_tap_of_1_by_1_is_a_product_at_each_place(groups, strides):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 5, 4, 32)), rng.normal(size=(1, 1, 32 // groups, 4))
    net = fnn.conv(4, (1, 1), strides=strides, padding=1, groups=groups, use_bias=False)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))[:, ::strides, ::strides]
    parts = np.split(padded, groups, -1), np.split(kernel[0, 0], groups, -1)
    want = np.concatenate([a @ b for a, b in zip(*parts, strict=True)], -1)
    with jax.enable_x64(True):
        assert_close(net({"kernel": asarray(kernel)}, asarray(x)), want, tolerance=1e-12)


def test_low_precision_is_summed_in_float32():
    rng = np.random.default_rng(0)
    sizes = (2, 9, 9, 8), (4, 4, 8, 4), (2, 18, 18, 4)
    x, kernel, dy = (jnp.asarray(rng.normal(size=size), jnp.bfloat16) for size in sizes)
    net = fnn.conv_transpose(4, (4, 4), strides=2, use_bias=False)

    def by_kernel(x, kernel, dy):
        return jax.vjp(lambda kernel: net({"kernel": kernel}, x), kernel)[1](dy)[0]

    got = by_kernel(x, kernel, dy)
    assert got.dtype == jnp.bfloat16
    wide = by_kernel(*(a.astype(jnp.float32) for a in (x, kernel, dy)))
    error = jnp.abs(got.astype(jnp.float32) - wide)
    assert jnp.all(error <= jnp.abs(wide) * 2.0**-8 + 1e-4)  # rounded once


def compiled(fn, *args):
    return jax.jit(fn).lower(*args).compile().as_text()


CONVOLUTION = r"convolution\(|__conv|Conv2D"


@pytest.mark.cpu
def test_a_tap_of_1_by_1_compiles_into_products_alone():
    net, x = fnn.conv(8, (1, 1), strides=2), jnp.ones((2, 6, 6, 16))
    params, _ = net.init(jax.random.key(0), x)
    step = jax.grad(lambda params, x: jnp.sum(jnp.sin(net(params, x))), (0, 1))
    assert not re.findall(CONVOLUTION, compiled(step, params, x))


@pytest.mark.cpu
@pytest.mark.parametrize("transpose_kernel", [False, True])
def test_the_gradient_by_a_transposed_kernel_compiles_into_products_alone(transpose_kernel):
    net = fnn.conv_transpose(8, (4, 4), strides=2, transpose_kernel=transpose_kernel)
    x, dy = jnp.ones((2, 6, 6, 4)), jnp.ones((2, 12, 12, 8))
    params, _ = net.init(jax.random.key(0), x)

    def by_params(params):
        return jax.vjp(lambda params: net(params, x), params)[1](dy)

    assert re.findall(CONVOLUTION, compiled(net, params, x))
    assert not re.findall(CONVOLUTION, compiled(by_params, params))


def test_lanes_of_vmap_are_single_calls():
    net = fnn.conv_transpose(3, (3, 2), strides=(2, 3))
    keys = jax.random.split(jax.random.key(0), 3)
    params = jax.vmap(lambda key: net.init(key, (2, 4, 4, 2))[0])(keys)
    x = asarray(np.random.default_rng(0).normal(size=(3, 2, 4, 4, 2)).astype(np.float32))
    lanes = jax.vmap(net)(params, x)
    for i in range(3):
        assert_close(lanes[i], net(jax.tree.map(lambda a, i=i: a[i], params), x[i]), tolerance=1e-5)
