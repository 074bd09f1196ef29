"""What an array is follows from its declaration: where its outputs are, and what its axes mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.core.declarations import declared, output_axis
from tests.support import asarray

key = jax.random.key


def kernels():
    """Matrices whose largest singular vector is orthogonal to a vector of ones."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(8, 8))
    sobel = np.array([1.0, 2, 1, 0, 0, 0, -1, -2, -1])
    hadamard = np.array([[1.0]])
    for _ in range(3):
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    hadamard[0] *= 0.5
    return {
        "antisymmetric": a - a.T,
        "centred": a - a.mean(1, keepdims=True),
        "both centred": a - a.mean(0) - a.mean(1, keepdims=True) + a.mean(),
        "hadamard": hadamard,
        "low rank": np.outer(rng.normal(size=8), np.tile([1.0, -1.0], 4)),
        "sobel": np.stack([sobel, -sobel], 1),
        "zero": np.zeros((3, 4)),
        "one column": a[:, :1],
    }


@pytest.mark.parametrize("name", kernels())
def test_spectral_norm_is_that_of_the_svd(name):
    kernel = kernels()[name]
    net = fnn.spectral_norm(fnn.dense(kernel.shape[1], use_bias=False), iterations=200)
    y = net({"kernel": asarray(kernel, jnp.float32)}, jnp.eye(kernel.shape[0]))
    largest = np.linalg.svd(kernel, compute_uv=False)[0]
    np.testing.assert_allclose(y, kernel / (largest or 1), rtol=1e-3, atol=1e-4)


def test_the_output_axis_is_the_declared_one():
    """A transposed kernel [..., out, in] is treated as the same kernel [..., in, out] is."""
    options = {"use_bias": False, "strides": 2}
    plain = fnn.conv_transpose(3, (2,), **options)
    turned = fnn.conv_transpose(3, (2,), transpose_kernel=True, **options)
    params, _ = plain.init(key(0), (1, 4, 5))
    x = jax.random.normal(key(1), (2, 4, 5))
    other = {"kernel": jnp.swapaxes(params["kernel"][::-1], -1, -2)}
    np.testing.assert_allclose(turned(other, x), plain(params, x), rtol=1e-5, atol=1e-6)
    for wrap in (
        fnn.weight_norm,
        lambda net: fnn.quantize(net, 3),
        lambda net: fnn.spectral_norm(net, iterations=100),
    ):
        both = []
        for net, own in ((plain, params), (turned, other)):
            wrapped = wrap(net)
            learnt, state = fnn.unmerge(wrapped, own, {}, x)
            if isinstance(learnt["kernel"], dict):
                assert learnt["kernel"]["gain"].shape == (3,)
                learnt["kernel"]["gain"] *= jnp.arange(1.0, 4.0)
            both.append(wrapped(learnt, x, state=state))
        np.testing.assert_allclose(*both, rtol=1e-3, atol=1e-4)
    adapted = fnn.lora(turned, 2).init(key(0), x)[0]
    assert adapted["b"]["kernel"].shape == (2, 3) and adapted["a"]["kernel"].shape == (10, 2)


def test_axes_tell_what_shapes_do_not():
    net = fnn.repeat(fnn.transformer_block(8, 2, gated=True, hidden=8), 3)
    found = declared(net.specs((1, 5, 8))[0])
    axes = {name: found["attention"][name]["kernel"].axes for name in ("q", "k", "v", "out")}
    assert axes["q"] == ("in", "heads") and axes["out"] == ("heads", "out")
    assert axes["k"] == axes["v"] == ("in", "kv_heads")
    assert found["up"]["kernel"].axes == found["gate"]["kernel"].axes == ("in", "hidden")
    assert found["down"]["kernel"].axes == ("hidden", "out")
    assert all(p.stack == (3,) for p in jax.tree.leaves(found))
    cell = declared(fnn.rnn(fnn.cells.lstm(4)).specs((1, 5, 3))[0])
    assert cell["kernel"].axes == ("in", "gates")
    assert cell["recurrent_kernel"].axes == ("hidden", "gates")
    lora = declared(fnn.lora(fnn.dense(4), 2).specs((1, 3))[0])
    assert lora["a"]["kernel"].axes == ("in", "rank") and lora["b"]["kernel"].kind == "kernel"
    conv = declared(fnn.conv(2, (1, 1, 1, 1)).specs((1, 1, 1, 1, 1, 3))[0])["kernel"]
    assert conv.axes[-2:] == ("in", "out") and len(set(conv.axes)) == 6
    assert output_axis(conv) == 5


def test_parts_of_an_axis_follow_it():
    """A head's values belong together, in stacks and under a wrapper that keeps the shape too."""
    heads = fnn.dense(6, axes=("in", ("heads", 2)))
    for net in (heads, fnn.repeat(fnn.serial(heads, fnn.dense(4)), 3), fnn.spectral_norm(heads)):
        found = jax.tree.leaves(declared(net.specs((1, 4))[0]))
        kernel = next(p for p in found if p.kind == "kernel" and p.axes[-1] == "heads")
        assert kernel.axes == ("in", "heads") and kernel.parts == (None, 2)
    attention = fnn.attention(8, 4, kv_heads=2).specs((1, 3, 8))[0]
    wanted = {"q": (None, 4), "k": (None, 2), "v": (None, 2), "out": (4, None)}
    assert {name: attention[name]["kernel"].parts for name in wanted} == wanted


@pytest.mark.parametrize("parts", [(2,), (None, 4), (None, 2, None)])
def test_parts_that_do_not_fit_are_refused(parts):
    with pytest.raises(fnn.errors.OptionError, match="number of parts"):
        fnn.Param((4, 6), fnn.initializers.zeros, axes=("in", "out"), parts=parts)


@pytest.mark.parametrize("axes", [("in", ("out", 0)), ("in", (2, "out")), ("in", ("out",))])
def test_names_of_axes_that_are_none_are_refused(axes):
    with pytest.raises(fnn.errors.OptionError, match="two names"):
        fnn.dense(6, axes=axes)
