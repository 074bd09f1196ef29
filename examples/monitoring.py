"""A classifier in use is watched while its inputs change: drift warns before labels come.

    python examples/monitoring.py
    python examples/monitoring.py --angle 0         # nothing changes, and nothing warns

A network learns digits, and then reads 120 batches of 100, of which the first 30 are like those of
training; from then on the digits turn, a little more each batch, up to 45 degrees. Over the last
ten batches, accuracy falls from 96% to 33% (33 to 39 over three seeds), and the network becomes far
too sure. That takes labels to see; but after 8 or 9 batches, at 4 degrees and 95 to 96%, the
stability index of the inputs passes 0.25, and after 21 to 29 that of the network's confidence.
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jax.scipy.ndimage import map_coordinates

import fnn

EPOCHS, BATCH_SIZE = 4, 64
BATCHES, PER_BATCH, WINDOW = 120, 100, 10  # of the stream; values are of the last 10 batches
STILL = 0.25  # the share of the stream before the digits begin to turn
ALARM = 0.25  # of the population stability index


def load(name):
    """Training images, others to compare the stream with, and those of the stream, in [0, 1]."""
    train, test = fnn.data.load(name, floats=True).values()
    held = len(train["label"]) // 5
    return (
        {key: a[held:] for key, a in train.items()},
        {key: a[:held] for key, a in train.items()},
        test,
    )


net = fnn.serial(
    fnn.conv(16, (3, 3)),
    jax.nn.relu,
    fnn.max_pool((2, 2)),
    fnn.conv(32, (3, 3)),
    jax.nn.relu,
    fnn.max_pool((2, 2)),
    fnn.flatten(3),
    fnn.dense(64),
    jax.nn.relu,
    fnn.dropout(0.3),
    fnn.dense(10),
)


@jax.jit
def turned(images, degrees):
    """Images [B, H, W, 1], turned about their centres."""
    angle, (height, width) = jnp.deg2rad(degrees), images.shape[1:3]
    y = jnp.arange(height)[:, None] - (height - 1) / 2
    x = jnp.arange(width)[None] - (width - 1) / 2
    from_y = y * jnp.cos(angle) - x * jnp.sin(angle) + (height - 1) / 2
    from_x = y * jnp.sin(angle) + x * jnp.cos(angle) + (width - 1) / 2
    turn = jax.vmap(lambda image: map_coordinates(image, [from_y, from_x], order=1))
    return turn(images[..., 0])[..., None]


def patches(images):
    """What is watched of images: the mean brightness of 7 x 7 patches, [B, 7, 7]."""
    batch, height, width, _ = images.shape
    size = height // 7, width // 7
    cut = images[:, : 7 * size[0], : 7 * size[1], 0]
    return cut.reshape(batch, 7, size[0], 7, size[1]).mean(axis=(2, 4))


def confidence(logits):
    return jax.nn.softmax(logits).max(axis=-1)


@jax.jit
def use(params, key, test, angles):
    """The stream: labels [T, B], and what the network says and sees of each batch."""

    def one(batch):
        key, angle = batch
        rows = jax.random.randint(key, (PER_BATCH,), 0, len(test["label"]))
        images = turned(test["image"][rows], angle)
        outputs = {"logits": net(params, images), "patches": patches(images)}
        return outputs, test["label"][rows]

    return jax.lax.map(one, (jax.random.split(key, len(angles)), angles))


def watch(params, held, outputs, labels):
    """Each statistic over time, [T] or [T, 7, 7], of the last WINDOW batches."""
    metrics = fnn.metrics
    sure = metrics.histogram(confidence(jax.jit(net)(params, held["image"])))
    seen = metrics.histogram(patches(held["image"]))

    def of_logits(metric):
        return metrics.after(lambda outputs: outputs["logits"], metric)

    def of_confidence(metric):
        return metrics.after(lambda outputs: confidence(outputs["logits"]), metric)

    watched = {
        "accuracy": of_logits(metrics.accuracy()),
        "confidence": of_confidence(lambda confidence, labels: confidence),
        "calibration error": of_logits(metrics.calibration_error()),
        "inputs": metrics.after(lambda outputs: outputs["patches"], metrics.drift(seen)),
        "outputs": of_confidence(metrics.drift(sure)),
        "distance": of_confidence(metrics.drift(sure, "ks")),
    }
    return {
        name: np.asarray(metrics.over_time(metrics.windowed(metric, WINDOW), outputs, labels))
        for name, metric in watched.items()
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="mnist_5k", help="mnist_5k, mnist or fashion_mnist")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--batches", type=int, default=BATCHES)
    parser.add_argument("--angle", type=float, default=45.0, help="of the last batch, in degrees")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("outputs/monitoring"))
    args = parser.parse_args()
    if args.batches < WINDOW:
        parser.error(f"--batches must be at least {WINDOW}, which each value is taken over")

    train, held, test = load(args.data)
    key, stream_key = jax.random.split(jax.random.key(args.seed))
    tx = fnn.optim.adam(2e-3)
    step = fnn.train.step(fnn.train.supervised(net, fnn.losses.softmax_cross_entropy), tx)
    train_state = fnn.train.init(net, tx, key, train["image"][:1])
    train_state, _ = fnn.train.fit(
        step, train_state, train, epochs=args.epochs, batch_size=BATCH_SIZE
    )

    still = int(STILL * args.batches)
    angles = args.angle * np.clip(np.arange(args.batches) - still, 0, None)
    angles = np.float32(angles / (args.batches - 1 - still))
    test = jax.tree.map(jnp.asarray, test)
    outputs, labels = use(train_state.params, stream_key, test, angles)
    found = watch(train_state.params, held, outputs, labels)
    full = slice(WINDOW - 1, None)  # before, a window is not full, and few examples say little
    found = {name: values[full] for name, values in found.items()}
    time, angles = np.arange(1, args.batches + 1)[full], angles[full]
    found["inputs"] = found["inputs"].max(axis=(1, 2))  # of the patch that drifts most

    right = found["accuracy"]
    print(f"accuracy {right[0]:.1%} at first, {right[-1]:.1%} at the end")
    for name in ("inputs", "outputs"):
        print(f"stability index of the {name} above {ALARM}: ", end="")
        t = int(np.argmax(found[name] > ALARM))
        if found[name][t] > ALARM:
            print(f"at batch {time[t]}, {angles[t]:.0f} degrees, accuracy {right[t]:.1%}")
        else:
            print("never")

    args.out.mkdir(parents=True, exist_ok=True)
    draw(found, time, angles, test["image"][:1], args.out / "monitoring.png")
    print(f"picture: {args.out / 'monitoring.png'}")


def draw(found, time, angles, image, path):
    """A digit as it turns, and on one time axis what is seen with labels and without."""
    right = found["accuracy"]
    figure = plt.figure(figsize=(9, 8.5), layout="constrained")
    strip, first, second, third, last = figure.subplots(5, 1, height_ratios=(1, 2.4, 1.4, 1.8, 1.4))

    shown = angles[np.linspace(0, len(angles) - 1, 13).astype(int)]
    images = [turned(image, angle)[0, :, :, 0] for angle in shown]
    strip.imshow(np.concatenate(images, axis=1), cmap="gray_r", aspect="auto")
    width = image.shape[2]
    strip.set_xticks(width * (np.arange(len(shown)) + 0.5), [f"{a:.0f}\u00b0" for a in shown])
    strip.set_yticks([])
    strip.tick_params(length=0)
    strip.spines[:].set_visible(False)

    sure = found["confidence"]
    first.plot(time, sure, "--", color="tab:gray", label="mean confidence")
    first.plot(time, right, color="black", label="accuracy (needs labels)")
    first.fill_between(time, right, sure, where=sure > right, color="tab:red", alpha=0.2,
                       linewidth=0, label="too sure")  # fmt: skip
    first.set(ylabel="share")
    first.legend(frameon=False, loc="lower left", bbox_to_anchor=(0.27, 0))

    second.plot(time, found["calibration error"], color="tab:red")
    second.set(ylabel="calibration error\n(needs labels)", ylim=(0, None))

    third.plot(time, found["inputs"], color="tab:blue", label="inputs, the worst of 49 patches")
    third.plot(time, found["outputs"], color="tab:orange", label="outputs, confidence")
    third.set(ylabel="stability index\n(needs no labels)", ylim=(0, None))
    third.legend(frameon=False, loc="upper left", bbox_to_anchor=(0.27, 1))
    third.axhline(ALARM, color="gray", linestyle=":", linewidth=0.9)

    last.plot(time, found["distance"], color="tab:orange")
    last.set(ylabel="Kolmogorov-Smirnov\n(needs no labels)", ylim=(0, None))
    last.set(xlabel=f"batch of {PER_BATCH}; values are of the last {WINDOW}")

    marks = []
    begins = int(np.argmax(angles > 0))
    if angles[begins] > 0:
        marks.append((begins, "tab:green", "digits begin to turn ", "right"))
    warned = np.maximum(found["inputs"], found["outputs"]) > ALARM
    t = int(np.argmax(warned))
    if warned[t]:
        marks.append((t, "tab:red", f" warning, at accuracy {right[t]:.0%}", "left"))
    for axes in (first, second, third, last):
        for t, color, _, _ in marks:
            axes.axvline(time[t], color=color, linewidth=1)
        axes.set(xlim=(time[0], time[-1]))
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelbottom=axes is last)
    for t, color, text, side in marks:
        first.annotate(text, (time[t], 1), (0, 3), xycoords=("data", "axes fraction"),
                       textcoords="offset points", color=color, ha=side)  # fmt: skip
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
