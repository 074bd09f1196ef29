"""The host loop: epochs, a progress bar, evaluation and the history."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from fnn import checks, errors
from fnn.data.batching import batches, eval_batches
from fnn.layer import Layer
from fnn.metrics.metric import check_metrics
from fnn.train.step import TrainState, check_train_state, inputs_and_labels


def fit(
    step: Callable,
    train_state: TrainState,
    data: Any,
    *,
    epochs: int,
    batch_size: int | None = None,
    evaluate: Callable[[TrainState], Mapping[str, Any]] | None = None,
    progress: bool = True,
) -> tuple[TrainState, dict[str, dict[str, np.ndarray]]]:
    """Run `step` over `data` for `epochs`; return the training state and the history.

    - `step`: of `fnn.train.step`, or any `(train_state, batch) -> (train_state, metrics)`.
    - `data`: a tree of arrays [N, ...], shuffled anew each epoch and cut into batches of
      `batch_size`; or a function of the epoch, counted from 0, that gives its batches.
    - `evaluate(train_state) -> dict`: called after each epoch, as `fnn.train.evaluator` makes it.
    - `progress`: show a bar (extra `progress`).

    With arrays the order is a pure function of the run's key and the step: training 2 epochs, or
    1 and then 1 more from the returned state, gives the same result bitwise.

    The history is `{"train": {name: [steps]}, "eval": {name: [epochs]}}`.
    Raises OptionError for a missing batch_size, and InputError for an epoch without batches.

    >>> import fnn
    >>> net, tx = fnn.dense(3), fnn.optim.adam(0.1)
    >>> data = {"image": np.eye(6, 4, dtype=np.float32), "label": np.arange(6) % 3}
    >>> ts = fnn.train.init(net, tx, jax.random.key(0), (1, 4))
    >>> step = fnn.train.step(
    ...     fnn.train.supervised(net, fnn.losses.softmax_cross_entropy), tx
    ... )
    >>> ts, history = fit(step, ts, data, epochs=5, batch_size=3, progress=False)
    >>> history["train"]["loss"].shape
    (10,)
    """
    epochs = checks.count("epochs", epochs, least=0)
    check_train_state(train_state)
    epoch_of, total = _epochs(data, batch_size, train_state)
    train: list[dict] = []
    evaluated: list[dict] = []
    with Bar(total and epochs * total, progress) as bar:
        for epoch in range(epochs):
            before = len(train)
            for batch in epoch_of(epoch):
                train_state, metrics = step(train_state, batch)
                train.append(metrics)
                bar.update(train)
            if len(train) == before:
                raise errors.InputError(
                    "batches in every epoch",
                    f"none in epoch {epoch}",
                    "pass a function of the epoch that makes its iterator anew",
                )
            if evaluate is not None:
                evaluated.append({k: np.asarray(v) for k, v in evaluate(train_state).items()})
                bar.note(evaluated[-1])
    return train_state, {"train": _stack(train), "eval": _stack(evaluated)}


def evaluator(
    net: Layer,
    data: Any,
    metrics: Mapping[str, Callable],
    *,
    batch_size: int = 256,
    names: tuple[str, str] = ("image", "label"),
) -> Callable[[TrainState], dict[str, Any]]:
    """A function of the training state that measures its network on all of `data`.

    - `data`: a tree of arrays [N, ...]; the last batch is padded, and the padding masked out.
    - `metrics`: by name, as of `fnn.train.supervised`: each an `fnn.metrics.Metric`, or a function
      `(outputs, labels)` of values per example, [B, ...], for their mean.
    - `names`: as of `fnn.train.supervised`.

    Each value is that of all N examples together, whatever the batch size; for a mean, within a
    few roundings of float32. Raises InputError where data has no examples.

    >>> import fnn
    >>> net = fnn.serial(fnn.dense(3))
    >>> ts = fnn.train.init(net, fnn.optim.sgd(0.1), jax.random.key(0), (1, 4))
    >>> data = {"image": np.zeros((5, 4), np.float32), "label": np.array([0, 0, 1, 2, 0])}
    >>> print(evaluator(net, data, {"accuracy": fnn.metrics.accuracy()}, batch_size=2)(ts))
    {'accuracy': np.float32(0.6)}
    """
    measures = check_metrics(metrics)

    @jax.jit
    def update(params, state, accumulators, batch, mask):
        x, labels = inputs_and_labels(batch, names)
        outputs = net(params, x, state=state)
        return {
            name: measure.update(accumulators[name], outputs, labels, mask)
            for name, measure in measures.items()
        }

    @jax.jit
    def compute(accumulators):
        return {name: measure.compute(accumulators[name]) for name, measure in measures.items()}

    def evaluate(train_state: TrainState) -> dict[str, Any]:
        params, state = train_state.params, train_state.state
        start = accumulators = {name: measure.init() for name, measure in measures.items()}
        for batch, mask in eval_batches(data, batch_size):
            accumulators = update(params, state, accumulators, batch, mask)
        if accumulators is start:
            raise errors.InputError("data to evaluate on", "no examples", "pass some")
        values = compute(accumulators)
        return {name: jax.tree.map(lambda v: np.asarray(v)[()], values[name]) for name in measures}

    return evaluate


def _epochs(data: Any, batch_size: int | None, ts: TrainState) -> tuple[Callable, int | None]:
    """A function from the epoch of this call to its batches, and how many there are."""
    if callable(data):
        return data, None
    if hasattr(data, "__next__"):
        raise errors.InputError(
            "arrays, or a function of the epoch",
            "an iterator, which one epoch would use up",
            "pass a function of the epoch that makes its batches",
        )
    if batch_size is None:
        raise errors.OptionError(
            "a batch_size for arrays",
            "None",
            "pass batch_size=64, or as data a function of the epoch that gives its batches",
        )
    batch_size = checks.count("batch_size", batch_size)
    leaves = jax.tree.leaves(data)
    count = len(leaves[0]) // batch_size if leaves and np.ndim(leaves[0]) else 0
    key = data_key(ts)
    start = int(ts.step)

    def epoch_of(epoch: int) -> Iterable:
        """Steps start + epoch * count and on, wherever in the data's own epochs they lie."""
        first = start + epoch * count
        own, skipped = divmod(first, count)
        now = itertools.islice(batches(data, batch_size, seed=key, epoch=own), skipped, None)
        if not skipped:
            return now
        then = batches(data, batch_size, seed=key, epoch=own + 1)
        return itertools.chain(now, itertools.islice(then, skipped))

    if not count:
        batches(data, batch_size)  # raises, and says why
    return epoch_of, count


def data_key(train_state: TrainState) -> jax.Array:
    """What a run's order of the data is drawn from."""
    return jax.random.fold_in(checks.typed_key(train_state.key), zlib.crc32(b"data"))


def _stack(rows: list[dict]) -> dict[str, np.ndarray]:
    rows = jax.device_get(rows)
    return {name: np.stack([row[name] for row in rows]) for name in (rows[0] if rows else ())}


class Bar:
    """A tqdm bar, or nothing; it shows the loss now and then, so that it does not wait for it."""

    def __init__(self, total: int | None, shown: bool, unit: str = "step"):
        self.bar = None
        if shown:
            try:
                from tqdm.auto import tqdm
            except ImportError:
                raise ImportError(
                    "the progress bar needs tqdm: pip install 'fnn[progress]', "
                    "or pass progress=False"
                ) from None
            self.bar = tqdm(total=total, unit=unit)
        self.shown: dict[str, str] = {}
        self.next = 0.0

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *raised: Any) -> None:
        if self.bar is not None:
            self.bar.close()

    def update(self, rows: list[dict]) -> None:
        if self.bar is None:
            return
        self.bar.update()
        elapsed = self.bar.format_dict["elapsed"]
        if elapsed >= self.next and len(rows) > 1:
            self.next = elapsed + 0.5
            self.note(rows[-2])  # the step before this one, which is likely done

    def advance(self, count: int) -> None:
        if self.bar is not None:
            self.bar.update(count)

    def note(self, row: Mapping[str, Any]) -> None:
        if self.bar is not None:
            scalars = {name: value for name, value in row.items() if np.ndim(value) == 0}
            self.shown |= {name: f"{float(value):.3f}" for name, value in scalars.items()}
            self.bar.set_postfix(self.shown, refresh=False)
