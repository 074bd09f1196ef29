"""A convolutional network learns handwritten digits.

    python examples/mnist_cnn.py                 # 4,000 real digits, no network needed
    python examples/mnist_cnn.py --data mnist    # all 60,000

Reaches 97.7% accuracy on 1,000 test digits (97.4 to 97.8 over seeds), in half a minute on two
cores.
"""

import argparse
import pathlib
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import fnn

EPOCHS = 15
BATCH_SIZE = 64
LEARNING_RATE = 2e-3


net = fnn.serial(
    fnn.conv(32, (3, 3)),  # [B, 28, 28, 32]
    jax.nn.relu,
    fnn.max_pool((2, 2)),  # [B, 14, 14, 32]
    fnn.conv(64, (3, 3)),
    jax.nn.relu,
    fnn.max_pool((2, 2)),  # [B, 7, 7, 64]
    fnn.flatten(3),  # [B, 3136]
    fnn.dense(128),
    jax.nn.relu,
    fnn.dropout(0.5),
    fnn.dense(10),  # [B, 10]
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="mnist_5k", help="mnist_5k, mnist or fashion_mnist")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("outputs/mnist_cnn"))
    args = parser.parse_args()

    train, test = fnn.data.load(args.data, floats=True).values()
    print(f"{args.data}: {len(train['label']):,} training and {len(test['label']):,} test images")

    steps = args.epochs * (len(train["label"]) // BATCH_SIZE)

    def cosine(count):  # from LEARNING_RATE down to zero
        return LEARNING_RATE * (1 + jnp.cos(jnp.pi * jnp.minimum(count / steps, 1))) / 2

    tx = fnn.optim.adam(cosine)
    metrics = {"accuracy": fnn.metrics.accuracy()}
    loss_fn = fnn.train.supervised(net, fnn.losses.softmax_cross_entropy, metrics)
    step = fnn.train.step(loss_fn, tx)
    evaluate = fnn.train.evaluator(net, test, metrics)

    train_state = fnn.train.init(net, tx, jax.random.key(args.seed), train["image"][:1])
    count = sum(leaf.size for leaf in jax.tree.leaves(train_state.params))
    print(f"{count:,} parameters on {jax.devices()[0].device_kind}")

    start = time.perf_counter()
    train_state, history = fnn.train.fit(
        step, train_state, train, epochs=args.epochs, batch_size=BATCH_SIZE, evaluate=evaluate
    )
    seconds = time.perf_counter() - start
    accuracy = history["eval"]["accuracy"][-1]
    print(f"test accuracy {accuracy:.2%} after {args.epochs} epochs, {seconds:.0f} s of training")

    args.out.mkdir(parents=True, exist_ok=True)
    draw_curves(history, args.out / "curves.png")
    draw_mistakes(train_state.params, test, args.out / "mistakes.png")
    print(f"pictures: {args.out / 'curves.png'}, {args.out / 'mistakes.png'}")


def draw_curves(history, path):
    """Training loss by step, smoothed, and test error by epoch."""
    loss, error = history["train"]["loss"], 1 - history["eval"]["accuracy"]
    epochs = np.arange(1, len(error) + 1)
    steps = np.arange(1, len(loss) + 1) / len(loss) * len(error)
    width = max(len(loss) // 50, 1)
    smooth = np.convolve(loss, np.ones(width) / width, mode="valid")

    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    left.plot(steps, loss, color="tab:blue", alpha=0.25, linewidth=0.7, label="each batch")
    left.plot(steps[width - 1 :], smooth, color="tab:blue", label=f"mean of {width}")
    left.set(title="Training loss", xlabel="epoch", ylabel="cross-entropy (nats)", yscale="log")
    left.legend(frameon=False)
    right.plot(epochs, 100 * error, "o-", color="tab:orange")
    right.set(title="Test error", xlabel="epoch", ylabel="wrong (%)", ylim=(0, None))
    right.annotate(f"{100 * error[-1]:.1f} %", (epochs[-1], 100 * error[-1]), (0, 8),
                   textcoords="offset points", ha="center")  # fmt: skip
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_mistakes(params, test, path, columns=8, rows=3):
    """The misclassified digits with the highest confidence, at most columns * rows."""
    logits = np.concatenate(
        [jax.jit(net)(params, batch["image"]) for batch, _ in fnn.data.eval_batches(test, 256)]
    )[: len(test["label"])]
    sure = np.asarray(jax.nn.softmax(logits)).max(-1)
    guess, label = logits.argmax(-1), test["label"]
    wrong = np.flatnonzero(guess != label)
    worst = wrong[np.argsort(-sure[wrong])][: columns * rows]

    figure, panels = plt.subplots(rows, columns, figsize=(8, 3.8), layout="constrained")
    for axes in panels.flat:
        axes.axis("off")
    for axes, i in zip(panels.flat, worst, strict=False):
        axes.imshow(test["image"][i].squeeze(), cmap="gray_r")
        axes.set_title(f"{label[i]} seen as {guess[i]}", fontsize=8)
    which = f"the surest {len(worst)}" if len(worst) < len(wrong) else "all of them"
    figure.suptitle(f"{len(wrong)} of {len(label):,} test digits misread; {which}")
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
