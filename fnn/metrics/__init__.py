"""Metrics: sums over examples, accumulated batch by batch, with a value at the end."""

from fnn.metrics.classification import (
    accuracy,
    binary_accuracy,
    confusion_matrix,
    f1,
    precision,
    recall,
    top_k,
)
from fnn.metrics.combining import after, each
from fnn.metrics.drift import (
    KolmogorovSmirnov,
    drift,
    histogram,
    kolmogorov_smirnov,
    population_stability_index,
)
from fnn.metrics.metric import Metric, mean
from fnn.metrics.regression import mean_squared_error, r2
from fnn.metrics.scores import average_precision, calibration_error, perplexity, roc_auc
from fnn.metrics.windows import decayed, over_time, windowed

__all__ = [
    "KolmogorovSmirnov", "Metric", "accuracy", "after", "average_precision", "binary_accuracy",
    "calibration_error", "confusion_matrix", "decayed", "drift", "each", "f1", "histogram",
    "kolmogorov_smirnov", "mean", "mean_squared_error", "over_time", "perplexity",
    "population_stability_index", "precision", "r2", "recall", "roc_auc", "top_k", "windowed",
]  # fmt: skip
