"""Recurrent layers with weights of PyTorch and flax, copied by hand: values and gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from tests.layers.recurrent.support import B, C, H, T, cast, close, key, normal, spread
from tests.support import asarray

BUILD = {"LSTM": fnn.lstm, "GRU": fnn.gru, "RNN": fnn.simple_rnn}


def from_torch(module, kind, layer, suffix):
    """Params of one direction of one layer, by hand."""
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    parts = [getattr(module, f"{n}_l{layer}{suffix}") for n in names]
    w, u, b, r = (a.detach().numpy() for a in parts)
    p = {"kernel": w.T, "recurrent_kernel": u.T, "bias": b + r}
    if kind == "GRU":
        p["bias"] = np.concatenate([(b + r)[: 2 * H], b[2 * H :]])
        p["recurrent_bias"] = r[2 * H :]
    return p


def gradients_of_torch(module, kind, layer, suffix):
    w, u, b, r = (
        getattr(module, f"{n}_l{layer}{suffix}").grad.numpy()
        for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    p = {"kernel": w.T, "recurrent_kernel": u.T, "bias": b}
    return p | {"recurrent_bias": r[2 * H :]} if kind == "GRU" else p


def by_layer(kind, layers, both, make):
    """The tree of `make(layer, suffix)`: dicts by layer and direction where there are several."""

    def directions(i):
        return {"forward": make(i, ""), "backward": make(i, "_reverse")} if both else make(i, "")

    if layers == 1:
        return directions(0)
    return {f"{BUILD[kind].__name__}{i + 1}": directions(i) for i in range(layers)}


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("layers, both", [(1, False), (2, True)])
def test_pytorchs_layers(kind, layers, both):
    torch = pytest.importorskip("torch")
    theirs = getattr(torch.nn, kind)(C, H, layers, batch_first=True, bidirectional=both)
    make = partial(from_torch, theirs, kind)
    params = cast(by_layer(kind, layers, both, make), "float32")
    net = BUILD[kind](H, layers=layers, bidirectional=both, return_carry=True)
    assert jax.tree.map(jnp.shape, net.init(key(), (B, T, C))[0]) == jax.tree.map(jnp.shape, params)
    x = normal(B, T, C)
    begin = [normal(layers * (1 + both), B, H, seed=i) for i in range(1 + (kind == "LSTM"))]
    # PyTorch's states are (h, c), one row a layer and direction
    x_theirs, begin_theirs = torch.tensor(x, requires_grad=True), list(map(torch.tensor, begin))
    y_theirs, last = theirs(x_theirs, tuple(begin_theirs) if kind == "LSTM" else begin_theirs[0])
    ends = last if kind == "LSTM" else (last,)

    def carries(states, layer, suffix):
        i = layer * (1 + both) + bool(suffix)
        return (states[1][i], states[0][i]) if kind == "LSTM" else states[0][i]

    carry = by_layer(kind, layers, both, partial(carries, begin))
    weights, weight = normal(*y_theirs.shape, seed=7), normal(B, H, seed=8)
    h_first = ends[0][0]  # h of the first layer and direction

    def loss(params, x):
        y, end = net(params, x, None, jax.tree.map(asarray, carry))
        h = jax.tree.leaves(by_first(end))[-1]
        return jnp.sum(y * weights) + jnp.sum(h * weight), (y, end)

    def by_first(carry):
        carry = carry[f"{BUILD[kind].__name__}1"] if layers > 1 else carry
        return carry["forward"] if both else carry

    (_, (y, end)), grads = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, x)
    (y_theirs * torch.tensor(weights)).sum().add((h_first * torch.tensor(weight)).sum()).backward()
    close(y, y_theirs.detach().numpy())
    ends = [a.detach().numpy() for a in ends]
    close(end, by_layer(kind, layers, both, partial(carries, ends)))
    close(grads[0], by_layer(kind, layers, both, partial(gradients_of_torch, theirs, kind)))
    close(grads[1], x_theirs.grad.numpy())


def from_linen(theirs, kind):
    """Params of a flax cell by hand; where `kind` is "GRUCell", hn alone has a bias."""
    gates = "ifgo" if "LSTM" in kind else "rzn"
    p = {
        "kernel": np.hstack([theirs[f"i{g}"]["kernel"] for g in gates]),
        "recurrent_kernel": np.hstack([theirs[f"h{g}"]["kernel"] for g in gates]),
        "bias": np.hstack([theirs[("h" if "LSTM" in kind else "i") + g]["bias"] for g in gates]),
    }
    return p if "LSTM" in kind else p | {"recurrent_bias": np.array(theirs["hn"]["bias"])}


@pytest.mark.parametrize("kind", ["OptimizedLSTMCell", "GRUCell"])
@pytest.mark.parametrize("reverse", [False, True])
def test_flaxs_cells(kind, reverse):
    linen = pytest.importorskip("flax.linen")
    cell = getattr(linen, kind)(H)
    theirs = linen.RNN(cell, return_carry=True, reverse=reverse, keep_order=True)
    x, weights = normal(B, T, C), normal(B, T, H, seed=3)
    variables = theirs.init(key(), x)["params"]["cell"]
    variables = cast(spread(variables), "float32")
    lengths = np.array([4, 2])

    def outputs(variables, x):
        carry, y = theirs.apply({"params": {"cell": variables}}, x, seq_lengths=lengths)
        y = jnp.where(np.arange(T)[:, None] < lengths[:, None, None], y, 0)
        return jnp.sum(y * weights), (y, carry)

    (_, wanted), grads = jax.jit(jax.value_and_grad(outputs, (0, 1), has_aux=True))(variables, x)
    ours = {"OptimizedLSTMCell": fnn.lstm, "GRUCell": fnn.gru}[kind]
    net = ours(H, reverse=reverse, return_carry=True)

    def loss(params, x):
        y, carry = net(params, x, None, None, None, lengths)
        return jnp.sum(y * weights), (y, carry)

    params = cast(from_linen(variables, kind), "float32")
    (_, out), own = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, x)
    close(out, wanted)
    close(own, (from_linen(grads[0], kind), grads[1]))


def test_the_names_of_layers_and_carries():
    """What `by_layer` takes for granted."""
    net = fnn.gru(H, layers=2, bidirectional=True, return_carry=True)
    params, _ = net.init(key(), (B, T, C))
    _, carry = net(params, normal(B, T, C))
    shapes = by_layer("GRU", 2, True, lambda layer, suffix: (B, H))
    assert jax.tree.map(jnp.shape, carry) == shapes
