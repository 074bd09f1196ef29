"""Optimizers: pure transforms of gradients, in the protocol that the JAX ecosystem speaks."""

from fnn.optim.adam import adam, scale_by_adam
from fnn.optim.sgd import sgd, trace
from fnn.optim.transform import Transform, apply_updates, chain, scale_by_learning_rate

__all__ = [
    "Transform",
    "adam",
    "apply_updates",
    "chain",
    "scale_by_adam",
    "scale_by_learning_rate",
    "sgd",
    "trace",
]
