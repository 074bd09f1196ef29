"""Attention of Haiku computes in fnn what it did."""

import jax
import pytest

from fnn import convert
from tests.convert.support import HEADS, B, C, T, deep, draw, drawn
from tests.support import assert_close


def test_attention_of_haiku():
    hk = pytest.importorskip("haiku")

    def forward(x):
        init = hk.initializers.RandomNormal()
        x = hk.MultiHeadAttention(HEADS, C // HEADS, w_init=init)(x, x, x)
        for _ in range(11):
            x = jax.nn.silu(hk.Linear(C)(x))
        return x

    model, x, net = hk.without_apply_rng(hk.transform(forward)), draw(B, T, C), deep()
    theirs = drawn(jax.eval_shape(model.init, jax.random.key(0), x))
    params, _ = convert.from_haiku(net, theirs, {}, x)
    assert_close(net(params, x), model.apply(theirs, x), tolerance=1e-4)
