"""Parameters to and from other frameworks: PyTorch, Flax (linen and nnx), Haiku and Keras.

Only values are converted. The options of the layers (strides, padding, eps) must match those of the
other network, and defaults differ: PyTorch pads by numbers, the eps of Keras' batch norm is 1e-3,
and a batch norm's momentum of 0.1 in PyTorch is 0.9 here.

Layers are paired one by one, never by their position in a file. If both networks use the same
names, they are paired by name. Otherwise they are paired by the shapes of their arrays, and among
equal shapes by the first of these that distinguishes them:

- roles: q, query, q_proj, wq and to_q are one, and so are k, v, out, up, gate, down and shortcut;
  w1 and w3 of a gated block are gate and up,
- words that occur in as many layers there as here: encoder, cross, embedding, norm (ln, LayerNorm),
- numbers: Conv_2 comes before Conv_10, layers.0.norm2 before layers.1.norm1, and fnn's layers
  count in the order of declaration,
- the order of registration, where it is known: a `state_dict()` of PyTorch keeps it in `_metadata`
  (and so does its file), and `model.weights` of Keras is a list. A dict that was sorted, filtered
  or read from safetensors has lost it.

If none of them does, an error lists the candidates, and `names` decides:
`{"conv1": "features.0"}` for one layer, `{"encoder": "enc"}` for all below a name, and
`{"blocks/*/norm1": "layers.*.ln_1"}` for a stack, where `*` stands for the numbers, in their order
here and there. The remaining layers are paired among themselves.

Each layer inside `fnn.repeat` and `fnn.ensemble` counts as a layer of its own, blocks/0/norm1,
blocks/1/norm1 ..., like those of a list elsewhere. If q, k and v are one array in PyTorch
(in_proj_weight of MultiheadAttention, c_attn, qkv), their names are in_proj.q, .k and .v.

`read_safetensors` gives the arrays of such a file, of any size, for `from_torch`.

An array that is missing, left over, or of another shape or dtype is an error that names it on both
sides. Each framework is a table at the end of its file.
"""

from fnn.convert.flax import from_flax, from_nnx, to_flax, to_nnx
from fnn.convert.haiku import from_haiku, to_haiku
from fnn.convert.keras import from_keras, to_keras
from fnn.convert.safetensors import read_safetensors, write_safetensors
from fnn.convert.torch import from_torch, to_torch

__all__ = [
    "from_flax", "from_haiku", "from_keras", "from_nnx", "from_torch", "read_safetensors",
    "to_flax", "to_haiku", "to_keras", "to_nnx", "to_torch", "write_safetensors",
]  # fmt: skip
