"""Logs as files of rows, in JSON or csv, that a resumed run goes on with."""

from __future__ import annotations

import os
import pathlib
import time
from typing import Any

from fnn.core import errors
from fnn.log import formats
from fnn.log.rows import Rows
from fnn.log.values import flat
from fnn.train.events import Event


@errors.named
def jsonl(
    path: str | os.PathLike, *, every: int = 1, interval: float = 0.5, overwrite: bool = False
) -> Any:
    """A callback of `fit` that writes a line of JSON per step, and one per evaluation.

    - `path`: of a file that is new or empty, unless the run is resumed. Missing folders are made.
    - `every`: rows are written of the steps that are multiples of this.
    - `interval`: seconds; rows are read from the device and written together, this long after the
      last time, so that the device waits twice a second rather than in each step. They are also
      written at evaluations, at checkpoints and at the end. A killed run loses this much.
    - `overwrite`: whether a run that starts anew replaces what the file holds, rather than refusing
      it: for runs that start by themselves, again after a kill.

    A row is `{"step": 3, "epoch": 0, "time": 1764300000.123, "train/loss": 0.25}`, or has `eval/`
    metrics. Time is in seconds since 1970, when the host got the step back, which may be before
    the device has finished it. Numbers are the metric's, to the last bit, also as float64. A metric
    that is an array is a list, one that is a tree several metrics. JSON has no NaN, so what is not
    finite is "NaN", "Infinity" or "-Infinity".

    A checkpoint holds where the file ends, after it is safe on disk. A resumed run cuts the file
    there, so that no step is missing and none is twice; it raises InputError if the file is
    missing, shorter or another one. Of many processes the first writes.

    >>> log = jsonl("runs/first.jsonl")         # fit(..., callbacks=[log])
    >>> sorted(log.state())                     # what a checkpoint keeps
    ['bytes', 'check', 'step']
    """
    return _Log(formats.Jsonl(pathlib.Path(path)), every, interval, overwrite)


@errors.named
def csv(
    path: str | os.PathLike, *, every: int = 1, interval: float = 0.5, overwrite: bool = False
) -> Any:
    """A callback of `fit` that writes a row of comma-separated values per step and per evaluation.

    - `path`, `every`, `interval`, `overwrite`: as in `fnn.log.jsonl`.

    The columns are step, epoch, time and the metrics; a cell is empty where a row has no value.
    Metrics that come later, such as those of the first evaluation, get new columns: the file is
    then written again with the longer header, and replaced in one go, so that a reader sees the
    whole old file or the whole new one. Values are as in `fnn.log.jsonl`, NaN without quotation
    marks. A resumed run keeps the rows that the checkpoint counted, and all columns.

    >>> log = csv("runs/first.csv", every=10)   # fit(..., callbacks=[log])
    >>> sorted(log.state())
    ['check', 'rows', 'step']
    """
    return _Log(formats.Csv(pathlib.Path(path)), every, interval, overwrite)


class _Log:
    """The callback: it takes rows from the run, and gives them to a file."""

    def __init__(self, file: formats.File, every: int, interval: float, overwrite: bool):
        self.file, self.overwrite = file, overwrite
        self.rows = Rows(every, interval)
        self.begun = False

    def __call__(self, event: Event) -> None:
        if not self.rows.writes or self.begun and self.rows.idle(event):
            return
        with errors.within(self.file.name):
            if not self.begun:
                self.file.begin(self.overwrite)
                self.begun = True
            if self.rows.see(event):
                self._take()
            if self.rows.evaluation(event):
                metrics = dict(flat(event.evaluation))
                self.file.append([(event.step, event.epoch, time.time(), metrics)])
        if event.ended:
            self.file.sync()

    def _take(self) -> None:
        rows = self.rows.take()
        self.file.append([(r.step, r.epoch, when, dict(flat(r.metrics))) for r, when in rows])

    def state(self) -> dict[str, int]:
        if self.rows.writes and self.begun:
            self._take()
            self.file.sync()
        return {"step": self.rows.step, **self.file.position()}

    def restore(self, state: dict[str, Any]) -> None:
        if self.rows.writes:
            position = {name: int(value) for name, value in state.items()}
            with errors.within(self.file.name):
                self.file.cut(position, self.overwrite)
            self.rows.restart(position["step"])
            self.begun = True
