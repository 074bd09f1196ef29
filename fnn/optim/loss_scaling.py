"""Loss scaling: gradients in float16 without underflow."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fnn.core import checks, errors
from fnn.core.dtypes import wide, widened
from fnn.core.origins import builder
from fnn.core.types import Scalar, Tree
from fnn.losses.means import scalar
from fnn.optim.arithmetic import as_dtype, divide
from fnn.optim.gradients import as_argnums, of_chosen, pair, separate
from fnn.optim.safety import all_finite


class LossScale(NamedTuple):
    """The factor of the loss, and how many finite steps in a row it has had.

    >>> loss_scale()
    LossScale(scale=Array(32768., dtype=float32), good_steps=Array(0, dtype=int32))
    """

    scale: jax.Array
    good_steps: jax.Array


@builder
def loss_scale(scale: Scalar = 2.0**15) -> LossScale:
    """The first `LossScale`.

    - `scale`: at least 1; a power of two multiplies exactly. 2^15 is the largest one in float16.

    >>> print(loss_scale(1024).scale)
    1024.0
    """
    checks.number("scale", scale, 1.0, float("inf"))
    return LossScale(as_dtype(scale, jnp.float32), jnp.zeros((), jnp.int32))


@builder
def scale_loss(
    fn: Callable, scale: Scalar, argnums: int | tuple[int, ...] = 0, has_aux: bool = False
) -> Callable:
    """Gradients of scale fn, divided by scale, so that nothing underflows in float16 on the way.

    Value and aux are those of fn. Grads are in float32 or wider whatever the params, since in
    float16 they would underflow after all. If scale is too large they are infinite or NaN: skip
    such steps with `skip_nonfinite`, and lower the scale with `adjust_loss_scale`.

    - `fn(params, ...)`: as in `jax.value_and_grad`.
    - `scale`: a number above 0, such as the `scale` of a `LossScale`.

    Micikevicius et al. (2018), section 3.2.

    >>> tiny, w = jnp.float16(2**-14), jnp.ones(1, jnp.float16)
    >>> def loss(w):
    ...     return tiny * (tiny * w).sum()
    >>> print(jax.grad(loss)(w), scale_loss(loss, 2.0**15)(w)[1])
    [0.] [3.7252903e-09]
    """
    checks.function("fn", fn, "params")
    checks.number("scale", scale, 0.0, float("inf"))

    def value_and_grad(*args, **kwargs):
        with errors.within("scale_loss"):
            chosen, rest = separate(argnums, args, kwargs)
        whole = scalar(of_chosen(fn, argnums), has_aux)

        def scaled(chosen, rest):
            out = whole(chosen, rest)
            value, *_ = pair(out, has_aux)
            value = jnp.asarray(value)
            return value.astype(wide(value.dtype)) * as_dtype(scale, wide(value.dtype)), out

        g, out = jax.grad(scaled, has_aux=True)(chosen, rest)
        grads = jax.tree.map(lambda a: divide(widened(a), as_dtype(scale, wide(a.dtype))), g)
        return out, as_argnums(argnums, grads)

    return value_and_grad


@errors.named
def adjust_loss_scale(
    state: LossScale, grads: Tree, *, period: Scalar = 2000, factor: Scalar = 2.0
) -> LossScale:
    """The scale for the next step, as large as the gradients allow.

    It is divided by `factor` if a gradient is not finite, but stays at least 1, and multiplied by
    it after `period` finite steps in a row, unless that would overflow.

    - `state`, `grads`: the `LossScale`, and the gradients that `scale_loss` gave with its scale.
    - `period`, `factor`: at least 1; the defaults are the usual ones.

    Micikevicius et al. (2018), section 3.2.

    >>> state = adjust_loss_scale(loss_scale(8), jnp.array([jnp.inf]))
    >>> print(state.scale)
    4.0
    """
    checks.number("period", period, 1, float("inf"))
    checks.number("factor", factor, 1.0, float("inf"))
    if not isinstance(state, LossScale):
        raise errors.InputError("a LossScale", errors.show(state), "take it from loss_scale()")
    checks.floating_leaves("grads", grads)
    finite = all_finite(grads)
    good = jnp.where(finite, state.good_steps + 1, 0)
    grow = good >= as_dtype(period, good.dtype)
    by = as_dtype(factor, state.scale.dtype)
    grown = jnp.where(jnp.isfinite(state.scale * by), state.scale * by, state.scale)
    kept = jnp.where(grow, grown, state.scale)
    scale = jnp.where(finite, kept, jnp.maximum(state.scale / by, 1))
    return LossScale(scale, jnp.where(grow, 0, good))
