"""What a callback of `fit` sees, and what it may answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
import numpy as np

from fnn.core.layer import Layer
from fnn.core.types import Tree
from fnn.train.step import TrainState


class Row(NamedTuple):
    """The metrics of one step, on the host: `{"train/loss": 0.3}`."""

    step: int
    epoch: int
    metrics: Mapping[str, np.ndarray]


class Replayed(NamedTuple):
    """One step taken again: what went in, and the metrics that came out."""

    before: TrainState
    batch: Tree
    metrics: Mapping[str, Any]


class Event(NamedTuple):
    """A moment of a run, after a step or an evaluation, as callbacks see it.

    - `step`: the number of steps taken, as `train_state.step` counts them; a step of several, as
      from `fnn.train.tbptt`, is one here.
    - `epoch`: the epoch of the last step, counted from 0.
    - `train_state`: valid during the call; the next step reuses its memory, so copy what you keep
      (`jax.device_get`, or `jax.tree.map(jnp.copy, ...)`).
    - `metrics`: of the last step, `{"train/loss": ...}`, as arrays that may still be computed on
      the device; reading a value waits for it.
    - `evaluation`: `{"eval/loss": ...}` right after an evaluation, else `{}`.
    - `ended`: why the run ended, in the last event that a callback sees, else "".
    - `rows(after, until=inf)`: the `Row` of each step after step `after`, up to `until`, on the
      host; waits for the device. It may be called later too.
    - `saved()`: all that the run needs to go on from here, as a tree: the fields of the training
      state, and under "fit" the history and the state of the callbacks.
    - `replay(train_state)`: takes the steps from an earlier training state, or from the start of
      this `fit` (None), up to this event again, one by one, as an iterator of `Replayed`.
    - `network`: the network that is trained, if the step's loss is `fnn.train.supervised`.
    """

    step: int
    epoch: int
    train_state: TrainState
    metrics: Mapping[str, jax.Array]
    evaluation: Mapping[str, Any]
    ended: str
    rows: Callable[..., list[Row]]
    saved: Callable[[], Tree]
    replay: Callable[[TrainState | None], Iterator[Replayed]]
    network: Layer | None = None


class Stop(NamedTuple):
    """An answer of a callback that ends the run.

    - `why`: goes into the history.
    - `train_state`: what `fit` returns in place of the last training state; a checkpoint holds the
      last one. The answer to an event that has `ended` may give it as well.
    - `final`: whether a run that is resumed from here is over as well, as after early stopping; a
      run that was interrupted goes on, and `fit` returns its last training state.
    """

    why: str
    train_state: TrainState | None = None
    final: bool = True


# A true answer ends the run: a `Stop`, a str that says why, or True. A callback may also have
#   every: int           it is called after each step whose number is a multiple (default 1), and
#                        always after evaluations and at the end;
#   last: bool           it is called after the others, since it saves their state;
#   state(), restore(s)  what a resumed run gives back to it, a tree of dicts, arrays and numbers.
Callback: TypeAlias = Callable[[Event], Any]


@runtime_checkable
class Resumable(Protocol):
    """A callback with a state of its own, which a checkpoint keeps."""

    def state(self) -> Tree: ...

    def restore(self, state: Tree) -> None: ...
