"""Every layer in a scan, a stack, frozen, rebuilt, behind a mask; every optimizer with frozen,
complex and narrow params, and with steps that are skipped. Faults hide where two things meet.

The oracle is the same thing without the other: a loop for the scan, a member alone for the stack.
"""

import os
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import errors, optim
from fnn.losses import squared_error
from tests.contracts.layers import HEAVY, LAYERS, inputs, total
from tests.optim.table import ROWS
from tests.support import asarray

key = jax.random.key


QUICK = "FNN_QUICK" in os.environ


SAMPLE = ("batch_norm", "conv", "dropout", "embedding", "attention", "rnn reset", "weight_norm")


ROWS_OF_LAYERS = [n for n in LAYERS if (n in SAMPLE if QUICK else n not in HEAVY)]


OPTIMIZERS = ("adamw", "lamb", "muon", "sgd", "adafactor", "schedule_free_adamw")


ROWS_OF_OPTIMIZERS = [n for n in ROWS if n in OPTIMIZERS or not QUICK]


def close(got, want, tolerance=2e-5):
    for a, b in zip(*map(jax.tree.leaves, (got, want)), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max(initial=0))


def same(got, want):
    def plain(a):
        is_key = jnp.issubdtype(a.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(a) if is_key else a

    jax.tree.map(np.testing.assert_array_equal, *(jax.tree.map(plain, t) for t in (got, want)))


@pytest.mark.parametrize("name", ROWS_OF_LAYERS)
def test_a_layer_meets(name):
    layer, *shapes = LAYERS[name]
    xs = inputs(shapes)
    params, state = layer.init(key(0), *xs)

    def loss(params, state, *xs):
        y, after = layer.apply(params, state, *xs, key=key(3), train=True)
        return total(y), (y, after)

    alone = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, (y, after)), grads = alone(params, state, *xs)

    # a scan, against the call by itself
    def step(state, params):
        (_, (y, after)), grads = jax.value_and_grad(loss, has_aux=True)(params, state, *xs)
        return state, (y, after, grads)

    two = jax.tree.map(lambda a: jnp.stack([a, a]), params)
    _, found = jax.jit(lambda two: jax.lax.scan(step, state, two, length=2))(two)
    close(jax.tree.map(lambda a: a[1], found), (y, after, grads))

    # a stack, against each member by itself
    many = fnn.ensemble(layer, 2)
    both, kept = many.init(key(0), *xs)
    run = jax.jit(lambda p, s: many.apply(p, s, *xs, train=False))
    outputs, _ = run(both, kept)
    evaluated = jax.jit(lambda p, s: layer.apply(p, s, *xs)[0])
    for i in range(2):
        own = jax.tree.map(lambda a, i=i: a[i], (both, kept))
        close(jax.tree.map(lambda a, i=i: a[i], outputs), evaluated(*own))

    # rebuilt: every layer inside wrapped, and the network made anew of them
    def through(layer, params, state, *xs, key, train):
        return layer.apply(params, state, *xs, key=key, train=train)

    rebuilt = layer.map(lambda path, inner: inner if inner.children else fnn.wrap(inner, through))
    same(rebuilt.init(key(0), *xs), (params, state))
    close(jax.jit(partial(rebuilt.apply, train=True))(params, state, *xs, key=key(3)), (y, after))

    # frozen: as in evaluation, and nothing learns or changes
    held = fnn.frozen(layer)
    learnt, whole = held.init(key(0), *xs)
    if layer.carry is None or not any("first_" in str(p) for p in jax.tree.leaves(whole)):
        frozen = jax.jit(partial(held.apply, train=True))
        out, after = frozen(learnt, whole, *xs, key=key(3))
        same(after, whole)
        assert not jax.tree.leaves(learnt)
        close(out, evaluated(params, state))
        same(fnn.merge(held, learnt, whole, *xs), fnn.merge(layer, params, state, *xs))


@pytest.mark.parametrize("name", ROWS_OF_OPTIMIZERS)
def test_an_optimizer_meets_frozen_params_and_skipped_steps(name):
    row = ROWS[name]
    tx = optim.skip_nonfinite(row.build(**row.usual))
    net = fnn.serial(
        body=fnn.frozen(fnn.dense(5)), low=fnn.lora(fnn.dense(4), 2), norm=fnn.batch_norm(),
        head=fnn.dense(3, use_bias=False),
    )  # fmt: skip
    ts = fnn.train.init(net, tx, key(0), (1, 7))
    step = fnn.train.step(fnn.train.supervised(net, squared_error, names=("x", "y")), tx)
    x, y = jax.random.normal(key(1), (6, 7)), jnp.ones((6, 3))
    once, _ = step(ts, {"x": x, "y": y})
    skipped, _ = step(once, {"x": x.at[0].set(jnp.inf), "y": y})
    same((skipped.params, skipped.state), (once.params, once.state))
    before, now = (s.opt_state for s in (once, skipped))
    same(now.inner_state, before.inner_state)
    assert int(now.total_notfinite) == 1 and int(before.total_notfinite) == 0
    same((once.state["body"], once.state["low"]), (ts.state["body"], ts.state["low"]))
    sizes = {a.size for a in jax.tree.leaves(ts.opt_state)}
    assert not sizes & {7 * 5, 5 * 4}, "moments of what is frozen"


@pytest.mark.parametrize("name", ROWS_OF_OPTIMIZERS)
def test_an_optimizer_meets_narrow_and_complex_params(name):
    row = ROWS[name]
    tx = row.build(**row.usual)
    rng = np.random.default_rng(0)
    tree = {"a": rng.normal(size=(2, 3)), "b": rng.normal(size=(4,))}
    wide = jax.tree.map(jnp.float32, tree)
    narrow = jax.tree.map(lambda a: a.astype(jnp.bfloat16), wide)
    rounded = jax.tree.map(lambda a: a.astype(jnp.float32), narrow)

    def update(tree):
        grads = jax.tree.map(lambda a: a / 2, tree)  # so that no decay takes back what they do
        extra = {"value": jnp.float32(1.0), "grad": grads}
        call = optim.transform.taking_extra(tx.update)
        return call(grads, tx.init(tree), tree, **extra)[0]

    try:
        want = update(rounded)
    except errors.FnnError:  # it needs a function, or names, which its own tests give
        return
    got = update(narrow)
    assert all(a.dtype == jnp.bfloat16 or "master" in name or "rounding" in name
               for a in jax.tree.leaves(got))  # fmt: skip
    if "rounding" not in name:
        close(got, want, 2.0**-6)
    # a complex number without imaginary part is a real one
    real = jax.tree.map(lambda a: a.astype(jnp.complex64), wide)
    try:
        got = update(real)
    except errors.DtypeError as error:
        assert "complex" in str(error) or "floating" in str(error)
    else:
        close(jax.tree.map(jnp.real, got), update(wide), 1e-5)
        assert not any(np.any(np.imag(a)) for a in jax.tree.leaves(got))


# --- masks with NaN behind them

MASKED = {
    "rnn": lambda: fnn.rnn(fnn.cells.gru(3)),
    "bidirectional": lambda: fnn.bidirectional(fnn.cells.lstm(2), fnn.cells.simple_rnn(2)),
    "lstm": lambda: fnn.lstm(3, layers=2),
    "lru": lambda: fnn.lru(2, 3),
    "attention": lambda: fnn.attention(4, 2),
    "transformer_block": lambda: fnn.transformer_block(4, 2),
}


@pytest.mark.parametrize("name", ["rnn", "attention"] if QUICK else MASKED)
def test_what_is_masked_changes_nothing(name):
    net = MASKED[name]()
    x = jax.random.normal(key(1), (2, 5, 4))
    real = jnp.arange(5) < asarray([[3], [5]])
    attends = "attention" in name or "block" in name
    mask = jnp.broadcast_to(real[:, None, :], (2, 5, 5)) if attends else real
    params, state = net.init(key(0), x)

    @jax.jit
    def run(x):
        def loss(params, x):
            y = net(params, x, mask=mask)
            return jnp.sum(jnp.where(real[..., None], y, 0) ** 2), y

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x)

    clean = run(jnp.where(real[..., None], x, 0))
    for behind in (jnp.nan, jnp.inf, 1e30):
        dirty = run(jnp.where(real[..., None], x, behind))
        for (loss, y), (d_params, d_x) in (clean, dirty):
            kept = jnp.where(real[..., None], y, 0), jnp.where(real[..., None], d_x, 0)
            assert all(np.isfinite(a).all() for a in jax.tree.leaves((loss, d_params, kept)))
        close(
            jax.tree.map(lambda a: jnp.where(real[..., None], a, 0), (dirty[0][1], dirty[1][1])),
            jax.tree.map(lambda a: jnp.where(real[..., None], a, 0), (clean[0][1], clean[1][1])),
        )
        close((dirty[0][0], dirty[1][0]), (clean[0][0], clean[1][0]))
