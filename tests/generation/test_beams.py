"""Beam search against all texts there are, and against a plain search of the same width."""

import itertools

import jax
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import fnn
from fnn import errors
from tests.generation.support import (
    CELL,
    CELL_PARAMS,
    LENGTHS,
    NET,
    PARAMS,
    PROMPTS,
    log_softmax,
    logits_after,
    read_all,
    read_cell,
    table_cell,
    written,
)
from tests.support import refused

V, N, STOP = 3, 3, 2


def all_texts(table, first, alpha):
    """(score, tokens) of all texts, the best first: those that end, and those of N tokens."""
    found = []
    for n in range(1, N + 1):
        for text in itertools.product(range(V), repeat=n):
            ended = text[-1] == STOP
            if STOP in text[:-1] or not (ended or n == N):
                continue
            before = (first, *text[:-1])
            total = sum(
                log_softmax(table[t, b])[x]
                for t, (b, x) in enumerate(zip(before, text, strict=True))
            )
            found.append((total / n**alpha, list(text)))
    return sorted(found, key=lambda pair: -pair[0])


def table_of(seed):
    return np.random.default_rng(seed).normal(size=(N, V, V)) * 2


@jax.jit
def widest(table, first, alpha):
    return fnn.beam_search(
        table_cell(table), {}, first[:, None], N, beams=10, stop=STOP, length_penalty=alpha
    )


@given(st.integers(0, 2**16), st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0]))
def test_a_search_wide_enough_finds_the_best_of_all_texts(seed, alpha):
    table = table_of(seed)
    found = widest(np.float32(table), np.array([0, 1], np.int32), np.float32([alpha, 0.0]))
    for row, (first, a) in enumerate([(0, alpha), (1, 0.0)]):
        wanted = all_texts(table, first, a)[:10]
        np.testing.assert_allclose(found.scores[row], [score for score, _ in wanted], atol=1e-4)
        gaps = -np.diff([score for score, _ in wanted])
        for k in range(10):
            near = min(np.r_[np.inf, gaps][k], np.r_[gaps, np.inf][k])
            if near > 1e-4:
                n = int(found.lengths[row, k])
                assert found.tokens[row, k, :n].tolist() == wanted[k][1]
                assert (found.tokens[row, k, n:] == -1).all()
        totals = np.float64(found.log_probs[row]).sum(-1) / np.float64(found.lengths[row]) ** a
        np.testing.assert_allclose(found.scores[row], totals, rtol=1e-5, atol=1e-5)


def plain_search(logits, prompt, steps, beams, stop, alpha):
    """(score, tokens), the best first, by lists; `logits` is a function of a text."""
    alive, ended = [(0.0, [])], []
    for n in range(1, steps + 1):
        further = []
        for total, text in alive:
            log_probs = log_softmax(logits([*prompt, *text]))
            further += [(total + p, [*text, i]) for i, p in enumerate(log_probs)]
        ended += [(total / n**alpha, text) for total, text in further if text[-1] == stop]
        alive = sorted((f for f in further if f[1][-1] != stop), key=lambda f: -f[0])[:beams]
    ended += [(total / steps**alpha, text) for total, text in alive]
    return sorted(ended, key=lambda f: -f[0])[:beams]


LONG = 6


@jax.jit
def narrow(table, alpha):
    x = np.zeros((3, 1), np.int32)
    return fnn.beam_search(table_cell(table), {}, x, LONG, beams=2, stop=STOP, length_penalty=alpha)


@example(3, True)  # which ends too early at -1, if the bound is that of the longest texts
@given(st.integers(0, 2**16), st.booleans())
def test_a_narrow_search_does_not_end_too_early(seed, likely):
    """Even if there are as many ended texts as beams from the first steps on."""
    table, alphas = np.random.default_rng(seed).normal(size=(LONG, V, V)), (0.0, 2.0, -1.0)
    table[:, :, STOP] += 2.0 * likely
    found = narrow(np.float32(table), np.float32(alphas))
    for row, alpha in enumerate(alphas):
        logits = lambda text: table[len(text) - 1, text[-1]]  # noqa: E731
        wanted = plain_search(logits, [0], LONG, 2, STOP, alpha)
        np.testing.assert_allclose(found.scores[row], [score for score, _ in wanted], rtol=1e-4)


@pytest.mark.parametrize("name", ["network", "cell"])
def test_memories_follow_their_beams(name):
    net, params, read = {
        "network": (NET, PARAMS, read_all),
        "cell": (CELL, CELL_PARAMS, read_cell),
    }[name]
    run = jax.jit(
        lambda p, x, n, alpha: fnn.beam_search(
            net, p, x, 4, beams=3, lengths=n, stop=5, length_penalty=alpha
        )
    )
    alphas = np.float32([0.0, 1.0, 0.5, 1.0])
    found = run(params, PROMPTS, LENGTHS, alphas)
    assert found.tokens.shape == (4, 3, 4)
    for i, n in enumerate(LENGTHS):
        logits = lambda text: logits_after(read, params, text)  # noqa: E731
        wanted = plain_search(logits, PROMPTS[i, :n], 4, 3, 5, float(alphas[i]))
        np.testing.assert_allclose(found.scores[i], [score for score, _ in wanted], atol=1e-4)
        for k, (_, text) in enumerate(wanted):
            assert found.tokens[i, k, : found.lengths[i, k]].tolist() == text


def test_one_beam_is_the_likeliest_text():
    run = jax.jit(lambda p: fnn.beam_search(CELL, p, PROMPTS, 4, beams=1, lengths=LENGTHS))
    found = run(CELL_PARAMS)
    for row, n in enumerate(LENGTHS):
        tokens, log_probs = written(read_cell, CELL_PARAMS, PROMPTS[row, :n], 4)
        assert found.tokens[row, 0].tolist() == tokens
        np.testing.assert_allclose(found.scores[row, 0], sum(log_probs), atol=1e-5)


def test_the_search_ends_when_nothing_can_get_among_the_best():
    table = np.zeros((50, V, V), np.float32)
    table[:, :, STOP] = 20.0
    ran = []

    def count(logits):
        jax.debug.callback(lambda: ran.append(None))
        return logits

    run = jax.jit(
        lambda x: fnn.beam_search(table_cell(table), {}, x, 50, beams=2, stop=STOP, adjust=count)
    )
    found = run(np.zeros((2, 1), np.int32))
    jax.effects_barrier()
    assert found.tokens[0, 0, 0] == STOP and len(ran) < 4


def test_fewer_texts_than_beams_leave_the_others_empty():
    logits = np.full((1, V, V), -np.inf)
    logits[0, :, 1] = 0.0
    run = jax.jit(lambda x: fnn.beam_search(table_cell(logits), {}, x, 1, beams=3))
    found = run(np.array([0], np.int32))
    assert found.tokens.tolist() == [[1], [-1], [-1]] and found.lengths.tolist() == [1, 0, 0]
    assert found.scores.tolist() == [0.0, -np.inf, -np.inf]


def test_nan_raises_or_leaves_its_row_without_texts():
    table = np.zeros((2, V, V))
    table[1, 1] = np.nan
    table[0, 0, 1] = 3.0
    x = np.array([[0], [2]], np.int32)

    def run(x):
        return fnn.beam_search(table_cell(table), {}, x, 2, beams=1)

    found = jax.jit(run)(x)
    assert np.isnan(found.scores[0]).all() and (found.tokens[0] == -1).all()
    assert np.isfinite(found.scores[1]).all() and (found.lengths[1] == 2).all()
    refused(lambda: run(x), errors.InputError)


def test_wrong_inputs():
    for changed, text in (
        ({"beams": 0}, "beams to be an int of at least 1"),
        ({"length_penalty": "long"}, "length_penalty"),
        ({"length_penalty": np.ones(3, np.float32)}, "one for each row (4,)"),
        ({"steps": 100}, "no more than cache="),
    ):
        given_ = {"tokens": PROMPTS, "steps": 2} | changed
        assert text in str(refused(lambda g=given_: fnn.beam_search(NET, PARAMS, **g)))
