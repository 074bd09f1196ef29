"""Parameters to and from other frameworks: PyTorch, Flax (linen and nnx), Haiku and Keras.

What is converted are values. The options of the layers (strides, padding, eps) must be those of the
other network, and defaults differ: PyTorch pads by numbers, the eps of Keras' batch norm is 1e-3,
and a batch norm's momentum of 0.1 in PyTorch is 0.9 here.

Layers are paired one by one. Where both networks have the same names, by name; otherwise, of
PyTorch and Keras, by order of declaration. The trees of Flax and Haiku have no such order, since
JAX sorts the names in a dict: there layers are paired by the shapes of their arrays, and those of
equal shapes by the numbers in their names, Conv_2 before Conv_10. `names={"conv1": "features.0"}`
pairs as many as it has by hand, and the others are paired among themselves.

An array that is missing or left over, of another shape or of another dtype, is an error that names
it on both sides. A framework is a table, its file's last part.
"""

from fnn.convert.flax import from_flax, from_nnx, to_flax, to_nnx
from fnn.convert.haiku import from_haiku, to_haiku
from fnn.convert.keras import from_keras, to_keras
from fnn.convert.torch import from_torch, to_torch

__all__ = [
    "from_flax",
    "from_haiku",
    "from_keras",
    "from_nnx",
    "from_torch",
    "to_flax",
    "to_haiku",
    "to_keras",
    "to_nnx",
    "to_torch",
]
