"""A vision transformer reads digits as a sequence of patches.

    python examples/vit.py                 # 4,000 real digits, no network needed
    python examples/vit.py --data mnist    # all 60,000

Sixteen patches of 7 x 7 pixels, four blocks of attention, and training digits that are turned,
moved, zoomed and sheared a little: 96.8% of 1,000 test digits after 30 epochs, in under two minutes
on two cores. (A convolutional network, which knows that near pixels belong together, reaches 97.7%
in a quarter of the time: mnist_cnn.py.)
"""

import argparse
import pathlib
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import fnn
from fnn.data import augment

PATCH, FEATURES, HEADS, DEPTH = 7, 64, 4, 4
EPOCHS, BATCH_SIZE = 30, 64
LEARNING_RATE, WEIGHT_DECAY, WARMUP = 2e-3, 0.05, 100


@fnn.compose(
    patches=fnn.conv(FEATURES, (PATCH, PATCH), strides=PATCH, padding="VALID"),
    start=fnn.parameter((1, FEATURES)),  # the class token
    places=fnn.parameter(  # the position embeddings
        ((28 // PATCH) ** 2 + 1, FEATURES), init=fnn.initializers.normal(0.02)
    ),
    blocks=fnn.repeat(fnn.transformer_block(FEATURES, HEADS, rate=0.1), DEPTH),
    norm=fnn.layer_norm(),
    head=fnn.dense(10),
)
def net(f, x):  # [..., 28, 28, 1]
    h = f.patches(x)  # [..., 4, 4, FEATURES]
    h = h.reshape(*h.shape[:-3], -1, FEATURES)  # [..., 16, FEATURES]
    start = jnp.broadcast_to(f.start(), (*h.shape[:-2], 1, FEATURES))
    h = jnp.concatenate([start, h], axis=-2) + f.places()  # [..., 17, FEATURES]
    return f.head(f.norm(f.blocks(h))[..., 0, :])  # [..., 10] logits, from the class token


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="mnist_5k", help="mnist_5k, mnist or fashion_mnist")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("outputs/vit"))
    args = parser.parse_args()

    train, test = fnn.data.load(args.data, floats=True).values()
    steps = args.epochs * (len(train["label"]) // BATCH_SIZE)
    rate = fnn.optim.schedules.warmup_cosine(0.0, LEARNING_RATE, min(WARMUP, steps // 2), steps)
    tx = fnn.optim.adamw(
        rate, weight_decay=WEIGHT_DECAY, mask=lambda params: fnn.tree.mask(params, "*kernel")
    )
    loss_fn = fnn.train.supervised(
        net,
        fnn.losses.softmax_cross_entropy,
        augment=augment.affine(15, 2, (0.85, 1.15), 10),  # turn, shift, zoom and shear a little
    )
    step = fnn.train.step(loss_fn, tx)
    evaluate = fnn.train.evaluator(net, test, {"accuracy": fnn.metrics.accuracy()})

    train_state = fnn.train.init(net, tx, jax.random.key(args.seed), train["image"][:1])
    print(f"{fnn.tree.count(train_state.params):,} parameters")
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
    draw(train_state.params, 100 * (1 - accuracy), args.out / "vit.png")
    print(f"picture: {args.out / 'vit.png'}")


def draw(params, error, path):
    """The test error, and how alike the learned places of the patches are."""
    figure = plt.figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(5, 4))
    axes = left.subplots()
    axes.plot(np.arange(1, len(error) + 1), error, "o-", color="C1")
    axes.set(title="test error", xlabel="epoch", ylabel="wrong (%)", ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)

    places = params["places"]["value"][1:]  # without the class token's
    places = places / jnp.linalg.norm(places, axis=-1, keepdims=True)
    side = 28 // PATCH
    alike = np.asarray(places @ places.T).reshape(side, side, side, side)
    right.suptitle("likeness of each patch's place to all others")
    for (row, column), ax in np.ndenumerate(right.subplots(side, side)):
        ax.imshow(alike[row, column], cmap="viridis", vmin=-0.5, vmax=1)
        ax.axis("off")
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
