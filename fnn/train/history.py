"""The history of a run: the metrics of its steps and its evaluations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from fnn.checkpoint.leaves import Path, joined, leaves_of
from fnn.core import errors
from fnn.core.types import Tree
from fnn.train.events import Row


class _Call(NamedTuple):
    """The metrics of one call: of one step, or of several, with a leading axis."""

    end: int  # the step after the last
    epoch: int | np.ndarray  # of each step, where they differ
    count: int
    metrics: Mapping[str, Any]
    single: bool  # metrics without a leading axis

    def at(self, i: int) -> Mapping[str, Any]:
        """The metrics of one step."""
        return self.metrics if self.single else jax.tree.map(lambda a: a[i], self.metrics)


class History:
    """What `fit` returns besides the training state; values stay on the device until asked for."""

    def __init__(self, begun: int):
        self.begun = begun
        self.calls: list[_Call] = []
        self.evaluations: list[tuple[int, Mapping[str, Any]]] = []
        self._is_resumed = False  # and the next step says how its metrics are nested

    def add(self, metrics: Mapping[str, Any], epoch: int, count: int, single: bool) -> None:
        if self._is_resumed and self.calls:
            past = self.calls[0]
            self.calls[0] = past._replace(metrics=_like("metrics", past.metrics, metrics))
        self._is_resumed = False
        self.calls.append(_Call(self.end + count, epoch, count, metrics, single))

    def evaluated(self, values: Mapping[str, Any]) -> None:
        """Add an evaluation, after the last step."""
        past = [(step, _like("an evaluation", old, values)) for step, old in self.evaluations]
        self.evaluations = [*past, (self.end, values)]

    @property
    def end(self) -> int:
        """The number of the last step."""
        return self.calls[-1].end if self.calls else self.begun

    def last(self) -> dict[str, Any]:
        """The metrics of the last step, as callbacks name them."""
        if not self.calls:
            return {}
        return _of_steps(self.calls[-1].at(-1))

    def before_last(self) -> Mapping[str, Any]:
        """The metrics of the last step but one call, which the device has likely computed."""
        if len(self.calls) < 2:
            return {}
        return self.calls[-2].at(-1)

    def rows(self, after: int, until: float = math.inf) -> list[Row]:
        """The steps after a given one, up to another, on the host."""
        calls = []
        for call in reversed(self.calls):
            if call.end <= after:
                break
            calls.append(call)
        calls = [call for call in calls[::-1] if call.end - call.count < until]
        rows = []
        for call, metrics in zip(calls, jax.device_get([c.metrics for c in calls]), strict=True):
            epochs, first = np.broadcast_to(call.epoch, call.count), call.end - call.count + 1
            for step in range(max(first, after + 1), int(min(call.end, until)) + 1):
                own = _of_steps(call._replace(metrics=metrics).at(step - first))
                rows.append(Row(step, int(epochs[step - first]), own))
        return rows

    def columns(self) -> dict[str, Any]:
        """{"train": {name: [steps]}, "eval": {name: [evaluations]}, "eval_step": [evaluations]}."""
        self._join()
        return {
            "train": dict(self.calls[0].metrics) if self.calls else {},
            "eval": _joined([values for _, values in self.evaluations], np.stack),
            "eval_step": np.array([step for step, _ in self.evaluations], np.int64),
        }

    def saved(self) -> Tree:
        """What `resumed` makes the same history of."""
        return {"begun": self.begun, "epoch": self.epochs(), **self.columns()}

    def epochs(self) -> np.ndarray:
        """The epoch of each step."""
        parts = [np.broadcast_to(call.epoch, call.count) for call in self.calls]
        return np.concatenate([np.zeros(0, np.int64), *parts])

    @classmethod
    def resumed(cls, saved: Tree) -> History:
        history = cls(saved["begun"])
        history._is_resumed = True
        epochs, metrics = saved["epoch"], saved.get("train", {})
        if len(epochs):
            history.calls = [
                _Call(history.begun + len(epochs), epochs, len(epochs), metrics, False)
            ]
        for i, step in enumerate(saved["eval_step"]):
            values = jax.tree.map(lambda a, i=i: a[i], saved.get("eval", {}))
            history.evaluations.append((int(step), values))
        return history

    def _join(self) -> None:
        """All calls as one, on the host."""
        calls = self.calls
        if len(calls) > 1 or calls and calls[0].single:
            fetched = jax.device_get([call.metrics for call in calls])
            whole = [
                jax.tree.map(lambda a: np.asarray(a)[None], metrics) if call.single else metrics
                for call, metrics in zip(calls, fetched, strict=True)
            ]
            epochs = self.epochs()
            self.calls = [
                _Call(self.end, epochs, len(epochs), _joined(whole, np.concatenate), False)
            ]


def _of_steps(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics of training as callbacks name them."""
    return {f"train/{name}": value for name, value in metrics.items()}


def _joined(rows: list, join: Callable[[tuple], np.ndarray]) -> dict[str, np.ndarray]:
    return jax.tree.map(lambda *values: join(values), *rows) if rows else {}


def _like(what: str, saved: Any, new: Any) -> Any:
    """What a checkpoint gave back, plain dicts, in the structure that the metrics have."""
    if jax.tree.structure(saved) == jax.tree.structure(new):
        return saved
    (old, paths), treedef = (dict(_arrays(tree)) for tree in (saved, new)), jax.tree.structure(new)
    if old.keys() != paths.keys():
        was, now = (errors.names(map(joined, tree)) for tree in (old, paths))
        mend = "in one run, return the same names each time"
        raise errors.InputError(f"{what} with {was}, as before", now, mend)
    return jax.tree.unflatten(treedef, [old[path] for path in paths])


def _arrays(tree: Tree) -> Iterator[tuple[Path, Any]]:
    return ((path, leaf) for path, leaf in leaves_of(tree) if leaf is not None)
