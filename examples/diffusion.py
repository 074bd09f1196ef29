"""Denoising diffusion draws digits on demand, by a small U-Net that guesses the noise.

    python examples/diffusion.py                 # 4,000 real digits, no network needed
    python examples/diffusion.py --data mnist    # all 60,000

Images of 14 x 14 pixels become noise in a hundred steps, and the network learns to take it away
(Ho, Jain and Abbeel 2020). Drawn from noise alone by averaged params, 79% of the digits are most
similar to a training digit of the class asked for; of real test digits 94% are. Two minutes on two
cores.
"""

import argparse
import functools
import pathlib
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jax.nn import silu

import fnn

TIMES = 100  # steps from an image to noise, and back
CHANNELS, EMBEDDING = 32, 128
STEPS, BATCH_SIZE, LEARNING_RATE, AVERAGE = 2000, 32, 2e-3, 0.998
DRAWN = 8  # of each digit


# --- the network: what noise is in x_t? (Ho, Jain and Abbeel 2020)


@fnn.builder
def block(features):
    """A residual block that is told the time and the digit."""

    @fnn.compose(
        norm1=fnn.group_norm(8, 2), conv1=fnn.conv(features, (3, 3)),
        told=fnn.dense(features),
        norm2=fnn.group_norm(8, 2), conv2=fnn.conv(features, (3, 3)),
        shortcut=fnn.conv(features, (1, 1)),
    )  # fmt: skip
    def block(f, x, told):  # [..., H, W, C], [..., EMBEDDING]
        h = f.conv1(silu(f.norm1(x))) + f.told(told)[..., None, None, :]
        return f.shortcut(x) + f.conv2(silu(f.norm2(h)))  # [..., H, W, features]

    return block


@fnn.compose(
    time=fnn.serial(fnn.sinusoidal(64), fnn.dense(EMBEDDING), silu, fnn.dense(EMBEDDING)),
    digit=fnn.embedding(10, EMBEDDING, embedding_init=fnn.initializers.normal(1.0)),
    first=fnn.conv(CHANNELS, (3, 3)),
    fine=block(CHANNELS),
    shrink=fnn.conv(CHANNELS, (3, 3), strides=2),
    coarse1=block(2 * CHANNELS),
    coarse2=block(2 * CHANNELS),
    grow=fnn.upsample((2, 2)),
    joined=block(CHANNELS),
    norm=fnn.group_norm(8, 2),
    last=fnn.conv(1, (3, 3), kernel_init=fnn.initializers.zeros),
)
def net(f, x, t, digit):  # [..., 14, 14, 1], [...], [...]
    told = silu(f.time(t) + f.digit(digit))
    fine = f.fine(f.first(x), told)  # [..., 14, 14, CHANNELS]
    coarse = f.coarse2(f.coarse1(f.shrink(fine), told), told)  # [..., 7, 7, 2 CHANNELS]
    both = jnp.concatenate([fine, f.grow(coarse)], axis=-1)
    return f.last(silu(f.norm(f.joined(both, told))))  # [..., 14, 14, 1]


# --- diffusion


def kept(t):
    """The share of the image in the variance of x_t, from 1 to 0 (Nichol and Dhariwal 2021)."""
    return jnp.cos((t / TIMES + 0.008) / 1.008 * jnp.pi / 2) ** 2


def loss_fn(params, state, batch, key):
    """The mean squared error of the guess, at times and with noise drawn anew."""
    of_time, of_noise = jax.random.split(key)
    image, digit = batch
    t = jax.random.randint(of_time, digit.shape, 1, TIMES)
    noise = jax.random.normal(of_noise, image.shape)
    share = kept(t)[:, None, None, None]
    x = jnp.sqrt(share) * image + jnp.sqrt(1 - share) * noise
    return jnp.mean((net(params, x, t, digit) - noise) ** 2), (state, {})


def draw_digits(params, digit, key):
    """Images of the digits, from noise alone, and what they were on the way: [TIMES - 1, ...]."""
    of_start, of_steps = jax.random.split(key)
    start = jax.random.normal(of_start, (*digit.shape, 14, 14, 1))

    def back(x, now):
        t, key = now
        noise = net(params, x, jnp.full(digit.shape, t), digit)
        image = jnp.clip((x - jnp.sqrt(1 - kept(t)) * noise) / jnp.sqrt(kept(t)), -1, 1)
        # x_{t-1} given x_t and the image, equations 6 and 7
        alpha, before = kept(t) / kept(t - 1), kept(t - 1)
        mean = jnp.sqrt(before) * (1 - alpha) * image + jnp.sqrt(alpha) * (1 - before) * x
        var = (1 - alpha) * (1 - before) / (1 - kept(t))
        x = mean / (1 - kept(t)) + jnp.sqrt(var) * jax.random.normal(key, x.shape)
        return jnp.where(t > 1, x, image), image

    times = jnp.arange(TIMES - 1, 0, -1)
    return jax.lax.scan(back, start, (times, jax.random.split(of_steps, len(times))))


def load(name):
    """Images of half the size, in [-1, 1], and their labels, to learn from and to compare with."""
    for part in fnn.data.load(name, floats=True).values():
        image = part["image"].reshape(-1, 14, 2, 14, 2, 1).mean(axis=(2, 4))
        yield 2 * image - 1, part["label"]


def read(images, known, labels):
    """The label of the most similar known image."""
    a, b = images.reshape(len(images), -1), known.reshape(len(known), -1)
    return labels[((b**2).sum(axis=1) - 2 * a @ b.T).argmin(axis=1)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="mnist_5k", help="mnist_5k, mnist or fashion_mnist")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("outputs/diffusion"))
    args = parser.parse_args()

    train, test = load(args.data)
    rate = fnn.optim.schedules.warmup_cosine(0.0, LEARNING_RATE, args.steps // 10, args.steps)
    tx = fnn.optim.chain(fnn.optim.adam(rate), fnn.optim.average_params(AVERAGE))
    first = jax.tree.map(lambda a: a[:1], train)
    train_state = fnn.train.init(
        net, tx, jax.random.key(args.seed), first[0], np.ones(1, np.int32), first[1]
    )
    print(f"{fnn.tree.count(train_state.params):,} parameters")

    start = time.perf_counter()
    run = functools.partial(
        fnn.train.run, fnn.train.step(loss_fn, tx), steps=args.steps, batch_size=BATCH_SIZE
    )
    train_state, history = jax.jit(run, donate_argnums=0)(train_state, train)
    params = fnn.optim.averaged_params(train_state.opt_state, train_state.params)
    trained = np.asarray(history["train"]["loss"])[-100:].mean()
    unseen, _ = jax.jit(loss_fn)(params, {}, test, jax.random.key(1))
    seconds = time.perf_counter() - start
    print(f"squared error {trained:.4f} in training, {unseen:.4f} on test digits, {seconds:.0f} s")

    digit = np.tile(np.arange(10, dtype=np.int32), DRAWN)
    images, on_the_way = jax.jit(draw_digits)(params, digit, jax.random.key(2))
    images = np.asarray(images)
    asked, real = (np.mean(read(x, *train) == y) for x, y in ((images, digit), test))
    print(
        f"the nearest training digit is the one asked for: {asked:.0%} (of test digits {real:.0%})"
    )

    args.out.mkdir(parents=True, exist_ok=True)
    draw(images, np.asarray(on_the_way)[:, :10], args.out / "diffusion.png")
    print(f"picture: {args.out / 'diffusion.png'}")


def draw(images, on_the_way, path):
    """Digits on demand, and one row of them from noise to image."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    looks = np.linspace(0, len(on_the_way) - 1, DRAWN).astype(int)
    titles = f"on demand, {DRAWN} of each", "the guessed image, from noise on"
    for ax, title, rows in zip(
        panels, titles, (images.reshape(DRAWN, 10, 14, 14), on_the_way[looks, ..., 0]), strict=True
    ):
        page = rows.transpose(0, 2, 1, 3).reshape(DRAWN * 14, 10 * 14)
        ax.imshow(page, cmap="gray_r", vmin=-1, vmax=1)
        ax.set(title=title, xticks=[], yticks=[])
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
