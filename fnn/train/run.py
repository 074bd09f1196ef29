"""A whole training run as one pure function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fnn import checks, errors
from fnn.data.batching import permutation
from fnn.shapes import as_array
from fnn.train.fit import data_key
from fnn.train.step import TrainState, check_train_state


def run(
    step: Callable,
    train_state: TrainState,
    data: Any,
    *,
    steps: int,
    batch_size: int,
    eval_every: int | None = None,
    eval_fn: Callable[[TrainState], Mapping[str, Any]] | None = None,
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
        check_train_state(train_state)
        if (eval_every is None) != (eval_fn is None):
            raise errors.OptionError(
                "eval_every and eval_fn together", "one of them", "give both, or none"
            )
        data = jax.tree.map(as_array, data)
        n = checks.examples("data", data)
        per_epoch = n // batch_size
        if not per_epoch:
            raise errors.OptionError(
                f"a batch_size of at most the {n} examples",
                f"{batch_size}",
                "make it smaller: a batch that is not full is left out",
            )
    key, size = data_key(train_state), per_epoch * batch_size

    def some(train_state, count):
        """`count` steps; (training state, metrics [count])."""
        epoch, start = jnp.divmod(train_state.step, per_epoch)
        epochs = epoch + jnp.arange(-(-(count - 1) // per_epoch) + 1, dtype=epoch.dtype)
        order = jax.vmap(lambda e: permutation(key, e, n)[:size])(epochs).reshape(-1, batch_size)

        def one(train_state, i):
            rows = order[start + i]
            batch = jax.tree.map(lambda a: a[rows], data)
            return step(train_state, batch)

        return jax.lax.scan(one, train_state, jnp.arange(count, dtype=start.dtype))

    def chunk(train_state, _):
        train_state, metrics = some(train_state, length)
        return train_state, (metrics, {} if eval_fn is None else dict(eval_fn(train_state)))

    length = per_epoch if eval_every is None else checks.count("eval_every", eval_every)
    chunks, rest = divmod(steps, length)
    train_state, (metrics, evaluated) = jax.lax.scan(chunk, train_state, length=chunks)
    metrics = jax.tree.map(lambda a: a.reshape(chunks * length, *a.shape[2:]), metrics)
    if rest:
        train_state, more = some(train_state, rest)
        metrics = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), metrics, more)
    return train_state, {"train": metrics, "eval": evaluated}
