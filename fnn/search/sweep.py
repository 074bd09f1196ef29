"""Many runs over seeds and hyperparameters, compiled once, in chunks that fit into memory."""

from __future__ import annotations

import contextlib
import itertools
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fnn.core import checks, errors, trees
from fnn.core.dtypes import is_key
from fnn.core.progress import Bar
from fnn.core.types import Key, Tree
from fnn.search.executor import Executor
from fnn.search.store import Group, Store

PLAIN = (bool, int, float, str, np.generic)
STRATEGIES = ("auto", "vmap", "map", "loop")


@dataclass(frozen=True)
class Sweep:
    """The results of a sweep, one row per run.

    - `settings`: {name: its value in each run}, and `seed`, the number of the key.
    - `results`: the tree that the run function returns, each leaf with a leading axis [runs].
    - `shape`: the number of values of each name, in order, and of keys.
    - `strategy`: how the runs were computed, by the values of the static names, if any; "kept"
      if all were on disk.

    >>> shape, settings = {"rate": 2, "seed": 1}, {"rate": [0.1, 0.2], "seed": [0, 0]}
    >>> found = Sweep(settings, {"loss": np.array([3.0, 4.0])}, shape, {(): "vmap"})
    >>> print(found.grid(found.results["loss"]))
    [[3.]
     [4.]]
    """

    settings: dict[str, Any]
    results: Tree
    shape: dict[str, int]
    strategy: dict[tuple, str]

    def grid(self, values: Tree) -> Tree:
        """Arrays [runs, ...] with an axis per name, then the seeds: [len(a), len(b), keys, ...]."""
        shape = tuple(self.shape.values())
        values = np.asarray(values) if isinstance(values, list) else values
        return jax.tree.map(lambda a: np.reshape(a, shape + np.shape(a)[1:]), values)

    def rows(self) -> dict[str, np.ndarray]:
        """The settings, and the results that are one number per run, as columns by name."""
        columns = {name: np.asarray(_shown(values)) for name, values in self.settings.items()}
        flat, _ = jax.tree_util.tree_flatten_with_path(self.results)
        for path, leaf in flat:
            if np.ndim(leaf) == 1:
                name = errors.path_of(path) or "result"
                columns[name if name not in columns else f"result/{name}"] = np.asarray(leaf)
        return columns

    def frame(self) -> Any:
        """The rows as a pandas data frame (extra `frame`)."""
        try:
            import pandas as pd
        except ImportError:
            raise ImportError("Sweep.frame needs pandas: pip install 'fnn[frame]'") from None
        return pd.DataFrame(self.rows())

    def table(self, by: str | None = None, best: str = "low", limit: int = 20) -> Any:
        """A rich table (extra `table`): each setting with its median over seeds, the best first.

        - `by`: the column of `rows()` to sort by; None is the last result that is a scalar.
        """
        checks.choice("best", best, ("low", "high"))
        try:
            from rich.table import Table
        except ImportError:
            raise ImportError("Sweep.table needs rich: pip install 'fnn[table]'") from None
        rows = self.rows()
        scalars = [name for name in rows if name not in self.settings]
        by = scalars[-1] if by is None and scalars else by
        if by not in rows:
            mend = "name a column, or return a scalar from each run"
            raise errors.OptionError(f"one of {errors.names(rows)}", f"{by}", mend)
        names = [name for name in self.settings if name != "seed"]
        seeds = self.grid(rows[by]).reshape(-1, self.shape["seed"]).astype(float)
        firsts = {name: self.grid(rows[name]).reshape(-1, self.shape["seed"]) for name in names}
        kept = [row[np.isfinite(row)] for row in seeds]
        medians = [np.median(row) if row.size else np.nan for row in kept]
        order = np.argsort(np.array(medians) * (1 if best == "low" else -1))
        table = Table(*names, f"{by}, median", "lowest", "highest", "finite")
        for i in order[:limit]:
            span = (f"{f(kept[i]):.4g}" if kept[i].size else "" for f in (np.min, np.max))
            settings = [_text(firsts[name][i, 0]) for name in names]
            table.add_row(*settings, f"{medians[i]:.4g}", *span, f"{kept[i].size}/{len(seeds[i])}")
        return table


@errors.named
def sweep(
    run_fn: Callable[..., Tree],
    grid: Mapping[str, Any] | None = None,
    *,
    keys: Key,
    static: Sequence[str] = (),
    strategy: str = "auto",
    chunk: int | None = None,
    memory: float = 2**30,
    directory: str | os.PathLike | None = None,
    progress: bool = True,
) -> Sweep:
    """Run a function for every combination of hyperparameters, with every key.

    - `run_fn(key, **settings)`: a pure function that returns a tree of arrays, such as one that
      calls `fnn.train.run`.
    - `grid`: the values of each hyperparameter, by name: an array [n, ...], whose rows are traced
      (so that one program serves all of them), or a list of anything else, such as optimizers. For
      a random search, pass the points as one array [n, k], a point in each row.
    - `keys`: `jax.random.split(key, n)`, one for each seed.
    - `static`: names of numbers that must not be traced, such as a width. Each combination of
      static values has its own program.
    - `strategy`: `"vmap"` runs a chunk side by side, `"map"` a few runs in turn in one program,
      `"loop"` one run per call. `"auto"` starts with `"loop"`; if the remaining runs would take
      longer than compiling twice, it also times a chunk side by side and continues with whichever
      is faster: small networks gain, wide ones may lose. On CPU, as many calls run at once as there
      are cores, if `memory` allows: a small network keeps only one core busy.
    - `chunk`: the most runs per call; None is what fits into `memory` side by side, in bytes, as
      the compiler estimates it, and into the caches of a CPU. All settings come before a second
      key: what depends on the key alone, such as the order of batches, is computed once for all of
      them. Several devices share each chunk, which is rounded up to fill them.
    - `directory`: where finished runs are kept, so that an interrupted sweep continues where it
      stopped. Use one directory per `run_fn`, which is not compared; static values that are
      functions or objects, such as optimizers, are identified by their names and places alone.
    - `progress`: show a bar (extra `progress`).

    A run that ends in NaN does not affect the others. Raises OptionError, and ShapeError if runs
    with different static values return different shapes.

    >>> def run_fn(key, rate, power):
    ...     return {"loss": rate**power + 0 * jax.random.uniform(key)}
    >>> keys = jax.random.split(jax.random.key(0), 3)
    >>> found = sweep(
    ...     run_fn, {"rate": [1.0, 2.0], "power": [1, 2]}, keys=keys, static=["power"],
    ...     progress=False,
    ... )
    >>> print(found.grid(found.results["loss"])[..., 0])
    [[1. 1.]
     [2. 4.]]
    """
    plan = _plan(grid or {}, keys, static)
    checks.choice("strategy", strategy, STRATEGIES)
    checks.number("memory", memory, 0, float("inf"))
    if chunk is not None:
        checks.count("chunk", chunk)
    if folder := None if directory is None else pathlib.Path(directory):
        folder.mkdir(parents=True, exist_ok=True)
    buffer, used = _Buffer(plan.runs), {}
    with Bar(plan.runs, progress, "run") as shown:
        for group in plan.groups():
            executor = Executor(run_fn, group, strategy, chunk, memory, Store(folder, group))
            with contextlib.closing(executor.chunks()) as chunks:
                for rows, result in chunks:
                    buffer.put(rows, result)
                    shown.advance(len(rows))
            used[tuple(group.labels.values())] = executor.strategy
    return Sweep(plan.settings(), buffer.tree(), plan.shape, used)


# --- the plan: which runs, in which groups


class _Plan(NamedTuple):
    values: dict[str, Any]
    fixed: tuple[str, ...]
    keys: Key

    @property
    def shape(self) -> dict[str, int]:
        return {name: len(v) for name, v in self.values.items()} | {"seed": len(self.keys)}

    @property
    def runs(self) -> int:
        return int(np.prod(list(self.shape.values())))

    def indices(self) -> dict[str, np.ndarray]:
        """For each name, the index of its value in each run."""
        found = np.indices(tuple(self.shape.values())).reshape(len(self.shape), -1)
        return dict(zip(self.shape, found, strict=True))

    def settings(self) -> dict[str, Any]:
        at = self.indices()
        columns = {name: [v[i] for i in at[name]] for name, v in self.values.items()}
        return columns | {"seed": at["seed"]}

    def groups(self) -> Iterator[Group]:
        at, labels = self.indices(), {name: _labels(self.values[name]) for name in self.fixed}
        choices = [range(len(self.values[name])) for name in self.fixed]
        for chosen in itertools.product(*choices):
            number, here = dict(zip(self.fixed, chosen, strict=True)), np.ones(self.runs, bool)
            for name, i in number.items():
                here &= at[name] == i
            rows = np.flatnonzero(here).reshape(-1, len(self.keys))  # seeds are the last axis
            fixed = {name: self.values[name][i] for name, i in number.items()}
            called = {name: labels[name][i] for name, i in number.items()}
            points = {n: v[at[n][rows[:, 0]]] for n, v in self.values.items() if n not in fixed}
            yield Group(fixed, called, points, self.keys, rows)


def _plan(grid: Mapping[str, Any], keys: Key, static: Sequence[str]) -> _Plan:
    if not is_key(keys) or keys.ndim != 1 or not len(keys):
        raise errors.RandomKeyError(
            "keys, one for each seed", errors.show(keys), "pass jax.random.split(key, n)"
        )
    for name in static:
        if name not in grid:
            raise errors.OptionError(
                f"one of {errors.names(grid)} in static", name, "add it to grid"
            )
    values, fixed = {}, []
    for name, given in grid.items():
        many = hasattr(given, "__len__") and getattr(given, "ndim", 1) > 0
        if name == "seed" or not many or isinstance(given, (str, Mapping)):
            mend = "pass a list or an array, under another name than seed"
            raise errors.OptionError(f"values of {name}", errors.show(given), mend)
        if not len(given):
            raise errors.OptionError(f"at least one value of {name}", "none", "pass one")
        array = None if name in static else _numbers(given)
        values[name] = list(given) if array is None else array
        if array is None:
            fixed.append(name)
    return _Plan(values, tuple(fixed), keys)


def _numbers(given: Any) -> np.ndarray | None:
    """Values that can be traced, as an array of JAX's dtype; else None."""
    try:
        array = np.asarray(given)
        if array.dtype.kind not in "biuf" and not jnp.issubdtype(array.dtype, jnp.floating):
            return None
    except (TypeError, ValueError):
        return None
    cast = array.astype(jnp.result_type(array))
    if array.dtype.kind in "iu" and (cast != array).any():
        raise errors.OptionError(f"integers of {cast.dtype}", f"{array}", "pass floats, or use x64")
    return cast


# --- the results


class _Buffer:
    """The results of all runs, filled as they finish."""

    def __init__(self, runs: int):
        self.runs, self.treedef, self.leaves = runs, None, []

    def put(self, rows: np.ndarray, result: Tree) -> None:
        leaves, treedef = jax.tree.flatten(result)
        if self.treedef is None:
            self.treedef = treedef
            self.leaves = [np.empty((self.runs, *a.shape[1:]), a.dtype) for a in leaves]
        first, now = (
            jax.tree.unflatten(tree, [jax.ShapeDtypeStruct(a.shape[1:], a.dtype) for a in some])
            for tree, some in ((self.treedef, self.leaves), (treedef, leaves))
        )
        trees.alike("results", now, "the first run", first, "return the same shapes in all")
        for whole, part in zip(self.leaves, leaves, strict=True):
            whole[rows] = part

    def tree(self) -> Tree:
        return jax.tree.unflatten(self.treedef, self.leaves)


def _text(value: Any) -> str:
    if isinstance(value, (float, np.floating)):
        return f"{value:.4g}"
    if isinstance(value, PLAIN):
        return str(value)
    if isinstance(value, (np.ndarray, jax.Array)) and value.size <= 8:
        return str(value.tolist())
    if type(value) in (tuple, list) and all(isinstance(v, PLAIN) for v in value):
        return str(value)
    return getattr(value, "__name__", None) or getattr(value, "name", type(value).__name__)


def _labels(values: Sequence[Any]) -> list[str]:
    """A unique name for each static value, the same in every process."""
    texts = [str(v) if isinstance(v, PLAIN) else _text(v) for v in values]
    alike = len(set(texts)) < len(texts)
    return [f"{text} {i}" if alike else text for i, text in enumerate(texts)]


def _shown(values: Sequence[Any]) -> list[Any]:
    """Values that a column can hold: functions by their names."""
    plain = all(isinstance(v, PLAIN) for v in values)
    return list(values) if plain else [_text(v) for v in values]
