"""Small writers, and writing by a plain loop that reads all of the text again for each token."""

import jax
import jax.numpy as jnp
import numpy as np

import fnn
from fnn.core.declarations import arrays_of
from tests.layers.attention.support import drawn_params
from tests.support import asarray

V, C, ROOM = 7, 8, 12  # vocabulary, features, places in the cache


def transformer(cache=None):
    options = {"causal": True, "rotary": 100.0, "kv_heads": 1, "cache": cache}
    blocks = fnn.repeat(fnn.transformer_block(C, 2, hidden=C, **options), 2)

    @fnn.compose(embed=fnn.embedding(V, C), blocks=blocks, head=fnn.dense(V))
    def transformer(f, tokens, segments=None):  # [..., T]
        return f.head(f.blocks(f.embed(tokens), segments=segments))

    return transformer


def spread_params(cell):
    """Params of a cell by NumPy; none of them is 0."""
    wanted = arrays_of(cell.specs(None, jax.ShapeDtypeStruct((1,), jnp.int32))[0])
    draw = np.random.default_rng(1).normal
    return jax.tree.map(lambda a: draw(size=a.shape).astype(a.dtype), wanted)


WHOLE, NET = transformer(), transformer(ROOM)
CELL = fnn.cells.serial(embed=fnn.embedding(V, C), rnn=fnn.cells.lstm(C), head=fnn.dense(V))
PARAMS = drawn_params(WHOLE, jax.ShapeDtypeStruct((1, 4), jnp.int32))
CELL_PARAMS = spread_params(CELL)
PROMPTS = np.random.default_rng(0).integers(0, V, (4, 5)).astype(np.int32)
LENGTHS = np.array([5, 1, 3, 4], np.int32)
read_all = jax.jit(WHOLE)
read_cell = jax.jit(fnn.rnn(CELL, feature_axes=0))


def log_softmax(logits):
    logits = np.float64(logits)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def logits_after(read, params, text):
    """The logits after a text, by a network that reads all of it; padded, to compile once."""
    padded = np.zeros((1, ROOM), np.int32)
    padded[0, : len(text)] = text
    return np.float64(read(params, padded)[0, len(text) - 1])


def written(read, params, prompt, steps, pick=np.argmax, stop=()):
    """(tokens, their log-probabilities) of one row, by a loop."""
    text, found = list(prompt), []
    for _ in range(steps):
        logits = logits_after(read, params, text)
        token = int(pick(logits))
        found.append((token, log_softmax(logits)[token]))
        text.append(token)
        if token in stop:
            break
    return tuple(map(list, zip(*found, strict=True)))


def table_cell(table):
    """A cell whose logits are table[t, last token], [T, V, V]: any distribution of short texts."""
    table = asarray(table, jnp.float32)

    def step(t, token):
        return t + 1, table[t, token]

    return fnn.cells.as_cell(step, lambda x: jnp.zeros(x.shape, jnp.int32))


def constant_cell(logits):
    """A cell whose logits are always the same, whatever comes in."""
    logits = asarray(logits, jnp.float32)

    def step(carry, x):
        return carry, jnp.broadcast_to(logits, (*x.shape, len(logits)))

    return fnn.cells.as_cell(step, lambda x: jnp.zeros(x.shape))
