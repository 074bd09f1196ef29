"""Measuring a network on a whole dataset."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from fnn.core import errors
from fnn.core.layer import Layer
from fnn.core.placement import Placement
from fnn.core.shapes import natives
from fnn.core.types import Tree
from fnn.data.batching import eval_batches
from fnn.data.stream import Stream
from fnn.metrics.metric import check_metrics, updated
from fnn.train.step import TrainState
from fnn.train.supervised import inputs_and_labels
from fnn.train.weights import FromBatch, both, counting


@errors.named
def evaluator(
    net: Layer,
    data: Tree | Stream,
    metrics: Mapping[str, Callable],
    *,
    batch_size: int = 256,
    names: tuple[str, str] = ("image", "label"),
    mask: FromBatch = None,
    weights: FromBatch = None,
    lengths: FromBatch = None,
    class_weights: ArrayLike | None = None,
    shardings: Placement | None = None,
) -> Callable[[TrainState], dict[str, Any]]:
    """A function of the training state that measures its network on all of `data`.

    - `data`: a tree of arrays [N, ...]; the last batch is padded, and the padding masked out. Or
      `fnn.data.stream(..., last="fill")`, which has a batch_size of its own.
    - `metrics`: by name, as in `fnn.train.supervised`: each an `fnn.metrics.Metric`, or a function
      `(outputs, labels)` that returns one value per example, [B, ...], to be averaged.
    - `names`, `mask`, `weights`, `lengths`, `class_weights`: as in `fnn.train.supervised`.
    - `shardings`: from `fnn.sharding.plan`: every device gets its own part of each batch.

    Each value is that of all N examples together, whatever the batch size; means agree within a
    few roundings of float32. Raises InputError if data has no examples, and OptionError for a
    stream that leaves some out.

    >>> import fnn
    >>> net = fnn.serial(fnn.dense(3))
    >>> ts = fnn.train.init(net, fnn.optim.sgd(0.1), jax.random.key(0), (1, 4))
    >>> data = {"image": np.zeros((5, 4), np.float32), "label": np.array([0, 0, 1, 2, 0])}
    >>> print(evaluator(net, data, {"accuracy": fnn.metrics.accuracy()}, batch_size=2)(ts))
    {'accuracy': np.float32(0.6)}
    """
    measures = check_metrics(metrics)
    counted = counting(mask, weights, lengths, class_weights)
    _check_whole(data)

    @jax.jit
    def update(params, state, accumulators, batch, real):
        if shardings is not None:
            batch, real = shardings.constrain_batch((batch, real))
        x, labels = inputs_and_labels(batch, names)
        outputs = net(params, x, state=state)
        with errors.within("evaluator"):
            keep, w = counted(batch, labels)
            keep = both(keep, real, jnp.logical_and)
        return {
            name: updated(metric, accumulators[name], outputs, labels, keep, w)
            for name, metric in measures.items()
        }

    @jax.jit
    def compute(accumulators):
        values = {name: metric.compute(accumulators[name]) for name, metric in measures.items()}
        if shardings is not None and jax.process_count() > 1:  # each has the values of all
            values = jax.lax.with_sharding_constraint(values, shardings.whole)
        return values

    def evaluate(train_state: TrainState) -> dict[str, Any]:
        params, state = train_state.params, train_state.state
        start = accumulators = {name: metric.init() for name, metric in measures.items()}
        if shardings is not None and jax.process_count() > 1:
            start = accumulators = shardings.everywhere(start)
        own = isinstance(data, Stream)  # whose workers end with its iterator, also at an error
        with closing(data(0)) if own else nullcontext(eval_batches(data, batch_size)) as pairs:
            for batch, mask in pairs:
                batch = natives(batch, "data")
                if shardings is not None:
                    batch, mask = shardings.put((batch, mask), "data", whole=not own)
                accumulators = update(params, state, accumulators, batch, mask)
        if accumulators is start:
            raise errors.InputError(
                "data to evaluate on", "no examples", "pass at least one example"
            )
        values = compute(accumulators)
        return {name: jax.tree.map(lambda v: np.asarray(v)[()], values[name]) for name in measures}

    return evaluate


def _check_whole(data: Any) -> None:
    """Refuse a stream that leaves out examples, or of which no process has whole batches."""
    if not isinstance(data, Stream):
        if callable(data) or hasattr(data, "__next__"):
            mend = 'pass arrays, or fnn.data.stream(source, batch_size, None, last="fill")'
            raise errors.InputError("arrays or a stream", errors.show(data), mend)
        return
    wanted, (index, count) = "a stream of all examples", data.shard
    if not data.fills:
        mend = 'pass last="fill" to the stream'
        raise errors.OptionError(wanted, 'one with last="drop"', mend)
    if count > 1 and isinstance(data.device, bool):
        mend = "join the parts: pass a sharding as the stream's device="
        raise errors.OptionError(wanted, f"part {index} of {count} of its batches", mend)
