"""Params that do not learn."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fnn
from fnn import errors, optim
from fnn.losses import squared_error
from tests.layers.support import assert_trees_equal, inner, key, normal
from tests.support import asarray

FREEZES = {
    "lora": lambda: fnn.lora(fnn.dense(4), 2),
    "prune": lambda: fnn.prune(fnn.dense(4), 0.5),
    "layer": lambda: fnn.serial(body=fnn.frozen(fnn.dense(4)), head=fnn.dense(4)),
    "path": lambda: fnn.frozen(fnn.serial(fnn.dense(4), fnn.dense(4)), "dense1/*"),
    "kind": lambda: fnn.frozen(fnn.serial(fnn.dense(4), fnn.dense(4)), kinds=("kernel",)),
    "twice": lambda: fnn.frozen(fnn.lora(fnn.dense(4), 2), "b/*"),
    "repeat": lambda: fnn.repeat(fnn.lora(fnn.dense(4), 2), 3),
    "cast": lambda: fnn.cast(fnn.lora(fnn.dense(4), 2), jnp.bfloat16),
}


# What moves a param that has no gradient: decay, noise, averages, and foreign transforms.
MOVERS = {
    "decay": lambda: optim.chain(optim.add_decayed_weights(0.1), optim.sgd(0.1)),
    "noise": lambda: optim.chain(optim.add_noise(0.1, 0.5, key=key(3)), optim.sgd(0.1)),
    "adamw": lambda: optim.adamw(0.1, weight_decay=0.1),
    "optax": lambda: optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1)),
}


def trained(net, tx, steps=3, **options):
    ts = fnn.train.init(net, tx, key(0), (1, 4))
    loss = fnn.train.supervised(net, squared_error, names=("x", "y"))
    step = fnn.train.step(loss, tx, **options)
    after = ts
    for i in range(steps):
        after, _ = step(after, {"x": normal(3, 4, seed=i), "y": jnp.ones((3, 4))})
    return ts, after


@pytest.mark.parametrize("how", FREEZES)
def test_what_is_frozen_has_no_gradient_no_moments_and_no_update(how):
    for mover in MOVERS if how in ("lora", "prune") else ("decay",):
        tx = MOVERS[mover]()
        ts, after = trained(FREEZES[how](), tx)
        assert jax.tree.leaves(ts.state)
        assert_trees_equal(after.state, ts.state)
        moved = jax.tree.map(lambda a, b: bool((a != b).any()), ts.params, after.params)
        assert any(jax.tree.leaves(moved)), mover
        shapes = {a.shape for a in jax.tree.leaves(ts.opt_state)} - {()}
        assert shapes <= {a.shape for a in jax.tree.leaves(ts.params)}


def test_differential_privacy_does_not_move_what_is_frozen():
    def grad(fn, **how):
        return optim.per_example_clip(fn, 1.0, 2.0, **how)

    ts, after = trained(fnn.prune(fnn.dense(4), 0.5), optim.sgd(0.1), grad=grad)
    assert_trees_equal(after.state, ts.state)
    net = fnn.prune(fnn.dense(4), 0.5)
    kernel = fnn.merge(net, after.params, after.state, (1, 4))[0]["kernel"]
    assert (kernel == 0).sum() == 8


@pytest.mark.bits
def test_first_values_are_those_of_the_layer_alone():
    plain, _ = fnn.serial(fnn.dense(4), fnn.dense(3)).init(key(0), (1, 4))
    _, state = fnn.frozen(fnn.serial(fnn.dense(4), fnn.dense(3))).init(key(0), (1, 4))
    assert_trees_equal(state["(frozen)"], plain)
    net = fnn.lora(fnn.serial(fnn.dense(4), fnn.dense(3)), 2)
    assert_trees_equal(net.init(key(0), (1, 4))[1]["(frozen)"]["base"], plain)
    jitted = jax.jit(lambda k: net.init(k, (1, 4)))(key(0))
    assert_trees_equal(jitted, net.init(key(0), (1, 4)))
    params, state = fnn.prune(fnn.dense(4), 0.5).init(key(0), (1, 4))
    kept = np.asarray(state["(frozen)"]["kernel"]["mask"])
    value = np.abs(np.asarray(params["kernel"]["value"]))
    assert value[kept].min() > value[~kept].max()  # the mask is of these very values


def test_a_frozen_layer_runs_in_evaluation_mode():
    net = fnn.serial(body=fnn.frozen(inner()), head=fnn.dense(2))
    params, state = net.init(key(0), (6, 4))
    x = normal(6, 4)
    y, after = net.apply(params, state, x, key=key(1), train=True)
    np.testing.assert_array_equal(y, net(params, x, state=state))
    assert all(a is b for a, b in zip(*map(jax.tree.leaves, (state, after)), strict=True))
    free = fnn.serial(body=fnn.frozen(inner(), "dense1/*"), head=fnn.dense(2))
    params, state = free.init(key(0), (6, 4))
    _, after = free.apply(params, state, x, key=key(1), train=True)
    assert_trees_equal(after["body"]["(frozen)"], state["body"]["(frozen)"])
    assert (after["body"]["batch_norm1"]["mean"] != 0).any()


def test_map_swap_and_tap_keep_what_is_frozen():
    net = fnn.serial(body=fnn.frozen(inner()), head=fnn.dense(2))
    swapped = fnn.swap(net, {"body/tanh_1": jnp.sin})
    params, state = swapped.init(key(0), (6, 4))
    assert set(params) == {"head"}
    (_, seen), after = fnn.tap(swapped, "body/dense1").apply(
        params, state, normal(6, 4), key=key(1), train=True
    )
    assert_trees_equal(after, state)
    assert seen["body/dense1"].shape == (6, 4)
    found = fnn.analysis.summary(swapped, (6, 4))
    assert found.frozen == 4 * 4 + 4 + 8 and found.params == found.frozen + 10


def test_mistakes_are_named():
    net = fnn.serial(body=fnn.frozen(fnn.dense(4)), head=fnn.dense(2))
    params, state = net.init(key(0), (1, 4))
    with pytest.raises(errors.ParamsError, match="body: .* the state holds frozen params"):
        net(params, normal(1, 4))
    with pytest.raises(errors.OptionError, match="frozen: .*patterns of params"):
        fnn.frozen(fnn.dense(3), "dense7/*").init(key(0), (1, 4))
    with pytest.raises(errors.OptionError, match="frozen: .*kinds of params"):
        fnn.frozen(fnn.dense(3), kinds=("scale",)).init(key(0), (1, 4))
    with pytest.raises(errors.ParamsError, match="unmerge: .*head"):
        fnn.unmerge(net, params, {}, (1, 4))
    with pytest.raises(errors.RandomKeyError):
        fnn.unmerge(fnn.lora(fnn.dense(3), 2), fnn.dense(3).init(key(0), (1, 4))[0], {}, (1, 4))


def test_lora_forms_no_gradient_and_no_moments_of_its_base():
    """Against full fine-tuning, by the compiler's account of what a step keeps and needs."""

    def bytes_of(net):
        tx = optim.adam(1e-3)
        ts = jax.eval_shape(lambda k: fnn.train.init(net, tx, k, (1, 512)), key(0))
        step = fnn.train.step(fnn.train.supervised(net, squared_error, names=("x", "y")), tx)
        batch = {name: jax.ShapeDtypeStruct((8, 512), jnp.float32) for name in "xy"}
        memory = jax.jit(step).lower(ts, batch).compile().memory_analysis()
        moments = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(ts.opt_state))
        return moments, memory.temp_size_in_bytes

    full, low = bytes_of(fnn.dense(512)), bytes_of(fnn.lora(fnn.dense(512), 4))
    kernel = 512 * 512 * 4
    assert full[0] > 2 * kernel and low[0] < kernel / 8
    assert low[1] < 2 * kernel  # w0 + a b, and no more; a gradient of w would be a third


def test_frozen_and_adapted_cells_keep_their_carries():
    plain = fnn.rnn(fnn.cells.lstm(3, learned_carry=True))
    params, _ = plain.init(key(3), (2, 5, 4))
    params = jax.tree.map(lambda p: p + 0.3, params)  # so that the carry counts
    x = normal(2, 5, 4)
    for cell in (fnn.frozen(fnn.cells.lstm(3, learned_carry=True)),
                 fnn.lora(fnn.cells.lstm(3, learned_carry=True), 2)):  # fmt: skip
        net = fnn.rnn(cell)
        own, state = fnn.unmerge(net, params, {}, x, key=key(1))
        np.testing.assert_allclose(net(own, x, state=state), plain(params, x), rtol=1e-6)
    writer = fnn.cells.serial(fnn.embedding(7, 4), fnn.lora(fnn.cells.gru(8), 2), fnn.dense(7))
    params, state = writer.init(key(0), None, asarray([0]))
    blank = jnp.zeros((1, 4), jnp.int32)
    options = {"lengths": asarray([1]), "temperature": 0}
    text = fnn.unroll_generate(writer, params, blank, state=state, **options)
    same = fnn.cells.serial(fnn.embedding(7, 4), fnn.cells.gru(8), fnn.dense(7))
    merged, _ = fnn.merge(writer, params, state, None, asarray([0]))
    np.testing.assert_allclose(
        text.y, fnn.unroll_generate(same, merged, blank, **options).y, rtol=1e-5, atol=1e-6
    )


def test_frozen_params_are_not_taken_from_params():
    params, _ = fnn.dense(4).init(key(0), (1, 4))
    for net in (fnn.frozen(fnn.dense(4)), fnn.serial(body=fnn.frozen(fnn.dense(4)))):
        given = params if not net.children else {"body": params}
        with pytest.raises(errors.ParamsError, match="fnn.unmerge"):
            net(given, normal(2, 4))
