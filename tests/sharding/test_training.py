"""Training on eight devices is training on one; nothing moves, nothing is computed twice."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

import fnn
from fnn.sharding import MEGATRON, SEQUENCE, constrained
from fnn.train.drivers import _program
from fnn.train.step import whole_beside

pytestmark = pytest.mark.cpu
N = 16  # of a batch
CNN = fnn.serial(
    fnn.conv(8, (3, 3)), fnn.batch_norm(), jax.nn.relu, fnn.max_pool((2, 2)), fnn.flatten(3),
    fnn.dense(16), jax.nn.relu, fnn.dropout(0.3), fnn.dense(4),
)  # fmt: skip
LSTM = fnn.serial(fnn.lstm(16, return_sequence=False), fnn.dense(4))
TRANSFORMER = fnn.serial(
    fnn.embedding(32, 16),
    fnn.repeat(fnn.transformer_block(16, 4, causal=True, rate=0.1), 2),
    lambda x: x[..., -1, :],
    fnn.dense(4),
)
EXPERT = fnn.serial(
    fnn.dense(16, axes=("in", "hidden")), jax.nn.gelu, fnn.dense(8, axes=("hidden", "out"))
)
EXPERTS = fnn.serial(fnn.moe(EXPERT, 8), lambda x: x[..., -1, :], fnn.dense(4))
RANDOM = np.random.default_rng(0)
NETS = {
    "cnn": (CNN, RANDOM.normal(size=(N, 8, 8, 3)).astype("f4")),
    "lstm": (LSTM, RANDOM.normal(size=(N, 6, 8)).astype("f4")),
    "transformer": (TRANSFORMER, RANDOM.integers(0, 32, (N, 6)).astype("i4")),
    "experts": (EXPERTS, RANDOM.normal(size=(N, 6, 8)).astype("f4")),
}
LABELS = RANDOM.integers(0, 4, N).astype("i4")
FULL = {"fsdp": "data", "least": 1}
PLACES = {
    "data": ({"data": 8}, {}),
    "full": ({"data": 8}, FULL),
    "tensor": ({"data": 1, "model": 4}, {"rules": MEGATRON}),
    "full and tensor": ({"data": 2, "model": 4}, {"rules": MEGATRON, **FULL}),
    "experts": ({"data": 2, "model": 4}, {"rules": [("*experts/*", {"stack": "model"})]}),
}
TENSOR = ("transformer", "experts")
CASES = [
    (net, place) for net in NETS for place in PLACES
    if ("tensor" not in place or net in TENSOR) and ("experts" not in place or net == "experts")
]  # fmt: skip


def placed_on(net, tx, x, sizes, options):
    count = int(np.prod(list(sizes.values())))
    mesh = fnn.sharding.mesh(devices=jax.devices()[:count], **sizes)
    return fnn.sharding.plan(mesh, net, tx, x, **options)


def step_of(net, tx, **options):
    return fnn.train.step(
        fnn.train.supervised(net, fnn.losses.softmax_cross_entropy), tx, **options
    )


def twenty_steps(net, x, placed, built=None):
    """The last training state, the losses, and how often the loss was traced."""
    tx, traced = fnn.optim.sgd(0.02, 0.5), []
    loss = fnn.train.supervised(built or net, fnn.losses.softmax_cross_entropy)

    def loss_fn(*args):
        traced.append(1)
        return loss(*args)

    ts, losses = fnn.train.init(net, tx, jax.random.key(1), x, shardings=placed), []
    step = fnn.train.step(loss_fn, tx, shardings=placed)
    for _ in range(20):
        ts, metrics = step(ts, {"image": x, "label": LABELS})
        losses.append(metrics["loss"])
    return ts._replace(key=None), np.asarray(losses), len(traced)


@functools.cache
def alone(name):
    return twenty_steps(*NETS[name], None)


def check_steps(name, placed, built=None):
    want, losses, _ = alone(name)
    got, theirs, traced = twenty_steps(*NETS[name], placed, built)
    assert traced == 1
    np.testing.assert_allclose(theirs, losses, atol=1e-6)
    for (keys, a), b, sharding in zip(
        jax.tree_util.tree_leaves_with_path(want), jax.tree.leaves(got),
        jax.tree.leaves(placed.train_state._replace(key=None)), strict=True,
    ):  # fmt: skip
        path = jax.tree_util.keystr(keys)
        np.testing.assert_allclose(a, b, atol=1e-6, err_msg=path)
        assert b.sharding.is_equivalent_to(sharding, b.ndim), path


@pytest.mark.parametrize(("name", "place"), CASES)
def test_twenty_steps_are_those_of_one_device(name, place):
    """In value, where they lie, and compiled once."""
    net, x = NETS[name]
    check_steps(name, placed_on(net, fnn.optim.sgd(0.02, 0.5), x, *PLACES[place]))


@pytest.mark.bits
@pytest.mark.parametrize(("name", "place"), CASES)
def test_first_values_are_the_same_to_the_bit(name, place):
    net, x = NETS[name]
    tx, key = fnn.optim.adam(0.05), jax.random.key(1)
    placed = placed_on(net, tx, x, *PLACES[place])
    alone = fnn.train.init(net, tx, key, x)
    born = fnn.train.init(net, tx, key, x, shardings=placed)
    assert jax.random.key_data(alone.key).tolist() == jax.random.key_data(born.key).tolist()
    trees = (ts._replace(key=None) for ts in (alone, born))
    jax.tree.map(np.testing.assert_array_equal, *trees)
    for x, sharding in zip(*map(jax.tree.leaves, (born, placed.train_state)), strict=True):
        assert x.sharding.is_equivalent_to(sharding, x.ndim)


def flops(fn, *args):
    return jax.jit(fn).lower(*args).compile().cost_analysis()["flops"]


MLP = fnn.serial(
    fnn.dense(256, axes=("in", "hidden")), jax.nn.relu, fnn.dense(256, axes=("hidden", "out"))
)
PARTS = {"one axis": ({"data": 8}, FULL), "two axes": PLACES["full and tensor"]}


@functools.cache
def work(parts):
    """FLOPs of a device's programs: a step, which fit's loop takes; its chunk or scan; a run."""
    x, tx = np.ones((64, 128), "f4"), fnn.optim.sgd(0.1)
    placed = None if parts is None else placed_on(MLP, tx, x, *PARTS[parts])
    step = step_of(MLP, tx, shardings=placed)
    ts = fnn.train.init(MLP, tx, jax.random.key(0), x, shardings=placed)
    host = {"image": x, "label": np.zeros(64, "i4")}
    data, rows = whole_beside(step, host), np.arange(64, dtype=np.int32)[None]

    def run(ts, data):
        return fnn.train.run(step, ts, data, steps=1, batch_size=64)

    return {
        "step": flops(step, ts, host if placed is None else placed.put(host)),
        "scan": flops(_program(step), ts, (data, rows)),
        "run": flops(run, ts, data),
    }


@pytest.mark.parametrize("parts", PARTS)
def test_no_device_computes_what_another_does(parts):
    for name, whole in work(None).items():
        assert work(parts)[name] < 1.1 / 8 * whole, name


SMALL = fnn.serial(fnn.dense(16), fnn.batch_norm(), jax.nn.relu, fnn.dropout(0.3), fnn.dense(4))
ROWS = RANDOM.normal(size=(40, 8)).astype("f4")
ROW_LABELS = RANDOM.integers(0, 4, 40).astype("i4")
DATA = {"image": ROWS, "label": ROW_LABELS}


@pytest.mark.parametrize("driver", ["loop", "chunk", "scan"])
def test_fit_and_run_are_those_of_one_device(driver):
    net, tx, key, x, data = SMALL, fnn.optim.sgd(0.05), jax.random.key(2), ROWS, DATA
    placed = placed_on(net, tx, x, {"data": 8}, FULL)
    options = dict(epochs=2, batch_size=16, driver=driver, progress=False, chunk=2)
    found = []
    for place in (None, placed):
        ts = fnn.train.init(net, tx, key, x, shardings=place)
        step = step_of(net, tx, shardings=place)
        ts, history = fnn.train.fit(step, ts, data, **options)
        found.append((ts.params, history["train"]["loss"]))
    for a, b in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_a_batch_that_the_devices_do_not_divide_is_refused():
    tx = fnn.optim.sgd(0.1)
    placed = placed_on(CNN, tx, NETS["cnn"][1], {"data": 8}, {})
    ts = fnn.train.init(CNN, tx, jax.random.key(0), NETS["cnn"][1], shardings=placed)
    batch = {"image": NETS["cnn"][1][:12], "label": LABELS[:12]}
    with pytest.raises(fnn.errors.ShapeError, match="batch/image.*multiple of 8"):
        step_of(CNN, tx, shardings=placed)(ts, batch)


def test_another_networks_training_state_is_refused():
    tx = fnn.optim.sgd(0.1)
    placed = placed_on(CNN, tx, NETS["cnn"][1], {"data": 8}, {})
    with pytest.raises(fnn.errors.InputError, match="plan"):
        fnn.train.init(LSTM, tx, jax.random.key(0), NETS["lstm"][1], shardings=placed)


# --- what else takes a placement


@functools.cache
def trained():
    """On one device, and fully sharded: the placement and the training state."""
    tx, found = fnn.optim.adam(1e-2), []
    for place in (None, placed_on(SMALL, tx, ROWS, {"data": 8}, FULL)):
        ts = fnn.train.init(SMALL, tx, jax.random.key(3), ROWS, shardings=place)
        found.append((place, step_of(SMALL, tx, shardings=place)(ts, (ROWS, ROW_LABELS))[0]))
    return found


def test_an_evaluator_gives_every_device_its_part():
    measures = {"loss": fnn.losses.softmax_cross_entropy, "accuracy": fnn.metrics.accuracy()}
    (_, ts), (placed, _) = trained()
    found = []
    for place, ts in ((None, ts), (placed, jax.device_put(ts, placed.train_state))):
        evaluate = fnn.train.evaluator(SMALL, DATA, measures, batch_size=16, shardings=place)
        found.append(evaluate(ts))
    assert found[0].keys() == found[1].keys()
    for name in measures:
        np.testing.assert_allclose(found[1][name], found[0][name], atol=1e-6)


def test_a_stream_brings_batches_to_where_they_are_needed():
    tx, key = fnn.optim.sgd(0.05), jax.random.key(0)
    placed = placed_on(SMALL, tx, ROWS, {"data": 8}, {})
    there = fnn.data.stream(DATA, 16, key, device=placed.batch_sharding)
    here = fnn.data.stream(DATA, 16, key, device=False)
    found = []
    for place, stream in ((None, here), (placed, there)):
        ts = fnn.train.init(SMALL, tx, key, ROWS, shardings=place)
        step = step_of(SMALL, tx, shardings=place)
        ts, history = fnn.train.fit(step, ts, stream, epochs=2, progress=False)
        found.append(history["train"]["loss"])
    np.testing.assert_allclose(*found, atol=1e-6)
    assert next(there(0))["image"].sharding.is_equivalent_to(placed.batch_sharding, 2)


def test_a_checkpoint_comes_back_to_its_place_and_to_another(tmp_path):
    """To fewer devices, and from data parallelism to full sharding and back, to the bit."""
    _, (full, ts) = trained()
    tx, half = fnn.optim.adam(1e-2), {"data": 4}
    places = [full, *(placed_on(SMALL, tx, ROWS, half, options) for options in (FULL, {}))]
    fnn.checkpoint.save(tmp_path / "one", ts)
    for place in places:
        back = fnn.checkpoint.restore(tmp_path / "one", place.shapes, shardings=place.train_state)
        for a, b, sharding in zip(
            *map(jax.tree.leaves, (ts, back, place.train_state)), strict=True
        ):
            assert b.sharding.is_equivalent_to(sharding, b.ndim)
            if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
                np.testing.assert_array_equal(a, b)


# --- where activations are


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


def test_full_sharding_gathers_params_and_no_activations():
    """With 23 positions, which no param has."""
    net = fnn.serial(
        fnn.embedding(32, 16),
        fnn.transformer_block(16, 4),
        fnn.dense(32, axes=("in", "vocabulary")),
    )
    found = moved(net, "full and tensor", (16, 23), np.zeros((16, 23), "i4"))
    assert found and {kind for kind, _ in found} == {"all-gather"}
    assert not [shape for _, shape in found if "23" in shape]


def test_constrained_layers_move_no_activations():
    """Else the way back through `flatten` brings features together from everywhere."""
    net = fnn.serial(fnn.dense(16), jax.nn.relu, fnn.flatten(2), fnn.dense(4))
    for built, kinds in ((None, {"all-gather", "all-to-all"}), (constrained, {"all-gather"})):
        found = moved(net, "full", (16, 8, 8), LABELS, built)
        assert {kind for kind, _ in found} == kinds
        assert ("[16,4]" in str(found)) == (built is None)  # [B, 4], of the gradient


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


# --- a mesh of explicit axes, and runs that share devices in a sweep


@pytest.mark.parametrize("name", ["cnn", "lstm", "transformer"])
def test_what_explicit_axes_refuse_names_the_mend(name):
    net, x = NETS[name]
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        x = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data")))

        def apply(key, x):
            return net.apply(*net.init(key, x), x, key=key, train=True)[0]

        with pytest.raises(fnn.errors.InputError, match="automatic axes.*auto_axes"):
            jax.eval_shape(apply, jax.random.key(0), x)
        mended = jax.sharding.auto_axes(apply, out_sharding=jax.P("data"))
        assert jax.eval_shape(mended, jax.random.key(0), x).shape == (N, 4)


def test_a_sweep_of_sharded_runs():
    """One after the other, and side by side, where lanes and runs share the devices."""
    placed = placed_on(SMALL, fnn.optim.sgd(0.1), ROWS, {"data": 8}, FULL)
    found, keys = [], jax.random.split(jax.random.key(0), 4)
    for place, strategy in ((None, "loop"), (placed, "loop"), (placed, "vmap")):

        def run_fn(key, rate, place=place):
            tx = fnn.optim.sgd(rate)
            ts = fnn.train.init(SMALL, tx, key, ROWS, shardings=place)
            step = step_of(SMALL, tx, shardings=place)
            return fnn.train.run(step, ts, DATA, steps=4, batch_size=16)[1]["train"]["loss"]

        grid, options = {"rate": [0.1, 0.2]}, dict(keys=keys, strategy=strategy, progress=False)
        found.append(fnn.search.sweep(run_fn, grid, **options).results)
    np.testing.assert_allclose(found[1], found[0], atol=1e-6)
    np.testing.assert_allclose(found[2], found[0], atol=1e-6)
