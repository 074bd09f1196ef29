"""Flax, linen and nnx: laid out and named as fnn, but for where the state is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fnn import errors, tree
from fnn.convert.core import SAME, Framework, Names, load, mapping, parts, store
from fnn.layer import Layer


def from_flax(net: Layer, variables: Mapping, *xs: Any, names: Names = None) -> tuple[dict, dict]:
    """(params, state) of `net` with the values of Flax linen's `variables`.

    - `variables`: {"params": ..., "batch_stats": ...}, nested dicts of arrays.
    - `xs`: as for `net.init`.
    - `names`: {path of a layer in net: its path there}, for layers that nothing else pairs.

    Raises ParamsError for arrays that do not fit, DtypeError for another dtype.

    >>> import numpy as np, fnn
    >>> dense = {"kernel": np.ones((3, 2), np.float32), "bias": np.ones(2, np.float32)}
    >>> params, state = from_flax(fnn.serial(fnn.dense(2)), {"params": {"Dense_0": dense}}, (1, 3))
    >>> params["dense1"]["kernel"].shape
    (3, 2)
    """
    with errors.within("from_flax"):
        flat: dict[str, Any] = {}
        for part, inside in mapping("variables", variables).items():
            if part not in _PARTS.values():
                raise errors.ParamsError(
                    f"variables with no more than {errors.names(_PARTS.values())}",
                    f"also {part}",
                    "leave out what layers of fnn do not have",
                )
            flat |= tree.flatten(mapping(part, inside))
        return load(FLAX, parts(FLAX, net, xs), FLAX.group(flat), names)


def to_flax(
    net: Layer, params: Mapping, state: Mapping, *xs: Any, names: Names = None
) -> dict[str, dict]:
    """Flax linen's `variables`, of NumPy arrays, with the values of `net`: undoes `from_flax`.

    - `xs`: as for `net.init`.
    - `names`: {path of a layer in net: its path there}; a layer without one keeps its path.

    There is "batch_stats" if the network has state. Raises as `from_flax`.

    >>> import jax, fnn
    >>> net = fnn.serial(fnn.dense(2))
    >>> params, state = net.init(jax.random.key(0), (1, 3))
    >>> variables = to_flax(net, params, state, (1, 3), names={"dense1": "Dense_0"})
    >>> jax.tree.map(lambda a: a.shape, variables)
    {'params': {'Dense_0': {'bias': (2,), 'kernel': (3, 2)}}}
    """
    with errors.within("to_flax"):
        ours = parts(FLAX, net, xs)
        groups = store(FLAX, ours, params, state, names)
        flat: dict[str, dict[str, Any]] = {"params": {}}
        for part, (name, group) in zip(ours, groups.items(), strict=True):
            for slot in part.slots:
                inside = flat.setdefault(_PARTS[slot.part], {})
                inside[FLAX.join(name, slot.entry)] = group[slot.entry]
        return {part: tree.unflatten(inside) for part, inside in flat.items()}


def from_nnx(net: Layer, pure: Mapping, *xs: Any, names: Names = None) -> tuple[dict, dict]:
    """(params, state) of `net` with the values of a Flax nnx model.

    - `pure`: nested dicts of arrays, `nnx.to_pure_dict(nnx.state(model, kinds))` with the kinds
      `(nnx.Param, nnx.BatchStat)`.
    - `xs`, `names`: as of `from_flax`, and so are the errors.

    >>> import numpy as np, fnn
    >>> linear = {"kernel": np.ones((3, 2), np.float32), "bias": np.ones(2, np.float32)}
    >>> params, state = from_nnx(fnn.serial(fnn.dense(2)), {"linear": linear}, (1, 3))
    >>> params["dense1"]["kernel"].shape
    (3, 2)
    """
    with errors.within("from_nnx"):
        flat = tree.flatten(mapping("pure", pure))
        return load(FLAX, parts(FLAX, net, xs), FLAX.group(flat), names)


def to_nnx(
    net: Layer, params: Mapping, state: Mapping, *xs: Any, names: Names = None
) -> dict[str, Any]:
    """The nested dict of a Flax nnx model with the values of `net`: undoes `from_nnx`.

    - `xs`: as for `net.init`.
    - `names`: {path of a layer in net: its path there}; a layer without one keeps its path.

    `nnx.replace_by_pure_dict(model_state, pure)` takes it. Raises as `from_flax`.

    >>> import jax, fnn
    >>> net = fnn.serial(fnn.dense(2))
    >>> params, state = net.init(jax.random.key(0), (1, 3))
    >>> pure = to_nnx(net, params, state, (1, 3), names={"dense1": "linear"})
    >>> jax.tree.map(lambda a: a.shape, pure)
    {'linear': {'bias': (2,), 'kernel': (3, 2)}}
    """
    with errors.within("to_nnx"):
        groups = store(FLAX, parts(FLAX, net, xs), params, state, names)
        return tree.unflatten(FLAX.flat(groups))


# --- the table

_PARTS = {"params": "params", "state": "batch_stats"}
_LINEAR = {"kernel": ("kernel", SAME), "bias": ("bias", SAME)}
_NORM = {"scale": ("scale", SAME), "bias": ("bias", SAME)}

FLAX = Framework(
    {
        "batch_norm": _NORM | {"mean": ("mean", SAME), "var": ("var", SAME)},
        "conv": _LINEAR,
        "conv_transpose": _LINEAR,
        "dense": _LINEAR,
        "depthwise_conv": _LINEAR,
        "embedding": {"embedding": ("embedding", SAME)},
        "group_norm": _NORM,
        "instance_norm": _NORM,
        "layer_norm": _NORM,
        "parameter": {"value": ("", SAME)},
        "rms_norm": _NORM,
    }
)
