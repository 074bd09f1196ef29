"""Convolutions with images, and strips of them, side by side in a row."""

import re
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import pytest

import fnn
from fnn.layers.conv import cpu_rows
from fnn.layers.conv.backends import convolve
from fnn.layers.conv.convolution import Geometry
from tests.layers.conv.support import derivatives, jaxs_own
from tests.layers.support import assert_trees_close
from tests.support import asarray, assert_close, ones

SMALL = dict(ONE_CORE=True, CHANNELS=1, WORK=0)
PLAIN = Geometry((1, 1), ((1, 1), (1, 1)), (1, 1))
pytestmark = pytest.mark.usefixtures("devices")


def test_derivatives_are_those_of_jaxs_own_convolution():
    """In every mode; by the image it runs in rows too."""
    geometry = Geometry((1, 1), ((1, 0), (2, 1)), (1, 1))
    x, w = (asarray(jax.random.normal(jax.random.key(0), s)) for s in ((2, 4, 9, 2), (2, 3, 2, 3)))
    with mock.patch.multiple(cpu_rows, ROW=120, **SMALL):
        assert cpu_rows.cut(x.shape, w.shape, geometry) != (1, 1)
        got, want = (
            jax.jit(partial(derivatives, partial(run, geometry=geometry)))(x, w)
            for run in (convolve, jaxs_own)
        )
    assert_trees_close(got, want, "float32")


@pytest.mark.parametrize(
    ("image", "size", "geometry", "cut"),
    [
        ((4, 5), (3,), Geometry((1,), ((3, 0),), (1,)), (2, 1)),
        ((4, 5), (3,), Geometry((1,), ((0, 3),), (1,)), (4, 1)),
        ((4, 5), (3,), Geometry((1,), ((3, 3),), (1,)), (2, 1)),
        ((3, 7), (3,), Geometry((2,), ((1, 2),), (2,)), (3, 1)),
        ((2, 6, 5), (3, 2), Geometry((1, 1), ((1, 1), (2, 0)), (1, 1)), (2, 3)),
        ((1, 6, 5), (2, 3), Geometry((1, 1), ((2, 1), (0, 0)), (1, 1)), (1, 4)),
        ((2, 9, 8), (3, 3), Geometry((2, 3), ((1, 0), (1, 1)), (1, 2)), (1, 4)),
        ((2, 4, 3, 5), (2, 3, 2), Geometry((1, 1, 1), ((1, 0), (1, 1), (1, 1)), (1, 1, 1)), (2, 2)),
    ],
)
def test_any_cut_computes_the_same(image, size, geometry, cut):
    x, w = (asarray(jax.random.normal(jax.random.key(0), s)) for s in ((*image, 2), (*size, 2, 3)))
    with mock.patch.object(cpu_rows, "cut", lambda *_: cut):
        got = jax.jit(partial(cpu_rows.by_rows, geometry=geometry))(x, w)
    assert_close(got, jaxs_own(x, w, geometry), dtype="float32")


@pytest.mark.parametrize(
    ("image", "kernel", "wanted"),
    [
        ((8, 28, 28, 64), (3, 3, 64, 64), (8, 1)),
        ((32, 28, 28, 64), (3, 3, 64, 64), (8, 1)),  # the rest of the images in other rows
        ((2, 56, 56, 32), (3, 3, 32, 64), (2, 4)),
        ((1, 56, 56, 64), (3, 3, 64, 64), (1, 4)),
        ((1, 53, 53, 64), (3, 3, 64, 64), (1, 1)),  # 53 rows make no equal strips
        ((8, 8, 8, 32), (3, 3, 32, 32), (1, 1)),  # too little work
        ((8, 112, 112, 16), (3, 3, 16, 16), (1, 1)),
        ((32, 28, 28, 128), (3, 3, 128, 128), (1, 1)),
        ((1, 224, 224, 64), (3, 3, 64, 64), (1, 1)),  # long enough as they are
    ],
)
def test_as_many_lie_in_a_row_as_it_takes(image, kernel, wanted):
    with mock.patch.object(cpu_rows, "ONE_CORE", True):
        assert cpu_rows.cut(image, kernel, PLAIN) == wanted
    with mock.patch.object(cpu_rows, "ONE_CORE", False):
        assert cpu_rows.cut(image, kernel, PLAIN) == (1, 1)


def test_what_is_not_for_cpus_alone_or_has_no_outputs_is_left_as_it_is():
    image, kernel = (8, 28, 28, 64), (3, 3, 64, 64)
    with mock.patch.object(cpu_rows, "ONE_CORE", True):
        assert cpu_rows.cut(image, kernel, PLAIN._replace(weight_grad="matmul")) == (1, 1)
        assert cpu_rows.cut(image, kernel, PLAIN._replace(groups=2)) == (1, 1)
        assert cpu_rows.cut(image, kernel, PLAIN._replace(input_dilation=(2, 1))) == (1, 1)
        assert cpu_rows.cut(image, (40, 3, 64, 64), PLAIN) == (1, 1)


@pytest.mark.parametrize("devices", [8], indirect=True)
def test_images_that_may_be_cut_over_devices_do_not_meet_in_a_row():
    net, mesh = fnn.conv(64, (3, 3)), fnn.sharding.mesh(data=8)
    params, _ = net.init(jax.random.key(0), (1, 14, 14, 64))
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    x = jax.device_put(ones((32, 14, 14, 64)), where)
    with mock.patch.object(cpu_rows, "ONE_CORE", True):
        assert cpu_rows.cut(x.shape, (3, 3, 64, 64), PLAIN) == (1, 1)
        text = jax.jit(net).lower(params, x).compile().as_text()
    assert not re.findall(r"all-gather|collective-permute|all-to-all", text)


@pytest.mark.cpu
def test_the_layer_and_its_gradient_by_the_image_run_in_long_rows():
    """No axis of the images is as long as these rows."""
    net, x = fnn.conv(64, (3, 3)), ones((16, 14, 14, 64))
    params, _ = net.init(jax.random.key(0), x)
    grad = jax.grad(lambda x, params: jnp.sum(jnp.sin(net(params, x))))
    with mock.patch.object(cpu_rows, "ONE_CORE", True):
        text = jax.jit(grad).lower(x, params).as_text()
    found = re.findall(r"convolution.*-> tensor<(\w+)xf32>", text)
    assert found and set(found) == {"1x14x240x64"}


def test_a_vmapped_convolution_is_that_of_each():
    geometry = Geometry((1, 2), ((1, 1), (0, 2)), (1, 1))
    x, w = (jax.random.normal(jax.random.key(1), s) for s in ((3, 4, 5, 6, 2), (3, 3, 3, 2, 3)))
    want = jax.jit(lambda x, w: [jaxs_own(x[i], w[i], geometry) for i in range(3)])(x, w)
    with mock.patch.multiple(cpu_rows, ROW=60, **SMALL):
        assert cpu_rows.cut(x.shape[1:], w.shape[1:], geometry)[0] > 1
        got = jax.jit(jax.vmap(partial(cpu_rows.by_rows, geometry=geometry)))(x, w)
    assert_close(got, jnp.stack(want), dtype="float32")


@pytest.mark.cpu
def test_a_batch_of_any_size_fills_rows_and_the_rest_is_alone():
    net, (b,) = fnn.conv(32, (3, 3)), jax.export.symbolic_shape("b")
    params, _ = net.init(jax.random.key(0), (1, 14, 14, 32))
    x = jax.random.normal(jax.random.key(1), (37, 14, 14, 32))
    with mock.patch.multiple(cpu_rows, ONE_CORE=True, WORK=0, ROW=1 << 17):
        assert cpu_rows.cut((b, *x.shape[1:]), (3, 3, 32, 32), PLAIN) == (8, 2)
        spec = jax.ShapeDtypeStruct((b, *x.shape[1:]), x.dtype)
        call = jax.export.export(jax.jit(net))(params, spec).call
    for n in (1, 7, 8, 37):
        want = jaxs_own(x[:n], params["kernel"], PLAIN)
        assert_close(call(params, x[:n]), want, dtype="float32")
