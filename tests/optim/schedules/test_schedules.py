"""Schedules and the plateau against closed forms in ints and float64, optax and PyTorch."""

import inspect
import math
from fractions import Fraction
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fnn
from fnn.optim import reduce_on_plateau, schedules
from tests.optim.schedules import oracles
from tests.support import asarray

LAST = 2**31 - 1


LANES, COUNTS = 8, 24


floats = partial(st.floats, width=32, allow_subnormal=False)


values = st.one_of(
    st.sampled_from([0.0, 1.0, 1e-6]), st.floats(-10, 10, width=32, allow_subnormal=False)
)


steps = st.one_of(st.integers(0, 3), st.integers(0, 1000), st.integers(0, LAST))


some_steps = steps.map(lambda n: max(n, 1))


shares = floats(0, 1)


powers = st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0])


warm_and_whole = st.tuples(steps, steps).map(lambda n: (n[0], min(sum(n), LAST)))


ascending = st.lists(steps, min_size=3, max_size=3).map(sorted)


def draws(**options):
    return st.fixed_dictionaries(options)


def warm(name, **options):
    """With warm-up steps, and the steps of the whole under `name`."""
    split = st.tuples(draws(both=warm_and_whole), draws(**options))
    return split.map(lambda d: {**d[1], "warmup_steps": d[0]["both"][0], name: d[0]["both"][1]})


rising = dict(init_value=values, peak_value=values)


decaying = dict(
    transition_steps=some_steps, decay_rate=shares, transition_begin=steps, end_value=values
)


cycle = dict(
    transition_steps=steps,
    peak_value=values,
    pct_start=floats(0.125, 0.5),
    div_factor=floats(1, 32),
    final_div_factor=floats(1, 1000),
)


cycle3 = dict(cycle, pct_final=floats(0.625, 0.875))


pieces = dict(values=st.lists(values, min_size=4, max_size=4), boundaries=ascending)


LINEAR = dict(init_value=values, end_value=values, transition_steps=steps, transition_begin=steps)


ROWS = {  # name: (builder, oracle, strategy of the options)
    "constant": (schedules.constant, oracles.constant, draws(value=values)),
    "linear": (schedules.linear, oracles.linear, draws(**LINEAR)),
    "polynomial": (schedules.polynomial, oracles.polynomial, draws(**LINEAR, power=powers)),
    "exponential": (
        schedules.exponential,
        oracles.exponential,
        draws(init_value=values, **{k: v for k, v in decaying.items() if k != "end_value"}),
    ),
    "exponential that ends": (
        schedules.exponential,
        oracles.exponential,
        draws(init_value=values, **decaying),
    ),
    "staircase": (
        partial(schedules.exponential, staircase=True),
        partial(oracles.exponential, staircase=True),
        draws(init_value=values, **decaying),
    ),
    "cosine": (
        schedules.cosine,
        oracles.cosine,
        draws(init_value=values, decay_steps=steps, alpha=shares, exponent=powers),
    ),
    "restarts": (
        schedules.restarts,
        oracles.restarts,
        draws(
            init_value=values,
            decay_steps=some_steps,
            t_mult=st.sampled_from([1, 1, 2, 3, 10**6]),
            alpha=shares,
        ),
    ),
    "inverse_sqrt": (
        schedules.inverse_sqrt,
        oracles.inverse_sqrt,
        draws(**rising, warmup_steps=steps),
    ),
    "piecewise_constant": (
        schedules.piecewise_constant,
        oracles.piecewise_constant,
        draws(**pieces),
    ),
    "piecewise_interpolate": (
        schedules.piecewise_interpolate,
        oracles.piecewise_interpolate,
        draws(**pieces),
    ),
    "piecewise cosine": (
        partial(schedules.piecewise_interpolate, kind="cosine"),
        partial(oracles.piecewise_interpolate, shape=oracles.wave),
        draws(**pieces),
    ),
    "one_cycle": (schedules.one_cycle, oracles.one_cycle, draws(**cycle)),
    "linear one_cycle": (
        partial(schedules.one_cycle, kind="linear"),
        partial(oracles.one_cycle, shape=oracles.line),
        draws(**cycle3),
    ),
    "warmup_constant": (
        schedules.warmup_constant,
        oracles.warmup_constant,
        draws(**rising, warmup_steps=steps),
    ),
    "warmup_linear": (
        schedules.warmup_linear,
        oracles.warmup_linear,
        warm("decay_steps", **rising, end_value=values),
    ),
    "warmup_cosine": (
        schedules.warmup_cosine,
        oracles.warmup_cosine,
        warm("decay_steps", **rising, end_value=values, exponent=powers),
    ),
    "warmup_exponential": (
        schedules.warmup_exponential,
        oracles.warmup_exponential,
        draws(**rising, warmup_steps=steps, **decaying),
    ),
}


every_row = pytest.mark.parametrize("name", ROWS)


def ints_in(options):
    return [n for value in options.values() for n in np.ravel(value) if float(n).is_integer()]


def counts_for(options, rng):
    """Every horizon, the sums of two, and one step to either side; the ends; and any others."""
    horizons = [int(n) for n in ints_in(options) if abs(n) <= LAST]
    near = [n + d for n in horizons for d in (-1, 0, 1)]
    near += [a + b + d for a in horizons for b in horizons for d in (-1, 0)]
    near = sorted({min(max(n, 0), LAST) for n in near} | {0, 1, LAST - 1, LAST})
    near = [int(n) for n in rng.permutation(near)[: COUNTS - 4]]
    far = rng.integers(0, LAST, COUNTS - len(near), endpoint=True)
    return near + [int(n) for n in far]


@cache
def lanes(name):
    """One program a row and precision: every option is a tracer, in a lane of vmap."""
    build = ROWS[name][0]
    return jax.jit(jax.vmap(lambda options, counts: build(**options)(counts)))


def as_arrays(options, dtype):
    """Each option stacked over the lanes; whole numbers as int32."""

    def stack(*column):
        whole = all(isinstance(value, int) for value in column)
        return asarray(column, jnp.int32 if whole else dtype)

    return jax.tree.map(lambda *column: stack(*column), *options)


@every_row
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_values_are_the_closed_form(name, dtype, data, seed):
    _, oracle, strategy = ROWS[name]
    rng = np.random.default_rng(seed)
    options = [data.draw(strategy) for _ in range(LANES)]
    counts = [counts_for(one, rng) for one in options]
    lists = {k for k, v in options[0].items() if isinstance(v, list)}
    with jax.enable_x64(dtype == "float64"):
        arrays = as_arrays(options, dtype)
        arrays.update({k: jnp.stack(arrays[k], 1) for k in lists})
        got = lanes(name)(arrays, asarray(counts, jnp.int32))
        assert got.dtype == dtype and got.shape == (LANES, COUNTS) and not got.weak_type
    for lane in range(LANES):
        rounded = jax.tree.map(lambda v: v if isinstance(v, int) else float(v), options[lane])
        if dtype == "float32":
            rounded = jax.tree.map(
                lambda v: v if isinstance(v, int) else float(np.float32(v)), rounded
            )
        want = [oracle(count, **rounded) for count in counts[lane]]
        ends = [np.abs(v).max() for k, v in rounded.items() if "value" in k]
        tolerance = (1e-12 if dtype == "float64" else 4e-6) * max(*ends, np.abs(want).max())
        np.testing.assert_allclose(got[lane], want, rtol=0, atol=tolerance + 1e-30)


EXAMPLES = {
    "constant": dict(value=0.3),
    "linear": dict(init_value=1.0, end_value=0.2, transition_steps=10, transition_begin=3),
    "polynomial": dict(
        init_value=1.0, end_value=0.2, power=2.0, transition_steps=10, transition_begin=3
    ),
    "exponential": dict(init_value=1.0, transition_steps=4, decay_rate=0.5, transition_begin=3),
    "exponential that ends": dict(
        init_value=1.0, transition_steps=4, decay_rate=0.5, transition_begin=3, end_value=0.15
    ),
    "staircase": dict(init_value=1.0, transition_steps=4, decay_rate=0.5, transition_begin=3),
    "cosine": dict(init_value=1.0, decay_steps=12, alpha=0.1, exponent=1.5),
    "restarts": dict(init_value=1.0, decay_steps=3, t_mult=2, alpha=0.1),
    "inverse_sqrt": dict(init_value=0.1, peak_value=1.0, warmup_steps=4),
    "piecewise_constant": dict(values=[1.0, 0.3, 0.1], boundaries=[3, 7]),
    "piecewise_interpolate": dict(values=[1.0, 0.3, 0.1], boundaries=[3, 7]),
    "piecewise cosine": dict(values=[1.0, 0.3, 0.1], boundaries=[3, 7]),
    "one_cycle": dict(transition_steps=12, peak_value=1.0, pct_start=0.3, div_factor=5.0),
    "linear one_cycle": dict(transition_steps=12, peak_value=1.0, pct_start=0.3, pct_final=0.8),
    "warmup_constant": dict(init_value=0.1, peak_value=1.0, warmup_steps=4),
    "warmup_linear": dict(init_value=0.1, peak_value=1.0, warmup_steps=4, decay_steps=12),
    "warmup_cosine": dict(
        init_value=0.1, peak_value=1.0, warmup_steps=4, decay_steps=12, exponent=1.5
    ),
    "warmup_exponential": dict(
        init_value=0.1, peak_value=1.0, warmup_steps=4, transition_steps=3, decay_rate=0.5
    ),
}


def as_floats(options):
    return jax.tree.map(lambda v: v if isinstance(v, np.ndarray) else float(v), options)


@every_row
def test_python_numbers_and_single_counts(name):
    build, oracle, _ = ROWS[name]
    options = EXAMPLES[name]
    schedule = build(**options)
    for count in (0, np.int64(5), jnp.int32(9)):
        value = schedule(count)
        assert value.shape == () and value.dtype == "float32" and not value.weak_type
        np.testing.assert_allclose(value, oracle(int(count), **options), rtol=3e-6)
    floats = build(**{k: v for k, v in as_floats(options).items() if k != "t_mult"})
    del options, schedule
    assert floats(jnp.arange(3)).shape == (3,)


@every_row
def test_derivatives_are_numeric_and_finite(name):
    """With respect to every number, horizons too, as floats; a horizon of 0 and the ends of 1."""
    build, oracle, _ = ROWS[name]
    whole = {k: v for k, v in EXAMPLES[name].items() if k == "t_mult"}
    options = {k: v for k, v in as_floats(EXAMPLES[name]).items() if k not in whole}
    inside = np.array([0, 1, 2, 5, 6, 8, 10, 14])  # away from all jumps
    weights = np.random.default_rng(0).normal(size=8)

    def total(options, counts):
        return jnp.vdot(weights, build(**options, **whole)(counts))

    def by_oracle(options):
        return np.dot(weights, [oracle(int(c), **options, **whole) for c in inside])

    leaves, treedef = jax.tree.flatten(options)
    with jax.enable_x64(True):
        both = jax.jit(lambda o, c: (jax.grad(total)(o, c), jax.jacfwd(total)(o, c)))
        found = both(treedef.unflatten(map(jnp.float64, leaves)), asarray(inside))
        for i, leaf in enumerate(leaves):
            h = 1e-6
            up, down = (
                by_oracle(treedef.unflatten([*leaves[:i], leaf + d, *leaves[i + 1 :]]))
                for d in (h, -h)
            )
            for tree in found:
                got = jax.tree.leaves(tree)[i]
                np.testing.assert_allclose(got, (up - down) / (2 * h), rtol=1e-6, atol=1e-8)
        ends = asarray([0, 3, 4, 7, 10, 12, 13, LAST])
        zeros = {
            k: jax.tree.map(lambda v, k=k: jnp.float64("div" in k), v) for k, v in options.items()
        }
        for at in (treedef.unflatten(map(jnp.float64, leaves)), zeros):
            for leaf in jax.tree.leaves(both(at, ends)):
                assert np.isfinite(leaf).all()


def test_small_values_at_the_ends_of_long_schedules_are_relative_to_themselves():
    """One step of 2^31 is 5e-10 of the way, which 1 - left would round to nothing in float32."""
    up, down = schedules.linear(0.0, 1.0, LAST), schedules.linear(1.0, 0.0, LAST)
    for n in (1, 2, 1000):
        np.testing.assert_allclose(up(n), float(Fraction(n, LAST)), rtol=3e-7)
        np.testing.assert_allclose(down(LAST - n), float(Fraction(n, LAST)), rtol=3e-7)
        late = math.sin(math.pi / 2 * n / LAST) ** 2
        np.testing.assert_allclose(schedules.cosine(1.0, LAST)(LAST - n), late, rtol=1e-6)
    big = 3 * 10**7 + 1  # an odd count that float32 does not have
    assert schedules.restarts(1.0, big)(big) == 1
    assert schedules.restarts(1.0, big)(big - 1) < 1e-6
    staircase = schedules.exponential(1.0, big, 0.5, staircase=True)
    assert [float(staircase(big + d)) for d in (-1, 0)] == [1, 0.5]
    steps = schedules.piecewise_constant([1.0, 0.0], [big])
    assert [float(steps(big + d)) for d in (-1, 0)] == [1, 0]


def test_ends_are_exact():
    for a, b in ((0.1, 0.3), (1e-8, 7.0), (0.3, 0.3)):
        for build in (schedules.linear, partial(schedules.polynomial, power=2)):
            line = build(init_value=a, end_value=b, transition_steps=7)
            assert line(0) == np.float32(a) and line(7) == line(LAST) == np.float32(b)
        wave = schedules.warmup_cosine(0.0, a, 3, 9, b)
        assert wave(3) == np.float32(a) and wave(9) == np.float32(b)


@pytest.mark.parametrize("kind", ["line", "root", "cosine", "piecewise"])
def test_ends_of_arrays_of_counts_are_exact(kind):
    """XLA divides an array by one number as a product with 1 / it, where n / n is not always 1."""

    @jax.jit
    def ends(n):
        build = {
            "line": lambda: schedules.linear(0.1, 0.3, n, n),
            "root": lambda: schedules.polynomial(0.1, 0.3, 0.5, n, n),
            "cosine": lambda: schedules.warmup_cosine(0.0, 0.1, n, 2 * n, 0.3),
            "piecewise": lambda: schedules.piecewise_interpolate(
                [0.1, 0.1, 0.3], [n, 2 * n], "cosine"
            ),
        }[kind]
        return build()(jnp.stack([n, 2 * n, 2 * n + 1]))

    for n in (1, 7, 41, 47, 55, 431):
        assert ends(n).tolist() == [np.float32(0.1), np.float32(0.3), np.float32(0.3)]


def test_no_steps_are_at_the_end_at_once():
    assert schedules.linear(1.0, 0.5, 0)(0) == 0.5
    assert schedules.linear(1.0, 0.5, 0, 2)(1) == 1
    assert schedules.linear(1.0, 0.5, 0, 2)(2) == 0.5
    assert schedules.cosine(1.0, 0, alpha=0.5)(0) == 0.5
    assert schedules.warmup_constant(0.0, 1.0, 0)(0) == 1
    assert schedules.warmup_cosine(0.0, 1.0, 0, 10)(0) == 1
    assert schedules.one_cycle(0, 1.0, div_factor=2.0, final_div_factor=2.0)(0) == 0.25
    assert schedules.inverse_sqrt(1.0, 0)(jnp.arange(3)).tolist() == [1, 1, np.float32(0.5**0.5)]


def test_join_counts_anew_from_each_boundary():
    seen = []

    def spy(count):
        seen.append(count)
        return jnp.log2(1 + count.astype(jnp.float32))  # NaN below -1

    joined = schedules.join([schedules.constant(7), spy, lambda count: 0.5], asarray([2, 5]))
    got = joined(jnp.arange(7))
    np.testing.assert_allclose(got, [7, 7, 0, 1, math.log2(3), 0.5, 0.5], rtol=1e-6)
    assert seen[0].min() == 0
    slope = jax.grad(lambda b: schedules.join([schedules.constant(1.0), spy], [b])(0))(2.0)
    assert np.isfinite(slope)


def test_half_precision_gets_a_float32_rate():
    schedule = schedules.linear(jnp.bfloat16(1.0), jnp.float16(0), jnp.int16(1000))
    assert schedule(1).dtype == "float32"
    np.testing.assert_allclose(schedule(1), 0.999, rtol=1e-6)
    tx = fnn.optim.sgd(schedule)
    params = jnp.ones(2, jnp.bfloat16)
    assert tx.update(params, tx.init(params))[0].dtype == "bfloat16"


OPTAX = [  # (fnn's, optax's name, its arguments)
    (schedules.constant(0.3), "constant_schedule", (0.3,)),
    (schedules.linear(1.0, 0.1, 10, 3), "linear_schedule", (1.0, 0.1, 10, 3)),
    (schedules.polynomial(1.0, 0.1, 2, 10, 3), "polynomial_schedule", (1.0, 0.1, 2, 10, 3)),
    (schedules.exponential(1.0, 4, 0.5, 3), "exponential_decay", (1.0, 4, 0.5, 3)),
    (
        schedules.exponential(1.0, 4, 0.5, 3, True, 0.2),
        "exponential_decay",
        (1.0, 4, 0.5, 3, True, 0.2),
    ),
    (
        schedules.exponential(1.0, 4, 2.0, 0, False, 5),
        "exponential_decay",
        (1.0, 4, 2.0, 0, False, 5),
    ),  # fmt: skip
    (schedules.cosine(1.0, 10, 0.1, 2.0), "cosine_decay_schedule", (1.0, 10, 0.1, 2.0)),
    (schedules.warmup_constant(0.1, 1.0, 4), "warmup_constant_schedule", (0.1, 1.0, 4)),
    (
        schedules.warmup_cosine(0.1, 1.0, 4, 12, 0.2, 2.0),
        "warmup_cosine_decay_schedule",
        (0.1, 1.0, 4, 12, 0.2, 2.0),
    ),
    (
        schedules.warmup_exponential(0.1, 1.0, 4, 3, 0.5, 1, True, 0.2),
        "warmup_exponential_decay_schedule",
        (0.1, 1.0, 4, 3, 0.5, 1, True, 0.2),
    ),
    (
        schedules.piecewise_constant([1.0, 0.5, 0.1], [3, 6]),
        "piecewise_constant_schedule",
        (1.0, {3: 0.5, 6: 0.2}),
    ),  # fmt: skip
    (
        schedules.piecewise_interpolate([1.0, 0.5, 0.1], [3, 6], "cosine"),
        "piecewise_interpolate_schedule",
        ("cosine", 1.0, {3: 0.5, 6: 0.2}),
    ),
    (schedules.one_cycle(10, 1.0), "cosine_onecycle_schedule", (10, 1.0)),
    (
        schedules.one_cycle(20, 1.0, 0.25, 0.75, 25.0, 1e4, "linear"),
        "linear_onecycle_schedule",
        (20, 1.0, 0.25, 0.75, 25.0, 1e4),
    ),
]


@pytest.mark.parametrize(("ours", "name", "arguments"), OPTAX, ids=[row[1] for row in OPTAX])
def test_equals_optax(ours, name, arguments):
    optax = pytest.importorskip("optax")
    counts = jnp.arange(25)
    with jax.numpy_dtype_promotion("standard"):
        theirs = getattr(optax.schedules, name)(*arguments)
        want = [theirs(count) for count in counts]
    np.testing.assert_allclose(ours(counts), want, rtol=2e-6, atol=1e-7)


def test_restarts_equal_optax():
    optax = pytest.importorskip("optax")
    cycle = dict(init_value=1.0, peak_value=1.0, warmup_steps=0, end_value=0.1)
    with jax.numpy_dtype_promotion("standard"):
        theirs = optax.sgdr_schedule([dict(cycle, decay_steps=n) for n in (3, 6, 12)])
        want = [theirs(count) for count in range(21)]
    ours = schedules.restarts(1.0, 3, 2, 0.1)
    np.testing.assert_allclose(ours(jnp.arange(21)), want, rtol=2e-6, atol=1e-7)


TORCH = [  # (fnn's at learning rate 1, PyTorch's name, its arguments)
    (schedules.linear(0.25, 1.0, 5), "LinearLR", dict(start_factor=0.25, total_iters=5)),
    (schedules.polynomial(1.0, 0.0, 2.0, 8), "PolynomialLR", dict(total_iters=8, power=2.0)),
    (schedules.exponential(1.0, 1, 0.9), "ExponentialLR", dict(gamma=0.9)),
    (schedules.exponential(1.0, 3, 0.5, staircase=True), "StepLR", dict(step_size=3, gamma=0.5)),
    (schedules.piecewise_constant([1.0, 0.5, 0.25], [3, 7]), "MultiStepLR",
     dict(milestones=[3, 7], gamma=0.5)),  # fmt: skip
    (schedules.restarts(1.0, 3, 2, 0.1), "CosineAnnealingWarmRestarts",
     dict(T_0=3, T_mult=2, eta_min=0.1)),  # fmt: skip
    # PyTorch is at the peak and at the end one step early: the same with one step less
    (
        schedules.one_cycle(15, 1.0, pct_start=3 / 15),
        "OneCycleLR",
        dict(max_lr=1.0, total_steps=16, pct_start=0.25, cycle_momentum=False),
    ),
    (
        schedules.one_cycle(15, 1.0, 3 / 15, 6 / 15, kind="linear"),
        "OneCycleLR",
        dict(max_lr=1.0, total_steps=16, pct_start=0.25, cycle_momentum=False, three_phase=True,
             anneal_strategy="linear"),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("ours", "name", "options"), TORCH, ids=[row[1] for row in TORCH])
def test_equals_pytorch(ours, name, options):
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0)
    scheduler = getattr(torch.optim.lr_scheduler, name)(optimizer, **options)
    want = []
    for _ in range(16):
        want.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(want) < 16:
            scheduler.step()
    np.testing.assert_allclose(ours(jnp.arange(16)), want, rtol=2e-6, atol=1e-7)


def test_optax_refuses_traced_horizons():
    optax = pytest.importorskip("optax")
    horizons = asarray([5, 10])
    with pytest.raises(jax.errors.TracerBoolConversionError):
        jax.vmap(lambda n: optax.linear_schedule(1.0, 0.0, n)(5))(horizons)
    got = jax.vmap(lambda n: schedules.linear(1.0, 0.0, n)(5))(horizons)
    np.testing.assert_allclose(got, [0, 0.5])


def test_optax_never_warms_up_in_no_steps():
    optax = pytest.importorskip("optax")
    assert optax.warmup_constant_schedule(0.0, 1.0, 0)(100) == 0
    assert schedules.warmup_constant(0.0, 1.0, 0)(100) == 1


def test_optax_loses_the_end_of_a_long_cosine():
    optax = pytest.importorskip("optax")
    want = math.sin(math.pi / 2 / 10_000) ** 2
    with jax.numpy_dtype_promotion("standard"):
        theirs = optax.cosine_decay_schedule(1.0, 10_000)(jnp.int32(9_999))
    assert abs(theirs / want - 1) > 0.1
    np.testing.assert_allclose(schedules.cosine(1.0, 10_000)(jnp.int32(9_999)), want, rtol=1e-5)


nan = float("nan")


REFUSED = [
    (lambda: schedules.constant("a"), "constant: expected value"),
    (lambda: schedules.linear(nan, 0.0, 1), "linear: expected init_value"),
    (lambda: schedules.linear(jnp.ones(2), 0.0, 1), "init_value to be a number"),
    (lambda: schedules.linear(1.0, 0.0, -1), "linear: expected transition_steps"),
    (lambda: schedules.linear(1.0, 0.0, True), "transition_steps to be a number"),
    (lambda: schedules.linear(1.0, 0.0, 2**31), "transition_steps in .0, 2147483647"),
    (lambda: schedules.linear(1.0, 0.0, 1, -1), "transition_begin"),
    (lambda: schedules.polynomial(1.0, 0.0, -1, 1), "polynomial: expected power"),
    (lambda: schedules.exponential(1.0, 0, 0.5), "exponential: expected transition_steps"),
    (lambda: schedules.exponential(1.0, 1, -0.5), "exponential: expected decay_rate"),
    (lambda: schedules.exponential(1.0, 1, 0.5, end_value="a"), "exponential: expected end_value"),
    (lambda: schedules.cosine(1.0, -1), "cosine: expected decay_steps"),
    (lambda: schedules.cosine(1.0, 1, exponent=-1), "cosine: expected exponent"),
    (lambda: schedules.restarts(1.0, 0), "restarts: expected decay_steps"),
    (lambda: schedules.restarts(1.0, 1, 1.5), "restarts: expected t_mult to be a whole"),
    (lambda: schedules.restarts(1.0, 1, 0), "restarts: expected t_mult"),
    (lambda: schedules.inverse_sqrt(1.0, -1), "inverse_sqrt: expected warmup_steps"),
    (lambda: schedules.warmup_constant(0.0, 1.0, -1), "warmup_constant: expected warmup_steps"),
    (lambda: schedules.warmup_linear(0.0, 1.0, 5, 4), "warmup_linear: expected decay_steps in .5"),
    (lambda: schedules.warmup_cosine(0.0, 1.0, 5, 4), "warmup_cosine: expected decay_steps in .5"),
    (lambda: schedules.warmup_exponential(0.0, 1.0, 5, 0, 0.5), "expected transition_steps"),
    (lambda: schedules.one_cycle(10, 1.0, 1.5), "one_cycle: expected pct_start"),
    (lambda: schedules.one_cycle(10, 1.0, 0.5, 0.3), "one_cycle: expected pct_final in .0.5"),
    (lambda: schedules.one_cycle(10, 1.0, div_factor=0), "one_cycle: expected div_factor"),
    (lambda: schedules.one_cycle(10, 1.0, kind="cos"), "one_cycle: expected kind"),
    (lambda: schedules.piecewise_constant([1.0], [1]), "one more of values than of boundaries"),
    (lambda: schedules.piecewise_constant([1.0, 2.0, 3.0], [5, 4]), r"boundaries\[1\] in .5"),
    (lambda: schedules.piecewise_constant([1.0, "a"], [5]), r"values\[1\] to be a number"),
    (lambda: schedules.piecewise_constant({0: 1.0}, [5]), "values to be a list"),
    (lambda: schedules.piecewise_interpolate([1.0, 2.0], 5), "boundaries to be a list"),
    (lambda: schedules.piecewise_interpolate([1.0, 2.0], [5], "cos"), "expected kind"),
    (lambda: schedules.join([schedules.constant(1.0)], [5]), "join: expected one more of sch"),
    (lambda: schedules.join([1.0], []), "join: expected schedules to be a function"),
    (lambda: schedules.linear(1.0, 0.0, 5)("a"), "a count of updates"),
    (lambda: schedules.linear(1.0, 0.0, 5)(2**31), "a count of updates"),
    (lambda: schedules.constant(1.0)(None), "a count of updates"),
    (lambda: reduce_on_plateau(factor=1.5), "reduce_on_plateau: expected factor"),
    (lambda: reduce_on_plateau(patience=0), "reduce_on_plateau: expected patience"),
    (lambda: reduce_on_plateau(rtol=-1.0), "reduce_on_plateau: expected rtol"),
    (lambda: reduce_on_plateau(atol=-1.0), "reduce_on_plateau: expected atol"),
    (lambda: reduce_on_plateau(cooldown=-1), "reduce_on_plateau: expected cooldown"),
    (lambda: reduce_on_plateau(accumulation_size=0), "expected accumulation_size"),
    (lambda: reduce_on_plateau(min_scale=2.0), "reduce_on_plateau: expected min_scale"),
    (lambda: fnn.optim.scale("a"), "scale: expected factor"),
]


@pytest.mark.parametrize(("call", "match"), REFUSED, ids=range(len(REFUSED)))
@pytest.mark.parametrize("mode", ["eager", "jit"])
def test_what_is_refused(call, match, mode):
    with pytest.raises(fnn.FnnError, match=match):
        call() if mode == "eager" else jax.jit(lambda: (call(), None)[1])()


def test_concrete_arrays_are_checked_under_jit():
    boundaries = asarray([3, 2])

    @jax.jit
    def build():
        return schedules.piecewise_constant(jnp.ones(3), boundaries)(0)

    with pytest.raises(fnn.FnnError, match="boundaries"):
        build()


def test_every_schedule_is_in_the_table():
    tested = {inspect.unwrap(getattr(row[0], "func", row[0])).__name__ for row in ROWS.values()}
    assert tested | {"join"} == set(schedules.__all__)
