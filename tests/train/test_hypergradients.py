"""Gradients through runs: of rates, schedules, first values and weights of the data."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import errors
from tests.support import asarray

N, SIZE, STEPS = 23, 5, 9
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(N, 4))
HYPER = {
    "rate": np.array(0.02),
    "schedule": np.array([1.0, 0.5, 0.8]),
    "scale": np.array(1.3),
    "weights": RANDOM.uniform(0.5, 1.5, size=N),
}


def final_loss(hyper, **options):
    """The loss on held-out data after a run, with everything about the run in `hyper`."""
    dtype = hyper["scale"].dtype
    net = fnn.serial(fnn.dense(5), jnp.tanh, fnn.dropout(0.2), fnn.dense(3))
    data = {
        "image": asarray(X, dtype),
        "label": jnp.arange(N) % 3,
        "weight": hyper["weights"],
    }

    def rate(count):
        knots = jnp.linspace(0.0, STEPS, len(hyper["schedule"]), dtype=dtype)
        return hyper["rate"] * jnp.interp(count.astype(dtype), knots, hyper["schedule"])

    def loss_fn(params, state, batch, key):
        logits, state = net.apply(params, state, batch["image"], key=key, train=True)
        losses = fnn.losses.softmax_cross_entropy(logits, batch["label"])
        return jnp.mean(losses * batch["weight"]), (state, {})

    tx = fnn.optim.adam(rate)
    ts = fnn.train.init(net, tx, jax.random.key(0), jax.ShapeDtypeStruct((1, 4), dtype))
    params = jax.tree.map(lambda a: a * hyper["scale"], ts.params)
    ts = ts._replace(params=params, opt_state=tx.init(params))
    step = fnn.train.step(loss_fn, tx)
    ts, _ = fnn.train.run(step, ts, data, steps=STEPS, batch_size=SIZE, **options)
    held_out = asarray(np.random.default_rng(1).normal(size=(7, 4)), dtype)
    return jnp.mean(fnn.losses.softmax_cross_entropy(net(ts.params, held_out), jnp.arange(7) % 3))


MODES = {
    "reverse": (jax.value_and_grad, {}),
    "reverse, a state in 4": (jax.value_and_grad, {"checkpoint_every": 4}),
    "forward": (fnn.train.forward_value_and_grad, {}),
}


@functools.cache
def compiled(mode):
    grad, options = MODES[mode]
    return jax.jit(grad(functools.partial(final_loss, **options)))


def test_every_mode_is_the_difference():
    with jax.enable_x64(True):
        hyper, loss = jax.tree.map(asarray, HYPER), jax.jit(final_loss)
        found = {mode: compiled(mode)(hyper) for mode in MODES}
        random, h = np.random.default_rng(0), 1e-6
        for _ in range(4):
            along = jax.tree.map(lambda a: random.normal(size=a.shape), hyper)
            ahead = loss(jax.tree.map(lambda a, d: a + h * d, hyper, along))
            behind = loss(jax.tree.map(lambda a, d: a - h * d, hyper, along))
            for mode, (value, grads) in found.items():
                slope = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, grads, along)))
                numeric = (ahead - behind) / (2 * h)
                np.testing.assert_allclose(slope, numeric, rtol=2e-5, err_msg=mode)
                np.testing.assert_allclose(value, loss(hyper), rtol=1e-12)


@pytest.mark.parametrize("name", ["rate", "weights"])
def test_a_rate_of_zero_and_gradients_of_zero_have_finite_hypergradients(name):
    with jax.enable_x64(True):
        hyper = jax.tree.map(asarray, HYPER | {name: np.zeros_like(HYPER[name])})
        for mode in MODES:
            assert all(jnp.isfinite(a).all() for a in jax.tree.leaves(compiled(mode)(hyper))), mode


def test_checkpoints_keep_less():
    """By the compiler's own account of the memory that the gradient needs."""

    def need(**options):
        hyper = jax.tree.map(jnp.float32, HYPER)
        program = jax.jit(jax.grad(lambda h: long(h, **options))).lower(hyper).compile()
        return program.memory_analysis().temp_size_in_bytes

    def long(hyper, **options):
        net, tx = fnn.dense(50), fnn.optim.adam(hyper["rate"])
        ts = fnn.train.init(net, tx, jax.random.key(0), (1, 50))
        loss = fnn.train.supervised(net, fnn.losses.squared_error)
        data = jnp.ones((10, 50)), jnp.ones((10, 50))
        step = fnn.train.step(loss, tx)
        _, history = fnn.train.run(step, ts, data, steps=400, batch_size=10, **options)
        return history["train"]["loss"][-1]

    assert need(checkpoint_every=20) < need() / 5


def test_aux_and_arguments_pass():
    def fn(x, y, z):
        return jnp.sum(x["a"] ** 2) * y, {"z": 2 * z}

    x = {"a": asarray([1.0, 2.0])}
    (value, aux), grads = fnn.train.forward_value_and_grad(fn, has_aux=True)(x, 3.0, 4)
    assert value == 15 and aux == {"z": 8}
    np.testing.assert_allclose(grads["a"], [6.0, 12.0])


def test_it_replaces_value_and_grad():
    net, tx, data = fnn.dense(2), fnn.optim.sgd(0.1), (jnp.ones((3, 4)), jnp.ones((3, 2)))
    loss = fnn.train.supervised(net, fnn.losses.squared_error)
    ts = fnn.train.init(net, tx, jax.random.key(0), (1, 4))
    one, _ = fnn.train.step(loss, tx)(ts, data)
    two, _ = fnn.train.step(loss, tx, grad=fnn.train.forward_value_and_grad)(ts, data)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), one.params, two.params)


@pytest.mark.parametrize(
    ("fn", "x", "kind", "text"),
    [
        (lambda x: x, jnp.ones(3), errors.ShapeError, "a scalar"),
        (lambda x: 1.0 * x, 3, errors.DtypeError, "float"),
        (3, 1.0, errors.OptionError, "a function"),
    ],
)
def test_wrong_inputs_are_refused(fn, x, kind, text):
    with pytest.raises(kind, match=text):
        fnn.train.forward_value_and_grad(fn)(x)
