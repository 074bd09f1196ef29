"""Small networks with their steps and data, and steps taken by hand."""

import functools
import itertools
import zlib

import jax
import jax.numpy as jnp
import numpy as np

import fnn
from fnn import train


@functools.cache
def dense_net():
    return fnn.serial(fnn.dense(8), jnp.tanh, fnn.dropout(0.2), fnn.dense(3))


@functools.cache
def conv_net():
    return fnn.serial(
        fnn.conv(4, (3, 3)), fnn.batch_norm(), jax.nn.relu, fnn.max_pool((2, 2)), fnn.flatten(3),
        fnn.dense(3),
    )  # fmt: skip


def data(shape=(4,), n=24):
    x = jax.random.normal(jax.random.key(8), (n, *shape))
    return {"image": np.asarray(x), "label": np.arange(n) % 3}


@functools.cache
def setup(net=None, tx=None, shape=(4,)):
    net, tx = net or dense_net(), tx or fnn.optim.adam(1e-2)
    loss_fn = train.supervised(
        net, fnn.losses.softmax_cross_entropy, {"accuracy": fnn.metrics.accuracy()}
    )
    return train.init(net, tx, jax.random.key(0), (1, *shape)), train.step(loss_fn, tx)


def assert_same_bits(one, two):
    assert jax.tree.structure(one) == jax.tree.structure(two)
    for a, b in zip(*map(jax.tree.leaves, (one, two)), strict=True):
        a, b = (jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
                for x in (a, b))  # fmt: skip
        assert a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()


def looped(step, ts, data, size, steps):
    """The steps by hand, over the batches of `fnn.data`: (training state, losses)."""
    key, losses, begun = jax.random.fold_in(ts.key, zlib.crc32(b"data")), [], int(ts.step)
    epochs = (fnn.data.batches(data, size, key=key, epoch=e) for e in itertools.count())
    for batch in itertools.islice(itertools.chain.from_iterable(epochs), begun, begun + steps):
        ts, metrics = step(ts, batch)
        losses.append(metrics["loss"])
    return ts, np.stack(losses)
