"""A mixture of experts: each position is computed by a few of many layers."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from fnn.core import checks, errors
from fnn.core.compose import compose
from fnn.core.dtypes import wide
from fnn.core.layer import Layer, as_layer
from fnn.core.origins import builder
from fnn.initializers import lecun_normal
from fnn.layers.dense import dense
from fnn.layers.lifted import ensemble


@builder
def moe(
    expert: Layer,
    n: int,
    *,
    top_k: int = 2,
    capacity: float | None = 1.25,
    router_init=lecun_normal(),
) -> Layer:
    """A mixture of n experts: y_t is the sum of g_ti expert_i(x_t) over the top_k largest gates.

        g_t = softmax(router(x_t)),  [..., T, C] -> [..., T, features]

    The gates of the chosen ones are divided by their sum if top_k is more than 1 (Shazeer et al.
    2017; Lepikhin et al. 2021, "GShard"); with 1 the gate itself counts, as in Fedus et al. 2022
    ("Switch Transformers"). Choice and gates are computed in float32 or wider.

    - `expert`: the layer of which there are n, [..., C] -> [..., features], as a network of two
      dense layers. It computes at most `top_k capacity / n` of all positions each.
    - `capacity`: an expert takes this times T top_k / n positions of a sequence, rounded up. What
      comes when it is full is left out of the sum; first choices come before second ones. None is
      room for all, n / top_k times the work.
    - `router_init`: of the router's kernel (C, n), which has no bias.

    Two notes go to the training loop: "balance", n sum_i f_i p_i, with f_i the share of positions
    whose first choice is i, and p_i its mean gate, which is 1 where all are used alike (Switch,
    equation 4); and "dropped", the share of choices left out. Weigh the first as
    `fnn.train.supervised(..., notes={"*balance": 0.01})`.

    Params: `router/kernel`, and `experts`, those of `expert` with a leading axis [n], which
    `fnn.sharding` cuts by the rule ("*experts/*", {"stack": "model"}). Raises OptionError.

    >>> import jax, fnn
    >>> expert = fnn.serial(fnn.dense(16), jax.nn.gelu, fnn.dense(8))
    >>> net = fnn.moe(expert, 4)
    >>> params, state = net.init(jax.random.key(0), (2, 5, 8))
    >>> net(params, jax.numpy.ones((2, 5, 8))).shape
    (2, 5, 8)
    """
    n, top_k = checks.count("n", n), checks.count("top_k", top_k)
    if top_k > n:
        raise errors.OptionError(f"top_k of at most n={n}", f"{top_k}", "choose fewer")
    if capacity is not None:
        checks.number("capacity", capacity, 0.0, math.inf)
    router = dense(n, use_bias=False, kernel_init=router_init, axes=("in", "experts"))

    def moe(f, x):
        checks.array(x, 2, "[..., T, C]")
        *lead, t, c = x.shape
        x = x.reshape(-1, t, c)  # [G, T, C]: each sequence shares out its own places
        logits = f.router(x)
        gates = jax.nn.softmax(logits.astype(wide(x.dtype)))  # [G, T, n]
        weights, picked = _largest(gates, top_k)  # [G, T, top_k], [G, T, top_k, n]
        if top_k > 1:
            weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
        room = t if capacity is None else min(t, math.ceil(capacity * top_k * t / n))
        place = _places(picked)
        taken = picked * (place < room).astype(picked.dtype)
        slots = jax.nn.one_hot(place, room, dtype=x.dtype) * taken[..., None].astype(x.dtype)
        sent = jnp.sum(slots, axis=2)  # [G, T, n, room], 0 or 1
        inside = jnp.einsum("gtnr,gtc->ngrc", sent, x)
        outside = f.experts(inside)  # [n, G, room, features]
        back = jnp.einsum("gtknr,gtk->gtnr", slots, weights.astype(x.dtype))
        y = jnp.einsum("gtnr,ngrc->gtc", back, outside)
        first = jnp.mean(picked[:, :, 0].astype(gates.dtype), axis=(0, 1))
        f.note("balance", n * jnp.sum(first * jnp.mean(gates, axis=(0, 1))))
        f.note("dropped", 1 - jnp.mean(jnp.sum(taken, axis=-1).astype(gates.dtype)))
        return y.reshape(*lead, t, y.shape[-1])

    return compose(router=router, experts=ensemble(as_layer(expert), n, in_axes=0))(moe)


def _largest(gates: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The k largest of [G, T, n], the first of equal ones first: [G, T, k], and 1 where each is.

    `jax.lax.top_k` would be gathered from all devices and computed by each.
    """
    left, found, picked = gates, [], []
    for _ in range(k):
        here = jax.nn.one_hot(jnp.argmax(left, axis=-1), gates.shape[-1], dtype=jnp.bool_)
        found.append(jnp.sum(jnp.where(here, gates, 0), axis=-1))
        picked.append(here)
        left = jnp.where(here, -1, left)
    return jnp.stack(found, axis=-1), jnp.stack(picked, axis=-2).astype(jnp.int32)


def _places(picked: jax.Array) -> jax.Array:
    """How many came to the same expert before: [G, T, top_k, n] of 0 and 1, choice by choice."""
    g, t, k, n = picked.shape
    in_turn = jnp.swapaxes(picked, 1, 2).reshape(g, k * t, n)
    before = jnp.cumsum(in_turn, axis=1, dtype=in_turn.dtype) - in_turn
    return jnp.swapaxes(before.reshape(g, k, t, n), 1, 2)
