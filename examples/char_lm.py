"""A recurrent network learns to write like Python's own manual, character by character.

    python examples/char_lm.py                   # 373,422 characters, no network needed

Reaches 1.82 bits per character of held-out text in 8 epochs, a few minutes on two cores (the text
is Python 3.11's). gzip needs 2.19 and xz 1.79; the transformer of gpt.py, which sees 128
characters at a time, needs 2.11.

The text is cut into 32 streams, read side by side. The network learns from 64 characters at a time
and carries its memory from one such chunk to the next (`fnn.train.tbptt`).
"""

import argparse
import pathlib
import pydoc_data.topics
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import fnn

FEATURES, HIDDEN, RATE = 64, 384, 0.2
EPOCHS = 8
STREAMS, CHUNK, CHUNKS = 32, 64, 16  # streams; characters per chunk, chunks per call
LEARNING_RATE, LARGEST_NORM = 4e-3, 1.0
PROMPTS, LENGTH, TEMPERATURE = ("The ", "An object "), 300, 0.6


def load():
    """Python's help topics, sorted, each paragraph once: text seen in training tests nothing."""
    topics = pydoc_data.topics.topics
    paragraphs = "\n\n".join(topics[name] for name in sorted(topics)).split("\n\n")
    text = "\n\n".join(dict.fromkeys(paragraphs))
    cut = len(text) * 9 // 10
    return text[:cut], text[cut:]


train_text, held_text = load()
alphabet = sorted(set(train_text + held_text))
index = {character: i for i, character in enumerate(alphabet)}


def encode(text):
    return np.array([index[character] for character in text], np.int32)


def streams(text, n):
    """The text as n streams side by side: {"x": [n, T], "next": the same, one character on}."""
    characters = encode(text)
    length = (len(characters) - 1) // n
    rows = np.arange(n)[:, None] * length + np.arange(length)
    return {"x": characters[rows], "next": characters[rows + 1]}


def network(join, rnn):
    """The network over whole sequences, or step by step; both take the same params."""
    return join(
        embed=fnn.embedding(len(alphabet), FEATURES),
        rnn=rnn,
        drop=fnn.dropout(RATE),
        head=fnn.dense(len(alphabet)),
    )


learner = network(fnn.serial, fnn.lstm(HIDDEN, stateful=True))
reader = network(fnn.serial, fnn.lstm(HIDDEN))
writer = network(fnn.cells.serial, fnn.cells.lstm(HIDDEN))


def bits(logits, characters):
    return fnn.losses.bits_per_character(fnn.losses.softmax_cross_entropy(logits, characters))


@jax.jit
def surprise(params, batch):
    """Bits per character, for each one: [B, T]."""
    return bits(reader(params, batch["x"]), batch["next"])


@jax.jit
def write(params, characters, lengths, key):
    """Characters [B, T]: the first `lengths` [B] are given, the network writes the rest."""
    return fnn.unroll_generate(
        writer, params, characters, lengths=lengths, key=key, temperature=TEMPERATURE
    ).x


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("outputs/char_lm"))
    args = parser.parse_args()

    text, held = streams(train_text, STREAMS), streams(held_text, 8)
    span = CHUNK * CHUNKS
    spans = text["x"].shape[1] // span  # the rest at the end of a stream is not read
    print(f"{len(train_text):,} characters to learn from, {held['next'].size:,} held out")

    total = args.epochs * spans * CHUNKS

    def fall(count):
        return LEARNING_RATE * (1 + jnp.cos(jnp.pi * jnp.minimum(count / total, 1))) / 2

    tx = fnn.optim.chain(fnn.optim.clip_by_global_norm(LARGEST_NORM), fnn.optim.adam(fall))
    step = fnn.train.step(fnn.train.supervised(learner, bits, names=("x", "next")), tx)
    long_step = fnn.train.tbptt(step, CHUNK)
    train_state = fnn.train.init(learner, tx, jax.random.key(args.seed), text["x"][:, :CHUNK])
    print(f"{fnn.tree.count(train_state.params):,} parameters on {jax.devices()[0].device_kind}")

    losses, measured, start = [], [], time.perf_counter()
    for epoch in range(args.epochs):
        train_state = train_state._replace(state=fnn.forget(train_state.state))
        for i in range(spans):
            batch = jax.tree.map(lambda a, i=i: a[:, i * span : (i + 1) * span], text)
            train_state, metrics = long_step(train_state, batch)
            losses.append(metrics["loss"])
        measured.append(float(surprise(train_state.params, held).mean()))
        print(f"{measured[-1]:.3f} bits per held-out character after epoch {epoch + 1}", flush=True)
    seconds = time.perf_counter() - start
    print(f"{measured[-1]:.2f} bits per character, {seconds:.0f} s")

    rest = [prompt.ljust(LENGTH) for prompt in PROMPTS]
    given = jnp.array([len(prompt) for prompt in PROMPTS])
    written = write(
        train_state.params, np.stack([encode(r) for r in rest]), given, jax.random.key(args.seed)
    )
    for row in written:
        print("-" * 80, "".join(alphabet[i] for i in row), sep="\n")

    args.out.mkdir(parents=True, exist_ok=True)
    some = jax.tree.map(lambda a: a[:1, :1000], held)
    draw(np.concatenate(losses), measured, some, surprise(train_state.params, some)[0],
         args.out / "char_lm.png")  # fmt: skip
    print(f"picture: {args.out / 'char_lm.png'}")


def draw(trained, measured, some, cost, path, columns=64, rows=14):
    """Bits per character against epochs, and a held-out text, coloured by its bits."""
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(12, 4.2), layout="constrained", width_ratios=(2, 3)
    )
    epochs = np.arange(1, len(measured) + 1)
    x = (np.arange(len(trained)) + 1) / len(trained) * len(measured)
    left.plot(x, trained, color="tab:blue", alpha=0.4, linewidth=0.7, label="each chunk")
    left.plot(epochs, measured, "o-", color="tab:orange",
              label=f"held-out, {measured[-1]:.2f} last")  # fmt: skip
    left.set(title="An LSTM reads Python's manual", xlabel="epoch", ylabel="bits per character",
             ylim=(0, None))  # fmt: skip
    left.legend(frameon=False)
    left.spines[["top", "right"]].set_visible(False)

    grid = np.full((rows, columns), np.nan)
    row, column = 0, 0
    for i, b in zip(some["next"][0], np.asarray(cost), strict=True):
        if alphabet[i] == "\n" or column == columns:
            row, column = row + 1, 0
        if row == rows:
            break
        if alphabet[i] != "\n":
            grid[row, column] = b
            dark = b > 6
            right.text(column, row, alphabet[i].replace("$", r"\$"), family="monospace", fontsize=7,
                       ha="center", va="center", color="white" if dark else "black")  # fmt: skip
            column += 1
    image = right.imshow(grid, cmap="Oranges", vmin=0, vmax=10, aspect="auto")
    right.set(title="What each character of held-out text cost it", xticks=[], yticks=[])
    right.spines[:].set_visible(False)
    figure.colorbar(image, ax=right, label="bits", shrink=0.6)
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
