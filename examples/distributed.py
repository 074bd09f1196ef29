"""A convolutional network learns digits in as many processes as are started.

    python examples/distributed.py                                             # one process
    python -m fnn.distributed --processes 4 examples/distributed.py            # four, here
    sbatch examples/cluster/slurm.sh examples/distributed.py                   # on a cluster

The same program runs in each, and reaches the same up to rounding: 95% of 1,000 test digits after
5 epochs. Killed and started again, with as many processes or fewer, it goes on from its last
checkpoint.
"""

import argparse
import pathlib

import jax

import fnn

BATCH_SIZE = 64
LEARNING_RATE = 2e-3


net = fnn.serial(
    fnn.conv(16, (3, 3)),  # [B, 28, 28, 16]
    jax.nn.relu,
    fnn.max_pool((2, 2)),  # [B, 14, 14, 16]
    fnn.conv(32, (3, 3)),
    jax.nn.relu,
    fnn.max_pool((2, 2)),  # [B, 7, 7, 32]
    fnn.flatten(3),  # [B, 1568]
    fnn.dense(64),
    jax.nn.relu,
    fnn.dense(10),  # [B, 10]
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="mnist_5k", help="mnist_5k, mnist or fashion_mnist")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("outputs/distributed"))
    args = parser.parse_args()
    fnn.distributed.run(lambda: train(args))


def train(args):
    first = jax.process_index() == 0
    data, test = fnn.data.load(args.data, floats=True).values()
    x, tx = data["image"][:BATCH_SIZE], fnn.optim.adam(LEARNING_RATE)
    placed = fnn.sharding.plan(fnn.sharding.mesh(data=-1), net, tx, x, fsdp="data")
    if first:
        print(f"{jax.process_count()} processes, {jax.device_count()} devices")
        print(placed)

    metrics = {"accuracy": fnn.metrics.accuracy()}
    loss_fn = fnn.train.supervised(net, fnn.losses.softmax_cross_entropy, metrics)
    ts = fnn.train.init(net, tx, jax.random.key(0), x, shardings=placed)
    step = fnn.train.step(loss_fn, tx, shardings=placed)

    # Every process has the data set; a batch's rows go to the devices that need them. Of data that
    # outgrow memory each process reads its part: fnn.data.stream(device=placed.batch_sharding).
    keeper = fnn.checkpoint.Keeper(args.out / "checkpoints", every=50)
    callbacks = [fnn.log.jsonl(args.out / "run.jsonl", overwrite=True), fnn.train.table(), keeper]
    evaluate = fnn.train.evaluator(net, test, metrics, shardings=placed)
    _, history = fnn.train.fit(
        step, ts, data, epochs=args.epochs, batch_size=BATCH_SIZE, evaluate=evaluate,
        callbacks=callbacks, resume=keeper, progress=False,
    )  # fmt: skip
    if first and len(history["eval_step"]):
        print(f"test accuracy {history['eval']['accuracy'][-1]:.1%}")


if __name__ == "__main__":
    main()
