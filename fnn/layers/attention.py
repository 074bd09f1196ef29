"""Attention, and its cache for decoding."""

import math
from typing import Any

import jax
import jax.core
import jax.numpy as jnp

from fnn.core import checks, errors
from fnn.core.compose import compose
from fnn.core.declarations import Param
from fnn.core.dtypes import wide
from fnn.core.layer import Layer, leaf
from fnn.core.shapes import of_rank
from fnn.initializers import lecun_normal, zeros
from fnn.layers.dense import dense


@errors.builder
def attention(
    features: int,
    heads: int,
    *,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    causal: bool = False,
    rotary: float | None = None,
    cache: int | None = None,
    use_bias: bool = True,
    kernel_init=lecun_normal(),
    implementation: str | None = None,
) -> Layer:
    """Multi-head attention, y = out(softmax(q k^T / sqrt(D)) v): [..., T, C] -> [..., T, features].

    Called as `net(params, x, memory, mask)`. q comes from x, k and v from memory [..., S, C']
    (None, or left out: from x), each by an affine map to `heads` vectors of D values; `out` joins
    the heads (Vaswani et al., 2017). The softmax is computed in float32 or wider.

    - mask: booleans [..., T, S] or [..., heads, T, S], True where t may attend to s, with all
      leading axes of x. An axis of size 1 stands for all: [B, 1, S] or [B, 1, 1, S] marks the keys
      that are real, [1, T, S] is one mask for all examples. [B, S] is refused, as it could also be
      [T, S]. A t that may attend to nothing gets zeros from every head. A masked s does not change
      the y of t, even if NaN; an s masked for every t does not change gradients either. (Mask
      padding on both sides: `real[:, :, None] & real[:, None, :]`. If padding is only masked as s,
      its own y is still computed: NaN, where its x is not finite.)
    - `features`, `heads`: the size of the output, and the number of heads.
    - `kv_heads`: fewer heads for k and v, each shared by heads / kv_heads of q (grouped queries;
      Ainslie et al., 2023); 1 is multi-query. None is `heads`.
    - `head_dim`: D; None is features / heads.
    - `causal`: t attends to no s > t.
    - `rotary`: the base of rotary positions, usually 10000.0: q and k are rotated by angles
      t base^(-2i/D), value i paired with value i + D/2 (Su et al., 2021). None adds no positions.
    - `cache`: for decoding: the state holds k and v of up to this many positions, and x
      [..., T, C] the next T. Same params; needs causal; one call per chunk, which changes
      the state in evaluation mode too: `y, state = net.apply(params, state, x)`. Beyond the last
      position it raises InputError, also inside `repeat`, or, under `jit`, gives NaN.
    - `implementation`: `"xla"` or `"cudnn"` calls `jax.nn.dot_product_attention`; None computes
      the products above, which is faster on CPU. On a GPU `"cudnn"`, for bfloat16 and float16
      alone, took less than half the time.

    Params: `q`, `k`, `v`, `out`, each `kernel` and `bias`. Raises OptionError, ShapeError for
    inputs or a mask that do not fit, DtypeError for a mask that is not boolean.

    >>> import jax, jax.numpy as jnp, fnn
    >>> net = fnn.attention(16, 4, causal=True, rotary=10_000.0)
    >>> params, _ = net.init(jax.random.key(0), (1, 7, 16))
    >>> net(params, jnp.ones((2, 7, 16))).shape
    (2, 7, 16)
    """
    features, heads = checks.count("features", features), checks.count("heads", heads)
    kv_heads = heads if kv_heads is None else checks.count("kv_heads", kv_heads)
    if heads % kv_heads:
        raise errors.OptionError(f"kv_heads that divides heads={heads}", f"{kv_heads}", "change it")
    if head_dim is None and features % heads:
        raise errors.OptionError(
            f"features divisible by heads={heads}", f"features={features}", "or give head_dim"
        )
    size = features // heads if head_dim is None else checks.count("head_dim", head_dim)
    checks.initializer("kernel_init", kernel_init)
    if implementation is not None:
        checks.choice("implementation", implementation, ("xla", "cudnn"))
    if rotary is not None:
        checks.number("rotary", rotary, 0.0, math.inf)
        if size % 2:
            raise errors.OptionError("an even head_dim for rotary", f"{size}", "make it even")
    if cache is not None and not causal:
        raise errors.OptionError("causal=True with a cache", "causal=False", "pass causal=True")

    def affine(n: int, of: str, to: str) -> Layer:
        return dense(n, use_bias=use_bias, kernel_init=kernel_init, axes=(of, to))

    def attention(f, x, memory=None, mask=None):
        _check_memory(x, memory, causal)
        source, stray = x if memory is None else memory, None
        seen = seen_by(mask, x, source if cache is None else cache, heads, causal and cache is None)
        if mask is not None and cache is None:
            if memory is None:
                x, stray = without_hidden(x, seen)
            source = in_rows(jnp.any(seen, axis=(-3, -2)), source, 0)
        q = _split(f.q(x), heads)  # [..., T, N, D]
        k, v = (_split(project(source), kv_heads) for project in (f.k, f.v))  # [..., S, K, D]
        if cache is not None:
            q, k, v, start = f.cache(q, k, v)
            t = jnp.arange(q.shape[-3], dtype=jnp.int32) + start
            past = _before(t, jnp.arange(cache, dtype=jnp.int32), q.ndim)
            seen = past if seen is None else seen & past
        elif rotary is not None:
            q, k = (_rotate(values, rotary, 0) for values in (q, k))
        plain = causal and mask is None and cache is None
        y = _attend(q, k, v, seen, implementation, plain)
        y = f.out(y.reshape(*y.shape[:-2], heads * size))
        return y if stray is None else in_rows(~stray, y, jnp.nan)

    layers = {
        "q": affine(heads * size, "in", "heads"),
        "k": affine(kv_heads * size, "in", "kv_heads"),
        "v": affine(kv_heads * size, "in", "kv_heads"),
    }
    if cache is not None:
        layers["cache"] = _cache(checks.count("cache", cache), rotary)
    return compose(**layers, out=affine(features, "heads", "out"))(attention)


def _check_memory(x: Any, memory: Any, causal: bool) -> None:
    checks.array(x, 2, "[..., T, C]")
    if memory is None:
        return
    if causal:
        raise errors.InputError(
            "no memory in causal attention",
            f"memory {errors.show(memory)}",
            "pass None, and a mask",
        )
    checks.array(memory, 2, "[..., S, C]", "memory")
    if memory.shape[:-2] != x.shape[:-2]:
        raise errors.ShapeError(
            f"memory with the leading axes of x {x.shape}", f"memory {memory.shape}", "repeat it"
        )


def _split(x: jax.Array, heads: int) -> jax.Array:
    """[..., T, N * D] -> [..., T, N, D]."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def seen_by(mask: Any, x: Any, source: Any, heads: int, causal: bool) -> Any:
    """Where t may attend to s, [..., N or 1, T or 1, S or 1]; None for everywhere.

    `source` is the input of k and v, or their number.
    """
    *lead, t, _ = x.shape
    s = source if isinstance(source, int) else source.shape[-2]
    seen = None
    if mask is not None:
        checks.rank(mask, 1, "[..., T, S]", "mask")
        if mask.dtype != bool:
            raise errors.DtypeError(
                "mask of booleans", f"mask {errors.show(mask)}", "cast it: mask.astype(bool)"
            )
        one, each = (*lead, t, s), (*lead, heads, t, s)  # for all heads, for each
        full = {len(one): one, len(each): each}.get(mask.ndim, ())
        if not full or any(a not in (1, b) for a, b in zip(mask.shape, full, strict=True)):
            mend = "True where t may attend to s, with an axis of 1 for what is the same for all"
            if mask.ndim < len(one):
                mend = "for a mask of keys, mask[..., None, :]; for one [T, S] for all, mask[None]"
            raise errors.ShapeError(
                f"mask [..., T, S], {one}, or [..., heads, T, S], {each}, each size or 1",
                f"mask {mask.shape}",
                mend,
            )
        seen = mask if full is each else mask[..., None, :, :]
    if causal:
        past = _before(jnp.arange(t), jnp.arange(s), len(lead) + 3)
        seen = past if seen is None else seen & past
    return seen


def _before(t: jax.Array, s: jax.Array, rank: int) -> jax.Array:
    """Where s <= t, [..., 1, T, S]."""
    return of_rank(s[None, :] <= t[:, None], rank)


def without_hidden(x: jax.Array, seen: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x without rows that are not finite and that no t attends to, and which of these attend.

    Those are NaN in the output. Passed through the layers, such a row would turn the gradients of
    their params to NaN even if its output does not count, since 0 NaN is NaN.
    """
    hidden = ~jnp.any(seen, axis=(-3, -2)) & ~jnp.all(jnp.isfinite(x), axis=-1)  # [..., T]
    return in_rows(~hidden, x, 0), hidden & jnp.any(seen, axis=(-3, -1))


def in_rows(rows: jax.Array, x: jax.Array, other: float) -> jax.Array:
    """x [..., T, C] in the rows [..., T] that are True, else a number."""
    return jnp.where(rows[..., None], x, jnp.asarray(other, x.dtype))


def _attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    seen: jax.Array | None,
    implementation: str | None,
    causal: bool,
) -> jax.Array:
    """softmax(q k^T / sqrt(D)) v over [..., T, N, D], with zeros where all s are masked.

    - `causal`: `seen` is exactly the past, which cuDNN then need not read from a mask.
    """
    *lead, t, n, d = q.shape
    if 0 in q.shape or 0 in k.shape:
        return jnp.zeros_like(q)
    batch = math.prod(lead)
    q, k, v = (x.reshape(batch, *x.shape[-3:]) for x in (q, k, v))
    bad = None
    if seen is not None:
        heads = seen.shape[-3:]
        seen = jnp.broadcast_to(seen, (*lead, *heads)).reshape(batch, *heads)
        bad = ~jnp.all(jnp.isfinite(v), axis=(-2, -1))  # [B, S]: 0 NaN would be NaN for every t
        v = jnp.where(bad[..., None, None], jnp.zeros_like(v), v)
    if implementation is None or q.dtype == jnp.float64:  # jax.nn's would compute in float32
        y = _attend_by_hand(q, k, v, seen, bad)
    else:
        y = _attend_by_jax(q, k, v, seen, bad, implementation, causal)
    if seen is not None:
        y = jnp.where(_any_of(seen), y, jnp.zeros_like(y))
    return y.reshape(*lead, t, n, d)


def _any_of(seen: jax.Array) -> jax.Array:
    """Whether t sees any s at all, [B, N or 1, T or 1, S or 1] -> [B, T or 1, N or 1, 1]."""
    return jnp.swapaxes(jnp.any(seen, axis=-1), 1, 2)[..., None]


def _attend_by_jax(
    q: Any, k: Any, v: Any, seen: Any, bad: Any, implementation: Any, causal: bool
) -> jax.Array:
    mask = None
    if seen is not None:
        bad = bad | ~jnp.all(jnp.isfinite(k), axis=(-2, -1))  # it may mask by adding
        k = jnp.where(bad[..., None, None], jnp.zeros_like(k), k)
        if not causal:
            mask = jnp.broadcast_to(seen, (*seen.shape[:2], q.shape[1], k.shape[1]))
    with jax.numpy_dtype_promotion("standard"):  # it promotes narrow floats inside
        y = jax.nn.dot_product_attention(
            q, k, v, mask=mask, is_causal=causal, implementation=implementation
        )
    if seen is None:
        return y
    return jnp.where(_any_of(seen & bad[:, None, None, :]), jnp.asarray(jnp.nan, y.dtype), y)


def _attend_by_hand(q: jax.Array, k: jax.Array, v: jax.Array, seen: Any, bad: Any) -> jax.Array:
    """As matrix products, one per head of k: the heads of q that share it are further rows."""
    dtype = wide(q.dtype)
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))  # [B, N or K, T or S, D]
    batch, n, t, d = q.shape
    heads, s = k.shape[1:3]
    rows = q.reshape(batch, heads, n // heads * t, d)
    scores = jnp.einsum("bktd,bksd->bkts", rows, k, preferred_element_type=dtype)
    scores = scores.reshape(batch, n, t, s) / jnp.asarray(math.sqrt(d), dtype)
    if seen is not None:
        spoiled = jnp.where(bad, jnp.asarray(jnp.nan, dtype), 0)[:, None, None, :]
        scores = jnp.where(seen, scores + spoiled, jnp.finfo(dtype).min)
    weights = jax.nn.softmax(scores).astype(v.dtype).reshape(batch, heads, -1, s)
    y = jnp.einsum("bkts,bksd->bktd", weights, v)
    return jnp.swapaxes(y.reshape(batch, n, t, d), 1, 2)


def _rotate(x: jax.Array, base: float, start: int | jax.Array) -> jax.Array:
    """Rotate the pairs (i, i + D/2) of [..., T, N, D] by position, counted from `start`."""
    half, dtype = x.shape[-1] // 2, wide(x.dtype)
    positions = (jnp.arange(x.shape[-3], dtype=jnp.int32) + start).astype(dtype)
    speed = jnp.asarray(base, dtype) ** (-jnp.arange(half).astype(dtype) / half)
    angles = of_rank(positions[:, None, None] * speed[None, None, :], x.ndim)  # [..., T, 1, D/2]
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    first, second = x[..., :half].astype(dtype), x[..., half:].astype(dtype)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def _cache(max_len: int, rotary: float | None) -> Layer:
    """Append k and v [..., T, K, D] to those in the state: (q, all k, all v, first position)."""

    def specs(q, k, v):
        if k.shape[-3] > max_len:
            _full(0, k.shape[-3], max_len)
        shape = (*k.shape[:-3], max_len, *k.shape[-2:])
        kept = {name: Param(shape, zeros, k.dtype, "cache") for name in ("k", "v")}
        return {}, {**kept, "index": Param((), zeros, jnp.int32, "cache")}

    def apply(params, state, q, k, v, *, key, train):
        start, length = state["index"], k.shape[-3]
        if not isinstance(start, jax.core.Tracer) and int(start) + length > max_len:
            _full(int(start), length, max_len)
        if rotary is not None:
            q, k = (_rotate(values, rotary, start) for values in (q, k))
        new = {"index": start + length}
        for name, values in (("k", k), ("v", v)):
            whole = jax.lax.dynamic_update_slice_in_dim(state[name], values, start, axis=-3)
            new[name] = jnp.where(start + length > max_len, jnp.nan, whole).astype(k.dtype)
        return (q, new["k"], new["v"], start), new

    return leaf("cache", specs, apply)


def _full(start: int, length: int, max_len: int) -> None:
    raise errors.InputError(
        f"no more than cache={max_len} positions",
        f"{length} after {start}",
        "build it with a longer cache, or start again with a new state",
    )
