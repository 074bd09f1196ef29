"""Recurrent cells against loops in float64, one row a cell: run one by `-k lstm_cell`."""

from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from tests.layers.recurrent import oracles
from tests.layers.recurrent.support import (
    ROW,
    B,
    C,
    H,
    T,
    at,
    cast,
    close,
    drawn,
    first_of,
    key,
    normal,
    same,
    spread,
    wide,
)
from tests.support import asarray, but_full

IMAGE = np.zeros((2, 3, 2))


class Row(NamedTuple):
    """A cell, its oracle, its carry of one example as zeros, and the shape of one x."""

    cell: fnn.Layer
    step: Any
    carry: Any = ROW
    x: tuple = (C,)


CELLS = {
    "rnn_cell": Row(fnn.cells.simple_rnn(H), oracles.rnn_cell),
    "rnn_cell sin": Row(
        fnn.cells.simple_rnn(H, activation=jnp.sin, use_bias=False),
        partial(oracles.rnn_cell, activation=np.sin),
    ),
    "lstm_cell": Row(fnn.cells.lstm(H), oracles.lstm_cell, (ROW, ROW)),
    "lstm_cell without bias": Row(fnn.cells.lstm(H, use_bias=False), oracles.lstm_cell, (ROW, ROW)),
    "lstm_cell peepholes": Row(fnn.cells.lstm(H, peepholes=True), oracles.lstm_cell, (ROW, ROW)),
    "lstm_cell projection": Row(fnn.cells.lstm(H, projection=2), oracles.lstm_cell, (ROW, ROW[:2])),
    "lstm_cell layer_norm": Row(fnn.cells.lstm(H, layer_norm=True), oracles.lstm_cell, (ROW, ROW)),
    "lstm_cell all": Row(
        fnn.cells.lstm(H, peepholes=True, projection=2, layer_norm=True, learned_carry=True),
        oracles.lstm_cell,
        (ROW, ROW[:2]),
    ),
    "gru_cell": Row(fnn.cells.gru(H), oracles.gru_cell),
    "gru_cell learned carry": Row(fnn.cells.gru(H, learned_carry=True), oracles.gru_cell),
    "gru_cell reset before": Row(
        fnn.cells.gru(H, reset_after=False), partial(oracles.gru_cell, reset_after=False)
    ),
    "mgu_cell": Row(fnn.cells.mgu(H), oracles.mgu_cell),
    "conv_lstm_cell": Row(
        fnn.cells.conv_lstm(2, (3, 2)), oracles.conv_lstm_cell, (IMAGE, IMAGE), (2, 3, 1)
    ),
    "zoneout": Row(
        fnn.cells.zoneout(fnn.cells.gru(H), 0.3), oracles.zoneout(oracles.gru_cell, 0.3)
    ),
    "zoneout of each": Row(
        fnn.cells.zoneout(fnn.cells.lstm(H), (0.5, 0.05)),
        oracles.zoneout(oracles.lstm_cell, (0.5, 0.05)),
        (ROW, ROW),
    ),
}  # fmt: skip


PLAIN = {  # what has the option recurrent_dropout: builder, oracle, the carry as zeros
    "rnn_cell": (fnn.cells.simple_rnn, oracles.rnn_cell, ROW),
    "lstm_cell": (fnn.cells.lstm, oracles.lstm_cell, (ROW, ROW)),
    "gru_cell": (fnn.cells.gru, oracles.gru_cell, ROW),
    "gru_cell reset before": (
        partial(fnn.cells.gru, reset_after=False),
        partial(oracles.gru_cell, reset_after=False),
        ROW,
    ),
    "mgu_cell": (fnn.cells.mgu, oracles.mgu_cell, ROW),
}


def oracle_run(row, p, x, **per_example):
    """A batch of one leading axis: (y, the last y, the carry)."""
    shape, first = jax.tree.leaves(row.carry)[-1].shape, first_of(p, row.carry)

    def one(i):
        options = {name: at(value, i) for name, value in per_example.items()}
        return oracles.unroll(row.step, p, x[i], first, shape=shape, **options)

    return oracles.each(x.shape[:1], one)


@cache
def case(name, seed=0):
    """(net, params, x, mask) in float64."""
    row = CELLS[name]
    x = np.random.default_rng(seed).normal(size=(B, T, *row.x))
    params, _ = row.cell.init(key(), None, (B, *row.x))
    mask = np.array([[True, True, False, True], [False, True, True, False]])
    net = fnn.rnn(row.cell, return_carry=True, feature_axes=len(row.x))
    return net, spread(params, seed), x, mask


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_cell_is_the_loop(name, dtype):
    row = CELLS[name]
    net, p, x, mask = case(name)
    carry = drawn(row.carry, (B,))

    @jax.jit
    def all_of_it(params, carry, xs):
        given, begun = (row.cell(params, c, xs[:, 0]) for c in (carry, None))
        return given, begun, net(params, xs, mask)

    with wide(dtype):
        params, xs, own = cast(p, dtype), asarray(x, dtype), cast(carry, dtype)
        out = all_of_it(params, own, xs)
        assert {a.dtype for a in jax.tree.leaves(out)} == {jnp.dtype(dtype)}
    (new, y), (begun, y_first), run = out
    first = first_of(p, row.carry)
    for i in range(B):
        close((at(new, i), y[i]), row.step(p, at(carry, i), x[i, 0]), dtype)
        close((at(begun, i), y_first[i]), row.step(p, first, x[i, 0]), dtype)
    wanted, _, last = oracle_run(row, p, x, mask=mask)
    close(run, (wanted, last), dtype)


COVERED = {  # by `lstm_cell all`, `zoneout of each` and `rnn_cell`
    "lstm_cell peepholes", "lstm_cell projection", "lstm_cell layer_norm",
    "lstm_cell without bias", "zoneout", "rnn_cell sin",
}  # fmt: skip


@pytest.mark.parametrize("name", but_full(CELLS, COVERED))
def test_gradients_of_a_cell_are_differences_of_the_loop(name):
    """By params, x and carry, one array at a time, along a direction; jvp gives their sum."""
    row = CELLS[name]
    net, p, x, mask = case(name, 1)
    draw = np.random.default_rng(2).normal
    given = "first_h" not in p  # where the first carry is learned, it gets the gradient instead
    inputs = {"p": p, "x": x, "carry": drawn(row.carry, (B,))} if given else {"p": p, "x": x}
    along = jax.tree.map(lambda a: draw(size=a.shape), inputs)
    y, _, carry = oracle_run(row, p, x)
    weights = jax.tree.map(lambda a: draw(size=a.shape), (y, carry))

    def total(out, xp):
        products = jax.tree.map(lambda w, a: xp.sum(w * a), weights, out)
        return sum(jax.tree.leaves(products))

    def wanted(inputs):
        own = {"carry": inputs["carry"]} if given else {}
        y, _, carry = oracle_run(row, inputs["p"], inputs["x"], mask=mask, **own)
        return total((y, carry), np)

    with jax.enable_x64(True):

        def loss(inputs):
            return total(net(inputs["p"], inputs["x"], mask, inputs.get("carry")), jnp)

        ours = jax.tree.map(asarray, inputs)
        grads, slope = jax.jit(
            lambda inputs, along: (jax.grad(loss)(inputs), jax.jvp(loss, (inputs,), (along,))[1])
        )(ours, jax.tree.map(asarray, along))
    leaves, treedef = jax.tree.flatten(along)
    slopes = []
    for k in range(len(leaves)):
        only = treedef.unflatten([leaf * (i == k) for i, leaf in enumerate(leaves)])
        slopes.append(oracles.slope(wanted, inputs, only))
        pulled = np.vdot(jax.tree.leaves(grads)[k], leaves[k])
        np.testing.assert_allclose(pulled, slopes[-1], rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(slope, sum(slopes), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", ["rnn_cell", "lstm_cell", "lstm_cell all", "gru_cell", "mgu_cell"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_narrow_dtype_in_is_the_same_out(name, dtype):
    row = CELLS[name]
    net, p, x, mask = case(name)
    params, xs = cast(p, dtype), asarray(x, dtype)
    assert {a.dtype for a in jax.tree.leaves(row.cell.init(key(), None, xs[:, 0])[0])} == {xs.dtype}
    out = jax.jit(net)(params, xs, mask)
    assert {a.dtype for a in jax.tree.leaves(out)} == {xs.dtype}
    p, x = jax.tree.map(np.float64, (params, xs))  # as they were rounded
    y, _, carry = oracle_run(row, p, x, mask=mask)
    close(out, (y, carry), dtype)


def test_the_first_params():
    lstm, _ = fnn.cells.lstm(16).init(key(), None, (1, 4))
    assert jax.tree.map(jnp.shape, lstm) == {
        "kernel": (4, 64), "recurrent_kernel": (16, 64), "bias": (64,)
    }  # fmt: skip
    np.testing.assert_array_equal(lstm["bias"], np.repeat([0, 1, 0, 0], 16))
    np.testing.assert_allclose(lstm["kernel"].std(), 0.5, rtol=0.2)  # 1 / sqrt(C)
    gates = jnp.split(lstm["recurrent_kernel"], 4, axis=1)
    for i, gate in enumerate(gates):
        np.testing.assert_allclose(gate @ gate.T, np.eye(16), atol=1e-5)
        assert all(abs(gate - other).max() > 0.01 for other in gates[:i])
    gru, _ = fnn.cells.gru(3).init(key(), None, (1, 4))
    assert jax.tree.map(jnp.shape, gru) == {
        "kernel": (4, 9), "recurrent_kernel": (3, 9), "bias": (9,), "recurrent_bias": (3,)
    }  # fmt: skip
    for gate in jnp.split(gru["recurrent_kernel"], 3, axis=1):
        np.testing.assert_allclose(gate.T @ gate, np.eye(3), atol=1e-5)
    assert "recurrent_bias" not in fnn.cells.gru(3, reset_after=False).init(key(), None, (1, 4))[0]
    full, _ = CELLS["lstm_cell all"].cell.init(key(), None, (1, 4))
    assert jax.tree.map(jnp.shape, full) == {
        "kernel": (4, 12), "recurrent_kernel": (2, 12), "bias": (12,), "peephole": (3, 3),
        "projection": (3, 2), "input_scale": (12,), "recurrent_scale": (12,), "cell_scale": (3,),
        "cell_bias": (3,), "first_c": (3,), "first_h": (2,),
    }  # fmt: skip
    for name, value in {"peephole": 0, "input_scale": 1, "recurrent_scale": 1, "cell_scale": 1,
                        "cell_bias": 0, "first_c": 0, "first_h": 0}.items():  # fmt: skip
        assert (full[name] == value).all(), name
    image, _ = fnn.cells.conv_lstm(2, (3, 3)).init(key(), None, (1, 4, 5, 1))
    assert jax.tree.map(jnp.shape, image) == {
        "input": {"kernel": (3, 3, 1, 8), "bias": (8,)}, "hidden": {"kernel": (3, 3, 2, 8)}
    }  # fmt: skip
    np.testing.assert_array_equal(image["input"]["bias"], np.repeat([0, 1, 0, 0], 2))


def test_a_sequence_has_the_params_of_its_cell():
    for row in CELLS.values():
        alone = row.cell.init(key(3), None, (B, *row.x))[0]
        net = fnn.rnn(row.cell, feature_axes=len(row.x))
        same(net.init(key(3), (B, T, *row.x))[0], alone)


def test_the_first_carry_of_a_cell():
    x = jnp.ones((2, 3, C))
    carry = fnn.cells.lstm(H).carry({}, x)
    assert jax.tree.map(jnp.shape, carry) == ((2, 3, H), (2, 3, H)) and not np.any(carry)
    cell = fnn.cells.gru(H, learned_carry=True)
    params = spread(cell.init(key(), None, x)[0])
    params = cast(params, "float32")
    np.testing.assert_array_equal(
        cell.carry(params, x), np.broadcast_to(params["first_h"], (2, 3, H))
    )


@pytest.mark.parametrize("name", PLAIN)
def test_recurrent_dropout_is_one_mask_where_h_meets_the_recurrent_kernel(name):
    build, step, zero = PLAIN[name]
    cell, x = build(H, recurrent_dropout=0.25), normal(B, T, C)
    p = spread(cell.init(key(), None, x[:, 0])[0])
    params = cast(p, "float32")
    net = fnn.rnn(cell, return_carry=True)
    (y, end), _ = jax.jit(partial(net.apply, train=True))(params, {}, x, key=key(4))
    mask = np.array(end["mask"])
    assert mask.shape == (B, H) and mask.dtype == bool
    for i in range(B):
        dropped = partial(step, drop=mask[i] / 0.75)
        wanted, _, carry = oracles.unroll(dropped, p, x[i], first_of(p, zero), shape=(H,))
        close((y[i], at(end["carry"], i)), (wanted, carry))
    plain = fnn.rnn(build(H), return_carry=True)
    y_plain, end_plain = plain(params, x)
    y, end = net(params, x)
    same((y, end["carry"]), (y_plain, end_plain))


def test_masks_of_recurrent_dropout_are_drawn_with_the_first_carry():
    cell = fnn.cells.lstm(50, recurrent_dropout=0.3)
    x = jnp.ones((400, 1))
    first, other = (cell.carry({}, x, key=key(i), train=True)["mask"] for i in range(2))
    for mask in (first, other):
        np.testing.assert_allclose(mask.mean(), 0.7, atol=0.01)
        np.testing.assert_allclose(mask.mean(0), 0.7, atol=0.12)  # 5 deviations
        np.testing.assert_allclose(mask.mean(1), 0.7, atol=0.32)
    assert 0.3 < (first != other).mean() < 0.5  # 2 * 0.3 * 0.7 where they are independent
    params, _ = cell.init(key(), None, x)
    carry = cell.carry(params, x, key=key(7), train=True)
    outs = [cell.apply(params, {}, carry, x, key=k, train=True)[0] for k in (key(8), key(9), None)]
    same(outs[0], outs[1])  # a step's own key does not matter
    same(outs[0], outs[2])
    assert np.array(cell.carry(params, x)["mask"]).all()  # evaluation keeps all
