"""Attention of linen and nnx computes in fnn what it did."""

import jax
import pytest

from fnn import convert
from tests.convert.support import HEADS, B, C, T, deep, draw, drawn
from tests.support import assert_close


def test_attention_of_linen():
    linen = pytest.importorskip("flax.linen")

    class Model(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.MultiHeadDotProductAttention(HEADS)(x)
            for _ in range(11):
                x = linen.silu(linen.Dense(C)(x))
            return x

    model, x, net = Model(), draw(B, T, C), deep()
    variables = drawn(jax.eval_shape(model.init, jax.random.key(0), x))
    params, _ = convert.from_flax(net, variables, x)
    assert_close(net(params, x), model.apply(variables, x), tolerance=1e-4)


def test_attention_of_nnx():
    nnx = pytest.importorskip("flax.nnx")

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.attn = nnx.MultiHeadAttention(HEADS, C, decode=False, rngs=rngs)
            self.layers = nnx.List([nnx.Linear(C, C, rngs=rngs) for _ in range(11)])

        def __call__(self, x):
            x = self.attn(x)
            for layer in self.layers:
                x = nnx.silu(layer(x))
            return x

    model, x, net = Model(nnx.Rngs(0)), draw(B, T, C), deep()
    state = nnx.state(model, nnx.Param)
    pure = drawn(nnx.to_pure_dict(state))
    nnx.replace_by_pure_dict(state, pure)
    nnx.update(model, state)
    params, _ = convert.from_nnx(net, pure, x)
    assert_close(net(params, x), model(x), tolerance=1e-4)
