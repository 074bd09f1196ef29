"""The networks in equinox: channels first, one example at a time under vmap."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from equinox import nn

from benchmarks.gradients import CHANNELS_FIRST, channels_first
from benchmarks.nets.shared import critic_loss, generator_loss, loss, rewrite
from benchmarks.nets.spec import PROMPT, Case, Draw, Part, batches, drawing, inside
from benchmarks.networks import RATE, loop
from benchmarks.task import Call, Missing

KEY = jax.random.key(0)


class Stateful(nn.StatefulLayer):
    """What passes state on in `nn.Sequential`."""

    def is_stateful(self) -> bool:
        return True


class Residual(Stateful):
    main: Any
    shortcut: Any

    def __call__(self, x: Any, state: Any, *, key: Any = None) -> Any:
        y, state = self.main(x, state)
        if self.shortcut is not None:
            x, state = self.shortcut(x, state)
        return x + y, state


class Skip(Stateful):
    inner: Any

    def __call__(self, x: Any, state: Any, *, key: Any = None) -> Any:
        y, state = self.inner(x, state)
        return jnp.concatenate([x, y]), state


class Autoencoder(Stateful):
    encoder: Any
    decoder: Any
    code: int

    def __call__(self, x: Any, state: Any, *, key: Any = None) -> Any:
        x, noise = x[: -self.code], x[-self.code :]
        code, state = self.encoder(x, state)
        mean, log_var = jnp.split(code, 2)
        y, state = self.decoder(mean + jnp.exp(log_var / 2) * noise, state)
        return jnp.concatenate([y, mean, log_var]), state


class Each(eqx.Module):
    """A layer for one vector, over a sequence of them; or over one alone."""

    layer: Any

    def __call__(self, x: Any, *, key: Any = None) -> Any:
        return jax.vmap(self.layer)(x) if x.ndim > 1 or x.dtype == jnp.int32 else self.layer(x)


class Placed(eqx.Module):
    positions: Any

    def __call__(self, x: Any, *, key: Any = None) -> Any:
        return x + self.positions


class Attention(eqx.Module):
    inner: Any
    causal: bool

    def __call__(self, x: Any, *, key: Any = None) -> Any:
        mask = jnp.tril(jnp.ones((len(x), len(x)), bool)) if self.causal else None
        return self.inner(x, x, x, mask)


def filled(layer: Any, kernel: Any) -> Any:
    """The layer with these weights, [..., in, out] as fnn lays them out, and no bias."""
    weight = jnp.asarray(kernel.transpose(CHANNELS_FIRST[kernel.ndim]))
    layer = eqx.tree_at(lambda layer: layer.weight, layer, weight)
    if layer.bias is None:
        return layer
    return eqx.tree_at(lambda layer: layer.bias, layer, jnp.zeros_like(layer.bias))


def build(part: Part, draw: Draw) -> Any:
    """The module."""
    kind, *n = inside(part, lambda p: build(p, draw))
    match kind:
        case "chain":
            return nn.Sequential(n)
        case "residual":
            return Residual(*n)
        case "skip":
            return Skip(*n)
        case "autoencoder":
            return Autoencoder(*n)
        case "conv":
            c, m, k, stride = n
            layer = nn.Conv2d(c, m, k, stride, (k - 1) // 2, use_bias=False, key=KEY)
            return filled(layer, draw(k, k, c, m))
        case "patches":
            c, m, k = n
            conv = filled(nn.Conv2d(c, m, k, k, key=KEY), draw(k, k, c, m))
            return nn.Sequential([conv, nn.Lambda(lambda x: x.reshape(m, -1).T)])
        case "depthwise":
            c, k, stride = n
            pad = (k - 1) // 2
            layer = nn.Conv2d(c, c, k, stride, pad, groups=c, use_bias=False, key=KEY)
            return filled(layer, draw(k, k, 1, c))
        case "up":
            return filled(nn.ConvTranspose2d(*n, 2, 2, key=KEY), draw(2, 2, *n))
        case "batch_norm":
            return nn.BatchNorm(n[0], "batch", momentum=0.9, mode="batch")
        case "group_norm":
            return nn.GroupNorm(n[1], n[0])
        case "layer_norm":
            return Each(nn.LayerNorm(n[0]))
        case "dense":
            return Each(filled(nn.Linear(*n, key=KEY), draw(*n)))
        case "embedding":
            return Each(nn.Embedding(weight=jnp.asarray(draw(*n))))
        case "positions":
            return Placed(jnp.asarray(draw(*n)))
        case "attention":
            c, heads, causal = n
            options = dict.fromkeys(("query", "key", "value", "output"), True)
            biases = {f"use_{name}_bias": use for name, use in options.items()}
            inner = nn.MultiheadAttention(heads, c, **biases, key=KEY)
            for name in options:
                of = lambda inner, name=name: getattr(inner, f"{name}_proj")  # noqa: E731
                inner = eqx.tree_at(of, inner, filled(of(inner), draw(c, c)))
            return Attention(inner, causal)
        case "pool":
            return nn.MaxPool2d(2, 2)
        case "mean":  # of an image [C, H, W] or of a sequence [T, C]
            return nn.Lambda(lambda x: x.mean((1, 2) if x.ndim == 3 else 0))
        case "relu":
            return nn.Lambda(jax.nn.relu)
        case "gelu":
            return nn.Lambda(jax.nn.gelu)
        case "leaky_relu":
            return nn.Lambda(lambda x: jax.nn.leaky_relu(x, 0.2))
        case "tanh":
            return nn.Lambda(jnp.tanh)
        case "image":
            return nn.Lambda(lambda x: x.reshape(n).transpose(2, 0, 1))
    raise ValueError(kind)


def over(model: Any, state: Any, x: Any) -> Any:
    """The outputs for a batch, and the state."""
    return jax.vmap(model, (0, None), (0, None), axis_name="batch")(x, state)


def network(case: Case) -> Call:
    """eqx.filter_jit, vmap over examples (channels first), optax"""
    part, draw = case.net.part, drawing()
    model, state = nn.make_with_state(build)(case.net.answering, draw)
    data = [tuple(jnp.asarray(channels_first(a)) for a in batch) for batch in batches(case)]
    if case.mode == "write":
        raise Missing("equinox has no attention with a cache")
    if case.mode != "train":
        fixed = nn.inference_mode(model)

        @eqx.filter_jit
        def apply(model: Any, state: Any, x: Any) -> Any:
            if case.mode == "predict":
                return over(model, state, x)[0]
            return rewrite(lambda x: over(model, state, x)[0], x[:, :PROMPT], case.net.shape[0])

        return loop(lambda _, batch: (None, apply(fixed, state, batch[0])), None, data)
    if part[0] == "adversaries":
        return adversaries(model, build(part[2], draw), state, data)
    tx = optax.adam(RATE)

    def of(model: Any, state: Any, batch: Any) -> Any:
        y, state = over(model, state, batch[0])
        return loss(case.net.loss, y, batch[1]), state

    @eqx.filter_jit
    def step(carried: Any, batch: Any) -> Any:
        model, state, opt_state = carried
        (value, state), grads = eqx.filter_value_and_grad(of, has_aux=True)(model, state, batch)
        updates, opt_state = tx.update(grads, opt_state, eqx.filter(model, eqx.is_array))
        return (eqx.apply_updates(model, updates), state, opt_state), value

    return loop(step, (model, state, tx.init(eqx.filter(model, eqx.is_array))), data)


def adversaries(generator: Any, critic: Any, state: Any, data: Any) -> Call:
    tx = optax.adam(RATE)

    def judge(critic: Any, real: Any, fake: Any) -> Any:
        return critic_loss(*(over(critic, state, x)[0] for x in (real, fake)))

    def draw(generator: Any, critic: Any, noise: Any) -> Any:
        return generator_loss(over(critic, state, over(generator, state, noise)[0])[0])

    def moved(model: Any, grads: Any, opt_state: Any) -> Any:
        updates, opt_state = tx.update(grads, opt_state, eqx.filter(model, eqx.is_array))
        return eqx.apply_updates(model, updates), opt_state

    @eqx.filter_jit
    def step(carried: Any, batch: Any) -> Any:
        generator, critic, of_generator, of_critic = carried
        fake = over(generator, state, batch[0])[0]
        first, grads = eqx.filter_value_and_grad(judge)(critic, batch[1], fake)
        critic, of_critic = moved(critic, grads, of_critic)
        second, grads = eqx.filter_value_and_grad(draw)(generator, critic, batch[0])
        generator, of_generator = moved(generator, grads, of_generator)
        return (generator, critic, of_generator, of_critic), first + second

    starts = [tx.init(eqx.filter(model, eqx.is_array)) for model in (generator, critic)]
    return loop(step, (generator, critic, *starts), data)
