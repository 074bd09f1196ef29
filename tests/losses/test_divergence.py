"""Divergences are never negative."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import losses
from tests.losses import oracles_batch


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
    assert (jax.jit(fnn.ensembles.uncertainty)(logits).epistemic >= 0).all()
