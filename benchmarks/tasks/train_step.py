"""One training step (loss, gradient, Adam) of an MLP and of a CNN, in every library.

The batches are on the device already. The step is timed with its dropout as given, and checked,
built once more, with dropout at rate 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks import peers
from benchmarks.networks import (
    CNN,
    MLP,
    RATE,
    Case,
    batches,
    build,
    cross_entropy,
    loop,
    losses,
    weights,
)
from benchmarks.task import Call, Contender, Goal, Task


def fnn(case: Case) -> Call:
    """serial, supervised and train.step"""
    import jax
    import jax.numpy as jnp

    import fnn

    make = {
        "conv": lambda n, _: fnn.conv(n, (3, 3)),
        "dense": lambda n, _: fnn.dense(n),
        "relu": lambda *_: jax.nn.relu,
        "pool": lambda n, _: fnn.max_pool((n, n)),
        "flatten": lambda *_: fnn.flatten(3),
        "dropout": lambda rate, _: fnn.dropout(rate),
    }
    net, tx = fnn.serial(*build(case, make)), fnn.optim.adam(RATE)
    start = fnn.train.init(net, tx, jax.random.key(0), case.shape)
    names = [name for name, _ in net.children if name in start.params]
    arrays = [{"kernel": jnp.asarray(k), "bias": jnp.asarray(b)} for k, b in weights(case)]
    params = dict(zip(names, arrays, strict=True))
    start = start._replace(params=params, opt_state=tx.init(params))
    step = fnn.train.step(fnn.train.supervised(net, fnn.losses.softmax_cross_entropy), tx)
    call = loop(step, start, batches(case, jnp.asarray))
    return lambda: call()["loss"]


def by_hand(case: Case, pool: Callable[[Any], Any]) -> tuple[Callable[..., Any], Any]:
    """The step, and the state it starts from."""
    import jax
    import jax.numpy as jnp
    import optax

    def forward(params: Any, x: Any, key: Any) -> Any:
        layers, dimensions = iter(params), ("NHWC", "HWIO", "NHWC")
        for i, (kind, n) in enumerate(case.net):
            match kind:
                case "conv":
                    p = next(layers)
                    x = jax.lax.conv_general_dilated(
                        x, p["kernel"], (1, 1), "SAME", dimension_numbers=dimensions
                    )
                    x = x + p["bias"]
                case "dense":
                    p = next(layers)
                    x = x @ p["kernel"] + p["bias"]
                case "relu":
                    x = jax.nn.relu(x)
                case "pool":
                    x = pool(x)
                case "flatten":
                    x = x.reshape(x.shape[0], -1)
                case "dropout":
                    keep = jax.random.bernoulli(jax.random.fold_in(key, i), 1 - n, x.shape)
                    x = jnp.where(keep, x / (1 - n), 0)
        return x

    tx = optax.adam(RATE)

    @jax.jit
    def update(count: Any, params: Any, opt_state: Any, key: Any, batch: Any) -> Any:
        subkey = jax.random.fold_in(key, count)
        value, grads = jax.value_and_grad(
            lambda params: cross_entropy(forward(params, batch[0], subkey), batch[1])
        )(params)
        updates, opt_state = tx.update(grads, opt_state)
        return (count + 1, optax.apply_updates(params, updates), opt_state), value

    def step(train_state: Any, batch: Any) -> Any:
        *moving, key = train_state  # the key never changes, and jit is slow to return one
        moved, value = update(*moving, key, batch)
        return (*moved, key), value

    params = [{"kernel": jnp.asarray(k), "bias": jnp.asarray(b)} for k, b in weights(case)]
    return step, (jnp.int32(0), params, tx.init(params), jax.random.key(0))


def hand_written(case: Case, pool: Callable[[Any], Any]) -> Call:
    import jax.numpy as jnp

    return loop(*by_hand(case, pool), batches(case, jnp.asarray))


def floor(case: Case) -> Call:
    """by hand: jax.jit, optax and the leaves of fnn's TrainState; the pool a reduce_window"""
    from jax import lax

    window, lowest = (1, 2, 2, 1), -float("inf")
    return hand_written(
        case, lambda x: lax.reduce_window(x, lowest, lax.max, window, window, "VALID")
    )


def slices(x: Any) -> Any:
    import jax.numpy as jnp

    rows = jnp.maximum(x[:, ::2], x[:, 1::2])
    return jnp.maximum(rows[:, :, ::2], rows[:, :, 1::2])


def floor_slices(case: Case) -> Call:
    """the floor with its max pool written as jnp.maximum of slices"""
    return hand_written(case, slices)


JAX_PEERS: dict[str, Contender] = {
    "stax": peers.stax,
    "linen": peers.linen,
    "nnx": peers.nnx,
    "nnx_functional": peers.nnx_functional,
    "equinox": peers.equinox,
    "haiku": peers.haiku,
}
CONTENDERS = {"floor": floor, "fnn": fnn, **JAX_PEERS, "torch": peers.torch}

TASK = Task(
    title="One training step: loss, gradient and Adam, from the same weights and batches",
    cases={"mlp": MLP, "cnn": CNN},
    contenders={**CONTENDERS, "floor_slices": floor_slices},
    check=losses,
    goals=(
        Goal(
            "the MLP step is at most 1.05 x the floor", "mlp", 1.05, ("floor",),
            cause="noise. `floor_slices` is the very program of `floor` here, and differs from "
            "it by as much; with floor, fnn and floor_slices alone, 99 rounds and 33 processes of "
            "each gave fnn 1.03 and floor_slices 0.96",
        ),
        Goal("the CNN step is at most 0.5 x the best JAX library", "cnn", 0.5, tuple(JAX_PEERS)),
        Goal("the CNN step is at most 1.1 x PyTorch", "cnn", 1.1, ("torch",)),
    ),
)  # fmt: skip
