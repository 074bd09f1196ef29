"""What the inputs of a network were like at training, in the manifest."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fnn.core import errors
from fnn.core.types import Tree
from fnn.metrics.drift import histogram

BINS = 10


def statistics_of(examples: Any, inputs: list[dict]) -> dict[str, dict[str, Any]]:
    """By the name of each input: mean, std, min, max, and a histogram as of `fnn.metrics`.

    Floats have one number for each index of the last axis, if its size is fixed ("axis": -1); all
    else has one of all values ("axis": null). Values that are not finite count for none of these
    but the histogram.
    """
    several = isinstance(examples, (list, tuple))
    leaves = jax.tree.leaves(tuple(examples) if several else (examples,))
    if len(leaves) != len(inputs):
        wanted = f"examples of the inputs {errors.names(said['name'] for said in inputs)}"
        raise errors.InputError(wanted, errors.show(examples), "pass arrays like shapes")
    return {said["name"]: _of(said, leaf) for said, leaf in zip(inputs, leaves, strict=True)}


def _of(said: dict, x: Tree) -> dict[str, Any]:
    x = np.asarray(x)
    fits = len(x.shape) == len(said["shape"]) and x.dtype.name == said["dtype"] and x.size
    sizes = zip(x.shape, said["shape"], strict=True) if fits else ()
    if not fits or any(type(d) is int and d != n for n, d in sizes):
        wanted = f"examples of {said['name']} {tuple(said['shape'])} {said['dtype']}"
        raise errors.ShapeError(wanted, errors.show(x), "pass a batch of training inputs")
    columns = (
        x.ndim > 1 and jnp.issubdtype(x.dtype, jnp.floating) and type(said["shape"][-1]) is int
    )
    values = x.reshape(-1, x.shape[-1]) if columns else x.reshape(-1)
    wide = values.astype(np.float64)
    real = np.isfinite(wide)
    count = np.maximum(real.sum(axis=0), 1)
    mean = np.where(real, wide, 0).sum(axis=0) / count
    std = np.sqrt((np.where(real, wide - mean, 0) ** 2).sum(axis=0) / count)
    seen = histogram(values.astype(np.float32), BINS)
    return {
        "axis": -1 if columns else None,
        "count": len(values),
        "mean": mean.tolist(),
        "std": std.tolist(),
        "min": np.where(real, wide, np.inf).min(axis=0).tolist(),
        "max": np.where(real, wide, -np.inf).max(axis=0).tolist(),
        "histogram": {name: np.asarray(a).tolist() for name, a in seen.items()},
    }
