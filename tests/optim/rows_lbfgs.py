"""Rows and oracles of L-BFGS."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

import fnn
from fnn.optim import Transform, chain
from fnn.optim.arithmetic import norm
from tests.optim.rows import Row


def lbfgs_directions(gs, xs, memory):
    """H_t g_t with the matrix H_t formed: Nocedal & Wright 2006, equations 7.16 and 7.20."""
    pairs, directions = [], []
    n = len(gs[0])
    for t, (g, x) in enumerate(zip(gs, xs, strict=True)):
        if t:
            s, y = x - xs[t - 1], g - gs[t - 1]
            if not np.any(s):
                pairs = []
            if s @ y > np.finfo(float).eps * np.linalg.norm(s) * np.linalg.norm(y):
                pairs = [*pairs, (s, y)][-memory:]
        if pairs:
            s, y = pairs[-1]
            h = s @ y / (y @ y) * np.eye(n)
        else:
            h = min(1.0, 1 / np.linalg.norm(g)) * np.eye(n) if np.any(g) else np.eye(n)
        for s, y in pairs:
            v = np.eye(n) - np.outer(y, s) / (y @ s)
            h = v.T @ h @ v + np.outer(s, s) / (y @ s)
        directions.append(h @ g)
    return directions


def unit_lbfgs(grads, params, learning_rate, memory=4):
    """Steps of length learning_rate along L-BFGS's directions, so that rounding cannot build up."""
    names = sorted(params)
    x = np.concatenate([params[k].ravel() for k in names])
    gs = [np.concatenate([step[k].ravel() for k in names]) for step in grads]
    xs, updates = [], []
    for t in range(len(gs)):
        xs.append(x)
        d = lbfgs_directions(gs[: t + 1], xs, memory)[-1]
        u = -learning_rate * d / (np.linalg.norm(d) or 1.0)
        x = x + u
        parts = np.split(u, np.cumsum([params[k].size for k in names])[:-1])
        updates.append({k: a.reshape(params[k].shape) for k, a in zip(names, parts, strict=True)})
    return updates


positive_rates = st.sampled_from([1e-3, 0.1, 3.0])


def along(tx):
    """A direction, made of length 1 over the whole tree."""

    def update(grads, opt_state, params=None, **extra):
        u, opt_state = tx.update(grads, opt_state, params, **extra)
        length = norm(*jax.tree.leaves(u))
        length = jnp.where(length > 0, length, 1)
        return jax.tree.map(lambda a: (a / length.astype(a.dtype)).astype(a.dtype), u), opt_state

    return Transform(tx.init, update)


def unit_steps(learning_rate):
    """Without a line search nothing bounds the steps, and rounding would build up."""
    tx = fnn.optim.scale_by_lbfgs(memory_size=4)
    return chain(along(tx), fnn.optim.scale_by_learning_rate(learning_rate))


ROWS = {
    "lbfgs directions": Row(
        build=unit_steps,
        oracle=unit_lbfgs,
        options=dict(learning_rate=positive_rates),
        usual=dict(learning_rate=0.1),
        needs_params=True,
        low=-1,
        high=1,
        tolerance=1e-6,
        scale="tree",
    ),
}  # fmt: skip
