"""A training run is killed twice, goes on from its checkpoints, and ends as if nothing had happened.

    python examples/long_run.py
    python examples/long_run.py --kills 130 480 900    # at other steps

A network learns digits in a process of its own, until the validation loss has not improved for six
epochs. On the way the process gets two SIGKILLs, each in the middle of an epoch, and is started
again. The run then equals one that nobody killed, bitwise: params, optimizer and every row of the
log. The best params, after RESULT
"""

import argparse
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import matplotlib.pyplot as plt
import numpy as np

import fnn

EPOCHS, BATCH_SIZE, LEARNING_RATE = 100, 64, 2e-3
PATIENCE = 6  # epochs
SAVE_EVERY = 60  # steps
KILLS = (230, 565)  # steps

net = fnn.serial(
    fnn.conv(8, (3, 3)),
    jax.nn.relu,
    fnn.max_pool((2, 2)),
    fnn.conv(16, (3, 3)),
    jax.nn.relu,
    fnn.max_pool((2, 2)),
    fnn.flatten(3),
    fnn.dense(32),
    jax.nn.relu,
    fnn.dropout(0.2),  # its masks go on as well
    fnn.dense(10),
)
tx = fnn.optim.adam(LEARNING_RATE)
metrics = {"accuracy": fnn.metrics.accuracy()}
step = fnn.train.step(fnn.train.supervised(net, fnn.losses.softmax_cross_entropy, metrics), tx)
measured = {"loss": fnn.losses.softmax_cross_entropy} | metrics


def load(name):
    """Images to train with, to validate with, and to test with, in [0, 1]."""
    splits = fnn.data.load(name)
    train, test = (
        {"image": np.float32(splits[split]["image"]) / 255, "label": splits[split]["label"]}
        for split in ("train", "test")
    )
    held = len(train["label"]) // 5
    return (
        {key: a[held:] for key, a in train.items()},
        {key: a[:held] for key, a in train.items()},
        test,
    )


def start(train):
    return fnn.train.init(net, tx, jax.random.key(0), train["image"][:1])


def keeper_in(out):
    return fnn.checkpoint.Keeper(
        out / "checkpoints", every=SAVE_EVERY, keep=2, best="eval/loss", mode="min"
    )


def kill_at(number):
    """A callback that kills its own process, as a cluster that is short of memory does."""

    def callback(event):
        if event.step == number:
            signal.raise_signal(signal.SIGKILL)

    return callback


def fit(data, out, callbacks=()):
    """The whole run, or what is left of it."""
    train, held, _ = load(data)
    keeper = keeper_in(out)
    return fnn.train.fit(
        step,
        start(train),
        train,
        epochs=EPOCHS,
        batch_size=BATCH_SIZE,
        evaluate=fnn.train.evaluator(net, held, measured),
        callbacks=[
            fnn.train.patience("eval/loss", PATIENCE),
            fnn.log.jsonl(out / "run.jsonl", interval=0.05, overwrite=True),
            keeper,
            *callbacks,
        ],
        resume=keeper,
        progress=False,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="mnist_5k", help="mnist_5k, mnist or fashion_mnist")
    parser.add_argument("--kills", type=int, nargs="+", default=KILLS, help="steps, in order")
    parser.add_argument("--life", type=int, help="run until this step, and be killed there")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("outputs/long_run"))
    args = parser.parse_args()

    if args.life is not None:
        fit(args.data, args.out, [kill_at(args.life)])
        return

    killed, whole = args.out / "killed", args.out / "whole"
    for directory in (killed, whole):
        shutil.rmtree(directory, ignore_errors=True)  # of an earlier call
    lives, resumed, keeper = [], [0], keeper_in(killed)
    for number in (*args.kills, 0):
        command = [sys.executable, __file__, "--data", args.data, "--out", str(killed)]
        code = subprocess.run([*command, "--life", str(number)]).returncode
        lives.append(fnn.log.read(killed / "run.jsonl"))
        if number:
            assert code == -signal.SIGKILL, "a run that ends before it is killed"
            resumed.append(keeper.latest())
            print(f"killed at step {number}, goes on from the checkpoint of step {resumed[-1]}")
    assert code == 0

    train, _, test = load(args.data)
    best = keeper.restore(start(train), step=keeper.best())
    accuracy = fnn.train.evaluator(net, test, metrics)(best)["accuracy"]
    ended = keeper.restore(at="fit/ended")
    print(f"ended at step {keeper.latest()}: {ended}")
    print(f"the best params, of step {keeper.best()}: {accuracy:.1%} right on test digits")

    result, _ = fit(args.data, whole)  # in one life
    same = {
        "last checkpoint": equal(*(keeper_in(out).restore(start(train)) for out in (killed, whole))),
        "best params": equal(best.params, result.params),
        "log": equal(*(without_time(fnn.log.read(out / "run.jsonl")) for out in (killed, whole))),
    }
    print("bitwise equal to the run that nobody killed:", same)

    draw(lives, args.kills, resumed, keeper.best(), args.out / "long_run.png")
    print(f"picture: {args.out / 'long_run.png'}")


def equal(a, b):
    """Whether two trees have the same bits."""
    bits = [[fnn_bytes(leaf) for leaf in jax.tree.leaves(tree)] for tree in (a, b)]
    return jax.tree.structure(a) == jax.tree.structure(b) and bits[0] == bits[1]


def fnn_bytes(leaf):
    is_key = jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf).tobytes()


def without_time(columns):
    return {name: values for name, values in columns.items() if name != "time"}


def draw(lives, kills, resumed, best, path):
    """The log of the whole run, with its kills, and the steps as they were taken in time."""
    figure = plt.figure(figsize=(10, 6.4), layout="constrained")
    panels = figure.subplot_mosaic([["loss", "accuracy"], ["time", "time"]], height_ratios=(3, 2))
    curves, steps = [panels["loss"], panels["accuracy"]], panels["time"]
    fnn.analysis.plot.runs(lives[-1], ["loss", "accuracy"], log=["loss"], axes=curves)
    for axes, name in zip(curves, ("loss", "accuracy"), strict=True):
        for kill in kills:
            axes.axvline(kill, color="tab:red", linewidth=1.2)
        values = lives[-1][f"eval/{name}"][lives[-1]["step"] == best]
        value = values[np.isfinite(values)][0]
        axes.plot(best, value, "*", color="tab:green", markersize=15, zorder=4,
                  markeredgecolor="white", label="best")  # fmt: skip
        axes.legend(frameon=False)

    began = lives[0]["time"][0]
    for i, (life, first) in enumerate(zip(lives, resumed, strict=True)):
        own = life["step"] > first
        seconds, taken = life["time"][own] - began, life["step"][own]
        steps.plot(seconds, taken, color="C0")
        if i < len(kills):
            steps.plot(seconds[-1], kills[i], "X", color="tab:red", markersize=9, zorder=4)
            again = lives[i + 1]["step"] > resumed[i + 1]
            back = lives[i + 1]["time"][again][0] - began
            steps.plot([seconds[-1], back], [kills[i], resumed[i + 1]], ":", color="tab:red")
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
