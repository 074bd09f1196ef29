"""Layers, losses and optimizers under each of JAX's settings that a careful user may set."""

import contextlib
import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from tests.contracts.layers import HEAVY, LAYERS, inputs, total
from tests.optim.table import ROWS
from tests.support import but_full

QUICK = "FNN_QUICK" in os.environ
LAYER_SAMPLE = ("dense", "batch_norm", "attention", "rnn reset", "conv causal, dilated", "residual")
OPTIMIZER_SAMPLE = ("adamw", "muon", "adafactor")


@contextlib.contextmanager
def config(**settings):
    """Settings of jax.config, and what they were after."""
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


SETTINGS = {
    "ranks": lambda: config(jax_numpy_rank_promotion="raise"),
    "x64": lambda: config(jax_enable_x64=True),
    "nans": lambda: config(jax_debug_nans=True),
    "leaks": lambda: config(jax_check_tracer_leaks=True),
    "eager": lambda: config(jax_disable_jit=True),
    "rbg": lambda: config(jax_default_prng_impl="rbg"),
    "unsafe_rbg": lambda: config(jax_default_prng_impl="unsafe_rbg"),
}
SLOW = ("eager", "leaks", "unsafe_rbg")


@pytest.mark.parametrize("setting", SETTINGS)
def test_layers(setting):
    names = [name for name in LAYERS if name not in HEAVY]
    if QUICK:
        names = LAYER_SAMPLE[:2] if setting in SLOW else LAYER_SAMPLE
    if setting in ("eager", "leaks") and QUICK:
        names = names[:4]
    with SETTINGS[setting]():
        for name in names:
            layer, *shapes = LAYERS[name]
            xs = inputs(shapes)
            key = jax.random.key(0)
            params, state = layer.init(key, *xs)

            def loss(params, layer=layer, state=state, xs=xs, key=key):
                y, after = layer.apply(params, state, *xs, key=key, train=True)
                return total(y), after

            try:
                grads, _ = jax.jit(jax.grad(loss, has_aux=True))(params)
                y = layer(params, *xs, state=state)
            except Exception as error:
                error.add_note(f"{name} under {setting}")
                raise
            assert all(np.isfinite(a).all() for a in jax.tree.leaves((grads, total(y))))


@pytest.mark.parametrize("setting", but_full(SETTINGS, {"leaks"}))
def test_optimizers(setting):
    with SETTINGS[setting]():
        for name, row in ROWS.items():
            if QUICK and name not in OPTIMIZER_SAMPLE[: 1 if setting in SLOW else 2]:
                continue
            tx = row.build(**row.usual)
            params = {"a": jnp.ones((2, 3)), "b": jnp.ones(4), "c": jnp.ones(())}
            extra = {"value": jnp.float32(1.0), "grad": params}
            update = fnn.optim.transform.taking_extra(tx.update)
            if setting == "leaks":  # which no cache survives: tracing once finds them
                update = functools.partial(jax.eval_shape, update)
            try:
                state = tx.init(params)
                for _ in range(1 if setting == "leaks" else 2):
                    updates, state = update(params, state, params, **extra)
            except fnn.FnnError:  # it needs a function, or names, which its own tests give
                continue
            except Exception as error:
                error.add_note(f"{name} under {setting}")
                raise
            if setting != "leaks":
                assert all(np.isfinite(a).all() for a in jax.tree.leaves(updates)), name


@pytest.mark.parametrize("setting", but_full(SETTINGS, set(SETTINGS) - {"ranks", "rbg"}))
def test_training(setting):
    with SETTINGS[setting]():
        net = fnn.serial(
            fnn.dense(4, use_bias=False),
            fnn.batch_norm(),
            jax.nn.relu,
            fnn.dropout(0.5),
            fnn.dense(3),
        )
        rng = np.random.default_rng(0)
        data = {
            "image": rng.normal(size=(12, 5)).astype("f4"),
            "label": rng.integers(0, 3, 12).astype("i4"),
        }
        tx = fnn.optim.chain(fnn.optim.clip_by_global_norm(1.0), fnn.optim.adam(1e-2))
        accuracy = {"accuracy": fnn.metrics.accuracy()}
        loss = fnn.train.supervised(net, fnn.losses.softmax_cross_entropy, accuracy)
        step = fnn.train.step(loss, tx)
        ts = fnn.train.init(net, tx, jax.random.key(0), data["image"][:1])
        fitted, history = fnn.train.fit(step, ts, data, epochs=2, batch_size=4, progress=False)
        options = {"steps": 6, "batch_size": 4}
        run, _ = fnn.train.run(step, ts, data, **options)
        kept, _ = fnn.train.run(step, ts, data, **options, checkpoint_every=2)
        for other in (run, kept):
            for a, b in zip(*map(jax.tree.leaves, (fitted.params, other.params)), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        assert np.isfinite(history["train"]["loss"]).all()
