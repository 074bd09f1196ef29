"""A transformer and a convolutional network in few bits: what each number format costs.

    python examples/quantization.py                # trains both, or takes params that it has saved
    python examples/quantization.py --only cnn

The transformer of gpt.py needs 2.115 bits per character of held-out text. Its kernels in int8 take
0.28 of the bytes and as many bits; in int4, in groups of 32 weights clipped for a batch of the
training text, 0.18 of the bytes and 0.7% more bits. The network of mnist_cnn.py misreads 23 or 24
of 1,000 digits in any of the formats. The time of a forward pass hardly changes on a CPU. Training
both takes four minutes on two cores; later runs take the params from the folder of the output.
"""

import argparse
import pathlib
import pydoc_data.topics
import time

import jax
import jax.numpy as jnp
import numpy as np

import fnn

WINDOW, FEATURES, HEADS, DEPTH = 128, 128, 4, 3  # of the transformer, as in gpt.py
STEPS, INTERVAL, BATCH_SIZE, LEARNING_RATE, WARMUP = 800, 100, 8, 2e-3, 50
EPOCHS, IMAGES = 15, 64  # of the convolutional network, as in mnist_cnn.py: epochs and batch size
CALIBRATION = 32  # examples of the training data, on which weights are clipped
REPEATS = 20  # of which the shortest time counts

# What is stored: the dtype, the weights in a group (None: all of an output feature), and whether
# weights are clipped before.
STORED = {
    "bfloat16": (jnp.bfloat16, None, False),
    "float8_e4m3fn": (jnp.float8_e4m3fn, None, False),
    "float8_e5m2": (jnp.float8_e5m2, None, False),
    "int8": (jnp.int8, None, False),
    "int8, clipped": (jnp.int8, None, True),
    "int4": (jnp.int4, None, False),
    "int4, clipped": (jnp.int4, None, True),
    "int4, groups of 64": (jnp.int4, 64, False),
    "int4, groups of 64, clipped": (jnp.int4, 64, True),
    "int4, groups of 32": (jnp.int4, 32, False),
    "int4, groups of 32, clipped": (jnp.int4, 32, True),
}


# --- the transformer, and the text


def load_text():
    """Python's help topics as numbers, each paragraph once: (training, held-out, how many)."""
    topics = pydoc_data.topics.topics
    paragraphs = "\n\n".join(topics[name] for name in sorted(topics)).split("\n\n")
    text = "\n\n".join(dict.fromkeys(paragraphs))
    alphabet, numbers = np.unique(list(text), return_inverse=True)
    numbers, cut = numbers.astype(np.int32), len(text) * 9 // 10
    return numbers[:cut], numbers[cut:], len(alphabet)


def windows(characters, starts):
    rows = np.asarray(starts)[:, None] + np.arange(WINDOW)
    return {"x": characters[rows], "next": characters[rows + 1]}


def transformer(characters):
    @fnn.compose(
        embed=fnn.embedding(characters, FEATURES),
        blocks=fnn.repeat(
            fnn.transformer_block(FEATURES, HEADS, causal=True, rotary=10_000.0), DEPTH
        ),
        norm=fnn.layer_norm(),
    )
    def transformer(f, x):  # [B, T] characters
        h = f.norm(f.blocks(f.embed(x)))  # [B, T, FEATURES]
        return h @ f.embed.params["embedding"].T  # [B, T, V]

    return transformer


def bits(logits, characters):
    return fnn.losses.bits_per_character(fnn.losses.softmax_cross_entropy(logits, characters))


def language():
    """(network, how to train it, held-out inputs and labels, inputs to clip for, loss)."""
    text, held, characters = load_text()
    net, held = transformer(characters), windows(held, range(0, len(held) - WINDOW, WINDOW))

    def batches(interval):
        rng = np.random.default_rng((0, interval))
        for _ in range(INTERVAL):
            yield windows(text, rng.integers(len(text) - WINDOW, size=BATCH_SIZE))

    def rate(count):
        fall = (1 + jnp.cos(jnp.pi * jnp.minimum(count / STEPS, 1))) / 2
        return LEARNING_RATE * jnp.minimum((count + 1) / WARMUP, 1) * fall

    def train():
        tx = fnn.optim.adam(rate, b2=0.99)
        step = fnn.train.step(fnn.train.supervised(net, bits, names=("x", "next")), tx)
        ts = fnn.train.init(net, tx, jax.random.key(0), held["x"][:1])
        return fnn.train.fit(step, ts, batches, epochs=STEPS // INTERVAL)[0].params

    seen = windows(text, range(0, CALIBRATION * WINDOW, WINDOW))["x"]
    return net, train, (held["x"], held["next"]), seen, bits


# --- the convolutional network, and the digits


def digits():
    train_set, test = fnn.data.load("mnist_5k", floats=True).values()
    net = fnn.serial(
        fnn.conv(32, (3, 3)), jax.nn.relu, fnn.max_pool((2, 2)),
        fnn.conv(64, (3, 3)), jax.nn.relu, fnn.max_pool((2, 2)), fnn.flatten(3),
        fnn.dense(128), jax.nn.relu, fnn.dropout(0.5), fnn.dense(10),
    )  # fmt: skip
    steps = EPOCHS * (len(train_set["label"]) // IMAGES)

    def rate(count):
        return LEARNING_RATE * (1 + jnp.cos(jnp.pi * jnp.minimum(count / steps, 1))) / 2

    def train():
        tx = fnn.optim.adam(rate)
        step = fnn.train.step(fnn.train.supervised(net, fnn.losses.softmax_cross_entropy), tx)
        ts = fnn.train.init(net, tx, jax.random.key(0), test["image"][:1])
        return fnn.train.fit(step, ts, train_set, epochs=EPOCHS, batch_size=IMAGES)[0].params

    def wrong(logits, labels):
        return 100.0 * (logits.argmax(-1) != labels)  # percent

    seen = train_set["image"][:CALIBRATION]
    return net, train, (test["image"], test["label"]), seen, wrong


NETWORKS = {"transformer": (language, "bits/char"), "cnn": (digits, "wrong, %")}


# --- the table


def seconds(calls):
    """The shortest time of each of several calls, taken in turn."""
    jax.block_until_ready([call() for call in calls])
    times = []
    for _ in range(REPEATS):
        row = []
        for call in calls:
            start = time.perf_counter()
            jax.block_until_ready(call())
            row.append(time.perf_counter() - start)
        times.append(row)
    return np.min(times, axis=0)


def compare(net, params, held, seen, loss, header):
    """Print a line for each way to store params."""
    x, labels = held
    ways = {"float32": (net, params)}
    for name, (dtype, group_size, clip) in STORED.items():
        way, plain = fnn.stored(net, dtype, group_size=group_size), params
        if clip:
            how = dict(dtype=dtype, group_size=group_size)
            plain = fnn.clipped(net, params, {}, seen, **how)
        ways[name] = way, fnn.unmerge(way, plain, {}, x[:1])[0]
    runs = {name: jax.jit(way) for name, (way, _) in ways.items()}
    found = {
        name: float(jnp.mean(loss(runs[name](own, x), labels))) for name, (_, own) in ways.items()
    }
    times = [
        seconds([lambda f=runs[n], p=p, i=i: f(p, x[:i]) for n, (_, p) in ways.items()])
        for i in (1, 32)
    ]
    whole = fnn.tree.nbytes(params)
    print(f"\n{'stored as':28} {header:>9} {'bytes':>9} {'of all':>6} {'time, 1':>8} {'32':>5}")
    for i, (name, (_, own)) in enumerate(ways.items()):
        size = fnn.tree.nbytes(own)
        ratios = " ".join(
            f"{t[i] / t[0]:{width}.2f}" for t, width in zip(times, (8, 5), strict=True)
        )
        print(f"{name:28} {found[name]:9.4f} {size:9,} {size / whole:6.2f} {ratios}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=NETWORKS, help="one of the networks; both by default")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("outputs/quantization"))
    args = parser.parse_args()
    for name in [args.only] if args.only else NETWORKS:
        make, header = NETWORKS[name]
        net, train, held, seen, loss = make()
        saved = args.out / name
        if not saved.exists():
            fnn.checkpoint.save(saved, train())
        params = jax.device_put(fnn.checkpoint.restore(saved))
        print(f"\n{name}: {fnn.tree.count(params):,} parameters on {jax.devices()[0].device_kind}")
        compare(net, params, held, seen, loss, header)
        print("\nthe change of the outputs, relative, if one layer alone is rounded\n")
        print(fnn.analysis.rounding(net, params, seen))


if __name__ == "__main__":
    main()
