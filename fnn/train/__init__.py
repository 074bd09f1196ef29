"""Training: the step, a pure (train_state, batch) -> (train_state, metrics), and its loops."""

from fnn.train.callbacks import patience, stop_on_nan, stop_on_signal, table, time_limit
from fnn.train.drift import drift
from fnn.train.evaluator import evaluator
from fnn.train.events import Event, Stop
from fnn.train.fit import fit
from fnn.train.hypergradients import forward_value_and_grad
from fnn.train.joint import join, joint_step
from fnn.train.run import run
from fnn.train.statistics import refresh_statistics
from fnn.train.step import TrainState, data_key, init, shapes, step
from fnn.train.supervised import supervised
from fnn.train.tbptt import tbptt

__all__ = [
    "Event", "Stop", "TrainState", "data_key", "drift", "evaluator", "fit",
    "forward_value_and_grad", "init", "join", "joint_step", "patience", "refresh_statistics", "run",
    "shapes", "step", "stop_on_nan", "stop_on_signal", "supervised", "table", "tbptt", "time_limit",
]  # fmt: skip
