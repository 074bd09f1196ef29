"""The step, the loop and the promises of purity."""

import hashlib
import os
import pathlib
import subprocess
import sys
import zlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fnn
from fnn import errors, train

ROOT = pathlib.Path(__file__).parents[2]


def dense_net():
    return fnn.serial(fnn.dense(8), jnp.tanh, fnn.dropout(0.2), fnn.dense(3))


def conv_net():
    return fnn.serial(
        fnn.conv(4, (3, 3)), fnn.batch_norm(), jax.nn.relu, fnn.max_pool((2, 2)), fnn.flatten(3),
        fnn.dense(3),
    )  # fmt: skip


def data(shape=(4,), n=24):
    x = jax.random.normal(jax.random.key(8), (n, *shape))
    return {"image": np.asarray(x), "label": np.arange(n) % 3}


def setup(net=None, tx=None, shape=(4,)):
    net, tx = net or dense_net(), tx or fnn.optim.adam(1e-2)
    loss_fn = train.supervised(
        net, fnn.losses.softmax_cross_entropy, {"accuracy": fnn.metrics.accuracy()}
    )
    return train.init(net, tx, jax.random.key(0), (1, *shape)), train.step(loss_fn, tx)


def assert_same_bits(one, two):
    for a, b in zip(*map(jax.tree.leaves, (one, two)), strict=True):
        a, b = (jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
                for x in (a, b))  # fmt: skip
        assert a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()


# --- the step


def test_a_step_is_the_formula():
    """Least squares by gradient descent, against the closed form of one step in float64."""
    net, tx = fnn.dense(2), fnn.optim.sgd(0.1)

    def loss_fn(params, state, batch, key):
        x, y = batch
        return jnp.mean((net(params, x) - y) ** 2), (state, {"twice": jnp.float32(2)})

    ts = train.init(net, tx, jax.random.key(0), (1, 3))
    x, y = (
        np.asarray(jax.random.normal(jax.random.key(i), s)) for i, s in ((1, (5, 3)), (2, (5, 2)))
    )
    new, metrics = train.step(loss_fn, tx)(ts, (x, y))
    w, b = (np.asarray(ts.params[n], np.float64) for n in ("kernel", "bias"))
    error = x @ w + b - y
    np.testing.assert_allclose(metrics["loss"], np.mean(error**2), rtol=1e-5)
    np.testing.assert_allclose(new.params["kernel"], w - 0.1 * x.T @ error * 2 / 10, rtol=1e-4)
    np.testing.assert_allclose(new.params["bias"], b - 0.1 * error.sum(0) * 2 / 10, rtol=1e-4)
    assert new.step == 1 and metrics["twice"] == 2 and ts.step == 0


def test_init_is_the_networks_own():
    ts, _ = setup()
    assert_same_bits(ts.params, dense_net().init(jax.random.key(0), (1, 4))[0])


def test_adam_step_equals_optax():
    net = dense_net()
    ours, _ = setup(net, fnn.optim.adam(1e-2))
    theirs, _ = setup(net, optax.adam(1e-2))

    def loss_fn(params, state, batch, key):
        return jnp.mean(net(params, batch) ** 2), (state, {})

    x = data()["image"]
    for _ in range(5):
        ours, _ = train.step(loss_fn, fnn.optim.adam(1e-2))(ours, x)
        with jax.numpy_dtype_promotion("standard"):  # which optax needs
            theirs, _ = train.step(loss_fn, optax.adam(1e-2))(theirs, x)
    chex.assert_trees_all_close(ours.params, theirs.params, rtol=1e-5, atol=1e-6)


def test_the_step_gives_the_transform_value_grad_and_value_fn():
    seen = {}

    def update(grads, opt_state, params=None, *, value, grad, value_fn):
        seen["same"] = grad is grads
        return jax.tree.map(lambda g: -0.1 * g, grads), (value, value_fn(params))

    def update_all(grads, opt_state, params=None, **extra):
        return update(grads, opt_state, params, **extra)

    tx = fnn.optim.Transform(lambda params: (jnp.zeros(()), jnp.zeros(())), update_all)
    ts, step = setup(tx=tx)
    ts, metrics = step(ts, data())
    assert seen["same"] and ts.opt_state[0] == metrics["loss"] == ts.opt_state[1]


def test_state_and_randomness_move_on():
    ts, step = setup(conv_net(), shape=(4, 4, 1))
    one, _ = step(ts, data((4, 4, 1)))
    assert not jnp.array_equal(one.state["batch_norm1"]["mean"], ts.state["batch_norm1"]["mean"])
    net = fnn.serial(drop=fnn.dropout(0.5), head=fnn.dense(1, kernel_init=fnn.initializers.ones))

    def loss_fn(params, state, batch, key):
        y, state = net.apply(params, state, batch, key=key, train=True)
        return jnp.sum(y), (state, {})

    tx = fnn.optim.sgd(0.0)
    ts, step = train.init(net, tx, jax.random.key(0), (1, 64)), train.step(loss_fn, tx)
    losses = []
    for _ in range(3):
        ts, metrics = step(ts, jnp.ones((1, 64)))
        losses.append(float(metrics["loss"]))
    assert len(set(losses)) > 1  # a new mask each step


def test_an_ensemble_is_a_vmapped_step():
    net, tx = dense_net(), fnn.optim.adam(1e-2)
    _, step = setup(net, tx)
    keys = jax.random.split(jax.random.key(1), 3)
    many = jax.vmap(lambda key: train.init(net, tx, key, (1, 4)))(keys)
    batch = data()
    together, metrics = jax.vmap(step, in_axes=(0, None))(many, batch)
    for i in range(3):
        alone, own = step(train.init(net, tx, keys[i], (1, 4)), batch)
        np.testing.assert_allclose(metrics["loss"][i], own["loss"], rtol=1e-5)
        lane = jax.tree.map(lambda a, i=i: a[i], together.params)
        chex.assert_trees_all_close(lane, alone.params, rtol=1e-4, atol=1e-5)


def scan_and_loop():
    ts, step = setup()
    batches = jax.tree.map(lambda x: jnp.stack([x] * 6), data())
    scanned, metrics = jax.jit(lambda ts: jax.lax.scan(step, ts, batches))(ts)
    for _ in range(6):
        ts, last = step(ts, data())
    assert_same_bits((scanned, metrics["loss"][-1]), (ts, last["loss"]))


def test_a_scan_of_steps_equals_the_loop_bitwise():
    """In programs compiled as a user's are: those that `make test` compiles faster differ."""
    python("from tests.train import test_train; test_train.scan_and_loop()", XLA_FLAGS="")


def test_the_learning_rate_is_data():
    net = dense_net()

    def final(rate):
        ts, step = setup(net, fnn.optim.adam(rate))
        for _ in range(3):
            ts, metrics = step(ts, data())
        return metrics["loss"]

    rates = jnp.array([1e-3, 1e-1])
    np.testing.assert_allclose(jax.vmap(final)(rates), [final(r) for r in rates], rtol=1e-4)
    slope = jax.grad(final)(0.01)
    numeric = (final(0.01 + 1e-3) - final(0.01 - 1e-3)) / 2e-3
    np.testing.assert_allclose(slope, numeric, rtol=0.02)


def test_the_steps_errors():
    ts, _ = setup()
    tx = fnn.optim.adam(1e-2)

    def unreduced(params, state, batch, key):
        return jnp.zeros(3), (state, {})

    with pytest.raises(errors.ShapeError, match=r"scalar loss.*jnp.mean"):
        train.step(unreduced, tx)(ts, None)
    twice = train.step(lambda p, s, b, k: (jnp.zeros(()), (s, {"loss": 1.0})), tx)
    with pytest.raises(errors.ParamsError, match="another name"):
        twice(ts, None)
    with pytest.raises(errors.InputError, match="image, label.*names="):
        setup()[1](ts, {"image": jnp.ones((2, 4))})
    with pytest.raises(errors.InputError, match="pair"):
        setup()[1](ts, jnp.ones((2, 4)))


def test_what_a_loss_function_returns():
    ts, _ = setup()
    tx = fnn.optim.adam(1e-2)
    zero = jnp.zeros(())
    for wrong in (zero, (zero, {}), (zero, {}, {}), (zero, ({}, {}, {}))):
        with pytest.raises(errors.InputError, match=r"loss_fn to return \(loss, \(state, metrics"):
            train.step(lambda p, s, b, k, w=wrong: w, tx)(ts, None)
    with pytest.raises(errors.ParamsError, match="before the metrics"):
        train.step(lambda p, s, b, k: (zero, ({"mae": zero}, s)), tx)(ts, None)
    with pytest.raises(errors.InputError, match="a TrainState"):
        setup()[1](ts.params, data())
    with pytest.raises(errors.OptionError, match="transform"):
        train.init(dense_net(), 1e-3, jax.random.key(0), (1, 4))
    with pytest.raises(errors.InputError, match="metrics to be a dict"):
        train.supervised(dense_net(), fnn.losses.softmax_cross_entropy, [fnn.metrics.accuracy()])


def test_a_legacy_key_trains_the_same():
    net, tx = dense_net(), fnn.optim.adam(1e-2)
    _, step = setup(net, tx)
    one, two = (
        fit(train.init(net, tx, key, (1, 4)), step, 1)[0]
        for key in (jax.random.key(3), jax.random.PRNGKey(3))
    )
    assert_same_bits(one, two)


# --- fit


def fit(ts, step, epochs, **options):
    return train.fit(step, ts, data(), epochs=epochs, batch_size=5, progress=False, **options)


def test_fit_is_the_loop_over_batches():
    ts, step = setup()
    fitted, history = fit(ts, step, 2)
    seen = []
    for epoch in range(2):
        key = jax.random.fold_in(ts.key, zlib.crc32(b"data"))
        for batch in fnn.data.batches(data(), 5, key=key, epoch=epoch):
            ts, metrics = step(ts, batch)
            seen.append(metrics["loss"])
    assert_same_bits(fitted, ts)
    assert history["train"]["loss"].tolist() == [float(loss) for loss in seen]
    assert len(seen) == 8 and history["eval"] == {}


def test_one_and_one_epochs_are_two_bitwise():
    ts, step = setup(conv_net(), shape=(4, 4, 1))
    images = data((4, 4, 1))
    options = {"batch_size": 5, "progress": False}
    both, history = train.fit(step, ts, images, epochs=2, **options)
    half, first = train.fit(step, ts, images, epochs=1, **options)
    again, second = train.fit(step, half, images, epochs=1, **options)
    assert_same_bits(again, both)
    assert [*first["train"]["loss"], *second["train"]["loss"]] == [*history["train"]["loss"]]


def test_resuming_in_the_middle_of_an_epoch():
    ts, step = setup()
    both, _ = fit(ts, step, 2)
    key = jax.random.fold_in(ts.key, zlib.crc32(b"data"))
    early = ts
    for batch in list(fnn.data.batches(data(), 5, key=key, epoch=0))[:3]:
        early, _ = step(early, batch)
    late, _ = fit(early, step, 1)  # one epoch's worth: the last of epoch 0, three of epoch 1
    last = list(fnn.data.batches(data(), 5, key=key, epoch=1))[3]
    assert_same_bits(step(late, last)[0], both)


def test_batches_from_a_function_of_the_epoch():
    ts, step = setup()
    epochs = []

    def batches(epoch):
        epochs.append(epoch)
        yield from [data()] * 3

    after, history = train.fit(step, ts, batches, epochs=2, progress=False)
    assert epochs == [0, 1] and after.step == 6 and history["train"]["accuracy"].shape == (6,)
    once = iter([data()])
    with pytest.raises(errors.InputError, match="none in epoch 1"):
        train.fit(step, ts, lambda epoch: once, epochs=2, progress=False)


def test_fits_errors():
    ts, step = setup()
    with pytest.raises(errors.OptionError, match="batch_size"):
        train.fit(step, ts, data(), epochs=1)
    with pytest.raises(errors.OptionError, match="at most the 24 examples"):
        train.fit(step, ts, data(), epochs=1, batch_size=25)
    with pytest.raises(errors.InputError, match="function of the epoch"):
        train.fit(step, ts, iter([data()]), epochs=1)
    with pytest.raises(errors.OptionError, match="epochs"):
        train.fit(step, ts, data(), epochs=-1, batch_size=5)
    assert fit(ts, step, 0)[0] is ts


def test_evaluation_counts_every_example_once():
    net = dense_net()
    ts, step = setup(net)
    metrics = {"accuracy": fnn.metrics.accuracy(), "loss": fnn.losses.softmax_cross_entropy}
    images, labels = data()["image"], data()["label"]
    logits = np.asarray(net(ts.params, images), np.float64)
    right = np.mean(logits.argmax(-1) == labels)
    shifted = logits - logits.max(-1, keepdims=True)
    loss = np.mean(np.log(np.exp(shifted).sum(-1)) - shifted[np.arange(24), labels])
    for batch_size in (1, 7, 24, 100):
        measured = train.evaluator(net, data(), metrics, batch_size=batch_size)(ts)
        np.testing.assert_allclose(measured["accuracy"], right, rtol=1e-6)
        np.testing.assert_allclose(measured["loss"], loss, rtol=1e-5)
    _, history = fit(ts, step, 3, evaluate=train.evaluator(net, data(), metrics))
    assert history["eval"]["accuracy"].shape == (3,)
    column = {"hit": lambda o, labels: (o.argmax(-1) == labels)[:, None]}
    measured = train.evaluator(net, data(), column, batch_size=7)(ts)
    np.testing.assert_allclose(measured["hit"], right, rtol=1e-6)
    with pytest.raises(errors.ShapeError, match="or of its first axes"):
        train.evaluator(net, data(), {"hit": lambda o, y: (o.argmax(-1) == y).mean()})(ts)
    with pytest.raises(errors.InputError, match="no examples"):
        train.evaluator(net, data(n=0), metrics)(ts)


def test_the_progress_bar(capsys):
    ts, step = setup()
    train.fit(step, ts, data(), epochs=1, batch_size=5)
    assert "4/4" in capsys.readouterr().err


def test_a_missing_tqdm_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    ts, step = setup()
    with pytest.raises(ImportError, match=r"pip install 'fnn\[progress\]'"):
        train.fit(step, ts, data(), epochs=1, batch_size=5)


# --- promises


TRAIN = """
import hashlib, jax, numpy as np, fnn
net = fnn.serial(fnn.conv(4, (3, 3)), fnn.batch_norm(), jax.nn.relu, fnn.max_pool((2, 2)),
                 fnn.flatten(3), fnn.dropout(0.5), fnn.dense(3))
tx = fnn.optim.adam(1e-2)
step = fnn.train.step(fnn.train.supervised(net, fnn.losses.softmax_cross_entropy), tx)
ts = fnn.train.init(net, tx, jax.random.key(0), (1, 8, 8, 1))
x = np.random.default_rng(0).normal(size=(40, 8, 8, 1)).astype(np.float32)
data = {"image": x, "label": np.arange(40) % 3}
ts, _ = fnn.train.fit(step, ts, data, epochs=3, batch_size=16, progress=False)
leaves = [np.asarray(a).tobytes() for a in jax.tree.leaves(ts.params)]
print(hashlib.sha256(b"".join(leaves)).hexdigest())
"""


def python(code, **env):
    command, env = [sys.executable, "-c", code], os.environ | env
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_another_process_gives_the_same_bits():
    one, two = python(TRAIN), python(TRAIN)
    assert one == two and len(one) == hashlib.sha256().digest_size * 2


def test_importing_fnn_imports_no_extra():
    heavy = ("optax", "flax", "tensorflow_datasets", "matplotlib", "tqdm", "PIL", "tensorflow")
    loaded = python(f"import sys, fnn; print([m for m in {heavy!r} if m in sys.modules])")
    assert loaded == "[]"


def test_the_example_runs(tmp_path):
    code = f"""
import sys, runpy, jax
sys.argv = ["mnist_cnn.py", "--data", "digits", "--epochs", "1", "--out", {str(tmp_path)!r}]
runpy.run_path("examples/mnist_cnn.py", run_name="__main__")
"""
    printed = python(code)
    assert "test accuracy" in printed and "parameters on" in printed
    assert {p.name for p in tmp_path.iterdir()} == {"curves.png", "mistakes.png"}
