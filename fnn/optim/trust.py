"""Methods that treat a leaf as a layer and use its norms: NovoGrad, LAMB and LARS."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fnn.core import checks
from fnn.core.dtypes import real_part
from fnn.core.lengths import add, as_length, at_least, length_of, scaled, times
from fnn.core.origins import builder
from fnn.core.types import Scalar, Schedule, Tree
from fnn.optim.adam import scale_by_adam
from fnn.optim.arithmetic import as_dtype, average, increment, over_root, square
from fnn.optim.decay import add_decayed_weights
from fnn.optim.masking import Mask, masked
from fnn.optim.sgd import trace
from fnn.optim.transform import (
    CountState,
    Transform,
    chain,
    each_leaf,
    leafwise,
    need_params,
    scale_by_learning_rate,
    stateless,
)


class NovogradState(NamedTuple):
    """The number of updates, the momentum, and one squared norm for each leaf."""

    count: jax.Array
    mu: Tree
    nu: Tree


@builder
def scale_by_novograd(
    b1: Scalar = 0.9,
    b2: Scalar = 0.25,
    eps: Scalar = 1e-8,
    weight_decay: Scalar | None = None,
) -> Transform:
    """The momentum of gradients over the running norm of their leaf.

        v_t = b2 v_{t-1} + (1 - b2) |g_t|^2                      v_1 = |g_1|^2
        m_t = b1 m_{t-1} + (g_t / (sqrt(v_t) + eps) + d p_t)     m_0 = 0
        u_t = m_t

    A leaf is a layer: splitting one changes the method, and stacks are for `stacked`.

    - `b1`: the weight of the old momentum, in [0, 1). The new part is not weighed down by 1 - b1.
    - `b2`: the weight of the old squared norm, in [0, 1).
    - `eps`: added to the norm.
    - `weight_decay`: d; None does without, and then `update` needs no params.

    Raises OptionError for numbers out of range, ParamsError for a decay without params. Ginsburg
    et al. (2019), algorithm 1.

    >>> tx = scale_by_novograd()
    >>> g = jnp.array([3.0, -4.0])
    >>> print(tx.update(g, tx.init(g))[0].round(3))
    [ 0.6 -0.8]
    """
    checks.number("b1", b1, 0.0, 1.0, open_high=True)
    checks.number("b2", b2, 0.0, 1.0, open_high=True)
    checks.number("eps", eps, 0.0, float("inf"))
    if weight_decay is not None:
        checks.number("weight_decay", weight_decay, 0.0, float("inf"))

    def start(p):
        return jnp.zeros_like(p), jnp.zeros((), real_part(p.dtype))

    def rule(t, p, g, m, v):
        new = jnp.sum(square(g))
        v = jnp.where(t == 1, new, average(b2, v, new))
        step = over_root(g, v, eps)
        if weight_decay is not None:
            need_params(p)
            step = step + as_dtype(weight_decay, g.dtype) * p
        m = as_dtype(b1, g.dtype) * m + step
        return m, m, v

    return leafwise(NovogradState, rule, start, whole=True)


@builder
def novograd(
    learning_rate: Scalar | Schedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.25,
    eps: Scalar = 1e-8,
    weight_decay: Scalar | None = None,
) -> Transform:
    """NovoGrad: p = p - learning_rate m, see `scale_by_novograd`.

    - `b1`, `b2`, `eps`, `weight_decay`: see `scale_by_novograd`; b1 and b2 are optax's defaults.

    >>> tx = novograd(1.0)
    >>> g = jnp.array([3.0, -4.0])
    >>> print(tx.update(g, tx.init(g))[0].round(3))
    [-0.6  0.8]
    """
    scaled = scale_by_novograd(b1, b2, eps, weight_decay)
    return chain(scaled, scale_by_learning_rate(learning_rate))


@builder
def scale_by_trust_ratio(
    min_norm: Scalar = 0.0,
    trust_coefficient: Scalar = 1.0,
    eps: Scalar = 0.0,
    weight_decay: Scalar = 0.0,
) -> Transform:
    """Updates with the norm of their leaf's params, times a coefficient.

        u = trust_coefficient |p| / (|g| + weight_decay |p| + eps) (g + weight_decay p)

    and u = g + weight_decay p where |p| is zero. A leaf is a layer: splitting a leaf changes the
    result. For layers stacked in one leaf, as by `repeat`, use `stacked`.

    - `min_norm`: the lower bound of both norms.
    - `trust_coefficient`: 1 as in LAMB; LARS has 0.001.
    - `eps`: added to the denominator.
    - `weight_decay`: LARS's, which takes the norms of gradient and decay separately. LAMB takes
      that of their sum: put `add_decayed_weights` before, and 0 here.

    You et al. (2017), algorithm 1; You et al. (2020), algorithm 2 with phi the identity.

    >>> tx = scale_by_trust_ratio()
    >>> p, g = jnp.array([6.0, 8.0]), jnp.array([0.0, 0.5])
    >>> print(tx.update(g, tx.init(p), p)[0])
    [ 0. 10.]
    """
    options = dict(
        min_norm=min_norm, trust_coefficient=trust_coefficient, eps=eps, weight_decay=weight_decay
    )
    for name, value in options.items():
        checks.number(name, value, 0.0, float("inf"))

    def rule(p, g):
        need_params(p)
        of_p, of_g = (at_least(length_of(x), min_norm) for x in (p, g))
        u = g + as_dtype(weight_decay, g.dtype) * p
        tiny = as_length(eps, real_part(g.dtype))
        below = add(add(of_g, times(weight_decay, of_p)), tiny)
        return jnp.where(of_p.root > 0, scaled(u, times(trust_coefficient, of_p), below), u)

    return stateless(rule, whole=True)


@builder
def lamb(
    learning_rate: Scalar | Schedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-6,
    weight_decay: Scalar | Schedule = 0.0,
    mask: Mask = None,
) -> Transform:
    """LAMB: AdamW whose step has, in each leaf, the norm of the params.

        r = mhat / (sqrt(vhat) + eps) + weight_decay p
        p = p - learning_rate |p| / |r| r

    - `learning_rate`: a number or a schedule f(count). It is the relative change of each leaf.
    - `b1`, `b2`, `eps`: see `scale_by_adam`.
    - `weight_decay`, `mask`: see `add_decayed_weights`. The paper trains BERT with 0.01.

    You et al. (2020), algorithm 2.

    >>> tx = lamb(0.01)
    >>> p = jnp.array([3.0, 4.0])
    >>> print(tx.update(jnp.array([0.0, 7.0]), tx.init(p), p)[0].round(4))
    [-0.   -0.05]
    """
    return chain(
        scale_by_adam(b1, b2, eps),
        add_decayed_weights(weight_decay, mask),
        scale_by_trust_ratio(),
        scale_by_learning_rate(learning_rate),
    )


@builder
def lars(
    learning_rate: Scalar | Schedule,
    weight_decay: Scalar = 0.0,
    trust_coefficient: Scalar = 0.001,
    eps: Scalar = 0.0,
    mask: Mask = None,
    momentum: Scalar = 0.9,
    nesterov: bool = False,
) -> Transform:
    """LARS: momentum of gradients scaled by the norm of their leaf's params.

        v = momentum v + learning_rate eta |p| / (|g| + weight_decay |p| + eps) (g + weight_decay p)
        p = p - v

    - `learning_rate`: a number or a schedule f(count). As in the paper, the
      velocity remembers the rate at which it was gathered.
    - `weight_decay`, `trust_coefficient` (eta), `eps`: see `scale_by_trust_ratio`.
    - `mask`: the leaves that are decayed and scaled, see `masked`; the others use the plain
      gradient, as is usual for biases and the scales of norm layers. None is all.
    - `momentum`, `nesterov`: see `trace`.

    You et al. (2017), algorithm 1.

    >>> tx = lars(1.0)
    >>> p = jnp.array([3.0, 4.0])
    >>> print(tx.update(jnp.array([40.0, 30.0]), tx.init(p), p)[0].round(4))
    [-0.004 -0.003]
    """
    scaled = scale_by_trust_ratio(
        trust_coefficient=trust_coefficient, eps=eps, weight_decay=weight_decay
    )
    return chain(
        scaled if mask is None else masked(scaled, mask),
        scale_by_learning_rate(learning_rate),
        trace(momentum, nesterov),
    )


@builder
def fromage(learning_rate: Scalar | Schedule, min_norm: Scalar = 1e-6) -> Transform:
    """Fromage: steps with the norm of their leaf's params, which keep that norm.

        p = (p - learning_rate |p| / |g| g) / sqrt(1 + learning_rate^2)

    - `learning_rate`: a number or a schedule f(count). It is the relative
      change of each leaf, and needs no other value for another architecture; the paper's is 0.01.
    - `min_norm`: the lower bound of both norms, so that zero params move.

    Bernstein et al. (2020), algorithm 1.

    >>> tx = fromage(0.75)
    >>> p = jnp.array([3.0, 4.0])
    >>> print(tx.update(jnp.array([4.0, -3.0]), tx.init(p), p)[0])  # from (3, 4) to (0, 5)
    [-3.  1.]
    """
    scaled = scale_by_trust_ratio(min_norm)
    schedule = learning_rate if callable(learning_rate) else None
    if schedule is None:
        checks.number("learning_rate", learning_rate, 0.0, float("inf"))

    def init(params):
        return CountState(jnp.zeros((), jnp.int32)) if schedule else ()

    def update(grads, opt_state, params=None, **extra):
        need_params(params)
        updates, _ = scaled.update(grads, (), params)
        value: Any = schedule(opt_state.count) if schedule else learning_rate

        def rule(p, g):
            rate = as_dtype(value, real_part(g.dtype))
            length = jnp.sqrt(1 + rate**2)
            shrink = rate**2 / (length * (1 + length))  # = 1 - 1 / length, which cancels
            return (-as_dtype(rate / length, g.dtype) * g - as_dtype(shrink, g.dtype) * p,)

        (updates,) = each_leaf(rule, updates, params)
        return updates, CountState(increment(opt_state.count)) if schedule else opt_state

    return Transform(init, update)
