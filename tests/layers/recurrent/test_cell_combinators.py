"""Cells made of cells and layers, and noise drawn once for a sequence."""

import jax
import jax.numpy as jnp
import numpy as np

import fnn
from tests.layers.recurrent import oracles
from tests.layers.recurrent.support import (
    CUMSUM,
    B,
    C,
    H,
    T,
    at,
    cast,
    close,
    drawn,
    key,
    normal,
    same,
    spread,
)
from tests.support import asarray


def test_variational_dropout_drops_the_same_values_at_every_step():
    net, x = fnn.rnn(fnn.cells.variational_dropout(0.25)), jnp.ones((200, 3, 40))
    params, state = net.init(key(), x)
    assert params == {} and state == {}
    y, _ = net.apply({}, {}, x, key=key(1), train=True)
    kept = np.array(y[:, 0] != 0)
    np.testing.assert_allclose(y[kept[:, None].repeat(3, 1)], 4 / 3, rtol=1e-6)
    assert (np.array(y != 0) == kept[:, None]).all()
    np.testing.assert_allclose(kept.mean(), 0.75, atol=0.025)
    other, _ = net.apply({}, {}, x, key=key(2), train=True)
    assert 0.3 < ((other[:, 0] != 0) != kept).mean() < 0.45
    np.testing.assert_array_equal(net({}, x), x)


def test_zoneout_in_training_keeps_old_values_of_the_carry():
    cell, x = fnn.cells.zoneout(fnn.cells.lstm(40), (0.5, 0.05)), asarray(normal(100, C))
    params, _ = cell.init(key(), None, x)
    same(params, fnn.cells.lstm(40).init(key(), None, x)[0])
    old = jax.tree.map(lambda a: asarray(a, jnp.float32), drawn((np.zeros(40),) * 2, (100,)))
    new, _ = fnn.cells.lstm(40)(params, old, x)
    carry, y = cell.apply(params, {}, old, x, key=key(1), train=True)[0]
    kept = []
    for before, after, now, rate in zip(old, new, carry, (0.5, 0.05), strict=True):
        kept.append(np.array(now == before))
        np.testing.assert_allclose(np.where(kept[-1], after, now), after, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(kept[-1].mean(), rate, atol=0.04)
    same(y, carry[1])
    np.testing.assert_allclose((kept[0] & kept[1]).mean(), 0.025, atol=0.02)  # independent
    again = cell.apply(params, {}, old, x, key=key(2), train=True)[0][0]
    assert (np.array(again[0] == old[0]) != kept[0]).mean() > 0.4
    for rate, wanted in ((0.0, new), (1.0, old)):
        out = fnn.cells.zoneout(fnn.cells.lstm(40), rate).apply(
            params, {}, old, x, key=key(), train=True
        )
        close(out[0][0], wanted)


def test_zoneout_draws_anew_at_every_step():
    """A carry that is the number of the step tells which steps were zoned out."""

    def count(c, x):
        c = c + 1
        return c, c

    cell = fnn.cells.zoneout(fnn.cells.as_cell(count, jnp.zeros_like), 0.5)
    y, _ = fnn.rnn(cell).apply({}, {}, jnp.ones((300, 8, 1)), key=key(), train=True)
    stayed = np.diff(np.array(y[..., 0]), axis=1, prepend=0) == 0  # [300, T]
    np.testing.assert_allclose(stayed.mean(0), 0.5, atol=0.15)
    together = np.corrcoef(stayed.T)
    assert abs(together[~np.eye(8, dtype=bool)]).max() < 0.25


def test_a_stack_has_the_params_and_values_of_serial():
    E, cell, D = fnn.embedding(7, C), fnn.cells.gru(H), fnn.dense(5)
    serial = fnn.serial(embed=E, rnn=fnn.rnn(cell), head=D)
    stacked = fnn.rnn(
        fnn.cells.serial(embed=E, rnn=cell, head=D), feature_axes=0, return_carry=True
    )
    x = np.random.default_rng(0).integers(0, 7, (B, T))
    params, _ = serial.init(key(), x)
    same(stacked.init(key(), x)[0], params)
    y, carry = jax.jit(stacked)(params, x)
    close(y, serial(params, x))
    assert list(carry) == ["rnn"] and carry["rnn"].shape == (B, H)


def test_a_stack_names_its_layers_as_serial_and_runs_them_in_order():
    cell = fnn.cells.serial(
        fnn.cells.lstm(H), fnn.dense(H), jnp.sin, fnn.residual(fnn.cells.gru(H))
    )
    x = normal(B, T, C)
    params, _ = cell.init(key(), None, x[:, 0])
    names = ["lstm_cell1", "dense1", "residual1"]
    assert sorted(params) == sorted(names)
    p = spread(params)
    net = fnn.rnn(cell, return_carry=True)
    y, end = jax.jit(net)(cast(p, "float32"), x)
    assert sorted(end) == ["lstm_cell1", "residual1"]
    for i in range(B):
        zero = np.zeros(H)
        h, _, c1 = oracles.unroll(
            oracles.lstm_cell, p["lstm_cell1"], x[i], (zero, zero), shape=(H,)
        )
        h = np.sin(h @ p["dense1"]["kernel"] + p["dense1"]["bias"])
        inner, _, c2 = oracles.unroll(
            oracles.gru_cell, p["residual1"]["layer"], h, zero, shape=(H,)
        )
        close((y[i], at(end, i)), (h + inner, {"lstm_cell1": c1, "residual1": c2}))


def test_dropout_in_a_stack_differs_from_step_to_step():
    net = fnn.rnn(fnn.cells.serial(fnn.dropout(0.5), CUMSUM))
    x = jnp.ones((60, 6, 20))
    y, _ = net.apply({}, {}, x, key=key(), train=True)
    kept = np.diff(np.array(y), axis=1, prepend=0) != 0
    np.testing.assert_allclose(kept.mean(), 0.5, atol=0.03)
    together = np.corrcoef(kept.transpose(1, 0, 2).reshape(6, -1))
    assert abs(together[~np.eye(6, dtype=bool)]).max() < 0.2
    np.testing.assert_allclose(net({}, x), np.cumsum(x, 1), rtol=1e-6)


def test_any_function_of_carry_and_x_is_a_cell():
    x = normal(B, T, C)
    np.testing.assert_allclose(fnn.rnn(CUMSUM)({}, x), np.cumsum(x, 1), rtol=1e-5, atol=1e-6)

    @fnn.compose(update=fnn.dense(H), read=fnn.dense(2))
    def body(f, h, x):
        h = jnp.tanh(f.update(jnp.concatenate([h, x], -1)))
        return h, f.read(h)

    cell = fnn.cells.as_cell(body, lambda x: jnp.zeros((*x.shape[:-1], H), x.dtype))
    net = fnn.rnn(cell, return_carry=True)
    p = spread(net.init(key(), x)[0])
    y, end = net(cast(p, "float32"), x)

    def step(p, h, x):
        h = np.tanh(np.r_[h, x] @ p["update"]["kernel"] + p["update"]["bias"])
        return h, h @ p["read"]["kernel"] + p["read"]["bias"]

    for i in range(B):
        wanted, _, h = oracles.unroll(step, p, x[i], np.zeros(H), shape=(2,))
        close((y[i], end[i]), (wanted, h))


def test_a_cell_in_compose_makes_a_cell():
    """`f.cell.carry` and `f.cell(carry, x)` inside a body that opens its own loop."""

    @fnn.compose(cell=fnn.cells.gru(H))
    def twice(f, x):  # [..., C]
        carry, _ = f.cell(None, x)
        return f.cell(carry, x)[1]

    x = normal(B, C)
    p = spread(twice.init(key(), x)[0])
    y = twice(cast(p, "float32"), x)
    for i in range(B):
        wanted, *_ = oracles.unroll(
            oracles.gru_cell, p["cell"], np.stack([x[i]] * 2), np.zeros(H), shape=(H,)
        )
        close(y[i], wanted[-1])
