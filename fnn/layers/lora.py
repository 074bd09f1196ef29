"""Low-rank adaptation."""

import math
from collections.abc import Mapping

import jax.numpy as jnp

from fnn.core import checks
from fnn.core.layer import Layer, as_layer
from fnn.core.names import folded
from fnn.core.origins import builder
from fnn.core.types import Scalar
from fnn.initializers import normal
from fnn.layers.frozen import hold
from fnn.layers.reparam import (
    check_chosen,
    check_param_names,
    output_axes,
    outputs_last,
    over_params,
)


@builder
def lora(
    layer: Layer, rank: int, names: tuple[str, ...] = ("kernel",), *, alpha: Scalar | None = None
) -> Layer:
    """Low-rank adaptation: w = w0 + (alpha / rank) a b, with w0 frozen (Hu et al., 2022).

    Params become `{"a", "b"}`: `a` [everything else, rank] and `b` [rank, features], at the paths
    of the adapted kernels. The layer's own params are frozen: the state holds them as `base` (see
    `fnn.frozen`), without gradients, moments or updates. At first b is zero, so the layer starts as
    base. To adapt trained params, `fnn.unmerge` them; `fnn.merge` adds the learned change to them.

    - `rank`: of the change.
    - `names`: which params are adapted, by their own name.
    - `alpha`: scales the change; None is `rank`, so that it is not scaled.

    >>> import jax, jax.numpy as jnp, fnn
    >>> net = lora(fnn.dense(8), 2)
    >>> params, state = net.init(jax.random.key(0), (1, 4))
    >>> jax.tree.map(jnp.shape, params)
    {'a': {'kernel': (4, 2)}, 'b': {'kernel': (2, 8)}}
    >>> jax.tree.map(jnp.shape, state)
    {'(frozen)': {'base': {'bias': (8,), 'kernel': (4, 8)}}}
    """
    rank = checks.count("rank", rank)
    check_param_names(names)
    if alpha is not None:
        checks.number("alpha", alpha, -math.inf, math.inf)

    def functions(specs):
        outputs = output_axes(specs)

        def sizes(w, path):
            features = w.shape[outputs[path]]
            return w.size // max(features, 1), features

        def draw(tree, key, path=""):
            """The `a` of every chosen kernel, at its path."""
            drawn = {}
            for name, w in tree.items():
                own, below = folded(key, name), f"{path}/{name}"
                if name in names:
                    shape = (sizes(w, below)[0], rank)
                    drawn[name] = normal(rank**-0.5)(own, shape, w.dtype)
                elif isinstance(w, Mapping) and (inner := draw(w, own, below)):
                    drawn[name] = inner
            return drawn

        def start(a, w, path=""):
            if isinstance(a, Mapping):
                return {name: start(a[name], w[name], f"{path}/{name}") for name in a}
            return jnp.zeros((rank, sizes(w, path)[1]), w.dtype)

        def encode(params, key):
            check_chosen(params, names)
            a = draw(params, key)
            return {"base": params, "a": a, "b": start(a, params)}

        def adapted(w, a, b, path=""):
            if isinstance(a, Mapping):
                return {
                    k: adapted(v, a[k], b[k], f"{path}/{k}") if k in a else v for k, v in w.items()
                }
            last = outputs_last(w, outputs[path])
            scale = jnp.asarray(1 if alpha is None else alpha / rank, w.dtype)
            return w + jnp.moveaxis((a @ b * scale).reshape(last.shape), -1, outputs[path])

        def decode(params):
            return adapted(params["base"], params["a"], params["b"])

        return encode, decode

    axes = {"a": ("in", "rank"), "b": ("rank", "out")}
    over = over_params(as_layer(layer), functions, keyed=True, axes=axes)
    return hold(over, lambda path, kind: path == "base" or path.startswith("base/"))
