"""The time of each operation of a program, from the events that the profiler traced."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import NamedTuple


class _Event(NamedTuple):
    start: float
    longest_first: float  # the duration, negative, so that what contains others sorts before them
    name: str

    @property
    def end(self) -> float:
        return self.start - self.longest_first


def own_seconds(events: list[dict], inputs: Mapping[str, Collection[str]]) -> dict[str, float]:
    """The seconds of each operation, without those inside it.

    - `events`: as in Chrome's format of traces, times in microseconds. Operations of a device are
      taken from its own processes, not from the host's.
    - `inputs`: of each operation, by name, the operations whose results it reads.

    >>> events = [
    ...     dict(name="while.1", pid=1, tid=1, ts=0.0, dur=9.0, args={"hlo_op": "while.1"}),
    ...     dict(name="dot.1", pid=1, tid=1, ts=2.0, dur=5.0, args={"hlo_op": "dot.1"}),
    ... ]
    >>> inputs = {"while.1": (), "dot.1": ()}
    >>> {name: round(1e6 * s) for name, s in own_seconds(events, inputs).items()}
    {'while.1': 4, 'dot.1': 5}
    """
    threads: dict[tuple, list[_Event]] = defaultdict(list)
    runs: dict[str, list[_Event]] = defaultdict(list)
    called: dict[tuple, str] = {}
    for event in events:
        args, at = event.get("args") or {}, (event.get("pid"), event.get("tid"))
        if event.get("ph") == "M" and "name" in args:
            kind = event.get("name")
            called[at if kind == "thread_name" else at[:1]] = args["name"]
        elif (name := str(args.get("hlo_op", event.get("name")))) in inputs and "dur" in event:
            one = _Event(event["ts"], -event["dur"], name)
            threads[at].append(one)
            runs[args.get("run_id", "")].append(one)
    device = {at for at in threads if called.get(at[:1], "").startswith("/device:")}
    lines = {at for at in device if called.get(at) == "XLA Ops"}
    spent: defaultdict[str, float] = defaultdict(float)
    parts = [_without_inner(threads[at]) for at in lines or device or threads]
    parts += [_unseen(run, inputs) for run in runs.values() if not device]
    for part in parts:
        for name, us in part.items():
            spent[name] += us
    return {name: max(us, 0) * 1e-6 for name, us in spent.items()}


def _without_inner(thread: list[_Event]) -> dict[str, float]:
    """The time of the events of one thread, without those that they contain."""
    spent: defaultdict[str, float] = defaultdict(float)
    around: list[_Event] = []
    for event in sorted(thread):
        while around and around[-1].end <= event.start:
            around.pop()
        if around:
            spent[around[-1].name] -= event.end - event.start
        spent[event.name] += event.end - event.start
        around.append(event)
    return spent


def _unseen(run: list[_Event], inputs: Mapping[str, Collection[str]]) -> dict[str, float]:
    """The time in which nothing of a run is seen, at what the next event waits for.

    XLA's CPU backend hands a convolution to other threads, and only that is an event.
    """
    spent: defaultdict[str, float] = defaultdict(float)
    end, last = min(run).end, ""
    started: dict[str, float] = {}  # when each operation did, most recently
    for event in sorted(run):
        if last and event.start > end:
            awaited = [name for name in inputs[event.name] if name in started]
            spent[max(awaited, key=started.__getitem__, default=last)] += event.start - end
        end, last = max(end, event.end), event.name
        started[last] = event.start
    return spent
