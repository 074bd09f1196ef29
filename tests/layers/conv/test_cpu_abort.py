"""Convolutions on which XLA would abort."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn


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
