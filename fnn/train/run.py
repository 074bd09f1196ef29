"""A whole training run as one pure function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fnn.core import checks, errors
from fnn.core.scan import scan
from fnn.core.shapes import as_array, natives
from fnn.core.types import Tree
from fnn.data.batching import rows_of_batches
from fnn.train.step import Step, TrainState, check_train_state, data_key


@errors.named
def run(
    step: Step,
    train_state: TrainState,
    data: Tree,
    *,
    steps: int,
    batch_size: int,
    evaluate_every: int | None = None,
    evaluate: Callable[[TrainState], Mapping[str, Any]] | None = None,
    checkpoint_every: int | None = None,
) -> tuple[TrainState, dict[str, Any]]:
    """A training run of `steps` steps as one traceable function: a scan over data on the device.

    It is pure: it can be compiled, mapped over seeds and hyperparameters (`jax.vmap`),
    differentiated (`jax.grad`), and continued: 100 steps and 100 more are 200. The batches are
    those of `fnn.train.fit`: each epoch takes the data in an order drawn from the run's key and the
    epoch's number, and drops the last batch if it is not full.

    - `step`: from `fnn.train.step`, or any `(train_state, batch) -> (train_state, metrics)` that
      adds 1 to the state's `step`.
    - `train_state`: its `step` determines which batch of which epoch comes first.
    - `data`: a tree of arrays [N, ...]; under `jit`, pass it as an argument, or it becomes a
      constant of the program.
    - `steps`, `batch_size`: static. The last epoch may be cut short.
    - `evaluate_every`, `evaluate`: `evaluate(train_state) -> dict` of arrays runs after every so
      many steps, inside the program, so it consists of JAX operations.
    - `checkpoint_every`: bounds the memory of `jax.grad` through the run: one training state is
      kept every k steps and at each evaluation, and the steps between are recomputed. Memory is
      least with k near the root of `steps`. Forward mode needs no such memory: see
      `fnn.train.forward_value_and_grad`.

    Returns the training state and the history `{"train": {name: [steps]}, "eval": {name:
    [steps / evaluate_every]}}`. Raises OptionError, and ShapeError for data with different leading
    axes.

    >>> import fnn
    >>> net, tx = fnn.dense(3), fnn.optim.adam(0.1)
    >>> data = {"image": jnp.eye(6, 4), "label": jnp.arange(6) % 3}
    >>> step = fnn.train.step(fnn.train.supervised(net, fnn.losses.softmax_cross_entropy), tx)
    >>> def last_loss(key):
    ...     ts = fnn.train.init(net, tx, key, (1, 4))
    ...     ts, history = run(step, ts, data, steps=20, batch_size=3)
    ...     return history["train"]["loss"][-1]
    >>> jax.jit(jax.vmap(last_loss))(jax.random.split(jax.random.key(0), 5)).shape
    (5,)
    """
    steps, batch_size = checks.count("steps", steps, 0), checks.count("batch_size", batch_size)
    if checkpoint_every is not None:
        checks.count("checkpoint_every", checkpoint_every)
    check_train_state(train_state)
    if callable(data) or hasattr(data, "__next__"):
        raise errors.InputError(
            "arrays, which the compiled run keeps on the device",
            f"batches from outside it, {errors.show(data)}",
            "call fnn.train.fit, which takes streams",
        )
    if (evaluate_every is None) != (evaluate is None):
        wanted = "evaluate_every and evaluate together"
        raise errors.OptionError(wanted, "one of them", "give both or neither")
    if evaluate_every is not None:
        checks.count("evaluate_every", evaluate_every)
        checks.function("evaluate", evaluate, "the training state")
    data = jax.tree.map(as_array, natives(data, "data"))
    per_epoch = check_batches(data, batch_size)
    n, key = checks.examples("data", data), data_key(train_state)

    # Batches are numbered from the first one of the first epoch; the scan runs over chunks.
    #
    #     epochs   |0 . . . . . . .|1 . . . . . . .|2 . . .    per_epoch batches each, in an order
    #     chunks       |a . . . . .|b . . . . .|c . . . . .    of its own; a chunk may touch several
    #
    # A chunk hands on the state, the number of its next batch and that batch's epoch's order.
    length = evaluate_every or max(per_epoch, checkpoint_every or 0)

    def order_of(epoch):
        return rows_of_batches(key, epoch, n, batch_size)

    def advance(carry, count):
        """`count` steps."""
        train_state, number, order = carry
        epoch, start = jnp.divmod(number, per_epoch)
        if count < per_epoch:  # at most one more order, drawn only if the chunk reaches its epoch
            reaches = start + count >= per_epoch
            following = jax.lax.cond(reaches, order_of, lambda _: order, epoch + 1)
            orders = jnp.stack([order, following])
        else:
            # one by one: under vmap, generators other than threefry draw other numbers
            more = 1 + jnp.arange(-(-count // per_epoch), dtype=epoch.dtype)
            orders = jnp.concatenate([order[None], jax.lax.map(order_of, epoch + more)])
        rows = jax.lax.dynamic_slice_in_dim(orders.reshape(-1, batch_size), start, count)
        after, metrics = steps_over(step, train_state, data, rows, checkpoint_every)
        return (after, number + count, orders[(start + count) // per_epoch]), metrics

    def chunk(carry, _):
        carry, metrics = advance(carry, length)
        return carry, (metrics, {} if evaluate is None else dict(evaluate(carry[0])))

    chunks, rest = divmod(steps, length)
    carry = train_state, train_state.step, order_of(train_state.step // per_epoch)
    carry, (metrics, evaluated) = scan(chunk, carry, None, length=chunks)
    metrics = jax.tree.map(lambda a: a.reshape(chunks * length, *a.shape[2:]), metrics)
    if rest:
        carry, more = advance(carry, rest)
        metrics = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), metrics, more)
    return carry[0], {"train": metrics, "eval": evaluated}


def steps_over(
    step: Step,
    train_state: TrainState,
    data: Tree,
    rows: jax.Array,
    checkpoint_every: int | None = None,
) -> tuple[TrainState, Any]:
    """One step for each row of example numbers [count, batch_size], in one scan."""

    def one(train_state, rows):
        batch = jax.tree.map(lambda a: jnp.take(a, rows, axis=0, mode="clip"), data)
        return step(train_state, batch)  # rows are never out of bounds; no check is faster

    return scan(one, train_state, rows, checkpoint_every=checkpoint_every)


def check_batches(data: Tree, batch_size: int) -> int:
    """The number of full batches in an epoch, at least one."""
    n = checks.examples("data", data)
    if n < batch_size:
        mend = "make it smaller: batches that are not full are dropped"
        raise errors.OptionError(f"a batch_size of at most the {n} examples", f"{batch_size}", mend)
    return n // batch_size
