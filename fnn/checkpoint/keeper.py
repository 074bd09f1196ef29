"""The keeper of a run's checkpoints: the newest, the best, and the way back into the run."""

from __future__ import annotations

import math
import os
import pathlib
import re
import secrets
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from fnn.checkpoint.files import url_of
from fnn.checkpoint.folder import steps_in
from fnn.checkpoint.network import network_of
from fnn.checkpoint.restore import inspect, restore
from fnn.checkpoint.save import Saving, save_described
from fnn.core import checks, errors
from fnn.core.errors import CheckpointError
from fnn.core.layer import Layer
from fnn.core.types import Tree

LEFTOVER = re.compile(r"\.step-\d+\.[0-9a-f]{8}\.tmp")  # of a save or a deletion that was killed


class Keeper:
    """Keeps the newest checkpoints of a run, and the best, in a directory of its own.

    As a callback of `fnn.train.fit` it saves after each step whose number is a multiple of `every`,
    after an evaluation better than all before, and at the end; with `fit(..., resume=keeper)` a run
    goes on from its newest checkpoint, bitwise as if it had never stopped.

    - `every`: steps; None saves after evaluations and at the end alone.
    - `keep`: how many of the newest stay; the best stays as well.
    - `best`, `mode`: the metric whose `"max"` or `"min"` is the best, such as "eval/accuracy"; a
      NaN never is.
    - `net`: the network, which every checkpoint describes, so that `fnn.load(directory)` gives it
      back with the newest params; needed only if the loss is not `fnn.train.supervised`.

    Saving does not wait for the disk: a thread writes a copy. A failure is raised by the next call,
    and when Python ends. What `wait()` returned from is on the disk to stay. One keeper at a time
    writes to a directory, others may read; what kills have left over is swept by the first save.
    Steps only go up: a run that does not resume from the newest has a directory of its own.

    Raises OptionError for an evaluation without the metric, or with one that is not a scalar, and
    CheckpointError for a step that is not after the newest.

    >>> import tempfile, jax.numpy as jnp
    >>> keeper = Keeper(tempfile.mkdtemp(), keep=2, best="eval/loss", mode="min")
    >>> for step, loss in enumerate([3.0, 1.0, float("nan"), 2.0, 2.0]):
    ...     saving = keeper.save({"w": jnp.full(2, step)}, step, metrics={"eval/loss": loss})
    >>> keeper.wait()
    >>> keeper.steps(), keeper.latest(), keeper.best()
    ([1, 3, 4], 4, 1)
    >>> keeper.resume({"w": jnp.zeros(2, jnp.int32)})
    {'w': Array([4, 4], dtype=int32)}
    """

    last = True  # called after the other callbacks, whose state it saves

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        every: int | None = None,
        keep: int = 3,
        best: str | None = None,
        mode: str = "max",
        net: Layer | None = None,
    ):
        with errors.within("Keeper"):
            self.every = math.inf if every is None else checks.count("every", every)
            self._keep = checks.count("keep", keep)
            checks.choice("mode", mode, ("max", "min"))
            if url_of(directory):
                mend = "keep on a disk that all processes share, and save what shall last to a URL"
                raise errors.OptionError("a directory", f"the URL {directory}", mend)
        self.directory = pathlib.Path(os.path.abspath(directory))
        self._metric, self._sign = best, 1.0 if mode == "max" else -1.0
        self._net, self._network = net, None  # the description, once it is written
        self._saving: Saving | None = None
        self._values: dict[int, float] = {}  # of the best metric, by step, as far as read
        self._swept = False
        self._last: int | None = None  # the step of the last save

    def path(self, step: int) -> pathlib.Path:
        """The folder of a step's checkpoint."""
        return self.directory / f"step-{step}"

    def steps(self) -> list[int]:
        """The steps of all complete checkpoints, in order."""
        return steps_in(self.directory)

    def latest(self) -> int | None:
        """The step of the newest checkpoint."""
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """The step of the checkpoint with the best metric; the first, of equal ones."""
        values = {step: self._value(step) for step in self.steps()}
        known = [step for step, value in values.items() if not math.isnan(value)]
        return max(known, key=lambda step: (self._sign * values[step], -step), default=None)

    def _value(self, step: int) -> float:
        if self._metric is None:
            return math.nan
        if step not in self._values:
            try:
                metrics = inspect(self.path(step)).meta.get("metrics", {})
            except CheckpointError:
                if self.path(step).exists():
                    raise
                return math.nan  # the run that writes here has removed it meanwhile
            self._values[step] = float(metrics.get(self._metric, math.nan))
        return self._values[step]

    def save(
        self,
        train_state: Tree,
        step: int | None = None,
        *,
        metrics: Mapping[str, Any] | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> Saving:
        """Save a training state, in a loop of your own; wait for the result to be sure of it.

        - `step`: unless given, `train_state.step`.
        - `metrics`: scalars by name, among them the one that is judged.

        Raises what went wrong with the save before, and CheckpointError for a step that is not
        after the newest.
        """
        step = int(train_state.step) if step is None else int(step)
        return self._save({"train_state": train_state}, step, metrics or {}, meta or {})

    def _save(self, tree: Tree, step: int, metrics: Mapping, meta: Mapping) -> Saving:
        self.wait()
        if not self._swept and jax.process_index() == 0:
            self._sweep()
        newest = self.latest()
        if newest is not None and step <= newest:  # it would be the first to be removed
            mend = "resume from the newest, or choose another directory or remove what is in it"
            wanted = f"a step after {newest}, the newest in {self.directory}"
            raise CheckpointError(wanted, f"step {step}", mend)
        scalars = {n: float(np.reshape(v, ())) for n, v in metrics.items() if _is_scalar(v)}
        meta = {**meta, "step": step, "metrics": scalars}
        if self._network is None and self._net is not None:
            self._network = network_of(self._net)
        with errors.within("save"):
            path, network = self.path(step), self._network
            self._saving = save_described(path, tree, meta, network, wait=False)
        self._last = step
        return self._saving

    def wait(self) -> None:
        """Return once all that was saved is on the disk to stay; raise what went wrong."""
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.wait()
            if jax.process_index() == 0:
                self._remove_old()

    def _remove_old(self) -> None:
        """Remove what is neither new nor best. It is renamed first, so it is never incomplete."""
        steps, best = self.steps(), self.best()
        for step in steps[: -self._keep]:
            if step != best:
                away = self.directory / f".step-{step}.{secrets.token_hex(4)}.tmp"
                os.rename(self.path(step), away)
                shutil.rmtree(away, ignore_errors=True)

    def _sweep(self) -> None:
        """Remove what kills have left over, once."""
        self._swept = True
        for path in self.directory.iterdir() if self.directory.is_dir() else ():
            if LEFTOVER.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)

    def restore(self, like: Tree = None, *, step: int | None = None, at: str = "train_state"):
        """The training state of a step, unless given the newest; see `fnn.checkpoint.restore`.

        >>> import tempfile
        >>> keeper = Keeper(tempfile.mkdtemp())
        >>> keeper.save({"w": 1.0}, 10).wait()
        >>> keeper.restore({"w": 0.0})
        {'w': 1.0}
        """
        self.wait()
        steps = self.steps()
        newest, step = step is None, max(steps, default=None) if step is None else step
        if step not in steps:
            known = errors.names(map(str, steps))
            mend = "pass one of these, or none for the newest"
            raise CheckpointError(f"a step among {known}", f"{step} in {self.directory}", mend)
        try:
            return restore(self.path(step), like, at=at)
        except CheckpointError as error:
            if newest and not self.path(step).exists() and self.latest() != step:
                return self.restore(like, at=at)  # another process has gone on meanwhile
            older = [known for known in steps if known < step]
            if older and step == steps[-1]:
                error.mend += f"; without this folder, a run goes on from step {older[-1]}"
            raise

    def resume(self, like: Tree) -> Tree:
        """The newest training state, or `like` itself if there is no checkpoint yet."""
        self.wait()
        return like if self.latest() is None else self.restore(like)

    def __call__(self, event: Any) -> None:
        """Save, if it is time: see the class."""
        value = self._judged(event.evaluation)
        best = self.best() if not math.isnan(value) else None
        better = not math.isnan(value) and (
            best is None or self._sign * value > self._sign * self._value(best)
        )
        due = event.step % self.every == 0 and not event.ended
        evaluated = self._metric is None and math.isinf(self.every) and bool(event.evaluation)
        if due or better or evaluated or event.ended:
            self.wait()
            if event.step != self._last:
                self._net = self._net or getattr(event, "network", None)
                self._save(event.saved(), event.step, event.evaluation, {})
        if event.ended:
            self.wait()

    def _judged(self, evaluation: Mapping[str, Any]) -> float:
        """The value of the metric; a NaN if there is none to look for."""
        if self._metric is None or not evaluation:
            return math.nan
        value: Any = evaluation.get(self._metric)
        if value is None or not _is_scalar(value):
            got = f"{errors.show(value)} among {errors.names(evaluation)}"
            mend = "evaluate it, or pass another best="
            raise errors.OptionError(f"a scalar {self._metric}, which Keeper judges", got, mend)
        return float(np.reshape(value, ()))


def _is_scalar(value: Any) -> bool:
    """Whether it is one number; an evaluation may also have trees and vectors."""
    return (
        isinstance(value, (int, float, np.ndarray, np.generic, jax.Array)) and np.size(value) == 1
    )
