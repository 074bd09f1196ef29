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
    arrays,
    batches,
    cross_entropy,
    fnn_training,
    forward,
    loop,
    losses,
)
from benchmarks.task import Call, Contender, Goal, Task


def fnn(case: Case) -> Call:
    """serial, supervised and train.step"""
    import jax.numpy as jnp

    call = loop(*fnn_training(case), batches(case, jnp.asarray))
    return lambda: call()["loss"]


def by_hand(case: Case, pool: Callable[[Any], Any] | None = None) -> tuple[Callable[..., Any], Any]:
    """The step, and the state it starts from."""
    import jax
    import jax.numpy as jnp
    import optax

    tx = optax.adam(RATE)

    @jax.jit
    def update(count: Any, params: Any, opt_state: Any, key: Any, batch: Any) -> Any:
        subkey = jax.random.fold_in(key, count)
        value, grads = jax.value_and_grad(
            lambda params: cross_entropy(forward(case, params, batch[0], pool, subkey), batch[1])
        )(params)
        updates, opt_state = tx.update(grads, opt_state)
        return (count + 1, optax.apply_updates(params, updates), opt_state), value

    def step(train_state: Any, batch: Any) -> Any:
        *moving, key = train_state  # the key never changes, and jit is slow to return one
        moved, value = update(*moving, key, batch)
        return (*moved, key), value

    params = arrays(case)
    return step, (jnp.int32(0), params, tx.init(params), jax.random.key(0))


def floor(case: Case) -> Call:
    """by hand: jax.jit, optax and the leaves of fnn's TrainState; the pool a reduce_window"""
    import jax.numpy as jnp

    return loop(*by_hand(case), batches(case, jnp.asarray))


def slices(x: Any) -> Any:
    import jax.numpy as jnp

    rows = jnp.maximum(x[:, ::2], x[:, 1::2])
    return jnp.maximum(rows[:, :, ::2], rows[:, :, 1::2])


def floor_slices(case: Case) -> Call:
    """the floor with its max pool written as jnp.maximum of slices"""
    import jax.numpy as jnp

    return loop(*by_hand(case, slices), batches(case, jnp.asarray))


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
