"""Lengths from the least number to the largest, in every dtype, against long doubles."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import optim
from tests.support import asarray

WIDE = np.longdouble
QUICK = "FNN_QUICK" in os.environ
ON_CPU = jax.default_backend() == "cpu"
DTYPES = ["float32", "bfloat16", "float16", "float64"]
DIRECTION = np.array([[1.0, -0.5], [0.25, 0.75]])


def sizes(dtype):
    """Of the largest element: from numbers that the hardware may flush to the largest float."""
    info = jnp.finfo(dtype)
    tiny, most = float(info.tiny), float(info.max)
    least = float(info.smallest_subnormal)
    roots = [tiny**0.5, most**0.5, most**0.75]
    return [0.0, least, tiny, 4 * tiny, *roots, 1.0, most / 4, most]


def inputs(dtype):
    for size in sizes(dtype):
        yield asarray(DIRECTION * size, dtype)
    mixed = np.array([[float(jnp.finfo(dtype).max), 1.0], [float(jnp.finfo(dtype).tiny), 0.0]])
    yield asarray(mixed, dtype)


def exact(x, flushed=True):
    """As long doubles, with zero for what is below the least normal number of the arithmetic.

    That is what a CPU computes with; a GPU keeps some of it.
    """
    x = np.asarray(x)
    if not flushed:
        return x.astype(WIDE)
    wide = np.float64 if x.dtype == np.float64 else np.float32
    x = x.astype(WIDE)
    return np.where(abs(x) < WIDE(np.finfo(wide).tiny), WIDE(0), x)


def length(x, axis=None):
    return np.sqrt(np.sum(x * x, axis, keepdims=axis is not None))


def over(a, b):
    return np.where(b == 0, WIDE(0), a / np.where(b == 0, WIDE(1), b))


def cut(x, most, size):
    return np.where(size > most, x * over(WIDE(most), size), x)


def updated(tx, params=False):
    return lambda x: tx.update(x, tx.init(x), x if params else None)[0]


def per_example(x):
    """Of two examples, of which one gives x as its gradient, and one zero."""

    def loss(w, batch):
        return jnp.sum(w * batch[0])

    w = jnp.zeros_like(x)
    return optim.per_example_clip(loss, 1.0)(w, jnp.stack([x, 0 * x]))[1] * asarray(2, x.dtype)


def sam(x):
    """From where the gradient is -x, half as far as the largest element."""

    def loss(w):
        return -jnp.sum(w * jax.lax.stop_gradient(w))  # which w**2 / 2 is not: 2 w overflows

    return optim.sam(loss, rho=jnp.max(jnp.abs(x)) / 2)(x)[1]


def trust(p):
    """For a gradient that is p turned round."""
    tx = optim.scale_by_trust_ratio(trust_coefficient=0.5)
    return tx.update(p[::-1], tx.init(p), p)[0]


def weights(net):
    def kernel(w):  # what the layer multiplies by
        params, _ = net.init(jax.random.key(0), jax.ShapeDtypeStruct((1, 2), w.dtype))
        if isinstance(params["kernel"], dict):
            params = {"kernel": {"direction": w, "gain": jnp.ones(2, w.dtype)}}
        else:
            params = {"kernel": w}
        return net(params, jnp.eye(2, dtype=w.dtype))

    return kernel


def lp(x):
    net = fnn.lp_pool((4,), 3)
    return net({}, x.reshape(4, 1))[0]


def polar(x):
    left, values, right = np.linalg.svd(np.asarray(over(x, abs(x).max()), float))
    return (left * (values > 1e-3)) @ right


def spectral(x):
    one = over(x, abs(x).max())
    return over(one, WIDE(np.linalg.norm(np.asarray(one, float), 2)))


def p_norm(x):
    return np.sum(over(abs(x), abs(x).max()) ** 3) ** (WIDE(1) / 3) * abs(x).max()


def cosines(x):
    unit = over(x, length(x, 1))
    return 1 - np.sum(unit * unit[::-1], 1)


DENSE, BALL = fnn.dense(2, use_bias=False), optim.constraints.l2_ball
TABLE = {  # a function of x [2, 2], and the same in long doubles
    "global_norm": (optim.global_norm, length),
    "clip_by_global_norm": (
        updated(optim.clip_by_global_norm(1.0)),
        lambda x: cut(x, 1, length(x)),
    ),
    "clip_by_block_rms": (
        updated(optim.clip_by_block_rms(0.5**9)),
        lambda x: cut(x, 0.5**9, length(x) / 2),
    ),
    "adaptive_grad_clip": (
        updated(optim.adaptive_grad_clip(0.5, eps=0.0), params=True),
        lambda x: x / 2,
    ),
    "l2_ball": (BALL(1.0), lambda x: cut(x, 1, length(x))),
    "columns": (BALL(1.0, axis=0), lambda x: cut(x, 1, length(x, 0))),
    "per_example_clip": (per_example, lambda x: cut(x, 1, length(x))),
    "sam": (sam, lambda x: abs(x).max() / 2 * over(x, length(x)) - x),
    "trust ratio": (trust, lambda x: x[::-1] / 2),
    "lbfgs": (
        updated(optim.scale_by_lbfgs(2), params=True),
        lambda x: cut(x, 1, length(x)),
    ),
    "orthogonalize": (lambda x: optim.orthogonalize(x, 20, (2, -1.5, 0.5)), polar),
    "factored_rms": (
        lambda x: updated(optim.scale_by_factored_rms(min_dim_size_to_factor=1))(x[0, 0] + 0 * x),
        lambda x: x[0, 0] / np.sqrt(x[0, 0] ** 2 + WIDE(1e-30)) + 0 * x,
    ),
    "weight_norm": (weights(fnn.weight_norm(DENSE)), lambda x: over(x, length(x, 0))),
    "spectral_norm": (weights(fnn.spectral_norm(DENSE, iterations=60)), spectral),
    "lp_pool": (lambda x: fnn.lp_pool((4,), 3)({}, x.reshape(4, 1))[0, 0], p_norm),
    "cosine_distance": (lambda x: fnn.losses.cosine_distance(x, x[::-1]), cosines),
}


def check(got, want, name, unflushed=None):
    """`got` is near `want`, or each element near either of the two."""
    info = jnp.finfo(got.dtype)
    got, want = np.asarray(got).astype(WIDE), np.asarray(want, WIDE)
    assert got.shape == want.shape
    inside = abs(want) < WIDE(float(info.max)) * (1 - 1e-4)
    assert np.isfinite(got[inside]).all() and (abs(got[~inside]) >= float(info.max) * 0.99).all()
    tolerance = max(8 * float(info.eps), 2e-6 if info.bits == 32 else 0)
    most = abs(want[inside]).max(initial=name == "cosine_distance")
    flushed = 4 * max(float(info.tiny) if info.bits > 16 else 0, float(jnp.finfo(jnp.float32).tiny))
    near = abs(got - want) <= tolerance * most + flushed + float(info.smallest_subnormal)
    if unflushed is not None:
        near |= abs(got - unflushed) <= tolerance * abs(unflushed).max() + flushed
    assert near[inside].all(), (name, got, want)


SAMPLE = ("clip_by_global_norm", "columns")  # what a quick run tries in every dtype and way
CASES = [
    (name, dtype)
    for name in TABLE
    for dtype in DTYPES
    if not QUICK or dtype == "float32" or name in SAMPLE
]


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_no_size_is_lost(name, dtype):
    fn, oracle = TABLE[name]
    with jax.enable_x64(dtype == "float64"):
        compiled = jax.jit(fn)
        slope = jax.jit(jax.grad(lambda x: jnp.sum(fn(x).astype(jnp.float32))))
        for x in inputs(dtype):
            want = oracle(exact(x))
            kept = None if ON_CPU else np.asarray(oracle(exact(x, flushed=False)), WIDE)
            check(compiled(x), want, name, kept)
            if (QUICK and name not in SAMPLE) or (name, dtype) == ("factored_rms", "float16"):
                continue  # there 1e15, the reciprocal of the least root, is out of range
            if jnp.max(x) in (0, 1, jnp.finfo(dtype).max):
                assert np.isfinite(np.asarray(slope(x), float)).all(), x
        if not QUICK or name in SAMPLE:
            check(fn(x), want, name)
