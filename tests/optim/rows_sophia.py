"""Rows and oracles of Sophia."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

import fnn
from fnn.optim import Transform
from tests.optim.rows import Row, decays, elementwise, late_decays, rates


def sophia(
    gs, p, learning_rate, b1=0.96, b2=0.99, eps=1e-12, gamma=0.01, update_interval=10,
    clip_threshold=1.0, weight_decay=0.2, hessian=lambda g: g * g,
):  # fmt: skip
    """Liu et al. 2024, algorithm 3, with `hessian(g)` for the estimate."""
    m = h = 0.0
    updates = []
    for t, g in enumerate(gs, start=1):
        m = b1 * m + (1 - b1) * g
        if (t - 1) % update_interval == 0:
            h = b2 * h + (1 - b2) * hessian(g)
        floor = max(gamma * h, eps)
        ratio = np.clip(m / floor if floor else np.sign(m) * np.inf if m else 0.0, -1e300, 1e300)
        u = -learning_rate * (weight_decay * p + np.clip(ratio, -clip_threshold, clip_threshold))
        p = p + u
        updates.append(u)
    return updates


weight_decays = st.sampled_from([0.0, 0.01, 0.1])


def squared(tx):
    """Sophia with g^2 as the estimate of the Hessian."""

    def update(grads, opt_state, params=None, **extra):
        extra["hessian"] = jax.tree.map(jnp.square, grads)
        return tx.update(grads, opt_state, params, **extra)

    return Transform(tx.init, update)


ROWS = {
    "sophia": Row(
        build=lambda **options: squared(fnn.optim.sophia(**options)),
        oracle=elementwise(sophia),
        options=dict(
            learning_rate=rates, b1=decays, b2=late_decays, gamma=st.sampled_from([0.01, 1.0]),
            eps=st.sampled_from([0.0, 1e-12, 1e-3]), weight_decay=weight_decays,
            clip_threshold=st.sampled_from([0.5, 1.0]),
        ),
        usual=dict(learning_rate=0.1),
        needs_params=True,
        complex=False,
    ),
}  # fmt: skip
