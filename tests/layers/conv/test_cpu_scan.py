"""Convolutions in every mode of differentiation, inside a scan and outside, by JAX's own."""

import os
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from tests.layers.conv.support import derivatives
from tests.support import asarray, assert_close

# layer, shape of x, and JAX's own convolution of (x, kernel)
ONE, TWO, THREE = ("NHC", "HIO", "NHC"), ("NHWC", "HWIO", "NHWC"), ("NHWDC", "HWDIO", "NHWDC")


def own(strides, padding, dimensions, **options):
    def run(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, strides, padding, dimension_numbers=dimensions, **options
        )

    return run


PAIRS = ((1, 2), (0, 1))


CASES = {
    "plain": (fnn.conv(3, (3, 2)), (2, 4, 5, 2), own((1, 1), "SAME", TWO)),
    "strided and dilated": (
        fnn.conv(3, (3, 2), strides=(2, 1), padding=PAIRS, dilation=(1, 2)),
        (2, 5, 6, 2),
        own((2, 1), PAIRS, TWO, rhs_dilation=(1, 2)),
    ),
    "valid, of one axis": (
        fnn.conv(3, (4,), strides=3, padding="VALID"),
        (2, 11, 2),
        own((3,), "VALID", ONE),
    ),
    "of three axes": (fnn.conv(2, (2, 1, 2)), (1, 3, 2, 3, 2), own((1, 1, 1), "SAME", THREE)),
    "grouped": (
        fnn.conv(4, (2, 2), groups=2, strides=2, padding=1),
        (2, 4, 4, 6),
        own((2, 2), ((1, 1), (1, 1)), TWO, feature_group_count=2),
    ),
    "patches": (fnn.conv(3, (3, 2), weight_grad="matmul"), (2, 4, 5, 2), own((1, 1), "SAME", TWO)),
    "transposed": (
        fnn.conv_transpose(3, (3, 2), strides=2),
        (2, 3, 4, 2),
        partial(jax.lax.conv_transpose, strides=(2, 2), padding="SAME", dimension_numbers=TWO),
    ),
    "depthwise": (
        fnn.depthwise_conv((3, 2), multiplier=2),
        (2, 4, 5, 3),
        own((1, 1), "SAME", TWO, feature_group_count=3),
    ),
}
QUICK = ("plain", "strided and dilated", "grouped", "transposed")


def of_layer(layer):
    """The layer without its bias as a function of (x, kernel)."""

    def run(x, kernel):
        return layer({"kernel": kernel, "bias": jnp.zeros(kernel.shape[-1], x.dtype)}, x)

    return run


def example(name, dtype="float32"):
    layer, shape, theirs = CASES[name]
    random, size = np.random.default_rng(0), layer.specs(shape)[0]["kernel"].shape
    x, kernel = (asarray(random.normal(size=s), dtype) for s in (shape, size))
    return of_layer(layer), theirs, x, kernel


def assert_trees_close(found, wanted, dtype="float64"):
    for a, b in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        assert_close(a, b, dtype=dtype)


@pytest.mark.parametrize("name", QUICK if "FNN_QUICK" in os.environ else CASES)
def test_all_derivatives_in_a_scan_are_those_of_jaxs_own_convolution(name):
    with jax.enable_x64(True):
        mine, theirs, x, kernel = example(name, "float64")
        xs = jnp.stack([x, jnp.cos(x)])

        @jax.jit
        def both(xs, kernel):
            def step(_, x):
                return None, [derivatives(run, x, kernel) for run in (mine, theirs)]

            return jax.lax.scan(step, None, xs)[1]

        assert_trees_close(*both(xs, kernel))


@pytest.mark.parametrize("name", ["plain", "grouped"])
def test_vmapped_gradients_are_those_of_jaxs_own_convolution(name):
    """Over images, over kernels, and over both."""
    with jax.enable_x64(True):
        mine, theirs, x, kernel = example(name, "float64")
        xs, kernels = jnp.stack([x, jnp.cos(x)]), jnp.stack([kernel, -kernel])

        def gradients(run):
            grad = jax.grad(lambda x, kernel: jnp.sum(jnp.sin(run(x, kernel))), (0, 1))
            over_images = jax.vmap(grad, (0, None))(xs, kernel)
            return over_images, jax.vmap(grad, (None, 0))(x, kernels), jax.vmap(grad)(xs, kernels)

        assert_trees_close(*jax.jit(lambda: [gradients(run) for run in (mine, theirs)])())


def orders(program, *arguments, platform="cpu"):
    """The orders of axes of all convolutions that are handed to XLA."""
    text = jax.jit(program).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()
    return re.findall(r"dim_numbers = (.*?->.*?\])", text)


@pytest.mark.parametrize("name", [name for name in CASES if name != "depthwise"])
def test_all_derivatives_keep_the_order_of_axes_that_is_fast_in_a_loop(name):
    """XLA's CPU compiler brings convolutions into this order outside of loops alone."""
    run, _, x, kernel = example(name)
    axes = ", ".join(map(str, range(x.ndim - 2)))
    found = orders(partial(derivatives, run), x, kernel)
    assert found and set(found) == {f"[b, {axes}, f]x[{axes}, i, o]->[b, {axes}, f]"}


@pytest.mark.cpu
def test_a_scan_is_compiled_to_fast_convolutions_alone():
    """In the compiled program too, where each stands by itself: a fused one is a slow loop."""
    run, _, x, kernel = example("plain")

    def step(total, x):
        gradients = jax.grad(lambda *a: jnp.sum(run(*a) ** 2), (0, 1))
        return total, jax.jvp(gradients, (x, kernel), (x, kernel))

    scan = jax.jit(lambda xs: jax.lax.scan(step, 0, xs)[1])
    text = scan.lower(jnp.stack([x, x])).compile().as_text()
    found = re.findall(r" convolution\(.*?dim_labels=([\w>-]+)", text)
    assert len(found) >= 3 and set(found) == {"b01f_01io->b01f"}


def test_other_platforms_run_jaxs_own_convolutions():
    mine, theirs, x, kernel = example("strided and dilated")

    def gradients(run):
        return jax.grad(lambda x, kernel: jnp.sum(run(x, kernel) ** 2), (0, 1))

    found, wanted = (orders(gradients(run), x, kernel, platform="tpu") for run in (mine, theirs))
    assert sorted(found) == sorted(wanted)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_derivatives_keep_the_dtype(dtype):
    mine, theirs, x, kernel = example("plain", dtype)

    def first(run):
        gradients = jax.grad(lambda *a: jnp.sum(run(*a)), (0, 1))(x, kernel)
        return gradients, jax.jvp(run, (x, kernel), (x, kernel))

    for a, b in zip(*(jax.tree.leaves(first(run)) for run in (mine, theirs)), strict=True):
        assert a.dtype == b.dtype == dtype
        error = np.abs(np.float64(a) - np.float64(b)).max() / np.abs(np.float64(b)).max()
        assert error < 4 * float(jnp.finfo(dtype).eps)


def test_flops_of_a_gradient_are_those_of_three_convolutions():
    layer, shape, _ = CASES["plain"]
    params, _ = layer.init(jax.random.key(0), shape)

    def loss(params, x):
        return jnp.sum(layer(params, x))

    x = jnp.ones(shape)
    forward = fnn.analysis.count_flops(loss, params, x)
    assert 2.9 < fnn.analysis.count_flops(jax.grad(loss, (0, 1)), params, x) / forward < 3.6
