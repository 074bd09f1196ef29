"""Summaries, against the trees of params and the FLOPs of the parts."""

import jax
import jax.numpy as jnp
import pytest

import fnn
from fnn.analysis import count_flops, summary


def block(features=4):
    return fnn.residual(fnn.serial(fnn.dense(features), jnp.tanh, fnn.dropout(0.5)))


def key(i=0):
    return jax.random.key(i)


def test_summary_counts_what_stands_in_params_and_what_is_computed():
    net = fnn.serial(
        fnn.dense(4), blocks=fnn.repeat(block(), 3), bn=fnn.batch_norm(), out=fnn.dense(2)
    )
    found = summary(net, (5, 3))
    rows = {row.path: row for row in found.rows}
    params, state = net.init(key(), (5, 3))
    for path in ("dense1", "blocks", "blocks/layer/dense1", "bn", "out", ""):
        tree, states = params, state
        for name in filter(None, path.split("/")):
            tree, states = tree[name], states.get(name, {})
        assert rows[path].params == sum(a.size for a in jax.tree.leaves(tree)), path
        assert rows[path].state == sum(a.size for a in jax.tree.leaves(states)), path
    assert rows["blocks/layer/dense1"].copies == 3
    assert rows["blocks/layer/dense1"].flops == 3 * (2 * 5 * 4 * 4 + 5 * 4)
    assert rows["blocks/layer/tanh_1"].flops == 3 * 20
    assert rows["blocks"].flops == 3 * (160 + 20 + 20 + 20)  # matmul, bias, tanh, residual
    assert rows["out"].output == jax.ShapeDtypeStruct((5, 2), jnp.float32)
    assert found.flops == count_flops(lambda p: net(p, jnp.ones((5, 3)), state=state), params)
    assert found.nbytes == 4 * (found.params + found.state)
    assert list(rows)[-1] == "" and [p for p in rows if p in params] == [n for n, _ in net.children]


def test_summary_is_a_table():
    pytest.importorskip("rich")
    text = str(summary(fnn.serial(fnn.ensemble(fnn.dense(1000), 2), jax.nn.relu), (8, 5)))
    assert (
        "ensemble1" in text and "12,000" in text and "46.9 KiB" in text and "(2, 8, 1000)" in text
    )
    assert "dense" in str(summary(fnn.dense(2), (1, 2)))


def test_summary_of_layers_called_twice_in_other_dtypes_and_reparametrized():
    shapes = (jax.ShapeDtypeStruct((2, 3), jnp.float32), jax.ShapeDtypeStruct((4,), jnp.int32))

    @fnn.compose(shared=fnn.dense(3), table=fnn.embedding(7, 3))
    def ordered(f, x, ids):
        e = f.table(ids).sum()
        return f.shared(f.shared(x)) @ f.table.params["embedding"].T + e

    rows = {row.path: row for row in summary(ordered, *shapes).rows}
    assert rows["shared"].flops == 2 * (2 * 2 * 9 + 6) and rows["shared"].params == 12
    for net in (
        fnn.cast(ordered, jnp.bfloat16),
        fnn.weight_norm(ordered),
        fnn.lora(ordered, 2),
        fnn.remat(ordered),
    ):
        found = summary(net, *shapes)
        assert found.params == sum(a.size for a in jax.tree.leaves(net.init(key(), *shapes)))
        assert {"shared", "table", ""} <= {row.path for row in found.rows}


def test_summary_counts_a_cell_in_every_step_of_its_rnn():
    b, t, m, n = 2, 7, 3, 4

    def add(carry, x):
        return (carry + x,) * 2

    cell = fnn.cells.serial(
        up=fnn.dense(n), sum=fnn.cells.as_cell(add, jnp.zeros_like), act=jnp.tanh
    )
    dense = 2 * b * m * n + b * n
    for options in ({}, {"checkpoint_every": 3}, {"reverse": True}):
        net = fnn.serial(fnn.rnn(cell, **options))
        rows = {row.path: row for row in summary(net, (b, t, m)).rows}
        assert rows["rnn1/up"].flops == t * dense
        assert rows["rnn1/sum"].flops == rows["rnn1/act"].flops == t * b * n
        assert rows["rnn1/up"].copies == 1 and rows["rnn1/up"].params == m * n + n
        assert rows["rnn1/up"].output == jax.ShapeDtypeStruct((b, n), jnp.float32)
        assert rows["rnn1"].flops >= t * (dense + 2 * b * n)
    cell = fnn.cells.serial(fnn.dense(m), sum=fnn.cells.as_cell(add, jnp.zeros_like))
    deep = fnn.serial(
        blocks=fnn.repeat(fnn.serial(fnn.rnn(cell)), 5),
        members=fnn.ensemble(fnn.serial(fnn.dense(n)), 6),
    )
    rows = {row.path: row for row in summary(deep, (b, t, m)).rows}
    assert rows["blocks/rnn1/dense1"].flops == 5 * t * (2 * b * m * m + b * m)
    assert rows["blocks/rnn1/dense1"].copies == 5
    assert rows["members/dense1"].flops == 6 * t * dense


def test_summary_of_training_mode_counts_what_it_computes():
    net = fnn.serial(fnn.rnn(fnn.cells.serial(fnn.cells.gru(3), drop=fnn.dropout(0.5))))
    rows = [{r.path: r.flops for r in summary(net, (2, 5, 4), train=t).rows} for t in (False, True)]
    assert rows[0]["rnn1/drop"] == 0 and rows[1]["rnn1/drop"] >= 2 * 5 * 3
    assert rows[0]["rnn1/gru_cell1"] == rows[1]["rnn1/gru_cell1"] > 5 * 2 * 2 * 7 * 9
