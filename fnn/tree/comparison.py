"""How two trees of arrays differ, in a readable form."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.core
import numpy as np

from fnn.core import checks, errors
from fnn.core.dtypes import is_key
from fnn.core.types import Tree
from fnn.tree.paths import by_path


class Difference(NamedTuple):
    """One leaf in which two trees differ: its path, and how."""

    path: str
    how: str

    def __str__(self) -> str:
        return f"{self.path or 'the tree'}: {self.how}"


class Differences(tuple[Difference, ...]):
    """The differences of two trees; prints one a line. Empty, and so false, if they are equal.

    >>> print(compare({"a": 1.0}, {"a": 1.0}))
    no differences
    """

    def __str__(self) -> str:
        return "\n".join(map(str, self)) or "no differences"


@errors.named
def compare(
    a: Tree, b: Tree, *, rtol: float = 0.0, atol: float = 0.0, equal_nan: bool = False
) -> Differences:
    """How two trees of arrays differ, leaf by leaf: in names, shapes, dtypes and values.

    Values are equal where |a - b| <= atol + rtol |b|, computed in float64; by default they must be
    identical. An infinity equals only itself.

    - `rtol`, `atol`: numbers of at least 0.
    - `equal_nan`: whether NaN equals NaN.

    The result is false if the trees are equal. Raises InputError for traced leaves, which have no
    values yet.

    >>> import jax.numpy as jnp
    >>> a = {"dense1": {"kernel": jnp.ones((2, 2)), "bias": jnp.zeros(2)}}
    >>> b = {"dense1": {"kernel": jnp.ones((2, 2)).at[1, 0].set(1.5), "scale": jnp.ones(2)}}
    >>> print(compare(a, b))
    dense1/bias: only in the first
    dense1/kernel: 1 of 4 values, most by 0.5 (relative 0.333) at (1, 0): 1.0 and 1.5
    dense1/scale: only in the second
    """
    checks.number("rtol", rtol, 0.0, float("inf"))
    checks.number("atol", atol, 0.0, float("inf"))
    first, second = by_path(a), by_path(b)
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
    if is_key(leaf):
        leaf = jax.random.key_data(leaf)
    if not isinstance(leaf, (jax.Array, np.ndarray, np.generic, int, float, complex)):
        checks.not_an_array(leaf)
    return np.asarray(leaf)
