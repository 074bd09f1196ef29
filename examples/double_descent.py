"""Double descent: as a network grows, its test error falls, rises to a peak, and falls again.

    python examples/double_descent.py
    python examples/double_descent.py --noise 0 --seeds 3       # without noise, no peak

Networks with one hidden layer are trained on 400 digits, a fifth of which have random labels. With
16 units the test error is 24.0%; with 56 units, about as many parameters as numbers to fit, it is
38.7%; with 400 units 20.6%. Without noise there is no such peak, and 400 units reach 1.9%. These
are medians over seeds, which run side by side: 85 runs of 4,000 steps, in three minutes of
processor time.
After Belkin et al. (2019) and, for the noise, Nakkiran et al. (2020).
"""

import argparse
import pathlib
import time
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import PercentFormatter
from rich.console import Console
from rich.table import Table

import fnn

WIDTHS = [1, 2, 4, 8, 12, 16, 24, 32, 40, 48, 56, 64, 80, 112, 160, 256, 400]
EXAMPLES, CLASSES, NOISE = 400, 10, 0.2  # this share of the labels is drawn at random
SEEDS, STEPS, LEARNING_RATE = 5, 4000, 1e-2

digits = fnn.data.load("digits", floats=True)
# Centred, so that Adam comes far closer to an exact fit in the same number of steps.
mean = digits["train"]["image"].mean(axis=0)
train, test = (
    jax.device_put({"image": d["image"] - mean, "label": d["label"]}) for d in digits.values()
)
# The width with as many parameters as there are numbers to fit, one per class and example.
THRESHOLD = (EXAMPLES - 1) * CLASSES / (mean.size + 1 + CLASSES)


def network(width):
    return fnn.serial(fnn.flatten(3), fnn.dense(width), jnp.tanh, fnn.dense(CLASSES))


def noisy(key, noise):
    """Examples drawn for one seed, with a share `noise` of their labels replaced at random."""
    chosen, struck, drawn = jax.random.split(key, 3)
    rows = jax.random.permutation(chosen, len(train["label"]))[:EXAMPLES]
    label = train["label"][rows]
    other = jax.random.randint(drawn, label.shape, 0, CLASSES, label.dtype)
    label = jnp.where(jax.random.bernoulli(struck, noise, label.shape), other, label)
    return {"image": train["image"][rows], "label": label}


def loss(outputs, labels):
    return fnn.losses.squared_error(outputs, jax.nn.one_hot(labels, CLASSES)).sum(axis=-1)


def run_fn(key, width, steps, noise):
    """A whole run, from initial values to errors; each step sees all examples."""
    data_key, net_key = jax.random.split(key)
    data, net = noisy(data_key, noise), network(width)
    tx = fnn.optim.adam(fnn.optim.schedules.cosine(LEARNING_RATE, steps))
    train_state = fnn.train.init(net, tx, net_key, data["image"][:1])
    step = fnn.train.step(fnn.train.supervised(net, loss), tx)
    train_state, _ = jax.lax.scan(lambda ts, _: step(ts, data), train_state, length=steps)

    def error(data):
        return jnp.mean(net(train_state.params, data["image"]).argmax(axis=-1) != data["label"])

    return {"train": error(data), "test": error(test)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--noise", type=float, default=NOISE)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("outputs/double_descent"))
    args = parser.parse_args()

    start = time.perf_counter()
    found = fnn.search.sweep(
        partial(run_fn, steps=args.steps, noise=args.noise),
        {"width": args.widths},
        keys=jax.random.split(jax.random.key(0), args.seeds),
        static=["width"],
        strategy="vmap",
        chunk=args.seeds,
    )
    errors = {name: found.grid(found.results[name]) for name in ("train", "test")}  # [width, seed]
    table = Table("width", "parameters", "training error", "test error", title="median over seeds")
    for i, width in enumerate(args.widths):
        shown = (f"{np.median(errors[name][i]):.1%}" for name in errors)
        parameters = fnn.analysis.summary(network(width), train["image"][:1]).params
        table.add_row(f"{width}", f"{parameters:,}", *shown)
    Console().print(table)
    runs = errors["test"].size
    print(f"{runs} runs of {args.steps} steps in {time.perf_counter() - start:.0f} s")

    args.out.mkdir(parents=True, exist_ok=True)
    draw(args.widths, errors, args.noise, args.out / "double_descent.png")
    print(f"picture: {args.out / 'double_descent.png'}")


def draw(widths, errors, noise, path):
    """Both errors against width, as medians and quartiles over seeds, with threshold and peak."""
    figure, axes = plt.subplots(figsize=(8.5, 4.5), layout="constrained")
    middle = {name: np.median(values, axis=1) for name, values in errors.items()}
    lines = (
        ("test", "tab:red", "test error\n(on clean labels)", "bottom"),
        ("train", "tab:blue", "training error\n(on noisy labels)", "top"),
    )
    for name, color, text, side in lines:
        low, high = np.quantile(errors[name], (0.25, 0.75), axis=1)
        axes.fill_between(widths, low, high, color=color, alpha=0.2, linewidth=0)
        axes.plot(widths, middle[name], ".-", color=color)
        axes.annotate(f"{text}, {middle[name][-1]:.0%}", (widths[-1], middle[name][-1]),
                      xytext=(8, 0), textcoords="offset points", color=color, va=side)  # fmt: skip

    axes.axvline(THRESHOLD, color="gray", linestyle="--", linewidth=0.8)
    text = f"{EXAMPLES * CLASSES:,} parameters, as many as numbers\n"
    text += f"to fit: {EXAMPLES} examples x {CLASSES} classes"
    axes.annotate(text, (THRESHOLD, 1), xycoords=("data", "axes fraction"), xytext=(6, -2),
                  textcoords="offset points", color="gray", va="top")  # fmt: skip

    test = middle["test"]
    rise = test - np.minimum.accumulate(test)  # above the best of the smaller widths
    peak = rise.argmax()
    points = (test[: peak + 1].argmin(), "", (8, -26)), (peak, "peak: ", (18, 26))
    for i, text, offset in points if rise[peak] > 0.05 else ():  # less is noise
        axes.annotate(f"{text}width {widths[i]}, {test[i]:.0%}", (widths[i], test[i]),
                      xytext=offset, textcoords="offset points", color="tab:red",
                      arrowprops={"arrowstyle": "-", "color": "tab:red"})  # fmt: skip

    axes.set(xscale="log", xlim=(None, widths[-1] * 1.08), xlabel="width of the hidden layer",
             ylabel=f"error, median and quartiles of {errors['test'].shape[1]} seeds",
             title=f"Digits, with {noise:.0%} of the training labels random")  # fmt: skip
    ticks = [2**i for i in range(10) if 2**i <= widths[-1]]
    axes.set_xticks(ticks, ticks)
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
