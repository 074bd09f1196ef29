"""Low-rank adaptation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import fnn
from tests.layers.support import key, normal


def test_lora_starts_as_its_base_and_moves_only_the_change():
    plain = fnn.serial(fnn.dense(6), jnp.tanh, fnn.dense(5))
    net = fnn.lora(plain, 2, alpha=4.0)
    trained, _ = plain.init(key(9), (1, 4))
    params, state = fnn.unmerge(net, trained, {}, (1, 4), key=key(1))
    x = normal(3, 4)
    np.testing.assert_array_equal(net(params, x, state=state), plain(trained, x))
    grads = jax.grad(lambda p: jnp.sum(net(p, x, state=state) ** 2))(params)
    assert set(grads) == {"a", "b"} and all(np.any(g) for g in jax.tree.leaves(grads["b"]))
    params["b"] = jax.tree.map(lambda b: b + 0.1, params["b"])
    merged = jax.tree.map(lambda w: w, trained)
    for name in ("dense1", "dense2"):
        a, b = (np.asarray(params[side][name]["kernel"]) for side in "ab")
        merged[name] = {**merged[name], "kernel": merged[name]["kernel"] + 2 * a @ b}
    y = net(params, x, state=state)
    np.testing.assert_allclose(y, plain(merged, x), rtol=1e-5, atol=1e-6)
    found, _ = fnn.merge(net, params, state, (1, 4))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found, merged)
