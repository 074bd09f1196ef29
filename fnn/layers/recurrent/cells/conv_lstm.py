"""Long short-term memory of images."""

from dataclasses import replace

import jax.numpy as jnp

from fnn.core import checks
from fnn.core.compose import compose
from fnn.core.dtypes import widened
from fnn.core.layer import Layer
from fnn.core.origins import builder
from fnn.initializers import lecun_normal
from fnn.layers.conv.conv import conv
from fnn.layers.recurrent.cells.cell import check_carry
from fnn.layers.recurrent.cells.lstm import lstm_step, open_forget_gate


@builder
def conv_lstm(
    features: int,
    kernel_size: tuple[int, ...],
    *,
    use_bias: bool = True,
    weight_grad: str = "conv",
    kernel_init=lecun_normal(),
    recurrent_init=lecun_normal(),
    bias_init=open_forget_gate,
) -> Layer:
    """An LSTM cell over images: its products are convolutions (Shi et al., 2015).

        i, f, g, o = input(x) + hidden(h), then as in `fnn.cells.lstm`

    [..., H, W, C] -> [..., H, W, features], with carry (c, h), both [..., H, W, features], zero at
    first; any number of spatial axes. It has no peepholes. `fnn.rnn(cell, feature_axes=3)` runs it
    over [..., T, H, W, C].

    - `features`: the channels of c and h.
    - `kernel_size`: of both convolutions, which pad to keep the size.
    - `weight_grad`: as in `fnn.conv`.
    - the others: as in `fnn.cells.lstm`.

    Params: `input` (`kernel` [*kernel_size, C, 4 features], `bias`), `hidden` (`kernel`
    [*kernel_size, features, 4 features]). Raises as `fnn.conv`, and for a carry that does not fit.

    >>> import jax, jax.numpy as jnp, fnn
    >>> net = fnn.rnn(conv_lstm(2, (3, 3)), feature_axes=3)
    >>> params, _ = net.init(jax.random.key(0), (1, 5, 8, 8, 1))
    >>> net(params, jnp.ones((4, 5, 8, 8, 1))).shape
    (4, 5, 8, 8, 2)
    """
    features = checks.count("features", features)
    options = {"weight_grad": weight_grad, "bias_init": bias_init}

    @compose(
        input=conv(
            4 * features, kernel_size, use_bias=use_bias, kernel_init=kernel_init, **options
        ),
        hidden=conv(
            4 * features, kernel_size, use_bias=False, kernel_init=recurrent_init, **options
        ),
    )
    def conv_lstm_cell(f, carry, x):
        checks.array(x, len(kernel_size) + 1, "[..., H, W, C]")
        zero = first(None, x)
        c, h = zero if carry is None else carry
        if carry is not None:
            check_carry(carry, zero)
        z = f.input(x) + f.hidden(h)
        c, h = lstm_step(widened(z), widened(c))
        c, h = c.astype(x.dtype), h.astype(x.dtype)
        return (c, h), h

    def first(params, x, *, key=None, train=False):
        """Zeros, for an x of one step."""
        return tuple(jnp.zeros((*x.shape[:-1], features), x.dtype) for _ in "ch")

    return replace(conv_lstm_cell, carry=first)
