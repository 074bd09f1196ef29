"""The embedded data sets by their digests, and code run in a process of its own."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

REPO = Path(__file__).resolve().parents[2]


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


def as_set(images, labels):
    return {(i.astype(np.uint8).tobytes(), int(c)) for i, c in zip(images, labels, strict=True)}


PINNED = {
    ("mnist_5k", "train"): "584758bf87aabdfc2b1a7d2e754d3c9c7f7e3ada50924de9990c74c753b360a6",
    ("mnist_5k", "test"): "a1feaa5fe9896364b38217637d4c6f44099dc137e32c1c3370f0d37737b9b2d6",
    ("digits", "train"): "d72bceff18a5760d3d4cd421287dc427fb9ba6b03f844ddbb37179c21c9d9796",
    ("digits", "test"): "ab675d20583eb2150a01a53d9ab234729515e8f7302524927033221e37188ea2",
}


def with_pid(example):
    """A transform that tells which process it runs in."""
    return {"x": np.asarray(example), "pid": os.getpid()}


class Unreadable:
    """A source whose odd examples are broken."""

    def __init__(self, n: int):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        if i % 2:
            raise KeyError(f"no record {i}")
        return {"x": np.int32(i)}


class Recorded:
    """A source of numbers, and what has been asked of it."""

    def __init__(self, n: int):
        self.n, self.asked = n, []

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        assert type(i) is int
        self.asked.append(i)
        return {"x": np.int32(i)}


class Many(Recorded):
    """The same, read many at once."""

    def __getitems__(self, rows):
        self.asked.append(list(rows))
        return [{"x": np.int32(i)} for i in rows]
