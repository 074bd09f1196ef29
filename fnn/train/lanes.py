"""The runs of one program, every point with every key: made in chunks, and kept on disk."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import os
import pathlib
import time
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fnn import errors

TRIED = ("map", "vmap")  # by "auto"
IN_A_ROW = 4  # runs one after the other in a program, which costs less than a call each
SHORT = 1.0  # seconds; what takes less is timed three times, for the first call is slower
TIMES = 3
PARTS = 4  # on CPU a fourth of all runs are tried side by side
DAMAGED = (OSError, EOFError, KeyError, ValueError, RuntimeError, zipfile.BadZipFile)

Made = tuple[np.ndarray, Any]  # the numbers of some runs [runs], and their results [runs, ...]


class Group(NamedTuple):
    """The runs of one program: its static values, and all its points, each with all keys."""

    fixed: dict[str, Any]
    labels: dict[str, str]  # what the static values are called
    points: dict[str, np.ndarray]  # by name, the value at each point [P, ...]
    keys: Any  # [K]
    rows: np.ndarray  # the number of each run in the sweep [P, K]


class Lanes:
    """How the runs of a group are made. Side by side, what a key alone decides is computed once."""

    def __init__(
        self,
        run_fn: Callable[..., Any],
        group: Group,
        strategy: str,
        most: int | None,
        memory: float,
        store: pathlib.Path | None,
    ):
        self.run_fn, self.group, self.store = run_fn, group, store
        self.strategy = "loop" if group.rows.size == 1 else strategy
        if strategy == "auto" and str(jax.random.key_impl(group.keys)) != "threefry2x32":
            self.strategy = "map"  # other generators draw other numbers side by side
        self.most, self.memory = most, memory
        self.sizes: dict[str, tuple[int, int]] = {}
        self.programs: dict[str, Any] = {}

    def chunks(self) -> Iterator[Made]:
        """All runs: those on disk, and then the others as they are made."""
        done = np.zeros(self.group.rows.size, bool)
        for rows, result in self._kept():
            rows, result = _fresh(done, rows, result)
            yield self.group.rows.flat[rows], result
        if done.all():
            self.strategy = "kept"
        seconds: dict[str, float] = {}  # that a run took, by strategy
        while not done.all():
            choosing, strategy = self.strategy == "auto", self.strategy
            if choosing:
                strategy = next(tried for tried in TRIED if tried not in seconds)
            points, keys = self._box(strategy, int(np.flatnonzero(~done)[0]))
            rows = np.add.outer(points * len(self.group.keys), keys).reshape(-1)
            last = np.delete(done, rows).all()  # and nothing left to decide
            times = TIMES if choosing and not last else 1
            result, seconds[strategy] = self._timed(strategy, points, keys, times)
            rows, result = _fresh(done, rows, result)
            self._keep(rows, result)
            if choosing and (last or len(seconds) == len(TRIED)):
                self.strategy = min(seconds, key=lambda strategy: seconds[strategy])
            yield self.group.rows.flat[rows], result

    def one(self, point: Any, key: Any) -> Any:
        """The run at the point of this number."""
        settings = {name: jnp.asarray(v)[point] for name, v in self.group.points.items()}
        result = self.run_fn(key, **settings, **self.group.fixed)
        for leaf in jax.tree.leaves(result):
            if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
                mend = "return jax.random.key_data of them"
                raise errors.RandomKeyError("results that are numbers", "typed keys", mend)
        return result

    # --- which runs are made together

    def _size(self, strategy: str) -> tuple[int, int]:
        """How many points, and keys of each, in a call: all points come before a second key."""
        if strategy not in self.sizes:
            size = {"loop": lambda: (1, 1), "map": self._in_a_row, "vmap": self._together}[strategy]
            self.sizes[strategy] = size()
        return self.sizes[strategy]

    def _in_a_row(self) -> tuple[int, int]:
        """As many as divide all, so that none is made twice."""
        points, keys = self.group.rows.shape
        points = _divisor(points, self.most or IN_A_ROW)
        return points, _divisor(keys, (self.most or IN_A_ROW) // points)

    def _together(self) -> tuple[int, int]:
        """As many as fit, in chunks of one size; of several devices each has as many."""
        most, total = self.most, self.group.rows.size
        if most is None:
            need = self._program("map").memory_analysis()  # of one run at a time, but all results
            results = need.output_size_in_bytes // math.prod(self._size("map")) if need else 0
            each = need.temp_size_in_bytes + results if need else 0
            most = int(max(1, min(total, self.memory // max(each, 1))))
        if self.strategy == "auto" and jax.default_backend() == "cpu":
            most = min(most, -(-total // PARTS))  # where side by side is often slower
        points, keys = self.group.rows.shape
        points = _even(points, most)
        keys = _even(keys, most // points)
        if points * keys == 1:
            return 1, 1
        a, b = _shares(points, keys)
        return -(-points // a) * a, -(-keys // b) * b

    def _box(self, strategy: str, run: int) -> tuple[np.ndarray, np.ndarray]:
        """The chunk that holds a run: the numbers of its points, and of its keys."""
        at = divmod(run, len(self.group.keys))
        points, keys = (
            np.arange(i // size * size, min(i // size * size + size, n), dtype=np.int32)
            for i, size, n in zip(at, self._size(strategy), self.group.rows.shape, strict=True)
        )
        return points, keys

    # --- how they are made

    def _made(self, strategy: str, points: np.ndarray, keys: np.ndarray) -> tuple[Any, float]:
        """Every point with every key, [points * keys, ...] in NumPy; and the seconds for each."""
        program, (p, k) = self._program(strategy), (len(points), len(keys))

        def rows(a):  # [P, K, ...]
            return np.asarray(a)[:p, :k].reshape(p * k, *a.shape[2:])

        begin = time.perf_counter()
        result = jax.tree.map(rows, program(*self._inputs(strategy, points, keys)))
        return result, (time.perf_counter() - begin) / (p * k)

    def _timed(
        self, strategy: str, points: np.ndarray, keys: np.ndarray, times: int
    ) -> tuple[Any, float]:
        """The same, with the least seconds of several times, if they are short."""
        result, seconds = self._made(strategy, points, keys)
        for _ in range(times - 1):
            if seconds * len(points) * len(keys) < SHORT:
                seconds = min(seconds, self._made(strategy, points, keys)[1])
        return result, seconds

    def _inputs(self, strategy: str, points: np.ndarray, keys: np.ndarray) -> tuple[Any, Any]:
        """What a program takes: the last ones again where a chunk is not full."""
        points, keys = (
            np.pad(numbers, (0, size - len(numbers)), mode="edge")
            for numbers, size in zip((points, keys), self._size(strategy), strict=True)
        )
        inputs = points, self.group.keys[keys]
        return _spread(*inputs) if strategy == "vmap" else inputs

    def _program(self, strategy: str) -> Any:
        """(points [P], keys [K]) -> results [P, K, ...], compiled ahead of its timing."""
        if strategy not in self.programs:
            fn = {"loop": _alone, "map": _in_turn, "vmap": _side_by_side}[strategy](self.one)
            inputs = self._inputs(strategy, *self._box(strategy, 0))
            self.programs[strategy] = jax.jit(fn).lower(*inputs).compile()
        return self.programs[strategy]

    # --- what is kept on disk

    @functools.cached_property
    def _digest(self) -> str:
        """What tells these runs from others, by their settings and keys."""
        fixed = {name: _content(value) for name, value in self.group.fixed.items()}
        digest = hashlib.sha256(repr((self.group.labels, fixed)).encode())
        for name, values in sorted(self.group.points.items()):
            digest.update(f"{name} {values.dtype} {values.shape}".encode() + values.tobytes())
        digest.update(str(jax.random.key_impl(self.group.keys)).encode())
        digest.update(np.asarray(jax.random.key_data(self.group.keys)).tobytes())
        return digest.hexdigest()[:16]

    def _keep(self, rows: np.ndarray, result: Any) -> None:
        if self.store is None:
            return
        path = self.store / f"{self._digest}-{rows[0]}-{len(rows)}.npz"
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        with open(temporary, "wb") as file:
            np.savez(file, *jax.tree.leaves(result), rows=rows, names=_names(result))
        os.replace(temporary, path)

    def _kept(self) -> Iterator[Made]:
        paths = sorted(self.store.glob(f"{self._digest}-*.npz")) if self.store else []
        if not paths:
            return
        outline = jax.eval_shape(self.one, np.int32(0), self.group.keys[0])
        wanted, treedef = jax.tree.flatten(outline)
        total = self.group.rows.size
        for path in paths:
            try:
                with open(path, "rb") as whole, np.load(whole, allow_pickle=False) as file:
                    leaves = [file[f"arr_{i}"] for i in range(len(file.files) - 2)]
                    rows, names = file["rows"], file["names"].tolist()
                if not all(len(a) == len(rows) for a in leaves) or max(rows) >= total:
                    raise ValueError("its rows are not those of this sweep")
            except DAMAGED as error:
                mend = "remove it, and its runs are made again"
                raise errors.InputError("a whole file", f"{path}: {error}", mend) from error
            if len(leaves) == len(wanted):  # NumPy knows no bfloat16: it reads two bytes
                pairs = zip(leaves, wanted, strict=True)
                leaves = [
                    a.view(w.dtype) if a.dtype == f"V{w.dtype.itemsize}" else a for a, w in pairs
                ]
            found = [jax.ShapeDtypeStruct(a.shape[1:], a.dtype) for a in leaves]
            shown = [(a.shape, a.dtype) for a in wanted], [(a.shape, a.dtype) for a in found]
            if names != _names(outline) or shown[0] != shown[1]:
                raise errors.InputError(
                    f"a directory of this sweep, with results {errors.show(outline)}",
                    f"{names} {errors.show(found)} in {path}",
                    "give each run_fn, and x64 or not, a directory of its own",
                )
            yield rows, jax.tree.unflatten(treedef, leaves)


def _fresh(done: np.ndarray, rows: np.ndarray, result: Any) -> Made:
    """Of the runs of these numbers those that were not done before, and are from now on."""
    new = ~done[rows]
    done[rows] = True
    return rows[new], jax.tree.map(lambda a: a[new], result)


def _names(tree: Any) -> list[str]:
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def _content(value: Any) -> Any:
    """What tells a static value from others, in the next process too; a function is its name."""
    if isinstance(value, functools.partial):
        return _content((value.func, value.args, value.keywords))
    if isinstance(value, dict):
        return "dict", _content(list(value.items()))
    if isinstance(value, (tuple, list)):
        return type(value).__name__, [_content(v) for v in value]
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        array = np.asarray(value)
        own = array.tolist() if array.dtype.kind == "O" else array.tobytes()
        return str(array.dtype), array.shape, _content(own)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [getattr(value, field.name) for field in dataclasses.fields(value)]
        return type(value).__name__, _content(fields)
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return type(value).__name__, value
    return getattr(value, "__name__", None) or type(value).__name__


# --- the strategies, (points [P], keys [K]) -> results [P, K, ...] of one(point, key)


def _side_by_side(one: Callable) -> Callable:
    """Mapped twice, not once over the pairs: so what follows from the key alone is not repeated."""
    return jax.vmap(jax.vmap(one, (None, 0)), (0, None))


def _in_turn(one: Callable) -> Callable:
    def of_point(point, keys):
        return jax.lax.map(functools.partial(one, point), keys)

    return lambda points, keys: jax.lax.map(lambda point: of_point(point, keys), points)


def _alone(one: Callable) -> Callable:
    return lambda points, keys: jax.tree.map(
        lambda a: jnp.asarray(a)[None, None], one(points[0], keys[0])
    )


def _divisor(n: int, most: int) -> int:
    return max(d for d in range(1, min(n, most) + 1) if n % d == 0)


def _even(n: int, most: int) -> int:
    """The size of n things in parts of one size, of at most so many."""
    return -(-n // -(-n // most))


def _shares(points: int, keys: int) -> tuple[int, int]:
    """All devices as a grid over points and keys, by which the fullest has the fewest runs."""
    devices = len(jax.devices())
    ways = [(a, devices // a) for a in range(1, devices + 1) if devices % a == 0]
    return min(ways, key=lambda way: -(-points // way[0]) * -(-keys // way[1]))


def _spread(points: np.ndarray, keys: Any) -> tuple[Any, Any]:
    """The runs shared among all devices, if there are several."""
    a, b = _shares(len(points), len(keys))
    if len(points) % a or len(keys) % b or a * b == 1:
        return points, keys
    mesh = Mesh(np.array(jax.devices()).reshape(a, b), ("points", "keys"))
    return (
        jax.device_put(points, NamedSharding(mesh, PartitionSpec("points"))),
        jax.device_put(keys, NamedSharding(mesh, PartitionSpec("keys"))),
    )
