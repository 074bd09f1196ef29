"""PyTorch: channels first, weights (out, in)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from fnn.convert import heads, origins
from fnn.convert.arrays import load, mapping, on_host, store
from fnn.convert.parts import parts
from fnn.convert.table import (
    SAME,
    Framework,
    Groups,
    Layout,
    Leaf,
    Names,
    Part,
    stores_adjoint,
    turned,
)
from fnn.core import checks, errors
from fnn.core.layer import Layer


@errors.named
def from_torch(
    net: Layer,
    state_dict: Mapping[str, Any],
    *xs: Any,
    names: Names = None,
    flattened: str | None = None,
) -> tuple[dict, dict]:
    """(params, state) of `net` with the values of a PyTorch `state_dict`.

    Convolutions (O, I, H, W) become (H, W, I, O), linear layers (out, in) become (in, out), and
    transposed convolutions (I, O, H, W) follow their `transpose_kernel`. A PyTorch LSTM, GRU or
    RNN, with all its layers and directions, is one `fnn.lstm`, `gru` or `simple_rnn`; its two
    biases are added where only the sum matters. A joint array for q, k and v, as in
    MultiheadAttention, is split for an `fnn.attention`.

    - `state_dict`: {name: tensor on the CPU, or NumPy array}. Tensors in bfloat16, float16 and
      float8 keep their dtype, for `xs` of that dtype. `num_batches_tracked` is ignored.
    - `xs`: as for `net.init`.
    - `names`: {path of a layer in net: its name there}, for layers that nothing else pairs; see
      `fnn.convert`, also for blocks and stacks.
    - `flattened`: the order in which the PyTorch network joins axes. Its images are channels
      first, so the output of a convolution or a pool is joined there as C, H, W and here as
      H, W, C, and the layers that follow get their rows in our order. Where it is not known that
      the last axis is channels, as in an input that is flattened at once, pass "CHW" or "HWC",
      which then applies to every joined axis.

    Raises ParamsError for arrays that do not fit and for a joined axis of unknown order,
    DtypeError for another dtype.

    >>> import numpy as np, fnn
    >>> weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    >>> state_dict = {"fc.weight": weight, "fc.bias": np.ones(2, np.float32)}
    >>> params, state = from_torch(fnn.serial(fnn.dense(2)), state_dict, (1, 3))
    >>> print(params["dense1"]["kernel"])
    [[0. 3.]
     [1. 4.]
     [2. 5.]]
    """
    ours = _parts(net, xs, flattened)
    flat = heads.regular(mapping("state_dict", state_dict))
    groups = heads.split(TORCH, ours, _gathered(TORCH.group(flat)))
    return load(TORCH, ours, groups, names, registered=_registered(state_dict))


@errors.named
def to_torch(
    net: Layer,
    params: Mapping,
    state: Mapping,
    *xs: Any,
    names: Names = None,
    flattened: str | None = None,
) -> dict[str, np.ndarray]:
    """PyTorch's `state_dict`, in NumPy arrays, with the values of `net`: inverts `from_torch`.

    - `xs`, `flattened`: as in `from_torch`.
    - `names`: {path of a layer in net: its name there}; a layer without one keeps its path, with
      dots, as block.conv1. `{"attention/q": "attn.in_proj.q", ...}` joins q, k and v again.

    In PyTorch, `model.load_state_dict({k: torch.from_numpy(v) for k, v in state_dict.items()})`
    takes it; convert bfloat16, which `from_numpy` lacks, by way of float32. Of two biases that
    PyTorch adds, the second is zero. Raises as `from_torch`.

    >>> import jax, fnn
    >>> net = fnn.serial(fnn.dense(2))
    >>> params, state = net.init(jax.random.key(0), (1, 3))
    >>> state_dict = to_torch(net, params, state, (1, 3), names={"dense1": "fc"})
    >>> {name: array.shape for name, array in state_dict.items()}
    {'fc.weight': (2, 3), 'fc.bias': (2,)}
    """
    ours = _parts(net, xs, flattened)
    groups = store(TORCH, ours, params, state, names)
    for part, name in zip(ours, list(groups), strict=True):
        if part.kind in _RECURRENT:
            groups[name] = _two_biases(groups[name])
    return heads.joined(TORCH, groups)


# --- the table


def _forward(a: np.ndarray) -> np.ndarray:
    """[B, A, *kernel_size] to [*kernel_size, A, B]."""
    return np.transpose(a, (*range(2, a.ndim), 1, 0))


def _back(a: np.ndarray) -> np.ndarray:
    """[*kernel_size, A, B] to [B, A, *kernel_size]."""
    return np.transpose(a, (a.ndim - 1, a.ndim - 2, *range(a.ndim - 2)))


_OUT_IN = Layout(lambda a, leaf: _forward(a), lambda a, leaf: _back(a))
_OUT_FIRST = Layout(lambda a, leaf: np.moveaxis(a, 0, -1), lambda a, leaf: np.moveaxis(a, -1, 0))
_IN_OUT = Layout(  # that of the convolution of which this is the adjoint
    lambda a, leaf: _forward(a) if stores_adjoint(leaf) else turned(_forward(a)),
    lambda a, leaf: _back(a if stores_adjoint(leaf) else turned(a)),
)

_LINEAR = {"kernel": ("weight", _OUT_IN), "bias": ("bias", SAME)}
_NORM = {"scale": ("weight", SAME), "bias": ("bias", SAME)}

_RNN = {
    "kernel": ("weight_ih_l0", _OUT_IN),
    "recurrent_kernel": ("weight_hh_l0", _OUT_IN),
    "bias": ("bias_ih_l0", SAME),  # both of them
}
_RECURRENT = {
    "gru": _RNN | {"recurrent_bias": ("bias_hh_l0", SAME)},  # of the gate n alone
    "lstm": _RNN | {"projection": ("weight_hr_l0", _OUT_IN)},
    "simple_rnn": _RNN,
}


def _inside(where: str, entry: str) -> str:
    """weight_ih_l0 of lstm2/backward is weight_ih_l1_reverse."""
    return f"{entry.removesuffix('0')}{_layer(where)}" + "_reverse" * where.endswith("backward")


TORCH = Framework(
    {
        "batch_norm": _NORM | {"mean": ("running_mean", SAME), "var": ("running_var", SAME)},
        "bilinear": {"kernel": ("weight", _OUT_FIRST), "bias": ("bias", SAME)},
        "conv": _LINEAR,
        "conv_transpose": {"kernel": ("weight", _IN_OUT), "bias": ("bias", SAME)},
        "dense": _LINEAR,
        "depthwise_conv": _LINEAR,
        "embedding": {"embedding": ("weight", SAME)},
        "group_norm": _NORM,
        "instance_norm": _NORM,
        "layer_norm": _NORM,
        "parameter": {"value": ("", SAME)},
        "prelu": {"alpha": ("weight", SAME)},
        "rms_norm": _NORM,
        **_RECURRENT,
    },
    separator=".",
    whole=", or give module.state_dict() as it is, whose layers come in order",
    unused=("num_batches_tracked",),
    inside=_inside,
)


# --- order


def _registered(state_dict: Mapping[str, Any]) -> bool:
    """Whether the layers are in the order of registration, which `_metadata` keeps.

    A dict that was sorted, filtered or read from safetensors has no `_metadata`, and one that was
    changed in place does not agree with it.
    """
    modules = getattr(state_dict, "_metadata", None)
    if not isinstance(modules, Mapping):
        return False
    place = {name: i for i, name in enumerate(modules)}
    places = [place.get(name.rpartition(".")[0], -1) for name in state_dict]
    return -1 not in places and places == sorted(places)


# --- recurrent layers


def _layer(path: str) -> int:
    """1 for lstm2/backward/kernel, 0 for that of the only layer."""
    number = re.search(r"\d+", path)
    return int(number[0]) - 1 if number else 0


def _gathered(groups: Groups) -> Groups:
    """The groups with all arrays of a recurrent layer in one, and its two biases added."""
    found: Groups = {}
    for name, group in groups.items():
        layer, _, entry = name.rpartition(".")
        if re.fullmatch(r"(weight|bias)_(ih|hh|hr)_l\d+(_reverse)?", entry):
            found.setdefault(layer, {})[entry] = group[""]
        else:
            found.setdefault(name, {}).update(group)
    for name, group in found.items():
        for entry in list(group):
            if entry.startswith("bias_hh_l"):
                _add_biases(name, group, entry.removeprefix("bias_hh"))
    return found


def _add_biases(name: str, group: dict[str, Any], of: str) -> None:
    """bias_ih becomes the sum; of bias_hh only what a GRU adds within its reset remains."""
    first, second, weight = f"bias_ih{of}", f"bias_hh{of}", f"weight_hh{of}"
    if not {first, weight} <= set(group):
        return  # the error on missing arrays comes later, by name
    a, b, w = (on_host(TORCH.join(name, e), group[e]) for e in (first, second, weight))
    if a.ndim != 1 or a.shape != b.shape:
        raise errors.ParamsError(
            f"two biases of one shape, {TORCH.join(name, first)} and {second}",
            f"{a.shape} and {b.shape}",
            "take the state_dict of one layer",
        )
    gru = w.ndim == 2 and len(w) == 3 * w.shape[1] and f"weight_hr{of}" not in group
    apart = 2 * w.shape[1] if gru else len(a)
    group[first] = np.concatenate([a[:apart] + b[:apart], a[apart:]])
    del group[second]
    if gru:
        group[second] = b[apart:]


def _two_biases(group: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The group with a bias_hh for each bias_ih: zero, but for what a GRU adds in its reset."""
    found: dict[str, np.ndarray] = {}
    for entry, array in group.items():
        if entry.startswith("bias_hh"):
            found[entry][-len(array) :] = array
            continue
        found[entry] = array
        if entry.startswith("bias_ih"):
            found[entry.replace("ih", "hh")] = np.zeros_like(array)
    return found


# --- joined axes


def _parts(net: Layer, xs: tuple, flattened: str | None) -> list[Part]:
    if flattened is not None:
        checks.choice("flattened", flattened, ("CHW", "HWC"))
    return [_in_order(part, flattened) for part in parts(TORCH, net, xs)]


def _in_order(part: Part, flattened: str | None) -> Part:
    """The layer with its rows in the order in which PyTorch joins its input's axes."""
    origin = part.origin
    if flattened == "HWC" or origin in (None, origins.CHANNELS, origins.FEATURES):
        return part
    if origin == origins.SPLIT and part.kind not in origins.IMAGES:
        return part
    with errors.at(part.path) if part.path else errors.within(part.kind):
        if not isinstance(origin, origins.Joined) or part.kind not in _BY_ROW:
            raise errors.ParamsError(
                f"an input whose order of values is PyTorch's, or joined axes and then one of "
                f"{errors.names(sorted(_BY_ROW))}",
                f"{origin if isinstance(origin, str) else f'joined axes {origin.axes}'} in front "
                f"of {part.kind}",
                'move values by hand; flattened="HWC" keeps their order',
            )
        if not (origin.known or flattened):
            raise errors.ParamsError(
                "joined axes that come from a convolution or a pool, and so are H, W, C",
                f"the axes {origin.axes} of an input",
                'pass how PyTorch joins them: flattened="CHW", or "HWC" if in the order used here',
            )
        return part._replace(leaves=tuple(_with_rows(s, origin.axes) for s in part.leaves))


# kinds whose arrays have a row for each value of x
_BY_ROW = ("batch_norm", "dense", "layer_norm", "prelu", "rms_norm", *_RECURRENT)


def _with_rows(leaf: Leaf, axes: tuple[int, ...]) -> Leaf:
    by_row = "in" in leaf.axes or leaf.name.rpartition("/")[2] == "kernel"
    if not by_row or _layer(leaf.name):
        return leaf
    theirs = np.arange(math.prod(axes)).reshape(axes[-1], *axes[:-1])  # C, H, W
    return leaf._replace(order=np.moveaxis(theirs, 0, -1).reshape(-1))
