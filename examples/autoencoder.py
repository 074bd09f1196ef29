"""An autoencoder learns from digits without labels; then a hundred labels go further.

    python examples/autoencoder.py

Half of an image's pixels are hidden, and a network learns to fill them in on 4,000 digits without
labels. Its encoder is then given 100 labels: frozen at first, then learning at a smaller rate. Over
ten draws of the labels, 20.0 ± 1.5% of 1,000 test digits are wrong (a 95% interval); 23.0 ± 1.2%
with the same network from scratch. Seed by seed, 3.0 ± 1.0% fewer are. A minute on two cores.
"""

import argparse
import functools
import pathlib
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import scipy.stats

import fnn

CODE = 64  # numbers that an image is squeezed into
PRETRAINING, BATCH_SIZE, LEARNING_RATE = 3000, 64, 1e-3  # steps
HIDDEN = 0.5  # the share of pixels that the encoder does not see, and the decoder must tell
LABELS, FROZEN_STEPS, TUNING_STEPS, INTERVAL = 100, 300, 300, 20
HEAD_RATE, ENCODER_RATE = 3e-3, 3e-4  # once the encoder learns again
SEEDS = 10

encoder = fnn.serial(
    fnn.flatten(3), fnn.dense(256), jax.nn.relu, fnn.dense(CODE), jax.nn.relu
)  # fmt: skip
decoder = fnn.serial(fnn.dense(256), jax.nn.relu, fnn.dense(784), fnn.reshape((28, 28, 1)))
autoencoder = fnn.serial(hide=fnn.dropout(HIDDEN), encoder=encoder, decoder=decoder)
classifier = fnn.serial(encoder=encoder, head=fnn.dense(10))
frozen = fnn.serial(encoder=fnn.frozen(encoder), head=fnn.dense(10))


def ink(logits, image):
    """Cross-entropy of the pixels, as probabilities of ink: [..., 28, 28, 1] -> [...]."""
    return fnn.losses.sigmoid_cross_entropy(logits, image).sum(axis=(-3, -2, -1))


def pretrain(key, images, steps):
    """The autoencoder's params. An image is its own label."""
    tx = fnn.optim.adam(LEARNING_RATE)
    step = fnn.train.step(fnn.train.supervised(autoencoder, ink), tx)
    first = fnn.train.init(autoencoder, tx, key, images[:1])
    data = images, images
    return fnn.train.run(step, first, data, steps=steps, batch_size=BATCH_SIZE)[0].params


def train(net, tx, train_state, few, test, steps):
    """A run on the few labels, and the test error every so many steps."""
    step = fnn.train.step(fnn.train.supervised(net, fnn.losses.softmax_cross_entropy), tx)

    def evaluate(train_state):
        logits = net(train_state.params, test["image"], state=train_state.state)
        return {"error": jnp.mean(logits.argmax(axis=-1) != test["label"])}

    train_state, history = fnn.train.run(
        step, train_state, few, steps=steps, batch_size=LABELS // 2,
        evaluate_every=INTERVAL, evaluate=evaluate,
    )  # fmt: skip
    return train_state, history["eval"]["error"]


def fine_tune(key, few, test, encoder_params):
    """First the head alone, on a frozen encoder; then both, the encoder at a smaller rate."""
    x = test["image"][:1]
    first, _ = classifier.init(key, x)
    params, state = fnn.unmerge(frozen, first | {"encoder": encoder_params}, {}, x)
    tx = fnn.optim.adam(HEAD_RATE)
    train_state = fnn.train.init(frozen, tx, key, x, params=params, state=state)
    train_state, alone = train(frozen, tx, train_state, few, test, FROZEN_STEPS)

    params, _ = fnn.merge(frozen, train_state.params, train_state.state, x)
    rates = {"encoder/*": fnn.optim.adam(ENCODER_RATE), "head/*": fnn.optim.adam(HEAD_RATE)}
    tx = fnn.optim.partition(rates)
    train_state = fnn.train.init(classifier, tx, key, x, params=params)
    _, both = train(classifier, tx, train_state, few, test, TUNING_STEPS)
    return jnp.concatenate([alone, both])


def from_scratch(key, few, test):
    """The same network and labels, without what the autoencoder has learned."""
    tx = fnn.optim.adam(LEARNING_RATE)
    train_state = fnn.train.init(classifier, tx, key, test["image"][:1])
    return train(classifier, tx, train_state, few, test, FROZEN_STEPS + TUNING_STEPS)[1]


def labelled(data, key):
    """A hundred of the digits, ten of each class, with their labels."""
    sizes = {"few": LABELS, "rest": len(data["label"]) - LABELS}
    return fnn.data.split(data, sizes, key, by="label")["few"]


def interval(values):
    """The mean over seeds, and half the width of its 95% interval, by Student's distribution."""
    n = len(values)
    return np.mean(values), scipy.stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=PRETRAINING)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("outputs/autoencoder"))
    args = parser.parse_args()
    if args.seeds < 2:
        parser.error("an interval takes at least two seeds")

    train_data, test = fnn.data.load("mnist_5k", floats=True).values()
    start, key = time.perf_counter(), jax.random.key(0)
    run = jax.jit(functools.partial(pretrain, steps=args.steps))
    params = run(key, train_data["image"])
    nats = jax.jit(lambda params, x: ink(autoencoder(params, x), x).mean())(params, test["image"])
    print(f"pre-training: {nats:.1f} nats a test image, {time.perf_counter() - start:.0f} s")

    start, keys = time.perf_counter(), jax.random.split(jax.random.key(1), args.seeds)
    few = jax.tree.map(lambda *a: np.stack(a), *(labelled(train_data, k) for k in keys))
    tuned = jax.jit(jax.vmap(fine_tune, (0, 0, None, None)))(keys, few, test, params["encoder"])
    alone = jax.jit(jax.vmap(from_scratch, (0, 0, None)))(keys, few, test)
    errors = {"pre-trained": 100 * np.asarray(tuned), "from scratch": 100 * np.asarray(alone)}
    print(f"{2 * args.seeds} runs on {LABELS} labels: {time.perf_counter() - start:.0f} s")
    frozen_end = FROZEN_STEPS // INTERVAL - 1
    rows = {"frozen encoder": errors["pre-trained"][:, frozen_end]}
    rows |= {name: of[:, -1] for name, of in errors.items()}
    rows["fewer, seed by seed"] = rows["from scratch"] - rows["pre-trained"]
    for name, values in rows.items():
        mean, half = interval(values)
        print(f"{name:20} {mean:5.1f} ± {half:.1f}% wrong")

    args.out.mkdir(parents=True, exist_ok=True)
    draw(errors, params, test["image"][:8], args.out / "autoencoder.png")
    print(f"picture: {args.out / 'autoencoder.png'}")


def draw(errors, params, images, path):
    """The test error in the course of the runs, and what the autoencoder makes of half a digit."""
    figure = plt.figure(figsize=(11, 3.6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1))
    axes = left.subplots()
    for name, of in errors.items():
        steps = INTERVAL * np.arange(1, of.shape[1] + 1)
        middle, half = np.array([interval(column) for column in of.T]).T
        axes.plot(steps, middle, label=name)
        axes.fill_between(steps, middle - half, middle + half, alpha=0.25, linewidth=0)
    axes.axvline(FROZEN_STEPS, color="gray", linestyle="--", linewidth=1)
    axes.annotate("the encoder learns again", (FROZEN_STEPS, axes.get_ylim()[1]), (4, -4),
                  textcoords="offset points", va="top", color="gray")  # fmt: skip
    axes.set(title=f"{LABELS} labels, mean and 95% interval", xlabel="step",
             ylabel="test digits wrong (%)")  # fmt: skip
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)

    seen = jax.random.bernoulli(jax.random.key(0), 1 - HIDDEN, images.shape) * images
    whole = jax.nn.sigmoid(autoencoder(params, seen / (1 - HIDDEN)))
    for row, name, of in zip(right.subplots(3, len(images)), ("seen", "filled in", "whole"),
                             (seen, whole, images), strict=True):  # fmt: skip
        row[0].set_ylabel(name)
        for ax, image in zip(row, of, strict=True):
            ax.imshow(image[..., 0], cmap="gray_r", vmin=0, vmax=1)
            ax.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
