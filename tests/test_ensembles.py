"""Ensembles: each member learns as alone; predictions, uncertainty and soups by their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fnn
from fnn import ensembles, errors
from tests.support import asarray

NET = fnn.serial(fnn.dense(8), jnp.tanh, fnn.dense(3))
X = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
DATA = {"image": X, "label": np.arange(40, dtype=np.int32) % 3}
XENT = fnn.losses.softmax_cross_entropy
seeds = st.integers(0, 2**32 - 1)


def softmax(logits):
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def entropy(p):
    return -np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0), -1)


@pytest.mark.parametrize("tx", [fnn.optim.sgd(0.3, momentum=0.9), fnn.optim.adam(1e-2)])
def test_every_member_learns_as_it_would_alone(tx):
    """Against one network after another, with the same first values and batches."""
    several = fnn.ensemble(NET, 3)
    ts = fnn.train.init(several, tx, jax.random.key(0), (1, 4))
    step = fnn.train.step(fnn.train.supervised(several, ensembles.each(XENT)), tx)
    alone_step = fnn.train.step(fnn.train.supervised(NET, XENT), tx)
    after, history = fnn.train.run(step, ts, DATA, steps=12, batch_size=8)
    losses = 0
    for i in range(3):
        params = jax.tree.map(lambda a: a[i], ts.params)  # noqa: B023
        alone = ts._replace(params=params, opt_state=tx.init(params))
        alone, one = fnn.train.run(alone_step, alone, DATA, steps=12, batch_size=8)
        member = jax.tree.map(lambda a: a[i], after.params)  # noqa: B023
        for a, b in zip(*map(jax.tree.leaves, (member, alone.params)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
        losses = losses + one["train"]["loss"]
    np.testing.assert_allclose(history["train"]["loss"], losses, rtol=1e-5)


@given(seed=seeds, n=st.integers(1, 4), scale=st.sampled_from([0.0, 1.0, 50.0]))
def test_uncertainty_is_the_formula(seed, n, scale):
    logits = np.random.default_rng(seed).normal(size=(n, 2, 3, 5)) * scale
    p = softmax(logits)
    total, aleatoric = entropy(p.mean(0)), entropy(p).mean(0)
    found = jax.jit(ensembles.uncertainty)(asarray(logits, jnp.float32))
    np.testing.assert_allclose(found.total, total, atol=2e-5)
    np.testing.assert_allclose(found.aleatoric, aleatoric, atol=2e-5)
    np.testing.assert_allclose(found.epistemic, total - aleatoric, atol=2e-5)
    predicted = jnp.exp(ensembles.mean_logits(asarray(logits, jnp.float32)))
    # An exponential has the rounding of its argument, in units of eps times its size.
    np.testing.assert_allclose(predicted, p.mean(0), rtol=1e-6 + 2e-7 * scale, atol=1e-6)


def test_members_of_one_mind_are_only_aleatoric():
    logits = jnp.broadcast_to(asarray([2.0, 1.0, -jnp.inf]), (4, 3))
    found = ensembles.uncertainty(logits)
    assert found.epistemic == 0 and found.total == found.aleatoric
    grads = jax.grad(lambda x: ensembles.mean_logits(x)[0])(logits)
    assert jnp.isfinite(grads).all() and ensembles.mean_logits(logits)[2] == -jnp.inf
    low = ensembles.uncertainty(logits.astype(jnp.bfloat16))
    assert low.total.dtype == jnp.float32 and jnp.isfinite(low.total)


@given(seed=seeds, n=st.integers(1, 5))
def test_a_mixture_of_gaussians_has_the_moments_of_its_draws(seed, n):
    """Total variance by the law of the second moment, E[y^2] - E[y]^2."""
    random = np.random.default_rng(seed)
    mean, variance = random.normal(size=(n, 3)), random.uniform(0.1, 2.0, size=(n, 3))
    m, unsure = ensembles.gaussian_uncertainty(jnp.float32(mean), jnp.float32(variance))
    np.testing.assert_allclose(m, mean.mean(0), atol=1e-5)
    second = (variance + mean**2).mean(0)
    np.testing.assert_allclose(unsure.total, second - mean.mean(0) ** 2, atol=1e-5)
    np.testing.assert_allclose(unsure.aleatoric, variance.mean(0), atol=1e-5)
    _, none = ensembles.gaussian_uncertainty(jnp.float32(mean))
    np.testing.assert_allclose(none.total, mean.var(0), atol=1e-5)


def test_a_soup_of_linear_networks_predicts_the_mean():
    net = fnn.ensemble(fnn.dense(3), 4)
    params, _ = net.init(jax.random.key(0), (1, 4))
    y = fnn.dense(3)(ensembles.soup(params), X)
    np.testing.assert_allclose(y, np.mean(net(params, X), axis=0), atol=1e-6)
    weights = asarray([1.0, 0.0, 3.0, 0.0])
    spoilt = jax.tree.map(lambda a: a.at[1].set(jnp.nan), params)
    y = fnn.dense(3)(ensembles.soup(spoilt, weights), X)
    np.testing.assert_allclose(y, np.average(net(params, X), axis=0, weights=weights), atol=1e-6)
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)
    assert ensembles.soup(half)["kernel"].dtype == jnp.bfloat16


@given(seed=seeds, n=st.integers(1, 5))
def test_a_greedy_soup_is_the_loop_of_its_paper(seed, n):
    members = np.random.default_rng(seed).normal(size=(n, 3)).round(1).astype(np.float32)

    def score(w):
        return -np.sum((w - 0.3) ** 2)

    order = sorted(range(n), key=lambda i: -score(members[i]))  # stable, as the paper's
    kept, best = [order[0]], score(members[order[0]])
    for i in order[1:]:
        now = score(members[[*kept, i]].mean(0))
        if abs(now - best) < 1e-5:
            return  # rounding decides
        if now >= best:
            kept, best = [*kept, i], now
    mean, mask = jax.jit(
        lambda w: ensembles.greedy_soup(w, lambda w: -jnp.sum((w["w"] - 0.3) ** 2))
    )({"w": asarray(members)})
    assert set(np.flatnonzero(mask)) == set(kept)
    np.testing.assert_allclose(mean["w"], members[kept].mean(0), atol=1e-5)
    assert score(np.asarray(mean["w"])) >= max(map(score, members)) - 1e-5


def test_a_member_of_nan_is_not_in_the_soup():
    members = asarray([[jnp.nan], [1.0], [3.0]])
    mean, kept = ensembles.greedy_soup(members, lambda w: -jnp.abs(w[0] - 2.0))
    assert mean == 2.0 and kept.tolist() == [False, True, True]
    members = asarray([[3.0], [-1.0]])  # whose mean has a score, unlike the second
    _, kept = ensembles.greedy_soup(members, lambda w: -(jnp.log(w[0]) ** 2))
    assert kept.tolist() == [True, False]
    members = asarray([[jnp.nan], [jnp.inf]])
    _, kept = ensembles.greedy_soup(members, lambda w: -w[0])
    assert kept.tolist() == [False, True]


def test_nan_is_not_hidden():
    logits = jnp.zeros((3, 4)).at[1].set(jnp.nan)
    assert jnp.isnan(ensembles.mean_logits(logits)).all()
    assert jnp.isnan(ensembles.uncertainty(logits).total)


def test_the_derivative_by_a_weight_is_the_formula():
    """d soup / d w_i = (params_i - soup) / sum w, where w_i is zero too."""
    params, w = asarray([1.0, 4.0, -2.0]), asarray([1.0, 0.0, 1.0])
    slope = jax.grad(lambda w: ensembles.soup(params, w))(w)
    np.testing.assert_allclose(slope, (params + 0.5) / 2, rtol=1e-6)


def test_stacked_networks_are_an_ensemble():
    apart = [NET.init(jax.random.key(i), (1, 4))[0] for i in range(3)]
    y = fnn.ensemble(NET, 3)(ensembles.stack(apart), X)
    for one, params in zip(y, apart, strict=True):
        np.testing.assert_allclose(one, NET(params, X), atol=1e-6)


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda: ensembles.mean_logits(jnp.ones(3)), errors.ShapeError, r"\[n, ..., C\]"),
        (lambda: ensembles.uncertainty(jnp.ones((0, 3))), errors.ShapeError, "members"),
        (lambda: ensembles.uncertainty(jnp.ones((2, 3), int)), errors.DtypeError, "float"),
        (
            lambda: ensembles.gaussian_uncertainty(jnp.ones((2, 3)), jnp.ones((2, 1))),
            errors.ShapeError,
            "as in mean",
        ),
        (lambda: ensembles.soup({"w": jnp.arange(3)}), errors.DtypeError, "floating.*w .* int32"),
        (lambda: ensembles.soup({"w": jnp.ones(())}), errors.ShapeError, "leading axis"),
        (lambda: ensembles.soup(jnp.ones((2, 3)), jnp.ones(3)), errors.ShapeError, r"\(2,\)"),
        (lambda: ensembles.greedy_soup(jnp.ones((2, 3)), lambda w: w), errors.ShapeError, "scalar"),
        (
            lambda: ensembles.greedy_soup(jnp.ones((2, 3)), lambda w: jnp.int32(1)),
            errors.DtypeError,
            "floating score",
        ),
        (lambda: ensembles.stack([]), errors.InputError, "none"),
        (lambda: ensembles.stack([jnp.ones(2), jnp.ones(3)]), errors.ShapeError, "member 1"),
        (lambda: ensembles.each(3), errors.OptionError, "a function"),
    ],
)
def test_wrong_inputs_are_refused(call, kind, text):
    with pytest.raises(kind, match=text):
        call()
