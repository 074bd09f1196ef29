"""What the JAX libraries share: losses by jax.numpy and optax, and writing without a cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax


def loss(kind: str, y: Any, target: Any) -> Any:
    """The mean over the batch."""
    match kind:
        case "labels" | "next":
            return optax.softmax_cross_entropy_with_integer_labels(y, target).mean()
        case "clean":
            return jnp.square(y - target).mean()
        case "elbo":
            n = target.shape[-1]
            pixels = optax.sigmoid_binary_cross_entropy(y[..., :n], target).sum(-1)
            mean, log_var = jnp.split(y[..., n:], 2, -1)
            apart = jnp.square(mean) + jnp.exp(log_var) - 1 - log_var
            return (pixels + apart.sum(-1) / 2).mean()
    raise ValueError(kind)


def critic_loss(real: Any, fake: Any) -> Any:
    """What the critic says of real and of generated images, as logits of being real."""
    return (jax.nn.softplus(-real) + jax.nn.softplus(fake)).mean()


def generator_loss(fake: Any) -> Any:
    return jax.nn.softplus(-fake).mean()


def rewrite(logits_of: Callable[[Any], Any], prompt: Any, length: int) -> Any:
    """The likeliest continuation of [B, T], up to a length; all of it is read for each token."""
    start = prompt.shape[1]
    text = jnp.pad(prompt, ((0, 0), (0, length - start)))

    def step(text: Any, t: Any) -> Any:
        return text.at[:, t].set(logits_of(text)[:, t - 1].argmax(-1).astype(text.dtype)), None

    return jax.lax.scan(step, text, jnp.arange(start, length))[0]
