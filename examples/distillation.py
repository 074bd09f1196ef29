"""A small network learns from a large one, on images without labels (Hinton et al., 2015).

    python examples/distillation.py              # 4,000 real digits, no network needed

Only 400 of the 4,000 images have labels. A convolutional teacher learns from those 400, reaches
93.7% accuracy on the test digits, and gives the students its logits for all 4,000. A dense student
with a sixteenth of its parameters reaches 88.9%; the same student, from the same initial params and
in as many steps, reaches 85.5% from the 400 labels (means of 8; standard deviations 0.4 and 0.3).
It takes half a minute of processor time.
"""

import argparse
import pathlib
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import fnn

LABELS = 400  # the number of labelled images, for the teacher and the students
TEMPERATURE = 4.0
TEACHER_EPOCHS = 40
STEPS, INTERVAL = 1200, 60  # of the students, in all and between evaluations
BATCH_SIZE = 64
LEARNING_RATE = 2e-3
PAIRS = 8  # of students with the same initial params; one learns from labels, one from the teacher


teacher = fnn.serial(
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
student = fnn.serial(fnn.flatten(3), fnn.dense(32), jax.nn.relu, fnn.dense(10))


def from_labels(params, state, batch, key):
    logits, state = student.apply(params, state, batch["image"], key=key, train=True)
    return jnp.mean(fnn.losses.softmax_cross_entropy(logits, batch["label"])), (state, {})


def from_teacher(params, state, batch, key):  # no labels are used
    logits, state = student.apply(params, state, batch["image"], key=key, train=True)
    return jnp.mean(fnn.losses.distillation(logits, batch["teacher"], TEMPERATURE)), (state, {})


def train_teacher(labelled, test, tx, key, epochs):
    """The teacher's params and its accuracy on the test digits."""
    step = fnn.train.step(fnn.train.supervised(teacher, fnn.losses.softmax_cross_entropy), tx)
    train_state = fnn.train.init(teacher, tx, key, labelled["image"][:1])
    train_state, _ = fnn.train.fit(
        step, train_state, labelled, epochs=epochs, batch_size=BATCH_SIZE, progress=False
    )
    evaluate = fnn.train.evaluator(teacher, test, {"accuracy": fnn.metrics.accuracy()})
    return train_state.params, evaluate(train_state)["accuracy"]


def train_students(loss_fn, data, test, tx, key, steps):
    """Train PAIRS students side by side, by vmap: test accuracies, [evaluations, PAIRS]."""

    def init(key):
        return fnn.train.init(student, tx, key, data["image"][:1])

    def batches(look):  # [PAIRS, B, ...]: each student draws its own
        rng = np.random.default_rng(look)
        for _ in range(INTERVAL):
            rows = rng.integers(len(data["image"]), size=(PAIRS, BATCH_SIZE))
            yield jax.tree.map(lambda x: x[rows], data)  # noqa: B023

    @jax.jit
    def accuracies(params):
        logits = jax.vmap(student, in_axes=(0, None))(params, test["image"])  # [PAIRS, N, 10]
        return jnp.mean(logits.argmax(-1) == test["label"], axis=-1)

    _, history = fnn.train.fit(
        jax.jit(jax.vmap(fnn.train.step(loss_fn, tx))),
        jax.vmap(init)(jax.random.split(key, PAIRS)),
        batches,
        epochs=-(-steps // INTERVAL),
        evaluate=lambda train_states: {"accuracy": accuracies(train_states.params)},
        progress=False,
    )
    return history["eval"]["accuracy"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="mnist_5k", help="mnist_5k, mnist or fashion_mnist")
    parser.add_argument("--steps", type=int, default=STEPS, help="of the students")
    parser.add_argument("--teacher-epochs", type=int, default=TEACHER_EPOCHS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("outputs/distillation"))
    args = parser.parse_args()

    start = time.perf_counter()
    train, test = fnn.data.load(args.data, floats=True).values()
    labelled = jax.tree.map(lambda x: x[:LABELS], train)
    tx = fnn.optim.adam(LEARNING_RATE)
    teacher_key, key = jax.random.split(jax.random.key(args.seed))

    params, best = train_teacher(labelled, test, tx, teacher_key, args.teacher_epochs)
    print(f"teacher, {LABELS} labels: {best:.2%} of the test digits, "
          f"{fnn.tree.count(params):,} parameters")  # fmt: skip
    evaluate = jax.jit(teacher)
    logits = [evaluate(params, batch["image"]) for batch, _ in fnn.data.eval_batches(train, 256)]
    logits = np.concatenate(logits)[: len(train["image"])]
    told = {"image": train["image"], "teacher": logits}  # all images, without labels

    count = fnn.tree.count(student.init(key, train["image"][:1])[0])
    print(f"students: {count:,} parameters")
    curves = {}
    for name, loss_fn, data in (
        (f"{LABELS} labels", from_labels, labelled),
        ("the teacher", from_teacher, told),
    ):
        curves[name] = train_students(loss_fn, data, test, tx, key, args.steps)
        last = curves[name][-1]
        print(f"learning from {name}: {last.mean():.2%} (deviation {last.std(ddof=1):.2%})")
    alone, taught = (100 * curve[-1] for curve in curves.values())
    gain = taught - alone
    print(f"better by {gain.mean():.1f} points ({gain.min():.1f} to {gain.max():.1f} over {PAIRS} "
          f"pairs), {time.perf_counter() - start:.0f} s in all")  # fmt: skip

    args.out.mkdir(parents=True, exist_ok=True)
    draw(curves, best, args.out / "distillation.png")
    print(f"picture: {args.out / 'distillation.png'}")


def draw(curves, best, path):
    """Test accuracies of the students by step: the mean, and the range over the pairs."""
    figure, axes = plt.subplots(figsize=(6, 3.8), layout="constrained")
    for (name, curve), color in zip(curves.items(), ("tab:orange", "tab:blue"), strict=True):
        steps, curve = INTERVAL * np.arange(1, len(curve) + 1), 100 * curve
        axes.fill_between(steps, curve.min(1), curve.max(1), color=color, alpha=0.2, linewidth=0)
        axes.plot(steps, curve.mean(1), color=color, label=f"students of {name}")
    axes.axhline(100 * best, color="gray", linewidth=0.8, linestyle="--")
    axes.annotate(f"the teacher itself, {100 * best:.1f} %", (1, 100 * best), (-2, 3), ha="right",
                  color="dimgray", xycoords=("axes fraction", "data"),
                  textcoords="offset points")  # fmt: skip
    axes.set(title=f"Mean and range of {curve.shape[1]} students of each kind", xlabel="step",
             ylabel="test digits right (%)")  # fmt: skip
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
