"""A run without training: events made by hand, as `fit` makes them."""

import json
import zlib

import numpy as np

from fnn.train.events import Event, Row


def metrics(step):
    """What a step of the run gives, as float32 and int32, from its number alone."""
    loss = np.float32(1 / step + 1e-3 * (zlib.crc32(str(step).encode()) % 97))
    return {"train/loss": np.asarray(loss), "train/correct": np.asarray(step % 64, np.int32)}


def evaluation(step):
    return {"eval/accuracy": np.float32(step / 1000)}


class Run:
    """A loop that calls back after every `per_call` steps, and evaluates every `evaluate`."""

    def __init__(self, metrics=metrics, start=0, per_call=1, evaluate=0, train_state=None):
        self.metrics, self.step, self.start = metrics, start, start
        self.per_call, self.evaluate, self.train_state = per_call, evaluate, train_state
        self.asked = []  # the steps at which rows were taken

    def event(self, evaluation=(), ended=""):
        return Event(
            self.step, self.step // 100, self.train_state, {}, dict(evaluation), ended,
            self.rows, dict, iter,
        )  # fmt: skip

    def rows(self, after):
        self.asked.append(self.step)
        first = max(after, self.start) + 1
        return [Row(i, (i - 1) // 100, self.metrics(i)) for i in range(first, self.step + 1)]

    def to(self, last, *callbacks, end=True):
        while self.step < last:
            before, self.step = self.step, min(self.step + self.per_call, last)
            events = [self.event()]
            if self.evaluate and self.step // self.evaluate > before // self.evaluate:
                events.append(self.event(evaluation(self.step)))
            for event in events:
                for callback in callbacks:
                    callback(event)
        if end:
            for callback in callbacks:
                callback(self.event(ended="all epochs are done"))
        return self


def strictly(line):
    """JSON as a reader has it that knows no NaN."""

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    return json.loads(line, parse_constant=refuse)
