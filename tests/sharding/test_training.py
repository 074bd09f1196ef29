"""Training on eight devices is training on one; nothing moves, nothing is computed twice."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

import fnn
from fnn.train.drivers import _program, on_devices
from tests.sharding.support import (
    CASES,
    CNN,
    DATA,
    FULL,
    LABELS,
    LSTM,
    NETS,
    PLACES,
    ROW_LABELS,
    ROWS,
    SMALL,
    N,
    check_steps,
    placed_on,
    step_of,
)  # fmt: skip
from tests.support import but_full

pytestmark = pytest.mark.cpu
ALIKE = [(net, place) for net in ("experts", "transformer") for place in ("data", "full", "tensor")]


@pytest.mark.parametrize("case", but_full(CASES, ALIKE), ids="-".join)
def test_twenty_steps_are_those_of_one_device(case):
    """In value, where they lie, and compiled once."""
    name, place = case
    net, x = NETS[name]
    check_steps(name, placed_on(net, fnn.optim.sgd(0.02, 0.5), x, *PLACES[place]))


@pytest.mark.bits
@pytest.mark.parametrize("case", but_full(CASES, ALIKE), ids="-".join)
def test_first_values_are_the_same_to_the_bit(case):
    name, place = case
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


@pytest.mark.bits
def test_no_device_draws_large_params_whole():
    """Their bits are those of one device; a device has less than all of them while it draws."""
    net, tx = fnn.repeat(fnn.dense(1024, axes=("in", "hidden")), 4), fnn.optim.sgd(0.1)
    x, key = jax.ShapeDtypeStruct((8, 1024), jnp.float32), jax.random.key(3)
    alone = fnn.train.init(net, tx, key, x).params["kernel"]
    for sizes, options in (
        ({"data": 8}, {"fsdp": "data"}),
        ({"data": 2, "model": 4}, {"fsdp": "data", "rules": fnn.sharding.MEGATRON}),
    ):
        placed = placed_on(net, tx, x, sizes, options)
        program = (
            jax.jit(lambda key, placed=placed: fnn.train.init(net, tx, key, x, shardings=placed))
            .lower(key)
            .compile()
        )
        assert program.memory_analysis().temp_size_in_bytes < 2 / 3 * alone.nbytes
        np.testing.assert_array_equal(program(key).params["kernel"], alone)


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
    data, rows = on_devices(step, host), np.arange(64, dtype=np.int32)[None]
    assert len(data["image"].sharding.device_set) == (1 if placed is None else 8)

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


def test_no_device_computes_what_another_does_of_experts():
    expert = fnn.serial(fnn.dense(256), jax.nn.gelu, fnn.dense(64))
    net = fnn.serial(fnn.moe(expert, 8), lambda x: x[..., -1, :], fnn.dense(4))
    x, tx = np.ones((64, 16, 64), "f4"), fnn.optim.sgd(0.1)

    def work(placed):
        ts = fnn.train.init(net, tx, jax.random.key(0), x, shardings=placed)
        batch = {"image": x, "label": np.zeros(64, "i4")}
        batch = batch if placed is None else placed.put(batch)
        return flops(step_of(net, tx, shardings=placed), ts, batch)

    whole = work(None)
    for place in ("full", "experts"):
        assert work(placed_on(net, tx, x, *PLACES[place])) < 1.1 / 8 * whole, place


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
    (_, alone), (placed, _) = trained()
    found = []
    for place, ts in ((None, alone), (placed, jax.device_put(alone, placed.train_state))):
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

        grid, options = (
            {"rate": [0.1, 0.2]},
            dict(keys=keys, strategy=strategy, chunk=8, progress=False),
        )
        found.append(fnn.search.sweep(run_fn, grid, **options).results)
    np.testing.assert_allclose(found[1], found[0], atol=1e-6)
    np.testing.assert_allclose(found[2], found[0], atol=1e-6)
