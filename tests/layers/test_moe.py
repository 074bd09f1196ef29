"""A mixture of experts against a loop over positions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import errors
from fnn.testing import check_layer
from tests.support import asarray

EXPERT = fnn.serial(fnn.dense(6), jnp.tanh, fnn.dense(3))


def by_loop(params, x, n, top_k, capacity):
    """Sequence by sequence and choice by choice, in float64: (y, share dropped, first choices)."""
    params = jax.tree.map(np.float64, params)
    x = np.float64(x)
    y, dropped, firsts, gates_of = np.zeros((*x.shape[:-1], 3)), 0, np.zeros(n), []
    t = x.shape[1]
    room = t if capacity is None else min(t, math.ceil(capacity * top_k * t / n))
    for b in range(x.shape[0]):
        logits = x[b] @ params["router"]["kernel"]
        gates = np.exp(logits - logits.max(-1, keepdims=True))
        gates /= gates.sum(-1, keepdims=True)
        gates_of.append(gates)
        order = np.argsort(-gates, axis=-1, kind="stable")[:, :top_k]
        taken = np.zeros(n, int)
        for choice in range(top_k):
            for i in range(t):
                e = order[i, choice]
                firsts[e] += choice == 0
                total = gates[i, order[i]].sum() if top_k > 1 else 1.0
                if taken[e] >= room:
                    dropped += 1
                else:
                    p = jax.tree.map(lambda a, e=e: a[e], params["experts"])
                    h = np.tanh(x[b, i] @ p["dense1"]["kernel"] + p["dense1"]["bias"])
                    out = h @ p["dense2"]["kernel"] + p["dense2"]["bias"]
                    y[b, i] += gates[i, e] / total * out
                taken[e] += 1
    count = x.shape[0] * t
    mean = np.concatenate(gates_of).mean(0)
    return y, dropped / (count * top_k), n * np.sum(firsts / count * mean)


@pytest.mark.parametrize("top_k, capacity", [(1, 1.0), (2, 1.25), (2, 0.5), (3, None)])
def test_the_loop_over_positions(top_k, capacity):
    net = fnn.moe(EXPERT, 4, top_k=top_k, capacity=capacity)
    x = np.random.default_rng(0).normal(size=(3, 10, 5)).astype(np.float32)
    params, state = net.init(jax.random.key(0), x)
    params["experts"] = jax.tree.map(lambda a: a + 0.1, params["experts"])  # biases too
    y, state = jax.jit(net.apply, static_argnames="train")(
        params, state, x, key=jax.random.key(1), train=True
    )
    wanted, dropped, balance = by_loop(params, x, 4, top_k, capacity)
    np.testing.assert_allclose(y, wanted, atol=1e-5)
    notes = fnn.notes(state)
    np.testing.assert_allclose(notes["dropped"], dropped, atol=1e-6)
    np.testing.assert_allclose(notes["balance"], balance, rtol=1e-5)
    assert capacity is None or capacity > 1 or dropped > 0


def test_one_expert_is_the_expert():
    net, x = fnn.moe(EXPERT, 1, top_k=1), np.random.default_rng(1).normal(size=(2, 4, 5))
    x = x.astype(np.float32)
    params, state = net.init(jax.random.key(0), x)
    alone = jax.tree.map(lambda a: a[0], params["experts"])
    np.testing.assert_allclose(net(params, x, state=state), EXPERT(alone, x), atol=1e-6)


def test_equal_gates_give_a_balance_of_one():
    net, x = fnn.moe(EXPERT, 4, router_init=fnn.initializers.zeros), jnp.ones((2, 8, 5))
    params, state = net.init(jax.random.key(0), x)
    _, state = net.apply(params, state, x, key=jax.random.key(0), train=True)
    np.testing.assert_allclose(fnn.notes(state)["balance"], 1.0, rtol=1e-6)


def test_the_balance_pulls_the_router_towards_equal_use():
    net = fnn.moe(EXPERT, 4, top_k=1, capacity=None)
    x = asarray(np.random.default_rng(2).normal(size=(4, 16, 5)) + 1.0, "float32")
    params, state = net.init(jax.random.key(3), x)

    @jax.jit
    def step(params):
        def balance(params):
            after = net.apply(params, state, x, key=jax.random.key(0), train=True)[1]
            return fnn.notes(after)["balance"]

        value, slope = jax.value_and_grad(balance)(params)
        return value, jax.tree.map(lambda p, g: p - 0.5 * g, params, slope)

    first, params = step(params)
    for _ in range(60):
        last, params = step(params)
    assert first > 1.2 and last < 1.05


def test_the_contract_of_layers():
    check_layer(fnn.moe(fnn.dense(3), 3, capacity=None), (2, 4, 5))


@pytest.mark.parametrize("wrong", [{"n": 0}, {"top_k": 5}, {"top_k": 0}, {"capacity": -1.0}])
def test_wrong_options(wrong):
    with pytest.raises(errors.OptionError, match="^moe: "):
        fnn.moe(**{"expert": EXPERT, "n": 4, **wrong})


def test_x_without_positions_is_refused():
    with pytest.raises(errors.ShapeError, match=r"\[..., T, C\]"):
        fnn.moe(EXPERT, 4).init(jax.random.key(0), (5,))
