"""A whole training run as one pure function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fnn.core import checks, errors
from fnn.core.scan import scan
from fnn.core.shapes import as_array, natives
from fnn.data.batching import rows_of_batches
from fnn.train.step import TrainState, check_train_state, data_key


@errors.named
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

    - `step`: of `fnn.train.step`, or any `(train_state, batch) -> (train_state, metrics)`, which
      adds 1 to the state's `step`.
    - `train_state`: which batch of which epoch comes first follows from its `step`.
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
    steps, batch_size = checks.count("steps", steps, 0), checks.count("batch_size", batch_size)
    if checkpoint_every is not None:
        checks.count("checkpoint_every", checkpoint_every)
    check_train_state(train_state)
    if (eval_every is None) != (eval_fn is None):
        raise errors.OptionError(
            "eval_every and eval_fn together", "one of them", "give both, or none"
        )
    if eval_every is not None:
        checks.count("eval_every", eval_every)
        checks.function("eval_fn", eval_fn, "the training state")
    data = jax.tree.map(as_array, natives(data, "data"))
    per_epoch = check_batches(data, batch_size)
    n, key = checks.examples("data", data), data_key(train_state)
    length = eval_every or max(per_epoch, checkpoint_every or 0)

    def draw(epoch):
        return rows_of_batches(key, epoch, n, batch_size)

    def some(loop, count):
        """`count` steps on from batch number `at`, whose epoch has this order."""
        train_state, at, order = loop
        epoch, start = jnp.divmod(at, per_epoch)
        if count < per_epoch:  # an order costs more than a few steps may
            ends = start + count >= per_epoch
            orders = jnp.stack([order, jax.lax.cond(ends, draw, lambda _: order, epoch + 1)])
        else:
            # one by one, since under vmap other generators than threefry draw other numbers
            more = 1 + jnp.arange(-(-count // per_epoch), dtype=epoch.dtype)
            orders = jnp.concatenate([order[None], jax.lax.map(draw, epoch + more)])
        rows = orders.reshape(-1, batch_size)
        rows = jax.lax.dynamic_slice_in_dim(rows, start, count)
        after, metrics = steps_over(step, train_state, data, rows, checkpoint_every)
        return (after, at + count, orders[(start + count) // per_epoch]), metrics

    def chunk(loop, _):
        loop, metrics = some(loop, length)
        return loop, (metrics, {} if eval_fn is None else dict(eval_fn(loop[0])))

    chunks, rest = divmod(steps, length)
    loop = train_state, train_state.step, draw(train_state.step // per_epoch)
    loop, (metrics, evaluated) = scan(chunk, loop, None, length=chunks)
    metrics = jax.tree.map(lambda a: a.reshape(chunks * length, *a.shape[2:]), metrics)
    if rest:
        loop, more = some(loop, rest)
        metrics = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), metrics, more)
    return loop[0], {"train": metrics, "eval": evaluated}


def steps_over(
    step: Callable,
    train_state: TrainState,
    data: Any,
    rows: jax.Array,
    checkpoint_every: int | None = None,
) -> tuple[TrainState, Any]:
    """A step for the batch of each row of numbers [count, batch_size], in one scan."""

    def one(train_state, rows):
        batch = jax.tree.map(lambda a: jnp.take(a, rows, axis=0, mode="clip"), data)
        return step(train_state, batch)  # no row is out of bounds, and not to check is faster

    return scan(one, train_state, rows, checkpoint_every=checkpoint_every)


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
