"""The same program gives the same bits in another process, and imports no more than it needs."""

import hashlib

import jax
import numpy as np

import fnn
from tests.support import python


def trained():
    """A digest of a convolutional network's params after three epochs."""
    net = fnn.serial(
        fnn.conv(4, (3, 3)), fnn.batch_norm(), jax.nn.relu, fnn.max_pool((2, 2)), fnn.flatten(3),
        fnn.dropout(0.5), fnn.dense(3),
    )  # fmt: skip
    tx = fnn.optim.adam(1e-2)
    step = fnn.train.step(fnn.train.supervised(net, fnn.losses.softmax_cross_entropy), tx)
    ts = fnn.train.init(net, tx, jax.random.key(0), (1, 8, 8, 1))
    x = np.random.default_rng(0).normal(size=(40, 8, 8, 1)).astype(np.float32)
    data = {"image": x, "label": np.arange(40) % 3}
    ts, _ = fnn.train.fit(step, ts, data, epochs=3, batch_size=16, progress=False)
    leaves = [np.asarray(a).tobytes() for a in jax.tree.leaves(ts.params)]
    return hashlib.sha256(b"".join(leaves)).hexdigest()


def test_another_process_gives_the_same_bits():
    one, two = trained(), python("from tests import test_purity; print(test_purity.trained())")
    assert one == two and len(one) == hashlib.sha256().digest_size * 2


def test_importing_fnn_imports_no_extra():
    heavy = ("optax", "flax", "tensorflow_datasets", "matplotlib", "tqdm", "PIL", "tensorflow")
    loaded = python(f"import sys, fnn; print([m for m in {heavy!r} if m in sys.modules])")
    assert loaded == "[]"
