"""Training: the step, a pure (train_state, batch) -> (train_state, metrics), and its loops."""

from fnn.train.drift import drift
from fnn.train.fit import evaluator, fit
from fnn.train.hypergradients import forward_value_and_grad
from fnn.train.run import run
from fnn.train.statistics import refresh_statistics
from fnn.train.step import TrainState, init, step, supervised
from fnn.train.tbptt import tbptt

__all__ = [
    "TrainState", "drift", "evaluator", "fit", "forward_value_and_grad", "init",
    "refresh_statistics", "run", "step", "supervised", "tbptt",
]  # fmt: skip
