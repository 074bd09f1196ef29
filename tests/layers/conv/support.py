"""Cases of windows, and checks against the oracles, for the tests of convolutions and pools."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from fnn.layers.conv.backends import convolve
from fnn.layers.conv.convolution import Geometry
from tests.layers.conv import oracles
from tests.layers.support import assert_trees_close, leading, rounded, run_and_pull, wide
from tests.support import asarray, assert_close

FLOATS = ("float64", "float32", "bfloat16", "float16")


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


def special_values(shape, values, seed=0):
    return np.random.default_rng(seed).choice(np.float32(values), size=shape)


def assert_bilinear(layer, x, params, dtype, out, terms):
    """y, dx, dkernel and dbias are those of the terms; the kernel is the one declared."""
    declared, _ = layer.specs(x.shape)
    arrays = {k: spec.stack + spec.shape for k, spec in declared.items()}
    assert arrays == {k: v.shape for k, v in params.items()}
    with wide(dtype):
        (params, x), (exact, exact_x) = rounded((params, x), dtype)
        want = oracles.bilinear(exact_x, exact["kernel"], exact.get("bias"), out, terms)
        dy, exact_dy = rounded(np.random.default_rng(7).normal(size=want.shape), dtype)
        y, dparams, dx = run_and_pull(layer, params, x, dy)
        assert_close(y, want, dtype=dtype)
        want_dx, dkernel = oracles.bilinear_backward(exact_x, exact["kernel"], exact_dy, out, terms)
        want = {"kernel": dkernel}
        if "bias" in params:
            want["bias"] = oracles.bias_backward(exact_dy, params["bias"].shape)
        assert_close(dx, want_dx, dtype=dtype)
        assert_trees_close(dparams, want, dtype)


def derivatives(run, x, kernel):
    """The value; both gradients, forward mode, and each of these of the gradients."""

    def loss(x, kernel):
        return jnp.sum(jnp.sin(run(x, kernel)))

    gradients, ways = jax.grad(loss, (0, 1)), (jnp.cos(x), jnp.cos(kernel))

    def penalty(x, kernel):
        return sum(jnp.sum(a**2) for a in gradients(x, kernel))

    return {
        "value": run(x, kernel),
        "reverse": gradients(x, kernel),
        "forward": jax.jvp(run, (x, kernel), ways),
        "forward over reverse": jax.jvp(gradients, (x, kernel), ways),
        "reverse over reverse": jax.grad(penalty, (0, 1))(x, kernel),
    }


SMALL = dict(bias=False, dtype="float32", seed=0)


TINY = [  # on these and their like XLA would abort, or on their gradients
    (1, (4, 2), dict(strides=(1, 2), dilation=1, padding=((0, 0), (1, 1))), (2, 3, 1)),
    (1, (3, 4), dict(strides=(1, 2), dilation=1, padding=((0, 0), (3, 3))), (2, 3, 1)),
    (1, (4, 6), dict(strides=(1, 3), dilation=(1, 2), padding=((0, 0), (10, 10))), (2, 5, 1)),
]


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


@st.composite
def geometries(draw, gaps, channels):
    """A geometry, the sizes of the image and of the kernel; of the output one or more per axis."""
    n = draw(st.integers(1, 3))

    def each(low, high):
        return tuple(draw(st.integers(low, high)) for _ in range(n))

    image, size, dilation, apart = each(1, 5), each(1, 4), each(1, 2), each(1, 3)
    spans = [(k - 1) * d + 1 for k, d in zip(size, dilation, strict=True)]
    low = -1 if gaps else 0
    pads = tuple((draw(st.integers(low, s)), draw(st.integers(low, s))) for s in spans)
    ones = (1,) * n
    strides, between = (ones, apart) if gaps else (apart, ones)
    axes = zip(image, between, pads, spans, strict=True)
    assume(all((m - 1) * gap + 1 + a + b >= span for m, gap, (a, b), span in axes))
    geometry = Geometry(strides, pads, dilation, input_dilation=apart if gaps else None)
    return geometry, (2, *image, channels[0]), (*size, *channels)


def jaxs_own(x, kernel, geometry):
    n = x.ndim - 2
    dimensions = ("N" + "HWD"[:n] + "C", "HWD"[:n] + "IO", "N" + "HWD"[:n] + "C")
    return jax.lax.conv_general_dilated(
        x, kernel, geometry.strides, geometry.pads, geometry.input_dilation, geometry.dilation,
        dimension_numbers=dimensions, feature_group_count=geometry.groups,
    )  # fmt: skip


def assert_derives_as_jaxs_own(data, gaps, seed, channels=(2, 3)):
    """Values and derivatives of a drawn convolution."""
    geometry, image, size = data.draw(geometries(gaps, channels))
    rng = np.random.default_rng(seed)
    with jax.enable_x64(True):
        x, kernel = asarray(rng.normal(size=image)), asarray(rng.normal(size=size))
        got, want = (
            jax.jit(partial(derivatives, partial(run, geometry=geometry)))(x, kernel)
            for run in (convolve, jaxs_own)
        )
    assert_trees_close(got, want, "float64", tolerance=1e-9)
