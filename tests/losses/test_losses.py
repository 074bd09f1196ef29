"""Losses against loops in float64, at ordinary and at extreme inputs, and wrongly used."""

import functools
from collections.abc import Callable
from contextlib import nullcontext
from inspect import signature
from math import comb
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import fnn
from fnn import errors, losses
from tests.losses import oracles as plain
from tests.losses import oracles_batch
from tests.support import assert_close, numeric_vjp

seeds = st.integers(0, 2**32 - 1)
RNG = np.random.default_rng(0)
LEAD = (2, 3)


class Case(NamedTuple):
    """A loss, its oracle of one example, and a draw of arguments: floating ones come first."""

    loss: Callable
    oracle: Callable
    draw: Callable  # (rng, lead) -> NumPy arguments
    tail: tuple = ()  # what an example's losses add to the leading axes
    options: dict = {}
    free: bool = False  # whether an example's own axes may vary

    def call(self, *args, **more):
        return self.loss(*args, **self.options, **more)

    def exact(self, lead, *args):
        oracle = functools.partial(self.oracle, **self.options)
        return plain.over(oracle, lead, self.tail, *args)


def normal(n, *tail, scale=1.0):
    return lambda rng, lead: [scale * rng.normal(size=(*lead, *tail)) for _ in range(n)]


def scored(*tail, classes=2, scale=3.0):
    def draw(rng, lead):
        return [scale * rng.normal(size=(*lead, *tail)), rng.integers(0, classes, lead)]

    return draw


def softly(scale=3.0):
    return lambda rng, lead: [scale * rng.normal(size=lead), rng.uniform(size=lead)]


def distributed(rng, lead):
    """Logits and distributions, some of them with zeros."""
    p = rng.dirichlet(np.ones(5), lead) * rng.choice([0, 1, 1], (*lead, 5))
    return [3 * rng.normal(size=(*lead, 5)), p]


def counted(rng, lead):
    return [rng.normal(size=lead), rng.poisson(2, lead).astype("float64")]


def probable(rng, lead):
    return [rng.dirichlet(np.ones(4), lead), rng.integers(0, 4, lead)]


def probable_softly(rng, lead):
    return [rng.dirichlet(np.ones(4), lead), rng.dirichlet(np.ones(4), lead)]


def chances(rng, lead):
    return [rng.uniform(0.01, 0.99, size=lead), rng.integers(0, 2, lead)]


def spoken(rng, lead):
    """Four times of three classes, up to two labels (not the blank, 1), with lengths."""
    logits = 2 * rng.normal(size=(*lead, 4, 3))
    lengths = [rng.integers(3, 5, lead), rng.integers(0, 3, lead)]
    return [logits, rng.choice([0, 2], (*lead, 2)), *lengths]


def written(rng, lead):
    return [2 * rng.normal(size=(*lead, 4, 5)), rng.integers(0, 5, (*lead, 4))]


CASES = {
    "squared_error": Case(losses.squared_error, plain.squared_error, normal(2)),
    "absolute_error": Case(losses.absolute_error, plain.absolute_error, normal(2)),
    "huber": Case(losses.huber, plain.huber, normal(2, scale=2)),
    "huber 0.5": Case(losses.huber, plain.huber, normal(2), options={"delta": 0.5}),
    "log_cosh": Case(losses.log_cosh, plain.log_cosh, normal(2)),
    "gaussian_nll": Case(losses.gaussian_nll, plain.gaussian_nll, normal(3)),
    "poisson_nll": Case(losses.poisson_nll, plain.poisson_nll, counted),
    "softmax_cross_entropy": Case(
        losses.softmax_cross_entropy, plain.softmax_cross_entropy, scored(5, classes=5), free=True
    ),
    "softmax_cross_entropy of distributions": Case(
        losses.softmax_cross_entropy, plain.softmax_cross_entropy, distributed
    ),
    "softmax_cross_entropy smoothed": Case(
        losses.softmax_cross_entropy,
        plain.softmax_cross_entropy,
        scored(5, classes=5),
        options={"label_smoothing": 0.1},
        free=True,
    ),
    "sigmoid_cross_entropy": Case(
        losses.sigmoid_cross_entropy, plain.sigmoid_cross_entropy, scored()
    ),
    "sigmoid_cross_entropy soft": Case(
        losses.sigmoid_cross_entropy, plain.sigmoid_cross_entropy, softly()
    ),
    "focal": Case(losses.focal, plain.focal, scored()),
    "focal soft": Case(losses.focal, plain.focal, softly(), options={"gamma": 0.5, "alpha": 0.6}),
    "log_loss": Case(losses.log_loss, plain.log_loss, probable, free=True),
    "log_loss soft": Case(losses.log_loss, plain.log_loss, probable_softly, options={"eps": 0.3}),
    "binary_log_loss": Case(losses.binary_log_loss, plain.binary_log_loss, chances),
    "hinge": Case(losses.hinge, plain.hinge, scored(scale=2)),
    "multiclass_hinge": Case(
        losses.multiclass_hinge, plain.multiclass_hinge, scored(4, classes=4), free=True
    ),
    "distillation": Case(
        losses.distillation, plain.distillation, normal(2, 4), options={"temperature": 2.0}
    ),
    "kl_divergence": Case(losses.kl_divergence, plain.kl_divergence, normal(2, 4)),
    "jensen_shannon": Case(losses.jensen_shannon, plain.jensen_shannon, normal(2, 4)),
    "gaussian_kl": Case(losses.gaussian_kl, plain.gaussian_kl, normal(2, 3)),
    "cosine_distance": Case(losses.cosine_distance, plain.cosine_distance, normal(2, 3)),
    "triplet": Case(losses.triplet, plain.triplet, normal(3, 3)),
    "info_nce": Case(losses.info_nce, plain.info_nce, normal(2, 3, 2), (3,), {"temperature": 0.5}),
    "ctc": Case(losses.ctc, plain.ctc, spoken, options={"blank": 1}, free=True),
    "language_model": Case(losses.language_model, plain.language_model, written, (3,), free=True),
}
cases = pytest.mark.parametrize("name", CASES)
ALONE = [name for name, case in CASES.items() if not case.tail]  # one loss an example


def within(dtype):
    """The context in which `dtype` exists."""
    return jax.enable_x64(True) if dtype == "float64" else nullcontext()


def floating(args):
    """How many of the arguments are floating; they come first."""
    return sum(np.issubdtype(a.dtype, np.floating) for a in args)


def given_as(dtype, args):
    """(jax arguments in `dtype`, the float64 numbers that they are)."""
    n = floating(args)
    cast = [jnp.asarray(a, dtype if i < n else "int32") for i, a in enumerate(args)]
    return cast, [np.asarray(a, "float64" if i < n else None) for i, a in enumerate(cast)]


@functools.cache
def jitted(name):
    return jax.jit(CASES[name].call)


@cases
@given(seed=seeds)
def test_the_formula(name, seed):
    case = CASES[name]
    args, exact = given_as("float32", case.draw(np.random.default_rng(seed), LEAD))
    assert_close(jitted(name)(*args), case.exact(LEAD, *exact), dtype="float32")


@cases
def test_derivatives_in_every_mode(name):
    """The gradient is the oracle's, the second derivatives are the gradient's differences."""
    case, lead = CASES[name], (2,)
    rng = np.random.default_rng(3)
    with within("float64"):
        args, exact = given_as("float64", case.draw(rng, lead))
        n = floating(exact)
        point, labels, rest = tuple(args[:n]), args[n:], exact[n:]
        weight = rng.normal(size=(*lead, *case.tail))
        v = tuple(jnp.asarray(rng.normal(size=a.shape)) for a in point)

        def f(point):
            return jnp.sum(case.call(*point, *labels) * weight)

        @jax.jit
        def derivatives(point):
            gradient, forward = jax.jvp(jax.grad(f), (point,), (v,))
            return gradient, *jax.jvp(f, (point,), (v,)), forward

        gradient, value, slope, forward = derivatives(point)
        assert_close(value, np.sum(case.exact(lead, *exact) * weight), dtype="float64")
        numeric = []
        for i in range(n):

            def moved(x, i=i):
                return case.exact(lead, *exact[:i], x, *exact[i + 1 : n], *rest)

            numeric.append(numeric_vjp(moved, exact[i], weight))
        for a, b in zip(gradient, numeric, strict=True):
            assert_close(a, b, tolerance=1e-6)
        along = sum(np.vdot(a, b) for a, b in zip(numeric, v, strict=True))
        assert_close(slope, np.float64(along), tolerance=1e-6)
        ahead, behind = (
            derivatives(tuple(a + h * b for a, b in zip(point, v, strict=True)))[0]
            for h in (1e-5, -1e-5)
        )
        for i in range(n):
            second = (np.asarray(ahead[i]) - np.asarray(behind[i])) / 2e-5
            assert_close(forward[i], second, tolerance=1e-5)


@functools.cache
def pulled(name):
    """The losses of lanes of `vmap` and the gradient of their sum, as one program."""
    case = CASES[name]

    @jax.jit
    def run(args, mask):
        n = floating(args)

        def lane(rest, mask, *point):
            return case.call(*point, *rest, mask=mask)

        loss = functools.partial(jax.vmap(lane), args[n:], mask)
        out, vjp = jax.vjp(loss, *args[:n])
        return out, vjp(jnp.ones_like(out))

    return run


def mask_shape(name, lead):
    return (*lead, *{"info_nce": (3,), "language_model": (4,)}.get(name, ()))


@cases
def test_narrow_dtypes_and_vmap(name):
    """bfloat16 in: float32 losses, as exact as float32 at those inputs; gradients in bfloat16."""
    case = CASES[name]
    args, exact = given_as("bfloat16", case.draw(np.random.default_rng(0), (6,)))
    loss, gradient = pulled(name)(args, jnp.ones(mask_shape(name, (6,)), bool))
    assert_close(loss, case.exact((6,), *exact), dtype="float32")
    for g, a in zip(gradient, args, strict=False):
        assert g.dtype == jnp.bfloat16 and g.shape == a.shape and jnp.isfinite(g).all()


@cases
def test_one_example_and_none(name):
    """Eagerly, in float16: an example without leading axes; and an empty batch."""
    case = CASES[name]
    args, exact = given_as("float16", case.draw(np.random.default_rng(1), ()))
    assert_close(case.call(*args), case.exact((), *exact), dtype="float32")
    args, _ = given_as("float32", case.draw(np.random.default_rng(1), (0,)))
    assert jitted(name)(*args).shape == (0, *case.tail)


@pytest.mark.parametrize("name", ALONE)
def test_masked_losses_are_zero_whatever_their_inputs(name):
    case, lead = CASES[name], (6,)
    rng = np.random.default_rng(2)
    args, exact = given_as("bfloat16", case.draw(rng, lead))
    mask = np.array([True, False, True, True, False, False])
    n = floating(exact)
    spoilt = []
    for i, a in enumerate(args):
        bad = np.float32([np.nan, -np.inf, np.inf]) if i < n else np.int32([-1, 99, 7])
        values = np.array(a.astype("float32") if i < n else a)
        values[~mask] = bad.reshape(3, *[1] * (a.ndim - 1))
        spoilt.append(jnp.asarray(values, a.dtype))
    out, gradient = pulled(name)(spoilt, mask)
    assert_close(out, np.where(mask, case.exact(lead, *exact), 0), dtype="float32")
    for g, wanted in zip(gradient, pulled(name)(args, np.ones(6, bool))[1], strict=True):
        g = np.float64(g)
        assert (g[~mask] == 0).all()
        np.testing.assert_array_equal(g[mask], np.float64(wanted)[mask])


def test_masked_pairs_are_nobodys_candidates():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 2, 4, 3))
    mask = np.array([[True, False, True, True], [False, False, False, False]])
    spoilt = [jnp.asarray(np.where(mask[..., None], x, np.nan), "float32") for x in (a, b)]

    @jax.jit
    def run(*pair):
        out, vjp = jax.vjp(lambda a, b: losses.info_nce(a, b, 0.3, mask=mask), *pair)
        return out, vjp(jnp.ones_like(out))

    got, gradient = run(*spoilt)
    kept = mask[0]
    assert_close(got[0][kept], plain.info_nce(a[0][kept], b[0][kept], 0.3), dtype="float32")
    assert (np.asarray(got)[~mask] == 0).all()
    for g in gradient:
        assert np.isfinite(g).all() and (np.asarray(g)[~mask] == 0).all()


def test_a_language_models_mask_marks_what_is_predicted():
    rng = np.random.default_rng(0)
    logits, tokens = rng.normal(size=(4, 5)), np.array([1, 3, 0, 2])
    exact = plain.language_model(logits, tokens)
    mask = np.array([False, False, True, False])  # a prompt of two tokens, padding of one
    logits[2] = np.nan  # predicts what is masked
    f = jax.jit(functools.partial(losses.language_model, mask=mask))
    got = f(jnp.asarray(logits, "float32"), jnp.asarray([1, 3, 0, -1]))
    assert_close(got, [0, exact[1], 0], dtype="float32")
    assert_close(losses.masked_mean(got, mask[1:]), exact[1])


# --- extreme inputs

EXTREME = [0.0, 1.0, -3.0, 60.0, -1e4, 1e30, -1e30, -np.inf]


@pytest.mark.parametrize(
    "name",
    ["softmax_cross_entropy", "softmax_cross_entropy of distributions", "multiclass_hinge",
     "distillation", "kl_divergence", "jensen_shannon"],
)  # fmt: skip
@given(seed=seeds)
def test_extreme_logits(name, seed):
    """Rows of any of `EXTREME`, not all impossible: exact, with a finite gradient if finite."""
    case, rng = CASES[name], np.random.default_rng(seed)
    args, _ = given_as("float32", case.draw(rng, LEAD))
    n = floating(args)
    shape = args[0].shape
    for i in range(1 if "softmax" in name else n):
        logits = rng.choice(EXTREME, shape)
        logits[..., 0] = rng.choice([0.0, 3.0], LEAD)
        args[i] = jnp.asarray(logits, "float32")
    args, exact = given_as("float32", args)
    with np.errstate(over="ignore"):
        wanted = case.exact(LEAD, *exact)
    got, gradient = with_gradient(name)(*args)
    assert_close(got, wanted, dtype="float32")
    for g in gradient[: 1 if "softmax" in name else n]:
        assert np.isfinite(np.asarray(g)[np.isfinite(wanted)]).all()


@functools.cache
def with_gradient(name):
    case = CASES[name]

    @jax.jit
    def run(*args):
        n = floating(args)
        out, vjp = jax.vjp(lambda *p: case.call(*p, *args[n:]), *args[:n])
        return out, vjp(jnp.ones_like(out))

    return run


@pytest.mark.parametrize("name", ["sigmoid_cross_entropy", "focal"])
@pytest.mark.parametrize("label", [0, 1, 0.3])
def test_extreme_logits_of_two_classes(name, label):
    """Every one of them is finite but for an infinite logit of the wrong side."""
    case = CASES[name]
    logits = [*EXTREME, np.inf]
    x, y = jnp.asarray(logits, "float32"), jnp.full(len(logits), label)
    got, (slope, *_) = with_gradient(name)(x, y)
    exact = np.float64(x), np.full(len(logits), np.float64(np.float32(label)))
    wanted = case.exact((len(logits),), *exact)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-7)
    assert (
        np.isfinite(wanted[:-2]).all() and np.isfinite(np.asarray(slope)[np.isfinite(wanted)]).all()
    )
    if name == "sigmoid_cross_entropy":  # whose slope is sigmoid(x) - y
        sigmoid = 1 / (1 + np.exp(-np.clip(exact[0], -99, 99)))
        np.testing.assert_allclose(slope, sigmoid - exact[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("loss", "args", "value", "gradient"),
    [
        (losses.squared_error, (1e10, 0.0), 1e20, 2e10),
        (losses.absolute_error, (2.0, 2.0), 0, 0),
        (losses.absolute_error, (-1e38, 1e38), 2e38, -1),
        (losses.huber, (1e38, 0.0), 1e38, 1),
        (losses.huber, (np.inf, 0.0), np.inf, 1),
        (losses.huber, (3.0, 3.0), 0, 0),
        (losses.log_cosh, (1e38, 0.0), 1e38, 1),
        (losses.log_cosh, (-np.inf, 0.0), np.inf, -1),
        (losses.log_cosh, (1e-6, 0.0), 5e-13, 1e-6),  # 0 if log 2 were subtracted
        (losses.gaussian_nll, (0.0, -1e4, 0.0), (np.log(2 * np.pi) - 1e4) / 2, 0),
        (losses.gaussian_nll, (1.0, 1e30, 0.0), 5e29, 0),
        (losses.poisson_nll, (-np.inf, 0.0), 0, 0),
        (losses.poisson_nll, (-np.inf, 1.0), np.inf, -1),
        (losses.binary_log_loss, (0.0, 1.0), 1 - np.log(1e-7), -1e7),
        (losses.binary_log_loss, (1.0, 0.0), 1 - np.log(1e-7), 1e7),
        (losses.binary_log_loss, (1.0, 1.0), 0, -1),
        (losses.binary_log_loss, (0.0, 0.0), 0, 1),
    ],
)
def test_limits(loss, args, value, gradient):
    """The loss at one point and its gradient in the first argument."""
    args = [jnp.asarray(a, "float32") for a in args]
    got, slope = jax.jit(jax.value_and_grad(loss))(*args)
    np.testing.assert_allclose(got, value, rtol=2e-6, atol=1e-6 if value == 0 else 0)
    np.testing.assert_allclose(slope, gradient, rtol=1e-5)


def test_second_derivatives_at_no_error():
    """Of huber and log cosh the curvature at 0 is 1, where |r| has none."""
    for loss in (losses.huber, losses.log_cosh):
        one = jnp.float32(1)
        assert jax.jit(jax.grad(jax.grad(loss)))(one, one) == 1


def close_divergence(p, q, temperature=1.0):
    """KL by terms that do not cancel, in float64."""
    log_p, log_q = (oracles_batch.log_softmax(np.float64(x) / temperature) for x in (p, q))
    d = log_q - log_p
    return temperature**2 * np.sum(np.exp(log_p) * (np.expm1(d) - d), axis=-1)


def close_jensen_shannon(p, q):
    log_p, log_q = (oracles_batch.log_softmax(np.float64(x)) for x in (p, q))
    t = np.tanh((log_q - log_p) / 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        h = (1 + t) * np.log1p(t) + (1 - t) * np.log1p(-t)
    return np.sum((np.exp(log_p) + np.exp(log_q)) / 2 * h / 2, axis=-1)


def close_cosine(a, b):
    a, b = (np.float64(x) / np.linalg.norm(np.float64(x), axis=-1, keepdims=True) for x in (a, b))
    return np.sum((a - b) ** 2, axis=-1) / 2


CLOSE = {
    "kl_divergence": (losses.kl_divergence, close_divergence),
    "jensen_shannon": (losses.jensen_shannon, close_jensen_shannon),
    "distillation": (
        lambda a, b: losses.distillation(b, a, 3.0),
        functools.partial(close_divergence, temperature=3),
    ),
    "cosine_distance": (losses.cosine_distance, close_cosine),
    "gaussian_kl": (
        lambda a, b: losses.gaussian_kl(0 * a, b - a),
        lambda a, b: np.sum(np.expm1(np.float64(b - a)) - (b - a), axis=-1) / 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CLOSE)
def test_divergences_of_what_is_close_are_right_and_never_negative(name):
    """10,000 draws at each distance, in float32; far and huge logits, too."""
    loss, oracle = CLOSE[name]
    rng = np.random.default_rng(0)
    compiled = jax.jit(loss)
    for apart, rtol in ((1e-3, 0.02), (1e-2, 0.002), (1.0, 1e-4), (30.0, 1e-4)):
        a = (2 * rng.normal(size=(10_000, 7))).astype("float32")
        b = (a + apart * rng.normal(size=a.shape)).astype("float32")
        got, want = compiled(a, b), oracle(a, b)
        assert (got >= 0).all()
        sound = want < 1e30  # of saturated rows the oracle's logarithms are NaN
        np.testing.assert_allclose(got[sound], want[sound], rtol=rtol, atol=1e-11)
    assert (compiled(a, a) < 1e-14).all()
    closer = np.float32(a + 1e-5 * rng.normal(size=a.shape))
    assert (compiled(a, closer) >= 0).all() and (compiled(a, closer) < 1e-8).all()
    assert np.isfinite(jnp.sqrt(compiled(a, closer))).all()


def test_no_ensembles_disagreement_is_negative():
    logits = jax.random.normal(jax.random.key(0), (1, 10_000, 5))
    logits = logits + 1e-4 * jax.random.normal(jax.random.key(1), (4, 10_000, 5))
    assert (fnn.ensembles.uncertainty(logits).epistemic >= 0).all()


def test_likelihoods_of_large_counts_and_small_chances():
    """Terms of 1e7 leave 7, and 1 - q leaves nothing of a q of 1e-9."""
    counts = np.float32([0, 1, 9, 10, 11, 50, 1e3, 1e6])
    log_rate = np.log(counts + np.sqrt(counts) + 1).astype("float32")
    want = -stats.poisson.logpmf(np.float64(counts), np.exp(np.float64(log_rate)))
    got, slope = jax.vmap(jax.value_and_grad(losses.poisson_nll))(log_rate, counts)
    np.testing.assert_allclose(got, want, rtol=3e-4)
    np.testing.assert_allclose(slope, np.exp(np.float64(log_rate)) - counts, rtol=3e-3)
    q = jnp.float32([1e-9, 1e-5, 0.5])
    got = losses.binary_log_loss(q, jnp.zeros(3, int))
    np.testing.assert_allclose(got, -np.log1p(-np.float64(q)), rtol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_cosines_of_any_length_and_of_none(scale):
    a = jnp.asarray([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0]]) * scale
    b = jnp.asarray([[4.0, 3.0], [1.0, 2.0], [-2.0, 0.0]])
    got, gradient = with_gradient("cosine_distance")(a, b)
    np.testing.assert_allclose(got, [1 - 24 / 25, 1, 2], rtol=1e-5)
    assert all(jnp.isfinite(g).all() for g in gradient)
    np.testing.assert_array_equal(gradient[0][1], [0, 0])
    np.testing.assert_array_equal(gradient[1][1], [0, 0])
    zero = np.zeros((3, 2), "float32")
    np.testing.assert_allclose(jitted("info_nce")(zero, b), np.log([3, 3, 3]), rtol=1e-6)


# --- softmax cross-entropy


@jax.jit
def loss_and_pull(logits, labels, dloss):
    """The losses and d sum(loss * dloss) / d logits, as one program."""
    loss, vjp = jax.vjp(lambda x: losses.softmax_cross_entropy(x, labels), logits)
    return loss, vjp(dloss.astype(loss.dtype))[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["integers", "distributions"])
@pytest.mark.parametrize(
    "row",
    [[1e4, 0, -1e4], [-1e4, -1e4, -1e4], [0, -np.inf, 1], [-np.inf, 3, -np.inf], [3e38, 0, -3e38]],
    ids=str,
)
def test_softmax_cross_entropy_at_extreme_logits(row, kind, dtype):
    """Finite value and gradient wherever the label's own logit is finite."""
    logits = jnp.asarray([row] * 3, dtype)
    finite = np.isfinite(row)
    exact = labels = np.arange(3)[finite]  # each finite logit once as the label
    logits = logits[: len(labels)]
    if kind == "distributions":
        exact = labels = np.eye(3)[labels]
    labels = jnp.asarray(labels, dtype if kind == "distributions" else "int32")
    loss, dlogits = loss_and_pull(logits, labels, jnp.ones(len(logits), dtype))
    want = oracles_batch.softmax_cross_entropy(np.float64(logits), exact)
    assert np.isfinite(want).all()
    tolerance = 1e-5 if dtype == "float32" else 1e-2
    fits = want < 3e38  # 6e38 is beyond float32
    np.testing.assert_allclose(np.float64(loss)[fits], want[fits], rtol=tolerance, atol=tolerance)
    want = oracles_batch.softmax_cross_entropy_backward(
        np.float64(logits), exact, np.ones(len(logits))
    )
    np.testing.assert_allclose(np.float64(dlogits), want, atol=tolerance)


def test_softmax_cross_entropy_of_an_impossible_label_is_infinite():
    loss = losses.softmax_cross_entropy(jnp.asarray([0, -jnp.inf, 1]), jnp.asarray(1))
    assert loss == jnp.inf


@pytest.mark.parametrize("kind", ["integers", "distributions"])
@pytest.mark.parametrize("shift", [0, 1e4, -1e4])
def test_softmax_cross_entropy_does_not_depend_on_a_shift(kind, shift):
    """The largest logit must go before the logarithm: logsumexp(x) - x_i rounds at the size of x,
    in float32 to 1e-3 at logits of 1e4, and to 0 where the loss is log(1 + exp(-15)) = 3.06e-7."""
    logits = np.float32([[0, 0, 0], [15, 0, -np.inf]]) + np.float32(shift)
    labels = jnp.asarray([2, 0]) if kind == "integers" else jnp.eye(3)[np.array([2, 0])]
    loss = losses.softmax_cross_entropy(jnp.asarray(logits), labels)
    np.testing.assert_allclose(loss[0], np.log(3), rtol=1e-6)
    np.testing.assert_allclose(loss[1], np.log1p(np.exp(-15)), rtol=0.25)  # 1 + 3e-7 in float32


@pytest.mark.parametrize("kind", ["integers", "distributions"])
def test_softmax_cross_entropy_differentiates_in_every_mode(kind):
    """Its Hessian is diag(q) - q q', q = softmax(logits), whatever the label."""
    rng = np.random.default_rng(0)
    x, dx = rng.normal(size=(2, 4))
    label = np.eye(4)[2] * 0.5 + 0.125 if kind == "distributions" else np.int32(2)
    q = np.exp(oracles_batch.log_softmax(x))
    hessian = np.diag(q) - np.outer(q, q)
    gradient = oracles_batch.softmax_cross_entropy_backward(x, label, np.float64(1))
    with jax.enable_x64(True):
        label, x, dx = jnp.asarray(label), jnp.asarray(x), jnp.asarray(dx)

        def f(x):
            return losses.softmax_cross_entropy(x, label)

        assert_close(jax.jvp(f, (x,), (dx,))[1], gradient @ dx, dtype="float64")
        for second in (jax.jacfwd(jax.grad(f)), jax.jacrev(jax.jacfwd(f))):
            assert_close(jax.jit(second)(x), hessian, dtype="float64")


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int8, jnp.uint16, jnp.int16, jnp.uint32])
def test_labels_of_any_integer_dtype(dtype):
    """The number of classes need not fit the labels' dtype, and 200 must not become negative."""
    rng = np.random.default_rng(0)
    for classes in (128, 256, 257):
        logits = jnp.asarray(rng.normal(size=(3, classes)), "float32")
        labels = np.array([0, 1, min(200, classes - 1, jnp.iinfo(dtype).max)])
        got = jitted("softmax_cross_entropy")(logits, jnp.asarray(labels, dtype))
        wanted = oracles_batch.softmax_cross_entropy(np.float64(logits), labels)
        assert_close(got, wanted, dtype="float32")


@pytest.mark.parametrize("name", ["softmax_cross_entropy", "log_loss", "multiclass_hinge"])
def test_labels_out_of_range_give_nan(name):
    got = jitted(name)(jnp.full((4, 3), 0.3), jnp.array([-1, 0, 2, 3]))
    np.testing.assert_array_equal(np.isnan(got), [True, False, False, True])


def test_labels_beyond_32_bits_are_no_classes():
    """2^32 is 0 in 32 bits. In float32's mode NumPy's are refused, in x64 they are out of range."""
    scores, beyond = jnp.full((1, 3), 0.3), np.array([2**32])
    kinds = [
        losses.softmax_cross_entropy, losses.log_loss, losses.multiclass_hinge,
        fnn.metrics.accuracy().value, fnn.metrics.f1(3).value,
    ]  # fmt: skip
    for loss in kinds:
        with pytest.raises(errors.InputError, match="labels that int32 holds"):
            loss(scores, beyond)
    with jax.enable_x64(True):
        for loss in kinds:
            assert np.isnan(loss(scores, jnp.asarray(beyond))).all()
        for loss in (losses.sigmoid_cross_entropy, fnn.metrics.roc_auc().value):
            assert np.isnan(loss(scores[0, :1], jnp.asarray(beyond))).all()
        ctc = losses.ctc(jnp.zeros((2, 3)), jnp.asarray(beyond + 1))
        assert np.isnan(ctc)


def test_oracle_cross_entropy_is_torchs():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    logits, dloss = rng.normal(size=(3, 5)) * 5, rng.normal(size=3)
    for labels in (rng.integers(0, 5, 3), rng.dirichlet(np.ones(5), 3)):
        x = torch.tensor(logits, requires_grad=True)
        loss = torch.nn.functional.cross_entropy(x, torch.tensor(labels), reduction="none")
        loss.backward(torch.tensor(dloss))
        assert_close(oracles_batch.softmax_cross_entropy(logits, labels), loss.detach().numpy())
        dx = oracles_batch.softmax_cross_entropy_backward(logits, labels, dloss)
        assert_close(dx, x.grad.numpy())


# --- masked means, penalties, units


@given(seed=seeds, kept=st.sampled_from([0, 1, 5]))
def test_masked_mean(seed, kept):
    rng = np.random.default_rng(seed)
    values, mask = rng.normal(size=(2, 3)), np.zeros(6, bool)
    mask[rng.permutation(6)[:kept]] = True
    mask = mask.reshape(2, 3)
    spoilt = jnp.asarray(np.where(mask, values, np.nan), "float32")
    got, gradient = jax.value_and_grad(losses.masked_mean)(spoilt, jnp.asarray(mask))
    assert_close(got, values[mask].sum() / max(kept, 1), dtype="float32")
    assert_close(gradient, mask / max(kept, 1), dtype="float32")
    assert losses.masked_mean(jnp.zeros(0), jnp.zeros(0, bool)) == 0


def test_a_masked_mean_is_counted_in_float32():
    """In bfloat16 a sum of ones would stop at 256."""
    got = losses.masked_mean(jnp.ones(1000, jnp.bfloat16), jnp.arange(1000) < 900)
    assert got == 1 and got.dtype == jnp.float32


PARAMS = {
    "conv1": {"kernel": np.array([[1.0, -2.0], [0.0, 3.0]]), "bias": np.array([5.0, -6.0])},
    "block": {"norm": {"scale": np.array([7.0])}, "embed": {"embedding": np.array([[8.0]])}},
}


@pytest.mark.parametrize(
    ("select", "leaves"),
    [
        ("kernel", [1, -2, 0, 3]),
        (("kernel", "embedding"), [1, -2, 0, 3, 8]),
        ("*", [1, -2, 0, 3, 5, -6, 7, 8]),
        ("[bs]*", [5, -6, 7]),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_penalties(select, leaves, dtype):
    with within(dtype):
        params = jax.tree.map(lambda a: jnp.asarray(a, dtype), PARAMS)
        wide = "float64" if dtype == "float64" else "float32"
        assert_close(losses.l1(params, select), np.float64(sum(map(abs, leaves))), dtype=wide)
        assert_close(losses.l2(params, select), np.float64(sum(w * w for w in leaves)), dtype=wide)
        slopes = jax.jit(jax.grad(losses.l1))(params)
        np.testing.assert_array_equal(np.float64(slopes["conv1"]["kernel"]), [[1, -1], [0, 1]])
        assert not np.asarray(slopes["conv1"]["bias"]).any()
        slopes = jax.jit(jax.grad(losses.l2))(params)
        np.testing.assert_array_equal(np.float64(slopes["conv1"]["kernel"]), [[2, -4], [0, 6]])


def test_penalties_of_a_network():
    params, _ = fnn.serial(fnn.dense(3), fnn.dense(2)).init(jax.random.key(0), (1, 4))
    kernels = [np.float64(params[name]["kernel"]) for name in ("dense1", "dense2")]
    assert_close(losses.l2(params), sum((k**2).sum() for k in kernels), dtype="float32")
    many = {"kernel": jnp.full(1000, 1, jnp.bfloat16)}
    assert losses.l1(many) == 1000  # which bfloat16 sums do not reach


def test_perplexity_and_bits():
    nats = np.log([1.0, 7.0, 50.0])
    assert_close(
        losses.perplexity(jnp.asarray(nats, "bfloat16")).round(), [1, 7, 50], dtype="float32"
    )
    assert_close(losses.perplexity(2.0), np.exp(2.0), dtype="float32")
    bits = losses.bits_per_character(jnp.asarray(nats, "float32"), tokens=10, characters=40)
    assert_close(bits, np.log2([1, 7, 50]) / 4, dtype="float32")
    assert_close(losses.bits_per_character(np.log(2)), 1.0, dtype="float32")


# --- connectionist temporal classification


def ctc_inputs(seed, batch=4, times=12, places=4, classes=6):
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(batch, times, classes))
    labels = rng.integers(1, classes, (batch, places))
    labels[0] = labels[0, 0]  # repeats, each of which takes a blank
    return logits, labels, rng.integers(8, times + 1, batch), rng.integers(0, places + 1, batch)


def test_ctc_is_optaxs_and_torchs():
    optax = pytest.importorskip("optax")
    logits, labels, times, places = ctc_inputs(0)
    args, _ = given_as("float32", [logits, labels, times, places])
    got, (gradient,) = with_gradient_of_ctc(*args)
    time_padding = (np.arange(12) >= times[:, None]).astype("float32")
    label_padding = (np.arange(4) >= places[:, None]).astype("float32")
    wanted = jax.jit(optax.ctc_loss)(args[0], time_padding, args[1], label_padding)
    np.testing.assert_allclose(got, wanted, rtol=1e-4)
    torch = pytest.importorskip("torch")
    x = torch.tensor(logits, requires_grad=True)
    loss = torch.nn.functional.ctc_loss(
        x.log_softmax(-1).transpose(0, 1),
        *map(torch.tensor, (labels, times, places)),
        reduction="none",
    )
    loss.sum().backward()
    assert_close(got, loss.detach().numpy(), dtype="float32")
    assert_close(gradient, x.grad.numpy(), dtype="float32")


@jax.jit
def with_gradient_of_ctc(logits, *rest):
    out, vjp = jax.vjp(lambda x: losses.ctc(x, *rest), logits)
    return out, vjp(jnp.ones_like(out))


def test_ctc_without_a_path_is_infinite_and_flat():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3, 3)), "float32")
    labels = jnp.asarray([[1, 1], [1, 2], [1, 1]])
    got, (gradient,) = with_gradient_of_ctc(
        logits, labels, jnp.array([2, 1, 3]), jnp.array([2, 2, 2])
    )
    np.testing.assert_array_equal(np.isinf(got), [True, True, False])
    assert not np.asarray(gradient)[:2].any() and np.isfinite(gradient).all()


def test_ctc_looks_at_no_padding_and_refuses_wrong_values():
    logits, labels, *_ = ctc_inputs(1)
    times, places = np.array([5, 5, 0, 0]), np.array([2, 0, 0, 1])
    x, y = logits.copy(), labels.copy()
    x[:, 5:], y[:, 2:] = np.nan, -7
    got, (gradient,) = with_gradient_of_ctc(*given_as("float32", [x, y, times, places])[0])
    wanted = [plain.ctc(logits[i], labels[i], 5, places[i]) for i in range(2)]
    assert_close(got, [*wanted, 0, np.inf], dtype="float32")  # no times: certain to be empty
    assert np.isfinite(gradient).all() and not np.asarray(gradient)[:, 5:].any()
    for wrong in ([0, 1, 2, 3], [1, 1, 1, 6], [1, -1, 2, 2]):  # a blank; out of range
        bad = labels.copy()
        bad[1] = wrong
        args = given_as("float32", [logits, bad, np.full(4, 12), np.full(4, 4)])[0]
        np.testing.assert_array_equal(np.isnan(with_gradient_of_ctc(*args)[0]), [0, 1, 0, 0])
    lengths = np.array([12, 13, -1, 12]), np.array([4, 4, 4, 5])
    args = given_as("float32", [logits, labels, *lengths])[0]
    np.testing.assert_array_equal(np.isnan(with_gradient_of_ctc(*args)[0]), [0, 1, 1, 1])


def test_ctc_of_bytes():
    got = jax.jit(losses.ctc)(jnp.zeros((2, 300)), jnp.array([200], jnp.uint8))
    assert_close(got, np.log(300**2 / 3), dtype="float32")


def test_ctc_of_a_long_sequence_does_not_underflow():
    """Every path has probability 3^-400."""
    n, k = 400, 2
    paths = comb(n + k, 2 * k)  # ways to cut time into k runs and k + 1 gaps, which may be empty
    got = jax.jit(losses.ctc)(jnp.zeros((n, 3)), jnp.array([1, 2]))
    assert_close(got, n * np.log(3) - np.log(paths), dtype="float32")


# --- others' numbers


def test_losses_are_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    q, y = rng.dirichlet(np.ones(4), 50), np.r_[0:4, rng.integers(0, 4, 46)]
    got = losses.log_loss(*given_as("float32", [q, y])[0]).mean()
    assert_close(got, metrics.log_loss(y, q), tolerance=1e-5)
    scores = rng.normal(size=(50, 4))
    got = losses.multiclass_hinge(*given_as("float32", [scores, y])[0]).mean()
    assert_close(got, metrics.hinge_loss(y, scores), tolerance=1e-5)
    got = losses.hinge(*given_as("float32", [scores[:, 0], y % 2])[0]).mean()
    assert_close(got, metrics.hinge_loss(y % 2, scores[:, 0]), tolerance=1e-5)
    p = rng.uniform(size=50)
    got = losses.binary_log_loss(*given_as("float32", [p, y % 2])[0]).mean()
    assert_close(got, metrics.log_loss(y % 2, p), tolerance=1e-5)


def test_losses_are_optaxs():
    optax = pytest.importorskip("optax")
    rng = np.random.default_rng(0)
    (x, t), _ = given_as("float32", list(rng.normal(size=(2, 5, 4))))
    y = jnp.asarray(rng.integers(0, 2, (5, 4)), "float32")
    smooth = optax.smooth_labels(jax.nn.one_hot(jnp.arange(4), 4), 0.2)
    smoothed = functools.partial(losses.softmax_cross_entropy, label_smoothing=0.2)
    pairs = jax.jit(lambda x, t, y: [
        (smoothed(x[:4], jnp.arange(4)), optax.softmax_cross_entropy(x[:4], smooth)),
        (losses.squared_error(x, t), 2 * optax.l2_loss(x, t)),
        (losses.huber(x, t, 0.7), optax.huber_loss(x, t, delta=0.7)),
        (losses.log_cosh(x, t), optax.log_cosh(x, t)),
        (losses.sigmoid_cross_entropy(x, y), optax.sigmoid_binary_cross_entropy(x, y)),
        (losses.focal(x, y), optax.sigmoid_focal_loss(x, y, alpha=0.25)),
        (losses.hinge(x, y.astype(int)), optax.hinge_loss(x, 2 * y - 1)),
        (losses.cosine_distance(x, t), optax.cosine_distance(x, t)),
        (losses.kl_divergence(x, t), optax.kl_divergence(jax.nn.log_softmax(t), jax.nn.softmax(x))),
    ])(x, t, y)  # fmt: skip
    for got, wanted in pairs:
        assert_close(got, wanted)


def test_binary_labels_are_zero_or_one():
    """-1 as a label, of those who count {-1, 1}, is not taken for something else."""
    for loss in (losses.sigmoid_cross_entropy, losses.focal, losses.hinge, losses.binary_log_loss):
        got = jax.jit(loss)(jnp.full(4, 0.5), jnp.array([-1, 0, 1, 2]))
        np.testing.assert_array_equal(np.isnan(got), [True, False, False, True])
        flags = jax.jit(loss)(jnp.full(2, 0.5), jnp.array([False, True]))
        np.testing.assert_allclose(flags, got[1:3], rtol=1e-6)


def test_losses_train_under_supervised():
    """Elementwise or per example, the mean of any of them is what a step descends."""
    net = fnn.dense(3)
    params, state = net.init(jax.random.key(0), (1, 4))
    for loss, labels in (
        (losses.squared_error, jnp.ones((2, 3))),
        (losses.softmax_cross_entropy, jnp.array([0, 2])),
    ):
        loss_fn = fnn.train.supervised(net, loss)
        batch = {"image": jnp.ones((2, 4)), "label": labels}
        value, _ = loss_fn(params, state, batch, jax.random.key(1))
        assert value.shape == () and np.isfinite(value)


# Every option that is a number, with values at and next to both ends of its range.
LABELS = jnp.array([1, 0])
ENDS = {
    "label_smoothing": (
        lambda e, x: losses.softmax_cross_entropy(x, LABELS, label_smoothing=e), (0.0, 0.5, 1.0)
    ),
    "label_smoothing of probabilities": (
        lambda e, x: losses.softmax_cross_entropy(x, jnp.eye(3)[LABELS], label_smoothing=e),
        (0.0, 0.5, 1.0),
    ),
    "gamma": (lambda g, x: losses.focal(x, jnp.ones((2, 3), int), g), (0.0, 1e-6, 2.0, 1e30)),
    "alpha": (lambda a, x: losses.focal(x, jnp.ones((2, 3), int), 2.0, a), (0.0, 0.5, 1.0)),
    "alpha of zeros": (lambda a, x: losses.focal(x, jnp.zeros((2, 3), int), 0.0, a), (0.0, 1.0)),
    "eps": (lambda e, x: losses.log_loss(jax.nn.softmax(x), LABELS, eps=e), (1e-30, 1e-7, 1.0)),
    "eps of two": (
        lambda e, x: losses.binary_log_loss(jax.nn.softmax(x), jnp.ones((2, 3), int), eps=e),
        (1e-30, 1.0),
    ),
    "delta": (lambda d, x: losses.huber(x, jnp.zeros((2, 3)), d), (0.0, 1e-30, 1.0, jnp.inf)),
    "margin": (lambda m, x: losses.triplet(x, x, 0 * jnp.ones((2, 3)), m), (0.0, 1.0)),
    "temperature": (lambda t, x: losses.distillation(x, x[::-1], t), (1e-3, 1.0, 1e6)),
    "temperature of pairs": (lambda t, x: losses.info_nce(x, x, t), (1e-3, 1.0, 1e6)),
}  # fmt: skip
INSIDE = jnp.array([[0.5, 3.0, -1.0], [2.0, 0.0, 1e-8]])
IMPOSSIBLE = jnp.array([[0.0, 3.0, -jnp.inf], [jnp.inf, 1.0, -2.0]])


@pytest.mark.parametrize("name", ENDS)
def test_traced_options_are_as_plain_ones_at_both_ends(name):
    """With impossible classes and certain outcomes, too: what a weight of 0 makes of infinity."""
    loss, ends = ENDS[name]
    traced = jax.jit(loss)
    inputs = [INSIDE]
    if "label_smoothing" in name:
        inputs.append(IMPOSSIBLE.at[1, 0].set(5))
    elif name not in ("margin", "temperature", "temperature of pairs", "eps", "eps of two"):
        inputs.append(IMPOSSIBLE)
    for x in inputs:
        for end in ends:
            plain_one, got = loss(end, x), traced(end, x)
            np.testing.assert_allclose(got, plain_one, rtol=1e-5, atol=1e-9, err_msg=str(end))
            assert not np.isnan(got).any(), (end, got)
    for end in ends[:-1]:
        slope = jax.grad(lambda e, x=INSIDE: traced(e, x).sum())(float(end))
        assert np.isfinite(slope), end


def test_smoothing_at_its_ends_with_an_impossible_class():
    x, labels = IMPOSSIBLE[:1], jnp.array([1])
    loss = jax.jit(lambda e: losses.softmax_cross_entropy(x, labels, label_smoothing=e)[0])
    np.testing.assert_allclose(loss(0.0), np.log1p(np.exp(-3.0)), rtol=1e-6)
    assert loss(0.1) == jnp.inf and loss(1.0) == jnp.inf
    impossible = losses.softmax_cross_entropy(x, jnp.array([2]), label_smoothing=1.0)
    assert impossible == jnp.inf


def test_options_may_be_traced():
    x, t = jnp.asarray([0.5, 3.0]), jnp.zeros(2)
    deltas = jnp.asarray([0.5, 1.0, 2.0])
    got = jax.jit(jax.vmap(lambda d: losses.huber(x, t, d)))(deltas)
    wanted = [[plain.huber(r, 0, d) for r in (0.5, 3.0)] for d in (0.5, 1.0, 2.0)]
    assert_close(got, wanted, dtype="float32")
    slope = jax.jit(jax.grad(lambda d: losses.huber(x, t, d)[1]))(jnp.float32(2))
    assert_close(slope, 1.0)  # d/d delta of delta (3 - delta / 2)
    temperatures = jnp.asarray([0.5, 2.0])
    for loss in (losses.info_nce, losses.distillation):
        got = jax.jit(jax.vmap(lambda t, f=loss: f(jnp.eye(3), jnp.ones((3, 3)), t)))(temperatures)
        assert got.shape == (2, 3)


@pytest.mark.parametrize("wide", [False, True], ids=["float32", "x64"])
def test_no_ranks_or_dtypes_are_promoted(wide):
    """Of any loss, with a mask or its gradients; the tests' dtype promotion is strict."""
    with jax.enable_x64(wide), jax.numpy_rank_promotion("raise"):
        for name, case in CASES.items():
            args, _ = given_as("float64" if wide else "float32", case.draw(RNG, LEAD))
            mask = jnp.ones(LEAD[:1], bool)

            def total(*args, case=case, mask=mask):
                return case.call(*args, mask=mask).sum()

            n = tuple(range(floating(args)))
            jax.eval_shape(jax.value_and_grad(total, n), *args), name


# --- wrong inputs

NOT_ARRAYS = (
    None, "text", 1.5, 3, [1.0, 2.0], {"x": None}, object(), jnp.float32, (2, 3),
    np.array(["text"]), np.array([None]),
)  # fmt: skip


def outcome(call, *args):
    try:
        call(*args)
    except errors.FnnError as error:
        return error
    return None


def same_under_jit(call, *args):
    """The error of a call, after checking that jit says the same."""
    traced = outcome(jax.jit(call).trace, *args)
    if traced is not None:
        eager = outcome(call, *args)
        assert str(eager) == str(traced) and type(eager) is type(traced)
    return traced


def assert_teaches(error, name):
    assert isinstance(error, (ValueError, TypeError)), error
    assert error.expected and error.got and error.mend
    assert str(error) == f"{name}: expected {error.expected}, got {error.got}; {error.mend}"


def shape_mutations(shape):
    for axis in range(len(shape)):
        for change in (1, -1, 1 - shape[axis], -shape[axis]):
            if change:
                yield (*shape[:axis], shape[axis] + change, *shape[axis + 1 :])
    for drop in range(1, len(shape) + 1):
        yield shape[drop:]
    yield (1, *shape)
    yield (*shape, 1)


def legal(name):
    case = CASES[name]
    args, _ = given_as("float32", case.draw(np.random.default_rng(0), (4,)))
    return case, args, case.loss.__name__


@cases
def test_wrong_shapes(name):
    case, args, said = legal(name)
    for i, x in enumerate(args):
        for shape in shape_mutations(x.shape):
            wrong = [*args[:i], jnp.zeros(shape, x.dtype), *args[i + 1 :]]
            error = same_under_jit(case.call, *wrong)
            if error is None:
                assert case.free and shape[:1] == (4,) and len(shape) == x.ndim
                continue
            assert_teaches(error, said)
            assert isinstance(error, errors.OptionError) or str(shape) in str(error)


@cases
def test_wrong_dtypes(name):
    case, args, said = legal(name)
    n = floating(args)
    for i, x in enumerate(args):
        for dtype in (jnp.int32, jnp.uint8, bool, jnp.complex64, jnp.float32):
            error = same_under_jit(case.call, *args[:i], x.astype(dtype), *args[i + 1 :])
            if i < n and dtype == jnp.float32:
                assert error is None
            elif (
                i < n
                and dtype != jnp.complex64
                and i
                and n == 2
                and "labels" in signature(case.loss).parameters
            ):
                continue  # integers are the other kind of labels
            elif i >= n and dtype != jnp.complex64:
                fits = error is None or isinstance(error, (errors.DtypeError, errors.ShapeError))
                assert fits, error
            else:
                assert isinstance(error, errors.DtypeError), (i, dtype)
                assert_teaches(error, said)
                assert jnp.dtype(dtype).name in error.got


@cases
def test_things_that_are_no_arrays(name):
    case, args, said = legal(name)
    names = list(signature(case.loss).parameters)
    for i in range(len(args)):
        for wrong in NOT_ARRAYS:
            if wrong is None and "lengths" in names[i]:
                continue  # all are there
            error = outcome(case.call, *args[:i], wrong, *args[i + 1 :])
            assert isinstance(error, errors.InputError), wrong
            assert_teaches(error, said)
            assert names[i] in str(error)


@cases
def test_wrong_masks(name):
    case, args, said = legal(name)
    shape = mask_shape(name, (4,))
    out = jax.eval_shape(case.call, *args, mask=jnp.ones(shape, bool))
    assert out.shape == (4, *case.tail)
    for wrong in shape_mutations(shape):
        error = same_under_jit(lambda m: case.call(*args, mask=m), jnp.ones(wrong, bool))
        if wrong == shape[: len(wrong)]:  # masks whole rows
            assert error is None
            continue
        assert isinstance(error, errors.ShapeError)
        assert_teaches(error, said)
    for dtype in (jnp.int32, jnp.float32):
        error = same_under_jit(lambda m: case.call(*args, mask=m), jnp.ones(shape, dtype))
        assert isinstance(error, errors.DtypeError)
    for wrong in NOT_ARRAYS[1:]:
        assert_teaches(outcome(lambda m: case.call(*args, mask=m), wrong), said)


@pytest.mark.parametrize(
    ("name", "option", "wrong"),
    [
        ("huber", "delta", -1.0),
        ("softmax_cross_entropy", "label_smoothing", 1.5),
        ("focal", "gamma", -1.0),
        ("focal", "alpha", 2.0),
        ("log_loss", "eps", 0.0),
        ("binary_log_loss", "eps", -1e-7),
        ("distillation", "temperature", 0.0),
        ("info_nce", "temperature", 0),
        ("triplet", "margin", -0.1),
        ("ctc", "blank", 3),
        ("ctc", "blank", 1.0),
    ],
)
def test_wrong_options(name, option, wrong):
    case, args, said = legal(name)
    for bad in (wrong, None, "text", float("nan"), True, jnp.ones(2), [0.5], object()):
        error = outcome(functools.partial(case.loss, **{**case.options, option: bad}), *args)
        assert isinstance(error, errors.OptionError), bad
        assert_teaches(error, said)


def test_wrong_uses_of_the_others():
    for penalty in (losses.l1, losses.l2):
        said = penalty.__name__
        for params in ({}, {"dense": {"bias": jnp.ones(2)}}, None, jnp.ones(2), 3.0):
            error = outcome(penalty, params)
            assert isinstance(error, errors.ParamsError)
            assert_teaches(error, said)
        assert "bias" in str(outcome(penalty, {"dense": {"bias": jnp.ones(2)}}))
        for leaf in ("text", 1.5, jnp.ones(2, int), jnp.ones(2, complex)):
            error = outcome(penalty, {"dense": {"kernel": leaf}})
            assert isinstance(error, (errors.InputError, errors.DtypeError))
            assert "dense/kernel" in str(error)
        for select in (None, (), 3, ["kernel"], (1,)):
            assert isinstance(outcome(penalty, PARAMS, select), errors.OptionError)
    for wrong in NOT_ARRAYS:
        assert_teaches(outcome(losses.masked_mean, jnp.ones(2), wrong), "masked_mean")
        assert_teaches(outcome(losses.masked_mean, wrong, jnp.ones(2, bool)), "masked_mean")
        if not isinstance(wrong, (int, float)):
            assert_teaches(outcome(losses.perplexity, wrong), "perplexity")
        assert_teaches(outcome(losses.bits_per_character, 1.0, 0), "bits_per_character")
    for shape in shape_mutations((4,)):
        error = same_under_jit(losses.masked_mean, jnp.ones(4), jnp.ones(shape, bool))
        assert error is None if shape == () else isinstance(error, errors.ShapeError)
