"""fnn: a neural network is a pure function over a parameter tree, y = net(params, x)."""

import importlib
from typing import TYPE_CHECKING, Any

from fnn import cells, initializers
from fnn.core import errors
from fnn.core.compose import compose
from fnn.core.declarations import Derived, Param
from fnn.core.errors import FnnError
from fnn.core.layer import Layer, leaf
from fnn.core.notes import notes
from fnn.core.origins import builder
from fnn.core.wrapping import wrap
from fnn.layers.activations import prelu
from fnn.layers.attention import alibi, attention, relative_bias
from fnn.layers.clipped import clipped
from fnn.layers.combinators import parallel, residual, serial
from fnn.layers.compression import prune, quantize
from fnn.layers.conv.conv import conv
from fnn.layers.conv.conv_transpose import conv_transpose
from fnn.layers.conv.depthwise import depthwise_conv, separable_conv
from fnn.layers.conv.global_pool import adaptive_avg_pool, global_avg_pool, global_max_pool
from fnn.layers.conv.local_conv import local_conv
from fnn.layers.conv.lp_pool import lp_pool
from fnn.layers.conv.pool import avg_pool, max_pool, min_pool, sum_pool
from fnn.layers.conv.resize import pixel_shuffle, pixel_unshuffle, upsample
from fnn.layers.dense import bilinear, dense
from fnn.layers.dropout import alpha_dropout, drop_path, dropout, gaussian_noise, spatial_dropout
from fnn.layers.embedding import embedding, parameter
from fnn.layers.frozen import frozen
from fnn.layers.lifted import ensemble, remat, repeat
from fnn.layers.lora import lora
from fnn.layers.merge import merge, unmerge
from fnn.layers.moe import moe
from fnn.layers.norm import batch_norm, group_norm, instance_norm, layer_norm, rms_norm
from fnn.layers.precision import cast
from fnn.layers.recurrent.linear import lru
from fnn.layers.recurrent.named import bidirectional, gru, lstm, simple_rnn
from fnn.layers.recurrent.rnn import rnn
from fnn.layers.recurrent.stateful import forget
from fnn.layers.reparam import reparam
from fnn.layers.reshape import flatten, reshape
from fnn.layers.sinusoidal import positional_encoding, sinusoidal
from fnn.layers.stored import stored
from fnn.layers.tap import swap, tap
from fnn.layers.transformer import transformer_block
from fnn.layers.weight_norms import spectral_norm, weight_norm

if TYPE_CHECKING:
    from fnn import (
        analysis,
        checkpoint,
        convert,
        data,
        description,
        distributed,
        ensembles,
        export,
        generation,
        log,
        losses,
        metrics,
        optim,
        search,
        serve,
        sharding,
        testing,
        train,
        tree,
    )
    from fnn.checkpoint import load
    from fnn.description import build, describe, diff
    from fnn.generation import beam_search, generate, unroll_generate
    from fnn.sharding.dry_run import dryrun

__version__ = "0.1.0"

__all__ = [
    "Derived", "FnnError", "Layer", "Param", "adaptive_avg_pool", "alibi", "alpha_dropout",
    "analysis", "attention", "avg_pool", "batch_norm", "beam_search", "bidirectional", "bilinear",
    "build", "builder", "cast", "cells", "checkpoint", "clipped", "compose", "conv",
    "conv_transpose", "convert", "data", "dense", "depthwise_conv", "describe", "description",
    "diff", "distributed", "drop_path", "dropout", "dryrun", "embedding", "ensemble", "ensembles",
    "errors", "export", "flatten", "forget", "frozen", "gaussian_noise", "generate", "generation",
    "global_avg_pool", "global_max_pool", "group_norm", "gru", "initializers", "instance_norm",
    "layer_norm", "leaf", "load", "local_conv", "log", "lora", "losses", "lp_pool", "lru", "lstm",
    "max_pool", "merge", "metrics", "min_pool", "moe", "notes", "optim", "parallel", "parameter",
    "pixel_shuffle", "pixel_unshuffle", "positional_encoding", "prelu", "prune", "quantize",
    "relative_bias", "remat", "reparam", "repeat", "reshape", "residual", "rms_norm", "rnn",
    "search", "separable_conv", "serial", "serve", "sharding", "simple_rnn", "sinusoidal",
    "spatial_dropout", "spectral_norm", "stored", "sum_pool", "swap", "tap", "testing", "train",
    "transformer_block", "tree", "unmerge", "unroll_generate", "upsample", "weight_norm", "wrap",
]  # fmt: skip


_FUNCTIONS = {  # of wings, by the module that has them
    "beam_search": "fnn.generation",
    "build": "fnn.description",
    "describe": "fnn.description",
    "diff": "fnn.description",
    "dryrun": "fnn.sharding.dry_run",
    "generate": "fnn.generation",
    "load": "fnn.checkpoint",
    "unroll_generate": "fnn.generation",
}


def __getattr__(name: str) -> Any:
    """A wing, imported when it is first used: `import fnn` itself takes layers alone."""
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(_FUNCTIONS[name]), name)
    if name in __all__:
        return importlib.import_module(f"fnn.{name}")
    raise AttributeError(f"module 'fnn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
