"""Convolutions of images with gaps, phase by phase."""

import re
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fnn
from fnn.layers.conv import cpu_phases
from fnn.layers.conv.backends import convolve
from tests.layers.conv.support import derivatives, geometries, jaxs_own
from tests.layers.support import assert_trees_close
from tests.support import asarray, ones


@pytest.mark.parametrize("gaps", [True, False], ids=["gaps", "strides"])
@given(data=st.data(), seed=st.integers(0, 99))
def test_values_and_derivatives_are_those_of_jaxs_own_convolution(gaps, data, seed):
    geometry, image, size = data.draw(geometries(gaps, channels=(4, 5)))
    rng = np.random.default_rng(seed)
    with jax.enable_x64(True), mock.patch.object(cpu_phases, "CACHE", 0):
        x, kernel = asarray(rng.normal(size=image)), asarray(rng.normal(size=size))
        got, want = (
            jax.jit(partial(derivatives, partial(run, geometry=geometry)))(x, kernel)
            for run in (convolve, jaxs_own)
        )
    assert_trees_close(got, want, "float64", tolerance=1e-9)


NETS = [fnn.conv(8, (3, 3), strides=2), fnn.conv_transpose(8, (4, 4), strides=2)]


@pytest.mark.cpu
@pytest.mark.parametrize("net", NETS, ids=["strided", "transposed"])
def test_no_convolution_is_left_with_gaps(net):
    x = ones((1, 40, 40, 8))
    params, _ = net.init(jax.random.key(0), x)

    def loss(params, x):
        return jnp.sum(jnp.sin(net(params, x)))

    text = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(params, x).as_text()
    found = re.findall(r"lhs_dilate = \[([\d, ]+)\]", text)
    assert found and set(found) == {"1, 1"}
