"""The simple recurrent cell."""

from collections.abc import Callable

import jax.numpy as jnp

from fnn.core import checks
from fnn.core.dtypes import widened
from fnn.core.layer import Layer
from fnn.core.origins import builder
from fnn.core.types import Scalar
from fnn.initializers import lecun_normal, orthogonal, zeros
from fnn.layers.recurrent.cells.cell import Inits, bias_of, cell_of


@builder
def simple_rnn(
    features: int,
    *,
    activation: Callable = jnp.tanh,
    use_bias: bool = True,
    kernel_init=lecun_normal(),
    recurrent_init=orthogonal(),
    bias_init=zeros,
    recurrent_dropout: Scalar | None = None,
    learned_carry: bool = False,
) -> Layer:
    """A simple recurrent step, h' = activation(x kernel + h recurrent_kernel + bias), y = h'.

    [..., C] -> [..., features], with carry h [..., features] (Elman, 1990). The first is zero.

    - `features`: H, the size of h.
    - `activation`: `jax.nn.relu` remembers longer, with an identity `recurrent_init` (Le, Jaitly
      & Hinton, 2015).
    - `kernel_init`, `recurrent_init`, `bias_init`: initializers; a recurrent kernel is drawn gate
      by gate, orthogonal so that h neither grows nor fades at first.
    - `recurrent_dropout`: in training, the probability of dropping each value of h where it meets
      `recurrent_kernel`, by one mask for the whole sequence (Gal & Ghahramani, 2016). The mask is
      drawn with the first carry, which is then {"carry": h, "mask": mask}. None drops nothing.
    - `learned_carry`: the first carry is a parameter, `first_h` [H].

    Params: `kernel` [C, H], `recurrent_kernel` [H, H], `bias` [H], of x's dtype.
    Raises OptionError, ShapeError and DtypeError for an x or a carry that do not fit.

    >>> import jax, jax.numpy as jnp, fnn
    >>> cell = fnn.cells.simple_rnn(3)
    >>> params, _ = cell.init(jax.random.key(0), None, (1, 4))
    >>> carry, y = cell(params, None, jnp.ones((2, 4)))
    >>> y.shape
    (2, 3)
    """
    features = checks.count("features", features)
    checks.function("activation", activation, "one array, as jnp.tanh")
    inits = Inits(use_bias, kernel_init, recurrent_init, bias_init)

    def declare(x):
        return inits.declare(x, 1, features, features)

    def step(p, x, h, old):
        z = widened(x @ p["kernel"] + h @ p["recurrent_kernel"] + bias_of(p, x))
        return {"h": activation(z).astype(x.dtype)}

    return cell_of("rnn_cell", {"h": features}, declare, step, recurrent_dropout, learned_carry)
