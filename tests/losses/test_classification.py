"""Losses of classifiers at extreme logits, of odd labels, and against scikit-learn and PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fnn import losses
from tests.losses import oracles_batch
from tests.losses.support import CASES, EXTREME, IMPOSSIBLE, given_as, jitted, with_gradient
from tests.support import asarray, assert_close


@pytest.mark.parametrize("name", ["sigmoid_cross_entropy", "focal"])
@pytest.mark.parametrize("label", [0, 1, 0.3])
def test_extreme_logits_of_two_classes(name, label):
    """Every one of them is finite but for an infinite logit of the wrong side."""
    case = CASES[name]
    logits = [*EXTREME, np.inf]
    x, y = asarray(logits, "float32"), jnp.full(len(logits), label)
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
    logits = asarray([row] * 3, dtype)
    finite = np.isfinite(row)
    exact = labels = np.arange(3)[finite]  # each finite logit once as the label
    logits = logits[: len(labels)]
    if kind == "distributions":
        exact = labels = np.eye(3)[labels]
    labels = asarray(labels, dtype if kind == "distributions" else "int32")
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
    loss = jitted("softmax_cross_entropy")(asarray([0, -jnp.inf, 1]), asarray(1))
    assert loss == jnp.inf


@pytest.mark.parametrize("kind", ["integers", "distributions"])
@pytest.mark.parametrize("shift", [0, 1e4, -1e4])
def test_softmax_cross_entropy_does_not_depend_on_a_shift(kind, shift):
    """The largest logit must go before the logarithm: logsumexp(x) - x_i rounds at the size of x,
    in float32 to 1e-3 at logits of 1e4, and to 0 where the loss is log(1 + exp(-15)) = 3.06e-7."""
    logits = np.float32([[0, 0, 0], [15, 0, -np.inf]]) + np.float32(shift)
    labels = asarray([2, 0]) if kind == "integers" else jnp.eye(3)[np.array([2, 0])]
    loss = losses.softmax_cross_entropy(asarray(logits), labels)
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
        label, x, dx = asarray(label), asarray(x), asarray(dx)

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
        logits = asarray(rng.normal(size=(3, classes)), "float32")
        labels = np.array([0, 1, min(200, classes - 1, jnp.iinfo(dtype).max)])
        got = jitted("softmax_cross_entropy")(logits, asarray(labels, dtype))
        wanted = oracles_batch.softmax_cross_entropy(np.float64(logits), labels)
        assert_close(got, wanted, dtype="float32")


@pytest.mark.parametrize("name", ["softmax_cross_entropy", "log_loss", "multiclass_hinge"])
def test_labels_out_of_range_give_nan(name):
    got = jitted(name)(jnp.full((4, 3), 0.3), asarray([-1, 0, 2, 3]))
    np.testing.assert_array_equal(np.isnan(got), [True, False, False, True])


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


def test_binary_labels_are_zero_or_one():
    """-1 as a label, of those who count {-1, 1}, is not taken for something else."""
    for loss in (losses.sigmoid_cross_entropy, losses.focal, losses.hinge, losses.binary_log_loss):
        got = jax.jit(loss)(jnp.full(4, 0.5), asarray([-1, 0, 1, 2]))
        np.testing.assert_array_equal(np.isnan(got), [True, False, False, True])
        flags = jax.jit(loss)(jnp.full(2, 0.5), asarray([False, True]))
        np.testing.assert_allclose(flags, got[1:3], rtol=1e-6)


def test_smoothing_at_its_ends_with_an_impossible_class():
    x, labels = IMPOSSIBLE[:1], asarray([1])
    loss = jax.jit(lambda e: losses.softmax_cross_entropy(x, labels, label_smoothing=e)[0])
    np.testing.assert_allclose(loss(0.0), np.log1p(np.exp(-3.0)), rtol=1e-6)
    assert loss(0.1) == jnp.inf and loss(1.0) == jnp.inf
    impossible = losses.softmax_cross_entropy(x, asarray([2]), label_smoothing=1.0)
    assert impossible == jnp.inf
