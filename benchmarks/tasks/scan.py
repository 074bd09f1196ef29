"""Eight training steps of the CNN, as a Python loop of jitted steps and as one `lax.scan`.

XLA's CPU backend has no fast weight gradient of a convolution inside a loop; `conv(weight_grad=
"matmul")` forms it as one matrix product instead, which costs more outside one.
"""

from __future__ import annotations

from benchmarks.networks import BATCHES, CNN, RATE, batches
from benchmarks.task import Call, Contender, Goal, Task


def steps(weight_grad: str, scanned: bool) -> Call:
    import jax
    import jax.numpy as jnp

    import fnn

    def conv(features: int) -> fnn.Layer:
        return fnn.conv(features, (3, 3), weight_grad=weight_grad)

    pool, relu = fnn.max_pool((2, 2)), jax.nn.relu
    head = (fnn.flatten(3), fnn.dense(128), relu, fnn.dense(10))
    net = fnn.serial(conv(32), relu, pool, conv(64), relu, pool, *head)
    tx = fnn.optim.adam(RATE)
    step = fnn.train.step(fnn.train.supervised(net, fnn.losses.softmax_cross_entropy), tx)
    state = fnn.train.init(net, tx, jax.random.key(0), CNN.shape)
    data = batches(CNN, jnp.asarray)
    stacked = jax.tree.map(lambda *arrays: jnp.stack(arrays), *data)
    whole = jax.jit(lambda state: jax.lax.scan(step, state, stacked))

    def call():
        nonlocal state
        if scanned:
            state, metrics = whole(state)
            return metrics["loss"][-1]
        for batch in data:
            state, metrics = step(state, batch)
        return metrics["loss"]

    return call


def fnn(scanned: bool) -> Call:
    """conv(weight_grad="conv"), the default: XLA's own gradient"""
    return steps("conv", scanned)


def fnn_matmul(scanned: bool) -> Call:
    """conv(weight_grad="matmul"): one matrix product with the patches"""
    return steps("matmul", scanned)


def losses(contender: Contender, scanned: bool) -> list[float]:
    """After 8 and 16 steps."""
    call = contender(scanned)
    return [float(call()), float(call())]


TASK = Task(
    title=f"{BATCHES} training steps of the CNN in a Python loop and in one scan",
    cases={"loop": False, "scan": True},
    contenders={"fnn": fnn, "fnn_matmul": fnn_matmul},
    goals=(
        Goal(
            "in a scan, the matmul gradient takes at most 0.25 x XLA's own",
            "scan", 0.25, ("fnn",), "fnn_matmul",
        ),
    ),
    check=losses,
    rounds=7,
    baseline="fnn",
)  # fmt: skip
