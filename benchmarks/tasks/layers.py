"""Each kind of layer on its own, forward and backward, in every library that has it.

A row of the table is the shapes of the inputs, the weights as fnn names them, and how each library
makes the layer of c channels coming in and n going out (see `benchmarks/gradients.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks import gradients
from benchmarks.gradients import Case
from benchmarks.task import Goal, Task

HEADS = 8  # of attention
WORDS = 10_000  # that are embedded

# --- weights, and layers by hand


def affine(*kernel: int) -> dict[str, tuple[int, ...]]:
    return {"kernel": kernel, "bias": kernel[-1:]}


def scale_and_bias(n: int) -> dict[str, tuple[int, ...]]:
    return {"scale": (n,), "bias": (n,)}


def attention_weights(n: int) -> dict[str, Any]:
    return {name: affine(n, n) for name in ("q", "k", "v", "out")}


def lax_conv(strides: int, pad: int, groups: int = 1) -> Callable[..., Any]:
    def conv(jax: Any, p: Any, _: Any, x: Any) -> Any:
        y = jax.lax.conv_general_dilated(
            x, p["kernel"], (strides, strides), ((pad, pad), (pad, pad)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups,
        )  # fmt: skip
        return y + p["bias"]

    return conv


def normalize(axes: tuple[int, ...]) -> Callable[..., Any]:
    def norm(jax: Any, p: Any, _: Any, x: Any) -> Any:
        mean, var = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
        return (x - mean) * jax.lax.rsqrt(var + 1e-5) * p["scale"] + p["bias"]

    return norm


def drop(jax: Any, _: Any, key: Any, x: Any, rate: float) -> Any:
    return jax.numpy.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)


def attend(jax: Any, p: Any, _: Any, x: Any) -> Any:
    heads = (*x.shape[:2], HEADS, x.shape[-1] // HEADS)
    q, k, v = ((x @ p[name]["kernel"] + p[name]["bias"]).reshape(heads) for name in "qkv")
    y = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    return y.reshape(x.shape) @ p["out"]["kernel"] + p["out"]["bias"]


# --- attention and its block, from the parts that each library has


def linen_attention(nn: Any, **options: Any) -> Callable[[Any], Any]:
    layer = nn.MultiHeadDotProductAttention(HEADS, **options)
    return lambda x: layer(x, mask=nn.make_causal_mask(x[..., 0]))


def equinox_attention(nn: Any, c: int, key: Any) -> tuple[Any, Callable[..., Any]]:
    biases = {f"use_{part}_bias": True for part in ("query", "key", "value", "output")}

    def call(layer: Any, x: Any) -> Any:  # [T, C]
        import jax.numpy as jnp

        return layer(x, x, x, jnp.tril(jnp.ones((x.shape[0], x.shape[0]), bool)))

    return nn.MultiheadAttention(HEADS, c, **biases, key=key), call


def haiku_attention(hk: Any, c: int, **options: Any) -> Callable[[Any], Any]:
    start = hk.initializers.Constant(0)
    layer = hk.MultiHeadAttention(HEADS, c // HEADS, w_init=start, **options)

    def call(x: Any) -> Any:
        import jax.numpy as jnp

        return layer(x, x, x, jnp.tril(jnp.ones((1, 1, x.shape[1], x.shape[1]), bool)))

    return call


def torch_attention(nn: Any, c: int) -> tuple[Any, Callable[..., Any]]:
    def call(m: Any, x: Any) -> Any:
        def heads(a: Any) -> Any:  # [B, N, T, D]
            return a.unflatten(-1, (HEADS, -1)).transpose(1, 2)

        q, k, v = (heads(m[name](x)) for name in "qkv")
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return m["out"](y.transpose(1, 2).flatten(2))

    return nn.ModuleDict({name: nn.Linear(c, c) for name in ("q", "k", "v", "out")}), call


def halves(norm1: Any, attention: Any, norm2: Any, up: Any, down: Any, gelu: Any, x: Any) -> Any:
    h = x + attention(norm1(x))
    return h + down(gelu(up(norm2(h))))


def linen_block(nn: Any, c: int) -> Callable[[Any], Any]:
    norms = [nn.LayerNorm(epsilon=1e-5, name=name) for name in ("norm1", "norm2")]
    up, down = nn.Dense(4 * c, name="up"), nn.Dense(c, name="down")
    attention = linen_attention(nn, name="attention")
    return lambda x: halves(norms[0], attention, norms[1], up, down, nn.gelu, x)


def equinox_block(nn: Any, c: int, key: Any) -> tuple[Any, Callable[..., Any]]:
    attention, attend = equinox_attention(nn, c, key)
    modules = {
        "norm1": nn.LayerNorm(c), "attention": attention, "norm2": nn.LayerNorm(c),
        "up": nn.Linear(c, 4 * c, key=key), "down": nn.Linear(4 * c, c, key=key),
    }  # fmt: skip

    def call(m: Any, x: Any) -> Any:  # [T, C]
        import jax

        norm1, norm2, up, down = (jax.vmap(m[name]) for name in ("norm1", "norm2", "up", "down"))
        return halves(norm1, lambda x: attend(m["attention"], x), norm2, up, down, jax.nn.gelu, x)

    return modules, call


def haiku_block(hk: Any, c: int) -> Callable[[Any], Any]:
    import jax

    norms = [hk.LayerNorm(-1, True, True, name=name) for name in ("norm1", "norm2")]
    up, down = hk.Linear(4 * c, name="up"), hk.Linear(c, name="down")
    attention = haiku_attention(hk, c, name="attention")
    return lambda x: halves(norms[0], attention, norms[1], up, down, jax.nn.gelu, x)


def torch_block(nn: Any, c: int) -> tuple[Any, Callable[..., Any]]:
    attention, attend = torch_attention(nn, c)
    modules = {
        "norm1": nn.LayerNorm(c), "attention": attention, "norm2": nn.LayerNorm(c),
        "up": nn.Linear(c, 4 * c), "gelu": nn.GELU("tanh"), "down": nn.Linear(4 * c, c),
    }  # fmt: skip

    def call(m: Any, x: Any) -> Any:
        attention = lambda x: attend(m["attention"], x)  # noqa: E731
        return halves(m["norm1"], attention, m["norm2"], m["up"], m["down"], m["gelu"], x)

    return nn.ModuleDict(modules), call


# --- the table

IMAGE, LARGE, ROWS, TEXT = (8, 28, 28, 64), (16, 56, 56, 64), (4096, 512), (8, 256, 256)


def conv(shape: tuple[int, ...], n: int, size: int, strides: int = 1) -> Case:
    k, pad = (size, size), size // 2
    return Case(
        (shape,), affine(*k, shape[-1], n), n,
        fnn=lambda fnn, c, n: fnn.conv(n, k, strides=strides, padding=pad),
        floor=lax_conv(strides, pad),
        linen=lambda nn, c, n: nn.Conv(n, k, strides, padding=pad),
        equinox=lambda nn, c, n, key: nn.Conv2d(c, n, k, strides, pad, key=key),
        haiku=lambda hk, c, n: hk.Conv2D(n, k, strides, padding=((pad, pad), (pad, pad))),
        torch=lambda nn, c, n: nn.Conv2d(c, n, k, strides, pad),
    )  # fmt: skip


def pool(kind: str, size: int, strides: int) -> Case:
    """`kind` is max or avg, as libraries name it."""
    k, window, step = (size, size), (1, size, size, 1), (1, strides, strides, 1)
    name = {"max": "MaxPool", "avg": "AvgPool"}[kind]

    def by_hand(jax: Any, _: Any, __: Any, x: Any) -> Any:
        if kind == "max":
            return jax.lax.reduce_window(x, -float("inf"), jax.lax.max, window, step, "VALID")
        return jax.lax.reduce_window(x, 0.0, jax.lax.add, window, step, "VALID") / size**2

    return Case(
        (LARGE,), {}, 64,
        fnn=lambda fnn, c, n: getattr(fnn, f"{kind}_pool")(k, strides=strides),
        floor=by_hand,
        linen=lambda nn, c, n: lambda x: getattr(nn, f"{kind}_pool")(x, k, (strides, strides)),
        equinox=lambda nn, c, n, key: getattr(nn, f"{name}2d")(size, strides),
        haiku=lambda hk, c, n: getattr(hk, name)(window, step, "VALID"),
        torch=lambda nn, c, n: getattr(nn, f"{name}2d")(size, strides),
    )  # fmt: skip


CASES = {
    "dense": Case(
        ((512, 1024),), affine(1024, 1024), 1024,
        fnn=lambda fnn, c, n: fnn.dense(n),
        floor=lambda jax, p, _, x: x @ p["kernel"] + p["bias"],
        linen=lambda nn, c, n: nn.Dense(n),
        equinox=lambda nn, c, n, key: nn.Linear(c, n, key=key),
        haiku=lambda hk, c, n: hk.Linear(n),
        torch=lambda nn, c, n: nn.Linear(c, n),
    ),
    "bilinear": Case(
        ((256, 64), (256, 64)), affine(64, 64, 128), 128,
        fnn=lambda fnn, c, n: fnn.bilinear(n),
        floor=lambda jax, p, _, a, b: (
            jax.numpy.einsum("bi,bj,ijo->bo", a, b, p["kernel"]) + p["bias"]
        ),
        torch=lambda nn, c, n: nn.Bilinear(c, c, n),
    ),
    "embedding": Case(
        ((64, 128),), {"embedding": (WORDS, 256)}, 256, integers=WORDS,
        fnn=lambda fnn, c, n: fnn.embedding(WORDS, n),
        floor=lambda jax, p, _, x: p["embedding"][x],
        linen=lambda nn, c, n: nn.Embed(WORDS, n),
        equinox=lambda nn, c, n, key: (
            nn.Embedding(WORDS, n, key=key), lambda m, x: m.weight[x],
        ),
        haiku=lambda hk, c, n: hk.Embed(WORDS, n),
        torch=lambda nn, c, n: nn.Embedding(WORDS, n),
    ),
    "conv": conv(IMAGE, 64, 3),
    "conv strided": conv((8, 56, 56, 64), 64, 3, strides=2),
    "conv 1x1": conv((16, 28, 28, 64), 256, 1),
    "conv_transpose": Case(
        ((8, 14, 14, 64),), affine(4, 4, 64, 32), 32, transposed=True,
        fnn=lambda fnn, c, n: fnn.conv_transpose(n, (4, 4), strides=2),
        floor=lambda jax, p, _, x: (
            jax.lax.conv_transpose(x, p["kernel"], (2, 2), "SAME") + p["bias"]
        ),
        linen=lambda nn, c, n: nn.ConvTranspose(n, (4, 4), (2, 2)),
        equinox=lambda nn, c, n, key: nn.ConvTranspose2d(c, n, 4, 2, padding=1, key=key),
        haiku=lambda hk, c, n: hk.Conv2DTranspose(n, 4, 2),
        torch=lambda nn, c, n: nn.ConvTranspose2d(c, n, 4, 2, padding=1),
    ),
    "depthwise_conv": Case(
        (IMAGE,), affine(3, 3, 1, 64), 64,
        fnn=lambda fnn, c, n: fnn.depthwise_conv((3, 3)),
        floor=lax_conv(1, 1, groups=64),
        linen=lambda nn, c, n: nn.Conv(n, (3, 3), feature_group_count=c),
        equinox=lambda nn, c, n, key: nn.Conv2d(c, n, 3, padding=1, groups=c, key=key),
        haiku=lambda hk, c, n: hk.DepthwiseConv2D(1, 3),
        torch=lambda nn, c, n: nn.Conv2d(c, n, 3, padding=1, groups=c),
    ),
    "separable_conv": Case(
        (IMAGE,), {"depthwise": {"kernel": (3, 3, 1, 64)}, "pointwise": affine(1, 1, 64, 128)}, 128,
        fnn=lambda fnn, c, n: fnn.separable_conv(n, (3, 3)),
        linen=lambda nn, c, n: nn.Sequential([
            nn.Conv(c, (3, 3), feature_group_count=c, use_bias=False, name="depthwise"),
            nn.Conv(n, (1, 1), name="pointwise"),
        ]),
        equinox=lambda nn, c, n, key: (
            {"depthwise": nn.Conv2d(c, c, 3, padding=1, groups=c, use_bias=False, key=key),
             "pointwise": nn.Conv2d(c, n, 1, key=key)},
            lambda m, x: m["pointwise"](m["depthwise"](x)),
        ),
        haiku=lambda hk, c, n: hk.Sequential([
            hk.DepthwiseConv2D(1, 3, with_bias=False, name="depthwise"),
            hk.Conv2D(n, 1, name="pointwise"),
        ]),
        torch=lambda nn, c, n: (
            nn.ModuleDict({"depthwise": nn.Conv2d(c, c, 3, padding=1, groups=c, bias=False),
                           "pointwise": nn.Conv2d(c, n, 1)}),
            lambda m, x: m["pointwise"](m["depthwise"](x)),
        ),
    ),
    "max_pool": pool("max", 2, 2),
    "max_pool overlapping": pool("max", 3, 2),
    "avg_pool": pool("avg", 2, 2),
    "global_avg_pool": Case(
        (LARGE,), {}, 64,
        fnn=lambda fnn, c, n: fnn.global_avg_pool(2),
        floor=lambda jax, _, __, x: x.mean((1, 2)),
        linen=lambda nn, c, n: lambda x: x.mean((1, 2)),
        equinox=lambda nn, c, n, key: ({}, lambda _, x: x.mean((1, 2))),
        haiku=lambda hk, c, n: lambda x: x.mean((1, 2)),
        torch=lambda nn, c, n: (nn.Identity(), lambda _, x: x.mean((2, 3))),
    ),
    "upsample": Case(
        (IMAGE,), {}, 64,
        fnn=lambda fnn, c, n: fnn.upsample((2, 2)),
        floor=lambda jax, _, __, x: x.repeat(2, 1).repeat(2, 2),
        torch=lambda nn, c, n: nn.Upsample(scale_factor=2),
    ),
    "upsample linear": Case(
        (IMAGE,), {}, 64,
        fnn=lambda fnn, c, n: fnn.upsample((2, 2), "linear"),
        floor=lambda jax, _, __, x: (
            jax.image.resize(x, (x.shape[0], 2 * x.shape[1], 2 * x.shape[2], x.shape[3]), "linear")
        ),
        torch=lambda nn, c, n: nn.Upsample(scale_factor=2, mode="bilinear"),
    ),
    "batch_norm": Case(
        (LARGE,), scale_and_bias(64), 64,
        fnn=lambda fnn, c, n: fnn.batch_norm(),
        floor=normalize((0, 1, 2)),
        linen=lambda nn, c, n: nn.BatchNorm(use_running_average=False, momentum=0.9),
        equinox=lambda nn, c, n, key: nn.BatchNorm(c, "batch", momentum=0.9, mode="batch"),
        haiku=lambda hk, c, n: lambda x: hk.BatchNorm(True, True, 0.9)(x, is_training=True),
        torch=lambda nn, c, n: nn.BatchNorm2d(c),
    ),
    "layer_norm": Case(
        (ROWS,), scale_and_bias(512), 512,
        fnn=lambda fnn, c, n: fnn.layer_norm(),
        floor=normalize((-1,)),
        linen=lambda nn, c, n: nn.LayerNorm(epsilon=1e-5),
        equinox=lambda nn, c, n, key: nn.LayerNorm(c),
        haiku=lambda hk, c, n: hk.LayerNorm(-1, True, True),
        torch=lambda nn, c, n: nn.LayerNorm(c),
    ),
    "rms_norm": Case(
        (ROWS,), {"scale": (512,)}, 512,
        fnn=lambda fnn, c, n: fnn.rms_norm(),
        floor=lambda jax, p, _, x: (
            x * jax.lax.rsqrt(jax.numpy.square(x).mean(-1, keepdims=True) + 1e-6) * p["scale"]
        ),
        linen=lambda nn, c, n: nn.RMSNorm(),
        equinox=lambda nn, c, n, key: nn.RMSNorm(c, eps=1e-6, use_bias=False),
        haiku=lambda hk, c, n: hk.RMSNorm(-1, eps=1e-6),
        torch=lambda nn, c, n: nn.RMSNorm(c, eps=1e-6),
    ),
    "group_norm": Case(
        (LARGE,), scale_and_bias(64), 64,
        fnn=lambda fnn, c, n: fnn.group_norm(8, 2, eps=1e-5),
        linen=lambda nn, c, n: nn.GroupNorm(8, epsilon=1e-5),
        equinox=lambda nn, c, n, key: nn.GroupNorm(8, c),
        haiku=lambda hk, c, n: hk.GroupNorm(8),
        torch=lambda nn, c, n: nn.GroupNorm(8, c),
    ),
    "dropout": Case(
        (ROWS,), {}, 512, rate=0.5,
        fnn=lambda fnn, c, n, rate: fnn.dropout(rate),
        floor=drop,
        linen=lambda nn, c, n, rate: nn.Dropout(rate, deterministic=False),
        equinox=lambda nn, c, n, key, rate: nn.Dropout(rate),
        haiku=lambda hk, c, n, rate: lambda x: hk.dropout(hk.next_rng_key(), rate, x),
        torch=lambda nn, c, n, rate: nn.Dropout(rate),
    ),
    "attention": Case(
        (TEXT,), attention_weights(256), 256,
        fnn=lambda fnn, c, n: fnn.attention(n, HEADS, causal=True),
        floor=attend,
        linen=lambda nn, c, n: linen_attention(nn),
        equinox=lambda nn, c, n, key: equinox_attention(nn, c, key),
        haiku=lambda hk, c, n: haiku_attention(hk, c),
        torch=lambda nn, c, n: torch_attention(nn, c),
    ),
    "transformer_block": Case(
        (TEXT,),
        {"norm1": scale_and_bias(256), "attention": attention_weights(256),
         "norm2": scale_and_bias(256), "up": affine(256, 1024), "down": affine(1024, 256)}, 256,
        fnn=lambda fnn, c, n: fnn.transformer_block(n, HEADS, causal=True),
        linen=lambda nn, c, n: linen_block(nn, c),
        equinox=lambda nn, c, n, key: equinox_block(nn, c, key),
        haiku=lambda hk, c, n: haiku_block(hk, c),
        torch=lambda nn, c, n: torch_block(nn, c),
    ),
}  # fmt: skip

PEERS = ("linen", "equinox", "haiku")
SAME = "noise: it is the same program as the floor, which was timed apart from it by as much."
TWO_PASSES = (
    "two passes over x, around one of its values; flax subtracts the square of the mean from the "
    "mean square, which takes one and loses all digits where the mean is large."
)
CAUSES = {"global_avg_pool": SAME, "layer_norm": TWO_PASSES}


def goal(name: str, case: Case) -> Goal:
    """At most 1.1 x the best JAX library, or the floor if none has the layer."""
    over = tuple(peer for peer in PEERS if getattr(case, peer)) or ("floor",)
    who = "the best JAX library" if over != ("floor",) else "the floor, as no JAX library has it"
    return Goal(f"{name} is at most 1.1 x {who}", name, 1.1, over, cause=CAUSES.get(name, ""))


TASK = Task(
    title="Each kind of layer: forward and backward, from the same weights and inputs",
    cases=CASES,
    contenders={
        "floor": gradients.floor,
        "fnn": gradients.fnn,
        "linen": gradients.linen,
        "equinox": gradients.equinox,
        "haiku": gradients.haiku,
        "torch": gradients.torch,
    },
    goals=tuple(goal(name, case) for name, case in CASES.items()),
    check=gradients.numbers,
)
