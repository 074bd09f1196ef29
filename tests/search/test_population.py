"""Population-based training: who goes on from whom, with what, and that it finds a schedule."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import errors
from tests.support import asarray

N, ROUNDS = 10, 6


def round_fn(theta, h, key):
    """Jaderberg et al., 2017, figure 2: descent on a surrogate with weights h; the score is Q."""
    theta = theta - 0.02 * h * theta
    return theta, 1.2 - jnp.sum(theta**2)


def start(n=N, seed=0):
    random = np.random.default_rng(seed)
    members = asarray(random.uniform(0.5, 1.0, size=(n, 2)), jnp.float32)
    hyper = asarray(random.uniform(0.0, 1.0, size=(n, 2)), jnp.float32)
    return fnn.search.population(members, hyper, jax.random.key(seed))


@functools.cache
def program(round_fn, **options):
    return jax.jit(functools.partial(fnn.search.evolve, round_fn, **options))


def evolve(people, rounds=ROUNDS, round_fn=round_fn, **options):
    return program(round_fn, rounds=rounds, **options)(people)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.3, 0.5])
def test_the_worst_go_on_from_the_best(fraction):
    """Every round replayed in NumPy from the history's parents and hyperparameters."""
    people, history = evolve(start(), fraction=fraction)
    history = jax.tree.map(np.asarray, history)
    theta, before = np.asarray(start().members), np.asarray(start().hyper)
    count, score = int(fraction * N), None
    for r in range(ROUNDS):
        parent, hyper = history["parent"][r], history["hyper"][r]
        replaced = np.flatnonzero(parent != np.arange(N))
        if score is None or not count:
            assert not replaced.size
        else:
            order = np.argsort(score, kind="stable")
            assert set(replaced) == set(order[:count])
            assert set(parent[replaced]) <= set(order[N - count :])
        ratio = hyper / before[parent]
        ratio[np.isnan(ratio)] = 1.0
        np.testing.assert_allclose(np.delete(ratio, replaced, axis=0), 1.0)
        drawn = np.minimum(abs(ratio[replaced] - 0.8), abs(ratio[replaced] - 1.2))
        np.testing.assert_allclose(drawn, 0, atol=1e-6)
        theta, before = theta[parent] * (1 - 0.02 * hyper), hyper
        score = history["score"][r]  # whose ties and roundings rank the members
        np.testing.assert_allclose(score, 1.2 - (theta**2).sum(1), rtol=1e-5)
    np.testing.assert_allclose(people.members, theta, rtol=1e-5)
    np.testing.assert_allclose(people.score, score, rtol=1e-5)
    assert int(people.round) == ROUNDS


def test_two_members_reach_what_no_fixed_setting_of_theirs_does():
    """The paper's point: with h = (1, 0) or (0, 1) alone Q stays below 0.4; together it is 1.2."""
    theta, hyper = jnp.full((2, 2), 0.9), jnp.eye(2)
    people = fnn.search.population(theta, hyper, jax.random.key(1))

    def explore(key, h):
        return jnp.clip(h + jax.random.uniform(key, h.shape, minval=-0.3, maxval=0.3), 0, 1)

    alone, _ = evolve(people, 200, fraction=0.0)
    together, _ = evolve(people, 200, fraction=0.5, explore=explore)
    assert alone.score.max() < 0.4 and together.score.max() > 1.15


def test_rounds_and_more_rounds_are_all_rounds_bitwise():
    whole, history = evolve(start(), 6, fraction=0.3)
    half, first = evolve(start(), 3, fraction=0.3)
    again, second = evolve(half, 3, fraction=0.3)
    for a, b in zip(*map(jax.tree.leaves, (whole[:4], again[:4])), strict=True):
        np.testing.assert_array_equal(a, b)
    for name in history:
        both = np.concatenate([first[name], second[name]])
        np.testing.assert_array_equal(both, history[name])


def test_a_score_of_nan_is_the_lowest_and_is_mended():
    def breaks(theta, h, key):
        broken = jnp.where(h[0] > 0.9, jnp.nan, theta)
        return broken, 1.2 - jnp.sum(broken**2)

    hyper = jnp.full((4, 2), 0.5).at[2].set(1.0)
    people = fnn.search.population(jnp.ones((4, 2)), hyper, jax.random.key(0))
    people, history = evolve(people, 2, breaks, fraction=0.25)
    assert np.isnan(history["score"][0]).tolist() == [False, False, True, False]
    assert history["parent"][1][2] != 2 and np.isfinite(people.score).all()


def test_no_nan_stands_for_no_score():
    with jax.debug_nans(True):
        people = fnn.search.population(
            {"w": jnp.zeros(4)}, {"rate": jnp.ones(4)}, jax.random.key(0)
        )
        assert (people.score == -jnp.inf).all()
    with jax.disable_jit():
        none, history = fnn.search.evolve(lambda m, h, key: (m, h["rate"]), people, rounds=0)
    assert history["score"].shape == (0, 4) and int(none.round) == 0


def test_members_draw_apart():
    def noise(member, h, key):
        return jax.random.normal(key, (2,)), 0.0

    people, _ = evolve(start(), 1, noise)
    assert len(np.unique(people.members)) == 2 * N


def test_training_states_are_members():
    """Real runs: rates that start too high and too low end with a better score than they began."""
    net, x = fnn.dense(3), np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
    data = {"image": x, "label": (x @ np.ones((4, 3)) + x[:, :3]).argmax(-1)}
    loss_fn = fnn.train.supervised(net, fnn.losses.softmax_cross_entropy)

    def round_fn(ts, hyper, key):
        step = fnn.train.step(loss_fn, fnn.optim.adam(hyper["rate"]))
        ts, history = fnn.train.run(step, ts, data, steps=8, batch_size=8)
        return ts, -history["train"]["loss"].mean()

    def member(key):
        return fnn.train.init(net, fnn.optim.adam(1.0), key, (1, 4))

    rates = asarray([1e-6, 1e-5, 1e-1, 1e-2])
    members = jax.vmap(member)(jax.random.split(jax.random.key(0), 4))
    people = fnn.search.population(members, {"rate": rates}, jax.random.key(1))
    people, history = evolve(people, 5, round_fn, fraction=0.5)
    assert people.members.step.tolist() == [40] * 4
    assert people.hyper["rate"].min() > 1e-3  # all descend from the rates that learn
    assert (history["score"][-1] > history["score"][0].max()).all()


def test_it_has_a_derivative_and_maps():
    @jax.jit
    def best(scale):
        people = start()
        people = people._replace(members=people.members * scale)
        return fnn.search.evolve(round_fn, people, rounds=3)[0].score.max()

    slope, h = jax.grad(best)(1.0), 1e-2
    np.testing.assert_allclose(slope, (best(1 + h) - best(1 - h)) / (2 * h), rtol=1e-2)
    mapped = jax.vmap(best)(asarray([0.5, 1.0]))
    np.testing.assert_allclose(mapped[1], best(1.0), rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda: evolve(start(), fraction=0.6), errors.OptionError, "fraction"),
        (lambda: evolve(start(), rounds=-1), errors.OptionError, "rounds"),
        (lambda: fnn.search.evolve(round_fn, {}, rounds=1), errors.InputError, "a Population"),
        (lambda: evolve(start(), 1, lambda t, h, k: (t, t)), errors.ShapeError, "scalar score"),
        (lambda: evolve(start(), 1, lambda t, h, k: (t[0], 0.0)), errors.ShapeError, "members"),
        (lambda: evolve(start(), 1, lambda t, h, k: t), errors.InputError, "member, score"),
        (
            lambda: evolve(start(), 1, explore=lambda k, h: h[:1]),
            errors.ShapeError,
            "the result of explore",
        ),
        (
            lambda: fnn.search.population(jnp.ones(3), jnp.arange(3), jax.random.key(0)),
            errors.DtypeError,
            "hyperparameters of floating",
        ),
        (
            lambda: fnn.search.population(jnp.ones(3), jnp.ones(2), jax.random.key(0)),
            errors.ShapeError,
            "leading axis",
        ),
        (
            lambda: fnn.search.population(jnp.ones(3), jnp.ones(3), 0),
            errors.RandomKeyError,
            "key",
        ),
    ],
)
def test_wrong_inputs_are_refused(call, kind, text):
    with pytest.raises(kind, match=text):
        call()
