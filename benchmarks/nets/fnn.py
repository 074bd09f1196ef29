"""The networks in fnn."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

import fnn
from benchmarks.nets.shared import critic_loss, generator_loss, loss, rewrite
from benchmarks.nets.spec import PROMPT, Case, Draw, Part, batches, drawing, inside
from benchmarks.networks import RATE, loop
from benchmarks.task import Call


def build(part: Part, draw: Draw, cache: int | None = None) -> tuple[Any, Any]:
    """The layer, and its params; what writes has a cache of so many tokens."""
    kind, *n = inside(part, lambda p: build(p, draw, cache))

    def kernel(*shape: int, **bias: int) -> dict[str, Any]:
        return {"kernel": draw(*shape)} | {k: jnp.zeros(v) for k, v in bias.items()}

    def norm(c: int) -> dict[str, Any]:
        return {"scale": jnp.ones(c), "bias": jnp.zeros(c)}

    match kind:
        case "chain":
            names = [f"{own[0]}{i}" for i, own in enumerate(part[1:])]
            params = {name: own for name, (_, own) in zip(names, n, strict=True) if own}
            layers = {name: layer for name, (layer, _) in zip(names, n, strict=True)}
            return fnn.serial(**layers), params
        case "residual":
            (main, params), shortcut = n
            if shortcut is None:
                return fnn.residual(main), {"layer": params}
            return fnn.residual(main, shortcut[0]), {"layer": params, "shortcut": shortcut[1]}
        case "skip":
            [(layer, params)] = n

            @fnn.compose(inner=layer)
            def skip(f: Any, x: Any) -> Any:
                return jnp.concatenate([x, f.inner(x)], -1)

            return skip, {"inner": params}
        case "autoencoder":
            (encoder, down), (decoder, up), code = n

            @fnn.compose(encoder=encoder, decoder=decoder)
            def autoencoder(f: Any, x: Any) -> Any:
                x, noise = x[..., :-code], x[..., -code:]
                mean, log_var = jnp.split(f.encoder(x), 2, -1)
                y = f.decoder(mean + jnp.exp(log_var / 2) * noise)
                return jnp.concatenate([y, mean, log_var], -1)

            return autoencoder, {"encoder": down, "decoder": up}
        case "conv":
            c, m, k, stride = n
            layer = fnn.conv(m, (k, k), strides=stride, padding=(k - 1) // 2, use_bias=False)
            return layer, kernel(k, k, c, m)
        case "patches":
            c, m, k = n
            conv = fnn.conv(m, (k, k), strides=k, padding=0)
            layer = fnn.serial(conv=conv, tokens=lambda x: x.reshape(*x.shape[:-3], -1, m))
            return layer, {"conv": kernel(k, k, c, m, bias=m)}
        case "depthwise":
            c, k, stride = n
            layer = fnn.depthwise_conv((k, k), strides=stride, padding=(k - 1) // 2, use_bias=False)
            return layer, kernel(k, k, 1, c)
        case "up":
            return fnn.conv_transpose(n[1], (2, 2), strides=2), kernel(2, 2, *n, bias=n[1])
        case "batch_norm":
            return fnn.batch_norm(), norm(n[0])
        case "group_norm":
            return fnn.group_norm(n[1], 2), norm(n[0])
        case "layer_norm":
            return fnn.layer_norm(), norm(n[0])
        case "dense":
            return fnn.dense(n[1]), kernel(*n, bias=n[1])
        case "embedding":
            return fnn.embedding(*n), {"embedding": draw(*n)}
        case "positions":

            @fnn.compose(positions=fnn.parameter(tuple(n)), start=read_before(cache))
            def placed(f: Any, x: Any) -> Any:  # [B, T, C]
                length = x.shape[-2]
                return x + jax.lax.dynamic_slice_in_dim(f.positions(), f.start(x), length)

            return placed, {"positions": {"value": draw(*n)}}
        case "attention":
            c, heads, causal = n
            params = {name: kernel(c, c, bias=c) for name in ("q", "k", "v", "out")}
            return fnn.attention(c, heads, causal=causal, cache=cache), params
        case "pool":
            return fnn.max_pool((2, 2)), {}
        case "mean":  # of an image or of a sequence
            return lambda x: x.mean(tuple(range(1, x.ndim - 1))), {}
        case "relu":
            return jax.nn.relu, {}
        case "gelu":
            return jax.nn.gelu, {}
        case "leaky_relu":
            return lambda x: jax.nn.leaky_relu(x, 0.2), {}
        case "tanh":
            return jnp.tanh, {}
        case "image":
            return fnn.reshape(tuple(n)), {}
    raise ValueError(kind)


def read_before(cache: int | None) -> Any:
    """How many positions were read by earlier calls."""

    def specs(x: Any) -> Any:
        return {}, {"count": fnn.Param((), fnn.initializers.zeros, jnp.int32, "cache")}

    def apply(params: Any, state: Any, x: Any, *, key: Any, train: bool) -> Any:
        return state["count"], {"count": state["count"] + x.shape[-2]}

    return fnn.leaf("read", specs, apply) if cache else lambda x: 0


def network(case: Case) -> Call:
    """train.step with Adam, or the network jitted"""
    part, draw = case.net.part, drawing()
    if part[0] == "adversaries" and case.mode == "train":
        return adversaries(case, build(part[1], draw), build(part[2], draw))
    cache = case.net.shape[0] if case.mode == "write" else None
    net, params = build(case.net.answering, draw, cache)
    params, data = jax.tree.map(jnp.asarray, params), jax.tree.map(jnp.asarray, batches(case))
    state = jax.jit(lambda key: net.init(key, data[0][0])[1])(jax.random.key(0))
    if case.mode != "train":
        length = case.net.shape[0]

        @jax.jit
        def apply(params: Any, state: Any, x: Any) -> Any:
            if case.mode == "predict":
                return net(params, x, state=state)
            x = x[:, :PROMPT]
            if case.mode == "rewrite":
                return rewrite(lambda text: net(params, text), x, length)
            return fnn.generate(net, params, x, length - PROMPT, temperature=0.0).tokens

        return loop(lambda _, batch: (None, apply(params, state, batch[0])), None, data)

    def loss_fn(params: Any, state: Any, batch: Any, key: Any) -> Any:
        y, state = net.apply(params, state, batch[0], key=key, train=True)
        return loss(case.net.loss, y, batch[1]), (state, {})

    tx = fnn.optim.adam(RATE)
    start = fnn.train.TrainState(jnp.int32(0), params, state, tx.init(params), jax.random.key(0))
    call = loop(fnn.train.step(loss_fn, tx), start, data)
    return lambda: call()["loss"]


def adversaries(case: Case, of_generator: Any, of_critic: Any) -> Call:
    (generator, drawn), (critic, judged) = of_generator, of_critic

    def judge(params: Any, state: Any, batch: Any, key: Any) -> Any:
        fake = generator(params["generator"], batch[0])
        real, fake = (critic(params["critic"], x) for x in (batch[1], fake))
        return critic_loss(real, fake), (state, {})

    def draw(params: Any, state: Any, batch: Any, key: Any) -> Any:
        fake = generator(params["generator"], batch[0])
        return generator_loss(critic(params["critic"], fake)), (state, {})

    tx, params = fnn.optim.adam(RATE), {"critic": judged, "generator": drawn}
    params, data = jax.tree.map(jnp.asarray, params), jax.tree.map(jnp.asarray, batches(case))
    starts = {
        name: fnn.train.TrainState(jnp.int32(0), own, {}, tx.init(own), jax.random.key(0))
        for name, own in params.items()
    }
    losses = {"critic": judge, "generator": draw}
    step = fnn.train.joint_step(losses, dict.fromkeys(losses, tx))
    call = loop(step, fnn.train.join(**starts), data)

    def both() -> Any:
        metrics = call()
        return metrics["critic/loss"] + metrics["generator/loss"]

    return both
