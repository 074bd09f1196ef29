"""Packs against a plain first fit, and every token once."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fnn import errors
from fnn.data import packed, stream


def first_fit(lengths, length):
    """The rows by the rule as it is written: look at every row in turn."""
    rows = []
    for i, size in enumerate(lengths):
        for row in rows:
            if sum(lengths[j] for j in row) + size <= length:
                row.append(i)
                break
        else:
            rows.append([i])
    return rows


many = np.random.default_rng(0).integers(1, 9, 300).tolist()


@example(lengths=many, length=20)
@given(lengths=st.lists(st.integers(1, 8), max_size=40), length=st.integers(8, 12))
def test_rows_are_those_of_a_first_fit(lengths, length):
    tokens = np.split(np.arange(1, 1 + sum(lengths)), np.cumsum(lengths))[:-1]
    rows = packed(tokens, length)
    want = first_fit(lengths, length)
    assert len(rows) == len(want)
    for row, members in zip((rows[i] for i in range(len(rows))), want, strict=True):
        assert all(x.shape == (length,) for x in row.values())
        assert row["segments"].dtype == row["positions"].dtype == np.int32
        end = 0
        for number, i in enumerate(members, 1):
            begin, end = end, end + lengths[i]
            assert row["tokens"][begin:end].tolist() == tokens[i].tolist()
            assert row["segments"][begin:end].tolist() == [number] * lengths[i]
            assert row["positions"][begin:end].tolist() == list(range(lengths[i]))
        assert not any(x[end:].any() for x in row.values())


@given(lengths=st.lists(st.integers(0, 30), max_size=20), length=st.integers(1, 9))
def test_long_sequences_are_cut_and_no_token_is_lost(lengths, length):
    tokens = np.split(np.arange(1, 1 + sum(lengths)), np.cumsum(lengths))[:-1]
    rows = packed(tokens, length, cut=True)
    found = np.concatenate([[0], *(rows[i]["tokens"] for i in range(len(rows)))])
    assert sorted(found[found > 0].tolist()) == list(range(1, 1 + sum(lengths)))
    for i in range(len(rows)):
        row = rows[i]
        for segment in range(1, 1 + row["segments"].max()):
            piece = row["tokens"][row["segments"] == segment]
            assert 0 < len(piece) <= length
            assert piece.tolist() == list(range(piece[0], piece[0] + len(piece)))


def test_rows_go_into_a_stream():
    tokens = np.arange(1, 13, dtype=np.uint16).reshape(6, 2)
    rows = packed(tokens, 4)  # rows of an array are sequences
    (batch,) = stream(rows, 3, None, device=False)(0)
    assert batch["tokens"].tolist() == tokens.reshape(3, 4).tolist()
    assert batch["tokens"].dtype == np.uint16
    assert batch["segments"].tolist() == [[1, 1, 2, 2]] * 3
    for i in range(-3, 3):
        assert rows[i]["tokens"].tolist() == batch["tokens"][i].tolist()
    for i in (-4, 3):
        with pytest.raises(IndexError):
            rows[i]


def test_what_would_be_lost_is_refused():
    with pytest.raises(errors.OptionError, match="packed: .* at most length=3, got 2 of up to 5"):
        packed([np.zeros(5), np.zeros(4), np.zeros(2)], 3)
    rows = packed([np.zeros(2)], 3, lengths=[1])
    assert len(rows) == 1
    for tokens, lengths in (
        (np.zeros(2), [3]), (np.zeros(2), [1]), (np.zeros((2, 2)), [2]), ({"tokens": [1]}, [1]),
    ):  # fmt: skip
        with pytest.raises(errors.ShapeError, match=r"sequences \[T\] as long as lengths="):
            packed([tokens], 3, lengths=lengths)[0]  # nor is the rest of it dropped
