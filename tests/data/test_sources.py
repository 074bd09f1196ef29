"""Sources: rows of arrays and files, as plain NumPy reads them, and nothing else."""

import pathlib
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fnn import data, errors
from fnn.data.sources import Mapped, source_of
from tests.data.support import Many, Recorded

ROWS = [3, 0, 0, 6]


def saved(path, array):
    np.save(path, array)
    return np.load(path, mmap_mode="r")


@given(dtype=st.sampled_from(["f4", ">f8", "u1", "i8", "?", "U3", "c8"]),
       shape=st.sampled_from([(), (3,), (2, 5), (0,)]), begin=st.integers(0, 3))  # fmt: skip
def test_a_map_is_read_as_numpy_reads_it(tmp_path_factory, dtype, shape, begin):
    array = np.arange(10 * int(np.prod(shape))).reshape(10, *shape).astype(dtype)
    mapped = saved(tmp_path_factory.mktemp("map") / "x.npy", array)[begin:]
    source = source_of({"x": mapped})
    assert isinstance(source.tree["x"], Mapped) or not array.size
    got, want = source.take(ROWS)["x"], array[begin:][ROWS]
    assert type(got) is np.ndarray and got.dtype == want.dtype
    np.testing.assert_array_equal(got, want)


def test_a_map_far_into_a_file_without_a_header(tmp_path):
    array = np.arange(30_000, dtype="i4").reshape(-1, 3)
    (tmp_path / "raw").write_bytes(b"x" * 5 + array.tobytes())
    mapped = np.memmap(tmp_path / "raw", "i4", "r", offset=12_005, shape=(9_000, 3))
    source = source_of(mapped[8_000:])  # a slice keeps the offset of the whole
    np.testing.assert_array_equal(source.take([0, 999]), array[1_000:][[8_000, 8_999]])


def test_a_map_that_is_no_plain_file_is_indexed(tmp_path):
    array = np.arange(24).reshape(8, 3)
    mapped = saved(tmp_path / "x.npy", array)
    changed = np.load(tmp_path / "x.npy", mmap_mode="c")
    changed[3] = -1
    fortran = saved(tmp_path / "f.npy", np.asfortranarray(array))
    for x, want in ((mapped[::2], array[::2]), (changed, np.array(changed)), (fortran, array)):
        source = source_of(x)
        assert not isinstance(source.tree, Mapped)
        np.testing.assert_array_equal(source.take([3, 0]), want[[3, 0]])


def test_a_map_whose_file_has_shrunk(tmp_path):
    mapped = saved(tmp_path / "x.npy", np.arange(1000.0))
    source = source_of(mapped)
    with open(tmp_path / "x.npy", "r+b") as file:
        file.truncate(4000)
    stream = data.stream(mapped, 2, None, threads=0)
    assert isinstance(source.tree, Mapped)
    with pytest.raises(errors.DataError, match=r"stream: expected example 484 to be read, got OSE"):
        list(stream(0, start=242))


status = pathlib.Path("/proc/self/status")


@pytest.mark.skipif(not status.exists(), reason="reads Linux's account")
def test_a_map_stays_out_of_the_memory_of_the_process(tmp_path):
    def mapped_bytes():
        return int(re.search(r"RssFile:\s+(\d+)", status.read_text())[1]) * 1024

    x = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", "u1", (1024, 2**16))  # 64 MB
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    before = mapped_bytes()
    for _ in data.stream(x, 64, None, threads=0, device=False)(0):
        assert mapped_bytes() - before < 2**24
    assert x.max() == 0 and mapped_bytes() - before > 2**25  # as reading through the map takes


def test_arrays_of_other_libraries_are_read_row_by_row():
    class Rows:
        shape, dtype, asked = (9, 2), np.dtype("f4"), []

        def __getitem__(self, i):
            self.asked.append(i)
            return np.full(2, i, "f4")

    got = source_of({"x": Rows(), "y": np.arange(9)}).take(ROWS)
    np.testing.assert_array_equal(got["x"], np.repeat(ROWS, 2).reshape(4, 2))
    assert got["y"].tolist() == Rows.asked == ROWS


def test_columns_of_pandas_are_read_by_place():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"x": np.arange(9.0)}, index=np.arange(9)[::-1])  # labels that mislead
    assert source_of({"x": frame["x"]}).take(ROWS)["x"].tolist() == ROWS
    assert source_of(frame["x"]).take(ROWS).tolist() == ROWS


def test_many_are_asked_for_at_once():
    source, single = Many(9), Recorded(9)
    assert source_of(source).take(ROWS) == source_of(single).take(ROWS)
    assert source.asked == [ROWS] and single.asked == ROWS


def test_files_are_in_the_order_of_their_names(tmp_path):
    for name in ("b/2.npy", "a/10.npy", "a/9.npy", "1.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.save(tmp_path / name, 0) if name.endswith("npy") else (tmp_path / name).write_text("")
    source = data.files(tmp_path, lambda path: path, "**/*.npy")
    names = [path.removeprefix(f"{tmp_path}/") for path in source.paths]
    assert names == ["a/10.npy", "a/9.npy", "b/2.npy"]
    assert len(source) == 3 and source[1].endswith("a/9.npy")
    assert len(data.files(tmp_path, np.load)) == 1  # no folders
    with pytest.raises(errors.InputError, match=r"files: expected files that match \*.png in"):
        data.files(tmp_path, np.load, "*.png")
    with pytest.raises(errors.OptionError, match="read to be a function of a path"):
        data.files(tmp_path, "*.npy")


@pytest.mark.parametrize(
    ("source", "kind", "match"),
    [
        (iter([1]), errors.InputError, r"expected arrays \[n, ...\], or a source"),
        ({"x": [1, 2]}, errors.InputError, "a source with __len__"),
        ({}, errors.InputError, "a source with __len__"),
        ((np.zeros(3), np.zeros(2)), errors.ShapeError, "one leading axis"),
        (np.float32(1), errors.ShapeError, "one leading axis"),
        (np.ma.masked_array(np.zeros(3)), errors.InputError, "without a mask"),
        ([], errors.OptionError, "expected examples, got none"),
        (np.zeros(1), errors.OptionError, "batch_size of at most the 1 examples, got 2"),
    ],
)
def test_what_is_no_source_is_refused_at_the_call(source, kind, match):
    with pytest.raises(kind, match=match) as error:
        data.stream(source, 2, None)
    assert str(error.value).startswith("stream: ")
