"""Population-based training: many runs at once, of which the worst continue from the best."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fnn.core import checks, errors, trees
from fnn.core.scan import scan
from fnn.core.shapes import natives
from fnn.core.types import Key, Tree
from fnn.optim.arithmetic import increment


class Population(NamedTuple):
    """All that passes from round to round: a plain tree over n members.

    - `members`: their training states or other trees, stacked: [n, ...].
    - `hyper`: their hyperparameters, a tree of floats [n, ...].
    - `score`: [n], after the last round, float32 (float64 with x64); -inf before the first.
    - `round`: the number of rounds completed, int32.
    - `key`: of the population; round r draws from the key folded with r.
    """

    members: Tree
    hyper: Tree
    score: jax.Array
    round: jax.Array
    key: Key


@errors.named
def population(members: Tree, hyper: Tree, key: Key) -> Population:
    """A population before its first round.

    - `members`, `hyper`: trees with one leading axis [n], the number of members.

    Raises ShapeError if the leading axes differ, DtypeError if hyperparameters are not floats.

    >>> import fnn
    >>> people = population({"w": jnp.zeros((4, 2))}, {"rate": jnp.ones(4)}, jax.random.key(0))
    >>> people.score.shape
    (4,)
    """
    n = checks.examples("members and hyper", (members, hyper))
    _check_hyper(hyper)
    members, hyper = natives((members, hyper), "members and hyper")
    return Population(members, hyper, jnp.full(n, -jnp.inf), jnp.int32(0), checks.typed_key(key))


def perturb(key: Key, hyper: Tree, factors: tuple[float, ...] = (0.8, 1.2)) -> Tree:
    """Every number times one of the factors, drawn at random (Jaderberg et al., 2017, section 4.1).

    >>> print(perturb(jax.random.key(0), {"rate": jnp.float32(0.5), "decay": jnp.float32(1.0)}))
    {'decay': Array(1.2, dtype=float32), 'rate': Array(0.4, dtype=float32)}
    """
    _check_hyper(hyper)
    leaves, treedef = jax.tree.flatten(hyper)
    keys = jax.random.split(key, len(leaves))

    def moved(key, a):
        a = jnp.asarray(a)
        return a * jax.random.choice(key, jnp.asarray(factors, a.dtype), a.shape)

    return jax.tree.unflatten(treedef, list(map(moved, keys, leaves)))


@errors.named
def evolve(
    round_fn: Callable[[Tree, Tree, Key], tuple[Tree, Any]],
    population: Population,
    *,
    rounds: int,
    fraction: float = 0.2,
    explore: Callable[[Key, Tree], Tree] = perturb,
) -> tuple[Population, dict[str, Any]]:
    """Train a population for some rounds, in one traceable function (Jaderberg et al., 2017).

    Before every round but the first, each of the lowest-scoring `fraction` becomes a copy of one
    of the highest-scoring, drawn at random (exploit), with new hyperparameters (explore). Then all
    members train for a round, side by side: one run finds a schedule of hyperparameters.

    - `round_fn(member, hyper, key) -> (member, score)`: one round of one member, such as some steps
      of `fnn.train.run` with these hyperparameters, and a scalar measured on held-out data, higher
      being better. A score of NaN is the lowest. A copy has its donor's training state, including
      its key: `ts._replace(key=key)` gives it its own batches.
    - `population`: from `population`, or from an earlier call: 3 rounds and 3 more are 6.
    - `rounds`: static. `fraction`: in [0, 0.5]; with 0, no member is replaced.
    - `explore(key, hyper) -> hyper`: for one member; write your own to keep numbers in their range.

    Returns the population and the history, with leaves [rounds, n, ...]: `score`, the `hyper` of
    each round, and `parent`, the member that each continued from (itself unless replaced).
    Raises OptionError for a fraction out of range, ShapeError for a score that is not a scalar.

    >>> def round_fn(theta, h, key):  # the paper's example: only h[0] = h[1] = 1 leads to the top
    ...     theta = theta - 0.02 * h * theta
    ...     return theta, 1.2 - jnp.sum(theta**2)
    >>> people = population(jnp.full((2, 2), 0.9), jnp.eye(2), jax.random.key(0))
    >>> people, history = evolve(round_fn, people, rounds=4, fraction=0.5)
    >>> history["parent"].shape
    (4, 2)
    """
    checks.count("rounds", rounds, 0)
    if not isinstance(population, Population):
        mend = "make one: fnn.search.population(members, hyper, key)"
        raise errors.InputError("a Population", errors.show(population), mend)
    checks.function("round_fn", round_fn, "(member, hyper, key)")
    checks.function("explore", explore, "(key, hyper)")
    if not isinstance(fraction, (int, float)) or not 0 <= fraction <= 0.5:
        wanted = "a fraction in [0, 0.5], a plain number"
        raise errors.OptionError(wanted, f"{fraction}", "replace fewer")
    n = population.score.shape[0]
    replaced = min(max(1, int(fraction * n + 1e-9)), n // 2) if fraction else 0

    def one_round(now: Population, _: None) -> tuple[Population, dict[str, Any]]:
        key = jax.random.fold_in(now.key, now.round)
        choose, move, train = (jax.random.fold_in(key, i) for i in range(3))
        order = jnp.argsort(jnp.where(jnp.isnan(now.score), -jnp.inf, now.score))
        donors = jax.random.choice(choose, order[n - replaced :], (replaced,))
        own = jnp.arange(n, dtype=donors.dtype)
        parent = own.at[order[:replaced]].set(donors)
        parent = jnp.where(now.round > 0, parent, own)

        members, hyper = jax.tree.map(lambda a: a[parent], (now.members, now.hyper))
        moved = jax.vmap(explore)(jax.random.split(move, n), hyper)
        trees.alike("the result of explore", moved, "hyperparameters", hyper)
        hyper = jax.tree.map(lambda a, b: _where(parent != own, a, b), moved, hyper)

        out = jax.vmap(round_fn)(members, hyper, jax.random.split(train, n))
        members, score = _check_returned(out, now.members, n)
        score = score.astype(now.score.dtype)
        later = Population(members, hyper, score, increment(now.round), now.key)
        return later, {"score": score, "hyper": hyper, "parent": parent}

    return scan(one_round, population, None, length=rounds)


def _where(chosen: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    return jnp.where(chosen.reshape(-1, *(1,) * (old.ndim - 1)), new, old)


def _check_hyper(hyper: Tree) -> None:
    checks.floating_leaves(
        "hyperparameters", hyper, "cast them, and round them where they are used"
    )


def _check_returned(out: Any, before: Tree, n: int) -> tuple[Tree, jax.Array]:
    if not (isinstance(out, tuple) and len(out) == 2):
        checks.not_a_pair("round_fn", "(member, score)", out)
    members, score = out
    mend = "return (member, score), the member with unchanged shapes and dtypes"
    trees.alike("members from round_fn", members, "the members before", before, mend)
    if jnp.shape(score) != (n,):
        wanted, got = "round_fn to return a scalar score", f"{jnp.shape(score)[1:]}"
        raise errors.ShapeError(wanted, got, "average it: jnp.mean(score)")
    return members, score
