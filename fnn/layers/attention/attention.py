"""The attention layer."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from fnn.core import checks, errors
from fnn.core.compose import compose
from fnn.core.layer import Layer
from fnn.initializers import lecun_normal
from fnn.layers.attention.cache import cache as kept
from fnn.layers.attention.masks import checked, in_rows, past, read_by_any, without_hidden
from fnn.layers.attention.products import attend
from fnn.layers.attention.rotary import rotated
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
    block: int | None = None,
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
    - `block`: the scores of so many queries are made at once, [block, S] for each head, and again
      for the gradient: memory is linear in T. None makes all at once if they take no more than
      256 MiB.

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
    if block is not None:
        checks.count("block", block)
    if implementation is not None:
        checks.choice("implementation", implementation, ("xla", "cudnn"))
    if rotary is not None:
        checks.number("rotary", rotary, 0.0, math.inf)
        if size % 2:
            raise errors.OptionError("an even head_dim for rotary", f"{size}", "make it even")
    if cache is not None and not causal:
        raise errors.OptionError("causal=True with a cache", "causal=False", "pass causal=True")

    def affine(n: int, of: Any, to: Any) -> Layer:
        return dense(n, use_bias=use_bias, kernel_init=kernel_init, axes=(of, to))

    def attention(f, x, memory=None, mask=None):
        _check_memory(x, memory, causal)
        source, stray = x if memory is None else memory, None
        if mask is not None:
            mask = checked(mask, x, source.shape[-2] if cache is None else cache, heads)
        if mask is not None and cache is None:
            source = in_rows(read_by_any(mask, x.shape[-2], causal), source, 0)
            if memory is None:
                x, stray = without_hidden(x, mask, causal)
        q = _split(f.q(x), heads)  # [..., T, N, D]
        k, v = (_split(project(source), kv_heads) for project in (f.k, f.v))  # [..., S, K, D]
        if cache is not None:
            q, k, v, start = f.cache(q, k, v)
            t = jnp.arange(q.shape[-3], dtype=jnp.int32) + start
            before = past(t, jnp.arange(cache, dtype=jnp.int32), q.ndim)
            mask = before if mask is None else mask & before
        elif rotary is not None:
            q, k = (rotated(values, rotary, 0) for values in (q, k))
        y = attend(q, k, v, mask, causal and cache is None, implementation, block)
        y = f.out(y.reshape(*y.shape[:-2], heads * size))
        return y if stray is None else in_rows(~stray, y, jnp.nan)

    layers = {
        "q": affine(heads * size, "in", ("heads", heads)),
        "k": affine(kv_heads * size, "in", ("kv_heads", kv_heads)),
        "v": affine(kv_heads * size, "in", ("kv_heads", kv_heads)),
    }
    if cache is not None:
        layers["cache"] = kept(checks.count("cache", cache), rotary)
    return compose(**layers, out=affine(features, ("heads", heads), "out"))(attention)


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
