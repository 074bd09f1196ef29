"""The protocol, chains, schedules and dtypes, through gradient descent and Adam."""

from contextlib import nullcontext
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

import fnn
from fnn import errors, optim
from tests.optim import rows_adam, rows_sgd, rows_transform
from tests.optim.contract import contract
from tests.optim.support import f32, same, steps_of
from tests.support import asarray, assert_close

test_formula, test_optax, test_contract, test_missing_params = contract(rows_transform.ROWS)


STEPS = 50


seeds = st.integers(0, 2**32 - 1)


ROWS = rows_sgd.ROWS | rows_adam.ROWS
RULES = {name: ROWS[name] for name in ("sgd", "momentum", "nesterov", "adam")}
OPTIONS = {name: row.usual for name, row in RULES.items()}


every_rule = pytest.mark.parametrize("name", RULES)


def wide(dtype):
    """The context in which `dtype` exists."""
    return jax.enable_x64(True) if dtype == "float64" else nullcontext()


def updates_over(tx, grads, params=None):
    """All updates for grads [steps, ...] in one scan, from params that stay what they are."""
    params = jax.tree.map(lambda g: jnp.zeros_like(g[0]), grads) if params is None else params

    def step(opt_state, grads):
        updates, opt_state = tx.update(grads, opt_state, params)
        return opt_state, updates

    return jax.lax.scan(step, tx.init(params), grads)[1]


@cache
def compiled(name):
    """One program a rule and dtype: the options are tracers."""
    return jax.jit(lambda options, grads: updates_over(RULES[name].build(**options), grads))


def by_loop(name, grads, **options):
    """All updates for grads [steps, ...], by the row's float64 oracle."""
    grads = np.float64(grads)
    params = {"w": np.zeros(grads.shape[1:])}
    updates = RULES[name].oracle([{"w": g} for g in grads], params, **options)
    return np.stack([u["w"] for u in updates])


def draw_grads(rng, low, high):
    """[50, 8] gradients: of size 10^low to 10^high, zero at first, at times, always, repeated."""
    grads = rng.normal(size=(STEPS, 8)) * 10.0 ** rng.uniform(low, high, (STEPS, 8))
    grads[:, 1] = 0
    grads[:20, 2] = 0
    grads[rng.random(STEPS) < 0.5, 3] = 0
    grads[:, 4] = grads[0, 4]
    grads[:, 5] = 10.0**low * rng.normal(size=STEPS)
    grads[:, 6] = 10.0**high * rng.normal(size=STEPS)
    grads[:, 7] = rng.normal(size=STEPS)
    return grads


def assert_updates(got, want, tolerance, smallest=0.0):
    """Relative to each element's largest update, since momentum remembers the largest."""
    got, want = np.float64(got), np.float64(want)
    assert got.shape == want.shape
    scale = np.abs(want).max(0)
    error = np.abs(got - want)
    assert np.isfinite(got).all()
    assert (error <= tolerance * scale + smallest).all(), (error / (scale + 1e-300)).max(0)


hyperparameters = dict(
    learning_rate=st.sampled_from([1e-3, 0.1, 3.0]),
    beta1=st.sampled_from([0.0, 0.5, 0.9, 0.99]),
    beta2=st.sampled_from([0.0, 0.9, 0.99, 0.999]),
    eps=st.sampled_from([1e-8, 1e-3]),
)


def options_of(name, learning_rate, beta1, beta2, eps):
    drawn = dict(learning_rate=learning_rate, momentum=beta1, b1=beta1, b2=beta2, eps=eps)
    return {key: drawn[key] for key in OPTIONS[name]}


@every_rule
@given(**hyperparameters, seed=seeds)
def test_50_steps_in_float32(name, learning_rate, beta1, beta2, eps, seed):
    """Squares fit float32 up to 1e18, and where they underflow eps = 1e-8 rules anyway."""
    options = jax.tree.map(jnp.float32, options_of(name, learning_rate, beta1, beta2, eps))
    grads = np.float32(draw_grads(np.random.default_rng(seed), -30, 17))
    want = by_loop(name, grads, **{k: float(v) for k, v in options.items()})
    got = compiled(name)(options, asarray(grads))
    assert got.dtype == "float32"
    # Adam's 1 - b2^t has 1/1000 at t = 1, and so a thousand times its rounding
    assert_updates(got, want, 3e-4 if name == "adam" else 1e-5, smallest=1e-35)


@every_rule
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_denormal_and_huge_gradients_stay_finite(name, dtype):
    """A denormal may be flushed to zero; a square may overflow, but not into NaN."""
    tiny, huge = (1e-310, 1e300) if dtype == "float64" else (1e-40, 1e37)
    with wide(dtype):
        grads = asarray([[tiny, -tiny, huge, -huge]] * 5, dtype)
        updates = np.asarray(updates_over(RULES[name].build(**OPTIONS[name]), grads))
    assert np.isfinite(updates).all()
    assert (np.abs(updates[:, :2]) <= tiny * 1e9).all()
    assert (updates[:, 2] <= 0).all()
    assert (updates[:, 3] >= 0).all()


@every_rule
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_moments_are_float32_and_updates_of_the_parameters_dtype(name, dtype):
    """Each transform of a chain may round what it hands on, and the learning rate: four half units
    in the last place. Moments of that dtype would be off by far more after 50 steps."""
    tx = RULES[name].build(**OPTIONS[name])
    grads = asarray(np.random.default_rng(0).normal(size=(STEPS, 8)), dtype)
    opt_state = tx.init(jnp.zeros(8, dtype))
    _, after = tx.update(grads[0], opt_state, jnp.zeros(8, dtype))
    for leaf in [*jax.tree.leaves(opt_state), *jax.tree.leaves(after)]:
        assert leaf.dtype in (jnp.float32, jnp.int32)
    got = updates_over(tx, grads)
    assert got.dtype == dtype
    want = by_loop(name, grads, **OPTIONS[name])
    unit = {"bfloat16": 2**-8, "float16": 2**-11}[dtype]  # relative, of the last place's half
    assert (np.abs(np.float64(got) - want) <= 4 * unit * np.abs(want)).all()


@every_rule
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_vmap_over_learning_rates_is_one_run_each(name, dtype):
    rates = asarray([0.0, 0.01, 0.1, 1.0], "float32")
    grads = asarray(np.random.default_rng(0).normal(size=(5, 3)), dtype)
    rest = {k: v for k, v in OPTIONS[name].items() if k != "learning_rate"}
    got = jax.vmap(lambda rate: updates_over(RULES[name].build(rate, **rest), grads))(rates)
    assert got.dtype == dtype
    for lane, rate in enumerate(rates):
        want = by_loop(name, grads, learning_rate=float(rate), **rest)
        assert_close(got[lane], want, tolerance=1e-4 if dtype == "float32" else 1e-2)


def numeric_options(name):
    """Options at which central differences are good: they cannot resolve eps = 1e-8."""
    return OPTIONS[name] | ({"eps": 1e-2} if name == "adam" else {})


@every_rule
def test_meta_gradients_are_numeric(name):
    """d sum(c * updates) / d options over 5 steps; an always-zero gradient must add 0, not NaN."""
    rng = np.random.default_rng(0)
    grads, c = rng.normal(size=(2, 5, 3))
    grads[:, 1] = 0
    grads[:2, 2] = 0
    options = numeric_options(name)

    def oracle(**options):
        return np.sum(c * by_loop(name, grads, **options))

    with jax.enable_x64(True):
        got = jax.jit(jax.grad(lambda o: jnp.sum(c * updates_over(RULES[name].build(**o), grads))))(
            jax.tree.map(jnp.float64, options)
        )
    for key, value in options.items():
        h = 1e-5 * value
        up, down = (oracle(**{**options, key: value + d}) for d in (h, -h))
        np.testing.assert_allclose(got[key], (up - down) / (2 * h), rtol=1e-6, err_msg=key)


@every_rule
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_meta_gradients_through_zero_gradients_are_finite(name, dtype):
    """Adam divides by sqrt(nu), and the derivative of sqrt at 0 is infinite."""
    with wide(dtype):
        grads = jnp.zeros((5, 2), dtype).at[3, 1].set(1)
        options = jax.tree.map(lambda v: asarray(v, dtype), OPTIONS[name])

        def total(options, grads):
            return jnp.sum(updates_over(RULES[name].build(**options), grads) ** 2)

        for tree in (
            jax.jit(jax.grad(total, (0, 1)))(options, grads),
            jax.jit(jax.jacfwd(total, (0, 1)))(options, grads),
        ):
            for leaf in jax.tree.leaves(tree):
                assert np.isfinite(leaf).all()


@every_rule
def test_meta_gradients_through_training_are_numeric(name):
    """Five closed-loop steps down |A p|^2 / 2: the updates depend on the options through p too."""
    rng = np.random.default_rng(0)
    a, start = rng.normal(size=(3, 3)), rng.normal(size=3)

    def loss(p):
        return jnp.sum((a @ p) ** 2) / 2

    @jax.jit
    def final(options):
        tx = RULES[name].build(**options)
        params = asarray(start)
        opt_state = tx.init(params)
        for _ in range(5):
            updates, opt_state = tx.update(jax.grad(loss)(params), opt_state, params)
            params = fnn.optim.apply_updates(params, updates)
        return loss(params)

    with jax.enable_x64(True):
        options = jax.tree.map(jnp.float64, {**numeric_options(name), "learning_rate": 0.03})
        got = jax.grad(final)(options)
        for key, value in options.items():
            h = 1e-5 * value
            up, down = (final({**options, key: value + d}) for d in (h, -h))
            np.testing.assert_allclose(got[key], (up - down) / (2 * h), rtol=1e-4, err_msg=key)


def schedule(count):
    """The first update is made at count 0, with the full rate."""
    return 0.1 / asarray(count + 1, "float32")


@every_rule
@pytest.mark.parametrize("mode", ["loop", "scan"])
def test_schedule_starts_at_count_0(name, mode):
    options = dict(OPTIONS[name], learning_rate=schedule)
    tx = RULES[name].build(**options)
    grads = np.float32(np.random.default_rng(0).normal(size=(6, 3)))
    if mode == "scan":
        got = updates_over(tx, asarray(grads))
    else:
        opt_state, got = tx.init(jnp.zeros(3)), []
        for g in grads:
            updates, opt_state = tx.update(asarray(g), opt_state)  # params is optional
            got.append(updates)
    want = by_loop(name, grads, **options)
    assert_close(np.asarray(got), want, dtype="float32", tolerance=1e-4)


def test_schedule_keeps_the_updates_dtype():
    grads = jnp.ones((3, 2), "bfloat16")
    for name in RULES:
        tx = RULES[name].build(**dict(OPTIONS[name], learning_rate=schedule))
        assert updates_over(tx, grads).dtype == "bfloat16"


def test_apply_updates_adds_and_keeps_the_dtype():
    params = {"a": asarray([1.0, 2], "bfloat16"), "b": (jnp.ones((2, 1)), jnp.ones(()))}
    updates = jax.tree.map(lambda p: jnp.full_like(p, -0.5), params)
    new = fnn.optim.apply_updates(params, updates)
    assert jax.tree.structure(new) == jax.tree.structure(params)
    np.testing.assert_array_equal(np.float64(new["a"]), [0.5, 1.5])
    np.testing.assert_array_equal(new["b"][0], np.full((2, 1), 0.5))
    for got, param in zip(jax.tree.leaves(new), jax.tree.leaves(params), strict=True):
        assert got.dtype == param.dtype


def test_chain_of_nothing_and_chain_of_chains():
    grads = {"a": asarray([1.0, -2.0])}
    tx = fnn.optim.chain()
    updates, _ = tx.update(grads, tx.init(grads), grads)
    np.testing.assert_array_equal(updates["a"], grads["a"])
    sgd = fnn.optim.sgd
    tx = fnn.optim.chain(fnn.optim.chain(sgd(0.5), sgd(0.5)), sgd(2.0))
    updates, _ = tx.update(grads, tx.init(grads), grads)
    np.testing.assert_array_equal(updates["a"], grads["a"] * -0.5)


@every_rule
@pytest.mark.parametrize("outer", ["optax", "fnn"])
def test_either_chain_takes_either_transform(name, outer):
    """optax's clip to norm 1, then fnn, then optax's double: the same by the loop.

    optax.scale takes no extra arguments, and fnn's chain must not force them on it.
    """
    optax = pytest.importorskip("optax")
    chain = optax.chain if outer == "optax" else fnn.optim.chain
    tx = chain(optax.clip_by_global_norm(1.0), RULES[name].build(**OPTIONS[name]), optax.scale(2.0))
    grads = np.random.default_rng(0).normal(size=(6, 3))
    clipped = grads / np.maximum(np.linalg.norm(grads, axis=1, keepdims=True), 1)
    got = jax.jit(partial(updates_over, tx))(asarray(grads, "float32"))
    want = 2 * by_loop(name, clipped, **OPTIONS[name])
    assert_close(got, want, dtype="float32", tolerance=1e-4)
    updates, _ = tx.update(jnp.ones(3), tx.init(jnp.ones(3)), jnp.ones(3), value=jnp.float32(0))
    assert updates.shape == (3,)


def test_chain_hands_extra_arguments_on():
    """A transform that asks for `value` gets it, beside one that has never heard of it."""
    optax = pytest.importorskip("optax")
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=1)
    tx = fnn.optim.chain(fnn.optim.sgd(1.0), plateau, optax.scale(1.0))
    params = jnp.zeros(2)
    opt_state = tx.init(params)
    steps = []
    with jax.numpy_dtype_promotion("standard"):  # optax's plateau multiplies float by int32
        for _ in range(4):  # the loss never falls
            updates, opt_state = tx.update(params + 1, opt_state, params, value=jnp.float32(1))
            steps.append(float(updates[0]))
    assert steps[0] == -1
    assert steps[-1] > -1


def test_what_optimizers_refuse():
    adam = fnn.optim.adam(0.1)
    with pytest.raises(fnn.FnnError, match="floating dtypes"):
        adam.init({"w": jnp.arange(3)})
    scale = fnn.optim.scale_by_adam()
    for wrong in (None, fnn.optim.trace(0.9).init(jnp.ones(2))):
        with pytest.raises(fnn.FnnError, match="AdamState"):
            scale.update(jnp.ones(2), wrong)
    with pytest.raises(fnn.FnnError, match="grads of floating"):
        fnn.optim.sgd(0.1).update(jnp.arange(3), ())
    vector = fnn.optim.sgd(lambda count: jnp.ones(2))
    with pytest.raises(fnn.FnnError, match="a scalar learning rate"):
        vector.update(jnp.ones(2), vector.init(jnp.ones(2)))


@pytest.mark.parametrize("name", ["adam", "adamw", "nadam", "nadamw", "amsgrad", "lion"])
def test_mu_dtype(name):
    """The moment is rounded between updates, and nothing else is."""
    tx, g = getattr(optim, name)(0.1, mu_dtype=jnp.bfloat16), asarray([1.0, -0.3])
    plain = getattr(optim, name)(0.1)
    state, wide = tx.init(g), plain.init(g)
    for _ in range(3):
        updates, state = tx.update(g, state, g)
        want, wide = plain.update(g, wide, g)
        assert state[0].mu.dtype == jnp.bfloat16
        assert updates.dtype == jnp.float32
    assert_allclose(updates, want, rtol=1e-2)


def test_accumulators_in_bfloat16():
    for tx in (
        optim.trace(0.9, accumulator_dtype=jnp.bfloat16),
        optim.ema(0.9, accumulator_dtype=jnp.bfloat16),
    ):
        g = asarray([1.0, -0.3])
        updates, state = tx.update(g, tx.init(g))
        assert updates.dtype == jnp.float32
        assert jax.tree.leaves(state)[-1].dtype == jnp.bfloat16
    for name in ("sgd", "signum"):
        keyword = {"momentum": 0.9} if name == "sgd" else {}
        tx = getattr(optim, name)(0.1, accumulator_dtype=jnp.bfloat16, **keyword)
        assert any(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(tx.init(jnp.ones(2))))


def test_a_moment_of_the_other_kind_is_refused():
    with pytest.raises(fnn.FnnError, match="a real mu_dtype"):
        optim.adam(0.1, mu_dtype=jnp.complex64).init(jnp.ones(2))
    with pytest.raises(fnn.FnnError, match="a complex mu_dtype"):
        optim.adam(0.1, mu_dtype=jnp.bfloat16).init(jnp.ones(2, jnp.complex64))


def test_named_chain_keeps_states_by_name():
    grads = {"w": f32(3)}
    named = fnn.optim.named_chain(z=fnn.optim.trace(0.9), a=fnn.optim.sgd(0.1))
    plain = fnn.optim.chain(fnn.optim.trace(0.9), fnn.optim.sgd(0.1))
    opt_state = named.init(grads)
    assert set(opt_state) == {"a", "z"}
    same(opt_state["z"], plain.init(grads)[0])
    same(steps_of(named, [grads] * 3, grads)[0], steps_of(plain, [grads] * 3, grads)[0])
    for wrong in ((), {"z": ()}, plain.init(grads)):
        with pytest.raises(errors.ParamsError, match="states of z, a"):
            named.update(grads, wrong)
    with pytest.raises(errors.OptionError, match="a transform"):
        fnn.optim.named_chain(a=fnn.optim.sgd)


@pytest.mark.parametrize(
    "state", [dict, {"mu": 0}, optim.sgd(0.1)], ids=["type", "dict", "instance"]
)
def test_the_state_of_a_rule_is_a_named_tuple_class(state):
    with pytest.raises(errors.OptionError, match="pass a NamedTuple class"):
        optim.leafwise(state, lambda t, p, g, m: (m, m))
