"""Gated recurrent cells, with two gates and with one."""

import jax
import jax.numpy as jnp

from fnn.core import checks
from fnn.core.declarations import Param
from fnn.core.dtypes import widened
from fnn.core.layer import Layer
from fnn.core.origins import builder
from fnn.core.shapes import of_rank
from fnn.core.types import Scalar
from fnn.initializers import lecun_normal, orthogonal, zeros
from fnn.layers.recurrent.cells.cell import Inits, bias_of, cell_of, sigmoid


@builder
def gru(
    features: int,
    *,
    reset_after: bool = True,
    use_bias: bool = True,
    kernel_init=lecun_normal(),
    recurrent_init=orthogonal(),
    bias_init=zeros,
    recurrent_dropout: Scalar | None = None,
    learned_carry: bool = False,
) -> Layer:
    """A step of gated recurrent units (Cho et al., 2014).

        r, z = sigmoid(x kernel + h recurrent_kernel + bias)
        n = tanh(x kernel_n + bias_n + r (h recurrent_kernel_n + recurrent_bias))
        h' = (1 - z) n + z h                              y = h'

    [..., C] -> [..., features], with carry h [..., features], zero at first.

    - `features`: H, the size of h.
    - `reset_after`: r multiplies after the product with h, as above and in cuDNN, so that there is
      one product of h; False multiplies before it, (r h) recurrent_kernel_n, as in the paper.
    - the others: as in `fnn.cells.simple_rnn`.

    Params: `kernel` [C, 3 H], `recurrent_kernel` [H, 3 H], `bias` [3 H], the gates in the order
    r, z, n, and with reset_after `recurrent_bias` [H]; of x's dtype.

    Raises as `simple_rnn`.

    >>> import jax, jax.numpy as jnp, fnn
    >>> cell = fnn.cells.gru(3)
    >>> params, _ = cell.init(jax.random.key(0), None, (1, 4))
    >>> h, y = cell(params, None, jnp.ones((2, 4)))
    >>> y.shape
    (2, 3)
    """
    features = checks.count("features", features)
    inits = Inits(use_bias, kernel_init, recurrent_init, bias_init)

    def declare(x):
        params = inits.declare(x, 3, features, features)
        if use_bias and reset_after:
            params["recurrent_bias"] = Param((features,), bias_init, x.dtype, "bias", ("hidden",))
        return params

    def after(p, x, h, old):
        a, q = x @ p["kernel"] + bias_of(p, x), h @ p["recurrent_kernel"]
        if use_bias:
            q = q + of_rank(jnp.pad(p["recurrent_bias"], (2 * features, 0)), q.ndim)
        return {"h": gru_step(widened(a), widened(q), widened(old["h"])).astype(x.dtype)}

    def before(p, x, h, old):
        rz, n = jnp.split(x @ p["kernel"] + bias_of(p, x), (2 * features,), axis=-1)
        to_rz, to_n = jnp.split(p["recurrent_kernel"], (2 * features,), axis=-1)
        r, z = jnp.split(sigmoid(widened(rz + h @ to_rz)), 2, axis=-1)
        n = jnp.tanh(widened(n + (r * widened(h)).astype(x.dtype) @ to_n))
        return {"h": _between(z, n, widened(old["h"])).astype(x.dtype)}

    step = after if reset_after else before
    return cell_of("gru_cell", {"h": features}, declare, step, recurrent_dropout, learned_carry)


@builder
def mgu(
    features: int,
    *,
    use_bias: bool = True,
    kernel_init=lecun_normal(),
    recurrent_init=orthogonal(),
    bias_init=zeros,
    recurrent_dropout: Scalar | None = None,
    learned_carry: bool = False,
) -> Layer:
    """A step of minimal gated units, a GRU with one gate (Zhou et al., 2016).

        f = sigmoid(x kernel_f + h recurrent_kernel_f + bias_f)
        n = tanh(x kernel_n + (f h) recurrent_kernel_n + bias_n)
        h' = (1 - f) h + f n                              y = h'

    [..., C] -> [..., features], with carry h [..., features], zero at first.

    - `features`: H, the size of h.
    - the others: as in `fnn.cells.simple_rnn`.

    Params: `kernel` [C, 2 H], `recurrent_kernel` [H, 2 H], `bias` [2 H], the gates in the order
    f, n; of x's dtype. Raises as `fnn.cells.simple_rnn`.

    >>> import jax, jax.numpy as jnp, fnn
    >>> cell = fnn.cells.mgu(3)
    >>> params, _ = cell.init(jax.random.key(0), None, (1, 4))
    >>> h, y = cell(params, None, jnp.ones((2, 4)))
    >>> y.shape
    (2, 3)
    """
    features = checks.count("features", features)
    inits = Inits(use_bias, kernel_init, recurrent_init, bias_init)

    def declare(x):
        return inits.declare(x, 2, features, features)

    def step(p, x, h, old):
        f, n = jnp.split(x @ p["kernel"] + bias_of(p, x), 2, axis=-1)
        to_f, to_n = jnp.split(p["recurrent_kernel"], 2, axis=-1)
        f = sigmoid(widened(f + h @ to_f))
        n = jnp.tanh(widened(n + (f * widened(h)).astype(x.dtype) @ to_n))
        return {"h": _between(f, widened(old["h"]), n).astype(x.dtype)}

    return cell_of("mgu_cell", {"h": features}, declare, step, recurrent_dropout, learned_carry)


@jax.custom_jvp
def gru_step(a: jax.Array, q: jax.Array, h: jax.Array) -> jax.Array:
    """h' from the products a with x and q with h, [..., 3 H] with their biases, and h [..., H]."""
    (ar, az, an), (qr, qz, qn) = jnp.split(a, 3, axis=-1), jnp.split(q, 3, axis=-1)
    return _between(sigmoid(az + qz), jnp.tanh(an + sigmoid(ar + qr) * qn), h)


@gru_step.defjvp
def _gru_step_jvp(primals: tuple, tangents: tuple) -> tuple:
    (a, q, h), (da, dq, dh) = primals, tangents
    (ar, az, an), (qr, qz, qn) = jnp.split(a, 3, axis=-1), jnp.split(q, 3, axis=-1)
    (dar, daz, dan), (dqr, dqz, dqn) = jnp.split(da, 3, axis=-1), jnp.split(dq, 3, axis=-1)
    r, z = sigmoid(ar + qr), sigmoid(az + qz)
    n = jnp.tanh(an + r * qn)
    by_n = (1 - n * n) * (1 - z)
    by_r, by_z = by_n * qn * r * (1 - r), z * (1 - z) * (h - n)
    dnew = by_r * (dar + dqr) + by_z * (daz + dqz) + by_n * (dan + r * dqn) + z * dh
    return _between(z, n, h), dnew


def _between(z: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """(1 - z) a + z b."""
    return (1 - z) * a + z * b
