"""A training step of a case in every other library, written as that library's documentation shows.

Each takes a case of `networks.py` and returns the call that makes one step with Adam.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from typing import Any

from benchmarks.networks import RATE, Case, arrays, batches, build, cross_entropy, loop, weights
from benchmarks.task import EXACT, Call


def stax(case: Case) -> Call:
    """jax.example_libraries: stax and its own Adam, as in its examples"""
    import jax
    import jax.numpy as jnp
    from jax.example_libraries import optimizers, stax

    make = {
        "conv": lambda n, _: stax.Conv(n, (3, 3), padding="SAME"),
        "dense": lambda n, _: stax.Dense(n),
        "relu": lambda *_: stax.Relu,
        "pool": lambda n, _: stax.MaxPool((n, n), strides=(n, n)),
        "flatten": lambda *_: stax.Flatten,
        "dropout": lambda rate, _: stax.Dropout(1 - rate),  # it takes the rate of keeping
    }
    init, predict = stax.serial(*build(case, make))
    opt_init, opt_update, get_params = optimizers.adam(RATE)
    arrays, count, key = iter(weights(case)), itertools.count(), jax.random.PRNGKey(0)
    _, params = init(key, case.shape)
    params = [tuple(map(jnp.asarray, next(arrays))) if p else p for p in params]

    def loss(params: Any, batch: Any, key: Any) -> Any:
        logp = jax.nn.log_softmax(predict(params, batch[0], rng=key))
        return -jnp.take_along_axis(logp, batch[1][:, None], 1).mean()

    @jax.jit
    def update(i: Any, opt_state: Any, batch: Any) -> Any:
        params, subkey = get_params(opt_state), jax.random.fold_in(key, i)
        value, grads = jax.value_and_grad(loss)(params, batch, subkey)
        return opt_update(i, grads, opt_state), value

    data = batches(case, jnp.asarray)
    return loop(lambda s, batch: update(next(count), s, batch), opt_init(params), data)


def linen(case: Case) -> Call:
    """flax.linen: TrainState and a jitted step"""
    import flax.linen as nn
    import jax.numpy as jnp

    make = {
        "conv": lambda n, _: nn.Conv(n, (3, 3)),
        "dense": lambda n, _: nn.Dense(n),
        "relu": lambda *_: nn.relu,
        "pool": lambda n, _: lambda x: nn.max_pool(x, (n, n), strides=(n, n)),
        "flatten": lambda *_: lambda x: x.reshape(x.shape[0], -1),
        "dropout": lambda rate, _: nn.Dropout(rate, deterministic=False),
    }
    names = [f"layers_{i}" for i, (kind, _) in enumerate(case.net) if kind in ("conv", "dense")]
    params = dict(zip(names, arrays(case), strict=True))
    return linen_training(nn.Sequential(build(case, make)), params, batches(case, jnp.asarray))


def linen_training(model: Any, params: Any, data: list[Any]) -> Call:
    import jax
    import optax
    from flax.training.train_state import TrainState

    key = jax.random.key(0)

    @jax.jit
    def step(train_state: Any, batch: Any) -> Any:
        def loss(params: Any) -> Any:
            rngs = {"dropout": jax.random.fold_in(key, train_state.step)}
            return cross_entropy(
                train_state.apply_fn({"params": params}, batch[0], rngs=rngs), batch[1]
            )

        value, grads = jax.value_and_grad(loss)(train_state.params)
        return train_state.apply_gradients(grads=grads), value

    start = TrainState.create(apply_fn=model.apply, params=params, tx=optax.adam(RATE))
    return loop(step, start, data)


def nnx_parts(case: Case) -> tuple[Any, Any, Callable[..., Any]]:
    """Model, optimizer and the step that moves them, not yet compiled."""
    import jax.numpy as jnp
    from flax import nnx

    rngs = nnx.Rngs(0)
    make = {
        "conv": lambda n, c: nnx.Conv(c, n, (3, 3), rngs=rngs),
        "dense": lambda n, c: nnx.Linear(c, n, rngs=rngs),
        "relu": lambda *_: nnx.relu,
        "pool": lambda n, _: lambda x: nnx.max_pool(x, (n, n), strides=(n, n)),
        "flatten": lambda *_: lambda x: x.reshape(x.shape[0], -1),
        "dropout": lambda rate, _: nnx.Dropout(rate, rngs=rngs),
    }
    layers = build(case, make)
    with_weights = [layer for layer in layers if hasattr(layer, "kernel")]
    for layer, (kernel, bias) in zip(with_weights, weights(case), strict=True):
        layer.kernel[...], layer.bias[...] = jnp.asarray(kernel), jnp.asarray(bias)
    return nnx_training(nnx.Sequential(*layers))


def nnx_training(model: Any) -> tuple[Any, Any, Callable[..., Any]]:
    import optax
    from flax import nnx

    def step(model: Any, optimizer: Any, batch: Any) -> Any:
        value, grads = nnx.value_and_grad(lambda m: cross_entropy(m(batch[0]), batch[1]))(model)
        optimizer.update(model, grads)
        return value

    return model, nnx.Optimizer(model, optax.adam(RATE), wrt=nnx.Param), step


def nnx(case: Case) -> Call:
    """flax.nnx: nnx.jit over model and optimizer, as in its quick start"""
    import jax.numpy as jnp
    from flax import nnx

    model, optimizer, step = nnx_parts(case)
    compiled, turns = nnx.jit(step), itertools.cycle(batches(case, jnp.asarray))
    return lambda: compiled(model, optimizer, next(turns))


def nnx_functional(case: Case) -> Call:
    """flax.nnx: split once, jax.jit over the state, as in its performance guide"""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    *parts, update = nnx_parts(case)
    graphdef, state = nnx.split(parts)

    @jax.jit
    def step(state: Any, batch: Any) -> Any:
        parts = nnx.merge(graphdef, state)
        value = update(*parts, batch)
        return nnx.state(parts), value

    return loop(step, state, batches(case, jnp.asarray))


def equinox(case: Case) -> Call:
    """equinox: eqx.filter_jit, vmap over examples (channels first), optax"""
    import jax.numpy as jnp

    return equinox_training(equinox_network(case), batches(case, jnp.asarray, channels_first=True))


def equinox_network(case: Case) -> Any:
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    key = jax.random.key(0)
    make = {
        "conv": lambda n, c: eqx.nn.Conv2d(c, n, 3, padding=1, key=key),
        "dense": lambda n, c: eqx.nn.Linear(c, n, key=key),
        "relu": lambda *_: eqx.nn.Lambda(jax.nn.relu),
        "pool": lambda n, _: eqx.nn.MaxPool2d(n, n),
        "flatten": lambda *_: eqx.nn.Lambda(jnp.ravel),
        "dropout": lambda rate, _: eqx.nn.Dropout(rate),
    }
    arrays, layers = iter(weights(case, channels_first=True)), build(case, make)
    for i, layer in enumerate(layers):
        if hasattr(layer, "weight"):
            kernel, bias = next(arrays)
            new = (jnp.asarray(kernel), jnp.asarray(bias).reshape(layer.bias.shape))
            layers[i] = eqx.tree_at(lambda m: (m.weight, m.bias), layer, new)
    return eqx.nn.Sequential(layers)


def equinox_training(model: Any, data: list[Any]) -> Call:
    import equinox as eqx
    import jax
    import optax

    tx, key = optax.adam(RATE), jax.random.key(0)

    def loss(model: Any, batch: Any, key: Any) -> Any:
        keys = jax.random.split(key, batch[0].shape[0])
        return cross_entropy(jax.vmap(lambda x, k: model(x, key=k))(batch[0], keys), batch[1])

    @eqx.filter_jit
    def step(train_state: Any, batch: Any) -> Any:
        model, opt_state, key = train_state
        key, subkey = jax.random.split(key)
        value, grads = eqx.filter_value_and_grad(loss)(model, batch, subkey)
        updates, opt_state = tx.update(grads, opt_state, eqx.filter(model, eqx.is_array))
        return (eqx.apply_updates(model, updates), opt_state, key), value

    start = (model, tx.init(eqx.filter(model, eqx.is_array)), key)
    return loop(step, start, data)


def haiku(case: Case) -> Call:
    """haiku: hk.transform and optax under jax.jit"""
    import haiku as hk
    import jax
    import jax.numpy as jnp

    make = {
        "conv": lambda n, _: hk.Conv2D(n, 3),
        "dense": lambda n, _: hk.Linear(n),
        "relu": lambda *_: jax.nn.relu,
        "pool": lambda n, _: hk.MaxPool((1, n, n, 1), (1, n, n, 1), "VALID"),
        "flatten": lambda *_: hk.Flatten(),
        "dropout": lambda rate, _: lambda x: hk.dropout(hk.next_rng_key(), rate, x),
    }
    net = hk.transform(lambda x: hk.Sequential(build(case, make))(x))
    data = batches(case, jnp.asarray)
    names = jax.eval_shape(net.init, jax.random.key(0), data[0][0])
    arrays = [{"w": jnp.asarray(k), "b": jnp.asarray(b)} for k, b in weights(case)]
    return haiku_training(net, dict(zip(names, arrays, strict=True)), data)


def haiku_training(net: Any, params: Any, data: list[Any]) -> Call:
    import jax
    import optax

    key, tx = jax.random.key(0), optax.adam(RATE)

    @jax.jit
    def step(train_state: Any, batch: Any) -> Any:
        params, opt_state, key = train_state
        key, subkey = jax.random.split(key)
        value, grads = jax.value_and_grad(
            lambda params: cross_entropy(net.apply(params, subkey, batch[0]), batch[1])
        )(params)
        updates, opt_state = tx.update(grads, opt_state)
        return (optax.apply_updates(params, updates), opt_state, key), value

    return loop(step, (params, tx.init(params), key), data)


def torch(case: Case) -> Call:
    """PyTorch, eager: fused Adam and channels_last, as in its tuning guide"""
    return torch_training(torch_network(case), case)


def torch_network(case: Case) -> Any:
    import torch
    from torch import nn

    make = {
        "conv": lambda n, c: nn.Conv2d(c, n, 3, padding=1),
        "dense": lambda n, c: nn.Linear(c, n),
        "relu": lambda *_: nn.ReLU(),
        "pool": lambda n, _: nn.MaxPool2d(n),
        "flatten": lambda *_: nn.Flatten(),
        "dropout": lambda rate, _: nn.Dropout(rate),
    }
    layers = build(case, make)
    with_weights = [layer for layer in layers if hasattr(layer, "weight")]
    for layer, (kernel, bias) in zip(with_weights, weights(case, True), strict=True):
        layer.load_state_dict({"weight": torch.tensor(kernel), "bias": torch.tensor(bias)})
    return nn.Sequential(*layers)


def torch_place() -> str:
    """Where PyTorch runs, with its arithmetic set to what XLA does unasked."""
    import torch

    torch.set_flush_denormal(True)
    tf32 = EXACT not in os.environ  # as XLA does, where there is any
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    return "cuda" if torch.cuda.is_available() else "cpu"


def torch_training(model: Any, case: Case) -> Call:
    import torch

    place = torch_place()
    model = model.to(place).to(memory_format=torch.channels_last)  # pyright: ignore
    optimizer = torch.optim.Adam(model.parameters(), RATE, fused=True)
    loss = torch.nn.CrossEntropyLoss()

    def step(_: None, batch: Any) -> Any:
        optimizer.zero_grad()
        value = loss(model(batch[0]), batch[1])
        value.backward()
        optimizer.step()
        return None, value.detach()

    return loop(step, None, batches(case, lambda a: torch.tensor(a, device=place), True))
