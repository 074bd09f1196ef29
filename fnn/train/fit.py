"""The host loop: epochs, a progress bar, evaluation and the history."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from fnn.core import checks, errors
from fnn.core.layer import Layer
from fnn.core.progress import Bar
from fnn.core.shapes import natives
from fnn.core.types import Tree
from fnn.data.batching import eval_batches
from fnn.metrics.metric import check_metrics
from fnn.train.drivers import DRIVERS, calls
from fnn.train.step import Step, TrainState, check_train_state, inputs_and_labels
from fnn.train.weights import FromBatch, both, counting, measure


def fit(
    step: Step,
    train_state: TrainState,
    data: Tree | Callable[[int], Iterable[Tree]],
    *,
    epochs: int,
    batch_size: int | None = None,
    evaluate: Callable[[TrainState], Mapping[str, Any]] | None = None,
    driver: str = "loop",
    chunk: int = 32,
    callback: Callable[[TrainState, Mapping[str, Any]], Any] | None = None,
    progress: bool = True,
) -> tuple[TrainState, dict[str, Any]]:
    """Run `step` over `data` for `epochs`; return the training state and the history.

    - `step`: from `fnn.train.step`, or any `(train_state, batch) -> (train_state, metrics)`.
    - `data`: a tree of arrays [N, ...], shuffled in each epoch and cut into batches of
      `batch_size`; or a function of the epoch, counted from 0, that returns its batches.
    - `evaluate(train_state) -> dict`: called after each epoch; see `fnn.train.evaluator`.
    - `driver`: how steps are taken. `"loop"` calls each one, with its batch from the host;
      `"chunk"` takes `chunk` of them in one compiled scan, over data on the device; `"scan"` takes
      a whole epoch. `"auto"` times the first two on steps that it discards and chooses the faster,
      as `"scan"` if an epoch takes less than a second; for batches from a function it is `"loop"`.
      All take the same steps on the same batches, with bitwise equal results for dense networks and
      within about 1e-6 for others. Each driver repeats its own results bitwise, but `"auto"` may
      choose differently, so it is not the default.
    - `callback(train_state, metrics)`: called after each call, with the metrics of one step, or
      [k] of k steps. A true return value, such as `metrics["loss"] < 0.1`, ends the run (early
      stopping). It may also write a checkpoint: the leaves of the training state.
    - `progress`: show a bar (extra `progress`).

    With arrays, the order is a pure function of the run's key and the step: training for 2 epochs,
    or for 1 and then 1 more from the returned state, gives the same result bitwise.

    The history is `{"train": {name: [steps]}, "eval": {name: [epochs]}, "driver": its name}`.
    Raises OptionError for a missing batch_size or a driver that needs arrays, and InputError for
    an epoch without batches.

    >>> import fnn
    >>> net, tx = fnn.dense(3), fnn.optim.adam(0.1)
    >>> data = {"image": np.eye(6, 4, dtype=np.float32), "label": np.arange(6) % 3}
    >>> ts = fnn.train.init(net, tx, jax.random.key(0), (1, 4))
    >>> step = fnn.train.step(
    ...     fnn.train.supervised(net, fnn.losses.softmax_cross_entropy), tx
    ... )
    >>> ts, history = fit(step, ts, data, epochs=5, batch_size=3, driver="scan", progress=False)
    >>> history["train"]["loss"].shape
    (10,)
    """
    epochs = checks.count("epochs", epochs, least=0)
    check_train_state(train_state)
    checks.choice("driver", driver, DRIVERS)
    if callback is not None:
        checks.function("callback", callback, "(train_state, metrics)")
    driver, total, calls_of = calls(step, train_state, data, batch_size, driver, chunk)
    train, evaluated = [], []
    with Bar(total and epochs * total, progress) as bar:
        for epoch in range(epochs):
            before = len(train)
            for after, metrics, count in calls_of(epoch, train_state):
                train_state = after
                train.append(metrics)
                bar.update(train, count)
                if callback is not None and callback(train_state, metrics):
                    return train_state, _history(train, evaluated, driver)
            if len(train) == before:
                raise errors.InputError(
                    "batches in every epoch",
                    f"none in epoch {epoch}",
                    "pass a function of the epoch that makes a new iterator",
                )
            if evaluate is not None:
                evaluated.append(jax.tree.map(np.asarray, dict(evaluate(train_state))))
                bar.note(evaluated[-1])
    return train_state, _history(train, evaluated, driver)


@errors.named
def evaluator(
    net: Layer,
    data: Tree,
    metrics: Mapping[str, Callable],
    *,
    batch_size: int = 256,
    names: tuple[str, str] = ("image", "label"),
    mask: FromBatch = None,
    weights: FromBatch = None,
    lengths: FromBatch = None,
    class_weights: ArrayLike | None = None,
) -> Callable[[TrainState], dict[str, Any]]:
    """A function of the training state that measures its network on all of `data`.

    - `data`: a tree of arrays [N, ...]; the last batch is padded, and the padding masked out.
    - `metrics`: by name, as in `fnn.train.supervised`: each an `fnn.metrics.Metric`, or a function
      `(outputs, labels)` that returns one value per example, [B, ...], to be averaged.
    - `names`, `mask`, `weights`, `lengths`, `class_weights`: as in `fnn.train.supervised`.

    Each value is that of all N examples together, whatever the batch size; means agree within a
    few roundings of float32. Raises InputError if data has no examples.

    >>> import fnn
    >>> net = fnn.serial(fnn.dense(3))
    >>> ts = fnn.train.init(net, fnn.optim.sgd(0.1), jax.random.key(0), (1, 4))
    >>> data = {"image": np.zeros((5, 4), np.float32), "label": np.array([0, 0, 1, 2, 0])}
    >>> print(evaluator(net, data, {"accuracy": fnn.metrics.accuracy()}, batch_size=2)(ts))
    {'accuracy': np.float32(0.6)}
    """
    measures = check_metrics(metrics)
    counted = counting(mask, weights, lengths, class_weights)

    @jax.jit
    def update(params, state, accumulators, batch, real):
        x, labels = inputs_and_labels(batch, names)
        outputs = net(params, x, state=state)
        with errors.within("evaluator"):
            keep, w = counted(batch, labels)
            keep = both(keep, real, jnp.logical_and)
        return {
            name: measure(metric, accumulators[name], outputs, labels, keep, w)
            for name, metric in measures.items()
        }

    @jax.jit
    def compute(accumulators):
        return {name: metric.compute(accumulators[name]) for name, metric in measures.items()}

    def evaluate(train_state: TrainState) -> dict[str, Any]:
        params, state = train_state.params, train_state.state
        start = accumulators = {name: metric.init() for name, metric in measures.items()}
        for batch, mask in eval_batches(data, batch_size):
            accumulators = update(params, state, accumulators, natives(batch, "data"), mask)
        if accumulators is start:
            raise errors.InputError(
                "data to evaluate on", "no examples", "pass at least one example"
            )
        values = compute(accumulators)
        return {name: jax.tree.map(lambda v: np.asarray(v)[()], values[name]) for name in measures}

    return evaluate


def _history(train: list, evaluated: list, driver: str) -> dict[str, Any]:
    join = np.stack if driver == "loop" else np.concatenate
    return {"train": _joined(train, join), "eval": _joined(evaluated, np.stack), "driver": driver}


def _joined(rows: list, join: Callable[[tuple], np.ndarray]) -> dict[str, np.ndarray]:
    rows = jax.device_get(rows)
    return jax.tree.map(lambda *values: join(values), *rows) if rows else {}
