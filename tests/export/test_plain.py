"""Programs of plain operations compute what the network does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.export import symbolic_shape
from jax.extend.core import jaxpr_as_fun

import fnn
from fnn.export.plain import equations, layer_of, plain

X = np.random.default_rng(0).normal(size=(2, 6, 6, 2)).astype(np.float32)
ROWS = X.reshape(2, 9, 8)
# A network, an input, and a layer whose path is seen.
NETWORKS = {
    "convolutions": (fnn.serial(fnn.conv(3, (3, 3)), jax.nn.relu, fnn.conv(2, (1, 1))), X, "conv2"),
    "pools": (
        fnn.serial(
            fnn.max_pool((3, 2), strides=2, padding="SAME"),
            fnn.min_pool((2, 2), strides=1),
            fnn.avg_pool((2, 2), strides=1, padding="SAME"),
        ),
        X,
        "min_pool1",
    ),
    "layers in a scan": (
        fnn.repeat(fnn.remat(fnn.serial(fnn.dense(8), jax.nn.gelu)), 3),
        ROWS,
        "dense1",
    ),
    "time": (fnn.bidirectional(fnn.cells.gru(3)), ROWS, "forward"),
    "attention": (fnn.transformer_block(8, 2, causal=True), ROWS, "attention"),
}
UNKNOWN = {
    "platform_index", "jit", "pjit", "custom_jvp_call", "checkpoint", "remat2", "scan",
    "reduce_window_max", "reduce_window_sum",
}  # fmt: skip


def of(fn, *structs):
    return plain(lambda *xs: jax.tree.leaves(fn(*xs)), structs)


def struct(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


@pytest.mark.parametrize("name", NETWORKS)
def test_it_computes_the_same(name):
    net, x, path = NETWORKS[name]
    params, state = net.init(jax.random.key(0), x)
    program = of(lambda x: net(params, x, state=state), struct(*x.shape))
    layers = [layer_of(eqn) for eqn in equations(program.jaxpr)]
    y = jaxpr_as_fun(program)(x)[0]
    np.testing.assert_allclose(y, net(params, x, state=state), atol=1e-5)
    assert not {eqn.primitive.name for eqn in program.jaxpr.eqns} & UNKNOWN
    assert any(path in layer for layer in layers)


def test_a_scan_over_any_number_of_steps_stays_one():
    net = fnn.lstm(3)
    params, _ = net.init(jax.random.key(0), ROWS)
    program = of(lambda x: net(params, x), struct(*symbolic_shape("batch, time"), 8))
    assert [eqn.primitive.name for eqn in program.jaxpr.eqns].count("scan") == 1


@pytest.mark.parametrize("length", [5, 100])  # written out, and not
def test_in_reverse_each_output_keeps_its_place(length):
    def fn(x):
        return jax.lax.scan(lambda c, x: (c + x, c * x), 0.0, x, reverse=True)

    program = of(fn, struct(length))
    assert not any(eqn.params.get("reverse") for eqn in program.jaxpr.eqns)
    x = np.arange(length, dtype=np.float32)
    for a, b in zip(jaxpr_as_fun(program)(x), fn(x), strict=True):
        np.testing.assert_array_equal(a, b)


def test_windows_with_gaps():
    """Dilated, strided and padded windows, against a loop."""
    x = np.random.default_rng(0).normal(size=(7,)).astype(np.float32)

    def fn(x):
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (3,), (2,), [(1, 2)], None, (2,))

    padded = [-np.inf, *x, -np.inf, -np.inf]
    wanted = [max(padded[i : i + 5 : 2]) for i in range(0, len(padded) - 4, 2)]
    np.testing.assert_array_equal(jaxpr_as_fun(of(fn, struct(7)))(x)[0], wanted)


def test_values_are_named_once_and_unused_ones_not_computed():
    def fn(x):
        jnp.sin(x)
        y = x + 1
        return x, y, y

    program = of(fn, struct(3))
    outputs = [*program.jaxpr.invars, *program.jaxpr.outvars]
    assert len(set(outputs)) == 4
    assert "sin" not in {eqn.primitive.name for eqn in program.jaxpr.eqns}
    x = np.array([1, np.nan, -0.0], np.float32)
    for a, b in zip(jaxpr_as_fun(program)(x), (x, x + 1, x + 1), strict=True):
        np.testing.assert_array_equal(a, b)
