"""A linear recurrence, which can be computed for all times at once."""

import math

import jax
import jax.core
import jax.numpy as jnp

from fnn.core import checks, errors
from fnn.core.declarations import Derived, Param
from fnn.core.dtypes import wide
from fnn.core.layer import Layer, leaf
from fnn.core.origins import builder
from fnn.core.shapes import as_dtype, of_rank
from fnn.initializers import uniform, variance_scaling
from fnn.layers.recurrent.cells.cell import check_carry
from fnn.layers.recurrent.time_axis import boundaries, check_time, time_of


@builder
def lru(
    features: int,
    hidden: int | None = None,
    *,
    r_min: float = 0.9,
    r_max: float = 0.999,
    max_phase: float = 2 * math.pi,
    reverse: bool = False,
    return_sequence: bool = True,
    return_carry: bool = False,
) -> Layer:
    """A linear recurrent unit, parallel in time: [..., T, C] -> [..., T, features].

        h_t = lambda h_{t-1} + exp(log_gamma) (x_t B)          h complex [..., hidden]
        y_t = Re(h_t C) + x_t D,     lambda = exp(-exp(log_nu) + i exp(log_theta))

    Without a nonlinearity in time, h is computed by `jax.lax.associative_scan` in log2(T) steps
    (Orvieto et al., 2023, equation 6). Dense layers, norms and nonlinearities go between such
    layers. Called like `fnn.rnn`: `net(params, x, mask, carry, resets, lengths)`.

    - `features`: of y. `hidden`: N, the size of h; None is `features`.
    - `r_min`, `r_max`: |lambda| is drawn between them, uniformly over the ring's area; nearer to 1
      remembers longer, for 1 / (1 - |lambda|) steps.
    - `max_phase`: the angle of lambda is drawn from 0 to it; small for very long sequences.
    - `reverse`, `return_sequence`, `return_carry`: as in `fnn.rnn`; the carry is (Re h, Im h).

    It is computed in float32 or wider. Params: `rates` (`log_nu`, `log_theta`, `log_gamma` [N]),
    `b_re`, `b_im` [C, N], `c_re`, `c_im` [N, features], `d` [C, features], of x's dtype.
    Raises as `fnn.rnn`.

    >>> import jax, jax.numpy as jnp, fnn
    >>> net = lru(3, 8)
    >>> params, _ = net.init(jax.random.key(0), (1, 5, 4))
    >>> net(params, jnp.ones((2, 5, 4))).shape
    (2, 5, 3)
    """
    features = checks.count("features", features)
    hidden = features if hidden is None else checks.count("hidden", hidden)
    checks.number("r_min", r_min, 0.0, 1.0, open_high=True)
    checks.number("r_max", r_max, 0.0, 1.0, open_high=True)
    known = not any(isinstance(r, jax.core.Tracer) for r in (r_min, r_max))
    if known and not r_min < r_max:
        raise errors.OptionError("r_min below r_max", f"{r_min} and {r_max}", "swap them")
    checks.number("max_phase", max_phase, 0.0, math.inf, open_high=True)

    def rates(drawn):
        """The logarithms of equation 8, from uniform draws of the ring's area and the angle."""
        radius, angle = drawn
        square = r_min**2 + radius * (r_max**2 - r_min**2)
        nu = -jnp.log(jnp.maximum(square, jnp.finfo(angle.dtype).tiny)) / 2
        theta = jnp.maximum(max_phase * angle, jnp.finfo(angle.dtype).tiny)
        gamma = jnp.sqrt(-jnp.expm1(-2 * nu))  # sqrt(1 - |lambda|^2)
        return {name: jnp.log(v) for name, v in zip(_RATES, (nu, theta, gamma), strict=True)}

    def specs(x, mask=None, carry=None, resets=None, lengths=None):
        checks.array(x, 2, "[..., T, C]")
        lead, _ = check_time(x, mask, resets, lengths, 1)
        if carry is not None:
            part = jax.ShapeDtypeStruct((*lead, hidden), x.dtype)
            check_carry(carry, (part, part))
        dtype, c = x.dtype, x.shape[-1]
        ring = Param((2, hidden), uniform(1.0), dtype, "rate")

        def weights(n, m, *axes, scale=1.0):
            return Param((n, m), variance_scaling(scale), dtype, "kernel", axes)

        return {
            "rates": Derived(rates, ring, axes=("hidden",)),
            "b_re": weights(c, hidden, "in", "hidden", scale=0.5),  # of |B|^2 together 1 / C
            "b_im": weights(c, hidden, "in", "hidden", scale=0.5),
            "c_re": weights(hidden, features, "hidden", "out"),
            "c_im": weights(hidden, features, "hidden", "out"),
            "d": weights(c, features, "in", "out"),
        }, {}

    def apply(params, state, x, mask=None, carry=None, resets=None, lengths=None, *, key, train):
        time, dtype = time_of(x, mask, resets, lengths, 1), wide(x.dtype)
        p, inputs = as_dtype(params, dtype), time.first(x.astype(dtype))  # [T, ..., C]
        if time.mask is not None:
            real = time.first(time.mask)[..., None]
            inputs = jnp.where(real, inputs, 0)
        if carry is None:
            carry = (jnp.zeros((*time.lead, hidden), dtype),) * 2
        ends, h = run(p, inputs, jax.lax.complex(*as_dtype(carry, dtype)), time, resets)
        y = h.real @ p["c_re"] - h.imag @ p["c_im"] + inputs @ p["d"]
        if time.mask is not None:
            y = jnp.where(real, y, 0)
        y = time.back(y) if return_sequence else last(y, time)
        y = y.astype(x.dtype)
        return (y, as_dtype((ends.real, ends.imag), x.dtype)) if return_carry else y, state

    def run(p, inputs, start, time, resets):
        """(h at the end, all h [T, ..., N]) of h_t = a_t h_{t-1} + b_t."""
        log_nu, log_theta, log_gamma = (p["rates"][name] for name in _RATES)
        rate = jnp.exp(jax.lax.complex(-jnp.exp(log_nu), jnp.exp(log_theta)))
        a = jnp.broadcast_to(rate, (time.length, *(1,) * len(time.lead), hidden))
        gamma = of_rank(jnp.exp(log_gamma), inputs.ndim)
        b = jax.lax.complex(inputs @ p["b_re"] * gamma, inputs @ p["b_im"] * gamma)
        if time.mask is not None:
            a = jnp.where(time.first(time.mask)[..., None], a, 1)
        if (new := boundaries(time.mask, resets, reverse)) is not None:
            a = jnp.where(time.first(new)[..., None], 0, a)
        if time.length == 0:
            return start, b
        begin, end = (-1, 0) if reverse else (0, -1)
        b = b.at[begin].add(a[begin] * start)
        h = jax.lax.associative_scan(_then, (a, b), reverse=reverse)[1]
        return h[end], h

    def last(y, time):
        """The y of [T, ..., F] at the last real step, or at the first in reverse: [..., F]."""
        if time.length == 0:
            return jnp.zeros(y.shape[1:], y.dtype)
        if time.mask is None:
            return y[0 if reverse else -1]
        steps = jnp.where(time.mask, jnp.arange(time.length), time.length if reverse else -1)
        at = jnp.min(steps, axis=-1) if reverse else jnp.max(steps, axis=-1)
        at = jnp.clip(at, 0, time.length - 1)  # y is zero wherever no step is real
        return jnp.take_along_axis(y, at[None, ..., None], axis=0)[0]

    return leaf("lru", specs, apply)


_RATES = ("log_nu", "log_theta", "log_gamma")


def _then(first: tuple, second: tuple) -> tuple:
    """h -> a h + b, twice: the map of both steps together."""
    (a1, b1), (a2, b2) = first, second
    return a1 * a2, a2 * b1 + b2
