"""Methods that divide by the size of past gradients: RMSprop, Adagrad and Adadelta."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fnn.core import checks, errors
from fnn.core.origins import builder
from fnn.core.types import Scalar, Schedule, Tree
from fnn.optim.arithmetic import as_dtype, average, divide, sizes_like, sqrt, square
from fnn.optim.sgd import trace
from fnn.optim.transform import Transform, chain, leafwise, scale_by_learning_rate


class RmsState(NamedTuple):
    """The average of squared gradients, float32 or wider."""

    nu: Tree


class StddevState(NamedTuple):
    """The average of gradients and their variance about it, float32 or wider."""

    mu: Tree
    nu: Tree


class RssState(NamedTuple):
    """The sum of squared gradients, float32 or wider."""

    sum_of_squares: Tree


class AdadeltaState(NamedTuple):
    """The averages of squared gradients and of squared steps, float32 or wider."""

    e_g: Tree
    e_x: Tree


# --- RMSprop


@builder
def scale_by_rms(
    decay: Scalar = 0.9, eps: Scalar = 1e-8, initial_scale: Scalar = 0.0, eps_in_sqrt: bool = True
) -> Transform:
    """The gradient over the root of the average of its squares.

        n_t = decay n_{t-1} + (1 - decay) g_t^2
        u_t = g_t / sqrt(n_t + eps)        or, with eps_in_sqrt=False, g_t / (sqrt(n_t) + eps)

    - `decay`: the weight of the old average, in [0, 1).
    - `eps`: keeps the steps of small gradients small; in the root, of those below sqrt(eps).
    - `initial_scale`: n_0.
    - `eps_in_sqrt`: optax and TensorFlow add eps in the root, PyTorch and Keras to the root.

    With bias correction, this is `scale_by_adam(b1=0, b2=decay)`. Raises OptionError for
    numbers out of range. Tieleman & Hinton (2012), lecture 6.5.

    >>> tx = scale_by_rms(decay=0.75)
    >>> g = jnp.array([3.0, -0.1])
    >>> print(tx.update(g, tx.init(g))[0].round(2))
    [ 2. -2.]
    """
    checks.number("decay", decay, 0.0, 1.0, open_high=True)
    checks.number("eps", eps, 0.0, float("inf"))
    checks.number("initial_scale", initial_scale, 0.0, float("inf"))

    def start(p):
        return (_filled(p, initial_scale),)

    def rule(t, p, g, n):
        n = average(decay, n, square(g))
        return divide(g, _root(n, eps, eps_in_sqrt)), n

    return leafwise(RmsState, rule, start)


@builder
def scale_by_stddev(
    decay: Scalar = 0.9, eps: Scalar = 1e-8, initial_scale: Scalar = 0.0, eps_in_sqrt: bool = True
) -> Transform:
    """The gradient over its standard deviation: `scale_by_rms`, centred.

        n_t = decay n_{t-1} + (1 - decay) g_t^2
        m_t = decay m_{t-1} + (1 - decay) g_t
        u_t = g_t / sqrt(n_t - m_t^2 + eps)

    Arguments as in `scale_by_rms`. The state holds v = n - m^2 itself, by the recursion

        v_t = decay (v_{t-1} + (1 - decay) (g_t - m_{t-1})^2),

    since the difference cancels where gradients repeat: it may be negative, and its root NaN.
    Graves (2013), section 4.2.

    >>> tx = scale_by_stddev(decay=0.5)
    >>> g = jnp.array([3.0, -0.1])
    >>> print(tx.update(g, tx.init(g))[0].round(2))
    [ 2. -2.]
    """
    checks.number("decay", decay, 0.0, 1.0, open_high=True)
    checks.number("eps", eps, 0.0, float("inf"))
    checks.number("initial_scale", initial_scale, 0.0, float("inf"))

    def start(p):
        return jnp.zeros_like(p), _filled(p, initial_scale)

    def rule(t, p, g, m, v):
        d = as_dtype(decay, v.dtype)
        v = d * (v + (1 - d) * square(g - m))
        m = average(decay, m, g)
        return divide(g, _root(v, eps, eps_in_sqrt)), m, v

    return leafwise(StddevState, rule, start)


@builder
def rmsprop(
    learning_rate: Scalar | Schedule,
    decay: Scalar = 0.9,
    eps: Scalar = 1e-8,
    initial_scale: Scalar = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: Scalar | None = None,
    nesterov: bool = False,
) -> Transform:
    """RMSprop: p = p - learning_rate g / sqrt(n + eps), or along the momentum of that.

    - `learning_rate`: a number or a schedule f(count). It scales the velocity, which does not
      remember old rates, as in `sgd`.
    - `decay`, `eps`, `initial_scale`, `eps_in_sqrt`: see `scale_by_rms`. The defaults are optax's;
      `eps_in_sqrt=False` and `decay=0.99` are PyTorch's.
    - `centered`: divide by the standard deviation, see `scale_by_stddev`.
    - `momentum`, `nesterov`: the decay of `trace` and its option; None keeps no velocity.

    Raises OptionError for Nesterov's momentum without a momentum.

    >>> tx = rmsprop(0.1, decay=0.75)
    >>> g = jnp.array([3.0])
    >>> print(tx.update(g, tx.init(g))[0].round(3))
    [-0.2]
    """
    if momentum is None and nesterov:
        raise errors.OptionError("a momentum for nesterov", "momentum=None", "pass momentum=0.9")
    scale = scale_by_stddev if centered else scale_by_rms
    velocity = () if momentum is None else (trace(momentum, nesterov),)
    scaled = scale(decay, eps, initial_scale, eps_in_sqrt)
    return chain(scaled, *velocity, scale_by_learning_rate(learning_rate))


# --- Adagrad


@builder
def scale_by_rss(
    initial_accumulator_value: Scalar = 0.1, eps: Scalar = 1e-7, eps_in_sqrt: bool = True
) -> Transform:
    """The gradient over the root of the sum of all its squares.

        s_t = s_{t-1} + g_t^2
        u_t = g_t / sqrt(s_t + eps)        or, not eps_in_sqrt, g_t / (sqrt(s_t) + eps)

    - `initial_accumulator_value`: s_0; without it, the first step is g / |g| however small g is.
    - `eps`: keeps the step for small gradients small. With s_0 = 0 and eps = 0, the method does not
      see the gradients' scale.
    - `eps_in_sqrt`: optax and Keras add eps in the root, the paper and PyTorch beside it.

    Duchi et al. (2011), figure 1, with the diagonal matrix.

    >>> tx = scale_by_rss(initial_accumulator_value=0.0)
    >>> g = jnp.array([3.0, -4.0])
    >>> first, state = tx.update(g, tx.init(g))
    >>> print(first.round(2), tx.update(g, state)[0].round(2))
    [ 1. -1.] [ 0.71 -0.71]
    """
    checks.number("initial_accumulator_value", initial_accumulator_value, 0.0, float("inf"))
    checks.number("eps", eps, 0.0, float("inf"))

    def start(p):
        return (_filled(p, initial_accumulator_value),)

    def rule(t, p, g, s):
        s = s + square(g)
        return divide(g, _root(s, eps, eps_in_sqrt)), s

    return leafwise(RssState, rule, start)


@builder
def adagrad(
    learning_rate: Scalar | Schedule,
    initial_accumulator_value: Scalar = 0.1,
    eps: Scalar = 1e-7,
    eps_in_sqrt: bool = True,
) -> Transform:
    """Adagrad: p = p - learning_rate g / sqrt(s + eps), see `scale_by_rss`.

    - `initial_accumulator_value`, `eps`, `eps_in_sqrt`: of the sum; the defaults are the field's.
      PyTorch has 0, 1e-10 and False.

    >>> tx = adagrad(0.1, initial_accumulator_value=0.0)
    >>> g = jnp.array([3.0])
    >>> print(tx.update(g, tx.init(g))[0].round(3))
    [-0.1]
    """
    scaled = scale_by_rss(initial_accumulator_value, eps, eps_in_sqrt)
    return chain(scaled, scale_by_learning_rate(learning_rate))


# --- Adadelta


@builder
def scale_by_adadelta(rho: Scalar = 0.9, eps: Scalar = 1e-6) -> Transform:
    """The gradient over its root mean square, times that of the steps before it.

        e_t = rho e_{t-1} + (1 - rho) g_t^2
        u_t = sqrt(x_{t-1} + eps) / sqrt(e_t + eps) g_t
        x_t = rho x_{t-1} + (1 - rho) u_t^2

    - `rho`: the weight of the old averages, in [0, 1).
    - `eps`: starts the steps, of which there are none before the first: sqrt(eps) is their first
      size, so that zero never moves.

    Zeiler (2012), algorithm 1.

    >>> tx = scale_by_adadelta(rho=0.75, eps=0.01)
    >>> g = jnp.array([30.0])
    >>> print(tx.update(g, tx.init(g))[0].round(3))
    [0.2]
    """
    checks.number("rho", rho, 0.0, 1.0, open_high=True)
    checks.number("eps", eps, 0.0, float("inf"))

    def rule(t, p, g, e, x):
        tiny = as_dtype(eps, e.dtype)
        e = average(rho, e, square(g))
        u = as_dtype(divide(sqrt(x + tiny), sqrt(e + tiny)), g.dtype) * g
        return u, e, average(rho, x, square(u))

    return leafwise(AdadeltaState, rule, lambda p: (sizes_like(p), sizes_like(p)))


@builder
def adadelta(
    learning_rate: Scalar | Schedule = 1.0, rho: Scalar = 0.9, eps: Scalar = 1e-6
) -> Transform:
    """Adadelta: p = p - learning_rate RMS(past steps) / RMS(g) g, see `scale_by_adadelta`.

    - `learning_rate`: a number or a schedule f(count). The paper has none, which is 1.
    - `rho`, `eps`: of the averages; the defaults are the field's. The paper has rho = 0.95.

    >>> tx = adadelta(rho=0.75, eps=0.01)
    >>> g = jnp.array([30.0])
    >>> print(tx.update(g, tx.init(g))[0].round(3))
    [-0.2]
    """
    return chain(scale_by_adadelta(rho, eps), scale_by_learning_rate(learning_rate))


def _filled(p: jax.Array, value: Scalar) -> jax.Array:
    zeros = sizes_like(p)
    return zeros + as_dtype(value, zeros.dtype)


def _root(x: jax.Array, eps: Scalar, eps_in_sqrt: bool) -> jax.Array:
    eps = as_dtype(eps, x.dtype)
    return sqrt(x + eps) if eps_in_sqrt else sqrt(x) + eps
