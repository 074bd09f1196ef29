"""Files of arrays: read as they were written, by others too, and refused where they cannot be."""

import json
import struct

import jax.numpy as jnp
import numpy as np
import pytest

from fnn import convert, errors
from tests.gallery.oracles import write_file

ARRAYS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.float16([1.5, -2.0, np.inf]),
    "scalar": np.array(7.0, np.float32),
    "empty": np.zeros((0, 4), np.float32),
}


def same(found, wanted):
    assert set(found) == set(wanted)
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("pad", [0, 1, 3])
def test_a_file_is_read_wherever_its_arrays_begin(tmp_path, pad):
    write_file(tmp_path / "x.safetensors", ARRAYS, {"__metadata__": {"pad": "." * pad}})
    found = convert.read_safetensors(tmp_path / "x.safetensors")
    same(found, ARRAYS)
    same(convert.read_safetensors(str(tmp_path)), ARRAYS)
    with pytest.raises(ValueError, match="read-only"):
        found["a.weight"][0, 0] = 1.0


def test_what_is_written_is_read_in_every_dtype(tmp_path):
    names = ["bool", "uint8", "int8", "uint16", "int64", "float64", "bfloat16", "float8_e4m3fn"]
    arrays = {name: np.asarray([[0, 1, 3]]).astype(jnp.dtype(name)) for name in names}
    arrays["turned"] = ARRAYS["a.weight"].T
    arrays |= {"jax": jnp.ones(2), "none": np.zeros((3, 0), np.float32)}
    convert.write_safetensors(tmp_path / "x.safetensors", arrays)
    same(convert.read_safetensors(tmp_path), arrays)
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_the_formats_own_library_reads_what_is_written_and_writes_what_is_read(tmp_path):
    library = pytest.importorskip("safetensors.numpy")
    convert.write_safetensors(tmp_path / "ours.safetensors", ARRAYS)
    same(library.load_file(tmp_path / "ours.safetensors"), ARRAYS)
    library.save_file(ARRAYS, tmp_path / "theirs.safetensors")
    same(convert.read_safetensors(tmp_path / "theirs.safetensors"), ARRAYS)


def test_an_index_names_the_file_of_each_array(tmp_path):
    write_file(tmp_path / "1.safetensors", {"a.weight": ARRAYS["a.weight"], "b": ARRAYS["b"]})
    write_file(tmp_path / "2.safetensors", {"scalar": ARRAYS["scalar"]})
    index = tmp_path / "model.safetensors.index.json"
    files = {"a.weight": "1.safetensors", "scalar": "2.safetensors"}
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    wanted = {name: ARRAYS[name] for name in files}
    same(convert.read_safetensors(tmp_path), wanted)
    same(convert.read_safetensors(index), wanted)
    for files, text in (
        ({"c": "1.safetensors"}, "has no c, which model.safetensors.index.json says it has"),
        ({"b": "3.safetensors"}, "3.safetensors, got one that is not there"),
        ({"b": "../1.safetensors"}, "outside of its folder"),
        ({"b": "/etc/1.safetensors"}, "outside of its folder"),
        ({"b": 3}, "outside of its folder"),
        (["b"], "no weight_map"),
    ):
        index.write_text(json.dumps({"weight_map": files}))
        refused(index, text)
    for text in ("", "[]", '{"weight_map": 3}', "[" * 100_000):
        index.write_text(text)
        refused(index, "no weight_map")


def refused(path, text):
    with pytest.raises(errors.CheckpointError) as found:
        convert.read_safetensors(path)
    assert text in str(found.value), found.value
    assert str(found.value).startswith("read_safetensors: expected ")


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


HEADERS = {  # name: header, bytes of arrays, what the error says
    "another dtype": ({"x": entry("F3")}, 8, "'x' is of dtype 'F3'"),
    "no dtype": ({"x": entry(None)}, 8, "is of dtype None"),
    "a dtype that is a list": ({"x": entry([1])}, 8, "is of dtype [1]"),
    "a negative axis": ({"x": entry(shape=(-2,))}, 8, "has the shape [-2]"),
    "an axis of text": ({"x": entry(shape=("2",))}, 8, "has the shape ['2']"),
    "an axis that is true": ({"x": entry(shape=(True, 2))}, 8, "has the shape [True, 2]"),
    "three offsets": ({"x": entry(offsets=(0, 8, 8))}, 8, "lies at [0, 8, 8]"),
    "offsets turned around": ({"x": entry(offsets=(8, 0))}, 8, "needs 8 bytes"),
    "too few bytes": ({"x": entry(offsets=(0, 4))}, 8, "needs 8 bytes, and lies at [0, 4]"),
    "a huge shape": ({"x": entry(shape=(2**40, 2**40))}, 8, "needs"),
    "beyond the end": ({"x": entry()}, 4, "holds 4 bytes of arrays, and its header says 8"),
    "bytes of nothing": ({"x": entry()}, 12, "holds 12 bytes of arrays, and its header says 8"),
    "an overlap": ({"x": entry(), "y": entry(offsets=(4, 12))}, 12, "'y' begins at 4, not at 8"),
    "a hole": ({"x": entry(), "y": entry(offsets=(12, 20))}, 20, "'y' begins at 12, not at 8"),
    "an array that is no object": ({"x": 3}, 0, "'x' is no object"),
    "a list": ([1], 0, "no JSON object"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_cannot_be_are_refused(tmp_path, name):
    header, size, text = HEADERS[name]
    head = json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(head)) + head + bytes(size))
    refused(path, text)


TWICE = b'{"x": {"dtype": "U8", "shape": [], "data_offsets": [0, 1]}, "x": 3}'
BYTES = {
    "nothing": (b"", "too short"),
    "no header": (b"\0" * 7, "too short"),
    "a header beyond the end": (struct.pack("<Q", 9) + b"{}", "header of 9 bytes, beyond its end"),
    "a header without end": (b"\xff" * 20, "beyond its end"),
    "no JSON": (struct.pack("<Q", 2) + b"{]", "no JSON"),
    "no text": (struct.pack("<Q", 2) + b"\xff\xfe", "no JSON"),
    "depth": (struct.pack("<Q", 10**5) + b"[" * 10**5, "no JSON"),
    "one name twice": (struct.pack("<Q", len(TWICE)) + TWICE + b"1", "one array twice"),
}


@pytest.mark.parametrize("name", BYTES)
def test_files_that_are_none_are_refused(tmp_path, name):
    data, text = BYTES[name]
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    refused(path, text)


def test_any_cut_of_a_file_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    write_file(path, ARRAYS)
    whole = path.read_bytes()
    for end in range(0, len(whole), 7):
        path.write_bytes(whole[:end])
        refused(path, "x.safetensors")


def test_missing_files_and_what_is_no_array(tmp_path):
    refused(tmp_path / "x.safetensors", "is not there")
    refused(tmp_path, "got none; name the file")
    for name in ("a", "b"):
        write_file(tmp_path / f"{name}.safetensors", ARRAYS)
    refused(tmp_path, "got a.safetensors, b.safetensors")
    path = tmp_path / "a.safetensors"
    before = path.read_bytes()
    for arrays, kind in (
        ({"x": "text"}, errors.InputError),
        ({"x": np.zeros(2, np.complex64)}, errors.DtypeError),
        ([1], errors.InputError),
    ):
        with pytest.raises(kind):
            convert.write_safetensors(path, arrays)
    assert path.read_bytes() == before
