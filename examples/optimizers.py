"""Every optimizer, raced on handwritten digits and down Rosenbrock's valley.

    python examples/optimizers.py
    python examples/optimizers.py --only adam,muon,soap

Each runs with ten learning rates in one program and is shown at its best. After 300 steps of 128
digits, nadam has the lowest test error (5.9%), then adamax (6.3%) and momentum (6.5%). L-BFGS, made
for gradients without noise, has the highest (12.7%), but only it reaches the bottom of the valley
exactly. There is one seed, so a difference of a percent means little. It takes two and a half
minutes on two cores.
"""

import argparse
import pathlib
import time
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm

import fnn
from fnn import optim

BATCH_SIZE = 128
DIGITS_STEPS = 300
VALLEY_STEPS = 500
RATES = 10.0 ** np.arange(-4, 1, 0.5)  # of every optimizer

OPTIMIZERS = {
    "sgd": optim.sgd,
    "momentum": partial(optim.sgd, momentum=0.9),
    "nesterov": partial(optim.sgd, momentum=0.9, nesterov=True),
    "sign_sgd": optim.sign_sgd,
    "rprop": optim.rprop,
    "adagrad": optim.adagrad,
    "adadelta": optim.adadelta,
    "rmsprop": optim.rmsprop,
    "adam": optim.adam,
    "adamw": optim.adamw,
    "amsgrad": optim.amsgrad,
    "adamax": optim.adamax,
    "nadam": optim.nadam,
    "radam": optim.radam,
    "adabelief": optim.adabelief,
    "yogi": optim.yogi,
    "adan": optim.adan,
    "lion": optim.lion,
    "novograd": optim.novograd,
    "adafactor": optim.adafactor,
    "sm3": optim.sm3,
    "lars": optim.lars,
    "lamb": optim.lamb,
    "muon": optim.muon,
    "shampoo": optim.shampoo,
    "soap": optim.soap,
    "sophia": partial(optim.sophia, key=jax.random.key(0)),
    "prodigy": optim.prodigy,
    "schedule_free": optim.schedule_free_adamw,
    "lbfgs": lambda rate: optim.lbfgs(),  # has a line search
}
# On CPU, a scan with batched eigendecompositions may hang (jaxlib 0.10.2), so these run one rate
# after the other, still in one program.
ONE_BY_ONE = (optim.shampoo, optim.soap)

net = fnn.serial(
    fnn.avg_pool((2, 2)),  # [B, 14, 14, 1]
    fnn.flatten(3),
    fnn.dense(64),
    jax.nn.relu,
    fnn.dense(10),
)


def digits(train, steps, seed):
    """(loss function, first params, the batches of all steps)."""
    rows = np.random.default_rng(seed).integers(0, len(train["label"]), (steps, BATCH_SIZE))
    batches = jax.tree.map(lambda a: jnp.asarray(a[rows]), train)

    def loss(params, batch):
        logits = net(params, batch["image"])
        return jnp.mean(fnn.losses.softmax_cross_entropy(logits, batch["label"]))

    params, _ = net.init(jax.random.key(seed), (1, 28, 28, 1))
    return loss, params, batches


def valley(steps):
    """Rosenbrock's function, 0 at (1, 1), from its usual start."""

    def loss(params, _):
        x, y = params["x"], params["y"]
        return 100 * (y - x**2) ** 2 + (1 - x) ** 2

    return loss, {"x": jnp.array(-1.2), "y": jnp.array(1.0)}, jnp.zeros(steps)


def race(make, loss, params, batches):
    """All learning rates in one program: losses [rates, steps], params, seconds per step."""

    def run(rate):
        tx = make(rate)

        def step(carry, batch):
            params, opt_state = carry

            def value_fn(params):
                return loss(params, batch)

            value, grads = jax.value_and_grad(value_fn)(params)
            updates, opt_state = tx.update(
                grads, opt_state, params, value=value, grad=grads, value_fn=value_fn
            )
            return (optim.apply_updates(params, updates), opt_state), value

        (end, opt_state), losses = jax.lax.scan(step, (params, tx.init(params)), batches)
        if make is optim.schedule_free_adamw:
            end = optim.schedule_free_eval_params(opt_state, end)
        return losses, end

    one_by_one = make in ONE_BY_ONE
    together = jax.jit(
        lambda rates: jax.lax.map(run, rates) if one_by_one else jax.vmap(run)(rates)
    )
    rates = jnp.asarray(RATES, jnp.float32)
    jax.block_until_ready(together(rates))  # compile
    start = time.perf_counter()
    losses, end = jax.block_until_ready(together(rates))
    return np.asarray(losses), end, (time.perf_counter() - start) / losses.size


def best(losses):
    """The rate with the lowest loss over the last tenth of the steps."""
    last = losses[:, -max(losses.shape[1] // 10, 1) :].mean(1)
    return int(np.argmin(np.where(np.isfinite(last), last, np.inf)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(OPTIMIZERS), help="some of them, by comma")
    parser.add_argument("--steps", type=int, default=DIGITS_STEPS, help="on digits")
    parser.add_argument("--valley-steps", type=int, default=VALLEY_STEPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("outputs/optimizers"))
    args = parser.parse_args()
    names = args.only.split(",")
    if unknown := set(names) - set(OPTIMIZERS):
        parser.error(f"no {', '.join(sorted(unknown))} among {', '.join(OPTIMIZERS)}")

    train, test = fnn.data.load("mnist_5k", floats=True).values()
    tasks = digits(train, args.steps, args.seed), valley(args.valley_steps)

    @jax.jit
    def error(params, test):
        return jnp.mean(jnp.argmax(net(params, test["image"]), -1) != test["label"])

    results = {}
    for name in names:
        make = OPTIMIZERS[name]
        losses, end, seconds = race(make, *tasks[0])
        i = best(losses)
        heights, _, _ = race(make, *tasks[1])
        j = best(heights)
        wrong = float(error(jax.tree.map(lambda a, i=i: a[i], end), test))
        results[name] = losses[i], heights[j], seconds, wrong
        at = ["by line search" if name == "lbfgs" else f"at rate {RATES[k]:.0e}" for k in (i, j)]
        print(
            f"{name:14} digits {wrong:6.2%} wrong {at[0]}, {seconds * 1e6:5.0f} us a step; "
            f"valley {heights[j][-1]:8.1e} {at[1]}",
            flush=True,
        )

    args.out.mkdir(parents=True, exist_ok=True)
    draw(results, args.out / "optimizers.png")
    print(f"picture: {args.out / 'optimizers.png'}")


def smooth(losses, width=10):
    """A moving average: the mean of each value and those just before it."""
    sums = np.cumsum(np.pad(losses.astype(np.float64), (1, 0)))
    start = np.maximum(np.arange(len(losses)) + 1 - width, 0)
    return (sums[1:] - sums[start]) / (np.arange(len(losses)) + 1 - start)


def draw(results, path):
    """One row per optimizer: its loss by step as a strip of colour, and its time."""
    names = sorted(results, key=lambda name: results[name][0][-30:].mean())
    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(11, 1.6 + 0.22 * len(names)), layout="constrained",
        width_ratios=(5, 5, 2), sharey=True,
    )  # fmt: skip
    strips = (
        (left, 0, "Digits: training loss", (0.03, 2.5)),
        (middle, 1, "Rosenbrock's valley: height", (1e-8, 1e2)),
    )
    for axes, which, title, (low, high) in strips:
        curves = np.stack([smooth(results[name][which]) for name in names])
        curves = np.where(np.isfinite(curves), np.clip(curves, low, high), high)
        steps = curves.shape[1]
        extent = (0, steps, len(names) - 0.5, -0.5)
        strip = axes.imshow(
            curves, cmap="viridis_r", norm=LogNorm(low, high), aspect="auto", extent=extent,
            interpolation="nearest",
        )  # fmt: skip
        axes.set(
            title=title, xlabel="step (means of ten)", yticks=range(len(names)), yticklabels=names
        )
        axes.hlines(np.arange(len(names) - 1) + 0.5, 0, steps, color="white", linewidth=1.5)
        figure.colorbar(strip, ax=axes, location="bottom", shrink=0.7, aspect=40)
        axes.tick_params(left=False)
    times = np.array([results[name][2] for name in names]) * 1e6
    right.barh(range(len(names)), times, color="tab:gray", height=0.7)
    for i, (name, t) in enumerate(zip(names, times, strict=True)):
        wrong = results[name][3]
        right.annotate(f"{wrong:.1%}", (t, i), (3, 0), textcoords="offset points", va="center",
                       fontsize=7)  # fmt: skip
    right.set(title="Time (test error)", xlabel="microseconds a step", xscale="log")
    right.margins(x=0.25)
    right.tick_params(left=False)
    for axes in (left, middle, right):
        axes.spines[:].set_visible(False)
    figure.savefig(path, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    main()
