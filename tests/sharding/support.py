"""Networks and placements, and twenty steps on one device, to which those on many are compared."""

import functools

import jax
import numpy as np

import fnn
from fnn.sharding import MEGATRON

N = 16  # of a batch
CNN = fnn.serial(
    fnn.conv(8, (3, 3)), fnn.batch_norm(), jax.nn.relu, fnn.max_pool((2, 2)), fnn.flatten(3),
    fnn.dense(16), jax.nn.relu, fnn.dropout(0.3), fnn.dense(4),
)  # fmt: skip
LSTM = fnn.serial(fnn.lstm(16, return_sequence=False), fnn.dense(4))
TRANSFORMER = fnn.serial(
    fnn.embedding(32, 16),
    fnn.repeat(fnn.transformer_block(16, 4, causal=True, rate=0.1), 2),
    lambda x: x[..., -1, :],
    fnn.dense(4),
)
EXPERT = fnn.serial(
    fnn.dense(16, axes=("in", "hidden")), jax.nn.gelu, fnn.dense(8, axes=("hidden", "out"))
)
EXPERTS = fnn.serial(fnn.moe(EXPERT, 8), lambda x: x[..., -1, :], fnn.dense(4))
RANDOM = np.random.default_rng(0)
NETS = {
    "cnn": (CNN, RANDOM.normal(size=(N, 8, 8, 3)).astype("f4")),
    "lstm": (LSTM, RANDOM.normal(size=(N, 6, 8)).astype("f4")),
    "transformer": (TRANSFORMER, RANDOM.integers(0, 32, (N, 6)).astype("i4")),
    "experts": (EXPERTS, RANDOM.normal(size=(N, 6, 8)).astype("f4")),
}
LABELS = RANDOM.integers(0, 4, N).astype("i4")
SMALL = fnn.serial(fnn.dense(16), fnn.batch_norm(), jax.nn.relu, fnn.dropout(0.3), fnn.dense(4))
ROWS = RANDOM.normal(size=(40, 8)).astype("f4")
ROW_LABELS = RANDOM.integers(0, 4, 40).astype("i4")
DATA = {"image": ROWS, "label": ROW_LABELS}
FULL = {"fsdp": "data", "least": 1}
PLACES = {
    "data": ({"data": 8}, {}),
    "full": ({"data": 8}, FULL),
    "tensor": ({"data": 1, "model": 4}, {"rules": MEGATRON}),
    "full and tensor": ({"data": 2, "model": 4}, {"rules": MEGATRON, **FULL}),
    "experts": ({"data": 2, "model": 4}, {"rules": [("*experts/*", {"stack": "model"})]}),
}
TENSOR = ("transformer", "experts")
CASES = [
    (net, place) for net in NETS for place in PLACES
    if ("tensor" not in place or net in TENSOR) and ("experts" not in place or net == "experts")
]  # fmt: skip


def placed_on(net, tx, x, sizes, options):
    count = int(np.prod(list(sizes.values())))
    mesh = fnn.sharding.mesh(devices=jax.devices()[:count], **sizes)
    return fnn.sharding.plan(mesh, net, tx, x, **options)


def step_of(net, tx, **options):
    return fnn.train.step(
        fnn.train.supervised(net, fnn.losses.softmax_cross_entropy), tx, **options
    )


def twenty_steps(net, x, placed, built=None):
    """The last training state, the losses, and how often the loss was traced."""
    tx, traced = fnn.optim.sgd(0.02, 0.5), []
    loss = fnn.train.supervised(built or net, fnn.losses.softmax_cross_entropy)

    def loss_fn(*args):
        traced.append(1)
        return loss(*args)

    ts, losses = fnn.train.init(net, tx, jax.random.key(1), x, shardings=placed), []
    step = fnn.train.step(loss_fn, tx, shardings=placed)
    for _ in range(20):
        ts, metrics = step(ts, {"image": x, "label": LABELS})
        losses.append(metrics["loss"])
    return ts._replace(key=None), np.asarray(losses), len(traced)


@functools.cache
def alone(name):
    return twenty_steps(*NETS[name], None)


def check_steps(name, placed, built=None):
    want, losses, _ = alone(name)
    got, theirs, traced = twenty_steps(*NETS[name], placed, built)
    assert traced == 1
    np.testing.assert_allclose(theirs, losses, atol=1e-6)
    for (keys, a), b, sharding in zip(
        jax.tree_util.tree_leaves_with_path(want), jax.tree.leaves(got),
        jax.tree.leaves(placed.train_state._replace(key=None)), strict=True,
    ):  # fmt: skip
        path = jax.tree_util.keystr(keys)
        np.testing.assert_allclose(a, b, atol=1e-6, err_msg=path)
        assert b.sharding.is_equivalent_to(sharding, b.ndim), path
