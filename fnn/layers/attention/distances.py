"""What attention adds to its scores by the distance between a query and a key."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from fnn.core import checks, errors
from fnn.core.declarations import Param
from fnn.core.layer import Layer, leaf
from fnn.core.origins import builder
from fnn.initializers import zeros


@builder
def alibi(heads: int) -> Layer:
    """Linear biases, y = -slope |d|, for `fnn.attention(distances=...)`: [...] -> [..., heads].

    The slopes of heads n = 1 ... N are 2^(-8 n / N) if N is a power of two. Otherwise they are
    those of the largest power of two below N, and every other one of twice as many (Press, Smith &
    Lewis, 2022). It has no params, and works at lengths that were not trained.

    - `heads`: N.

    Raises OptionError, and DtypeError for distances that are not integers.

    >>> import jax.numpy as jnp, fnn
    >>> print(fnn.alibi(2)({}, jnp.arange(3)))
    [[-0.         -0.        ]
     [-0.0625     -0.00390625]
     [-0.125      -0.0078125 ]]
    """
    slopes = _slopes(checks.count("heads", heads))

    def specs(distance):
        _check_integers(distance)
        return {}, {}

    def apply(params, state, distance, *, key, train):
        slope = jnp.asarray(slopes)  # float64 in x64, else float32
        rows = jnp.abs(distance)[..., None].astype(slope.dtype)
        return -rows * slope.reshape((1,) * distance.ndim + slope.shape), state

    return leaf("alibi", specs, apply)


def _slopes(n: int) -> np.ndarray:
    whole = 2 ** int(math.log2(n))
    slopes = 2.0 ** (-8 * np.arange(1, whole + 1) / whole)
    between = 2.0 ** (-4 * np.arange(1, 2 * whole + 1, 2) / whole)
    return np.concatenate([slopes, between[: n - whole]])


@builder
def relative_bias(
    heads: int, *, buckets: int = 32, max_distance: int = 128, causal: bool = False,
    bias_init=zeros,
) -> Layer:  # fmt: skip
    """A learned bias for each bucket of distances, for `fnn.attention(distances=...)`.

    [...] -> [..., heads]. Half of the buckets hold one distance each, from 0; the others grow by a
    constant factor up to `max_distance`, and the last one holds all beyond (Raffel et al., 2020,
    T5).

    - `heads`: how many biases a bucket has.
    - `buckets`: how many; without `causal`, half of them are for keys after the query.
    - `max_distance`: from where all distances are alike.
    - `causal`: all buckets are for keys at or before the query.
    - `bias_init`: an initializer.

    Params: `bias` [buckets, heads]. Raises OptionError, and DtypeError for distances that are not
    integers.

    >>> import jax, fnn
    >>> net = fnn.attention(16, 4, distances=fnn.relative_bias(4))
    >>> params, _ = net.init(jax.random.key(0), (2, 7, 16))
    >>> params["distances"]["bias"].shape
    (32, 4)
    """
    heads, side = checks.count("heads", heads), 1 if causal else 2
    buckets = checks.count("buckets", buckets, least=2 * side)
    if buckets % (2 * side):
        raise errors.OptionError(f"buckets divisible by {2 * side}", f"{buckets}", "change it")
    max_distance = checks.count("max_distance", max_distance, least=buckets // (2 * side) + 1)
    checks.initializer("bias_init", bias_init)

    def specs(distance):
        _check_integers(distance)
        shape = buckets, heads
        return {"bias": Param(shape, bias_init, kind="bias", axes=("bucket", "heads"))}, {}

    def apply(params, state, distance, *, key, train):
        bucket = _bucket(distance, buckets // side, max_distance, causal)
        return jnp.take(params["bias"], bucket, axis=0), state

    return leaf("relative_bias", specs, apply)


def _bucket(distance: jax.Array, buckets: int, max_distance: int, causal: bool) -> jax.Array:
    """The bucket of each distance t - s, with `buckets` on each side."""
    size = jnp.maximum(distance, 0) if causal else jnp.abs(distance)
    single = buckets // 2
    ratio = jnp.log(jnp.maximum(size, single).astype(jnp.float32) / single)
    beyond = ratio / math.log(max_distance / single) * (buckets - single)
    several = jnp.minimum(single + beyond.astype(jnp.int32), buckets - 1)
    bucket = jnp.where(size < single, size.astype(jnp.int32), several)
    return bucket if causal else bucket + jnp.where(distance < 0, buckets, 0)


def _check_integers(distance) -> None:
    checks.rank(distance, 0, "[...]", "distances")
    if not jnp.issubdtype(distance.dtype, np.integer):
        raise errors.DtypeError(
            "distances of integers", f"{errors.show(distance)}", "pass t - s, as integers"
        )
