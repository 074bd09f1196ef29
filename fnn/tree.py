"""Names, selection and surgery of parameter trees.

A leaf's path is the names on the way to it, joined by "/": "block/conv1/kernel". What names leaves
takes patterns, which are shell globs over whole paths: `*` stands for any characters, "/" included,
`?` for one, `[ab]` for one of those. So "*/kernel" is every kernel below the top, at any depth,
"block/*" everything in block, and "*" all. A pattern that matches no leaf raises.

Every function is pure and works on tracers; leaves that it is not asked to change stay as they are.
"""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, NoReturn

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from fnn import checks, errors

__all__ = [
    "Difference",
    "Differences",
    "compare",
    "count",
    "flatten",
    "freeze",
    "mask",
    "merge",
    "nbytes",
    "partition",
    "paths",
    "select",
    "unflatten",
    "update",
]


# --- paths


def paths(tree: Any) -> tuple[str, ...]:
    """The path of each leaf, in the order of `jax.tree.leaves`: dicts sorted by name.

    Entries of tuples and lists are named by their index. A tree that is one leaf has the path "".
    Raises ParamsError if two leaves have one path, as under the names "a/b" and "a" then "b".

    >>> paths({"conv1": {"kernel": 1.0, "bias": 2.0}, "scales": (3.0, 4.0)})
    ('conv1/bias', 'conv1/kernel', 'scales/0', 'scales/1')
    """
    with errors.within("paths"):
        return tuple(_flatten(tree))


def flatten(tree: Any) -> dict[str, Any]:
    """The tree as one flat dict, {path: leaf}, in the order of `paths`.

    An empty dict has no leaves, so nothing of it is left. Raises as `paths`.

    >>> flatten({"dense1": {"kernel": 1.0, "bias": 2.0}})
    {'dense1/bias': 2.0, 'dense1/kernel': 1.0}
    """
    with errors.within("flatten"):
        return _flatten(tree)


def unflatten(flat: Mapping[str, Any]) -> Any:
    """The nested dicts whose leaves are at these paths: the inverse of `flatten` for dicts.

    What was a tuple or a list comes back as a dict named "0", "1" ... Raises ParamsError for a
    path that leads through another's leaf, InputError for paths that are no strings.

    >>> unflatten({"dense1/kernel": 1.0, "dense1/bias": 2.0})
    {'dense1': {'kernel': 1.0, 'bias': 2.0}}
    """
    with errors.within("unflatten"):
        if not isinstance(flat, Mapping) or not all(isinstance(path, str) for path in flat):
            raise errors.InputError(
                "a dict of leaves by path", errors.show(flat), 'as {"dense1/kernel": x}'
            )
        return _unflatten(flat)


def _flatten(tree: Any) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
        path = _path(keys)
        if path in flat:
            raise errors.ParamsError(
                "one leaf at each path", f"two at {path}", 'rename one: "/" separates names'
            )
        flat[path] = leaf
    return flat


def _unflatten(flat: Mapping[str, Any]) -> Any:
    if "" in flat and len(flat) == 1:
        return flat[""]
    tree: dict[str, Any] = {}
    made = {id(tree)}  # the dicts made here: a leaf may be a dict of its own
    for path, leaf in flat.items():
        *names, last = path.split("/")
        node = tree
        for name in names:
            if name not in node:
                node[name] = {}
                made.add(id(node[name]))
            node = node[name]
            if id(node) not in made:
                _in_the_way(path)
        if last in node or not all((*names, last)):
            _in_the_way(path)
        node[last] = leaf
    return tree


def _in_the_way(path: str) -> NoReturn:
    raise errors.ParamsError(
        "paths of names, of which none leads through another's leaf", path or '""', "rename it"
    )


def _path(keys: Iterable[Any]) -> str:
    return jax.tree_util.keystr(tuple(keys), simple=True, separator="/")


# --- selection


def select(tree: Any, *patterns: str) -> dict[str, Any]:
    """The leaves at paths that match any of the patterns, {path: leaf}, in the order of `paths`.

    - `patterns`: shell globs over whole paths, in which `*` crosses "/".

    Raises ParamsError for a pattern that matches nothing, naming the closest paths.

    >>> params = {"dense1": {"kernel": 1.0, "bias": 2.0}, "block": {"dense1": {"kernel": 3.0}}}
    >>> select(params, "*/kernel")
    {'block/dense1/kernel': 3.0, 'dense1/kernel': 1.0}
    """
    with errors.within("select"):
        flat = _flatten(tree)
        chosen = _chosen(flat, patterns)
        return {path: value for path, value in flat.items() if path in chosen}


def partition(tree: Mapping, *patterns: str) -> tuple[dict, dict]:
    """(chosen, rest): the tree of the leaves that match a pattern, and the tree of the others.

    Neither has entries for the other's leaves, and `merge` puts them together again; so a part of
    a network is tuned by differentiating with respect to that part alone.

    - `tree`: nested dicts, since from a tuple no entry can be taken out.
    - `patterns`: as of `select`.

    Raises ParamsError for a pattern that matches nothing, InputError for another tree.

    >>> params = {"body": {"kernel": 2.0}, "head": {"kernel": 3.0}}
    >>> chosen, rest = partition(params, "head/*")
    >>> chosen, rest
    ({'head': {'kernel': 3.0}}, {'body': {'kernel': 2.0}})
    >>> def loss(params):
    ...     return params["body"]["kernel"] * params["head"]["kernel"] ** 2
    >>> print(jax.grad(lambda part: loss(merge(part, rest)))(chosen))
    {'head': {'kernel': Array(12., dtype=float32, weak_type=True)}}
    """
    with errors.within("partition"):
        flat = _flatten(tree)
        _only_dicts(tree)
        chosen = _chosen(flat, patterns)
        return (
            _unflatten({path: value for path, value in flat.items() if path in chosen}),
            _unflatten({path: value for path, value in flat.items() if path not in chosen}),
        )


def merge(*trees: Mapping) -> dict:
    """The nested dict with the leaves of all trees, no two of which are at one path.

    Raises ParamsError where two trees have a leaf at the same place, InputError for trees that
    are not nested dicts.

    >>> merge({"dense1": {"kernel": 1.0}}, {"dense1": {"bias": 2.0}, "dense2": {"bias": 3.0}})
    {'dense1': {'kernel': 1.0, 'bias': 2.0}, 'dense2': {'bias': 3.0}}
    """
    with errors.within("merge"):
        whole: dict[str, Any] = {}
        for tree in trees:
            _only_dicts(tree)
            for path, value in _flatten(tree).items():
                if path in whole:
                    raise errors.ParamsError(
                        "trees without a leaf in common",
                        f"two leaves at {path}",
                        "take it out of one, as tree.partition does",
                    )
                whole[path] = value
        return _unflatten(whole)


def freeze(tree: Any, *patterns: str) -> Any:
    """The same tree with `jax.lax.stop_gradient` on the leaves that match a pattern.

    Their gradient is zero. An optimizer may move such leaves nevertheless (weight decay does): to
    leave them out altogether use `partition`, or `mask`. Raises as `select`.

    >>> params = {"body": {"kernel": 2.0}, "head": {"kernel": 3.0}}
    >>> def loss(params):
    ...     params = freeze(params, "body/*")
    ...     return params["body"]["kernel"] * params["head"]["kernel"]
    >>> print(jax.tree.map(float, jax.grad(loss)(params)))
    {'body': {'kernel': 0.0}, 'head': {'kernel': 2.0}}
    """
    with errors.within("freeze"):
        return _map_chosen(tree, patterns, jax.lax.stop_gradient)


def mask(tree: Any, *patterns: str) -> Any:
    """A tree of bools like `tree`, True at the leaves that match a pattern.

    It is what `optax.masked` and weight decay take as a mask. Raises as `select`.

    >>> mask({"dense1": {"kernel": 1.0, "bias": 2.0}}, "*/kernel")
    {'dense1': {'bias': False, 'kernel': True}}
    """
    with errors.within("mask"):
        chosen = _chosen(_flatten(tree), patterns)
        return jax.tree_util.tree_map_with_path(lambda keys, _: _path(keys) in chosen, tree)


def count(tree: Any, *patterns: str) -> int:
    """The number of values in the leaves that match a pattern; without patterns, in all leaves.

    Arrays, tracers and `jax.ShapeDtypeStruct`s count their elements. Raises as `select`, and
    InputError for leaves that are no arrays.

    >>> import jax.numpy as jnp
    >>> params = {"dense1": {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}}
    >>> count(params), count(params, "*/kernel")
    (15, 12)
    """
    with errors.within("count"):
        return sum(math.prod(leaf.shape) for leaf in _arrays(tree, patterns))


def nbytes(tree: Any, *patterns: str) -> int:
    """The bytes that the values of the leaves take; leaves as of `count`.

    >>> import jax.numpy as jnp
    >>> nbytes({"dense1": {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3, jnp.bfloat16)}})
    54
    """
    with errors.within("nbytes"):
        arrays = _arrays(tree, patterns)
        return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in arrays)


def _arrays(tree: Any, patterns: tuple[str, ...]) -> list[Any]:
    flat = _flatten(tree)
    chosen = _chosen(flat, patterns) if patterns else set(flat)
    for path in chosen:
        if not (hasattr(flat[path], "shape") and hasattr(flat[path], "dtype")):
            with errors.at(path):
                errors.not_an_array(flat[path])
    return [flat[path] for path in flat if path in chosen]


def _chosen(flat: Mapping[str, Any], patterns: tuple[str, ...]) -> set[str]:
    """The paths that match any of the patterns, each of which matches something."""
    if not patterns:
        raise errors.OptionError("one pattern or more", "none", 'pass one, as "*/kernel"')
    chosen: set[str] = set()
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise errors.OptionError(
                "patterns that are strings", errors.show(pattern), 'as "*/kernel"'
            )
        found = {path for path in flat if fnmatch.fnmatchcase(path, pattern)}
        if not found:
            unknown(pattern, flat)
        chosen |= found
    return chosen


def unknown(path: str, known: Iterable[str], what: str = "leaves") -> NoReturn:
    """Refuse a path or a pattern that is no name in the tree, and name the closest ones."""
    known = list(known)
    below = [name for name in known if name.startswith(f"{path}/")]
    close = difflib.get_close_matches(path, known, n=3, cutoff=0.4)
    mend = f'write "{path}/*" for all below it' if below else "see fnn.tree.paths for all"
    if close and not below:
        mend = f"did you mean {' or '.join(close)}?"
    if not known:
        mend = "the tree is empty"
    some = errors.names(known[:3]) + (" ..." if len(known) > 3 else "")
    raise errors.ParamsError(f"one of the {len(known)} {what} {some}", path, mend)


def _map_chosen(tree: Any, patterns: tuple[str, ...], fn: Callable[[Any], Any]) -> Any:
    chosen = _chosen(_flatten(tree), patterns)

    def visit(keys, leaf):
        return fn(leaf) if _path(keys) in chosen else leaf

    return jax.tree_util.tree_map_with_path(visit, tree)


def _only_dicts(tree: Any) -> None:
    if not isinstance(tree, Mapping):
        raise errors.InputError("a tree of nested dicts", errors.show(tree), "pass net.init's")
    for name, node in tree.items():
        if not isinstance(name, str) or not name or "/" in name:
            raise errors.InputError('names that are strings without "/"', repr(name), "rename it")
        with errors.at(name):
            if not jax.tree_util.all_leaves([node]) and node is not None:
                _only_dicts(node)


# --- surgery


def update(tree: Any, where: str | Mapping[str, Any], value: Any = None, *, strict=True) -> Any:
    """The same tree with other values at some leaves.

    - `where`: a pattern, as of `select`, or a dict {pattern: value}; no leaf may match two.
    - `value`: what every leaf that matches becomes: an array, or a function of the leaf.
    - `strict`: True, the default, holds each new value to the shape and dtype of the old one.
      False takes any value.

    Raises ParamsError for a pattern that matches nothing, ShapeError and DtypeError for a value
    that does not fit.

    >>> import jax.numpy as jnp
    >>> params = {"dense1": {"kernel": jnp.ones((1, 2)), "bias": jnp.ones(2)}}
    >>> print(update(params, "*/bias", jnp.zeros(2))["dense1"]["bias"])
    [0. 0.]
    >>> print(update(params, {"*/kernel": lambda kernel: 3 * kernel})["dense1"]["kernel"])
    [[3. 3.]]
    """
    with errors.within("update"):
        flat = _flatten(tree)
        if isinstance(where, Mapping):
            if value is not None:
                raise errors.OptionError(
                    "no value beside a dict of values", errors.show(value), "leave it out"
                )
            changes = dict(where)
        else:
            changes = {where: value}
        new: dict[str, Any] = {}
        for pattern, change in changes.items():
            for path in _chosen(flat, (pattern,)):
                if path in new:
                    raise errors.OptionError(
                        "one value for each leaf", f"two for {path}", "narrow the patterns"
                    )
                new[path] = change(flat[path]) if callable(change) else change
                if strict:
                    with errors.at(path):
                        _check_alike(flat[path], new[path])

        def visit(keys, leaf):
            return new.get(_path(keys), leaf)

        return jax.tree_util.tree_map_with_path(visit, tree)


def _check_alike(old: Any, new: Any) -> None:
    mend = "pass a value like it, or strict=False to change it"
    for leaf in (old, new):
        if not isinstance(leaf, (jax.Array, np.ndarray, np.generic, int, float, complex)):
            raise errors.InputError("an array", errors.show(leaf), mend)
    if jnp.shape(old) != jnp.shape(new):
        raise errors.ShapeError(f"a value of shape {jnp.shape(old)}", errors.show(new), mend)
    if jnp.result_type(old) != jnp.result_type(new):
        raise errors.DtypeError(f"a value of {jnp.result_type(old)}", errors.show(new), mend)


# --- comparison


class Difference(NamedTuple):
    """One leaf in which two trees differ: its path, and how."""

    path: str
    how: str

    def __str__(self) -> str:
        return f"{self.path or 'the tree'}: {self.how}"


class Differences(tuple[Difference, ...]):
    """The differences of two trees, one line each as a string; empty, and so false, if equal.

    >>> print(compare({"a": 1.0}, {"a": 1.0}))
    no differences
    """

    def __str__(self) -> str:
        return "\n".join(map(str, self)) or "no differences"


def compare(a: Any, b: Any, *, rtol=0.0, atol=0.0, equal_nan: bool = False) -> Differences:
    """How two trees of arrays differ, leaf by leaf: in names, shapes, dtypes and values.

    Values are equal where |a - b| <= atol + rtol |b|, formed in float64; by default they must be
    the same. An infinity equals itself alone.

    - `rtol`, `atol`: numbers of at least 0.
    - `equal_nan`: True lets NaN equal NaN.

    The result is false if the trees are equal. Raises InputError for traced leaves, whose values
    are not known.

    >>> import jax.numpy as jnp
    >>> a = {"dense1": {"kernel": jnp.ones((2, 2)), "bias": jnp.zeros(2)}}
    >>> b = {"dense1": {"kernel": jnp.ones((2, 2)).at[1, 0].set(1.5), "scale": jnp.ones(2)}}
    >>> print(compare(a, b))
    dense1/bias: only in the first
    dense1/kernel: 1 of 4 values, most by 0.5 (relative 0.333) at (1, 0): 1.0 and 1.5
    dense1/scale: only in the second
    """
    with errors.within("compare"):
        checks.number("rtol", rtol, 0.0, float("inf"))
        checks.number("atol", atol, 0.0, float("inf"))
        first, second = _flatten(a), _flatten(b)
        found = []
        for path in sorted({*first, *second}):
            if path not in second:
                how = "only in the first"
            elif path not in first:
                how = "only in the second"
            else:
                with errors.at(path):
                    how = _difference(first[path], second[path], rtol, atol, equal_nan)
            if how:
                found.append(Difference(path, how))
        return Differences(found)


def _difference(a: Any, b: Any, rtol: float, atol: float, equal_nan: bool) -> str:
    a, b = _host(a), _host(b)
    if a.shape != b.shape:
        return f"shape {a.shape} and {b.shape}"
    if a.dtype != b.dtype:
        return f"dtype {a.dtype} and {b.dtype}"
    same = a == b
    x, y = (v.astype(complex if v.dtype.kind == "c" else np.float64) for v in (a, b))
    with np.errstate(all="ignore"):
        apart = np.abs(x - y)
        relative = apart / np.abs(y)
        close = np.isfinite(apart) & (apart <= atol + rtol * np.abs(y))
    if rtol or atol:
        same = same | close
    if equal_nan:
        same = same | (np.isnan(x) & np.isnan(y))
    if same.all():
        return ""
    apart = np.where(same, -1.0, np.where(np.isnan(apart), np.inf, apart))
    at = tuple(int(i) for i in np.unravel_index(np.argmax(apart), a.shape))
    most = "" if not np.isfinite(apart[at]) else f", most by {apart[at]:.3g}"
    ratio = f" (relative {relative[at]:.3g})" if most and y[at] else ""
    where = f" at {at}" if at else ""
    return f"{np.sum(~same)} of {a.size} values{most}{ratio}{where}: {a[at]} and {b[at]}"


def _host(leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.core.Tracer):
        raise errors.InputError("values", f"a traced {errors.show(leaf)}", "compare outside jit")
    if jnp.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if not isinstance(leaf, (jax.Array, np.ndarray, np.generic, int, float, complex)):
        errors.not_an_array(leaf)
    return np.asarray(leaf)
