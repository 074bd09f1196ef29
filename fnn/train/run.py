"""A whole training run as one pure function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fnn import checks, errors
from fnn.data.batching import permutation
from fnn.scanning import scan
from fnn.shapes import as_array
from fnn.train.step import TrainState, check_train_state, data_key


def run(
    step: Callable,
    train_state: TrainState,
    data: Any,
    *,
    steps: int,
    batch_size: int,
    eval_every: int | None = None,
    eval_fn: Callable[[TrainState], Mapping[str, Any]] | None = None,
    checkpoint_every: int | None = None,
) -> tuple[TrainState, dict[str, Any]]:
    """So many steps, as one traceable function: a `jax.lax.scan` over data on the device.

    It is pure, so it may be compiled, mapped over seeds and hyperparameters (`jax.vmap`),
    differentiated (`jax.grad`), and called again to go on: 100 steps and 100 more are 200. The
    batches are those of `fnn.train.fit`: each epoch is the data in an order drawn from the run's
    key and the epoch's number, and what does not fill a last batch is left out of it.

    - `step`: of `fnn.train.step`, or any `(train_state, batch) -> (train_state, metrics)`.
    - `train_state`: which step of which epoch comes next follows from its `step`.
    - `data`: a tree of arrays [N, ...]; under `jit` pass it as an argument, or it is compiled in.
    - `steps`, `batch_size`: static; of the last epoch only the steps that are left are made.
    - `eval_every`, `eval_fn`: `eval_fn(train_state) -> dict` of arrays is called, while tracing,
      after every so many steps; so it is made of jax operations.
    - `checkpoint_every`: for `jax.grad` through the run, which keeps what every step computed: k
      keeps one training state every k steps, and at each evaluation, and computes the steps between
      again; memory is least with k near the root of `steps`. Forward mode keeps nothing: see
      `fnn.train.forward_value_and_grad`.

    Returns the training state and the history `{"train": {name: [steps]}, "eval": {name:
    [steps / eval_every]}}`. Raises OptionError, and ShapeError for data with other leading axes.

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
    with errors.within("run"):
        steps, batch_size = checks.count("steps", steps, 0), checks.count("batch_size", batch_size)
        if checkpoint_every is not None:
            checks.count("checkpoint_every", checkpoint_every)
        check_train_state(train_state)
        if (eval_every is None) != (eval_fn is None):
            raise errors.OptionError(
                "eval_every and eval_fn together", "one of them", "give both, or none"
            )
        data = jax.tree.map(as_array, data)
        per_epoch = check_batches(data, batch_size)
    length = max(per_epoch, checkpoint_every or 0)
    if eval_every is not None:
        length = checks.count("eval_every", eval_every)

    def some(train_state, count):
        return some_steps(step, train_state, data, count, batch_size, checkpoint_every)

    def chunk(train_state, _):
        train_state, metrics = some(train_state, length)
        return train_state, (metrics, {} if eval_fn is None else dict(eval_fn(train_state)))

    chunks, rest = divmod(steps, length)
    train_state, (metrics, evaluated) = jax.lax.scan(chunk, train_state, length=chunks)
    metrics = jax.tree.map(lambda a: a.reshape(chunks * length, *a.shape[2:]), metrics)
    if rest:
        train_state, more = some(train_state, rest)
        metrics = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), metrics, more)
    return train_state, {"train": metrics, "eval": evaluated}


def some_steps(
    step: Callable,
    train_state: TrainState,
    data: Any,
    count: int,
    batch_size: int,
    checkpoint_every: int | None = None,
) -> tuple[TrainState, Any]:
    """`count` steps on, at least 1, in one scan: (training state, metrics [count])."""
    n = checks.examples("data", data)
    per_epoch, key = n // batch_size, data_key(train_state)
    epoch, start = jnp.divmod(train_state.step, per_epoch)
    epochs = epoch + jnp.arange(-(-(count - 1) // per_epoch) + 1, dtype=epoch.dtype)
    order = jax.vmap(lambda e: permutation(key, e, n)[: per_epoch * batch_size])(epochs)
    order = order.reshape(-1, batch_size)

    def one(train_state, i):
        rows = order[start + i]
        return step(train_state, jax.tree.map(lambda a: a[rows], data))

    numbers = jnp.arange(count, dtype=start.dtype)
    return scan(one, train_state, numbers, checkpoint_every=checkpoint_every)


def check_batches(data: Any, batch_size: int) -> int:
    """How many full batches an epoch has, at least one."""
    n = checks.examples("data", data)
    if n < batch_size:
        raise errors.OptionError(
            f"a batch_size of at most the {n} examples",
            f"{batch_size}",
            "make it smaller: a batch that is not full is left out",
        )
    return n // batch_size
