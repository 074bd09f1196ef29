import io
import json
import re

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn

from fnn.serve.interface import interface
from fnn.serve.messages import JSON, NPY, Refused, decode, encode, kind_of

from .support import said


def form(shape=("batch", 3), dtype="float32", max_batch=4, **options):
    names = {"sizes": options.pop("sizes", None)}
    return interface(said(shape, dtype=dtype, **options)["programs"]["apply"], max_batch, **names)


def npy(x):
    file = io.BytesIO()
    np.save(file, x)
    return file.getvalue()


def refused(body, kind=JSON, **options):
    with pytest.raises(Refused) as found:
        decode(
            body if isinstance(body, bytes) else json.dumps(body).encode(), kind, form(**options)
        )
    return found.value


@given(
    stn.arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.just(3)),
        elements=stn.from_dtype(np.dtype("f4"), allow_nan=False, allow_infinity=False),
    )
)
def test_arrays_come_through_json_and_npy_to_the_bit(x):
    for body, kind in ((json.dumps({"x": x.tolist()}).encode(), JSON), (npy(x), NPY)):
        (found,), alone = decode(bytearray(body), kind, form())
        assert found.tobytes() == x.tobytes() and found.dtype == x.dtype and not alone
        answer = encode((x,), kind, form(), False)
        back = json.loads(answer)["y"] if kind == JSON else np.load(io.BytesIO(answer))
        assert np.array(back, np.float32).tobytes() == x.tobytes()


def test_one_example_gets_an_answer_without_the_axis_of_examples():
    for body, kind in ((b'{"x": [1, 2, 3]}', JSON), (npy(np.arange(3.0, dtype="f4")), NPY)):
        (x,), alone = decode(body, kind, form())
        assert x.shape == (1, 3) and alone
    assert encode((np.ones((1, 2), "f4"),), JSON, form(), True) == b'{"y":[1.0,1.0]}'
    outputs = form(outputs=[("y", ("ensemble", "batch"))])
    assert encode((np.ones((3, 1), "f4"),), JSON, outputs, True) == b'{"y":[1.0,1.0,1.0]}'


def test_columns_first_and_read_only_data_are_taken():
    x = np.asfortranarray(np.arange(6, dtype="f4").reshape(2, 3))
    (found,), _ = decode(npy(x), NPY, form())
    np.testing.assert_array_equal(found, x)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([1.0, 2.0], r"expected float32 \[batch, 3\], got shape \[2\]"),
        ([[1.0, 2.0]], r"got shape \[1, 2\]"),
        ([[[1.0, 2.0, 3.0]]], r"got shape \[1, 1, 3\]"),
        (7, r"got shape \[\]$"),
        ([], "got shape"),
        ([[]], r"got shape \[1, 0\]"),
        ([[0, 0, 0]] * 5, "1 to 4, got 5"),
        ([[1, 2, 3], [1, 2]], "unequal length"),
        ([[1, 2, [3]]], "unequal depth"),
        ([1, "2", 3], "got str"),
        ([1, True, 3], "got bool"),
        ([1, None, 3], "got NoneType"),
        ([1, {"a": 2}, 3], "got dict"),
        ("abc", "got str"),
        ([1, float("nan"), 3], "finite"),
        ([1, float("inf"), 3], "finite"),
        ([1, 1e39, 3], "finite"),
        ([1, 10**400, 3], "out of range"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_what_was_expected(value, reason):
    found = refused({"x": value})
    assert found.status == 422
    assert re.search(reason, found.reason)


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b"", 400, "JSON"),
        (b"{", 400, "JSON"),
        (b"\xff\xfe\x00", 400, "JSON"),
        (b"[" * 100_000, 400, "JSON"),
        (b'{"x": ' + b"9" * 5000 + b"}", 400, "JSON"),
        (b"[1, 2, 3]", 422, "object with x, got list"),
        (b"{}", 422, "got none"),
        (b'{"y": [1, 2, 3]}', 422, "with x, got y"),
        (b'{"x": [1, 2, 3], "z": 1}', 422, "got x, z"),
    ],
)
def test_what_is_no_object_with_the_inputs_is_refused(body, status, reason):
    found = refused(body)
    assert found.status == status and reason in found.reason


def test_integers_and_booleans_are_not_cast():
    assert decode(b'{"x": [-128, 0, 127]}', JSON, form(dtype="int8"))[0][0].dtype == np.int8
    for value, reason in ((128, "out of range"), (1.0, "float"), (True, "bool")):
        found = refused({"x": [0, 0, value]}, dtype="int8")
        assert found.status == 422 and reason in found.reason
    assert "out of range" in refused({"x": [0, 0, -1]}, dtype="uint8").reason
    assert decode(b'{"x": [true, false, true]}', JSON, form(dtype="bool"))[0][0].dtype == bool
    assert "int" in refused({"x": [0, 1, 0]}, dtype="bool").reason


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b"", 400, "npy"),
        (b"\x93NUMPY\x01\x00", 400, "npy"),
        (b"\x93NUMPY\x09\x00" + bytes(100), 400, "npy"),
        (npy(np.zeros(3, "f4"))[:-1], 400, "expected 12"),
        (npy(np.zeros(3, "f4")) + b"x", 400, "got 13"),
        (npy(np.zeros(3, "f8")), 422, "expected float32, got float64"),
        (npy(np.zeros(3, ">f4")), 422, "expected float32, got >f4"),
        (npy(np.zeros(3, "i4")), 422, "got int32"),
        (npy(np.array([1, "a"], object)), 422, "got object"),
        (npy(np.zeros((2, 2), "f4")), 422, "got shape [2, 2]"),
        (npy(np.array([1, np.nan, 2], "f4")), 422, "finite"),
        (npy(np.zeros((0, 3), "f4")), 422, "1 to 4, got 0"),
    ],
)
def test_bad_npy_is_refused(body, status, reason):
    found = refused(body, NPY)
    assert found.status == status and reason in found.reason


def test_a_header_of_a_huge_array_takes_no_memory():
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 3), }"
    body = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    assert refused(body, NPY).status == 400


@given(st.binary(max_size=60), st.integers(0, 140), st.booleans())
def test_damaged_bodies_are_refused_and_nothing_else(noise, at, whole):
    good = npy(np.zeros((2, 3), "f4"))
    for body, kind in ((noise, JSON), (noise, NPY), (good[:at] + noise + good[at + whole :], NPY)):
        try:
            decode(body, kind, form())
        except Refused as found:
            assert found.status in (400, 422)


def test_numbers_that_are_not_finite_are_null_in_json_and_themselves_in_npy():
    y = np.array([[1, np.nan], [np.inf, -np.inf]], "f4")
    assert encode((y,), JSON, form(), False) == b'{"y":[[1.0,null],[null,null]]}'
    np.testing.assert_array_equal(np.load(io.BytesIO(encode((y,), NPY, form(), False))), y)


def test_bfloat16_goes_through_json_and_as_float32_through_npy():
    narrow = form(dtype="bfloat16")
    for body, kind in ((b'{"x": [1, 2.5, 3]}', JSON), (npy(np.array([1, 2.5, 3], "f4")), NPY)):
        (x,), _ = decode(body, kind, narrow)
        assert x.dtype == jnp.bfloat16 and x.tolist() == [[1, 2.5, 3]]
    y = np.array([[1.5]], jnp.bfloat16)
    assert encode((y,), JSON, form(), False) == b'{"y":[[1.5]]}'
    assert np.load(io.BytesIO(encode((y,), NPY, form(), False))).dtype == np.float32


def test_several_inputs_are_taken_by_name_with_as_many_examples():
    program = said()["programs"]["apply"]
    program["inputs"].append({"name": "k", "shape": ["batch"], "dtype": "int32"})
    two = interface(program, 4)
    (x, k), alone = decode(b'{"k": [7, 8], "x": [[1, 2, 3], [4, 5, 6]]}', JSON, two)
    assert x.shape == (2, 3) and k.tolist() == [7, 8] and not alone
    assert decode(b'{"k": 7, "x": [1, 2, 3]}', JSON, two)[1]
    for body in (b'{"k": [7], "x": [[1, 2, 3], [4, 5, 6]]}', b'{"k": 7, "x": [[1, 2, 3]]}'):
        with pytest.raises(Refused, match="as many examples|expected int32"):
            decode(body, JSON, two)


def test_named_sizes_are_those_that_were_compiled():
    sequences = form(("batch", "time", 2), sizes={"time": (2, 3)})
    assert decode(json.dumps({"x": [[0, 0]] * 3}).encode(), JSON, sequences)[0][0].shape == (
        1,
        3,
        2,
    )
    body = json.dumps({"x": [[0, 0]] * 4}).encode()
    with pytest.raises(Refused, match=r"time of \(2, 3\), got shape \[4, 2\]"):
        decode(body, JSON, sequences)


def test_equal_names_are_equal_sizes():
    program = said(("batch", "time", 2))["programs"]["apply"]
    program["inputs"].append({"name": "mask", "shape": ["batch", "time"], "dtype": "bool"})
    two = interface(program, 4, {"time": (1, 2)})
    for mask, fits in (([True, False], True), ([True], False)):
        body = json.dumps({"x": [[1, 2], [3, 4]], "mask": mask}).encode()
        if fits:
            assert decode(body, JSON, two)[1]
            continue
        with pytest.raises(Refused, match="mask: expected bool"):
            decode(body, JSON, two)


def test_other_kinds_of_content_are_refused():
    assert kind_of("Application/JSON; charset=utf-8", form()) == JSON
    for kind in ("", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        with pytest.raises(Refused, match="content-type") as found:
            kind_of(kind, form())
        assert found.value.status == 415
    two = form(outputs=[("a", ("batch",)), ("b", ("batch",))])
    with pytest.raises(Refused, match="one input and one output"):
        kind_of(NPY, two)
    ys = (np.array([1], "f4"), np.array([2], "f4"))
    assert encode(ys, JSON, two, True) == b'{"a":1.0,"b":2.0}'
