"""One layer, forward and backward, in every library: how each takes weights, inputs and keys.

A call computes y and, from a given gradient by y, those by the params and, where they are not
integers, by the inputs: a layer's part of a training step. A loss that sums y is no part of it:
XLA's CPU compiler joins such a sum with the layer and adds one value after the other, which takes
longer than many a layer. Weights, inputs and gradients by y are made in NumPy, the same for all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.peers import torch_place
from benchmarks.task import Call, Contender, Missing
from benchmarks.worker import seconds

CHANNELS_FIRST = {2: (1, 0), 3: (2, 0, 1), 4: (3, 2, 0, 1)}  # of kernels, by rank
WIDE = 1024  # the sides of the matrix in the product that is a limit
NAMES = {"query": "q", "key": "k", "value": "v", "linear": "out"}  # of parts of attention
NAMES |= {f"{name}_proj": short for name, short in NAMES.items()} | {"output_proj": "out"}


@dataclass(frozen=True)
class Case:
    """A layer: its inputs, its weights, and how each library makes it of (library, c, n).

    c channels come in and n go out; equinox gets a key too, and last comes the rate if there is
    one. A library whose function is None has neither the layer nor parts that are one.
    """

    shapes: tuple[tuple[int, ...], ...]  # of the inputs, batch first and channels last
    weights: Mapping[str, Any]  # shapes, in fnn's names and layout
    n: int
    fnn: Callable[..., Any]
    floor: Callable[..., Any] | None = None  # by hand: (jax, params, key, *xs) -> y
    linen: Callable[..., Any] | None = None  # a module, or a function
    equinox: Callable[..., Any] | None = None  # a module, or (modules, call(modules, *xs))
    haiku: Callable[..., Any] | None = None  # a module, or a function
    torch: Callable[..., Any] | None = None  # a module, or (modules, call(modules, *xs))
    rate: float | None = None  # of dropout
    integers: int = 0  # the inputs are some, smaller than this
    transposed: bool = False  # a transposed convolution: its kernel is stored in four ways
    backward: bool = True  # False: y alone


def making(case: Case, library: str) -> Callable[..., Any]:
    """What the case makes its layer with in a library."""
    make = getattr(case, library)
    if make is None:
        raise Missing(f"{library} has no such layer")
    rates = () if case.rate is None else (case.rate,)
    return lambda *arguments: make(*arguments, *rates)


# --- the same numbers for all


def arrays(case: Case) -> tuple[Any, list[Any]]:
    """Weights, as fnn lays them out, and inputs; in NumPy."""
    import numpy as np

    random = np.random.default_rng(1)

    def draw(tree: Any) -> Any:
        if not isinstance(tree, tuple):
            return {name: draw(sub) for name, sub in tree.items()}
        values = random.normal(size=tree) / math.sqrt(math.prod(tree[:-1]))
        return (values if len(tree) > 1 else 1 + values / 10).astype("float32")

    def batch(shape: tuple[int, ...]) -> Any:
        if case.integers:
            return random.integers(0, case.integers, shape).astype("int32")
        return random.normal(size=shape).astype("float32")

    return draw(case.weights), [batch(shape) for shape in case.shapes]


def channels_first(x: Any) -> Any:
    """An image as equinox and PyTorch take it; anything else as it is."""
    return x.transpose(0, 3, 1, 2).copy() if x.ndim == 4 else x


def cotangent(shape: Sequence[int], first: bool = False) -> Any:
    """What a y of this shape is multiplied by; the same numbers if the channels come first."""
    import numpy as np

    if first and len(shape) == 4:
        shape = (shape[0], *shape[2:], shape[1])
    values = np.random.default_rng(2).normal(size=shape).astype("float32")
    return channels_first(values) if first else values


def pick(weights: Any, path: Sequence[str], first: bool = False) -> Any:
    """The weight at a library's own path, whose parts that fnn's names lack are passed over.

    `first`: as channels-first libraries lay it out."""
    *parts, leaf = path
    for part in parts:
        weights = weights.get(NAMES.get(part, part), weights)
    bias = leaf in ("bias", "b", "offset")
    name = "bias" if bias else next(name for name in weights if name != "bias")
    w = weights[name]
    return w.transpose(CHANNELS_FIRST[w.ndim]) if first and name == "kernel" else w


# --- one function a library


def gradients(case: Case, params: Any, rest: Any, forward: Any, first: bool = False) -> Call:
    """Jitted, over `forward(params, rest, key, *xs) -> (y, rest)`; rest is the layer's state."""
    import jax
    import jax.numpy as jnp

    @jax.jit
    def run(params: Any, xs: Any, rest: Any, key: Any, cotangent: Any) -> Any:
        if not case.backward:
            y, rest = forward(params, rest, key, *xs)
            return y, [], rest
        by = (params,) if case.integers else (params, xs)
        of = lambda params, xs=xs: forward(params, rest, key, *xs)  # noqa: E731
        y, pull, rest = jax.vjp(of, *by, has_aux=True)
        return y, [jax.tree.leaves(grad) for grad in pull(cotangent)], rest

    xs, key = arrays(case)[1], jax.random.key(0)
    xs = [jnp.asarray(channels_first(x) if first else x) for x in xs]
    y, _ = jax.eval_shape(forward, params, rest, key, *xs)
    given = jnp.asarray(cotangent(y.shape, first))
    return lambda: run(params, xs, rest, key, given)


def fnn(case: Case) -> Call:
    """net.apply in training mode"""
    import jax

    import fnn

    net = making(case, "fnn")(fnn, case.shapes[0][-1], case.n)
    weights, xs = arrays(case)
    _, state = net.init(jax.random.key(0), *xs)

    def forward(params: Any, state: Any, key: Any, *xs: Any) -> Any:
        return net.apply(params, state, *xs, key=key, train=True)

    return gradients(case, jax.tree.map(jax.numpy.asarray, weights), state, forward)


def floor(case: Case) -> Call:
    """by hand, in jax.numpy and jax.lax"""
    import jax

    make = making(case, "floor")

    def forward(params: Any, rest: Any, key: Any, *xs: Any) -> Any:
        return make(jax, params, key, *xs), rest

    return gradients(case, jax.tree.map(jax.numpy.asarray, arrays(case)[0]), {}, forward)


def linen(case: Case) -> Call:
    """flax.linen: apply, with the collections that a layer changes"""
    import flax.linen as nn
    import jax

    make = making(case, "linen")

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, *xs: Any) -> Any:
            return make(nn, case.shapes[0][-1], case.n)(*xs)

    weights, xs = arrays(case)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    rest = dict(Layer().init(keys, *xs))
    params = filled(weights, rest.pop("params", {}))

    def forward(params: Any, rest: Any, key: Any, *xs: Any) -> Any:
        variables, rngs = {"params": params, **rest}, {"dropout": key}
        return Layer().apply(variables, *xs, rngs=rngs, mutable=list(rest))

    return gradients(case, params, rest, forward)


def filled(weights: Any, params: Any, first: bool = False) -> Any:
    """A library's params with the shared weights in them."""
    import jax
    import jax.numpy as jnp

    def fill(path: Any, old: Any) -> Any:
        parts = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        return jnp.asarray(pick(weights, parts, first)).reshape(old.shape)

    return jax.tree_util.tree_map_with_path(fill, params)


def equinox(case: Case) -> Call:
    """equinox: vmap over examples, channels first"""
    import equinox as eqx
    import jax

    make, key = making(case, "equinox"), jax.random.key(0)

    def build() -> Any:
        made = make(eqx.nn, case.shapes[0][-1], case.n, key)
        return made if isinstance(made, tuple) else (made, None)

    (model, call), state = eqx.nn.make_with_state(build)()
    params, static = eqx.partition(model, eqx.is_inexact_array)
    params = filled(arrays(case)[0], params, first=True)

    def one(model: Any, state: Any, key: Any, *xs: Any) -> Any:
        if isinstance(model, eqx.nn.StatefulLayer):
            return model(*xs, state)
        return call(model, *xs) if call else model(*xs, key=key), state

    def forward(params: Any, state: Any, key: Any, *xs: Any) -> Any:
        keys, model = jax.random.split(key, xs[0].shape[0]), eqx.combine(params, static)
        axes = (None, None, 0, *[0] * len(xs))
        return jax.vmap(one, axes, (0, None), axis_name="batch")(model, state, keys, *xs)

    return gradients(case, params, state, forward, first=True)


def haiku(case: Case) -> Call:
    """haiku: hk.transform_with_state"""
    import haiku as hk
    import jax

    make = making(case, "haiku")
    net = hk.transform_with_state(lambda *xs: make(hk, case.shapes[0][-1], case.n)(*xs))
    weights, xs = arrays(case)
    if case.transposed:
        weights["kernel"] = weights["kernel"].swapaxes(-1, -2)
    params, rest = net.init(jax.random.key(0), *xs)
    return gradients(case, filled(weights, params), rest, net.apply)


def torch(case: Case) -> Call:
    """PyTorch, eager, images channels_last"""
    import torch

    place = torch_place()
    made = making(case, "torch")(torch.nn, case.shapes[0][-1], case.n)
    model, call = made if isinstance(made, tuple) else (made, lambda model, *xs: model(*xs))
    weights, xs = arrays(case)
    if case.transposed:
        weights["kernel"] = weights["kernel"][::-1, ::-1].swapaxes(-1, -2)
    params = dict(model.named_parameters())
    with torch.no_grad():
        for path, p in params.items():
            p.copy_(torch.tensor(pick(weights, path.split("."), True).copy()).reshape(p.shape))
    model = model.to(place).to(memory_format=torch.channels_last)

    def put(x: Any) -> Any:
        x = torch.tensor(x, device=place)
        return x.to(memory_format=torch.channels_last) if x.ndim == 4 else x

    xs = [put(channels_first(x)).requires_grad_(not case.integers) for x in xs]
    by = [list(params.values()), *([] if case.integers else [xs])]
    given = put(cotangent(call(model, *xs).shape, first=True))

    def run() -> Any:
        if not case.backward:
            with torch.no_grad():
                return call(model, *xs).detach(), []
        y = call(model, *xs)
        grads = torch.autograd.grad(y, [leaf for leaves in by for leaf in leaves], given)
        return y.detach(), [grads[: len(by[0])], grads[len(by[0]) :]][: len(by)]

    return run


def limit(case: Case) -> Call:
    """whichever takes longer: its products as one, or its arrays read or written once"""
    import jax
    import jax.numpy as jnp

    from fnn.analysis import count_flops

    call = fnn(case)
    moved = jax.tree.leaves((arrays(case), jax.eval_shape(call)))
    x = jnp.ones(sum(a.size for a in moved) // 2 + 1)  # half of them are read, half written
    rows = count_flops(call) // (2 * WIDE**2)
    a, b = jnp.ones((rows + 1, WIDE)), jnp.ones((WIDE, WIDE))
    move, multiply = jax.jit(lambda x: x + 1), jax.jit(jnp.matmul)
    calls = [lambda: move(x), lambda: multiply(a, b)]
    return max(calls, key=lambda call: min(seconds(call, 1) for _ in range(5)))


def pulled(run: Callable[..., Any]) -> Callable[..., Any]:
    """Of (*arguments, dy): y, and dy pulled back to each argument."""
    import jax

    def both(*arguments: Any) -> Any:
        *given, dy = arguments
        y, pull = jax.vjp(run, *given)
        return y, *pull(dy)

    return both


def norms(found: Any) -> list[float]:
    """Of each array, in its order."""
    import jax
    import numpy as np

    return [float(np.linalg.norm(np.asarray(x).ravel())) for x in jax.tree.leaves(found)]


def on_host(leaf: Any) -> Any:
    """What NumPy takes: PyTorch's tensors on a GPU it does not."""
    return leaf.cpu() if hasattr(leaf, "cpu") else leaf


def numbers(contender: Contender, case: Case) -> list[float]:
    """The norms of y and of each group of gradients, without dropout: masks cannot agree."""
    import numpy as np

    case = case if case.rate is None else replace(case, rate=0.0)
    y, grads, *_ = contender(case)()
    groups = [[np.asarray(on_host(leaf), "float64") for leaf in leaves] for leaves in ([y], *grads)]
    return [sum(float(np.square(leaf).sum()) for leaf in leaves) ** 0.5 for leaves in groups]
