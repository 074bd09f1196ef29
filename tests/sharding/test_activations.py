"""What a step moves between devices, and where activations are."""

import re

import jax
import numpy as np
import pytest

import fnn
from fnn.sharding import MEGATRON, SEQUENCE, constrained
from tests.sharding.support import (
    FULL,
    LABELS,
    NETS,
    PLACES,
    ROWS,
    SMALL,
    check_steps,
    placed_on,
    step_of,
)  # fmt: skip
from tests.support import but_full

pytestmark = pytest.mark.cpu


def collectives(step, ts, batch):
    """The names, shapes and dimensions of what the program of a step moves between devices."""
    text = jax.jit(step).lower(ts, batch).compile().as_text()
    kinds = "all-gather|all-to-all|collective-permute|all-reduce"
    return [(kind, shape) for shape, kind in re.findall(rf" = (.*?) ({kinds})\(", text)]


def moved(net, place, shape, labels, built=None, rules=()):
    """What a step moves, but for sums."""
    sizes, options = PLACES[place]
    tx, x = fnn.optim.sgd(0.1), np.zeros(shape, "i4" if len(shape) < 3 else "f4")
    placed = placed_on(net, tx, x, sizes, options)
    ts = fnn.train.init(net, tx, jax.random.key(0), x, shardings=placed)
    net = net if built is None else built(net, placed, rules)
    step = step_of(net, tx, shardings=placed)
    found = collectives(step, ts, placed.put({"image": x, "label": labels}))
    return [(kind, shape) for kind, shape in found if kind != "all-reduce"]


@pytest.mark.parametrize("place", but_full(["full", "full and tensor"], ["full and tensor"]))
def test_full_sharding_gathers_params_and_no_activations(place):
    """With 23 positions, which no param has."""
    net = fnn.serial(
        fnn.embedding(32, 16),
        fnn.repeat(fnn.transformer_block(16, 4), 2),
        fnn.dense(32, axes=("in", "vocabulary")),
    )
    found = moved(net, place, (16, 23), np.zeros((16, 23), "i4"))
    assert found and {kind for kind, _ in found} == {"all-gather"}
    assert not [shape for _, shape in found if "23" in shape]


def test_experts_are_chosen_where_the_examples_are():
    x = NETS["experts"][1]
    assert moved(NETS["experts"][0], "data", x.shape, LABELS) == []


def test_constrained_layers_move_no_activations():
    """Else the way back through `flatten` brings features together from everywhere."""

    def pool(x):
        return x.reshape(*x.shape[:-2], 4, 2, 16).max(-2)

    net = fnn.serial(fnn.dense(16), pool, fnn.flatten(2), fnn.dense(4))
    for built in (None, constrained):
        found = moved(net, "full", (16, 8, 8), LABELS, built)
        assert {kind for kind, _ in found} == {"all-gather"}
        assert ("[16,4]" in str(found)) == (built is None)  # [B, 4], of the gradient


@pytest.mark.full
def test_constrained_training_is_the_same_with_positions_cut_too():
    net, x = NETS["transformer"]
    placed = placed_on(net, fnn.optim.sgd(0.02, 0.5), x, {"data": 2, "model": 2},
                       {"rules": MEGATRON, **FULL})  # fmt: skip
    check_steps("transformer", placed, constrained(net, placed, SEQUENCE))


def test_sequence_parallelism_halves_what_a_block_keeps():
    """Four blocks [B, T, C] = [2, 64, 16] with positions over two devices."""
    tx, x = fnn.optim.sgd(0.1), np.zeros((2, 64, 16), "f4")
    net = fnn.serial(fnn.repeat(fnn.remat(fnn.transformer_block(16, 2, hidden=16)), 4))
    placed = placed_on(net, tx, x, {"data": 1, "model": 2}, {"rules": MEGATRON})
    ts = fnn.train.init(net, tx, jax.random.key(0), x, shardings=placed)
    loss_fn = fnn.train.supervised(constrained(net, placed, SEQUENCE), fnn.losses.squared_error)
    step = fnn.train.step(loss_fn, tx, shardings=placed)
    text = jax.jit(step).lower(ts, (x, x)).compile().as_text()
    assert "f32[4,2,32,16]" in text and "f32[4,2,64,16]" not in text


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([("*nothing*", (), ())], "rules that each match a layer"),
        ([("*", ("rows",), ())], "rows"),
    ],
)
def test_constrained_refuses_rules(rules, message):
    placed = placed_on(SMALL, fnn.optim.sgd(0.1), ROWS, {"data": 8}, {})
    with pytest.raises(fnn.errors.OptionError, match=message):
        constrained(SMALL, placed, rules)


def test_constrained_refuses_axes_by_path():
    placed = placed_on(SMALL, fnn.optim.sgd(0.1), ROWS, {"data": 8}, {})
    params, state = SMALL.init(jax.random.key(0), ROWS)
    for axes, message in (
        (("data",), "dense2: an axis that data = 8"),
        ((None,) * 2, "more than 2"),
    ):
        net = constrained(SMALL, placed, [("dense2", (), axes)])
        with pytest.raises(fnn.errors.ShapeError, match=message):
            net(params, ROWS, state=state)
