"""A cart learns to balance a pole: environment, experience and learning in one JAX program.

    python examples/cartpole.py

Proximal policy optimization (Schulman et al. 2017) of 16 carts: one scan, mapped over four seeds.
A policy that sees places and speeds balances the pole for all 500 steps after 110,000 steps of
experience. One that sees only places manages 48; with an LSTM, whose carry is reset where a new
episode begins, 493. Two minutes on two cores.
"""

import argparse
import functools
import math
import pathlib
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import fnn

ENVS, HORIZON = 16, 128  # carts side by side, and steps of each between two updates
UPDATES, EPOCHS, MINIBATCHES = 80, 4, 4
DISCOUNT, TRACE = 0.99, 0.95  # gamma and lambda
REWARD = 1 - DISCOUNT  # of each step, so that values lie between 0 and 1
CLIP, ENTROPY, VALUE, LARGEST_NORM = 0.2, 0.01, 0.5, 0.5
LEARNING_RATE = 2.5e-3
FEATURES, SEEDS = 64, 4


# --- the environment: Barto, Sutton and Anderson 1983, with the usual numbers

GRAVITY, FORCE, STEP = 9.8, 10.0, 0.02
CART, POLE, HALF_LENGTH = 1.0, 0.1, 0.5
FARTHEST, STEEPEST, LIMIT = 2.4, math.radians(12), 500


class Cart(NamedTuple):
    state: jax.Array  # [4]: place, speed, angle, spin
    age: jax.Array  # steps since the episode began


def begin(key):
    return Cart(jax.random.uniform(key, (4,), minval=-0.05, maxval=0.05), jnp.zeros((), jnp.int32))


def act(key, cart, action):
    """(the cart after a push to the left (0) or right (1), whether the episode has ended).

    A new episode begins where one has ended.
    """
    place, speed, angle, spin = cart.state
    sin, cos, total = jnp.sin(angle), jnp.cos(angle), CART + POLE
    push = (FORCE * (2 * action - 1) + POLE * HALF_LENGTH * spin**2 * sin) / total
    turn = (GRAVITY * sin - cos * push) / (HALF_LENGTH * (4 / 3 - POLE * cos**2 / total))
    gain = push - POLE * HALF_LENGTH * turn * cos / total
    after = Cart(cart.state + STEP * jnp.stack([speed, gain, spin, turn]), cart.age + 1)
    fell = (abs(after.state[0]) > FARTHEST) | (abs(after.state[2]) > STEEPEST)
    ended = fell | (after.age >= LIMIT)
    return jax.tree.map(functools.partial(jnp.where, ended), begin(key), after), ended


# --- the policy: a cell, so that it may remember


def policy_of(memory):
    """(carry, what is seen) -> (carry, {"logits": [..., 2], "value": [..., 1]})."""
    remember = {"memory": fnn.cells.lstm(FEATURES)} if memory else {}
    heads = fnn.parallel(
        logits=fnn.dense(2, kernel_init=fnn.initializers.orthogonal(0.01)), value=fnn.dense(1)
    )
    return fnn.cells.serial(
        dense1=fnn.dense(FEATURES), a=jnp.tanh, dense2=fnn.dense(FEATURES), b=jnp.tanh,
        **remember, heads=heads,
    )  # fmt: skip


# --- proximal policy optimization: Schulman et al. 2017


class Now(NamedTuple):
    """Where the carts stand between two updates."""

    carts: Cart  # [ENVS, ...]
    carry: dict  # of the policy
    new: jax.Array  # [ENVS], whether an episode begins


class Seen(NamedTuple):
    """What one step of experience leaves, [HORIZON, ENVS, ...]."""

    x: jax.Array
    new: jax.Array
    action: jax.Array
    log_p: jax.Array
    value: jax.Array
    ended: jax.Array
    age: jax.Array


def advantages(seen, last):
    """Generalized advantage estimates, [HORIZON, ENVS]."""

    def back(carry, seen):
        later, value = carry
        goes_on = DISCOUNT * (1 - seen.ended)
        found = REWARD + goes_on * value - seen.value + goes_on * TRACE * later
        return (found, seen.value), found

    return jax.lax.scan(back, (jnp.zeros_like(last), last), seen, reverse=True)[1]


def train(key, memory, speeds, updates):
    """A whole training: the mean length of the episodes that ended between updates, [updates]."""
    policy, senses = policy_of(memory), np.array([0, 1, 2, 3] if speeds else [0, 2])
    along_time = fnn.rnn(policy)

    def look(carts):
        return carts.state[:, senses]

    def experience(params, first, now, key):
        """HORIZON steps of all carts."""

        def one(now, key):
            of_action, of_carts = jax.random.split(key)
            carry = jax.tree.map(lambda a, b: jnp.where(now.new[:, None], a, b), first, now.carry)
            x = look(now.carts)
            carry, out = policy(params, carry, x)
            action = jax.random.categorical(of_action, out["logits"])  # [ENVS]
            keys = jax.random.split(of_carts, ENVS)
            carts, ended = jax.vmap(act)(keys, now.carts, action)
            seen = Seen(
                x, now.new, action, log_probability(out["logits"], action), out["value"][:, 0],
                ended, now.carts.age + 1,
            )  # fmt: skip
            return Now(carts, carry, ended), seen

        return jax.lax.scan(one, now, jax.random.split(key, HORIZON))

    def loss_fn(params, state, batch, key):
        seen, gain, carry = batch  # [e, HORIZON, ...], with the carry at the start
        out = along_time(params, seen.x, None, carry, seen.new)
        log_p = log_probability(out["logits"], seen.action)
        ratio = jnp.exp(log_p - seen.log_p)
        scaled = (gain - gain.mean()) / (gain.std() + 1e-8)
        clipped = jnp.clip(ratio, 1 - CLIP, 1 + CLIP)
        actor = -jnp.mean(jnp.minimum(ratio * scaled, clipped * scaled))
        critic = jnp.mean((out["value"][..., 0] - (seen.value + gain)) ** 2)
        p = jax.nn.softmax(out["logits"])
        entropy = -jnp.mean(jnp.sum(p * jax.nn.log_softmax(out["logits"]), axis=-1))
        return actor + VALUE * critic - ENTROPY * entropy, (state, {})

    steps = updates * EPOCHS * MINIBATCHES
    rate = fnn.optim.schedules.linear(LEARNING_RATE, 0.0, steps)
    tx = fnn.optim.chain(fnn.optim.clip_by_global_norm(LARGEST_NORM), fnn.optim.adam(rate))
    step = fnn.train.step(loss_fn, tx)

    of_init, of_carts, of_updates = jax.random.split(key, 3)
    carts = jax.vmap(begin)(jax.random.split(of_carts, ENVS))
    train_state = fnn.train.init(policy, tx, of_init, None, look(carts))
    first = policy.carry(train_state.params, look(carts))
    start = Now(carts, first, jnp.ones(ENVS, bool))

    def update(carry, key):
        train_state, now = carry
        of_experience, of_order = jax.random.split(key)
        after, seen = experience(train_state.params, first, now, of_experience)
        _, out = policy(train_state.params, after.carry, look(after.carts))
        gain = advantages(seen, out["value"][:, 0])
        by_cart = jax.tree.map(lambda a: a.swapaxes(0, 1), (seen, gain))
        data = *by_cart, now.carry  # [ENVS, ...]
        orders = [fnn.data.permutation(of_order, epoch, ENVS) for epoch in range(EPOCHS)]
        rows = jnp.stack(orders).reshape(EPOCHS * MINIBATCHES, -1)

        def learn(train_state, rows):
            return step(train_state, jax.tree.map(lambda a: a[rows], data))[0], None

        train_state, _ = jax.lax.scan(learn, train_state, rows)
        return (train_state, after), jnp.sum(seen.ended * seen.age) / jnp.sum(seen.ended)

    return jax.lax.scan(update, (train_state, start), jax.random.split(of_updates, updates))[1]


def log_probability(logits, action):
    return -fnn.losses.softmax_cross_entropy(logits, action)


POLICIES = {
    "sees places and speeds": {"memory": False, "speeds": True},
    "sees places": {"memory": False, "speeds": False},
    "sees places, remembers": {"memory": True, "speeds": False},
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=UPDATES)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("outputs/cartpole"))
    args = parser.parse_args()

    keys, lengths = jax.random.split(jax.random.key(0), args.seeds), {}
    for name, options in POLICIES.items():
        start = time.perf_counter()
        run = jax.jit(jax.vmap(functools.partial(train, updates=args.updates, **options)))
        lengths[name] = np.asarray(run(keys))  # [seeds, updates]
        last = np.nanmean(lengths[name][:, -5:], axis=1)
        seconds = time.perf_counter() - start
        print(f"{name:24} balances {np.median(last):3.0f} of {LIMIT} steps, ", end="")
        print(f"{min(last):.0f} to {max(last):.0f} over {args.seeds} seeds; {seconds:.0f} s")

    args.out.mkdir(parents=True, exist_ok=True)
    draw(lengths, args.out / "cartpole.png")
    print(f"picture: {args.out / 'cartpole.png'}")


def draw(lengths, path):
    """The length of episodes against experience, each seed and the median."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for color, (name, of) in zip(("C0", "C3", "C2"), lengths.items(), strict=False):
        steps = ENVS * HORIZON * np.arange(1, of.shape[1] + 1) / 1000
        axes.plot(steps, of.T, color=color, alpha=0.25, linewidth=0.8)
        axes.plot(steps, np.nanmedian(of, axis=0), color=color, label=name)
    axes.axhline(LIMIT, color="gray", linestyle="--", linewidth=1)
    axes.set(title="Balancing a pole", xlabel="thousand steps of experience",
             ylabel="length of an episode", ylim=(0, 1.05 * LIMIT))  # fmt: skip
    axes.legend(frameon=False, loc="center right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
