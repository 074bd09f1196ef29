"""Several networks, each with its own loss, trained in one step: games, such as a GAN."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from fnn.core import checks, errors
from fnn.core.names import folded
from fnn.core.types import Tree
from fnn.optim.arithmetic import increment
from fnn.optim.clip import global_norm
from fnn.optim.transform import Transform
from fnn.train.step import Step, TrainState, check_train_state, jit_step, with_donating
from fnn.train.update import Trained, check_loss, update_of

ORDERS = ("alternating", "simultaneous")


@errors.named
def join(**members: TrainState) -> TrainState:
    """The training states of several networks as one, for `joint_step`.

        params = {name: the member's params}, and so the state and opt_state

    - `members`: by the names of their networks, the players, each from `fnn.train.init`. Params,
      state and optimizer stay as they are, so one may have been trained before.

    The step is 0, and the key is made of all keys, in the order of the names.
    Stacked states are joined by `jax.vmap(lambda a, b: join(a=a, b=b))`.

    >>> import fnn
    >>> tx, keys = fnn.optim.adam(1e-3), jax.random.split(jax.random.key(0))
    >>> ts = join(
    ...     critic=fnn.train.init(fnn.dense(1), tx, keys[0], (1, 4)),
    ...     generator=fnn.train.init(fnn.dense(4), tx, keys[1], (1, 2)),
    ... )
    >>> ts.params["generator"]["kernel"].shape
    (2, 4)
    """
    if not members:
        mend = "name them: join(critic=critic_state, generator=generator_state)"
        raise errors.InputError("training states", "none", mend)
    keys = []
    for name in sorted(members):
        with errors.at(name):
            check_train_state(members[name])
            keys.append(checks.typed_key(members[name].key))
    key, *others = keys
    for word in (word for other in others for word in jax.random.key_data(other)):
        key = jax.random.fold_in(key, word)
    params, state, opt_state = (
        {name: getattr(member, field) for name, member in members.items()}
        for field in Trained._fields
    )
    return TrainState(jnp.zeros((), jnp.int32), params, state, opt_state, key)


@errors.named
def joint_step(
    losses: Mapping[str, Callable],
    txs: Mapping[str, Transform],
    *,
    order: str = "alternating",
    repeats: Mapping[str, int] | None = None,
    grad: Mapping[str, Callable] | None = None,
    grad_norm: bool = False,
    donate: bool = False,
) -> Step:
    """A pure, jitted step of a game: `(train_state, batch) -> (train_state, metrics)`.

        for each player p:    params[p] = params[p] + update_p(gradient of loss_p by params[p])

    A player is a network with a loss and an optimizer of its own; all may read the params of all.
    Each moves as in `fnn.train.step`, and the result works wherever such a step does: in
    `fnn.train.fit` and `run`, under `jax.vmap` over stacked states, in `fnn.search.sweep`.

    - `losses`: by player, each `loss_fn(params, state, batch, key) -> (loss, (state, metrics))` as
      in `fnn.train.step`, with the dicts of all players as params and state. Its gradient is taken
      by the params of its own player alone; the state that it returns is that of all.
    - `txs`: the optimizers, by player; each counts its own moves, and so do its schedules. In a
      zero-sum game, where one loss is minus the other, plain descent may circle or spiral outwards:
      see `fnn.optim.optimistic_gradient_descent`.
    - `order`: `"alternating"`: the players move in the order of `losses`, and each sees what those
      before it have done (Gauss-Seidel). `"simultaneous"`: all gradients are taken at the same
      params (Jacobi). In both, the state passes from loss to loss in the order of `losses`.
    - `repeats`: how often a player moves in a step, such as `{"critic": 5}`, in alternating order;
      the others move once. Then the batch is cut along the first axis of its arrays into as many
      equal parts as the largest number says; move i of any player is on part i, so who moves once
      sees the first part. Take as many times the `batch_size` in `fit`.
    - `grad`: by player, how to differentiate; see `fnn.train.step`.
    - `grad_norm`: whether to add the global norm of each gradient to the metrics.
    - `donate`: see `fnn.train.step`.

    The train_state is from `fnn.train.join`. It may have networks that are no players here, which
    stay as they are: `joint_step({"critic": ...}, {"critic": ...})` trains a critic in advance.
    The keys of losses are folded from the step, the player's name and the number of the move.
    A move that `fnn.optim.skip_nonfinite` skips changes nothing; the others count.

    The metrics are `critic/loss`, `critic/grad_norm` and `critic/...` of the loss function's own,
    of the last of repeated moves: those of the network that the next player meets.
    Raises OptionError for names that do not agree and for repeats in simultaneous order,
    ParamsError for a train_state without a player, ShapeError for a batch that cannot be cut, and
    what `fnn.train.step` raises.

    >>> import fnn
    >>> critic, generator, tx = fnn.dense(1), fnn.dense(4), fnn.optim.adam(1e-3)
    >>> def scores(params, x, key):  # how real the critic finds x, and what is generated
    ...     fake = generator(params["generator"], jax.random.normal(key, (len(x), 2)))
    ...     return critic(params["critic"], x).mean(), critic(params["critic"], fake).mean()
    >>> def critic_loss(params, state, x, key):
    ...     real, fake = scores(params, x, key)
    ...     return fake - real, (state, {"gap": real - fake})
    >>> def generator_loss(params, state, x, key):
    ...     return -scores(params, x, key)[1], (state, {})
    >>> losses = {"critic": critic_loss, "generator": generator_loss}
    >>> step = joint_step(losses, {"critic": tx, "generator": tx}, repeats={"critic": 5})
    >>> keys = jax.random.split(jax.random.key(0))
    >>> ts = fnn.train.join(
    ...     critic=fnn.train.init(critic, tx, keys[0], (1, 4)),
    ...     generator=fnn.train.init(generator, tx, keys[1], (1, 2)),
    ... )
    >>> ts, metrics = step(ts, jnp.ones((20, 4)))
    >>> sorted(metrics)
    ['critic/gap', 'critic/loss', 'generator/loss']
    """
    repeats, grad = {} if repeats is None else repeats, {} if grad is None else grad
    _check_names(losses, txs, repeats, grad)
    losses = dict(losses)
    checks.choice("order", order, ORDERS)
    counts = {name: checks.count(f"repeats of {name}", n) for name, n in repeats.items()}
    parts = max(counts.values(), default=1)
    if parts > 1 and order == "simultaneous":
        mend = "leave out repeats, or let the players alternate"
        raise errors.OptionError("one move each in simultaneous order", f"repeats {counts}", mend)
    updates = {}
    for name, loss_fn in losses.items():
        with errors.within(name):
            check_loss(loss_fn)
            updates[name] = update_of(txs[name], grad.get(name, jax.value_and_grad))

    def move(name, others, before, batch, key):
        """One move of a player, who sees these params of the others."""

        def loss_fn(own, state, batch, key):
            return losses[name]({**others, name: own}, state, batch, key)

        with errors.within(name):
            after, seen = updates[name](loss_fn, before, batch, key)
            metrics = seen.reported({"grad_norm": global_norm(seen.grads)} if grad_norm else {})
        return after, {f"{name}/{metric}": value for metric, value in metrics.items()}

    def moves(name, others, before, cut, key):
        """All moves of a player in a step."""
        numbers, count = jnp.arange(parts), counts.get(name, 1)
        rows = jax.tree.map(lambda a: a[:count], (numbers, cut))

        def one(before, row):
            number, batch = row
            return move(name, others, before, batch, jax.random.fold_in(key, number))

        if count == 1:
            return one(before, jax.tree.map(lambda a: a[0], rows))
        after, metrics = jax.lax.scan(one, before, rows)
        return after, jax.tree.map(lambda a: a[-1], metrics)

    def train_step(train_state, batch):
        with errors.within("joint_step"):
            _check_players(losses, train_state)
            cut = _cut(batch, parts)
        key = jax.random.fold_in(train_state.key, train_state.step)
        params, opt_state = dict(train_state.params), dict(train_state.opt_state)
        state, metrics = train_state.state, {}
        for name in losses:
            others = params if order == "alternating" else train_state.params
            before = Trained(params[name], state, opt_state[name])
            own = folded(key, name)
            after, measured = moves(name, others, before, cut, own)
            params[name], state, opt_state[name] = after
            metrics |= measured
        new = (increment(train_state.step), params, state, opt_state, train_state.key)
        return TrainState._make(new), metrics

    return with_donating(partial(jit_step, train_step), donate)


def _cut(batch: Tree, parts: int) -> Tree:
    """[B, ...] -> [parts, B / parts, ...] for each array; a batch without arrays as it is."""
    if parts == 1:
        return jax.tree.map(lambda a: jnp.expand_dims(a, 0), batch)
    if not jax.tree.leaves(batch):
        return batch
    size = checks.examples("batch", batch)
    if size % parts or not size:
        raise errors.ShapeError(
            f"a batch that can be cut into {parts} equal parts, one for each of repeated moves",
            f"{size} examples",
            f"make batch_size a multiple of {parts}",
        )
    return jax.tree.map(lambda a: a.reshape(parts, size // parts, *a.shape[1:]), batch)


def _check_names(losses: Any, txs: Any, repeats: Any, grad: Any) -> None:
    """Every player has a loss and an optimizer, and nobody else has anything."""
    for what, given in (("losses", losses), ("txs", txs), ("repeats", repeats), ("grad", grad)):
        if not isinstance(given, Mapping):
            mend = "name the players in a dict"
            raise errors.InputError(f"{what} to be a dict by player", errors.show(given), mend)
    if not losses or losses.keys() != txs.keys():
        raise errors.OptionError(
            "a loss and an optimizer for each player, under one name",
            f"losses of {errors.names(losses)} and txs of {errors.names(txs)}",
            "name the players alike in both",
        )
    for what, given in (("repeats", repeats), ("grad", grad)):
        if given.keys() - losses.keys():
            raise errors.OptionError(
                f"{what} of players among {errors.names(losses)}",
                errors.names(sorted(given.keys() - losses.keys())),
                "name one of these",
            )


def _check_players(names: Any, train_state: TrainState) -> None:
    for field in Trained._fields:
        known = getattr(train_state, field)
        if not (isinstance(known, Mapping) and names.keys() <= known.keys()):
            raise errors.ParamsError(
                f"a train_state with {field} of {errors.names(names)}",
                errors.names(known) if isinstance(known, Mapping) else errors.show(known),
                "join those of the players: fnn.train.join(critic=fnn.train.init(...), ...)",
            )
