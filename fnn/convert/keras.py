"""Keras: channels last like fnn, weights by order or by path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fnn.convert import heads
from fnn.convert.arrays import load, store
from fnn.convert.parts import parts
from fnn.convert.table import ADJOINT, SAME, Framework, Groups, Layout, Names
from fnn.core import errors
from fnn.core.layer import Layer


@errors.named
def from_keras(
    net: Layer, weights: Sequence | Mapping[str, Any], *xs: Any, names: Names = None
) -> tuple[dict, dict]:
    """(params, state) of `net` with the values of a Keras model.

    - `weights`: `model.weights`, or {path: array}, as `{w.path: w.numpy() for w in model.weights}`:
      layers are paired as described in `fnn.convert`. Arrays without paths, `model.get_weights()`,
      are taken in their order, which only their shapes can confirm.
    - `xs`: as for `net.init`.
    - `names`: {path of a layer in net: its path there}, for weights by path; see `fnn.convert`.

    The heads axis of an attention is joined with the next one; `to_keras` does not restore it.

    Raises ParamsError for arrays that do not fit, DtypeError for another dtype.

    >>> import numpy as np, fnn
    >>> weights = [np.ones((3, 2), np.float32), np.ones(2, np.float32)]
    >>> params, state = from_keras(fnn.serial(fnn.dense(2)), weights, (1, 3))
    >>> params["dense1"]["kernel"].shape
    (3, 2)
    """
    ours = parts(KERAS, net, xs)
    paths = weights if isinstance(weights, Mapping) else _by_path(weights)
    if paths or isinstance(weights, Mapping):
        groups = heads.flattened(KERAS, ours, KERAS.group(_apart(paths)))
        return load(KERAS, ours, groups, names, registered=paths is not weights)
    if not isinstance(weights, (list, tuple)):
        raise errors.InputError(
            "weights to be a list or a dict of arrays", errors.show(weights), "get_weights()"
        )
    if names is not None:
        raise errors.OptionError(
            "no names for a list of weights", errors.show(names), "pass weights by path"
        )
    wanted = [(part.path, leaf) for part in ours for leaf in part.leaves]
    if len(wanted) != len(weights):
        paths = (f"{path}/{leaf.name}" for path, leaf in wanted)
        raise errors.ParamsError(
            f"{len(wanted)} weights, for {errors.names(paths)}",
            f"{len(weights)}",
            "build the same layers, or pass weights by path and names=",
        )
    by_path: Groups = {}
    for (path, leaf), weight in zip(wanted, weights, strict=True):
        by_path.setdefault(path, {})[leaf.entry] = weight
    return load(KERAS, ours, heads.flattened(KERAS, ours, by_path), None)


@errors.named
def to_keras(net: Layer, params: Mapping, state: Mapping, *xs: Any) -> list[np.ndarray]:
    """The weights of a Keras model, in the order of the layers: inverts `from_keras`.

    - `xs`: as for `net.init`.

    `model.set_weights` takes them. Raises as `from_keras`.

    >>> import jax, fnn
    >>> net = fnn.serial(fnn.dense(2))
    >>> params, state = net.init(jax.random.key(0), (1, 3))
    >>> [array.shape for array in to_keras(net, params, state, (1, 3))]
    [(3, 2), (2,)]
    """
    groups = store(KERAS, parts(KERAS, net, xs), params, state, None)
    return [array for group in groups.values() for array in group.values()]


# --- the table

_BY_CHANNEL = Layout(  # [*kernel_size, C, m]
    lambda a, leaf: a.reshape(leaf.array.shape),
    lambda a, leaf: a.reshape(*a.shape[:-2], leaf.x[-1], a.shape[-1] // leaf.x[-1]),
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
)


# --- weights by path


def _by_path(weights: Sequence) -> dict[str, Any]:
    """The variables of a model by path, in their order; {} for arrays, which have no paths."""
    found: dict[str, Any] = {}
    if not isinstance(weights, (list, tuple)) or not all(hasattr(w, "path") for w in weights):
        return found
    for weight in weights:
        if weight.path in found:
            raise errors.ParamsError(
                "one weight of each path", f"two of {weight.path}", "give model.get_weights()"
            )
        found[weight.path] = weight.numpy()
    return found


def _apart(weights: Mapping[str, Any]) -> dict[str, Any]:
    """The same, with each separable convolution as its two layers."""
    found: dict[str, Any] = {}
    for path, array in weights.items():
        layer, _, entry = str(path).rpartition("/")
        start = layer and f"{layer}/"
        separable = f"{start}pointwise_kernel" in weights
        if separable and entry in ("depthwise_kernel", "pointwise_kernel", "bias"):
            which, _, kernel = entry.rpartition("_")
            path = f"{start}{which or 'pointwise'}/{kernel}"
        elif entry == "depthwise_kernel":  # of Keras 2
            path = f"{start}kernel"
        found[path] = array
    return found
