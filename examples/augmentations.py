"""What augmentations do to digits, each drawn several times.

    python examples/augmentations.py                 # real digits, no network needed
    python examples/augmentations.py --data digits   # smaller ones

Each row is one augmentation, a function of a key and an image; each column one draw. In training
they run inside the compiled step: `fnn.train.supervised(net, loss, augment=...)`.
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import fnn
from fnn.data import augment

DRAWS = 10

AUGMENTATIONS = {
    "shift(4)": augment.shift(4),
    "rotate(30)": augment.rotate(30),
    "zoom(0.6, 1.4)": augment.zoom(0.6, 1.4),
    "shear(30)": augment.shear(30),
    "affine(15, 2, ...)": augment.affine(15, 2, (0.8, 1.2), 10),
    "elastic(40, 4)": augment.elastic(40, 4),
    "contrast(0.2, 1)": augment.contrast(0.2, 1.0),
    "noise(0.2)": augment.noise(0.2),
    "cutout(10)": augment.cutout(10, fill=0.5),
    "erase()": augment.erase(fill=0.5),
    "choose(rotate(30), erase())": augment.choose(augment.rotate(30), augment.erase(fill=0.5)),
    "chain(affine(), ...)": augment.chain(
        augment.affine(10, 2, (0.9, 1.1)), augment.elastic(34, 4), augment.noise(0.1)
    ),
}
MIXTURES = {
    "mixup(1)": augment.mixup(1.0, num_classes=10),
    "cutmix(1)": augment.cutmix(1.0, num_classes=10),
}


def load(name, n):
    """The first n training images in [0, 1], of different digits as far as there are."""
    train = fnn.data.load(name, "train", floats=True)
    images, labels = train["image"], train["label"]
    rank = np.array([np.sum(labels[:i] == label) for i, label in enumerate(labels[: 40 * n])])
    first = np.lexsort((labels[: 40 * n], rank))[:n]  # one of each class, then the next
    return images[first], labels[first]


def draw_rows(key, images, labels):
    """{name: (images [DRAWS, H, W], captions)}, one row an augmentation, on a digit of its own."""
    rows = {}
    for i, (name, f) in enumerate(AUGMENTATIONS.items()):
        image = images[i % len(images)]
        keys = jax.random.split(jax.random.fold_in(key, len(rows)), DRAWS)
        drawn = jax.jit(jax.vmap(f, in_axes=(0, None)))(keys, image)
        rows[name] = image, drawn, [""] * DRAWS
    for name, mix in MIXTURES.items():
        mixed, p = jax.jit(mix)(jax.random.fold_in(key, len(rows)), images, labels)
        rows[name] = images[0], mixed[:DRAWS], [caption(row) for row in np.asarray(p)[:DRAWS]]
    return rows


def caption(probabilities):
    """What a mixed image is of: "70% 3, 30% 5"."""
    order = np.argsort(-probabilities)
    parts = [f"{100 * probabilities[c]:.0f}% {c}" for c in order if probabilities[c] > 0.005]
    return ", ".join(parts[:2])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="mnist_5k", help="mnist_5k, digits, mnist ...")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("outputs/augmentations"))
    args = parser.parse_args()

    images, labels = load(args.data, max(DRAWS, len(AUGMENTATIONS)))
    rows = draw_rows(jax.random.key(args.seed), images, jnp.asarray(labels))
    print(f"{len(rows)} augmentations of {args.data}, {DRAWS} draws of each")

    args.out.mkdir(parents=True, exist_ok=True)
    draw(rows, args.out / "augmentations.png")
    print(f"picture: {args.out / 'augmentations.png'}")


def draw(rows, path):
    """A row for each augmentation: its name, the image as it is, a gap, and its draws."""
    figure, panels = plt.subplots(
        len(rows), DRAWS + 3, figsize=(11.5, 0.76 * len(rows) + 0.4),
        width_ratios=[2.9, 1, 0.25] + [1] * DRAWS, gridspec_kw={"wspace": 0.05, "hspace": 0.2},
    )  # fmt: skip
    for axes in panels.flat:
        axes.axis("off")
    for (name, (image, drawn, captions)), (label, before, _, *after) in zip(
        rows.items(), panels, strict=True
    ):
        label.text(1, 0.5, name, ha="right", va="center", family="monospace", fontsize=8)
        if name not in MIXTURES:
            show(before, image)
        for axes, y, text in zip(after, drawn, captions, strict=True):
            show(axes, y)
            axes.set_xlabel(text, fontsize=5.5, labelpad=1.5)
    panels[0, 1].set_title("image", fontsize=8)
    panels[0, 3].set_title("draws", fontsize=8, loc="left")
    figure.savefig(path, dpi=90, bbox_inches="tight", pad_inches=0.1)
    plt.close(figure)


def show(axes, image):
    axes.imshow(np.asarray(image).squeeze(), cmap="gray_r", vmin=0, vmax=1)
    axes.axis("on")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color("0.85")


if __name__ == "__main__":
    main()
