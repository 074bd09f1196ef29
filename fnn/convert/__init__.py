"""Parameters to and from other frameworks: PyTorch, Flax (linen and nnx), Haiku and Keras.

What is converted are values. The options of the layers (strides, padding, eps) must be those of the
other network, and defaults differ: PyTorch pads by numbers, the eps of Keras' batch norm is 1e-3,
and a batch norm's momentum of 0.1 in PyTorch is 0.9 here.

Layers are paired one by one, never by where they stand in a file. Where both networks have the
same names, by name. Otherwise by the shapes of their arrays, and those of equal shapes by what
their names tell, the first that does of

- roles: q, query, q_proj, wq and to_q are one, and so are k, v, out, up, gate, down and shortcut;
  w1 and w3 of a gated block are gate and up,
- words that as many layers have there as here: encoder, cross, embedding, norm (ln, LayerNorm) ...,
- numbers: Conv_2 comes before Conv_10, layers.0.norm2 before layers.1.norm1, and layers of ours
  count in the order of declaration,
- the order of registration, where it is known: a `state_dict()` of PyTorch keeps it in `_metadata`
  (and so does its file), and `model.weights` of Keras is a list. A dict that was sorted, filtered
  or read from safetensors tells none.

What none of them tells apart is an error that lists all that it could be. `names` says it:
`{"conv1": "features.0"}` for one layer, `{"encoder": "enc"}` for all below a name, and
`{"blocks/*/norm1": "layers.*.ln_1"}` for a stack, where `*` stands for what is numbered, in the
order of the numbers here and there. The others are paired among themselves.

The layers of `fnn.repeat` and `fnn.ensemble` are layers by themselves, blocks/0/norm1,
blocks/1/norm1 ..., as those of a list are elsewhere. q, k and v that are one array in PyTorch
(in_proj_weight of MultiheadAttention, c_attn, qkv) are called in_proj.q, in_proj.k, in_proj.v.

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
