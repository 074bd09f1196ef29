"""What may be drawn, against its definition in float64, and what is drawn by frequency."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fnn
from fnn import errors, generation
from fnn.generation.samplers import Settings, choose
from tests.generation.support import constant_cell
from tests.support import asarray, refused

V = 6
LOGITS = np.random.default_rng(0).normal(size=(3, V)).astype(np.float32) * 2


def probabilities(logits):
    e = np.exp(np.float64(logits) - np.max(logits))
    return e / e.sum()


def allowed(logits, k=None, p=None, least=None):
    """Which tokens of one row stay, by the definitions, one filter after another."""
    stay = {i for i in range(len(logits)) if logits[i] > -np.inf}
    likeliest = sorted(stay, key=lambda i: (-logits[i], i))
    likeliest = likeliest[:k]
    if p is not None:
        own = dict(zip(likeliest, probabilities(logits[likeliest]), strict=True))
        mass, some = 0.0, []
        for i in likeliest:
            if mass < p or not some or p == 1:
                some.append(i)
            mass += own[i]
        likeliest = some
    if least is not None:
        most = max(np.exp(np.float64(logits[i])) for i in likeliest)
        likeliest = [i for i in likeliest if np.exp(np.float64(logits[i])) >= least * most]
    return set(likeliest)


def distribution(logits, stay):
    found = np.zeros(len(logits))
    some = sorted(stay)
    found[some] = probabilities(logits[some])
    return found


EIGHTHS = st.integers(0, 8).map(lambda n: n / 8)


@jax.jit
def all_filters(logits, k, p, least):
    return generation.min_p(generation.top_p(generation.top_k(logits, k), p), least)


@given(st.integers(1, V), EIGHTHS, EIGHTHS, st.integers(0, 2**16))
def test_filters_in_a_row_are_their_definitions(k, p, least, seed):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(3, V)).astype(np.float32) * 2
    logits[0, rng.integers(V)] = -np.inf
    k = np.array([k, 1, V], np.int32)
    found = np.asarray(all_filters(logits, k, np.float32([p, 1, p]), np.float32([least, 0, 0])))
    for i in range(3):
        stay = allowed(logits[i], k[i], [p, 1, p][i], [least, 0, 0][i])
        assert set(np.flatnonzero(found[i] > -np.inf)) == stay
        kept = sorted(stay)
        np.testing.assert_array_equal(found[i, kept], logits[i, kept])


def test_a_known_k_is_a_traced_one_and_equal_logits_count():
    ties = np.float32([[1, 0, 1, 1, 0, 1]])
    for logits in (LOGITS, ties):
        for k in (1, 2, V):
            known = generation.top_k(logits, k)
            np.testing.assert_array_equal(known, generation.top_k(logits, jnp.asarray(k)))
            assert (np.isfinite(known).sum(-1) == k).all()


def test_what_lies_on_the_bound():
    even = np.zeros((1, 4), np.float32)  # probabilities of 1/4, exactly
    for p, count in ((0.0, 1), (0.25, 1), (0.5, 2), (0.51, 3), (1.0, 4)):
        assert np.isfinite(generation.top_p(even, p)).sum() == count
    for least in (0.0, 0.5, 1.0):
        assert np.isfinite(generation.min_p(even, least)).all()
        found = generation.min_p(np.float32([[1, -np.inf, 1, -9]]), least)
        assert np.flatnonzero(np.isfinite(found)).tolist() == ([0, 2] if least else [0, 2, 3])


def test_the_penalty_divides_or_multiplies_what_was_seen():
    seen, by = np.random.default_rng(1).random((3, V)) < 0.5, np.array([1.5, 1.0, 0.5], np.float32)
    found = generation.penalize(LOGITS, seen, by)
    for i, j in np.ndindex(3, V):
        logit = np.float64(LOGITS[i, j])
        if seen[i, j]:
            logit = logit / by[i] if logit > 0 else logit * by[i]
        np.testing.assert_allclose(found[i, j], logit, rtol=1e-6)


@pytest.mark.parametrize(
    "options",
    [{}, {"k": 3}, {"p": 0.6}, {"least": 0.2}, {"k": 4, "p": 0.8, "least": 0.1, "heat": 2.0}],
    ids=str,
)
def test_tokens_are_drawn_from_the_distribution(options):
    logits, n = LOGITS[0], 20_000
    heat = options.pop("heat", 1.0)
    names = {"k": "top_k", "p": "top_p", "least": "min_p"}
    settings = {names[name]: value for name, value in options.items()}
    run = jax.jit(
        lambda x, key: (
            fnn.generate(
                constant_cell(logits), {}, x, 2, key=key, temperature=heat, **settings
            ).tokens
        )
    )
    drawn = np.asarray(run(np.zeros((n, 1), np.int32), jax.random.key(0)))
    wanted = distribution(logits / heat, allowed(logits / heat, **options))
    for t in range(2):
        found = np.bincount(drawn[:, t], minlength=V) / n
        np.testing.assert_allclose(found, wanted, atol=0.02)  # 5 deviations are 0.018
        assert not found[wanted == 0].any()


def test_settings_of_each_row_are_those_of_it_alone():
    settings = Settings(
        np.float32([0.0, 0.5, 2.0]),
        np.array([6, 2, 3], np.int32),
        np.float32([1.0, 0.9, 0.5]),
        np.float32([0.0, 0.1, 0.2]),
    )
    keys = jax.random.split(jax.random.key(0), 200)
    together = np.asarray(jax.jit(jax.vmap(lambda k: choose(k, LOGITS, settings)))(keys))
    assert (together[:, 0] == np.argmax(LOGITS[0])).all()
    for i, heat in ((1, 0.5), (2, 2.0)):
        k, p, least = settings.top_k[i], float(settings.top_p[i]), float(settings.min_p[i])
        assert set(together[:, i]) == allowed(LOGITS[i] / heat, k, p, least)


def test_narrow_logits_are_filtered_in_float32():
    narrow = asarray(LOGITS, jnp.bfloat16)
    assert generation.top_p(narrow, 0.5).dtype == jnp.float32
    stay = np.isfinite(generation.top_p(narrow, 0.5))
    for i in range(3):
        assert set(np.flatnonzero(stay[i])) == allowed(np.float32(narrow[i]), p=0.5)


WRONG = {
    "k of none": (generation.top_k, (0,), "top_k to be an int at most the 6 logits"),
    "k beyond the vocabulary": (generation.top_k, (V + 1,), "at most the 6 logits"),
    "k that is no int": (generation.top_k, (2.0,), "an int"),
    "p above 1": (generation.top_p, (1.5,), "top_p to be a number in [0, 1]"),
    "p of NaN": (generation.top_p, (float("nan"),), "got nan"),
    "p of text": (generation.top_p, ("most",), "got 'most'"),
    "p of another batch": (generation.top_p, (np.ones(2, np.float32),), "got (2,) float32"),
    "negative min_p": (generation.min_p, (-0.1,), "min_p to be a number in [0, 1]"),
    "no penalty": (generation.penalize, (LOGITS > 0, 0.0), "repetition_penalty"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_settings(name):
    fn, args, text = WRONG[name]
    error = refused(lambda: fn(LOGITS, *args))
    assert text in str(error) and error.layer == fn.__name__


def test_integers_are_no_logits():
    assert "floating" in str(refused(lambda: generation.top_k(np.arange(3), 1), errors.DtypeError))
