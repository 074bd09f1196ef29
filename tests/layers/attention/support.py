"""Attention in float64, query by query, from its formula."""

import jax
import numpy as np

from tests.layers import oracles

S = 7
MASKS = {  # shapes for q [2, 7, 4, D] and as many keys
    "none": None,
    "keys": (2, 1, 1, S),
    "queries": (2, 1, S, 1),
    "each": (2, 4, S, S),
    "one for all": (1, 1, S, S),
}
SEGMENTS = np.array([[1, 1, 1, 2, 2, 0, 0], [3, 1, 1, 1, 0, 2, 2]], np.int32)


def inputs(seed, heads=(4, 2), s=S, t=S, size=3):
    rng = np.random.default_rng(seed)
    n, k = heads
    return [rng.normal(size=shape) for shape in ((2, t, n, size), (2, s, k, size), (2, s, k, size))]


def formula(
    q, k, v, mask=None, causal=False, *, window=None, segments=None, soft_cap=None, bias=None,
    distances=None, kept=None,
):  # fmt: skip
    """[B, T, N, D], [B, S, K, D] and [B, S, K, D] -> [B, T, N, D].

    - `distances`: t - s -> the biases of all heads.
    - `kept`: what dropout multiplies the weights by, [B, N, T, S].
    """
    q, k, v = map(np.float64, (q, k, v))
    y = np.zeros_like(q)
    full = q.shape[0], q.shape[2], q.shape[1], k.shape[1]
    mask = np.broadcast_to(True if mask is None else mask, full)
    bias = np.broadcast_to(0.0 if bias is None else bias, full)
    for b, t, n in np.ndindex(q.shape[:3]):
        own, scores = n * k.shape[2] // q.shape[2], {}
        for s in np.flatnonzero(mask[b, n, t]):
            behind = causal and s > t
            outside = window is not None and abs(t - s) >= window
            strange = segments is not None and (
                segments[b, t] != segments[b, s] or segments[b, t] == 0
            )
            if behind or outside or strange:
                continue
            score = q[b, t, n] @ k[b, s, own] / np.sqrt(q.shape[-1])
            score = score if soft_cap is None else soft_cap * np.tanh(score / soft_cap)
            by_distance = 0.0 if distances is None else distances(t - s)[n]
            scores[s] = score + bias[b, n, t, s] + by_distance
        most = max(scores.values(), default=0.0)
        total = sum(np.exp(score - most) for score in scores.values())
        for s, score in scores.items():
            factor = 1.0 if kept is None else kept[b, n, t, s]
            y[b, t, n] += factor * np.exp(score - most) / total * v[b, s, own]
    return y


def layer(params, x, heads, *, kv_heads=None, rotary=None, qk_norm=False, memory=None, **options):
    """The layer's output for x [B, T, C], where `formula` takes the other options."""
    params = jax.tree.map(np.float64, params)
    x = np.float64(x)
    sources = (x, x, x) if memory is None else (x, np.float64(memory), np.float64(memory))
    counts = heads, kv_heads or heads, kv_heads or heads
    q, k, v = (
        (a @ params[name]["kernel"] + params[name]["bias"]).reshape(*a.shape[:-1], count, -1)
        for name, a, count in zip("qkv", sources, counts, strict=True)
    )
    if qk_norm:
        q, k = (
            a / np.sqrt(np.mean(a**2, -1, keepdims=True) + 1e-6) * params[f"{name}_norm"]["scale"]
            for name, a in zip("qk", (q, k), strict=True)
        )
    if rotary:
        for a in (q, k):
            for b, t, n in np.ndindex(a.shape[:3]):
                a[b, t, n] = oracles.rotated(a[b, t, n], t, rotary)
    y = formula(q, k, v, **options)
    return y.reshape(*y.shape[:-2], -1) @ params["out"]["kernel"] + params["out"]["bias"]


def drawn_params(net, *xs, seed=0):
    """Params of a network by NumPy, which compiles nothing; none of them is 0 or 1."""
    rng = np.random.default_rng(seed)

    def draw(spec):
        fan = spec.shape[-2] if len(spec.shape) > 1 else 4
        values = rng.normal(size=(*spec.stack, *spec.shape)) / np.sqrt(fan)
        return (values + (spec.kind == "scale")).astype(spec.dtype)

    return jax.tree.map(draw, net.specs(*xs)[0], is_leaf=lambda x: hasattr(x, "init"))


def empty_state(net, *xs):
    """A network's first state, which is zeros in a cache."""
    specs = net.specs(*xs)[1]
    is_spec = lambda x: hasattr(x, "init")  # noqa: E731
    return jax.tree.map(lambda s: np.zeros((*s.stack, *s.shape), s.dtype), specs, is_leaf=is_spec)
