"""A network far too large for its data, and six remedies, side by side.

    python examples/overfitting.py

A network of 85,000 parameters learns a hundred digits by heart, and the fifth of their labels that
are drawn at random: 0% wrong of those, 38% of the test digits. By sweeps over strengths, chosen on
validation digits: L1 39%, L2 35%, augmentation 31%, early stopping 22%, strong dropout 22%, eight
times the data 13%. A minute on two cores.
"""

import argparse
import functools
import pathlib
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import fnn
from fnn.data import augment

EXAMPLES, MORE, VALIDATION = 100, 800, 300
NOISE = 0.2  # the share of the training labels that is drawn at random
FEATURES = 256  # of two hidden layers: 84,490 parameters for 100 digits
STEPS, BATCH_SIZE, LEARNING_RATE = 600, 50, 1e-3
INTERVAL = 20  # steps between looks
SEEDS = 4
REMEDIES = {  # how strong, of which the best on the validation digits is drawn
    "nothing": [0.0],
    "L1": [1e-4, 3e-4, 1e-3],
    "L2": [3e-3, 1e-2, 3e-2],
    "dropout": [0.5, 0.7, 0.85],
    "augmentation": [0.5, 1.0, 2.0],
    "more data": [0.0],
}


def load(key):
    """Real digits, 8 x 8 pixels: few to train with, more of them, and others to look at."""
    of_split, of_noise, of_labels = jax.random.split(key, 3)
    train, test = fnn.data.load("digits", floats=True).values()
    rest = len(train["label"]) - MORE - VALIDATION
    sizes = {"more data": MORE, "validation": VALIDATION, "rest": rest}
    parts = fnn.data.split(train, sizes, of_split, by="label") | {"test": test}
    noisy = jax.random.bernoulli(of_noise, NOISE, (MORE,))
    drawn = jax.random.randint(of_labels, (MORE,), 0, 10)
    parts["more data"]["label"] = np.where(noisy, drawn, parts["more data"]["label"])
    parts["few"] = jax.tree.map(lambda a: a[:EXAMPLES], parts["more data"])
    return jax.device_put(parts)


def network(rate):
    return fnn.serial(
        fnn.flatten(3),
        fnn.dense(FEATURES), jax.nn.relu, fnn.dropout(rate),
        fnn.dense(FEATURES), jax.nn.relu, fnn.dropout(rate),
        fnn.dense(10),
    )  # fmt: skip


def run_fn(key, strength, *, remedy, data):
    """A whole run with a remedy of some strength: the curves of loss and error."""
    net = network(strength if remedy == "dropout" else 0.0)
    moved = augment.affine(10 * strength, strength, (1 - strength / 10, 1 + strength / 10))
    penalty = {"L1": fnn.losses.l1, "L2": fnn.losses.l2}.get(remedy, lambda params: 0.0)
    supervised = fnn.train.supervised(
        net,
        fnn.losses.softmax_cross_entropy,
        augment=moved if remedy == "augmentation" else None,
    )

    def loss_fn(params, state, batch, key):
        loss, rest = supervised(params, state, batch, key)
        return loss + strength * penalty(params), rest

    few = data["more data" if remedy == "more data" else "few"]
    tx = fnn.optim.adam(LEARNING_RATE)

    def evaluate(train_state):
        found = {}
        for name, part in {"train": few, **data}.items():
            logits = net(train_state.params, part["image"])
            losses = fnn.losses.softmax_cross_entropy(logits, part["label"])
            wrong = logits.argmax(axis=-1) != part["label"]
            found[name] = {"loss": jnp.mean(losses), "error": jnp.mean(wrong)}
        return found

    _, history = fnn.train.run(
        fnn.train.step(loss_fn, tx),
        fnn.train.init(net, tx, key, few["image"]),
        few,
        steps=STEPS,
        batch_size=BATCH_SIZE,
        evaluate_every=INTERVAL,
        evaluate=evaluate,
    )
    return history["eval"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("outputs/overfitting"))
    args = parser.parse_args()

    data = load(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), args.seeds)
    start, curves, strengths = time.perf_counter(), {}, {}
    for remedy, grid in REMEDIES.items():
        fn = functools.partial(run_fn, remedy=remedy, data=data)
        found = fnn.search.sweep(fn, {"strength": np.float32(grid)}, keys=keys, progress=False)
        results = jax.tree.map(found.grid, found.results)  # [strength, seed, look]
        best = results["validation"]["loss"][..., -1].mean(axis=1).argmin()
        curves[remedy] = jax.tree.map(lambda a, best=best: np.asarray(a[best]), results)
        strengths[remedy] = grid[best]
    runs = args.seeds * sum(map(len, REMEDIES.values()))
    print(f"{runs} runs of {STEPS} steps in {time.perf_counter() - start:.0f} s")

    print(f"{'':20} {'strength':>8} {'train':>8} {'test':>8}   wrong (%), mean of seeds")
    for remedy, of in curves.items():
        train, test = (100 * of[name]["error"][:, -1].mean() for name in ("train", "test"))
        print(f"{remedy:20} {strengths[remedy] or '':>8} {train:8.1f} {test:8.1f}")
    stopped = curves["nothing"]
    kept = stopped["validation"]["loss"].argmin(axis=1)  # of each seed
    at = [stopped[name]["error"][np.arange(args.seeds), kept].mean() for name in ("train", "test")]
    print(f"{'early stopping':20} {'':>8} {100 * at[0]:8.1f} {100 * at[1]:8.1f}")

    args.out.mkdir(parents=True, exist_ok=True)
    draw(curves, strengths, kept, args.out / "overfitting.png")
    print(f"picture: {args.out / 'overfitting.png'}")


def draw(curves, strengths, kept, path):
    """Training and test loss of each remedy; the gap between them is the overfitting."""
    figure, axes = plt.subplots(2, 3, figsize=(11, 5.6), sharex=True, sharey=True,
                                layout="constrained")  # fmt: skip
    for ax, (remedy, of) in zip(axes.flat, curves.items(), strict=False):
        steps = INTERVAL * np.arange(1, of["test"]["loss"].shape[1] + 1)
        for name, color in (("train", "C0"), ("test", "C1")):
            loss = of[name]["loss"]
            ax.plot(steps, loss.T, color=color, alpha=0.3, linewidth=0.8)
            ax.plot(steps, loss.mean(axis=0), color=color, label=name)
        if remedy == "nothing":
            where = steps[int(np.median(kept))]
            ax.axvline(where, color="gray", linestyle="--", label="early stopping")
            ax.legend(frameon=False)
        error = 100 * of["test"]["error"][:, -1].mean()
        strength = f", {strengths[remedy]:g}" if strengths[remedy] else ""
        ax.set(title=f"{remedy}{strength}: {error:.1f}% wrong", yscale="log")
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes[1]:
        ax.set(xlabel="step")
    for ax in axes[:, 0]:
        ax.set(ylabel="cross-entropy", ylim=(1e-3, 3))
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
