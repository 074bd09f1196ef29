"""Convolutions of images with gaps, phase by phase."""

import re
from unittest import mock

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fnn
from fnn.layers.conv import cpu_phases
from tests.layers.conv.support import assert_derives_as_jaxs_own
from tests.support import ones


@pytest.mark.parametrize("gaps", [True, False], ids=["gaps", "strides"])
@given(data=st.data(), seed=st.integers(0, 99))
def test_values_and_derivatives_are_those_of_jaxs_own_convolution(gaps, data, seed):
    with mock.patch.object(cpu_phases, "CACHE", 0):
        assert_derives_as_jaxs_own(data, gaps, seed, channels=(4, 5))


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
