"""Layers under JAX's strict settings: no broadcast that is only implied, with x64 or not."""

import jax
import jax.numpy as jnp
import pytest

import fnn
from fnn.core.shapes import as_struct
from tests.contracts.layers import HEAVY, LAYERS, VARIANTS
from tests.support import but_full

MORE = {
    "attention cache": (fnn.attention(4, 2, causal=True, rotary=10.0, cache=4), (2, 3, 4)),
    "attention masked": (
        fnn.attention(4, 2, causal=True, implementation="xla"),
        (2, 3, 4),
        None,
        jax.ShapeDtypeStruct((2, 1, 3), bool),
    ),
    "attention of every option": (
        fnn.attention(
            4,
            2,
            kv_heads=1,
            causal=True,
            window=2,
            rotary=10.0,
            distances=fnn.relative_bias(2),
            soft_cap=2.0,
            qk_norm=True,
            dropout=0.1,
            block=1,
        ),
        (2, 3, 4),
        None,
        jax.ShapeDtypeStruct((2, 1, 3), bool),
        jax.ShapeDtypeStruct((2, 3), jnp.int32),
        (2, 1, 3),
    ),
    "attention cache of segments": (
        fnn.attention(
            4, 2, causal=True, rotary=10.0, cache=4, window=2, distances=fnn.alibi(2), dropout=0.1
        ),
        (2, 3, 4),
        None,
        None,
        jax.ShapeDtypeStruct((2, 3), jnp.int32),
    ),
    "deep decoder": (
        fnn.repeat(fnn.transformer_block(4, 2, causal=True, rotary=10.0, cache=4, rate=0.1), 2),
        (2, 3, 4),
    ),
    "rnn truncated": (
        fnn.rnn(fnn.cells.gru(3), truncate=2, checkpoint_every=2, stateful=True),
        (2, 5, 4),
    ),
    "lengths": (
        fnn.gru(3, layers=2, bidirectional=True, return_sequence=False),
        (2, 5, 4),
        None,
        None,
        jax.ShapeDtypeStruct((2, 5), bool),
        jax.ShapeDtypeStruct((2,), jnp.int32),
    ),
    "variational_dropout": (fnn.rnn(fnn.cells.variational_dropout(0.3)), (2, 3, 4)),
}
TABLE = {**LAYERS, **MORE}


@pytest.mark.parametrize("x64", but_full([False, True], [False]), ids=["x32", "x64"])
@pytest.mark.parametrize("name", but_full(TABLE, HEAVY + VARIANTS))
def test_nothing_is_broadcast_that_is_not_said(name, x64):
    layer, *xs = TABLE[name]
    key = jax.random.key(0)
    with jax.numpy_rank_promotion("raise"), jax.enable_x64(x64):
        xs = as_struct(xs)
        params, state = jax.eval_shape(lambda: layer.init(key, *xs))

        def loss(params, state, xs, train):
            y, _ = layer.apply(params, state, *xs, key=key, train=train)
            return sum(jnp.sum(a) for a in jax.tree.leaves(y))

        def derivatives(params, state, xs, train):
            grads = jax.grad(loss)(params, state, xs, train)
            return jax.jvp(lambda p: loss(p, state, xs, train), (params,), (grads,))

        for train in (False, True):
            jax.eval_shape(lambda *trees, t=train: derivatives(*trees, t), params, state, xs)


def test_ensembles_and_generation_under_strict_settings():
    logits = jnp.ones((3, 4, 5))
    cell = fnn.cells.serial(fnn.embedding(5, 3), fnn.cells.gru(4), fnn.dense(5))
    with jax.numpy_rank_promotion("raise"), jax.enable_x64(True):
        for fn in (
            fnn.ensembles.mean_logits,
            fnn.ensembles.uncertainty,
            fnn.ensembles.gaussian_uncertainty,
            fnn.ensembles.soup,
            lambda logits: fnn.ensembles.greedy_soup(logits, jnp.sum),
        ):
            jax.eval_shape(fn, logits)
        params, _ = cell.init(jax.random.key(0), None, jnp.zeros(2, int))
        for ids in (jnp.int32, jnp.int64):
            jax.eval_shape(
                lambda x, n: fnn.unroll_generate(
                    cell, params, x, lengths=n, key=jax.random.key(1), top_k=2
                ),
                jax.ShapeDtypeStruct((2, 6), ids),
                jax.ShapeDtypeStruct((2,), ids),
            )
