"""The larger programs of the gallery, made small; and what their formulas must satisfy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.gallery.support import example, fewer, numbers, run
from tests.support import asarray


def shrunk(name, monkeypatch, **constants):
    module = example(name)
    for constant, value in constants.items():
        monkeypatch.setattr(module, constant, value)
    return module


# --- cartpole


@pytest.mark.full
def test_cartpole(tmp_path, monkeypatch, capsys):
    small = dict(ENVS=4, HORIZON=32, EPOCHS=1, MINIBATCHES=2, FEATURES=8)
    cartpole = shrunk("cartpole", monkeypatch, **small)
    del cartpole.POLICIES["sees places"]  # the program of the first, with fewer inputs
    out = run(cartpole, "--updates 3 --seeds 2", tmp_path, monkeypatch, capsys)
    lengths = numbers(r"balances\s+(\S+) of", out)
    assert len(lengths) == 2 and all(8 < length < 100 for length in lengths)
    assert (tmp_path / "cartpole.png").stat().st_size > 10_000


def test_the_cart_obeys_the_equations_of_motion():
    """Lagrange's, for a cart and a thin rod of half the length l:

    (M + m) x'' + m l (a'' cos a - a'^2 sin a) = F  and  4/3 l a'' + x'' cos a = g sin a.
    """
    cartpole = example("cartpole")
    rng = np.random.default_rng(0)
    states = rng.uniform(-0.2, 0.2, (20, 4)).astype(np.float32)
    actions = rng.integers(0, 2, 20)
    carts = cartpole.Cart(asarray(states), jnp.zeros(20, jnp.int32))
    keys = jax.random.split(jax.random.key(0), 20)
    after, ended = jax.vmap(cartpole.act)(keys, carts, actions)
    assert not ended.any() and (np.asarray(after.age) == 1).all()
    rates = (np.float64(after.state) - states) / cartpole.STEP
    x, v, a, w = np.float64(states).T
    np.testing.assert_allclose(rates[:, [0, 2]], states[:, [1, 3]], atol=1e-5)
    push, turn = rates[:, 1], rates[:, 3]
    m, half, total = 0.1, 0.5, 1.1
    force = 10.0 * (2 * actions - 1)
    left = total * push + m * half * (turn * np.cos(a) - w**2 * np.sin(a))
    np.testing.assert_allclose(left, force, atol=1e-3)
    np.testing.assert_allclose(4 / 3 * half * turn + push * np.cos(a), 9.8 * np.sin(a), atol=1e-3)


def test_an_episode_ends_where_the_pole_has_fallen_or_time_is_up():
    cartpole = example("cartpole")
    states = np.zeros((4, 4), np.float32)
    states[1, 2], states[2, 0] = 0.25, 2.5
    ages = np.array([7, 7, 7, cartpole.LIMIT - 1])
    keys = jax.random.split(jax.random.key(0), 4)
    carts = cartpole.Cart(asarray(states), asarray(ages))
    after, ended = jax.vmap(cartpole.act)(keys, carts, np.ones(4, np.int32))
    np.testing.assert_array_equal(ended, [False, True, True, True])
    np.testing.assert_array_equal(after.age, [8, 0, 0, 0])
    assert (abs(np.asarray(after.state[1:])) <= 0.05).all()


def test_advantages_are_the_sum_of_later_errors():
    """Schulman et al. 2016, equation 16, as a double loop."""
    cartpole = example("cartpole")
    rng = np.random.default_rng(1)
    steps, carts = 7, 3
    value, last = rng.normal(size=(steps, carts)), rng.normal(size=carts)
    ended = rng.random((steps, carts)) < 0.3
    seen = cartpole.Seen(*(asarray(np.zeros((steps, carts))) for _ in cartpole.Seen._fields))
    seen = seen._replace(value=asarray(value, "float32"), ended=asarray(ended))
    found = cartpole.advantages(seen, asarray(last, "float32"))
    after = np.concatenate([value[1:], last[None]])
    error = 0.01 + 0.99 * np.where(ended, 0, after) - value
    for t in range(steps):
        for cart in range(carts):
            total, weight = 0.0, 1.0
            for later in range(t, steps):
                total += weight * error[later, cart]
                weight *= 0.99 * 0.95 * (1 - ended[later, cart])
            np.testing.assert_allclose(found[t, cart], total, rtol=1e-4, atol=1e-5)


# --- diffusion


@pytest.mark.full
def test_diffusion(tmp_path, monkeypatch, capsys):
    diffusion = shrunk("diffusion", monkeypatch, TIMES=6, DRAWN=1, BATCH_SIZE=4)
    fewer(monkeypatch, 100, 20)
    out = run(diffusion, "--steps 8", tmp_path, monkeypatch, capsys)
    trained, unseen = numbers(r"error (\S+) in", out) + numbers(r"training, (\S+) on", out)
    assert trained < 1.2 and unseen < 1.1
    assert (tmp_path / "diffusion.png").stat().st_size > 10_000


def test_what_is_drawn_has_the_distribution_of_the_data(monkeypatch):
    """For Gaussian pixels the best guess of the noise is known: in small steps it gives theirs."""
    diffusion, spread = shrunk("diffusion", monkeypatch, TIMES=1000), 0.2

    def best(params, x, t, digit):
        share = diffusion.kept(t[0])
        return x * jnp.sqrt(1 - share) / (share * spread**2 + 1 - share)

    monkeypatch.setattr(diffusion, "net", best)
    images, _ = diffusion.draw_digits({}, jnp.zeros(20, jnp.int32), jax.random.key(0))
    assert abs(float(images.std()) / spread - 1) < 0.02
    assert abs(float(images.mean())) < 0.02


# --- vit


@pytest.mark.full
def test_vit(tmp_path, monkeypatch, capsys):
    fewer(monkeypatch, 160, 60)
    vit = shrunk("vit", monkeypatch, BATCH_SIZE=16)
    out = run(vit, "--epochs 2", tmp_path, monkeypatch, capsys)
    (accuracy,) = numbers(r"test accuracy (\S+)%", out)
    assert accuracy > 15
    assert (tmp_path / "vit.png").stat().st_size > 10_000
