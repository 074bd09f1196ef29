"""Which optimizer, which learning rate? 384 training runs in one command.

    python examples/sweep_learning_rate.py       # 8 seeds x 16 rates x 3 optimizers

All 384 runs of 200 steps take 8 s on two cores, most of it compilation; each optimizer has its own
program. The error on held-out digits, as the median of eight seeds, is 4.2% for adam at a rate of
0.024, 4.5% for sgd at 0.76 and 5.2% for lion at 0.012.
"""

import argparse
import pathlib
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console

import fnn

OPTIMIZERS = [fnn.optim.sgd, fnn.optim.adam, fnn.optim.lion]
RATES = np.geomspace(1e-4, 3.0, 16, dtype=np.float32)
SEEDS, STEPS, BATCH_SIZE = 8, 200, 64

train, test = jax.device_put(fnn.data.load("digits", floats=True)).values()
net = fnn.serial(fnn.flatten(3), fnn.dense(16), jax.nn.relu, fnn.dense(10))
loss_fn = fnn.train.supervised(net, fnn.losses.softmax_cross_entropy)


def run_fn(key, optimizer, rate):
    """A whole run, from initial values to test error."""
    tx = optimizer(rate)
    train_state = fnn.train.init(net, tx, key, train["image"][:1])
    train_state, history = fnn.train.run(
        fnn.train.step(loss_fn, tx), train_state, train, steps=STEPS, batch_size=BATCH_SIZE
    )
    guesses = net(train_state.params, test["image"]).argmax(axis=-1)
    return {"loss": history["train"]["loss"], "error": jnp.mean(guesses != test["label"])}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--strategy", default="auto", choices=("auto", "vmap", "map", "loop"))
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("outputs/sweep_learning_rate")
    )
    args = parser.parse_args()

    start = time.perf_counter()
    found = fnn.search.sweep(
        run_fn,
        {"optimizer": OPTIMIZERS, "rate": RATES},
        keys=jax.random.split(jax.random.key(0), args.seeds),
        strategy=args.strategy,
    )
    seconds = time.perf_counter() - start
    runs = found.results["error"].size
    print(f"{runs} runs of {STEPS} steps in {seconds:.1f} s, compiling included: {found.strategy}")
    Console().print(found.table(by="error", limit=8))

    args.out.mkdir(parents=True, exist_ok=True)
    draw(found, args.out / "sweep_learning_rate.png")
    print(f"picture: {args.out / 'sweep_learning_rate.png'}")


def draw(found, path):
    """Learning curves at each optimizer's best rate, and the test error of all settings."""
    names = [optimizer.__name__ for optimizer in OPTIMIZERS]
    errors = found.grid(found.results["error"])  # [optimizer, rate, seed]
    losses = found.grid(found.results["loss"])  # [optimizer, rate, seed, step]
    best = np.nanmedian(errors, axis=-1).argmin(axis=1)
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4), layout="constrained")
    curves = {f"{names[k]}, rate {RATES[i]:.2g}": losses[k, i] for k, i in enumerate(best)}
    fnn.analysis.plot.curves(curves, label="training loss", log=True, axes=left)
    left.set_title(f"each at its best rate, {errors.shape[-1]} seeds")
    fnn.analysis.plot.heat_map(
        np.nanmedian(errors, axis=-1), names, [f"{rate:.1e}" for rate in RATES],
        names=("", "learning rate"), label="test error, median over seeds", axes=right,
    )  # fmt: skip
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
