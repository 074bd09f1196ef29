"""Time steps and positions as sines and cosines."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from fnn.core import checks, errors
from fnn.core.dtypes import is_floating, wide
from fnn.core.layer import Layer, leaf
from fnn.core.origins import builder
from fnn.core.shapes import of_rank
from fnn.core.types import Dtype, Scalar


@builder
def sinusoidal(
    features: int, *, base: Scalar = 10_000.0, interleaved: bool = True, dtype: Dtype = jnp.float32
) -> Layer:
    """A number as sines and cosines of many periods: [...] -> [..., features].

        y_2i = sin(x w_i),  y_{2i+1} = cos(x w_i),   w_i = base^(-2i / features)

    The positional encoding of Vaswani et al. (2017, section 3.5) where x are positions, and the
    time embedding of diffusion models (Ho, Jain & Abbeel, 2020) where x are time steps; two dense
    layers usually follow. Scale a time in [0, 1] first, by 1000 for example: periods go from 2 pi
    to 2 pi base. It has no params.

    - `features`: how many, even.
    - `base`: the longest period, over 2 pi. The code of DDPM divides i by features / 2 - 1 = h - 1:
      its frequencies are those of base = 10_000 ** (h / (h - 1)), not interleaved.
    - `interleaved`: False puts all sines before all cosines.
    - `dtype`: of y where x are integers; otherwise it is x's. Angles are in float32 or wider.

    Raises OptionError, and DtypeError for an x that is not numeric.

    >>> import jax.numpy as jnp, fnn
    >>> steps = jnp.array([0, 10, 999])
    >>> fnn.sinusoidal(64)({}, steps).shape
    (3, 64)
    """
    features = _even("features", checks.count("features", features))
    _check_base(base)
    dtype = checks.floating("dtype", dtype)

    def specs(x):
        checks.rank(x, 0, "[...]")
        if not (is_floating(x) or jnp.issubdtype(x.dtype, np.integer)):
            raise errors.DtypeError(
                "x of a floating or an integer dtype", f"x {errors.show(x)}", "cast it"
            )
        return {}, {}

    def apply(params, state, x, *, key, train):
        out = x.dtype if is_floating(x) else dtype
        return _waves(x.astype(wide(out)), features, base, interleaved).astype(out), state

    return leaf("sinusoidal", specs, apply)


@builder
def positional_encoding(*, base: Scalar = 10_000.0, interleaved: bool = True) -> Layer:
    """Add to each position its sines and cosines: y_t = x_t + sinusoidal(t): [..., T, C] -> same.

    Positions count from 0 (Vaswani et al., 2017, section 3.5). Where they do not, as in decoding
    step by step, add `fnn.sinusoidal(C)` of the positions; `fnn.attention(rotary=...)` rotates
    queries and keys instead, and `fnn.parameter((T, C))` is learned. It has no params.

    - `base`, `interleaved`: as in `fnn.sinusoidal`.

    Raises OptionError, and ShapeError for an odd C.

    >>> import jax, fnn
    >>> net = fnn.serial(fnn.embedding(50, 16), fnn.positional_encoding(), fnn.dense(50))
    >>> params, _ = net.init(jax.random.key(0), jax.numpy.zeros((2, 7), int))
    >>> sorted(params)
    ['dense1', 'embedding1']
    """
    _check_base(base)

    def specs(x):
        checks.array(x, 2, "[..., T, C]")
        if x.shape[-1] % 2:
            raise errors.ShapeError("an even last axis", f"x {x.shape}", "sines come with cosines")
        return {}, {}

    def apply(params, state, x, *, key, train):
        positions = jnp.arange(x.shape[-2]).astype(wide(x.dtype))
        waves = _waves(positions, x.shape[-1], base, interleaved)  # [T, C]
        return x + of_rank(waves.astype(x.dtype), x.ndim), state

    return leaf("positional_encoding", specs, apply)


def _waves(x: jax.Array, features: int, base: Scalar, interleaved: bool) -> jax.Array:
    """[...] -> [..., features]."""
    i = jnp.arange(features // 2).astype(x.dtype)
    speeds = jnp.asarray(base, x.dtype) ** (-2 * i / features)
    angles = x[..., None] * of_rank(speeds, x.ndim + 1)
    waves = jnp.sin(angles), jnp.cos(angles)
    if not interleaved:
        return jnp.concatenate(waves, axis=-1)
    return jnp.stack(waves, axis=-1).reshape(*x.shape, features)


def _even(name: str, size: int) -> int:
    if size % 2:
        raise errors.OptionError(f"{name} to be even", f"{size}", "sines come with cosines")
    return size


def _check_base(base: Scalar) -> None:
    checks.number("base", base, 0.0, math.inf, open_high=True)
