import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fnn.serve.flat_json import numbers
from fnn.serve.interface import Form

FORM = Form("x", ("batch", 2, 3), np.dtype("f4"))
FLOATS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53)
EXAMPLES = st.lists(st.lists(FLOATS, min_size=3, max_size=3), min_size=2, max_size=2)


@given(EXAMPLES | st.lists(EXAMPLES, min_size=1, max_size=4), st.sampled_from([None, 1]))
def test_shape_and_numbers_are_those_of_json(value, indent):
    shape, flat = numbers(json.dumps({"x": value}, indent=indent).encode(), FORM)
    assert list(shape) == list(np.shape(value))
    assert flat == np.ravel(np.array(value, object)).tolist()


DAMAGES = st.tuples(st.integers(0, 80), st.integers(0, 2), st.text('[]{},:"x019-.e \n', max_size=2))


@given(st.lists(EXAMPLES, min_size=1, max_size=2), st.lists(DAMAGES))
def test_what_is_damaged_is_left_or_as_json_reads_it(value, damages):
    body = json.dumps({"x": value})
    for at, cut, put in damages:
        body = body[:at] + put + body[at + cut :]
    found = numbers(body.encode(), FORM)
    if found:
        read = np.array(json.loads(body)["x"])
        assert found[0] == read.shape and found[1] == read.ravel().tolist()


@pytest.mark.parametrize(
    "value",
    [
        b"[1, 2, 3], [4, 5, 6]",
        b"[[1, 2, 3], [4, 5, 6]",
        b"[[1, 2, 3], [4, 5, 6]]]",
        b"[[1, 2, 3], [4, 5, 6],]",
        b"[[1, 2, 3], [4, 5]]",
        b"[[1, 2, 3], [4, 5, ]]",
        b"[[1, 2, 3], [4, , 5]]",
        b"[[1, 2, 3], [4 5, 6]]",
        b"[[1, 2, 3], 4[, 5, 6]]",
        b"[[1, 2, 3], [4, 5, ]6]",
        b"[[1, 2, 3] 4, [5, 6]]",
        b"[[1, 2, 3], [4, 5, 06]]",
        b"[[1, 2, 3], [4, 5, 6e]]",
        b"[[1, 2, 3], [4, 5, NaN]]",
        b"[[1, 2, 3], [4, 5, true]]",
        b'[[1, 2, 3], [4, 5, "6"]]',
        b"[[1, 2, 3], [4, 5, 6]]\x0b",
        b'[[1, 2, 3], [4, 5, 6]], "x": [[1, 2, 3], [4, 5, 6]]',
        b"[]",
        b"[[]]",
        b"",
        b"7",
    ],
)
def test_what_is_no_array_of_the_form_is_left(value):
    assert numbers(b'{"x": [[1, 2, 3], [4, 5, 6]]}', FORM)
    assert not numbers(b'{"x": ' + value + b"}", FORM)


def test_other_names_and_named_sizes_are_left():
    assert not numbers(b'{"y": [[1, 2, 3], [4, 5, 6]]}', FORM)
    assert not numbers(b'{"x": [1, 2]}', FORM._replace(shape=("batch", "time")))


def test_one_number_an_example():
    scalars = FORM._replace(shape=("batch",))
    assert numbers(b'{"x": 7}', scalars) == ((), [7])
    assert numbers(b'{"x": [7, 8]}', scalars) == ((2,), [7, 8])
    assert numbers(b'{"x": [7]}', FORM._replace(shape=("batch", 1))) == ((1,), [7])
    assert not numbers(b'{"x": []}', scalars)
    assert not numbers(b'{"x": []}', FORM._replace(shape=("batch", 1)))
    named = FORM._replace(name='a "b" (c) \u00e9', shape=("batch", 1))
    assert numbers('{"a \\"b\\" (c) \u00e9": [7]}'.encode(), named) == ((1,), [7])
