"""Attention to some of the examples at a time; with options, see test_products.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fnn.layers.attention import cpu_pieces
from fnn.layers.attention.products import attend
from fnn.layers.attention.rows import Rule
from tests.layers.attention.support import S, formula, inputs

ALL, PAST = Rule(), Rule(causal=True)
ONE = 4 * S * S * 4  # bytes of scores of an example


def batches(seed):
    """Six examples."""
    several = [inputs(seed + i) for i in range(3)]
    return [np.float32(np.concatenate(x)) for x in zip(*several, strict=True)]


@pytest.mark.cpu
@pytest.mark.parametrize("rule", [ALL, PAST], ids=["all", "past"])
def test_some_examples_at_a_time(rule, monkeypatch):
    """Values, slopes, gradients, their slopes, and runs side by side."""
    args, along = batches(0), batches(5)

    def f(*args):
        return attend(*args, None, rule)

    grads = jax.grad(lambda args: jnp.sum(jnp.sin(f(*args))))

    def every(args, along):
        slopes = jax.jvp(lambda *args: (f(*args), grads(args)), args, along)
        return slopes, grads(args), jax.vmap(f)(*(jnp.stack([x, 2 * x]) for x in args))

    def compiled():
        return jax.device_get(jax.jit(lambda *a: every(*a))(tuple(args), tuple(along)))

    whole = compiled()
    for name, value in {"SOME": 2 * ONE, "LARGE": 2**24, "PIECES": 2}.items():
        monkeypatch.setattr(cpu_pieces, name, value)
    assert "length=3" in str(jax.make_jaxpr(grads)(args))  # pieces
    found = compiled()
    (y, _), _ = found[0]
    np.testing.assert_allclose(y, formula(*args, causal=rule.causal), atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, whole)


def test_what_is_large():
    def at_once(batch, t, n=8):
        shape = jax.ShapeDtypeStruct((batch, t, n, 16), jnp.float32)
        queries, keys = cpu_pieces.Queries(shape, shape), cpu_pieces.Keys(shape, shape, shape)
        return cpu_pieces._examples(queries, keys, ALL), cpu_pieces._queries(queries, keys)

    assert at_once(32, 64) == (0, 0)  # 4 MiB in all
    assert at_once(128, 128, 4) == (8, 0)  # 2 MiB of 32
    assert at_once(127, 128, 4) == (1, 0)  # a prime number of them
    assert at_once(8, 512)[0] == 1  # of 8 MiB each
    assert at_once(4, 512)[0] == 0
    assert at_once(1, 2048) == (0, 128)  # 8 of 128 MiB
    assert at_once(64, 2048) == (0, 64)
