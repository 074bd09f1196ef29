"""Attention in blocks of queries: the same numbers, in memory that is linear in T."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import errors
from fnn.layers.attention.products import attend
from fnn.layers.attention.rows import Rule
from tests.support import asarray

T, S = 7, 7


def formula(q, k, v, mask, causal):
    """In float64, query by query: [B, T, N, D] and [B, S, K, D]."""
    q, k, v = map(np.float64, (q, k, v))
    y = np.zeros_like(q)
    share = q.shape[2] // k.shape[2]
    for b, t, n in np.ndindex(q.shape[:3]):
        keys = np.ones(k.shape[1], bool) if mask is None else np.broadcast_to(
            mask, (q.shape[0], q.shape[2], q.shape[1], k.shape[1]))[b, n, t]  # fmt: skip
        keys = keys & (np.arange(k.shape[1]) <= t) if causal else keys
        if keys.any():
            scores = k[b, keys, n // share] @ q[b, t, n] / np.sqrt(q.shape[-1])
            weights = np.exp(scores - scores.max())
            y[b, t, n] = weights / weights.sum() @ v[b, keys, n // share]
    return y


def inputs(seed, heads=(4, 2), s=S):
    rng = np.random.default_rng(seed)
    n, k = heads
    return [rng.normal(size=size) for size in ((2, T, n, 3), (2, s, k, 3), (2, s, k, 3))]


MASKS = {
    "none": None,
    "keys": (2, 1, 1, S),
    "queries": (2, 1, T, 1),
    "each": (2, 4, T, S),
    "one for all": (1, 1, T, S),
}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", MASKS)
def test_blocks_are_the_formula_and_so_are_their_derivatives(masked, causal):
    q, k, v = inputs(0)
    shape = MASKS[masked]
    mask = None if shape is None else np.random.default_rng(1).random(shape) < 0.6
    along = inputs(2)
    with jax.enable_x64(True):
        seen = None if mask is None else asarray(mask), causal

        @jax.jit
        def every(*args):
            found = {}
            for block in (1, 2, 3, 7, 100):

                def f(*args, block=block):
                    return attend(*args, seen[0], Rule(seen[1]), block=block)

                y, moved = jax.jvp(f, args, tuple(map(asarray, along)))
                grads = jax.grad(lambda *a, f=f: jnp.sum(jnp.sin(f(*a))), (0, 1, 2))(*args)
                found[block] = y, moved, grads
            return found

        found = jax.device_get(every(*map(asarray, (q, k, v))))
    wanted = formula(q, k, v, mask, causal)
    h = 1e-6
    moved = [
        formula(*(a + sign * h * d for a, d in zip((q, k, v), along, strict=True)), mask, causal)
        for sign in (1, -1)
    ]
    slope = (moved[0] - moved[1]) / (2 * h)
    for block, (y, tangent, grads) in found.items():
        np.testing.assert_allclose(y, wanted, atol=1e-12, err_msg=f"{block}")
        np.testing.assert_allclose(tangent, slope, atol=1e-8, err_msg=f"{block}")
        numeric = np.sum(np.sin(moved[0]) - np.sin(moved[1])) / (2 * h)
        total = sum(np.vdot(g, d) for g, d in zip(grads, along, strict=True))
        np.testing.assert_allclose(total, numeric, atol=1e-7, err_msg=f"{block}")


def test_a_memory_of_another_length():
    q, k, v = inputs(3, s=5)
    y = jax.jit(lambda *a: attend(*a, block=2))(*(asarray(a, "float32") for a in (q, k, v)))
    np.testing.assert_allclose(y, formula(q, k, v, None, False), atol=1e-5)


def test_what_a_block_does_not_see_does_not_spoil_it():
    """NaN at a key: the outputs of its own and later queries alone."""
    q, k, v = (asarray(a, "float32") for a in inputs(4))
    for spoil in ((k.at[:, 4].set(jnp.nan), v), (k, v.at[:, 4].set(jnp.inf))):
        for block in (2, 7):
            y = np.asarray(attend(q, *spoil, None, Rule(True), block=block))
            assert np.isnan(y[:, 4:]).all() and np.isfinite(y[:, :4]).all()


def temporaries(t, block):
    def loss(q, k, v):
        return jnp.sum(jnp.sin(attend(q, k, v, None, Rule(True), block=block)))

    x = jax.ShapeDtypeStruct((1, t, 2, 16), jnp.float32)
    compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(x, x, x).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_is_linear_in_the_number_of_queries():
    small, large = temporaries(1024, 64), temporaries(4096, 64)
    assert large < 4.5 * small
    assert large < temporaries(4096, 4096) / 10


def test_long_inputs_are_cut_by_themselves():
    """A quarter of 256 MiB of scores at once."""
    assert temporaries(16_384, None) < 700 * 2**20 < 16_384**2 * 2 * 4


def test_a_block_of_no_queries_is_refused():
    with pytest.raises(errors.OptionError, match="attention: .*block"):
        fnn.attention(8, 2, block=0)
