"""A learning rate, and then a whole schedule, learnt by gradients through the training run.

    python examples/meta_learning_rate.py

A run is 100 steps of sgd with momentum on half of the training digits; its loss on the other half
is differentiated with respect to the rate, or to the rates at six knots. The constant rate goes
from 0.01 to 0.18 and ties with the best of a grid of 16 (0.155 against 0.151 over 16 new seeds), in
twice the grid's time: for one number, use the grid. From there a schedule reaches 0.126, below that
best on 15 of 16 seeds, in five times the grid's time; a grid over six rates has 16^6 settings.
Linear decay, a common choice, reaches 0.127 by a grid over its first rate. All of it takes 70 s of
processor time.
"""

import argparse
import pathlib
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import fnn

RATES = np.geomspace(1e-3, 1.0, 16, dtype=np.float32)  # the grid
STEPS, BATCH_SIZE, MOMENTUM = 100, 32, 0.9  # of a run
KNOTS = np.linspace(0, STEPS, 6)
FIRST_RATE, SEEDS, LARGEST_NORM = 0.01, 8, 0.2  # seeds per gradient
COMPARED = 16  # seeds not used in learning

data = jax.device_put(fnn.data.load("digits", floats=True))
half = len(data["train"]["label"]) // 2
data["validation"] = jax.tree.map(lambda a: a[half:], data["train"])
data["train"] = jax.tree.map(lambda a: a[:half], data["train"])
net = fnn.serial(fnn.flatten(3), fnn.dense(32), jnp.tanh, fnn.dense(10))
loss_fn = fnn.train.supervised(net, fnn.losses.softmax_cross_entropy)


def constant(rates):
    return fnn.optim.schedules.constant(rates[0])


def decaying(rates):
    return fnn.optim.schedules.linear(rates[0], 0.0, STEPS)


def knotted(rates):
    """Linear interpolation between knots, of the logarithm."""
    line = fnn.optim.schedules.piecewise_interpolate(jnp.log(rates), KNOTS[1:])
    return lambda count: jnp.exp(line(count))


def run_fn(key, schedule, rates):
    """A whole run, from initial values to losses."""
    tx = fnn.optim.sgd(schedule(rates), MOMENTUM)
    train_state = fnn.train.init(net, tx, key, data["train"]["image"][:1])
    train_state, _ = fnn.train.run(
        fnn.train.step(loss_fn, tx), train_state, data["train"],
        steps=STEPS, batch_size=BATCH_SIZE, checkpoint_every=10,
    )  # fmt: skip
    logits = {split: net(train_state.params, data[split]["image"]) for split in data}
    losses = {
        split: fnn.losses.softmax_cross_entropy(logits[split], data[split]["label"]).mean()
        for split in ("validation", "test")
    }
    return losses | {"error": jnp.mean(logits["test"].argmax(axis=-1) != data["test"]["label"])}


def learn(schedule, rates, outer_rate, steps, grad):
    """Adam on log rates: (rates [steps, knots], losses [steps], the time in plain runs)."""

    def objective(log_rates, state, _, key):  # a loss function like any other, on new seeds
        keys, rates = jax.random.split(key, SEEDS), jnp.exp(log_rates)
        losses = jax.vmap(lambda key: run_fn(key, schedule, rates)["validation"])(keys)
        return losses.mean(), (state, {"rates": rates})

    tx = fnn.optim.chain(
        fnn.optim.clip_by_global_norm(LARGEST_NORM),  # gradients are huge when runs diverge
        fnn.optim.adam(fnn.optim.schedules.cosine(outer_rate, steps), b1=0.8),
    )
    log_rates, seconds, path = jnp.log(rates), [], []
    outer = fnn.train.TrainState(jnp.int32(0), log_rates, {}, tx.init(log_rates), jax.random.key(0))
    step, plain = fnn.train.step(objective, tx, grad=grad), jax.jit(objective)
    for _ in range(steps):
        start = time.perf_counter()
        jax.block_until_ready(plain(outer.params, {}, None, outer.key))  # only to time it
        between = time.perf_counter()
        outer, metrics = jax.block_until_ready(step(outer, None))
        seconds.append((between - start, time.perf_counter() - between))
        path.append(metrics)
    without, with_gradient = np.median(seconds[1:] or seconds, axis=0)  # the first compile
    path = jax.tree.map(lambda *rows: np.stack(rows), *path)
    print(f"{schedule.__name__}: validation loss {path['loss'][0]:.3f} at first, then "
          f"{path['loss'][-1]:.3f}; {steps} gradients through {SEEDS} runs, each in the time of "
          f"{with_gradient / without:.1f} of them", flush=True)  # fmt: skip
    return path["rates"], path["loss"], steps * SEEDS * with_gradient / without


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40, help="gradients through runs")
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("outputs/meta_learning_rate")
    )
    args = parser.parse_args()

    # One number: forward mode. Several: reverse mode, from the learnt constant rate.
    one = learn(constant, np.float32([FIRST_RATE]), 0.2, args.steps,
                fnn.train.forward_value_and_grad)  # fmt: skip
    all_knots = learn(knotted, np.repeat(one[0][-1], len(KNOTS)), 0.1, args.steps,
                      jax.value_and_grad)  # fmt: skip

    grid, keys, found, best = RATES[:, None], jax.random.split(jax.random.key(2), COMPARED), {}, {}
    tried = {constant: np.concatenate([grid, one[0][-1:]]), decaying: grid,
             knotted: all_knots[0][-1:]}  # fmt: skip
    for schedule, rates in tried.items():
        sweep = fnn.search.sweep(
            run_fn,
            {"schedule": [schedule], "rates": rates},
            keys=keys,
            strategy="vmap",
            progress=False,
        )
        found[schedule] = {name: sweep.grid(a)[0] for name, a in sweep.results.items()}
        best[schedule] = found[schedule]["validation"][: len(grid)].mean(axis=1).argmin()
    for name, schedule, i, runs in (
        ("best constant of the grid", constant, best[constant], len(grid) * COMPARED),
        ("learnt constant", constant, -1, one[2]),
        ("best linear decay of the grid", decaying, best[decaying], len(grid) * COMPARED),
        ("learnt schedule", knotted, -1, one[2] + all_knots[2]),
    ):
        loss, test, error = (found[schedule][key][i] for key in ("validation", "test", "error"))
        wins = np.sum(loss < found[constant]["validation"][best[constant]])
        print(f"{name} {tried[schedule][i].round(3)}: validation loss {loss.mean():.4f} (less than "
              f"the first on {wins} of {len(loss)} seeds), test loss {test.mean():.4f}, "
              f"{error.mean():.1%} wrong, in the time of {runs:.0f} runs")  # fmt: skip

    args.out.mkdir(parents=True, exist_ok=True)
    draw(found, one, all_knots, RATES[best[decaying]], args.out / "meta_learning_rate.png")
    print(f"picture: {args.out / 'meta_learning_rate.png'}")


def draw(found, one, all_knots, decay, path):
    """The validation loss against a constant rate, and the schedule as it is learnt."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.2), layout="constrained")
    losses = found[constant]["validation"][: len(RATES)]  # [rates, seeds]
    left.fill_between(RATES, losses.min(axis=1), losses.max(axis=1), color="gainsboro")
    label = f"constant, the grid ({losses.shape[1]} seeds)"
    left.loglog(RATES, losses.mean(axis=1), "o", color="gray", label=label, zorder=3)
    left.plot(one[0], one[1], ".-", color="tab:orange", label="constant, as it is learnt")
    for schedule, color, style, label in (
        (knotted, "tab:green", "-", "learnt schedule"),
        (decaying, "tab:blue", "--", "linear decay, best of the grid"),
    ):
        level = found[schedule]["validation"].mean(axis=1).min()
        left.axhline(level, color=color, linestyle=style, label=f"{label}: {level:.3f}")
    left.set(xlabel="learning rate", ylabel=f"validation loss after {STEPS} steps",
             ylim=(losses.min() / 1.3, 6), title="One constant rate")  # fmt: skip
    left.legend(frameon=False, loc="upper left", ncols=2, fontsize=8.5)

    count, shades = np.arange(STEPS), np.linspace(0.15, 0.8, len(all_knots[0]))
    for rates, shade in zip(all_knots[0], shades, strict=True):
        right.semilogy(KNOTS, rates, color="tab:green", alpha=shade, linewidth=1)
    right.plot(KNOTS, rates, "o-", color="tab:green", linewidth=2.5, label="learnt schedule")
    right.axhline(one[0][-1, 0], color="tab:orange", label="learnt constant, where it begins")
    right.plot(count, decay * (1 - count / STEPS), "--", color="tab:blue", label="linear decay")
    low, high = all_knots[0].min() / 3, all_knots[0].max() * 1.5
    ticks = [tick for tick in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if low < tick < high]
    right.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    right.set_yticks([], minor=True)
    right.set(xlabel="step of the run", ylabel="learning rate", ylim=(low, high),
              title=f"A schedule, {len(shades)} gradients from pale to dark")  # fmt: skip
    right.legend(frameon=False, loc="lower left")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
