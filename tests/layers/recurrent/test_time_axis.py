"""Masks, lengths and resets against the sequences and episodes alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fnn
from tests.layers.recurrent import oracles
from tests.layers.recurrent.support import (
    KINDS,
    C,
    Case,
    H,
    at,
    cast,
    close,
    key,
    loops,
    normal,
    same,
    spread,
)

PADDED = {both: fnn.gru(H, layers=2, bidirectional=both, return_carry=True) for both in (0, 1)}
RUN_PADDED = {both: jax.jit(net) for both, net in PADDED.items()}


@given(both=st.sampled_from([0, 1]), lengths=st.tuples(*[st.sampled_from([0, 1, 3, 5])] * 3))
def test_padded_sequences_are_the_sequences_alone(both, lengths):
    """Lengths, and what is right of them, give what each sequence gives by itself."""
    params = cast(spread(PADDED[both].init(key(), (5, C))[0]), "float32")
    x, run = normal(3, 5, C, seed=sum(lengths)), RUN_PADDED[both]
    y, carry = run(params, x, None, None, None, jnp.array(lengths))
    for i, n in enumerate(lengths):
        close((y[i, :n], at(carry, i)), run(params, x[i, :n]))
        assert not y[i, n:].any()


def test_resets_are_the_episodes_alone():
    """An episode's outputs depend on nothing outside of it, in both directions."""
    net = fnn.bidirectional(fnn.cells.lstm(H), fnn.cells.gru(H))
    params = cast(spread(net.init(key(), (5, C))[0]), "float32")
    x = normal(7, C)
    resets = np.array([0, 0, 1, 0, 0, 1, 0], bool)
    whole = net(params, x, None, None, resets)
    alone = [net(params, x[a:b]) for a, b in ((0, 2), (2, 5), (5, 7))]
    close(whole, np.concatenate(alone))


@pytest.mark.parametrize("kind", ["gru", "lru"])
def test_padding_crosses_no_boundary(kind):
    """In reverse, what is left of the first real step does not see the boundary before that."""
    net = KINDS[kind][0](H, reverse=True, return_carry=True)
    params = cast(spread(net.init(key(), (5, C))[0]), "float32")
    x, resets = normal(3, C), np.array([False, True, False])
    padded = net(params, x, np.array([False, True, True]), None, resets)
    alone = net(params, x[1:], None, None, resets[1:])
    close((padded[0][1:], padded[1]), alone)


@pytest.mark.parametrize("reverse", [False, True])
def test_resets_bring_back_a_learned_carry(reverse):
    net = fnn.gru(H, learned_carry=True, reverse=reverse, return_carry=True)
    p = spread(net.init(key(), (5, C))[0])
    x, resets = normal(2, 5, C), np.array([[0, 0, 1, 0, 1], [1, 0, 0, 1, 0]], bool)
    case = Case(np.float64(x), None, np.ones((2, H)), resets, np.ones((2, 5), bool))
    out = jax.jit(net)(cast(p, "float32"), x, None, jnp.ones((2, H)), resets)
    wanted, _, carry = loops(oracles.gru_cell, p, case, p["first_h"], reverse)
    close(out, (wanted, carry))


@pytest.mark.parametrize(
    "kind, reverse",
    [("lstm", False), ("gru", True), ("simple_rnn", False), ("lru", False), ("lru", True)],
)
def test_padding_changes_neither_outputs_nor_gradients(kind, reverse):
    build, _, _ = KINDS[kind]
    x, w = normal(3, 5, C), normal(3, 5, H, seed=2)
    mask = np.array([[1, 0, 1, 1, 0], [0, 1, 1, 0, 1], [0, 0, 0, 0, 0]], bool)
    net = build(H, reverse=reverse, return_carry=True)
    params = cast(spread(net.init(key(), x)[0]), "float32")

    @jax.jit
    def run(params, x):
        def loss(params, x):
            y, carry = net(params, x, mask)
            leaves = [jnp.sum(a**2) for a in jax.tree.leaves(carry)]
            return jnp.sum(w * y) + sum(leaves), (y, carry)

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x)

    clean = run(params, np.where(mask[..., None], x, 0))
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(clean))
    assert not np.any(clean[0][1][0][~mask]) and not np.any(clean[1][1][~mask])
    for rubbish in (np.nan, np.inf, -np.inf, 1e30):
        same(run(params, np.where(mask[..., None], x, np.float32(rubbish))), clean)
    short = jax.jit(
        jax.grad(
            lambda params, x, w: (
                jnp.sum(w * net(params, x)[0])
                + sum(jnp.sum(a**2) for a in jax.tree.leaves(net(params, x)[1]))
            ),
            (0, 1),
        )
    )
    parts = [short(params, x[i, mask[i]], w[i, mask[i]]) for i in range(2)]
    close(clean[1][0], jax.tree.map(lambda a, b: np.float64(a + b), parts[0][0], parts[1][0]))
    for i in range(2):
        close(clean[1][1][i, mask[i]], parts[i][1])


def test_resets_where_the_mask_is_false_are_ignored():
    net = fnn.gru(H, return_carry=True)
    params = cast(spread(net.init(key(), (5, C))[0]), "float32")
    x, mask = normal(4, C), np.array([True, False, True, True])
    hidden = np.array([False, True, False, False])
    same(net(params, x, mask, None, hidden), net(params, x, mask))
