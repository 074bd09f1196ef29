"""The networks in flax.nnx."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from benchmarks.nets.shared import critic_loss, generator_loss, loss, rewrite
from benchmarks.nets.spec import PROMPT, Case, Draw, Part, batches, drawing, inside
from benchmarks.networks import RATE
from benchmarks.task import Call


def build(part: Part, draw: Draw) -> Any:
    """The module."""
    kind, *n = inside(part, lambda p: build(p, draw))
    rngs, eps = nnx.Rngs(0), {"epsilon": 1e-5, "rngs": nnx.Rngs(0)}

    def given(module: Any, *shape: int, name: str = "kernel") -> Any:
        """The module, with the next weights."""
        weight = getattr(module, name)
        weight[...] = jnp.asarray(draw(*shape)).reshape(weight.shape)
        return module

    match kind:
        case "chain":
            return nnx.Sequential(*n)
        case "residual":
            return Residual(*n)
        case "skip":
            return Skip(*n)
        case "autoencoder":
            return Autoencoder(*n)
        case "conv":
            c, m, k, stride = n
            options = {"strides": stride, "padding": (k - 1) // 2, "use_bias": False}
            return given(nnx.Conv(c, m, (k, k), **options, rngs=rngs), k, k, c, m)
        case "patches":
            c, m, k = n
            conv = nnx.Conv(c, m, (k, k), strides=k, padding=0, rngs=rngs)
            return nnx.Sequential(
                given(conv, k, k, c, m), lambda x: x.reshape(*x.shape[:-3], -1, m)
            )
        case "depthwise":
            c, k, stride = n
            options = {"strides": stride, "padding": (k - 1) // 2, "use_bias": False}
            conv = nnx.Conv(c, c, (k, k), feature_group_count=c, **options, rngs=rngs)
            return given(conv, k, k, 1, c)
        case "up":
            return given(nnx.ConvTranspose(*n, (2, 2), strides=2, rngs=rngs), 2, 2, *n)
        case "batch_norm":
            return nnx.BatchNorm(n[0], momentum=0.9, **eps)
        case "group_norm":
            return nnx.GroupNorm(n[0], num_groups=n[1], **eps)
        case "layer_norm":
            return nnx.LayerNorm(n[0], **eps)
        case "dense":
            return given(nnx.Linear(*n, rngs=rngs), *n)
        case "embedding":
            return given(nnx.Embed(*n, rngs=rngs), *n, name="embedding")
        case "positions":
            return Placed(jnp.asarray(draw(*n)))
        case "attention":
            c, heads, causal = n
            module = nnx.MultiHeadAttention(heads, c, decode=False, rngs=rngs)
            for inner in (module.query, module.key, module.value, module.out):
                given(inner, c, c)
            return Attention(module, causal)
        case "pool":
            return lambda x: nnx.max_pool(x, (2, 2), strides=(2, 2))
        case "mean":
            return lambda x: x.mean(tuple(range(1, x.ndim - 1)))
        case "relu":
            return jax.nn.relu
        case "gelu":
            return jax.nn.gelu
        case "leaky_relu":
            return lambda x: jax.nn.leaky_relu(x, 0.2)
        case "tanh":
            return jnp.tanh
        case "image":
            return lambda x: x.reshape(-1, *n)
    raise ValueError(kind)


class Residual(nnx.Module):
    def __init__(self, main: Any, shortcut: Any):
        self.main, self.shortcut = main, shortcut

    def __call__(self, x: Any) -> Any:
        return self.main(x) + (x if self.shortcut is None else self.shortcut(x))


class Skip(nnx.Module):
    def __init__(self, inner: Any):
        self.inner = inner

    def __call__(self, x: Any) -> Any:
        return jnp.concatenate([x, self.inner(x)], -1)


class Autoencoder(nnx.Module):
    def __init__(self, encoder: Any, decoder: Any, code: int):
        self.encoder, self.decoder, self.code = encoder, decoder, code

    def __call__(self, x: Any) -> Any:
        x, noise = x[..., : -self.code], x[..., -self.code :]
        mean, log_var = jnp.split(self.encoder(x), 2, -1)
        y = self.decoder(mean + jnp.exp(log_var / 2) * noise)
        return jnp.concatenate([y, mean, log_var], -1)


class Placed(nnx.Module):
    def __init__(self, positions: Any):
        self.positions, self.read = nnx.Param(positions), nnx.data(None)

    def init_cache(self, shape: Any) -> None:
        self.read = nnx.Cache(jnp.int32(0))

    def __call__(self, x: Any) -> Any:
        if self.read is None:
            return x + self.positions
        at = self.read[...]
        self.read[...] += 1
        return x + self.positions[at]


class Attention(nnx.Module):
    def __init__(self, inner: Any, causal: bool):
        self.inner, self.causal = inner, causal

    def __call__(self, x: Any) -> Any:
        return self.inner(x, mask=nnx.make_causal_mask(x[..., 0]) if self.causal else None)


def network(case: Case) -> Call:
    """nnx.jit over model and optimizer, as in its quick start"""
    part, draw = case.net.part, drawing()
    model = build(case.net.answering, draw)
    turns = itertools.cycle(jax.tree.map(jnp.asarray, batches(case)))
    if case.mode != "train":
        model.eval()
        if case.mode == "write":
            graph, state = nnx.split(cached(model, (case.batch, *case.net.shape, part[1][2])))
            write = jax.jit(
                lambda state, x: written(graph, state, x[:, :PROMPT], case.net.shape[0])
            )
            return lambda: write(state, next(turns)[0])

        @nnx.jit
        def apply(model: Any, x: Any) -> Any:
            if case.mode == "predict":
                return model(x)
            return rewrite(model, x[:, :PROMPT], case.net.shape[0])

        return lambda: apply(model, next(turns)[0])
    optimizer = nnx.Optimizer(model, optax.adam(RATE), wrt=nnx.Param)
    if part[0] == "adversaries":
        critic = build(part[2], draw)
        judge = nnx.Optimizer(critic, optax.adam(RATE), wrt=nnx.Param)
        return lambda: duel(model, critic, optimizer, judge, next(turns))

    @nnx.jit
    def step(model: Any, optimizer: Any, batch: Any) -> Any:
        def of(model: Any) -> Any:
            return loss(case.net.loss, model(batch[0]), batch[1])

        value, grads = nnx.value_and_grad(of)(model)
        optimizer.update(model, grads)
        return value

    return lambda: step(model, optimizer, next(turns))


@nnx.jit
def duel(generator: Any, critic: Any, optimizer: Any, judge: Any, batch: Any) -> Any:
    fake = generator(batch[0])
    first, grads = nnx.value_and_grad(lambda c: critic_loss(c(batch[1]), c(fake)))(critic)
    judge.update(critic, grads)
    second, grads = nnx.value_and_grad(lambda g: generator_loss(critic(g(batch[0]))))(generator)
    optimizer.update(generator, grads)
    return first + second


def cached(model: Any, shape: Any) -> Any:
    """The model with caches for activations of a shape [B, T, C]."""
    for _, module in nnx.iter_modules(model):
        if isinstance(module, nnx.MultiHeadAttention):
            module.decode = True
        if hasattr(module, "init_cache"):
            module.init_cache(shape)
        if isinstance(module, Attention):
            module.causal = False  # its cache sees to that
    return model


def written(graph: Any, state: Any, prompt: Any, length: int) -> Any:
    """The likeliest continuation of [B, T], up to a length: its caches take a token at a time."""
    start = prompt.shape[1]

    def step(carried: Any, t: Any) -> Any:
        state, text = carried
        model = nnx.merge(graph, state)
        token = model(jax.lax.dynamic_slice_in_dim(text, t, 1, 1))[:, 0].argmax(-1)
        new = jnp.where(t + 1 < start, text[:, t + 1], token.astype(text.dtype))
        return (nnx.state(model), text.at[:, t + 1].set(new)), None

    text = jnp.pad(prompt, ((0, 0), (0, length - start)))
    return jax.lax.scan(step, (state, text), jnp.arange(length - 1))[0][1]
