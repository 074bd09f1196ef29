"""State dicts of linear layers, named as libraries name them."""

import numpy as np

import fnn
from fnn import convert, tree

C = 4


def state_dict(*layers, shape=(C, C)):
    """A square linear layer for each name; each value tells which one it is."""
    found = {}
    for i, name in enumerate(layers):
        found[f"{name}.weight"] = np.full(shape, i, np.float32)
        found[f"{name}.bias"] = np.full(shape[0], i + 0.5, np.float32)
    return found


def pairing(net, given, *xs, **options):
    """{path of each dense layer: the number of the layer there}."""
    params, _ = convert.from_torch(net, given, *(xs or ((1, C),)), **options)
    kernels = tree.select(params, "*kernel")
    return {path.removesuffix("/kernel"): np.unique(k) for path, k in kernels.items()}


def orders(given):
    """The same dict as files hold it."""
    keys = list(given)
    shuffled = np.random.default_rng(0).permutation(keys).tolist()
    for some in (keys, sorted(keys), keys[::-1], shuffled):
        yield {key: given[key] for key in some}


HEADS = {  # how libraries name q, k, v and out
    "torch": ("q_proj", "k_proj", "v_proj", "out_proj"),
    "bert": ("self.query", "self.key", "self.value", "output.dense"),
    "llama": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "meta": ("wq", "wk", "wv", "wo"),
    "diffusers": ("to_q", "to_k", "to_v", "to_out.0"),
    "t5": ("q", "k", "v", "o"),
    "flax": ("query", "key", "value", "out"),
    "timm": ("qkv.q", "qkv.k", "qkv.v", "proj"),
    "haiku": ("query", "key", "value", "linear"),
}


def dense(n):
    return fnn.serial(*[fnn.dense(C) for _ in range(n)])
