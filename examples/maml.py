"""Learning to learn: first values from which one gradient step fits a new sine wave.

    python examples/maml.py

Model-agnostic meta-learning (Finn et al. 2017) differentiates through the steps of an optimizer.
After one step on ten points of a wave that it has never seen, the mean squared error is 0.48 where
first values trained on all waves at once give 2.44; after ten steps 0.14 and 1.74. Twenty seconds
on two cores.
"""

import argparse
import functools
import pathlib
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import fnn

POINTS, TASKS = 10, 25  # of each wave, and waves in a step
STEPS, LEARNING_RATE = 10_000, 1e-3
INNER_STEPS, INNER_RATE = 1, 0.01
LOOKS = 10  # steps that a new wave is given
RATES = {"learned to learn": INNER_RATE, "all waves at once": 0.004}  # the best of five for it
TEST_TASKS = 500

net = fnn.serial(fnn.dense(40), jax.nn.relu, fnn.dense(40), jax.nn.relu, fnn.dense(1))


def waves(key, count):
    """`count` functions a sin(x - phase), given as their a and phase: [count, 1] each."""
    of_amplitude, of_phase = jax.random.split(key)
    amplitude = jax.random.uniform(of_amplitude, (count, 1), minval=0.1, maxval=5.0)
    return amplitude, jax.random.uniform(of_phase, (count, 1), maxval=jnp.pi)


def points(key, wave, count):
    """x and y of `count` points of a wave, [count, 1] each."""
    amplitude, phase = wave
    x = jax.random.uniform(key, (count, 1), minval=-5.0, maxval=5.0)
    return x, amplitude * jnp.sin(x - phase)


def error(params, x, y):
    return jnp.mean((net(params, x) - y) ** 2)


def descend(tx, params, opt_state, x, y):
    """One step of an optimizer on one wave."""
    updates, opt_state = tx.update(jax.grad(error)(params, x, y), opt_state, params)
    return fnn.optim.apply_updates(params, updates), opt_state


def error_after(params, inner_steps, key, wave):
    """The error at new points of a wave, after steps on others: a function of the first params."""
    of_seen, of_new = jax.random.split(key)
    tx = fnn.optim.sgd(INNER_RATE)
    opt_state = tx.init(params)
    for _ in range(inner_steps):
        params, opt_state = descend(tx, params, opt_state, *points(of_seen, wave, POINTS))
    return error(params, *points(of_new, wave, POINTS))


def train(key, inner_steps, steps):
    """A whole meta-training run. With no inner steps, it is ordinary training on all waves."""

    def loss_fn(params, state, batch, key):
        of_waves, of_points = jax.random.split(key)
        each = jax.vmap(error_after, (None, None, 0, 0))
        errors = each(
            params, inner_steps, jax.random.split(of_points, TASKS), waves(of_waves, TASKS)
        )
        return jnp.mean(errors), (state, {})

    tx = fnn.optim.adam(LEARNING_RATE)
    step = fnn.train.step(loss_fn, tx)
    first = fnn.train.init(net, tx, key, (POINTS, 1))
    last, metrics = jax.lax.scan(lambda ts, _: step(ts, ()), first, length=steps)
    return last.params, metrics["loss"]


def errors_by_step(params, rate, key):
    """The mean error over new waves after 0, 1, ... LOOKS steps: [LOOKS + 1]."""
    tx = fnn.optim.sgd(rate)

    def of_one(key, wave):
        of_seen, of_new = jax.random.split(key)
        seen, new = points(of_seen, wave, POINTS), points(of_new, wave, 100)

        def one(carry, _):
            return descend(tx, *carry, *seen), error(carry[0], *new)

        return jax.lax.scan(one, (params, tx.init(params)), length=LOOKS + 1)[1]

    of_waves, of_points = jax.random.split(key)
    keys = jax.random.split(of_points, TEST_TASKS)
    return jax.vmap(of_one)(keys, waves(of_waves, TEST_TASKS)).mean(axis=0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("outputs/maml"))
    args = parser.parse_args()

    of_run, of_test, of_drawing = jax.random.split(jax.random.key(args.seed), 3)
    trained, errors = {}, {}
    for (name, rate), inner_steps in zip(RATES.items(), (INNER_STEPS, 0), strict=True):
        start = time.perf_counter()
        run = jax.jit(functools.partial(train, inner_steps=inner_steps, steps=args.steps))
        trained[name], _ = jax.block_until_ready(run(of_run))
        errors[name] = np.asarray(jax.jit(errors_by_step)(trained[name], rate, of_test))
        shown = ", ".join(f"{errors[name][i]:.2f} after {i}" for i in (0, 1, LOOKS))
        print(f"{name:18} mean squared error {shown} steps; {time.perf_counter() - start:.0f} s")

    args.out.mkdir(parents=True, exist_ok=True)
    draw(trained, errors, of_drawing, args.out / "maml.png")
    print(f"picture: {args.out / 'maml.png'}")


def draw(trained, errors, key, path):
    """A new wave, as seen after 0, 1 and all steps, and the mean error over many."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
    wave = jnp.array([3.0]), jnp.array([1.0])
    seen = points(key, wave, POINTS)
    x = jnp.linspace(-5, 5, 200)[:, None]
    for ax, (name, params) in zip(axes, trained.items(), strict=False):
        ax.plot(x, 3 * jnp.sin(x - 1), color="gray", linewidth=3, alpha=0.5, label="the wave")
        ax.plot(*seen, "o", color="black", markersize=4, label="points seen")
        tx = fnn.optim.sgd(RATES[name])
        opt_state = tx.init(params)
        for taken in range(LOOKS + 1):
            if taken in (0, 1, LOOKS):
                style = {0: ":", 1: "--", LOOKS: "-"}[taken]
                ax.plot(x, net(params, x), style, color="C0", label=f"after {taken} steps")
            params, opt_state = descend(tx, params, opt_state, *seen)
        ax.set(title=name, xlabel="x", ylim=(-5, 5))
    axes[0].legend(frameon=False, fontsize=8, ncols=2, loc="upper left")
    for name, values in errors.items():
        axes[2].plot(values, "o-", label=name)
    axes[2].set(title=f"mean of {TEST_TASKS} new waves", xlabel="steps on the new wave",
                ylabel="mean squared error", ylim=(0, None))  # fmt: skip
    axes[2].legend(frameon=False)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
