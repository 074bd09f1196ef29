"""Losses: per example and unreduced; average them, by a mask or weights, with `mean`.

A mask holds bools, True where something counts, and has the shape of the losses or of their first
axes: [B] masks whole rows of [B, T]. Weights, which are real numbers, follow the same rule. What
does not count is ignored, NaN included: it changes neither a loss nor a gradient.
"""

from fnn.losses.blockwise import blockwise
from fnn.losses.classification import (
    binary_log_loss,
    distillation,
    focal,
    hinge,
    log_loss,
    multiclass_hinge,
    sigmoid_cross_entropy,
    softmax_cross_entropy,
)
from fnn.losses.divergence import gaussian_kl, jensen_shannon, kl_divergence
from fnn.losses.inputs import check_labels as check_labels
from fnn.losses.masking import class_weights, masked_mean
from fnn.losses.means import Mean, mean
from fnn.losses.penalties import l1, l2
from fnn.losses.regression import (
    absolute_error,
    gaussian_nll,
    huber,
    log_cosh,
    poisson_nll,
    squared_error,
)
from fnn.losses.sequence import bits_per_character, ctc, language_model
from fnn.losses.similarity import cosine_distance, info_nce, triplet

__all__ = [
    "Mean", "absolute_error", "binary_log_loss", "bits_per_character", "blockwise",
    "class_weights", "cosine_distance", "ctc", "distillation", "focal", "gaussian_kl",
    "gaussian_nll", "hinge", "huber", "info_nce", "jensen_shannon", "kl_divergence", "l1", "l2",
    "language_model", "log_cosh", "log_loss", "masked_mean", "mean", "multiclass_hinge",
    "poisson_nll", "sigmoid_cross_entropy", "softmax_cross_entropy", "squared_error", "triplet",
]  # fmt: skip
