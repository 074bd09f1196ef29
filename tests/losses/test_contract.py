"""Every loss against a loop in float64, in every mode, masked, and wrongly used."""

import functools
from inspect import signature

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

import fnn
from fnn import errors, losses
from tests import support
from tests.losses import oracles as plain
from tests.losses.support import (
    CASES,
    EXTREME,
    IMPOSSIBLE,
    NOT_ARRAYS,
    floating,
    given_as,
    jitted,
    seeds,
    shape_mutations,
    with_gradient,
    within,
)
from tests.support import (
    asarray,
    assert_close,
    assert_teaches,
    numeric_vjp,
    outcome,
    same_when_traced,
)

RNG = np.random.default_rng(0)


LEAD = (2, 3)


cases = pytest.mark.parametrize("name", CASES)


ALONE = [name for name, case in CASES.items() if not case.tail]  # one loss an example


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
        v = tuple(asarray(rng.normal(size=a.shape)) for a in point)

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
        spoilt.append(asarray(values, a.dtype))
    out, gradient = pulled(name)(spoilt, mask)
    assert_close(out, np.where(mask, case.exact(lead, *exact), 0), dtype="float32")
    for g, wanted in zip(gradient, pulled(name)(args, np.ones(6, bool))[1], strict=True):
        g = np.float64(g)
        assert (g[~mask] == 0).all()
        np.testing.assert_array_equal(g[mask], np.float64(wanted)[mask])


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
        args[i] = asarray(logits, "float32")
    args, exact = given_as("float32", args)
    with np.errstate(over="ignore"):
        wanted = case.exact(LEAD, *exact)
    got, gradient = with_gradient(name)(*args)
    assert_close(got, wanted, dtype="float32")
    for g in gradient[: 1 if "softmax" in name else n]:
        assert np.isfinite(np.asarray(g)[np.isfinite(wanted)]).all()


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
    args = [asarray(a, "float32") for a in args]
    got, slope = jax.jit(jax.value_and_grad(loss))(*args)
    np.testing.assert_allclose(got, value, rtol=2e-6, atol=1e-6 if value == 0 else 0)
    np.testing.assert_allclose(slope, gradient, rtol=1e-5)


def test_losses_are_optaxs():
    optax = pytest.importorskip("optax")
    rng = np.random.default_rng(0)
    (x, t), _ = given_as("float32", list(rng.normal(size=(2, 5, 4))))
    y = asarray(rng.integers(0, 2, (5, 4)), "float32")
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


def test_losses_train_under_supervised():
    """Elementwise or per example, the mean of any of them is what a step descends."""
    net = fnn.dense(3)
    params, state = net.init(jax.random.key(0), (1, 4))
    for loss, labels in (
        (losses.squared_error, jnp.ones((2, 3))),
        (losses.softmax_cross_entropy, asarray([0, 2])),
    ):
        loss_fn = fnn.train.supervised(net, loss)
        batch = {"image": jnp.ones((2, 4)), "label": labels}
        value, _ = loss_fn(params, state, batch, jax.random.key(1))
        assert value.shape == () and np.isfinite(value)


# Every option that is a number, with values at and next to both ends of its range.
LABELS = asarray([1, 0])


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


INSIDE = asarray([[0.5, 3.0, -1.0], [2.0, 0.0, 1e-8]])


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
            rounding = 1e-5 if "temperature" in name else 1e-9  # logits of 1000 at 0.001
            np.testing.assert_allclose(got, plain_one, rtol=1e-5, atol=rounding, err_msg=str(end))
            assert not np.isnan(got).any(), (end, got)
    for end in ends[:-1]:
        slope = jax.grad(lambda e, x=INSIDE: traced(e, x).sum())(float(end))
        assert np.isfinite(slope), end


def test_options_may_be_traced():
    x, t = asarray([0.5, 3.0]), jnp.zeros(2)
    deltas = asarray([0.5, 1.0, 2.0])
    got = jax.jit(jax.vmap(lambda d: losses.huber(x, t, d)))(deltas)
    wanted = [[plain.huber(r, 0, d) for r in (0.5, 3.0)] for d in (0.5, 1.0, 2.0)]
    assert_close(got, wanted, dtype="float32")
    slope = jax.jit(jax.grad(lambda d: losses.huber(x, t, d)[1]))(jnp.float32(2))
    assert_close(slope, 1.0)  # d/d delta of delta (3 - delta / 2)
    temperatures = asarray([0.5, 2.0])
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


def legal(name):
    case = CASES[name]
    args, _ = given_as("float32", case.draw(np.random.default_rng(0), (4,)))
    return case, args, case.loss.__name__


@cases
def test_wrong_shapes(name):
    case, args, said = legal(name)
    for i, x in enumerate(args):
        for shape in shape_mutations(x.shape):
            wrong = [*args[:i], asarray(np.zeros(shape, x.dtype)), *args[i + 1 :]]
            error = same_when_traced(case.call, *wrong)
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
            error = same_when_traced(
                case.call, *args[:i], support.asarray(x, dtype), *args[i + 1 :]
            )
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
        error = same_when_traced(lambda m: case.call(*args, mask=m), jnp.ones(wrong, bool))
        if wrong == shape[: len(wrong)]:  # masks whole rows
            assert error is None
            continue
        assert isinstance(error, errors.ShapeError)
        assert_teaches(error, said)
    for dtype in (jnp.int32, jnp.float32):
        error = same_when_traced(lambda m: case.call(*args, mask=m), jnp.ones(shape, dtype))
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
