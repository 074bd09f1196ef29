"""The attention layer."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fnn.core import checks, errors
from fnn.core.compose import compose
from fnn.core.layer import Layer
from fnn.core.origins import builder
from fnn.core.types import Scalar
from fnn.initializers import lecun_normal
from fnn.layers.attention.cache import cache as kept
from fnn.layers.attention.masks import (
    checked,
    checked_bias,
    checked_segments,
    in_rows,
    without_hidden,
)
from fnn.layers.attention.products import attend
from fnn.layers.attention.rotary import rotated
from fnn.layers.attention.rows import Rule
from fnn.layers.dense import dense
from fnn.layers.norm import rms_norm


@builder
def attention(
    features: int,
    heads: int,
    *,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    causal: bool = False,
    window: int | None = None,
    rotary: float | None = None,
    distances: Layer | Callable | None = None,
    soft_cap: Scalar | None = None,
    qk_norm: bool = False,
    dropout: Scalar | None = None,
    cache: int | None = None,
    use_bias: bool = True,
    kernel_init=lecun_normal(),
    implementation: str | None = None,
    block: int | None = None,
) -> Layer:
    """Multi-head attention, y = out(softmax(q k^T / sqrt(D)) v): [..., T, C] -> [..., T, features].

    Called as `net(params, x, memory, mask, segments, bias)`. q comes from x, k and v from memory
    [..., S, C'] (None, or left out: from x), each by an affine map to `heads` vectors of D values;
    `out` joins the heads (Vaswani et al., 2017). The softmax is computed in float32 or wider.

    - mask: booleans [..., T, S] or [..., heads, T, S], True where t may attend to s, with all
      leading axes of x. An axis of size 1 stands for all: [B, 1, S] or [B, 1, 1, S] marks the keys
      that are real, [1, T, S] is one mask for all examples. [B, S] is refused, as it could also be
      [T, S]. A t that may attend to nothing gets zeros from every head. A masked s does not change
      the y of t, even if NaN; an s masked for every t does not change gradients either. (Mask
      padding on both sides: `real[:, :, None] & real[:, None, :]`. If padding is only masked as s,
      its own y is still computed: NaN, where its x is not finite.)
    - segments: ints [..., T], as `fnn.data.packed` makes them: t attends to s of its own segment
      alone, and segment 0 is padding, which neither attends nor is attended to. No [T, T] mask is
      made. With a cache, padding takes no place in it: the rows of a batch of prompts may have any
      lengths, padded on either side, and each goes on after its own last position. (Padding inside
      of a sequence counts as positions without a cache alone.)
    - bias: floats of shapes as in mask, added to the scores. It must be finite.

    Whom t attends to:

    - `causal`: to no s > t.
    - `window`: to s with t - window < s <= t if causal (Jiang et al., 2023), else to |t - s| <
      window (Beltagy et al., 2020, whose window holds 2 window - 1). Other keys are not computed
      where scores are made in blocks: time is linear in T.
    - `cache`: for decoding: the state holds k and v of up to this many positions of each row, and
      x [..., T, C] the next T. Same params; needs causal; one call per chunk, which changes the
      state in evaluation mode too: `y, state = net.apply(params, state, x)`. Beyond the last
      position it raises InputError, also inside `repeat`, or, under `jit`, gives NaN, in each row
      that is full. In a mask or a bias S is `cache`.

    How scores are made:

    - `features`, `heads`: the size of the output, and the number of heads.
    - `kv_heads`: fewer heads for k and v, each shared by heads / kv_heads of q (grouped queries;
      Ainslie et al., 2023); 1 is multi-query. None is `heads`.
    - `head_dim`: D; None is features / heads.
    - `qk_norm`: q and k are normalized over D by `fnn.rms_norm`, with a scale for all heads
      (Dehghani et al., 2023, section 2.1; by RMS as in Gemma 3, 2025), before rotary positions.
    - `rotary`: the base of rotary positions, usually 10000.0: q and k are rotated by angles
      t base^(-2i/D), value i paired with value i + D/2 (Su et al., 2021). None adds no positions.
      Only differences count, so segments need no positions of their own.
    - `soft_cap`: scores become cap tanh(scores / cap), before biases (Gemma 2, 2024).
    - `distances`: a layer, or a function, of distances t - s, ints [n] -> [n, heads], which is
      added to the scores: `fnn.alibi(heads)`, `fnn.relative_bias(heads)`.
    - `dropout`: in training, the probability of dropping a weight. What is dropped does not depend
      on `block`.

    How they are computed:

    - `implementation`: `"xla"` or `"cudnn"` calls `jax.nn.dot_product_attention`, which takes
      neither soft_cap, distances, dropout nor block; None computes the products above, which is
      faster on CPU. On a GPU `"cudnn"`, for bfloat16 and float16 alone, took less than half the
      time. With segments, a mask or a cache it gets a mask [B, T, S], as with a window that is not
      causal.
    - `block`: the scores of so many queries are made at once, [block, S] for each head, and again
      for the gradient: memory is linear in T. None makes all at once if they take no more than
      256 MiB, and fewer where a window leaves out most of them.

    Params: `q`, `k`, `v`, `out`, each `kernel` and `bias`; `q_norm` and `k_norm`, each `scale`;
    `distances`. Raises OptionError, ShapeError for inputs, a mask, segments or a bias that do not
    fit, DtypeError for a mask that is not boolean or segments that are not integers, and
    RandomKeyError for dropout without a key.

    >>> import jax, jax.numpy as jnp, fnn
    >>> net = fnn.attention(16, 4, causal=True, rotary=10_000.0, window=4)
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
    if rotary is not None:
        checks.number("rotary", rotary, 0.0, math.inf)
        if size % 2:
            raise errors.OptionError("an even head_dim for rotary", f"{size}", "make it even")
    if cache is not None and not causal:
        raise errors.OptionError("causal=True with a cache", "causal=False", "pass causal=True")
    if window is not None:
        window = checks.count("window", window)
    if soft_cap is not None:
        checks.positive("soft_cap", soft_cap)
    if dropout is not None:
        checks.number("dropout", dropout, 0.0, 1.0)
    if block is not None:
        block = checks.count("block", block)
    if implementation is not None:
        checks.choice("implementation", implementation, ("xla", "cudnn"))
        _check_implementation(soft_cap=soft_cap, distances=distances, dropout=dropout, block=block)

    def affine(n: int, of: Any, to: Any) -> Layer:
        return dense(n, use_bias=use_bias, kernel_init=kernel_init, axes=(of, to))

    def attention(f, x, memory=None, mask=None, segments=None, bias=None):
        _check_memory(x, memory, causal)
        if memory is not None:
            _check_alone(segments=segments, window=window, distances=distances)
        s, stray = cache or (x if memory is None else memory).shape[-2], None
        mask = None if mask is None else checked(mask, x, s, heads)
        bias = None if bias is None else checked_bias(bias, x, s, heads)
        if segments is not None:
            segments = checked_segments(segments, x)
            x = in_rows(segments > 0, x, 0)
        source = x if memory is None else memory
        if mask is not None and memory is not None:
            source = in_rows(jnp.any(mask, axis=(-3, -2)), memory, 0)  # without what no t reads
        elif mask is not None and cache is None:
            x, stray, read = without_hidden(x, mask, causal, window, segments)
            source = in_rows(read, x, 0)
        q = _split(f.q(x), heads)  # [..., T, N, D]
        k, v = (_split(project(source), kv_heads) for project in (f.k, f.v))  # [..., S, K, D]
        if qk_norm:
            q, k = f.q_norm(q), f.k_norm(k)
        at, both = None, None if segments is None else (segments, segments)
        if cache is not None:
            q, k, v, at, both = f.cache(q, k, v, segments)
        elif rotary is not None:
            q, k = (rotated(a, rotary, jnp.arange(a.shape[-3], dtype=jnp.int32)) for a in (q, k))
        rule = Rule(causal, window, soft_cap)
        if distances is not None:
            rule = rule._replace(distances=_biases(f.distances, s, causal, window, heads))
        if dropout is not None and f.train:
            rule = rule._replace(dropout=(f.key("dropout"), dropout))
        y = attend(
            q, k, v, mask, rule, bias=bias, segments=both, at=at,
            implementation=implementation, block=block,
        )  # fmt: skip
        y = f.out(y.reshape(*y.shape[:-2], heads * size))
        return y if stray is None else in_rows(~stray, y, jnp.nan)

    layers: dict[str, Any] = {
        "q": affine(heads * size, "in", ("heads", heads)),
        "k": affine(kv_heads * size, "in", ("kv_heads", kv_heads)),
        "v": affine(kv_heads * size, "in", ("kv_heads", kv_heads)),
    }
    if qk_norm:
        layers |= {"q_norm": rms_norm(), "k_norm": rms_norm()}
    if cache is not None:
        layers["cache"] = kept(checks.count("cache", cache), rotary)
    if distances is not None:
        layers["distances"] = distances
    return compose(**layers, out=affine(features, ("heads", heads), "out"))(attention)


def _check_implementation(**others: Any) -> None:
    """What `jax.nn.dot_product_attention` cannot take."""
    for name, value in others.items():
        if value is not None:
            raise errors.OptionError(
                f"no {name} with an implementation of jax.nn",
                f"{name}={errors.show(value)}",
                "leave out implementation, which computes it in fnn",
            )


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


def _check_alone(**others: Any) -> None:
    """What counts positions of x, which a memory does not have."""
    for name, value in others.items():
        if value is not None:
            mend = "pass a bias" if name == "distances" else "pass a mask"
            raise errors.InputError(f"no memory with {name}", f"both, {name}", mend)


def _biases(
    layer: Callable, s: int, causal: bool, window: int | None, heads: int
) -> tuple[int, jax.Array]:
    """The least distance that is seen, and the biases from there on: [heads, distances]."""
    most = max(s if window is None else min(window, s), 1) - 1
    least = 0 if causal else -most
    table = layer(jnp.arange(least, most + 1, dtype=jnp.int32))
    wanted = (most + 1 - least, heads)
    if jnp.shape(table) != wanted:
        raise errors.ShapeError(
            f"biases [distances, heads], {wanted}, from distances",
            f"{errors.show(table)}",
            f"give it one value for each of the heads={heads}",
        )
    return least, jnp.swapaxes(table, 0, 1)


def _split(x: jax.Array, heads: int) -> jax.Array:
    """[..., T, N * D] -> [..., T, N, D]."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)
