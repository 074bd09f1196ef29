"""Low-rank adaptation."""

import math
from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp

from fnn.core import checks
from fnn.core.declarations import (
    Param,
    declared,
    output_axis,
    plain_specs,
    plain_values,
    takes_plain,
)
from fnn.core.layer import Layer, as_layer
from fnn.core.names import folded
from fnn.core.origins import builder
from fnn.core.params import draw as drawn_from
from fnn.core.types import Scalar
from fnn.initializers import normal
from fnn.layers.frozen import hold
from fnn.layers.reparam import (
    by_path,
    check_chosen,
    check_param_names,
    of_members,
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
    Each member of a stack has a change of its own. Over `fnn.stored` the base stays in few bits.

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
        own = by_path(declared(plain_specs(specs, takes_plain)))

        def sizes(param):
            features = param.shape[output_axis(param)]
            return math.prod(param.shape) // max(features, 1), features

        def plain(base):
            return plain_values(specs, base, takes_plain)

        def draw(tree, key, path=""):
            """The `a` of every chosen kernel, at its path."""
            drawn = {}
            for name, w in tree.items():
                inner_key, below = folded(key, name), f"{path}/{name}"
                if name in names and below in own:
                    param = own[below]
                    init, shape = normal(rank**-0.5), (sizes(param)[0], rank)
                    a = Param(shape, init, w.dtype, stack=param.stack)
                    drawn[name] = drawn_from(inner_key, a)
                elif isinstance(w, Mapping) and (inner := draw(w, inner_key, below)):
                    drawn[name] = inner
            return drawn

        def start(a, path=""):
            if isinstance(a, Mapping):
                return {name: start(a[name], f"{path}/{name}") for name in a}
            param = own[path]
            return jnp.zeros((*param.stack, rank, sizes(param)[1]), a.dtype)

        def encode(base, key):
            shapes = jax.eval_shape(plain, base)
            check_chosen(shapes, names)
            a = draw(shapes, key)
            return {"base": base, "a": a, "b": start(a)}

        def changed(w, a, b, axis):
            last = outputs_last(w, axis)
            scale = jnp.asarray(1 if alpha is None else alpha / rank, w.dtype)
            return w + jnp.moveaxis((a @ b * scale).reshape(last.shape), -1, axis)

        def adapted(w, a, b, path=""):
            if isinstance(a, Mapping):
                return {
                    k: adapted(v, a[k], b[k], f"{path}/{k}") if k in a else v for k, v in w.items()
                }
            change = partial(changed, axis=output_axis(own[path]))
            return of_members(change, own[path].stack)(w, a, b)

        def decode(params):
            return adapted(plain(params["base"]), params["a"], params["b"])

        return encode, decode

    axes = {"a": ("in", "rank"), "b": ("rank", "out")}
    over = over_params(as_layer(layer), functions, keyed=True, axes=axes)
    return hold(over, lambda path, kind: path == "base" or path.startswith("base/"))
