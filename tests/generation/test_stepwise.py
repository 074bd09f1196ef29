"""Tokens handed over step by step are those of one program."""

import jax
import numpy as np
import pytest

import fnn
from fnn import errors
from tests.generation.support import (
    CELL,
    CELL_PARAMS,
    LENGTHS,
    NET,
    PARAMS,
    PROMPTS,
    constant_cell,
    read_cell,
    table_cell,
    written,
)

OPTIONS = {"key": jax.random.key(3), "temperature": 0.8, "top_k": 4, "repetition_penalty": 1.2}


def test_each_step_is_that_of_generate():
    net, params = NET, PARAMS
    write = fnn.generation.stepwise(net)
    given = params, PROMPTS, 5
    wanted = jax.jit(lambda p, x, n: fnn.generate(net, p, x, 5, lengths=n, stop=[1], **OPTIONS))(
        params, PROMPTS, LENGTHS
    ).tokens
    steps = list(write(*given, lengths=LENGTHS, stop=[1], **OPTIONS))
    np.testing.assert_array_equal(np.stack(steps, 1), wanted[:, : len(steps)])
    assert (wanted[:, len(steps) :] == -1).all()


def test_temperature_zero_takes_the_likeliest():
    steps = fnn.generation.stepwise(CELL)(CELL_PARAMS, PROMPTS[0], 5, temperature=0.0)
    assert [int(token) for token in steps] == written(read_cell, CELL_PARAMS, PROMPTS[0], 5)[0]


def test_it_ends_when_all_rows_have_and_is_compiled_once():
    traces = []

    def adjust(logits):
        traces.append(None)
        return logits

    table = np.zeros((9, 3, 3), np.float32)
    table[:, :, 0], table[2, :, 1] = 5.0, 9.0  # 0 0 1 ...
    write = fnn.generation.stepwise(table_cell(table), adjust=adjust)
    counts = []
    for heat, length in ((0.5, 1), (0.1, 2), (2.0, 1)):
        options = {"lengths": np.array([length]), "key": jax.random.key(0), "temperature": heat}
        tokens = write({}, np.zeros((1, 2), np.int32), 9 - length, stop=1, top_p=0.5, **options)
        assert [int(t[0]) for t in tokens] == [0, 0, 1][length - 1 :]
        counts.append(len(traces))
    assert counts[0] == counts[1] == counts[2]


def test_a_caller_may_leave_early_and_state_given_is_kept():
    first = jax.jit(lambda p: fnn.generate(CELL, p, PROMPTS, 2, temperature=0.0))(CELL_PARAMS)
    write = fnn.generation.stepwise(CELL)
    for _ in range(2):
        steps = write(CELL_PARAMS, first.tokens[:, 1:], 3, temperature=0.0, carry=first.carry)
        token = np.asarray(next(steps))
        for i in range(4):
            assert token[i] == written(read_cell, CELL_PARAMS, PROMPTS[i], 3)[0][2]


def test_wrong_options_raise_at_the_call():
    write = fnn.generation.stepwise(constant_cell(np.zeros(3)))
    x = np.zeros((2, 1), np.int32)
    for options, text in (
        ({}, "a key to draw from"),
        ({"heat": 1.0}, "options among temperature"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": 0.0, "lengths": np.array([0, 1])}, "lengths of 1 to 1"),
    ):
        with pytest.raises(errors.FnnError, match=text):
            write({}, x, 2, **options)
