"""Training on eight devices is training on one; nothing moves, nothing is computed twice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.sharding import MEGATRON

pytestmark = pytest.mark.cpu
N = 16  # of a batch
CNN = fnn.serial(
    fnn.conv(8, (3, 3)), fnn.batch_norm(), jax.nn.relu, fnn.max_pool((2, 2)), fnn.flatten(3),
    fnn.dense(32), jax.nn.relu, fnn.dropout(0.3), fnn.dense(4),
)  # fmt: skip
LSTM = fnn.serial(fnn.lstm(16, return_sequence=False), fnn.dense(4))
TRANSFORMER = fnn.serial(
    fnn.embedding(32, 16),
    fnn.repeat(fnn.transformer_block(16, 4, causal=True, rate=0.1), 3),
    fnn.layer_norm(),
    lambda x: x[..., -1, :],
    fnn.dense(4),
)
RANDOM = np.random.default_rng(0)
NETS = {
    "cnn": (CNN, RANDOM.normal(size=(N, 8, 8, 3)).astype("f4")),
    "lstm": (LSTM, RANDOM.normal(size=(N, 6, 8)).astype("f4")),
    "transformer": (TRANSFORMER, RANDOM.integers(0, 32, (N, 6)).astype("i4")),
}
LABELS = RANDOM.integers(0, 4, N).astype("i4")
PLACES = {
    "data": ({"data": 8}, {}),
    "full": ({"data": 8}, {"fsdp": "data", "least": 1}),
    "tensor": ({"data": 1, "model": 4}, {"rules": MEGATRON}),
    "full and tensor": ({"data": 2, "model": 4}, {"fsdp": "data", "rules": MEGATRON, "least": 1}),
}


def placed_on(net, tx, x, sizes, options):
    count = int(np.prod(list(sizes.values())))
    mesh = fnn.sharding.mesh(devices=jax.devices()[:count], **sizes)
    return fnn.sharding.plan(mesh, net, tx, x, **options)


def step_of(net, tx, **options):
    return fnn.train.step(
        fnn.train.supervised(net, fnn.losses.softmax_cross_entropy), tx, **options
    )


CASES = [
    (net, place) for net in NETS for place in PLACES
    if "tensor" not in place or net == "transformer"
]  # fmt: skip


@pytest.mark.parametrize(("name", "place"), CASES)
def test_twenty_steps_are_those_of_one_device(name, place):
    net, x = NETS[name]
    tx, key, batch = fnn.optim.sgd(0.05), jax.random.key(1), {"image": x, "label": LABELS}
    placed = placed_on(net, tx, x, *PLACES[place])
    alone, step = step_of(net, tx), step_of(net, tx, shardings=placed)
    want, got = fnn.train.init(net, tx, key, x), fnn.train.init(net, tx, key, x, shardings=placed)
    wanted = [s.spec for s in jax.tree.leaves(placed.train_state)]
    for _ in range(20):
        want, theirs = alone(want, batch)
        got, metrics = step(got, batch)
        np.testing.assert_allclose(metrics["loss"], theirs["loss"], atol=1e-6)
    for (keys, a), b, spec in zip(
        jax.tree_util.tree_leaves_with_path(want._replace(key=None)),
        jax.tree.leaves(got._replace(key=None)), wanted, strict=False,
    ):  # fmt: skip
        path = jax.tree_util.keystr(keys)
        np.testing.assert_allclose(a, b, atol=1e-6, err_msg=path)
        assert b.sharding.is_equivalent_to(jax.NamedSharding(placed.mesh, spec), b.ndim), path


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


@pytest.mark.parametrize("place", PLACES)
def test_four_steps_compile_once(place):
    tx = fnn.optim.adam(1e-3)
    placed = placed_on(TRANSFORMER, tx, NETS["transformer"][1], *PLACES[place])
    traced = []

    def loss_fn(params, state, batch, key):
        traced.append(1)
        loss = fnn.train.supervised(TRANSFORMER, fnn.losses.softmax_cross_entropy)
        return loss(params, state, batch, key)

    step = fnn.train.step(loss_fn, tx, shardings=placed)
    x = NETS["transformer"][1]
    ts = fnn.train.init(TRANSFORMER, tx, jax.random.key(0), x, shardings=placed)
    with jax.log_compiles():
        for _ in range(4):
            ts, _ = step(ts, (x, LABELS))
    assert len(traced) == 1


def flops(fn, *args):
    return jax.jit(fn).lower(*args).compile().cost_analysis()["flops"]


def test_no_device_computes_what_another_does():
    """FLOPs of one device's program, of a step and of a run over resident data."""
    net = fnn.serial(fnn.dense(256), jax.nn.relu, fnn.dense(256), jax.nn.relu, fnn.dense(4))
    x, labels = np.ones((64, 128), "f4"), np.zeros(64, "i4")
    tx, key = fnn.optim.sgd(0.1), jax.random.key(0)
    placed = placed_on(net, tx, x, {"data": 8}, {"fsdp": "data"})
    alone, step = step_of(net, tx), step_of(net, tx, shardings=placed)
    one = fnn.train.init(net, tx, key, x)
    ts = fnn.train.init(net, tx, key, x, shardings=placed)
    host = {"image": x, "label": labels}
    want = flops(alone, one, host)
    assert flops(step, ts, placed.put(host)) < 1.1 / 8 * want

    def run(ts, data, step):
        return fnn.train.run(step, ts, data, steps=1, batch_size=64)

    whole = flops(lambda ts, data: run(ts, data, alone), one, host)
    assert flops(lambda ts, data: run(ts, data, step), ts, host) < 1.1 / 8 * whole


@pytest.mark.parametrize("driver", ["loop", "chunk", "scan"])
def test_fit_and_run_are_those_of_one_device(driver):
    net, tx, key = CNN, fnn.optim.sgd(0.05), jax.random.key(2)
    x = RANDOM.normal(size=(40, 8, 8, 3)).astype("f4")
    data = {"image": x, "label": RANDOM.integers(0, 4, 40).astype("i4")}
    placed = placed_on(net, tx, x, {"data": 8}, {"fsdp": "data", "least": 1})
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


def trained(place, x, labels):
    ts = fnn.train.init(LSTM, fnn.optim.adam(1e-2), jax.random.key(3), x, shardings=place)
    return step_of(LSTM, fnn.optim.adam(1e-2), shardings=place)(ts, (x, labels))[0]


def test_an_evaluator_gives_every_device_its_part():
    x, labels = np.tile(NETS["lstm"][1], (3, 1, 1))[:40], np.tile(LABELS, 3)[:40]
    placed = placed_on(LSTM, fnn.optim.adam(1e-2), x, {"data": 8}, {"fsdp": "data", "least": 1})
    measures = {"loss": fnn.losses.softmax_cross_entropy, "accuracy": fnn.metrics.accuracy()}
    data, found = {"image": x, "label": labels}, []
    for place in (None, placed):
        evaluate = fnn.train.evaluator(LSTM, data, measures, batch_size=16, shardings=place)
        found.append(evaluate(trained(place, x, labels)))
    assert found[0].keys() == found[1].keys()
    for name in measures:
        np.testing.assert_allclose(found[1][name], found[0][name], atol=1e-6)


def test_a_stream_brings_batches_to_where_they_are_needed():
    x = NETS["lstm"][1]
    tx = fnn.optim.sgd(0.05)
    placed = placed_on(LSTM, tx, x, {"data": 8}, {})
    source = {"image": np.tile(x, (2, 1, 1)), "label": np.tile(LABELS, 2)}
    key = jax.random.key(0)
    there = fnn.data.stream(source, 16, key, device=placed.batch_sharding)
    here = fnn.data.stream(source, 16, key, device=False)
    found = []
    for place, stream in ((None, here), (placed, there)):
        ts = fnn.train.init(LSTM, tx, key, x, shardings=place)
        step = step_of(LSTM, tx, shardings=place)
        ts, history = fnn.train.fit(step, ts, stream, epochs=2, progress=False)
        found.append(history["train"]["loss"])
    np.testing.assert_allclose(*found, atol=1e-6)
    assert next(there(0))["image"].sharding.is_equivalent_to(placed.batch_sharding, 3)


def test_a_checkpoint_comes_back_to_its_place_and_to_another(tmp_path):
    x = NETS["lstm"][1]
    tx = fnn.optim.adam(1e-2)
    full = placed_on(LSTM, tx, x, {"data": 8}, {"fsdp": "data", "least": 1})
    fewer = placed_on(LSTM, tx, x, {"data": 4}, {"fsdp": "data", "least": 1})
    ts = trained(full, x, LABELS)
    fnn.checkpoint.save(tmp_path / "one", ts)
    for place in (full, fewer):
        back = fnn.checkpoint.restore(tmp_path / "one", place.shapes, shardings=place.train_state)
        for a, b, sharding in zip(
            *map(jax.tree.leaves, (ts, back, place.train_state)), strict=True
        ):
            assert b.sharding.is_equivalent_to(sharding, b.ndim)
            if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
                np.testing.assert_array_equal(a, b)
