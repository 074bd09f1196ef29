"""Recurrent layers in both directions, and deep ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fnn
from tests.layers.recurrent import oracles
from tests.layers.recurrent.support import (
    ROW,
    C,
    Case,
    H,
    cases,
    cast,
    close,
    key,
    loops,
    normal,
    on_device,
    spread,
)

MERGES = {
    "concat": lambda f, b: np.concatenate([f, b], -1),
    "sum": np.add,
    "mean": lambda f, b: (f + b) / 2,
    "mul": np.multiply,
    "custom": lambda f, b: f - 2 * b,
}


def assert_both_loops(case, merge, sequence=True):
    net = fnn.bidirectional(
        fnn.cells.gru(H), fnn.cells.mgu(H), MERGES[merge] if merge == "custom" else merge,
        return_carry=True, return_sequence=sequence,
    )  # fmt: skip
    p = spread(net.init(key(), (5, C))[0])
    assert sorted(p) == ["backward", "forward"]
    x, mask, carry, *rest = on_device(case, "float32")
    if carry is not None:
        carry = {"forward": carry, "backward": 2 * carry}
    y, end = jax.jit(net)(cast(p, "float32"), x, mask, carry, *rest)
    features = 2 * H if merge == "concat" else H
    assert y.shape == (*case.x.shape[: -1 if sequence else -2], features)
    if 0 in case.x.shape[:-2]:
        return
    double = case if case.carry is None else case._replace(carry=2 * case.carry)
    f = loops(oracles.gru_cell, p["forward"], case, ROW)
    b = loops(oracles.mgu_cell, p["backward"], double, ROW, reverse=True)
    wanted = MERGES[merge](f[not sequence], b[not sequence])
    close((y, end), (wanted, {"forward": f[2], "backward": b[2]}))


@given(case=cases(), sequence=st.booleans())
def test_bidirectional_is_the_two_loops(case, sequence):
    assert_both_loops(case, "concat", sequence)


@pytest.mark.parametrize("merge", MERGES)
def test_directions_are_merged(merge):
    full = np.ones((2, 3), bool)
    assert_both_loops(Case(normal(2, 3, C), None, None, None, full), merge)


def test_the_layers_of_a_deep_one_follow_each_other():
    deep = fnn.lstm(H, layers=3, return_carry=True)
    x = normal(2, 4, C)
    params = cast(spread(deep.init(key(), x)[0]), "float32")
    assert sorted(params) == ["lstm1", "lstm2", "lstm3"]
    deep = jax.jit(deep)
    y, carry = deep(params, x)
    h, single = x, jax.jit(fnn.lstm(H, return_carry=True))
    for name in params:
        h, own = single(params[name], h)
        close(carry[name], own)
    close(y, h)
    short = fnn.lstm(H, layers=3, return_sequence=False)
    close(short(params, x), y[:, -1])
    begin = jax.tree.map(lambda a: a + 1, carry)
    _, h = deep(params, x, None, begin)[0], x
    for name in params:
        h, _ = single(params[name], h, None, begin[name])
    close(deep(params, x, None, begin)[0], h)


def test_dropout_between_layers_is_after_all_but_the_last():
    net = fnn.gru(H, layers=2, dropout=1.0)
    x = normal(2, 4, C)
    params = cast(spread(net.init(key(), x)[0]), "float32")
    y, _ = net.apply(params, {}, x, key=key(), train=True)
    close(y, fnn.gru(H)(params["gru2"], jnp.zeros((2, 4, H))))
    close(net(params, x), fnn.gru(H, layers=2)(params, x))
    one = fnn.gru(H, dropout=1.0)
    y, _ = one.apply(params["gru1"], {}, x, key=key(), train=True)
    close(y, fnn.gru(H)(params["gru1"], x))
