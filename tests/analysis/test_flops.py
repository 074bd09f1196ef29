"""FLOPs, against numbers worked out by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

import fnn
from fnn.analysis import count_flops


@pytest.mark.parametrize(
    "fn, shapes, wanted",
    [
        (lambda x, w: x @ w, [(5, 3), (3, 7)], 2 * 5 * 3 * 7),
        (lambda a, b: jnp.einsum("bij,bjk->bik", a, b), [(2, 3, 4), (2, 4, 5)], 2 * 2 * 3 * 4 * 5),
        (lambda x: jnp.tanh(x + 1).reshape(-1), [(4, 5)], 2 * 20),
        (lambda x: jnp.sum(x * x, axis=0), [(4, 5)], 20 + 20),
        (lambda x: jax.lax.scan(lambda c, _: (c @ x, None), x, length=6)[0], [(3, 3)], 6 * 54),
        (jax.jit(jax.checkpoint(lambda x: jnp.sin(x))), [(8,)], 8),
        (
            lambda x: jax.lax.cond(x.sum() > 0, lambda x: x @ x, lambda x: x, x),
            [(3, 3)],
            54 + 9,
        ),
    ],
)
def test_flops(fn, shapes, wanted):
    structs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    assert count_flops(fn, *structs) == wanted


@pytest.mark.parametrize("groups", [1, 2])
def test_flops_of_a_convolution(groups):
    net = fnn.conv(6, (3, 2), groups=groups, padding="VALID", use_bias=False)
    params, _ = net.init(jax.random.key(0), (2, 7, 7, 4))
    out = 2 * 5 * 6 * 6
    assert count_flops(net, params, jnp.ones((2, 7, 7, 4))) == 2 * out * 3 * 2 * 4 // groups


def test_flops_of_a_transposed_convolution_are_those_of_the_values():
    """Each of x's values is multiplied once by each tap, whatever the zeros between them."""
    x, kernel = jnp.ones((2, 5, 7, 3)), jnp.ones((4, 4, 3, 6))
    spread = partial(jax.lax.conv_transpose, strides=(2, 2), padding="SAME")
    assert count_flops(spread, x, kernel) == 2 * x.size * 4 * 4 * 6
