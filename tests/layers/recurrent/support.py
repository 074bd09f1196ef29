"""Cases of sequences, and trees drawn, cast and compared, for the tests of recurrent layers."""

from contextlib import nullcontext
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

import fnn
from tests import support
from tests.layers.recurrent import oracles
from tests.support import asarray

B, T, C, H = 2, 4, 2, 3
ROW = np.zeros(H)
CUMSUM = fnn.cells.as_cell(lambda c, x: (c + x, c + x), jnp.zeros_like)


def wide(dtype):
    return jax.enable_x64(True) if dtype == "float64" else nullcontext()


def key(i=0):
    return jax.random.key(i)


def normal(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def spread(params, seed=0):
    """Params none of which stands at its first value, as NumPy arrays in float64."""
    draw = np.random.default_rng(seed).normal
    return jax.tree.map(lambda a: np.float64(a) + 0.4 * draw(size=a.shape), params)


def cast(tree, dtype):
    return jax.tree.map(lambda a: support.asarray(a, dtype), tree)


def drawn(carry, lead=(), seed=5):
    """A carry like the zeros given, with leading axes."""
    draw = np.random.default_rng(seed).normal

    return jax.tree.map(lambda zero: draw(size=(*lead, *zero.shape)), carry)


def first_of(p, zero):
    """The first carry by its definition: zeros, or the learned one."""
    if "first_h" not in p:
        return zero
    return (p["first_c"], p["first_h"]) if isinstance(zero, tuple) else p["first_h"]


def close(a, b, dtype="float32"):
    tol = {"float64": 1e-10, "float32": 1e-5, "bfloat16": 5e-2, "float16": 5e-3}[dtype]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(np.float64(a), b, rtol=tol, atol=tol), a, b
    )


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def at(tree, i):
    return jax.tree.map(lambda a: a[i], tree)


N = np.zeros(4)
LEADS = [(), (1,), (3,), (2, 3), (0,)]


KINDS = {  # name: layer over a sequence, oracle, the carry of one example as zeros
    "lstm": (fnn.lstm, oracles.lstm_cell, (ROW, ROW)),
    "gru": (fnn.gru, oracles.gru_cell, ROW),
    "simple_rnn": (fnn.simple_rnn, oracles.rnn_cell, ROW),
    "lru": (lambda features, **options: fnn.lru(features, 4, **options), oracles.lru_cell, (N, N)),
}


class Case(NamedTuple):
    x: np.ndarray
    mask: np.ndarray | None  # bool [..., T]
    carry: tuple | np.ndarray | None
    resets: np.ndarray | None
    steps: np.ndarray  # which are real, as bool [..., T]
    lengths: np.ndarray | None = None  # [...]


@st.composite
def cases(draw, zero=ROW):
    lead, steps = draw(st.sampled_from(LEADS)), draw(st.sampled_from([0, 1, 2, 5]))
    masked = draw(st.sampled_from(["no", "mask", "lengths", "mask and lengths"]))
    random = np.random.default_rng(draw(st.integers(0, 2**16)))
    x = random.normal(size=(*lead, steps, C))
    mask, lengths, full = None, None, np.ones((*lead, steps), bool)
    if "mask" in masked:
        mask = full = random.random((*lead, steps)) < 0.6
    if "lengths" in masked:
        lengths = np.asarray(random.integers(0, steps + 1, lead))
        full = full & (np.arange(steps) < lengths[..., None])
    carry = drawn(zero, lead, seed=int(random.integers(99))) if draw(st.booleans()) else None
    resets = random.random((*lead, steps)) < 0.4 if draw(st.booleans()) else None
    return Case(x, mask, carry, resets, full, lengths)


def loops(step, p, case, zero, reverse=False):
    """(y, the last y, the carry) of each example."""

    def one(i):
        resets = None if case.resets is None else case.resets[i]
        carry = None if case.carry is None else at(case.carry, i)
        options = dict(mask=case.steps[i], carry=carry, resets=resets, reverse=reverse)
        return oracles.unroll(step, p, case.x[i], zero, shape=(H,), **options)

    return oracles.each(case.x.shape[:-2], one)


def on_device(case, dtype):
    mask, resets, lengths = jax.tree.map(asarray, (case.mask, case.resets, case.lengths))
    return cast(case.x, dtype), mask, cast(case.carry, dtype), resets, lengths
