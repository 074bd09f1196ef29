"""Products over one axis of rows."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.layers import cpu_matmul
from fnn.layers.cpu_matmul import matmul
from tests.support import asarray, assert_close, ones

pytestmark = pytest.mark.usefixtures("devices")


@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (2, 0, 3), (2, 1, 3, 2)])
def test_values_and_derivatives_are_those_of_the_sum(lead, monkeypatch):
    monkeypatch.setattr(cpu_matmul, "SMALL", 0)
    rng = np.random.default_rng(0)
    x, w, dy = (asarray(rng.normal(size=s)) for s in ((*lead, 4), (4, 5), (*lead, 5)))
    y, pull = jax.vjp(matmul, x, w)
    dx, dw = pull(dy)
    assert_close(y, np.einsum("...c,co->...o", x, w), dtype="float32")
    assert_close(dx, np.einsum("...o,co->...c", dy, w), dtype="float32")
    flat = np.reshape(x, (-1, 4)), np.reshape(dy, (-1, 5))
    assert_close(dw, np.einsum("rc,ro->co", *flat), dtype="float32")
    _, forward = jax.jvp(matmul, (x, w), (x, w))
    assert_close(forward, 2 * np.einsum("...c,co->...o", x, w), dtype="float32")


@pytest.mark.cpu
def test_no_gradient_copies_its_arrays():
    def pulled(x, w, dy):
        return jax.vjp(matmul, x, w)[1](dy)

    shapes = (8, 64, 16), (16, 128), (8, 64, 128)
    text = jax.jit(pulled).lower(*map(ones, shapes)).compile().as_text()
    assert not re.findall(r"= f32\[[\d,]+\]\S* (?:copy|transpose)\(", text), text


def test_other_platforms_keep_the_axes_apart():
    arguments = ones((8, 64, 16)), ones((16, 128))
    text = jax.jit(matmul).trace(*arguments).lower(lowering_platforms=("tpu",)).as_text()
    assert "tensor<8x64x128xf32>" in text and "reshape" not in text


@pytest.mark.parametrize("devices", [8], indirect=True)
def test_axes_that_may_be_cut_over_devices_stay_apart():
    """A sequence cut over devices is not gathered."""
    mesh = fnn.sharding.mesh(data=8)
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "data"))
    x, kernel = jax.device_put(ones((8, 64, 16)), where), ones((16, 128))
    text = jax.jit(matmul).lower(x, kernel).compile().as_text()
    assert not re.findall(r"all-gather|collective-permute|all-to-all", text)


def test_small_products_are_traced_once():
    assert "cond" not in str(jax.make_jaxpr(matmul)(ones((4, 8, 16)), ones((16, 32))))


def test_a_batch_of_any_size_and_a_vmapped_kernel_are_taken(monkeypatch):
    monkeypatch.setattr(cpu_matmul, "SMALL", 0)
    b, t = jax.export.symbolic_shape("b, t")
    w, x = ones((2, 3)), jnp.arange(24.0).reshape(3, 4, 2)
    call = jax.export.export(jax.jit(matmul))(jax.ShapeDtypeStruct((b, t, 2), "float32"), w).call
    assert_close(call(x, w), x @ w, dtype="float32")
    kernels = jnp.stack([w, 2 * w])
    many = jax.vmap(matmul, (None, 0))(x, kernels)
    assert_close(many, np.stack([x @ w, 2 * (x @ w)]), dtype="float32")
