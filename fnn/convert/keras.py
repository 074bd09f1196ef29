"""Keras: channels last as fnn, weights by order or by path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fnn import errors
from fnn.convert.core import (
    ADJOINT,
    SAME,
    Framework,
    Groups,
    Names,
    Way,
    load,
    parts,
    store,
)
from fnn.layer import Layer


def from_keras(
    net: Layer, weights: Sequence | Mapping[str, Any], *xs: Any, names: Names = None
) -> tuple[dict, dict]:
    """(params, state) of `net` with the values of a Keras model.

    - `weights`: `model.get_weights()`, in order of the layers, or {path: array}, as
      `{w.path: w.numpy() for w in model.weights}`.
    - `xs`: as for `net.init`.
    - `names`: {path of a layer in net: its path there}, for weights by path.

    Raises ParamsError for arrays that do not fit, DtypeError for another dtype.

    >>> import numpy as np, fnn
    >>> weights = [np.ones((3, 2), np.float32), np.ones(2, np.float32)]
    >>> params, state = from_keras(fnn.serial(fnn.dense(2)), weights, (1, 3))
    >>> params["dense1"]["kernel"].shape
    (3, 2)
    """
    with errors.within("from_keras"):
        ours = parts(KERAS, net, xs)
        if isinstance(weights, Mapping):
            return load(KERAS, ours, KERAS.group(weights), names)
        if not isinstance(weights, (list, tuple)):
            raise errors.InputError(
                "weights to be a list or a dict of arrays", errors.show(weights), "get_weights()"
            )
        if names is not None:
            raise errors.OptionError(
                "no names for a list of weights", errors.show(names), "pass weights by path"
            )
        wanted = [(part.path, slot) for part in ours for slot in part.slots]
        if len(wanted) != len(weights):
            paths = (f"{path}/{slot.leaf}" for path, slot in wanted)
            raise errors.ParamsError(
                f"{len(wanted)} weights, for {errors.names(paths)}",
                f"{len(weights)}",
                "build the same layers, or pass weights by path and names=",
            )
        groups: Groups = {}
        for (path, slot), weight in zip(wanted, weights, strict=True):
            groups.setdefault(path, {})[slot.entry] = weight
        return load(KERAS, ours, groups, None)


def to_keras(net: Layer, params: Mapping, state: Mapping, *xs: Any) -> list[np.ndarray]:
    """The weights of a Keras model, in order of the layers: undoes `from_keras`.

    - `xs`: as for `net.init`.

    `model.set_weights` takes them. Raises as `from_keras`.

    >>> import jax, fnn
    >>> net = fnn.serial(fnn.dense(2))
    >>> params, state = net.init(jax.random.key(0), (1, 3))
    >>> [array.shape for array in to_keras(net, params, state, (1, 3))]
    [(3, 2), (2,)]
    """
    with errors.within("to_keras"):
        groups = store(KERAS, parts(KERAS, net, xs), params, state, None)
        return [array for group in groups.values() for array in group.values()]


# --- the table

_BY_CHANNEL = Way(  # [*kernel_size, C, m]
    lambda a, slot: a.reshape(slot.array.shape),
    lambda a, slot: a.reshape(*a.shape[:-2], slot.x[-1], a.shape[-1] // slot.x[-1]),
)

_BIAS = {"bias": ("bias", SAME)}
_LINEAR = {"kernel": ("kernel", SAME)} | _BIAS
_NORM = {"scale": ("gamma", SAME), "bias": ("beta", SAME)}

KERAS = Framework(
    {
        "batch_norm": _NORM | {"mean": ("moving_mean", SAME), "var": ("moving_variance", SAME)},
        "conv": _LINEAR,
        "conv_transpose": {"kernel": ("kernel", ADJOINT)} | _BIAS,
        "dense": _LINEAR,
        "depthwise_conv": {"kernel": ("kernel", _BY_CHANNEL)} | _BIAS,
        "embedding": {"embedding": ("embeddings", SAME)},
        "group_norm": _NORM,
        "layer_norm": _NORM,
        "parameter": {"value": ("", SAME)},
        "prelu": {"alpha": ("alpha", SAME)},
        "rms_norm": {"scale": ("scale", SAME)},
    },
    ordered=True,
)
