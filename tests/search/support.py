"""A small sweep with known results, and ways to look into how it is computed."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

import fnn
from fnn.search import executor

KEYS = jax.random.split(jax.random.key(0), 3)


RATES, POWERS = np.float32([0.5, 2.0]), [1.0, 2.0, 3.0]


def run_fn(key, rate, power, shift=0.0):
    noise = jax.random.normal(key, (4,))
    return {"loss": jnp.sum(noise * rate**power) + shift, "curve": noise * rate}


def expected(rate, power, seed, shift=0.0):
    noise = np.asarray(jax.random.normal(KEYS[seed], (4,)))
    return noise.sum() * rate**power + shift, noise * rate


def check(found, powers=POWERS):
    combinations = itertools.product(enumerate(RATES), enumerate(powers), range(3))
    losses, curves = (found.grid(found.results[name]) for name in ("loss", "curve"))
    assert losses.shape == (2, len(powers), 3) and curves.shape == (2, len(powers), 3, 4)
    for (i, rate), (j, power), seed in combinations:
        loss, curve = expected(rate, power, seed)
        np.testing.assert_allclose(losses[i, j, seed], loss, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(curves[i, j, seed], curve, rtol=1e-6)


def swept(run_fn=run_fn, **options):
    grid = {"rate": RATES, "power": POWERS}
    grid |= {name: options.pop(name) for name in tuple(options) if name in grid}
    return fnn.search.sweep(run_fn, grid, **{"keys": KEYS, "progress": False} | options)


def on_cores(n, monkeypatch):
    """As on a CPU of so many cores, and not as eight devices."""
    monkeypatch.setattr(executor, "_cores", lambda: n)
    monkeypatch.setattr(jax, "devices", lambda: [None])


def on_host(fn, number, vmap_method="sequential"):
    """A function of NumPy in a run: float32 [] -> float32 []."""
    like = jax.ShapeDtypeStruct((), jnp.float32)
    return jax.pure_callback(fn, like, number, vmap_method=vmap_method)
