"""The example of two networks against each other runs, and its losses are the paper's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from tests.gallery.support import example, numbers, run
from tests.support import asarray


def bars(n):
    """Images in place of digits: number c is a bar of ink at its own height, with noise."""
    label = np.arange(n, dtype=np.int32) % 10
    image = np.random.default_rng(n).random((n, 28, 28, 1), np.float32) / 4
    for row in range(3):
        image[np.arange(n), 2 * label + row] += 0.7
    return {"image": image, "label": label}


def small(monkeypatch):
    """The example with small networks and simple images."""
    gan = example("gan")
    data = {"train": bars(400), "test": bars(200)}
    monkeypatch.setattr(fnn.data, "load", lambda name, floats: data)
    monkeypatch.setattr(gan, "READER_EPOCHS", 3)
    monkeypatch.setattr(gan, "BATCH_SIZE", 20)
    monkeypatch.setattr(gan, "LEARNING_RATE", 2e-2)

    @fnn.compose(digit=fnn.embedding(10, 784), ink=fnn.dense(784))
    def generator(f, z, label):
        return jax.nn.sigmoid(f.ink(z) + f.digit(label)).reshape(-1, 28, 28, 1)

    @fnn.compose(
        body=fnn.serial(fnn.flatten(3), fnn.dense(32), jnp.tanh), digit=fnn.embedding(10, 32)
    )
    def critic(f, x, label):
        return jnp.sum(f.body(x) * f.digit(label), axis=-1)

    monkeypatch.setattr(gan, "generator", generator)
    monkeypatch.setattr(gan, "critic", critic)
    return gan


@pytest.mark.full
def test_gan(tmp_path, monkeypatch, capsys):
    gan = small(monkeypatch)
    monkeypatch.setattr(gan, "PENALTY", 1.0)
    out = run(gan, "--epochs 20", tmp_path, monkeypatch, capsys)
    real, drawn = numbers(r"reads (\S+)% of", out)
    assert real > 90 and drawn > 60  # chance is 10
    assert numbers(r"distance (\S+) after 200 steps", out)[0] < 50
    assert (tmp_path / "gan.png").stat().st_size > 10_000


def test_gan_losses_are_the_papers(monkeypatch):
    """In NumPy, for a critic D(x, c) = s (x A x / 2 + b x + e_c), of slope s (A x + b)."""
    gan = small(monkeypatch)
    rng = np.random.default_rng(0)
    a, b, e = (rng.normal(size=s).astype(np.float32) / 20 for s in ((784, 784), 784, 10))
    a = a + a.T

    def critic(scale, x, label):
        x = x.reshape(-1, 784)
        return scale * (jnp.sum(x @ a * x, axis=-1) / 2 + x @ b + asarray(e)[label])

    fake = rng.random((6, 28, 28, 1), np.float32)
    monkeypatch.setattr(gan, "critic", critic)
    monkeypatch.setattr(gan, "generate", lambda ink, key, label: ink * fake)
    batch = {name: array[:6] for name, array in bars(20).items()}

    @jax.jit
    def losses(params, key):
        loss, (_, metrics) = gan.critic_loss(params, {}, batch, key)
        return loss, metrics, gan.generator_loss(params, {}, batch, key)[0]

    params = {"critic": jnp.float32(0.5), "generator": jnp.float32(0.7)}
    loss, metrics, minus = losses(params, jax.random.key(0))

    def score(x):
        return 0.5 * (np.sum(x @ a * x, axis=-1) / 2 + x @ b + e[batch["label"]])

    real, fake = (np.float64(x).reshape(6, 784) for x in (batch["image"], 0.7 * fake))
    distance = score(real).mean() - score(fake).mean()
    np.testing.assert_allclose(metrics["distance"], distance, rtol=1e-4)
    np.testing.assert_allclose(minus, -score(fake).mean(), rtol=1e-4)
    # The shares are random: the penalty is between those of the best and the worst.
    shares = np.linspace(0, 1, 101)[:, None, None]
    slopes = 0.5 * ((shares * real + (1 - shares) * fake) @ a + b)
    penalties = (np.linalg.norm(slopes, axis=-1) - 1) ** 2  # [101, 6]
    assert penalties.min(0).mean() <= metrics["penalty"] <= penalties.max(0).mean()
    np.testing.assert_allclose(loss, 10 * metrics["penalty"] - distance, rtol=1e-4)
