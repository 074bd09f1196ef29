"""Where the last axis of each layer's input comes from.

PyTorch's images are channels first and fnn's are channels last. This matters only where axes are
joined: H, W, C here, C, H, W there. So the network is traced once and its program followed, to find
the layers whose inputs are joined axes.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name

from fnn.core.declarations import zeros_of
from fnn.core.layer import Layer
from fnn.core.types import Shape, Tree

CHANNELS = "channels"  # of an image, out of a convolution or a pool
FEATURES = "features"  # out of a layer with parameters, in the same order in every framework
SPLIT = "split features"  # features that were reshaped into more axes
MIXED = "joined and mixed"  # a joined axis after an operation that is not elementwise

IMAGES = {  # kinds of layers that give and take images
    "adaptive_avg_pool",
    "avg_pool",
    "conv",
    "conv_transpose",
    "depthwise_conv",
    "global_avg_pool",
    "global_max_pool",
    "local_conv",
    "lp_pool",
    "max_pool",
    "min_pool",
    "pixel_shuffle",
    "pixel_unshuffle",
    "sum_pool",
    "upsample",
}
ELEMENTWISE = {  # kinds with parameters per channel, which keep the order of channels
    "batch_norm",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "prelu",
    "rms_norm",
}


class Joined(NamedTuple):
    """Axes joined in row-major order, the last of which were channels, as far as is known."""

    axes: tuple[int, ...]
    known: bool


class Input(NamedTuple):
    """A layer's first input: its shape, and where its last axis comes from."""

    shape: Shape
    origin: Any  # one of the strings above, Joined or None


def inputs(net: Layer, params: Tree, state: Tree, xs: tuple) -> dict[str, Input]:
    """The inputs of all layers of `net`, by path; `params` and `state` are its declarations."""
    found: dict[str, Input] = {}
    events: dict[str, tuple[str, str, str]] = {}
    shapes: dict[str, Shape] = {}
    latest: dict[str, Any] = {}

    def mark(tree: Tree, side: str, path: str, kind: str) -> Tree:
        """The arrays, named so that the traced program keeps the name."""
        name = f"fnn {side} {path}"
        events[name] = (side, path, kind)
        return jax.tree.map(lambda x: checkpoint_name(x, name), tree)

    def marked(path: str, layer: Layer) -> Layer:
        if layer.children:
            return layer

        def apply(params, state, *xs, key=None, train=False):
            arrays = jax.tree.leaves(xs)
            shapes.setdefault(path, tuple(arrays[0].shape) if arrays else ())
            xs = mark(xs, "into", path, layer.name)
            y, state = layer.apply(params, state, *xs, key=key, train=train)
            has_params = bool(jax.tree.leaves(params))
            known = layer.name in IMAGES | ELEMENTWISE or has_params
            return mark(y, "from", path, layer.name) if known else y, state

        return replace(layer, apply=apply)

    def run(key, *xs):
        watched = net.map(marked)
        return watched.apply(zeros_of(params), zeros_of(state), *xs, key=key)[0]

    def event(name: str, origin: Any) -> Any:
        side, path, kind = events[name]
        if side == "into":
            before = found.get(path, Input((), origin)).origin  # from another call or input
            found[path] = Input(shapes[path], _both(before, origin))
            latest[path] = origin
            return origin
        if kind in IMAGES:
            return CHANNELS
        return latest[path] if kind in ELEMENTWISE else FEATURES

    traced = jax.make_jaxpr(run)(jax.random.key(0), *xs)
    _follow(traced.jaxpr, [None] * len(traced.jaxpr.invars), events, event)
    return {path: found.get(path, Input(shape, None)) for path, shape in shapes.items()}


# --- following a program


def _follow(jaxpr: Any, origins: list, events: Mapping, event: Any) -> list:
    """The origins of a program's outputs, from those of its inputs."""
    known = dict(zip(jaxpr.invars, origins, strict=True))

    def of(atom):
        return None if hasattr(atom, "val") else known.get(atom)  # a literal has a value

    for eqn in jaxpr.eqns:
        before = [of(atom) for atom in eqn.invars]
        inner = _inner(eqn)
        if eqn.primitive.name == "name" and eqn.params["name"] in events:
            after = [event(eqn.params["name"], before[0])]
        elif inner is not None:
            after = _follow(inner, before, events, event)
        else:
            after = [_carried(eqn, before, out.aval.shape) for out in eqn.outvars]
        known.update(zip(eqn.outvars, after, strict=True))
    return [of(atom) for atom in jaxpr.outvars]


def _inner(eqn: Any) -> Any:
    """The program that an equation calls with its own inputs and outputs, if it does."""
    for value in eqn.params.values():
        inner = getattr(value, "jaxpr", value)
        if hasattr(inner, "eqns"):
            same = len(inner.invars), len(inner.outvars)
            if same == (len(eqn.invars), len(eqn.outvars)):
                return inner
    return None


def _carried(eqn: Any, origins: list, shape: Shape) -> Any:
    """The origin of the last axis of one operation's result."""
    name, some = eqn.primitive.name, [origin for origin in origins if origin is not None]
    if not some:
        if name != "reshape":
            return None
    elif name == "dot_general":
        return MIXED if _any_joined(some) else FEATURES
    if name == "reshape":
        return _reshaped(origins[0], eqn.invars[0].aval.shape, shape)
    if name in ("concatenate", "pad", "slice") and set(some) in ({CHANNELS}, {FEATURES}):
        return some[0]
    if _moves_last(eqn, shape):
        return MIXED if _any_joined(some) else None
    here = {
        origin
        for atom, origin in zip(eqn.invars, origins, strict=True)
        if origin is not None and atom.aval.shape[-1:] == shape[-1:]
    }
    if not here:
        return MIXED if _any_joined(some) else None
    return functools.reduce(_both, here)


def _both(a: Any, b: Any) -> Any:
    """The common origin of two."""
    if a == b:
        return a
    if _any_joined((a, b)):
        return MIXED
    return next((origin for origin in (SPLIT, CHANNELS) if origin in (a, b)), a or b)


def _any_joined(origins: Any) -> bool:
    return any(origin == MIXED or isinstance(origin, Joined) for origin in origins)


def _reshaped(origin: Any, before: Shape, after: Shape) -> Any:
    if before[-1:] == after[-1:]:
        return origin
    for n in range(2, len(before) + 1):
        axes = before[-n:]
        if after and math.prod(axes) == after[-1]:
            break
    else:  # the last axis came apart
        return {None: None, FEATURES: SPLIT, SPLIT: SPLIT}.get(origin, MIXED)
    if origin in (FEATURES, SPLIT):
        return FEATURES
    if origin == MIXED or isinstance(origin, Joined):
        return MIXED
    if axes[-1] == 1 or math.prod(axes[:-1]) == 1:  # one order for both
        return FEATURES
    return Joined(axes, known=origin == CHANNELS)


def _moves_last(eqn: Any, shape: Shape) -> bool:
    """Whether an operation may permute values along the last axis, or put another axis there."""
    name, options = eqn.primitive.name, eqn.params
    rank = len(eqn.invars[0].aval.shape)
    if name == "transpose":
        return options["permutation"][-1:] != (rank - 1,)
    if name == "broadcast_in_dim":
        return rank > 0 and options["broadcast_dimensions"][-1] != len(shape) - 1
    if name == "squeeze":
        return rank - 1 in options["dimensions"]
    if name in ("rev", "sort", "cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "fft"):
        return rank - 1 in options.get("dimensions", (options.get("dimension", rank - 1),))
    if "axes" in options and len(shape) < rank:  # a reduction
        return rank - 1 in options["axes"]
    return name in ("gather", "scatter", "scatter-add", "top_k")
