"""What the linear recurrent unit has of its own; as a layer over a sequence see test_recurrent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from tests.layers.recurrent import oracles
from tests.layers.recurrent.support import C, Case, H, N, close, key, loops, normal, spread
from tests.support import asarray


def test_lru_gradients_are_differences_of_the_loop():
    net = fnn.lru(H, 4, return_carry=True)
    x, mask = normal(2, 4, C).astype(np.float64), np.array([[1, 1, 0, 1], [0, 1, 1, 0]], bool)
    p = spread(net.init(key(), x.astype(np.float32))[0])
    draw = np.random.default_rng(3).normal
    w, along = draw(size=(2, 4, H)), jax.tree.map(lambda a: draw(size=a.shape), (p, x))

    def wanted(inputs):
        p, x = inputs
        return np.sum(w * loops(oracles.lru_cell, p, Case(x, mask, None, None, mask), (N, N))[0])

    with jax.enable_x64(True):

        def loss(inputs):
            return jnp.sum(w * net(*inputs, mask)[0])

        grads, slope = jax.jit(lambda a, b: (jax.grad(loss)(a), jax.jvp(loss, (a,), (b,))[1]))(
            *jax.tree.map(asarray, ((p, x), along))
        )
    leaves, treedef = jax.tree.flatten(along)
    for k in range(len(leaves)):
        only = treedef.unflatten([leaf * (i == k) for i, leaf in enumerate(leaves)])
        pulled = np.vdot(jax.tree.leaves(grads)[k], leaves[k])
        np.testing.assert_allclose(pulled, oracles.slope(wanted, (p, x), only), rtol=1e-7)
    np.testing.assert_allclose(slope, oracles.slope(wanted, (p, x), along), rtol=1e-7)


def test_the_first_rates_of_an_lru_are_uniform_on_a_ring():
    net = fnn.lru(H, 500, r_min=0.6, r_max=0.95, max_phase=1.0)
    params, _ = net.init(key(), (1, 5, C))
    rates = jax.tree.map(np.float64, params["rates"])
    radius, phase = np.exp(-np.exp(rates["log_nu"])), np.exp(rates["log_theta"])
    for area in ((radius**2 - 0.6**2) / (0.95**2 - 0.6**2), phase):
        np.testing.assert_allclose(np.sort(area), (np.arange(500) + 0.5) / 500, atol=0.09)
    assert abs(np.corrcoef(radius, phase)[0, 1]) < 0.2
    np.testing.assert_allclose(np.exp(rates["log_gamma"]), np.sqrt(1 - radius**2), rtol=1e-3)
    shapes = {"b": (C, 500), "c": (500, H)}
    assert all(params[f"{n}_{part}"].shape == shapes[n] for n in "bc" for part in ("re", "im"))
    assert params["d"].shape == (C, H)
    np.testing.assert_allclose(params["b_re"].std(), 1 / np.sqrt(2 * C), rtol=0.15)
    np.testing.assert_allclose(params["c_im"].std(), 1 / np.sqrt(500), rtol=0.15)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_dtypes_of_an_lru(dtype):
    net, x = fnn.lru(H, 4), asarray(normal(2, 5, C), dtype)
    params, _ = net.init(key(), x)
    assert {a.dtype for a in jax.tree.leaves(params)} == {x.dtype}
    y = jax.jit(net)(params, x)
    assert y.dtype == dtype
    case = Case(np.float64(x), None, None, None, np.ones((2, 5), bool))
    p = jax.tree.map(np.float64, params)
    close(y, loops(oracles.lru_cell, p, case, (N, N))[0], dtype)
