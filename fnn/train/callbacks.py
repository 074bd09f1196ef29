"""Callbacks of `fit`: early stopping, limits, signals, NaN, a table."""

from __future__ import annotations

import math
import os
import pathlib
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fnn.checkpoint.save import save
from fnn.core import checks, errors
from fnn.core.agreement import in_any
from fnn.core.dtypes import is_key
from fnn.core.types import Tree
from fnn.train.events import Event, Stop
from fnn.train.step import TrainState


class patience:
    """Early stopping: ends the run when a metric has not improved for a number of evaluations.

    - `metric`: of the evaluation, such as "eval/loss"; a NaN is no improvement.
    - `evaluations`: how many without improvement end the run.
    - `mode`: whether the `"min"` or the `"max"` is the best.
    - `least`: by how much a value must be better to count as an improvement.
    - `keep_best`: `fit` returns the best params and network state of the run, whether it ends early
      or not; a copy of them is kept on the host, and in checkpoints.

    >>> stop = patience("eval/loss", 5)
    """

    every = math.inf  # after evaluations alone

    def __init__(
        self,
        metric: str,
        evaluations: int,
        *,
        mode: str = "min",
        least: float = 0.0,
        keep_best: bool = True,
    ):
        with errors.within("patience"):
            self._evaluations = checks.count("evaluations", evaluations)
            checks.choice("mode", mode, ("min", "max"))
        self._metric, self._least, self._keep_best = metric, least, keep_best
        self._sign = 1.0 if mode == "min" else -1.0
        self._best, self._waited = math.nan, 0
        self._values: list[Any] = []  # the leaves of the best params and state

    def __call__(self, event: Event) -> Stop | None:
        if event.ended:
            return Stop(event.ended, self._with_best(event.train_state)) if self._values else None
        if not event.evaluation:
            return None
        if self._metric not in event.evaluation:
            known = errors.names(event.evaluation)
            mend = "evaluate it, or name one of these"
            raise errors.OptionError(f"a metric among {known}", self._metric, mend)
        value = float(event.evaluation[self._metric])
        better = self._sign * (self._best - value) > self._least
        if better or math.isnan(self._best) and not math.isnan(value):
            self._best, self._waited = value, 0
            if self._keep_best:
                both = event.train_state.params, event.train_state.state
                self._values = list(map(_on_host, jax.tree.leaves(both)))
            return None
        self._waited += 1
        if self._waited < self._evaluations:
            return None
        why = f"{self._metric} has not improved for {self._evaluations} evaluations"
        return Stop(f"{why}, from {self._best:g}")

    def _with_best(self, train_state: TrainState) -> TrainState:
        leaves, treedef = jax.tree.flatten((train_state.params, train_state.state))
        best = [jax.device_put(a, b.sharding) for a, b in zip(self._values, leaves, strict=True)]
        params, state = jax.tree.unflatten(treedef, best)
        return train_state._replace(params=params, state=state)

    def state(self) -> Tree:
        return {"best": self._best, "waited": self._waited, "values": list(self._values)}

    def restore(self, state: Tree) -> None:
        self._best, self._waited = state["best"], state["waited"]
        values = state.get("values", {})
        self._values = [values[str(i)] for i in range(len(values))]


def _on_host(leaf: jax.Array) -> Any:
    """A copy: the next step writes into the memory of the leaf itself.

    It stays on the devices where other processes have a part of it.
    """
    elsewhere = isinstance(leaf, jax.Array) and not leaf.is_fully_replicated
    elsewhere = elsewhere and not leaf.is_fully_addressable
    return jnp.copy(leaf) if is_key(leaf) or elsewhere else np.array(leaf)


class stop_on_nan:
    """Ends the run at the first step whose metrics are not finite, and finds what led there.

    The steps since the last look are taken again from a copy, one by one: `why` in the history
    names the first bad step, and what `report` says of it.

    - `every`: steps between looks; each waits for the device and copies the state to the host.
    - `directory`: where the training state before that step and its batch are saved, as a
      checkpoint `nan-step-<n>` of `{"train_state", "batch"}`.
    - `report(train_state, batch)`: what to say of the training state before that step and its
      batch, such as `fnn.analysis.nan_report(net, train_state.params, batch["image"], ...)`.

    >>> stop = stop_on_nan(every=100)
    """

    def __init__(
        self,
        *,
        every: int = 100,
        directory: str | os.PathLike | None = None,
        report: Callable[[TrainState, Tree], Any] | None = None,
    ):
        with errors.within("stop_on_nan"):
            self.every = checks.count("every", every)
        self._directory, self._report = directory, report
        self._good: TrainState | None = None
        self._looked = 0

    def __call__(self, event: Event) -> Stop | None:
        if event.ended:
            return None
        rows = event.rows(self._looked)
        bad = next((row for row in rows if not _finite(row.metrics)), None)
        if bad is None:
            self._looked = event.step
            self._good = jax.tree.map(_on_host, event.train_state)
            return None
        why = [f"step {bad.step} has {_not_finite(bad.metrics)}"]
        if int(event.train_state.step) != event.step:
            return Stop(f"{why[0]}; not taken again, since the steps count several each")
        for again in event.replay(self._good):
            if int(again.before.step) + 1 == bad.step:
                if self._directory is not None:
                    path = pathlib.Path(self._directory) / f"nan-step-{bad.step}"
                    save(path, {"train_state": again.before, "batch": again.batch})
                    why.append(f"saved in {path}")
                if self._report is not None:
                    why.append(str(self._report(again.before, again.batch)))
                break
        return Stop("; ".join(why))


def _finite(metrics: Tree) -> bool:
    return all(np.isfinite(np.asarray(a, np.float64)).all() for a in jax.tree.leaves(metrics))


def _not_finite(metrics: Tree) -> str:
    return ", ".join(f"{name} {v}" for name, v in metrics.items() if not _finite(v))


def time_limit(seconds: float) -> Callable[[Event], Stop | None]:
    """Ends the run after so many seconds, counted from the first event; a resumed run goes on.

    >>> stop = time_limit(3600.0)
    """
    seconds, end = float(seconds), None

    heard = _Heard()

    def callback(event: Event) -> Stop | None:
        nonlocal end
        end = time.monotonic() + seconds if end is None else end
        passed = heard(event, time.monotonic() >= end)
        return Stop(f"the time limit of {seconds:g} s", final=False) if passed else None

    return callback


class stop_on_signal:
    """Ends the run after a signal, SIGTERM unless given: what a cluster sends before it kills.

    A `Keeper` among the callbacks then saves, and a resumed run goes on. The signal is caught from
    the first event to the end of the run; Python allows that in its main thread alone.

    >>> stop = stop_on_signal()
    """

    def __init__(self, number: signal.Signals = signal.SIGTERM):
        self._number, self._came, self._before = number, False, None
        self._caught, self._heard = False, _Heard()

    def __call__(self, event: Event) -> Stop | None:
        if event.ended:
            self._restore()
        elif not self._caught and threading.current_thread() is threading.main_thread():
            self._before, self._caught = signal.signal(self._number, self._note), True
        came = self._heard(event, self._came)
        return Stop(signal.Signals(self._number).name, final=False) if came else None

    def _restore(self) -> None:
        if self._caught:
            signal.signal(self._number, self._before)
            self._caught = False

    def _note(self, *_: Any) -> None:
        self._came = True


class _Heard:
    """Whether something has come in any process: they ask each other at every tenth event."""

    def __init__(self) -> None:
        self.events = 0

    def __call__(self, event: Event, came: bool) -> bool:
        if jax.process_count() == 1 or event.ended:
            return came
        self.events += 1
        return self.events % 10 == 0 and in_any(came, (event.train_state, event.metrics))


def table(every: float = math.inf) -> Callable[[Event], None]:
    """Prints a line of metrics after each evaluation, and after each step that `every` divides.

    >>> show = table(every=100)
    """

    def callback(event: Event) -> None:
        if jax.process_index():
            return
        names = [*event.metrics, *event.evaluation]
        values = [*event.metrics.values(), *event.evaluation.values()]
        shown = [f"{n} {float(v):<9.4g}" for n, v in zip(names, values, strict=True)
                 if np.ndim(v) == 0]  # fmt: skip
        if event.ended:
            print(f"ended at step {event.step}: {event.ended}")
        else:
            print(f"epoch {event.epoch:>4}  step {event.step:>8,}  " + "  ".join(shown))

    vars(callback)["every"] = every
    return callback
