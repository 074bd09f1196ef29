"""Truncated back-propagation through time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from fnn.core import checks, errors
from fnn.core.origins import builder
from fnn.core.shapes import as_array, natives
from fnn.core.types import Tree
from fnn.train.step import Step, TrainState, jit_step, with_donating


@builder
def tbptt(step: Step, length: int) -> Step:
    """A step that learns from long sequences chunk by chunk, in one `jax.lax.scan`.

    Every array of the batch, [B, T, ...], is cut into chunks of `length` times, and `step` runs on
    each in turn, [B, length, ...]: T / length updates of the params, each with the gradient of its
    own chunk (Williams & Peng, 1990). The carry of a stateful layer passes from chunk to chunk and
    from batch to batch, by value; `fnn.forget` on the training state's `state` resets it.

    - `step(train_state, batch) -> (train_state, metrics)`: as from `fnn.train.step`, for a network
      whose recurrent layers are `stateful=True`.
    - `length`: of a chunk; it divides T.

    Returns the step, whose metrics have a leading axis [T / length].
    Raises ShapeError for arrays that cannot be cut.

    >>> import fnn, jax.numpy as jnp
    >>> net = fnn.serial(fnn.gru(4, stateful=True), fnn.dense(1))
    >>> loss_fn = fnn.train.supervised(net, fnn.losses.squared_error)
    >>> ts = fnn.train.init(net, fnn.optim.sgd(0.1), jax.random.key(0), (2, 5, 3))
    >>> long_step = fnn.train.tbptt(fnn.train.step(loss_fn, fnn.optim.sgd(0.1)), 5)
    >>> ts, metrics = long_step(ts, (jnp.ones((2, 20, 3)), jnp.ones((2, 20, 1))))
    >>> int(ts.step), metrics["loss"].shape
    (4, (4,))
    """
    checks.function("step", step, "(train_state, batch)")
    length = checks.count("length", length)

    def chunks(array: jax.Array) -> jax.Array:
        """[B, T, ...] -> [T / length, B, length, ...]."""
        if array.ndim < 2 or array.shape[1] % length or not array.shape[1]:
            raise errors.ShapeError(
                f"arrays [B, T, ...] with T a multiple of length={length}",
                errors.show(array),
                "cut T to a multiple, or choose a length that divides it; pad sequences of other "
                "lengths, with a mask [B, T]",
            )
        b, t, *rest = array.shape
        return array.reshape(b, t // length, length, *rest).swapaxes(0, 1)

    def run(train_state, batch):
        with errors.within("tbptt"):
            cut = jax.tree.map(chunks, batch)
            if len({a.shape[0] for a in jax.tree.leaves(cut)}) != 1:
                wanted, mend = "arrays [B, T, ...] with one T", "give all the same T"
                raise errors.ShapeError(wanted, errors.show(batch), mend)
        return jax.lax.scan(step, train_state, cut)

    def step_of(program: Callable) -> Step:
        def long_step(train_state: TrainState, batch: Tree) -> tuple[TrainState, Any]:
            with errors.within("tbptt"):
                batch = jax.tree.map(as_array, natives(batch, "batch"))
            return program(train_state, batch)

        return long_step

    return with_donating(lambda donating: step_of(jit_step(run, donating)))
