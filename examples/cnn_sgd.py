"""A convolutional network by plain stochastic gradient descent, as the textbooks have it.

    python examples/cnn_sgd.py                 # 4,000 real digits, no network needed
    python examples/cnn_sgd.py --data mnist    # all 60,000

Ten epochs at rate 0.01, 32 digits a batch, no momentum: 93.6% of 1,000 test digits (92.8 to 93.7
over seeds). Half a minute on two cores. What a modern recipe adds is in mnist_cnn.py.
"""

import argparse
import pathlib
import time

import jax
import matplotlib.pyplot as plt
import numpy as np

import fnn

EPOCHS = 10
BATCH_SIZE = 32
LEARNING_RATE = 0.01

net = fnn.serial(
    fnn.conv(32, (3, 3)),  # [B, 28, 28, 32]
    jax.nn.relu,
    fnn.max_pool((2, 2)),  # [B, 14, 14, 32]
    fnn.conv(64, (3, 3)),
    jax.nn.relu,
    fnn.max_pool((2, 2)),  # [B, 7, 7, 64]
    fnn.flatten(3),  # [B, 3136]
    fnn.dense(64),
    jax.nn.relu,
    fnn.dense(10),  # [B, 10] logits
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="mnist_5k", help="mnist_5k, mnist or fashion_mnist")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("outputs/cnn_sgd"))
    args = parser.parse_args()

    train, test = fnn.data.load(args.data, floats=True).values()
    tx = fnn.optim.sgd(LEARNING_RATE)
    step = fnn.train.step(fnn.train.supervised(net, fnn.losses.softmax_cross_entropy), tx)
    evaluate = fnn.train.evaluator(net, test, {"accuracy": fnn.metrics.accuracy()})

    train_state = fnn.train.init(net, tx, jax.random.key(args.seed), train["image"][:1])
    start = time.perf_counter()
    train_state, history = fnn.train.fit(
        step, train_state, train, epochs=args.epochs, batch_size=BATCH_SIZE, evaluate=evaluate
    )
    seconds = time.perf_counter() - start
    accuracy = history["eval"]["accuracy"]
    print(
        f"test accuracy {accuracy[-1]:.2%} after {args.epochs} epochs, {seconds:.0f} s of training"
    )

    args.out.mkdir(parents=True, exist_ok=True)
    draw(train_state.params, history, test["image"][0], args.out / "cnn_sgd.png")
    print(f"picture: {args.out / 'cnn_sgd.png'}")


def draw(params, history, image, path):
    """The run, and what the first convolution makes of a digit."""
    _, seen = fnn.tap(net, "conv1")(params, image)
    maps = np.asarray(seen["conv1"])  # [28, 28, 32]

    epochs = np.arange(1, len(history["eval"]["accuracy"]) + 1)
    loss = history["train"]["loss"].reshape(len(epochs), -1).mean(axis=1)

    figure = plt.figure(figsize=(11, 3.4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(3, 2))
    curves = left.subplots(1, 2)
    curves[0].plot(epochs, loss, "o-")
    curves[0].set(title="training loss", xlabel="epoch", ylabel="nats", ylim=(0, None))
    curves[1].plot(epochs, 100 * (1 - history["eval"]["accuracy"]), "o-", color="C1")
    curves[1].set(title="test error", xlabel="epoch", ylabel="wrong (%)", ylim=(0, None))
    for ax in curves:
        ax.spines[["top", "right"]].set_visible(False)

    right.suptitle("a digit after the first convolution, in 32 channels")
    largest = np.abs(maps).max()
    for channel, ax in enumerate(right.subplots(4, 8).flat):
        ax.imshow(maps[..., channel], cmap="RdBu_r", vmin=-largest, vmax=largest)
        ax.axis("off")
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
