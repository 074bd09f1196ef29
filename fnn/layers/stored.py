"""Kernels kept in few bits."""

from functools import partial

from fnn.core.declarations import Param, output_axis
from fnn.core.layer import Layer
from fnn.core.origins import builder
from fnn.core.types import Dtype
from fnn.layers.reparam import over_named
from fnn.layers.rounding import checked_group_size, decode, encode, number_format


@builder
def stored(
    layer: Layer,
    dtype: Dtype,
    names: tuple[str, ...] = ("kernel",),
    *,
    group_size: int | None = None,
) -> Layer:
    """Keep weights as integers or narrow floats, and compute with w = scale * values.

        scale_o = max |w[..., o]| / m,   values = round(w / scale)

    Post-training quantization, symmetric and per output feature (Jacob et al., 2018), with m = 127
    for int8, 7 for int4, 448 for float8_e4m3fn and 57344 for float8_e5m2; bfloat16 and float16 have
    scale 1. Each weight becomes `{"values", "scale"}`. Values of int4 are packed two to a byte, a
    uint8 [..., ceil(in / 2), out]. A scale has the dtype of the weights, and axes like theirs:
    [1, out], or [groups, out].

    To store trained params, `fnn.unmerge` them, after `fnn.clipped` if there is data, or train with
    `fnn.quantize`, whose params lose nothing more here; `fnn.merge` gives the rounded ones back.
    Values are not for training: freeze them, as `fnn.frozen(net, kinds=("kernel",))`, or adapt
    them, as `fnn.lora(net, rank)`, which freezes all of the net (QLoRA; Dettmers et al., 2023).

    - `dtype`: `jnp.int8`, `jnp.int4`, `jnp.float8_e4m3fn`, `jnp.float8_e5m2`, `jnp.bfloat16` or
      `jnp.float16`.
    - `names`: which params, by their own name.
    - `group_size`: gives each block of so many input features a scale of its own, the last block
      being smaller if need be; None is one for all.

    A weight that is NaN or infinite makes all that share its scale so. In a network built by
    `repeat`, store the layer that is repeated, as in `repeat(stored(block, dtype), n)`, so that one
    member's weights at a time are computed. A weight may also be given as it is, in place of its
    two parts. Raises OptionError for another dtype, DtypeError for weights that are not floating.

    >>> import jax, jax.numpy as jnp, fnn
    >>> plain, net = fnn.dense(2, use_bias=False), stored(fnn.dense(2, use_bias=False), jnp.int8)
    >>> params, _ = fnn.unmerge(net, {"kernel": jnp.array([[254.0, 3.0], [2.6, 0.0]])}, {}, (1, 2))
    >>> print(params["kernel"]["values"], net(params, jnp.eye(2)), sep="\\n")
    [[127 127]
     [  1   0]]
    [[254.   3.]
     [  2.   0.]]
    """
    how = {"name": number_format(dtype), "group_size": checked_group_size(group_size)}

    def axes(param: Param) -> dict:
        """A scale's groups are no input features: no rule for these is to cut them."""
        if param.axes is None:
            return {}
        out = output_axis(param)
        return {"scale": tuple(a if i == out else "group" for i, a in enumerate(param.axes))}

    return over_named(
        layer, names, partial(encode, **how), partial(decode, **how), axes, plain=True
    )
