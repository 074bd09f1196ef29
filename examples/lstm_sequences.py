"""Recurrent networks remember: a classifier of short sequences, and the adding problem.

    python examples/lstm_sequences.py

An LSTM of 50 units learns whether the sum of a sequence of shape (10, 1) is above five, with 98.4%
accuracy on held-out sequences. Then the adding problem (Hochreiter & Schmidhuber, 1997): two of 100
numbers are marked, and the network outputs their sum. Always answering one gives a mean squared
error of 0.167. An LSTM is below 0.01 after 440 steps of 64 sequences, a GRU after 100, and a simple
recurrent network never. All of it takes a minute of processor time.
"""

import argparse
import pathlib
import time
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import fnn

SHORT, UNITS = 10, 50  # the classifier's
LONG, HIDDEN = 100, 64  # the adder's
STEPS, INTERVAL = 1000, 20  # and the steps averaged into one point of the plot
BATCH_SIZE, HELD_OUT = 64, 2000
LEARNING_RATE, LARGEST_NORM = 1e-2, 1.0
SOLVED = 0.01

LAYERS = {
    "LSTM": fnn.lstm(HIDDEN, return_sequence=False),
    "GRU": fnn.gru(HIDDEN, return_sequence=False),
    "simple RNN": fnn.simple_rnn(HIDDEN, return_sequence=False),
}


def sums(key, n):
    """Numbers [n, 10, 1], and whether their sum is above five [n]."""
    x = jax.random.uniform(key, (n, SHORT, 1))
    return x, x.sum(axis=(1, 2)) > SHORT / 2


def additions(key, n):
    """Numbers and marks [n, 100, 2], and the sum of the two marked numbers [n, 1]."""
    numbers, first, second = jax.random.split(key, 3)
    values = jax.random.uniform(numbers, (n, LONG))
    places = [
        jax.random.randint(first, (n,), 0, LONG // 2),
        jax.random.randint(second, (n,), LONG // 2, LONG),
    ]
    marks = sum(jax.nn.one_hot(place, LONG) for place in places)
    return jnp.stack([values, marks], axis=-1), (values * marks).sum(axis=-1, keepdims=True)


def learn(net, draw, loss, steps, seed):
    """Train on fresh examples; return (training state, the loss of each step)."""
    tx = fnn.optim.chain(fnn.optim.clip_by_global_norm(LARGEST_NORM), fnn.optim.adam(LEARNING_RATE))
    step = fnn.train.step(fnn.train.supervised(net, loss), tx)
    of_net, of_data = jax.random.split(jax.random.key(seed))
    keys = jax.random.split(of_data, steps)
    train_state = fnn.train.init(net, tx, of_net, draw(keys[0], 1)[0])

    @jax.jit  # the whole run is one program that draws its own data
    def run(train_state):
        return jax.lax.scan(lambda ts, key: step(ts, draw(key, BATCH_SIZE)), train_state, keys)

    train_state, metrics = run(train_state)
    return train_state, np.asarray(metrics["loss"])


def classify(steps, seed):
    """The accuracy on held-out sequences."""
    last = fnn.lstm(UNITS, return_sequence=False)
    net = fnn.serial(last, fnn.dense(1), partial(jnp.squeeze, axis=-1))

    def loss(logits, above):
        return fnn.losses.sigmoid_cross_entropy(logits, above)

    train_state, _ = learn(net, sums, loss, steps, seed)
    x, above = sums(jax.random.key(seed + 1), HELD_OUT)
    return float(jnp.mean((net(train_state.params, x) > 0) == above))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("outputs/lstm_sequences"))
    args = parser.parse_args()
    if args.steps < INTERVAL:
        parser.error(f"--steps must be at least {INTERVAL}, which make one point of the plot")

    accuracy = classify(args.steps, args.seed)
    print(
        f"is the sum of {SHORT} numbers above {SHORT / 2:g}? {accuracy:.1%} right on held-out ones"
    )

    curves = {}
    for name, layer in LAYERS.items():
        net, start = fnn.serial(layer, fnn.dense(1)), time.perf_counter()
        train_state, losses = learn(net, additions, fnn.losses.squared_error, args.steps, args.seed)
        seconds = time.perf_counter() - start
        x, y = additions(jax.random.key(args.seed + 1), HELD_OUT)
        error = float(jnp.mean((net(train_state.params, x) - y) ** 2))
        curves[name] = losses[: len(losses) // INTERVAL * INTERVAL].reshape(-1, INTERVAL).mean(1)
        below = np.flatnonzero(curves[name] < SOLVED)
        solved = f"solved after {(below[0] + 1) * INTERVAL} steps" if below.size else "not solved"
        print(f"{name}: held-out error {error:.4f}, {solved}, {seconds:.0f} s", flush=True)

    args.out.mkdir(parents=True, exist_ok=True)
    draw(curves, args.out / "lstm_sequences.png")
    print(f"picture: {args.out / 'lstm_sequences.png'}")


def draw(curves, path):
    """One adding problem, and the error of each network against steps."""
    figure, (top, axes) = plt.subplots(
        2, figsize=(7, 5), layout="constrained", height_ratios=(1, 3)
    )
    values, marks = np.asarray(additions(jax.random.key(3), 1)[0][0]).T
    top.bar(range(LONG), values, color=np.where(marks > 0, "tab:red", "lightgray"), width=0.8)
    top.set(title=f"What is the sum of the red ones? {(values * marks).sum():.2f}", xticks=[],
            yticks=[0, 1], xlim=(-1, LONG))  # fmt: skip

    for name, curve in curves.items():
        steps = (np.arange(len(curve)) + 1) * INTERVAL
        (line,) = axes.semilogy(steps, curve)
        axes.annotate(name, (steps[-1], curve[-1]), xytext=(5, 5), textcoords="offset points",
                      color=line.get_color(), va="center")  # fmt: skip
    axes.axhline(1 / 6, color="gray", linestyle="--", linewidth=0.8)
    axes.axhline(SOLVED, color="gray", linestyle=":", linewidth=0.8)
    for text, error in (("always saying one", 1 / 6), ("solved", SOLVED)):
        axes.annotate(text, (steps[-1] / 2, error), xytext=(0, -12), textcoords="offset points",
                      color="gray")  # fmt: skip
    axes.set(xlabel="step", ylabel="mean squared error", xlim=(0, steps[-1] * 1.15))
    for ax in (top, axes):
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
