"""Kernels clipped before they are rounded, so that a layer's outputs change least."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fnn.core import errors, trees
from fnn.core.declarations import Param, arrays_of, declared, output_axis
from fnn.core.dtypes import widened
from fnn.core.inputs import by_position
from fnn.core.layer import Layer, as_layer, inputs_of
from fnn.core.shapes import as_array
from fnn.core.types import Dtype, Tree
from fnn.layers.reparam import along_axis, by_path, check_chosen, check_param_names, of_members
from fnn.layers.rounding import checked_group_size, largest_of, number_format, rounded, spread
from fnn.layers.tap import collected, watched, with_room

RATIOS = np.linspace(1.0, 0.5, 26, dtype=np.float32)  # the first clips nothing


@errors.named
def clipped(
    net: Layer,
    params: Tree,
    state: Tree,
    *xs: Any,
    dtype: Dtype,
    names: tuple[str, ...] = ("kernel",),
    group_size: int | None = None,
    **inputs: Any,
) -> Tree:
    """Params whose largest weights are clipped, so that rounding them costs the outputs least.

        w' = clip(w, -r_o max |w[..., o]|, r_o max |w[..., o]|),
        r_o = argmin over r in 0.5 ... 1 of sum (layer(round(w'), x) - layer(w, x))_o^2

    Fewer weights at the ends of its range give a scale smaller steps. The ratio of each output
    feature (one for a kernel, if the layer's outputs are not its features) is searched on the
    inputs that each layer has in this call, all layers being unrounded; no layer gets worse on
    these (the clipping of AWQ; Lin et al., 2024, arXiv:2306.00978; on the best ratio, OCTAV; Sakr
    et al., 2022, arXiv:2206.06501).

        params = fnn.clipped(net, params, state, x, dtype=jnp.int4)
        params, state = fnn.unmerge(fnn.stored(net, jnp.int4), params, state, x)

    - `net`, `params`, `state`: of the plain network.
    - `xs`: a batch like those that the network will see.
    - `dtype`, `names`, `group_size`: as in `fnn.stored`. All groups of a feature have its ratio.

    Of a layer that is called many times, the inputs of the last call count. Raises OptionError for
    params that no layer without sublayers has, ParamsError for those of another network.

    >>> import fnn
    >>> net, x = fnn.dense(1, use_bias=False), jnp.eye(3)[:2]  # the third weight is never used
    >>> params = {"kernel": jnp.array([[0.6], [-0.5], [1.0]])}
    >>> print(clipped(net, params, {}, x, dtype=jnp.int4)["kernel"][:, 0])
    [ 0.6 -0.5  0.7]
    """
    check_param_names(names)
    how = {"name": number_format(dtype), "group_size": checked_group_size(group_size)}
    net, state = as_layer(net), {} if state is None else state
    xs = tuple(jax.tree.map(as_array, by_position(inputs_of(net), xs, inputs)))
    specs = net.specs(*xs)
    trees.check_same("params", params, arrays_of(specs[0]))
    check_chosen(params, names)
    chosen = {
        path[1:]: param
        for path, param in by_path(declared(specs[0])).items()
        if path.split("/")[-1] in names
    }
    owners = {path.rpartition("/")[0] for path in chosen}
    layers, calls = _calls(net, owners, params, state, xs)
    ratios = {}
    for path, param in chosen.items():
        owner, _, name = path.rpartition("/")
        if owner not in calls:
            mend = "leave it out of names"
            raise errors.OptionError("params of layers without sublayers", path, mend)
        outer, call = calls[owner]
        inner = replace(param, stack=param.stack[len(outer) :])  # of the layer itself
        search = of_members(partial(_search, layers[owner], name, inner, how), outer)
        ratios[path] = jax.jit(search)(call)

    def clip(keys, w):
        path = errors.path_of(keys)
        if path not in chosen:
            return w
        one = partial(_clip, param=chosen[path], group_size=how["group_size"])
        return of_members(one, chosen[path].stack)(w, ratios[path])

    return jax.tree_util.tree_map_with_path(clip, params)


def _calls(net: Layer, owners: set, params: Tree, state: Tree, xs: tuple) -> tuple[dict, dict]:
    """The layers at some paths, and of each its stack and (params, state, inputs) of a call."""
    layers = {}

    def watch(path, layer):
        if path not in owners or layer.children:
            return layer
        layers[path] = layer
        return watched(layer, lambda params, state, xs, y: (params, state, xs))

    seeing = net.map(watch)

    @jax.jit
    def run(params, state, xs):
        before = with_room(state, seeing.specs(*xs)[1], "state")
        return dict(collected(seeing.apply(params, before, *xs)[1]))

    declarations = dict(collected(seeing.specs(*xs)[1]))
    outer = {path: jax.tree.leaves(of)[0].stack for path, of in declarations.items()}
    return layers, {path: (outer[path], call) for path, call in run(params, state, xs).items()}


def _search(layer: Layer, name: str, param: Param, how: dict, call: tuple) -> jax.Array:
    """The best ratio of each output feature of a param, in a call of its layer, for all members."""
    params, state, xs = call
    w, features = params[name], param.shape[output_axis(param)]
    wanted = layer(params, *xs, state=state)

    def near_of(w, ratio):
        return rounded(_clip(w, ratio, param, how["group_size"]), param, **how)

    def for_members(ratio):
        return jnp.broadcast_to(ratio, (*param.stack, features))

    def wrong(ratio):
        near = of_members(near_of, param.stack)(w, for_members(ratio))
        y = layer({**params, name: near}, *xs, state=state)
        apart = jax.tree.map(lambda a, b: jnp.square(widened(a) - widened(b)), y, wanted)
        if isinstance(y, jax.Array) and y.shape[-1:] == (features,):
            return apart.reshape(-1, features).sum(0)
        return jnp.full(features, sum(jnp.sum(a) for a in jax.tree.leaves(apart)))

    each = jax.lax.map(lambda r: wrong(jnp.full(features, r)), jnp.asarray(RATIOS))
    best = jnp.asarray(RATIOS)[jnp.argmin(each, axis=0)]
    better = jnp.sum(wrong(best)) < jnp.sum(each[0])
    return for_members(jnp.where(better, best, jnp.ones_like(best)))


def _clip(w: jax.Array, ratio: jax.Array, param: Param, group_size: int | None) -> jax.Array:
    """w between the ends that a ratio of its largest magnitude leaves: [features] ratios."""
    limit = spread(largest_of(w, param, group_size), param, group_size)
    limit = limit * along_axis(ratio.astype(limit.dtype), output_axis(param), w.ndim)
    return jnp.clip(w, -limit.astype(w.dtype), limit.astype(w.dtype))
