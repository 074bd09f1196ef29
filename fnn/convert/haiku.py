"""Haiku: the same layouts as fnn, other names, and debiased averages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fnn import tree
from fnn.convert.arrays import load, mapping, store
from fnn.convert.parts import parts
from fnn.convert.table import SAME, Framework, Groups, Layout, Names, stores_adjoint
from fnn.core import errors
from fnn.core.layer import Layer


@errors.named
def from_haiku(
    net: Layer, params: Mapping, state: Mapping, *xs: Any, names: Names = None
) -> tuple[dict, dict]:
    """(params, state) of `net` with the values of a Haiku network.

    - `params`, `state`: {module: {entry: array}}, {} for a network without state. Haiku debiases
      a batch norm's averages by a counter; the debiased ones are read.
    - `xs`: as for `net.init`, with the batch axis: Haiku's batch norm keeps arrays of x's rank.
    - `names`: {path of a layer in net: its module there}, for layers that nothing else pairs.

    Raises ParamsError for arrays that do not fit, DtypeError for another dtype.

    >>> import numpy as np, fnn
    >>> linear = {"w": np.ones((3, 2), np.float32), "b": np.ones(2, np.float32)}
    >>> params, state = from_haiku(fnn.serial(fnn.dense(2)), {"mlp/~/linear_0": linear}, {}, (1, 3))
    >>> params["dense1"]["kernel"].shape
    (3, 2)
    """
    flat = tree.to_paths(mapping("params", params)) | tree.to_paths(mapping("state", state))
    return load(HAIKU, parts(HAIKU, net, xs), HAIKU.group(flat), names)


@errors.named
def to_haiku(
    net: Layer, params: Mapping, state: Mapping, *xs: Any, names: Names = None
) -> tuple[dict, dict]:
    """Haiku's (params, state), in NumPy arrays, with the values of `net`: inverts `from_haiku`.

    - `xs`: as for `net.init`, with the batch axis.
    - `names`: {path of a layer in net: its module there}; a layer without one keeps its path.

    A batch norm's counter is set so high that Haiku no longer debiases: fnn's averages start at
    mean 0 and variance 1, and are not biased. Raises as `from_haiku`.

    >>> import jax, fnn
    >>> net = fnn.serial(fnn.dense(2))
    >>> params, state = net.init(jax.random.key(0), (1, 3))
    >>> theirs, _ = to_haiku(net, params, state, (1, 3), names={"dense1": "linear"})
    >>> jax.tree.map(lambda a: a.shape, theirs)
    {'linear': {'b': (2,), 'w': (3, 2)}}
    """
    ours = parts(HAIKU, net, xs)
    groups = store(HAIKU, ours, params, state, names)
    trees: dict[str, Groups] = {"params": {}, "state": {}}
    for part, (name, group) in zip(ours, groups.items(), strict=True):
        for leaf in part.leaves:
            module, _, entry = HAIKU.join(name, leaf.entry).rpartition("/")
            entries = trees[leaf.collection].setdefault(module or "~", {})
            entries[entry] = group[leaf.entry]
            if leaf.collection == "state":
                counter = np.asarray(2**30, np.int32)
                entries |= {"hidden": group[leaf.entry].copy(), "counter": counter}
    return trees["params"], trees["state"]


# --- the table

_RANKED = Layout(  # [C] with an axis of one for each other axis of x
    lambda a, leaf: a.reshape(a.shape[-1:]),
    lambda a, leaf: a.reshape((1,) * (len(leaf.x) - 1) + a.shape),
)


def _swapped(a: np.ndarray, leaf: Any) -> np.ndarray:
    """For a transposed convolution: the same kernel, stored as [*kernel_size, out, in]."""
    if stores_adjoint(leaf):
        return np.flip(a, tuple(range(a.ndim - 2)))
    return np.swapaxes(a, -1, -2)


_LINEAR = {"kernel": ("w", SAME), "bias": ("b", SAME)}
_NORM = {"scale": ("scale", SAME), "bias": ("offset", SAME)}

HAIKU = Framework(
    {
        "batch_norm": {
            "scale": ("scale", _RANKED),
            "bias": ("offset", _RANKED),
            "mean": ("~/mean_ema/average", _RANKED),
            "var": ("~/var_ema/average", _RANKED),
        },
        "conv": _LINEAR,
        "conv_transpose": {"kernel": ("w", Layout(_swapped, _swapped)), "bias": ("b", SAME)},
        "dense": _LINEAR,
        "depthwise_conv": _LINEAR,
        "embedding": {"embedding": ("embeddings", SAME)},
        "group_norm": _NORM,
        "instance_norm": _NORM,
        "layer_norm": _NORM,
        "parameter": {"value": ("", SAME)},
        "rms_norm": {"scale": ("scale", SAME)},
    },
    unused=tuple(
        f"~/{of}_ema/{entry}" for of in ("mean", "var") for entry in ("hidden", "counter")
    ),
)
