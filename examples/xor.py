"""XOR: the smallest problem that needs a hidden layer, by fnn and by hand.

    python examples/xor.py

A 2-4-1 network of sigmoids takes 10,000 steps of gradient descent on all four rows at once: written
with fnn, and with its back-propagation spelled out; the two agree within rounding. Then 64 networks
of each width train in one program: with four hidden units all of them solve it, with two 69% (to
83% over five seeds), as the others sit in a local minimum. A few seconds on two cores.
"""

import argparse
import functools
import pathlib
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jax.nn import sigmoid

import fnn
from fnn.optim import global_norm as norm

STEPS = 10_000
LEARNING_RATE = 0.5
SEEDS = 64
WIDTHS = (2, 3, 4)  # hidden units

X = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)  # [4, 2]
Y = np.array([[0], [1], [1], [0]], np.float32)  # [4, 1]


# --- by fnn


def network(width):
    return fnn.serial(hidden=fnn.dense(width), a=sigmoid, output=fnn.dense(1), b=sigmoid)


def squared_error(y, target):
    return jnp.mean((y - target) ** 2, axis=-1)


def train(net, key):
    """A whole run from a key, as one function: the params, and the loss of every step."""
    tx = fnn.optim.sgd(LEARNING_RATE)
    step = fnn.train.step(fnn.train.supervised(net, squared_error), tx)

    def one(train_state, _):
        train_state, metrics = step(train_state, (X, Y))
        return train_state, metrics["loss"]

    first = fnn.train.init(net, tx, key, X)
    last, losses = jax.lax.scan(one, first, length=STEPS)
    return last.params, losses


# --- by hand


def train_by_hand(params):
    """The same run, with the chain rule applied line by line, from the loss back to each weight."""

    def descend(params, _):
        w1, b1 = params["hidden"]["kernel"], params["hidden"]["bias"]
        w2, b2 = params["output"]["kernel"], params["output"]["bias"]

        h = sigmoid(X @ w1 + b1)  # [4, 4] rows, hidden units
        y = sigmoid(h @ w2 + b2)  # [4, 1]

        # With z the argument of a sigmoid s, ds/dz = s (1 - s).
        dy = 2 * (y - Y) / len(X)  # of the mean of (y - Y)²
        dz2 = dy * y * (1 - y)  # [4, 1]
        dw2, db2 = h.T @ dz2, dz2.sum(axis=0)
        dh = dz2 @ w2.T  # [4, 4]
        dz1 = dh * h * (1 - h)
        dw1, db1 = X.T @ dz1, dz1.sum(axis=0)

        return {
            "hidden": {"kernel": w1 - LEARNING_RATE * dw1, "bias": b1 - LEARNING_RATE * db1},
            "output": {"kernel": w2 - LEARNING_RATE * dw2, "bias": b2 - LEARNING_RATE * db2},
        }, None

    return jax.lax.scan(descend, params, length=STEPS)[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("outputs/xor"))
    args = parser.parse_args()

    (key, of_many), net = jax.random.split(jax.random.key(args.seed)), network(4)
    params, _ = jax.jit(train, static_argnums=0)(net, key)
    by_hand = jax.jit(train_by_hand)(net.init(key, X)[0])
    apart = norm(jax.tree.map(jnp.subtract, params, by_hand)) / norm(by_hand)
    print("  x0 x1   y      by fnn  by hand")
    for x, target, ours, theirs in zip(X, Y, net(params, X), net(by_hand, X), strict=True):
        print(f"  {x[0]:2.0f} {x[1]:2.0f} {target[0]:3.0f} {ours[0]:11.4f} {theirs[0]:8.4f}")
    print(f"params apart by {apart:.0e} of their norm after {STEPS:,} steps")

    runs, keys = {}, jax.random.split(of_many, SEEDS)
    for width in WIDTHS:
        start, net = time.perf_counter(), network(width)
        many, losses = jax.jit(jax.vmap(functools.partial(train, net)))(keys)
        y = jax.vmap(net, (0, None))(many, X)  # [SEEDS, 4, 1]
        solved = np.asarray((abs(y - Y) < 0.5).all(axis=(1, 2)))
        runs[width] = many, np.asarray(losses), solved
        seconds = time.perf_counter() - start
        print(f"{width} hidden units: {solved.mean():.0%} of {SEEDS} solve it, {seconds:.1f} s")

    args.out.mkdir(parents=True, exist_ok=True)
    draw(runs, args.out / "xor.png")
    print(f"picture: {args.out / 'xor.png'}")


def draw(runs, path):
    """Every run's loss, and what one that solves it and one that does not have learned."""
    figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.4), layout="constrained")
    for width, (_, losses, solved) in runs.items():
        lines = axes[0].plot(losses[:24].T, color=f"C{width}", alpha=0.5, linewidth=0.8)
        lines[0].set_label(f"{width} hidden: {solved.mean():.0%}")
    axes[0].set(title=f"{SEEDS} first values each (24 drawn)", xlabel="step",
                ylabel="mean squared error", xscale="log", yscale="log")  # fmt: skip
    legend = axes[0].legend(loc="lower left", frameon=False, title="solved by")
    for line in legend.get_lines():
        line.set(alpha=1, linewidth=2)
    axes[0].spines[["top", "right"]].set_visible(False)

    side = np.linspace(-0.25, 1.25, 121, dtype=np.float32)
    plane = np.stack(np.meshgrid(side, side), axis=-1)  # [121, 121, 2]
    most, least = max(runs), min(runs)
    shown = {
        "solved": (most, np.argmax(runs[most][2])),
        "stuck": (least, np.argmin(runs[least][2])),
    }
    for ax, (how, (width, i)) in zip(axes[1:], shown.items(), strict=True):
        y = network(width)(jax.tree.map(lambda a, i=i: a[i], runs[width][0]), plane)[..., 0]
        image = ax.contourf(side, side, y, levels=np.linspace(0, 1, 21), cmap="RdBu_r")
        ax.contour(side, side, y, levels=[0.5], colors="black", linewidths=1)
        for target, marker in ((0, "o"), (1, "s")):
            ax.scatter(*X[Y[:, 0] == target].T, marker=marker, s=70, color="white",
                       edgecolors="black", label=f"y = {target}", zorder=3)  # fmt: skip
        ax.set(title=f"{how}, with {width} hidden units", xlabel="$x_0$", ylabel="$x_1$",
               xticks=[0, 1], yticks=[0, 1], aspect="equal")  # fmt: skip
    axes[1].legend(loc="center")
    figure.colorbar(image, ax=axes[1:], label="output", ticks=[0, 0.5, 1])
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
