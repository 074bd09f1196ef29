"""Which form of a convolution a backend computes fast; each detour has a file of its own."""

from functools import partial

import jax

from fnn.layers.conv import convolution
from fnn.layers.conv.convolution import Geometry
from fnn.layers.conv.cpu_abort import aborts_on_cpu
from fnn.layers.conv.cpu_depthwise import by_tap, suits_taps
from fnn.layers.conv.cpu_products import suits_product
from fnn.layers.conv.cpu_scan import in_fast_order


def convolve(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """`convolution.convolve`; on CPU in the form that XLA compiles well there."""
    if aborts_on_cpu(x, kernel, geometry):
        return convolution.by_patches(x, kernel, geometry)
    plain = in_fast_order if geometry.weight_grad == "matmul" else convolution.convolve
    if suits_taps(x, kernel, geometry):
        cpu = by_tap
    elif suits_product(kernel, geometry):
        cpu = convolution.by_patches
    else:
        cpu = in_fast_order
    forms = {"cpu": partial(cpu, geometry=geometry), "default": partial(plain, geometry=geometry)}
    return jax.lax.platform_dependent(x, kernel, **forms)
