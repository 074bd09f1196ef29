"""Losses and metrics against the NumPy oracles, at ordinary and at extreme logits."""

from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import assert_close

import fnn

leading = st.sampled_from([(), (0,), (1,), (3,), (2, 3)])
seeds = st.integers(0, 2**32 - 1)


def wide(dtype):
    """The context in which `dtype` exists."""
    return jax.enable_x64(True) if dtype == "float64" else nullcontext()


@jax.jit
def loss_and_pull(logits, labels, dloss):
    """The losses and d sum(loss * dloss) / d logits, as one program."""
    loss, vjp = jax.vjp(lambda x: fnn.losses.softmax_cross_entropy(x, labels), logits)
    return loss, vjp(dloss.astype(loss.dtype))[0]


def draw_labels(kind, logits, rng):
    """Integers [...] or distributions [..., C], some of them with zeros."""
    *lead, classes = logits.shape
    if kind == "integers":
        return rng.integers(0, classes, lead)
    return rng.dirichlet(np.ones(classes), lead) * rng.choice([0, 1, 1], logits.shape)


@pytest.mark.parametrize("kind", ["integers", "distributions"])
@given(
    lead=leading,
    classes=st.sampled_from([1, 4]),
    scale=st.sampled_from([1, 30, 1e4]),
    dtype=st.sampled_from(["float64", "float32"]),
    seed=seeds,
)
def test_softmax_cross_entropy_is_the_formula(kind, lead, classes, scale, dtype, seed):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(*lead, classes)) * scale
    labels = draw_labels(kind, logits, rng)
    with wide(dtype):
        logits = jnp.asarray(logits, dtype)
        labels = jnp.asarray(labels, "int32" if kind == "integers" else dtype)
        exact = np.float64(logits), np.asarray(labels, None if kind == "integers" else "float64")
        dloss = jnp.asarray(rng.normal(size=lead), dtype)
        loss, dlogits = loss_and_pull(logits, labels, dloss)
        assert_close(loss, oracles.softmax_cross_entropy(*exact), dtype=dtype)
        want = oracles.softmax_cross_entropy_backward(*exact, np.float64(dloss))
        assert_close(dlogits, want, dtype=dtype)


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
    want = oracles.softmax_cross_entropy(np.float64(logits), exact)
    assert np.isfinite(want).all()
    tolerance = 1e-5 if dtype == "float32" else 1e-2
    fits = want < 3e38  # 6e38 is beyond float32
    np.testing.assert_allclose(np.float64(loss)[fits], want[fits], rtol=tolerance, atol=tolerance)
    want = oracles.softmax_cross_entropy_backward(np.float64(logits), exact, np.ones(len(logits)))
    np.testing.assert_allclose(np.float64(dlogits), want, atol=tolerance)


def test_softmax_cross_entropy_of_an_impossible_label_is_infinite():
    loss = fnn.losses.softmax_cross_entropy(jnp.asarray([0, -jnp.inf, 1]), jnp.asarray(1))
    assert loss == jnp.inf


@pytest.mark.parametrize("kind", ["integers", "distributions"])
@pytest.mark.parametrize("shift", [0, 1e4, -1e4])
def test_softmax_cross_entropy_does_not_depend_on_a_shift(kind, shift):
    """The largest logit must go before the logarithm: logsumexp(x) - x_i rounds at the size of x,
    in float32 to 1e-3 at logits of 1e4, and to 0 where the loss is log(1 + exp(-15)) = 3.06e-7."""
    logits = np.float32([[0, 0, 0], [15, 0, -np.inf]]) + np.float32(shift)
    labels = jnp.asarray([2, 0]) if kind == "integers" else jnp.eye(3)[np.array([2, 0])]
    loss = fnn.losses.softmax_cross_entropy(jnp.asarray(logits), labels)
    np.testing.assert_allclose(loss[0], np.log(3), rtol=1e-6)
    np.testing.assert_allclose(loss[1], np.log1p(np.exp(-15)), rtol=0.25)  # 1 + 3e-7 in float32


@pytest.mark.parametrize("kind", ["integers", "distributions"])
def test_softmax_cross_entropy_differentiates_in_every_mode(kind):
    """Its Hessian is diag(q) - q q', q = softmax(logits), whatever the label."""
    rng = np.random.default_rng(0)
    x, dx = rng.normal(size=(2, 4))
    label = np.eye(4)[2] * 0.5 + 0.125 if kind == "distributions" else np.int32(2)
    q = np.exp(oracles.log_softmax(x))
    hessian = np.diag(q) - np.outer(q, q)
    gradient = oracles.softmax_cross_entropy_backward(x, label, np.float64(1))
    with jax.enable_x64(True):
        label, x, dx = jnp.asarray(label), jnp.asarray(x), jnp.asarray(dx)

        def f(x):
            return fnn.losses.softmax_cross_entropy(x, label)

        assert_close(jax.jvp(f, (x,), (dx,))[1], gradient @ dx, dtype="float64")
        for second in (jax.jacfwd(jax.grad(f)), jax.jacrev(jax.jacfwd(f))):
            assert_close(jax.jit(second)(x), hessian, dtype="float64")


def test_softmax_cross_entropy_jit_and_vmap_are_the_batch():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(5, 3)), "float32")
    labels = jnp.asarray(rng.integers(0, 3, 5), "int32")
    want = oracles.softmax_cross_entropy(np.float64(logits), np.asarray(labels))
    f = fnn.losses.softmax_cross_entropy
    assert_close(jax.jit(f)(logits, labels), want, dtype="float32")
    assert_close(jax.vmap(f)(logits, labels), want, dtype="float32")


@pytest.mark.parametrize("labels", ["uint8", "int32"])
def test_softmax_cross_entropy_takes_any_integers(labels):
    """Data sets hold labels as bytes: 200 must not become a negative number."""
    logits = np.random.default_rng(0).normal(size=(2, 250))
    y = np.asarray([200, 3], labels)
    loss = fnn.losses.softmax_cross_entropy(jnp.asarray(logits, "float32"), jnp.asarray(y))
    assert_close(loss, oracles.softmax_cross_entropy(logits, y), dtype="float32")


@pytest.mark.parametrize("labels", [np.zeros((3, 1), "int32"), np.ones((1, 4), "float32") / 4])
def test_softmax_cross_entropy_broadcasts_nothing(labels):
    with pytest.raises(Exception, match=r"label"):
        fnn.losses.softmax_cross_entropy(jnp.zeros((3, 4)), jnp.asarray(labels))


@given(lead=leading, classes=st.sampled_from([1, 4]), seed=seeds)
def test_accuracy_is_the_loop(lead, classes, seed):
    """Logits are small integers, so there are ties: the first largest counts."""
    rng = np.random.default_rng(seed)
    logits = rng.integers(-2, 2, (*lead, classes)).astype("float32")
    labels = rng.integers(0, classes, lead)
    got = fnn.metrics.accuracy(jnp.asarray(logits), jnp.asarray(labels, "int32"))
    assert_close(got, oracles.accuracy(logits, labels), dtype="float32")


def test_oracle_cross_entropy_is_torchs():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    logits, dloss = rng.normal(size=(3, 5)) * 5, rng.normal(size=3)
    for labels in (rng.integers(0, 5, 3), rng.dirichlet(np.ones(5), 3)):
        x = torch.tensor(logits, requires_grad=True)
        loss = torch.nn.functional.cross_entropy(x, torch.tensor(labels), reduction="none")
        loss.backward(torch.tensor(dloss))
        assert_close(oracles.softmax_cross_entropy(logits, labels), loss.detach().numpy())
        dx = oracles.softmax_cross_entropy_backward(logits, labels, dloss)
        assert_close(dx, x.grad.numpy())


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int8, jnp.uint16, jnp.int16, jnp.uint32])
def test_labels_of_any_integer_dtype(dtype):
    """The number of classes need not fit the labels' dtype."""
    for classes in (100, 128, 256, 257):
        logits = jax.random.normal(jax.random.key(0), (3, classes))
        labels = jnp.array([0, 1, 99])
        wanted = np.asarray(fnn.losses.softmax_cross_entropy(logits, labels))
        assert np.isfinite(wanted).all()
        np.testing.assert_array_equal(
            fnn.losses.softmax_cross_entropy(logits, labels.astype(dtype)), wanted
        )
        hits = fnn.metrics.accuracy(logits, labels.astype(dtype))
        np.testing.assert_array_equal(hits, np.argmax(logits, -1) == np.asarray(labels))
    wrong = fnn.losses.softmax_cross_entropy(jnp.zeros((2, 3)), jnp.array([-1, 3]))
    assert np.isnan(wrong).all()
