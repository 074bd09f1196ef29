"""The host loop: epochs, evaluations, callbacks and the history."""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fnn.core import checks, errors
from fnn.core.agreement import check_agreement
from fnn.core.progress import Bar
from fnn.core.shapes import natives
from fnn.core.types import Tree
from fnn.data.stream import Stream
from fnn.train.drivers import DRIVERS, BatchesOf, Call, cut_of, driver_of
from fnn.train.events import Callback, Event, Replayed, Resumable, Stop
from fnn.train.history import History
from fnn.train.step import Step, TrainState, check_train_state


def fit(
    step: Step,
    train_state: TrainState,
    data: Tree | Stream | Callable[[int], Iterable[Tree]],
    *,
    epochs: int,
    batch_size: int | None = None,
    evaluate: Callable[[TrainState], Mapping[str, Any]] | None = None,
    evaluate_every: int | None = None,
    driver: str = "loop",
    chunk: int = 32,
    callbacks: Sequence[Callback] = (),
    resume: Any = None,
    progress: bool = True,
) -> tuple[TrainState, dict[str, Any]]:
    """Run `step` over `data` for `epochs`; return the training state and the history.

    - `step`: from `fnn.train.step`, or any `(train_state, batch) -> (train_state, metrics)`.
    - `train_state`: stays valid; the run works on a copy, in whose memory it writes.
    - `data`: a tree of arrays [N, ...], shuffled in each epoch and cut into batches of
      `batch_size`; an `fnn.data.stream`, which cuts batches itself, for data that outgrow memory;
      or a function of the epoch, counted from 0, that returns its batches.
    - `evaluate(train_state) -> dict`: called after each epoch, or, with `evaluate_every`, after
      each step whose number is a multiple; see `fnn.train.evaluator`.
    - `driver`: how steps are taken. `"loop"` calls each one, with its batch from the host;
      `"chunk"` takes `chunk` of them in one compiled scan, over data on the device; `"scan"` takes
      a whole epoch. `"auto"` times the first two on steps that it discards and chooses the faster,
      as `"scan"` if an epoch takes less than a second; for all but arrays it is `"loop"`.
      All take the same steps on the same batches, with bitwise equal results for dense networks and
      within about 1e-6 for others. Each driver repeats its own results bitwise, but `"auto"` may
      choose differently, so it is not the default.
    - `callbacks`: functions of an `fnn.train.Event`, called after steps and evaluations; a true
      answer ends the run. `fnn.train.patience` is early stopping, `fnn.checkpoint.Keeper` saves
      checkpoints, `fnn.log` has logs. Scans of several steps are cut where a callback's `every` or
      `evaluate_every` asks for it, and each new length of a scan is compiled once.
      If the run ends with an error, they see an event that has `ended`, but a Keeper does not.
    - `resume`: a `fnn.checkpoint.Keeper`. If it has a checkpoint, the run goes on from the newest,
      in the middle of an epoch if it was saved there, with its history and the state of its
      callbacks, and ends bitwise as if it had never stopped. A stream goes on at the batch that is
      next; a function of the epoch is asked for the whole epoch again, and the batches that were
      taken are skipped. `epochs` counts those before; it, callbacks and the driver may be others
      than before (with the results of that driver; "auto" stays what it chose), the number of
      examples, batch_size and the key of a stream may not. Callbacks of one class are told apart by
      their order.
    - `progress`: show a bar (extra `progress`).

    With arrays, the order is a pure function of the run's key and the step, with a stream of the
    stream's key and the step: training for 2 epochs, or for 1 and then 1 more from the returned
    state, gives the same result bitwise.

    The history is `{"train": {name: [steps]}, "eval": {name: [evaluations]}, "eval_step":
    [evaluations], "driver": its name, "ended": why}`.
    Raises OptionError for a missing batch_size, a driver that needs arrays, or a resumed run with
    another number of examples, batch_size or order, and InputError for an epoch without batches or
    stacked training states.

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
    if not callable(data):
        _check_single(train_state)
    checks.choice("driver", driver, DRIVERS)
    every = None if evaluate_every is None else checks.count("evaluate_every", evaluate_every)
    watchers = _Watchers.of(callbacks)
    start = _start(train_state, resume, watchers)
    _check_together(start, epochs, batch_size, every, driver)
    begun = start.history.begun
    chosen = driver_of(
        step,
        start.train_state,
        data,
        batch_size,
        start.driver if driver == "auto" and start.driver else driver,
        chunk,
        begun,
    )
    cut, total = cut_of(data, batch_size, start.train_state), chosen.total
    _check_cut(start, cut)
    run = _Run(step, chosen.batches_of, watchers, start, chosen.name, cut)
    train_state = jax.tree.map(jnp.copy, start.train_state)
    if start.ended or start.epoch >= epochs:
        why = start.ended or f"{epochs} epochs"
        return run.finish(train_state, why), run.returned(why)
    cuts = [every, *(_every(callback) for callback in watchers.all)]
    with run.told_of_errors(), chosen.open, _bar(total and epochs * total, progress) as bar:
        bar.advance(run.history.end - run.history.begun)
        taken = start.taken
        for epoch in range(start.epoch, epochs):
            until = functools.partial(_next_cut, cuts, run.history.end - taken)
            for call in chosen.calls_of(epoch, train_state, taken, until):
                train_state, taken = call.train_state, taken + call.steps
                run.took(call, epoch, taken)
                bar.update(run.history.before_last, call.steps)
                asked = call.ends if every is None else run.history.end % every == 0
                evaluation = {}
                if evaluate is not None and asked:
                    evaluation = jax.tree.map(np.asarray, dict(evaluate(train_state)))
                    run.history.evaluated(evaluation)
                    bar.note(evaluation)
                over = f"{epochs} epochs" if call.ends and epoch + 1 == epochs else ""
                train_state, ended = run.tell(train_state, evaluation, over)
                if ended:
                    return train_state, run.returned(ended)
            if not taken:
                raise errors.InputError(
                    "batches in every epoch",
                    f"none in epoch {epoch}",
                    "pass a function of the epoch that makes a new iterator",
                )
            taken = 0
    return train_state, run.returned(f"{epochs} epochs")  # a stream that was resumed at its end


def _bar(total: int | None, progress: bool) -> Bar:
    """Of several processes the first shows one."""
    return Bar(total, progress and jax.process_index() == 0)


class _Watchers(NamedTuple):
    """The callbacks; `savers` are called after the others, whose state they save."""

    all: list[Callback]
    savers: list[Callback]

    @classmethod
    def of(cls, callbacks: Sequence[Callback]) -> _Watchers:
        if callable(callbacks):
            wanted, mend = "a list of callbacks", "pass callbacks=[callback]"
            raise errors.OptionError(wanted, errors.show(callbacks), mend)
        for callback in callbacks:
            checks.function("callback", callback, "an fnn.train.Event")
        return cls(list(callbacks), [c for c in callbacks if getattr(c, "last", False)])

    def named(self) -> dict[str, Resumable]:
        """Those with a state, by class, and by order of those of one class."""
        counts: collections.Counter[str] = collections.Counter()
        found = {}
        for callback in self.all:
            if isinstance(callback, Resumable):
                kind = type(callback).__qualname__
                found[f"{kind} {counts[kind]}"] = callback
                counts[kind] += 1
        return found

    def states(self) -> dict[str, Tree]:
        return {name: callback.state() for name, callback in self.named().items()}

    def restore(self, states: Mapping[str, Tree]) -> None:
        for name, callback in self.named().items():
            if name in states:
                callback.restore(states[name])


def _every(callback: Callback) -> float:
    return getattr(callback, "every", 1)


def _next_cut(cuts: list[float | None], first: int, taken: int) -> float:
    """The number of steps into an epoch, which began at step `first`, at which a call must end."""
    at = first + taken
    ends = [(at // every + 1) * every for every in cuts if every and 1 < every < math.inf]
    return min(ends, default=math.inf) - first


class _Start(NamedTuple):
    """Where a run starts: after `taken` steps of an epoch."""

    train_state: TrainState
    history: History
    epoch: int = 0
    taken: int = 0
    driver: str = ""
    ended: str = ""
    cut: Mapping[str, Any] | None = None  # how data are cut into batches; {} for a function


def _start(train_state: TrainState, keeper: Any, watchers: _Watchers) -> _Start:
    if keeper is None or keeper.latest() is None:
        return _Start(train_state, History(int(np.max(train_state.step))))  # of several, one
    train_state, saved = keeper.restore(train_state), keeper.restore(at="fit")
    watchers.restore(saved.get("callbacks", {}))
    history = History.resumed(saved["history"])
    progress = {name: saved[name] for name in ("epoch", "taken", "driver", "ended")}
    return _Start(train_state, history, **progress, cut=saved.get("cut", {}))


def _check_together(start: _Start, epochs: int, batch_size: Any, every: Any, driver: str) -> None:
    """That all processes start the same run at the same step."""
    jax.block_until_ready(start.train_state)
    said = {"epochs": epochs, "batch_size": batch_size, "evaluate_every": every, "driver": driver}
    at = {"step": start.history.end, "epoch": start.epoch, "taken": start.taken}
    mend = "pass the same options, and a keeper of one directory that all processes share"
    check_agreement(at | {name: repr(option) for name, option in said.items()}, "run", mend=mend)


def _check_single(train_state: TrainState) -> None:
    if np.ndim(train_state.step):
        raise errors.InputError(
            "one training state",
            f"several, stacked: step {errors.show(train_state.step)}",
            "they order arrays in other ways: pass a function of the epoch that returns batches",
        )


def _check_cut(start: _Start, cut: Mapping[str, Any]) -> None:
    """The place in an epoch means other examples, once these are cut in another way."""
    if start.cut is not None and start.cut != cut:
        was, now = (
            ", ".join(f"{name}={n}" for name, n in of.items()) or "batches from a function"
            for of in (start.cut, cut)
        )
        raise errors.OptionError(
            f"the data of the run that is resumed ({was})",
            now,
            "or start a new run with the restored state: fit(step, keeper.restore(ts), ...)",
        )


class _Run:
    """A run as far as it has come, and what its callbacks see of it."""

    def __init__(
        self,
        step: Step,
        batches_of: BatchesOf,
        watchers: _Watchers,
        start: _Start,
        driver: str,
        cut: Mapping[str, Any],
    ):
        self.step, self.batches_of, self.watchers, self.cut = step, batches_of, watchers, cut
        self.history, self.start, self.driver = start.history, start.train_state, driver
        self.epoch = self.taken = self.last_epoch = 0  # where the next step stands, and the last

    def took(self, call: Call, epoch: int, taken: int) -> None:
        single = self.driver == "loop"
        self.history.add(call.metrics, epoch, call.steps, single)
        self.last_epoch = epoch
        self.epoch, self.taken = (epoch + 1, 0) if call.ends else (epoch, taken)

    def tell(
        self, train_state: TrainState, evaluation: Mapping, over: str
    ) -> tuple[TrainState, str]:
        """Call the callbacks whose turn it is; the training state, and why the run ended or ""."""
        everyone = bool(evaluation or over)
        number = self.history.end
        due = [c for c in self.watchers.all if everyone or number % _every(c) == 0]
        if not due:
            return train_state, over
        shown = {f"eval/{name}": value for name, value in evaluation.items()}
        event = self._event(train_state, shown, "", "")
        savers = self.watchers.savers
        answers = [callback(event) for callback in due if callback not in savers]
        answer = next((a for a in answers if a), None)
        if answer is None and not over:
            for callback in savers:
                if callback in due:
                    callback(event)
            return train_state, ""
        stop = Stop(over) if answer is None else _as_stop(answer)
        ended = event._replace(evaluation={}, ended=stop.why)
        result = self._finished(ended, stop.train_state)
        final = stop.why if answer is not None and stop.final else ""
        for callback in savers:
            callback(self._event(train_state, shown, stop.why, final))
        return result if stop.final else train_state, stop.why

    @contextlib.contextmanager
    def told_of_errors(self) -> Iterator[None]:
        """Let the callbacks end what they write, when a run ends with an error."""
        try:
            yield
        except BaseException as error:
            why = f"{type(error).__name__}: {error}"
            for callback in self.watchers.all:
                if callback not in self.watchers.savers:
                    with contextlib.suppress(Exception):  # the error itself is what counts
                        callback(self._event(self.start, {}, why, ""))
            raise

    def finish(self, train_state: TrainState, why: str) -> TrainState:
        """What a run that is resumed after its end returns."""
        return self._finished(self._event(train_state, {}, why, why), None)

    def _finished(self, event: Event, result: TrainState | None) -> TrainState:
        """Tell the callbacks of the end, who may put another state in place of the last."""
        for callback in self.watchers.all:
            if callback not in self.watchers.savers:
                answer = callback(event)
                if isinstance(answer, Stop) and answer.train_state is not None:
                    result = answer.train_state
        return event.train_state if result is None else result

    def _event(self, train_state: Any, evaluation: Mapping, ended: str, final: str) -> Event:
        return Event(
            self.history.end,
            self.last_epoch,
            train_state,
            self.history.last(),
            evaluation,
            ended,
            self.history.rows,
            functools.partial(self._saved, train_state, final),
            self._replay,
            getattr(self.step, "network", None),
        )

    def _saved(self, train_state: TrainState, final: str) -> Tree:
        progress = {
            "history": self.history.saved(),
            "epoch": self.epoch,
            "taken": self.taken,
            "driver": self.driver,
            "ended": final,
            "cut": self.cut,
            "callbacks": self.watchers.states(),
        }
        return {"train_state": train_state, "fit": progress}

    def _replay(self, train_state: TrainState | None) -> Iterator[Replayed]:
        """From an earlier state on, which stays as it is."""
        now: TrainState = self.start if train_state is None else train_state
        epochs, number = self.history.epochs(), int(now.step) - self.history.begun
        while number < len(epochs):
            epoch = int(epochs[number])
            taken = number - int(np.searchsorted(epochs, epoch))
            count = int(np.searchsorted(epochs, epoch, "right")) - number
            for batch in itertools.islice(self.batches_of(epoch, taken), count):
                before = now
                copy = jax.tree.map(jnp.copy, before)
                now, metrics = self.step(copy, natives(batch, "batch"))
                yield Replayed(before, batch, metrics)
            number += count

    def returned(self, why: str) -> dict[str, Any]:
        return {**self.history.columns(), "driver": self.driver, "ended": why}


def _as_stop(answer: Any) -> Stop:
    if isinstance(answer, Stop):
        return answer
    return Stop(answer if isinstance(answer, str) else "a callback")
