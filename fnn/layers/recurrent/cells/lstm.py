"""Long short-term memory."""

import jax
import jax.numpy as jnp

from fnn.core import checks
from fnn.core.declarations import Param
from fnn.core.dtypes import widened
from fnn.core.layer import Layer
from fnn.core.origins import builder
from fnn.core.shapes import of_rank
from fnn.core.types import Dtype, Key, Scalar
from fnn.initializers import lecun_normal, ones, orthogonal, zeros
from fnn.layers.norm import standardize
from fnn.layers.recurrent.cells.cell import Inits, bias_of, cell_of, sigmoid


def open_forget_gate(
    key: Key | None, shape: tuple[int, ...], dtype: Dtype = jnp.float32
) -> jax.Array:
    """The first bias of an LSTM: 1 for the gate f, the second quarter, and 0 elsewhere.

    Memory then fades slowly at first (Gers, Schmidhuber & Cummins, 2000; Jozefowicz, Zaremba &
    Sutskever, 2015).

    >>> print(open_forget_gate(None, (4,)))
    [0. 1. 0. 0.]
    """
    quarter = jnp.arange(shape[-1]) // (shape[-1] // 4)
    return jnp.broadcast_to(quarter == 1, shape).astype(dtype)


@builder
def lstm(
    features: int,
    *,
    peepholes: bool = False,
    projection: int | None = None,
    layer_norm: bool = False,
    use_bias: bool = True,
    kernel_init=lecun_normal(),
    recurrent_init=orthogonal(),
    bias_init=open_forget_gate,
    recurrent_dropout: Scalar | None = None,
    learned_carry: bool = False,
) -> Layer:
    """A step of long short-term memory (Hochreiter & Schmidhuber, 1997; Gers et al., 2000).

        i, f, g, o = x kernel + h recurrent_kernel + bias
        c' = sigmoid(f) c + sigmoid(i) tanh(g)
        h' = sigmoid(o) tanh(c')                          y = h'

    [..., C] -> [..., features], with carry (c, h), both [..., features], zero at first.

    - `features`: H, the size of c and h.
    - `peepholes`: i and f see c, and o sees c', each through a weight per unit, `peephole` [3, H],
      zero at first (Gers, Schraudolph & Schmidhuber, 2002).
    - `projection`: h' is multiplied by a matrix `projection` [H, P] (Sak, Senior & Beaufays,
      2014); h and y are then [..., P].
    - `layer_norm`: normalizes both products over their last axis, and c' on its way to h' (Ba,
      Kiros & Hinton, 2016, equations 20 to 22), with scales `input_scale`, `recurrent_scale` [4 H],
      `cell_scale` [H] and a shift `cell_bias` [H].
    - `bias_init`: 1 for f keeps the memory at first; `zeros` does not.
    - the others: as in `fnn.cells.simple_rnn`; a learned first carry is `first_c` and `first_h`.

    Params: `kernel` [C, 4 H], `recurrent_kernel` [H, 4 H], `bias` [4 H], of x's dtype; the gates in
    the order i, f, g, o. Raises as `fnn.cells.simple_rnn`.

    >>> import jax, jax.numpy as jnp, fnn
    >>> cell = fnn.cells.lstm(3)
    >>> params, _ = cell.init(jax.random.key(0), None, (1, 4))
    >>> (c, h), y = cell(params, None, jnp.ones((2, 4)))
    >>> c.shape, bool((y == h).all())
    ((2, 3), True)
    """
    features = checks.count("features", features)
    size = features if projection is None else checks.count("projection", projection)
    inits = Inits(use_bias, kernel_init, recurrent_init, bias_init)

    def declare(x):
        params, dtype = inits.declare(x, 4, features, size), x.dtype
        if projection is not None:
            params["projection"] = Param(
                (features, size), kernel_init, dtype, "kernel", ("hidden", "out")
            )
        if peepholes:
            params["peephole"] = Param((3, features), zeros, dtype, "peephole", ("gates", "hidden"))
        if layer_norm:
            for name, n, axis in (
                ("input", 4, "gates"),
                ("recurrent", 4, "gates"),
                ("cell", 1, "hidden"),
            ):
                params[f"{name}_scale"] = Param((n * features,), ones, dtype, "scale", (axis,))
            params["cell_bias"] = Param((features,), zeros, dtype, "bias", ("hidden",))
        return params

    def step(p, x, h, old):
        of_x, of_h = x @ p["kernel"], h @ p["recurrent_kernel"]
        if layer_norm:
            of_x, of_h = standardize(of_x), standardize(of_h)
            of_x = of_x * of_rank(p["input_scale"], x.ndim)
            of_h = of_h * of_rank(p["recurrent_scale"], x.ndim)
        z, c = widened(of_x + of_h + bias_of(p, x)), widened(old["c"])
        c, h = seeing(p, z, c) if peepholes or layer_norm else lstm_step(z, c)
        c, h = c.astype(x.dtype), h.astype(x.dtype)
        return {"c": c, "h": h if projection is None else h @ p["projection"]}

    def seeing(p, z, c):
        def row(values):
            return of_rank(widened(values), c.ndim)

        i, f, g, o = jnp.split(z, 4, axis=-1)
        to_i, to_f, to_o = map(row, p["peephole"]) if peepholes else (0, 0, 0)
        c = sigmoid(f + to_f * c) * c + sigmoid(i + to_i * c) * jnp.tanh(g)
        seen = c
        if layer_norm:
            seen = standardize(c) * row(p["cell_scale"]) + row(p["cell_bias"])
        return c, sigmoid(o + to_o * c) * jnp.tanh(seen)

    sizes = {"c": features, "h": size}
    return cell_of("lstm_cell", sizes, declare, step, recurrent_dropout, learned_carry)


# --- the elementwise part, with its derivative


@jax.custom_jvp
def lstm_step(z: jax.Array, c: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(c', h') from the gates z [..., 4 H] before their activations, and c [..., H]."""
    i, f, g, o = jnp.split(z, 4, axis=-1)
    c = sigmoid(f) * c + sigmoid(i) * jnp.tanh(g)
    return c, sigmoid(o) * jnp.tanh(c)


@lstm_step.defjvp
def _lstm_step_jvp(primals: tuple, tangents: tuple) -> tuple:
    (z, c), (dz, dc) = primals, tangents
    i, f, g, o = jnp.split(z, 4, axis=-1)
    i, f, g, o = sigmoid(i), sigmoid(f), jnp.tanh(g), sigmoid(o)
    new = f * c + i * g
    seen = jnp.tanh(new)
    factors = [g * i * (1 - i), c * f * (1 - f), i * (1 - g * g), seen * o * (1 - o)]
    by_i, by_f, by_g, by_o = jnp.split(dz * jnp.concatenate(factors, axis=-1), 4, axis=-1)
    dnew = f * dc + by_i + by_f + by_g
    return (new, o * seen), (dnew, o * (1 - seen * seen) * dnew + by_o)
