"""The block that transformers repeat."""

from collections.abc import Callable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp

from fnn.core import checks, errors
from fnn.core.compose import compose
from fnn.core.layer import Layer
from fnn.core.origins import builder
from fnn.layers.attention import attention
from fnn.layers.attention.masks import checked, checked_segments, in_rows, without_hidden
from fnn.layers.dense import dense
from fnn.layers.dropout import dropout
from fnn.layers.norm import layer_norm


@builder
def transformer_block(
    features: int,
    heads: int,
    *,
    hidden: int | None = None,
    kv_heads: int | None = None,
    causal: bool = False,
    window: int | None = None,
    rotary: float | None = None,
    cache: int | None = None,
    rate=0.0,
    activation: Callable = jax.nn.gelu,
    gated: bool = False,
    norm: Callable[[], Layer] = layer_norm,
    use_bias: bool = True,
    **options: Any,
) -> Layer:
    """Attention, then two dense layers, each with a norm first and a shortcut around.

        h = x + attention(norm1(x))
        y = h + down(activation(up(norm2(h))))

    [..., T, features] -> [..., T, features], called as `net(params, x, mask, segments, bias)`
    (Vaswani et al., 2017, with the norms first as in Xiong et al., 2020), with these as in
    `fnn.attention`: masked positions, NaN included, change neither the others nor any gradient.

    - `features`, `heads`, `kv_heads`, `causal`, `window`, `rotary`, `cache`, and further `options`:
      as in `fnn.attention`.
    - `hidden`: the size between the dense layers; None is 4 features.
    - `rate`: of the dropout on each half before it is added.
    - `gated`: up(x) is multiplied by activation(gate(x)) (Shazeer, 2020); `jax.nn.silu` is usual.
    - `norm`: builds the norms, such as `fnn.rms_norm`.

    Raises as `fnn.attention`, and ShapeError for x of other features.

    >>> import jax, jax.numpy as jnp, fnn
    >>> net = fnn.repeat(fnn.transformer_block(16, 4, causal=True, rotary=10_000.0), 6)
    >>> params, _ = net.init(jax.random.key(0), (1, 7, 16))
    >>> net(params, jnp.ones((2, 7, 16))).shape, params["up"]["kernel"].shape
    ((2, 7, 16), (6, 16, 64))
    """
    features = checks.count("features", features)
    hidden = 4 * features if hidden is None else checks.count("hidden", hidden)
    for name, fn, wanted in (
        ("activation", activation, "one array, as jax.nn.silu"),
        ("norm", norm, "nothing that builds a layer, as fnn.rms_norm"),
    ):
        if isinstance(fn, Layer) or not callable(fn):
            raise errors.OptionError(
                f"{name} to be a function of {wanted}", errors.show(fn), "pass one"
            )
    options |= {"kv_heads": kv_heads, "causal": causal, "window": window}
    options |= {"rotary": rotary, "cache": cache}
    layers = {
        "norm1": norm(),
        "attention": attention(features, heads, use_bias=use_bias, **options),
        "norm2": norm(),
        "up": dense(hidden, use_bias=use_bias, axes=("in", "hidden")),
        "down": dense(features, use_bias=use_bias, axes=("hidden", "out")),
        "drop": dropout(rate),
    }
    if gated:
        layers["gate"] = dense(hidden, use_bias=use_bias, axes=("in", "hidden"))

    def transformer_block(f, x, mask=None, segments=None, bias=None):  # [..., T, C]
        checks.array(x, 2, "[..., T, C]")
        if x.shape[-1] != features:
            raise errors.ShapeError(f"last axis {features}", f"x {x.shape}", "project it first")
        stray = None
        with errors.at("attention"):
            if segments is not None:
                segments = checked_segments(segments, x)
                x = in_rows(segments > 0, x, 0)
            if mask is not None and cache is None:
                seen = checked(mask, x, x.shape[-2], heads)
                x, stray, _ = without_hidden(x, seen, causal, window, segments)
        h = x + f.drop(f.attention(f.norm1(x), None, mask, segments, bias))
        z = f.norm2(h)
        z = activation(f.gate(z)) * f.up(z) if gated else activation(f.up(z))
        y = h + f.drop(f.down(z))
        return y if stray is None else in_rows(~stray, y, jnp.nan)

    return compose(**layers)(transformer_block)
