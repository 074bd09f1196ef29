"""Scaling by a factor."""

import jax.numpy as jnp

import fnn


def test_scale_is_a_product_in_the_gradients_dtype():
    tx, g = fnn.optim.scale(-0.5), {"a": jnp.ones(2, jnp.float16), "b": jnp.full((), 3.0)}
    updates, opt_state = tx.update(g, tx.init(g), unknown=1)
    assert updates["a"].tolist() == [-0.5, -0.5] and updates["b"] == -1.5
    assert updates["a"].dtype == "float16" and opt_state == ()
