"""Layers that only rearrange values."""

import math

from fnn.core import checks, errors
from fnn.core.layer import Layer, leaf
from fnn.core.origins import builder


@builder
def flatten(feature_axes: int) -> Layer:
    """Join the axes of one example in row-major order: [..., H, W, C] -> [..., H * W * C].

    `feature_axes`, 3 here, counts them. It is needed because the number of leading axes is open:
    one example and a batch of them both keep theirs. `fnn.reshape` gives another shape.
    Raises ShapeError for an input with fewer axes.

    >>> import jax.numpy as jnp, fnn
    >>> fnn.flatten(3)({}, jnp.ones((2, 4, 4, 3))).shape
    (2, 48)
    """
    n = checks.count("feature_axes", feature_axes)

    def specs(x):
        checks.rank(x, n, f"with the {n} axes to be joined")
        return {}, {}

    def apply(params, state, x, *, key, train):
        lead, joined = x.shape[: x.ndim - n], x.shape[x.ndim - n :]
        return x.reshape(*lead, math.prod(joined)), state

    return leaf("flatten", specs, apply)


@builder
def reshape(shape: tuple[int, ...], feature_axes: int = 1) -> Layer:
    """Give the axes of one example another shape, in row-major order: [..., C] -> [..., *shape].

    - `shape`: the new shape, such as (7, 7, 64) for a vector of 3136 values; -1, at most once, is
      the size that is left. () removes an axis of one value.
    - `feature_axes`: how many trailing axes are reshaped, 1 for vectors, 3 for images. It is needed
      because the number of leading axes is open.

    `flatten(n)` is `reshape((-1,), n)`. Raises OptionError for another shape, ShapeError for an
    input with fewer axes or another number of values.

    >>> import jax.numpy as jnp, fnn
    >>> fnn.reshape((2, -1, 3))({}, jnp.ones((5, 24))).shape
    (5, 2, 4, 3)
    >>> fnn.reshape((2, 6), feature_axes=2)({}, jnp.ones((5, 3, 4))).shape
    (5, 2, 6)
    """
    n = checks.count("feature_axes", feature_axes)
    if not isinstance(shape, (tuple, list)):
        raise errors.OptionError(
            "shape to be a tuple of ints", errors.show(shape), "write (-1,) for one axis of all"
        )
    sizes = tuple(checks.count("a size of shape", size, least=-1) for size in shape)
    if sizes.count(-1) > 1 or -1 in sizes and 0 in sizes:
        raise errors.OptionError(
            "shape with one -1, and none beside a 0", errors.show(shape), "give the other sizes"
        )
    known = math.prod(size for size in sizes if size != -1)

    def specs(x):
        checks.rank(x, n, f"with the {n} axes to be reshaped")
        last = tuple(x.shape[len(x.shape) - n :])
        rest = math.prod(last) % known if -1 in sizes else math.prod(last) - known
        if rest:
            raise errors.ShapeError(
                f"the last {n} axes to hold {known}{' k' * (-1 in sizes)} values, for {sizes}",
                f"x {x.shape}, which has {last}",
                "change shape, or feature_axes, how many axes are reshaped",
            )
        return {}, {}

    def apply(params, state, x, *, key, train):
        size = math.prod(x.shape[x.ndim - n :])
        filled = tuple(size // known if s == -1 else s for s in sizes)
        return x.reshape((*x.shape[: x.ndim - n], *filled)), state

    return leaf("reshape", specs, apply)
