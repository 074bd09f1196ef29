"""Comparisons of trees: names, structure, shapes, dtypes."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fnn.core.dtypes import is_complex, is_floating, wide
from fnn.core.errors import DtypeError, ParamsError, ShapeError, at, names, path_of, shapes, show
from fnn.core.shapes import struct
from fnn.core.types import Tree


def is_alike(tree: Tree, like: Tree, *, any_dtype: bool = False) -> bool:
    """Whether two trees have one structure, and leaves of the same shapes and dtypes.

    >>> is_alike({"w": jnp.ones(2)}, {"w": np.zeros(2)}), is_alike(jnp.ones(2), jnp.ones(3))
    (True, False)
    """
    if jax.tree.structure(tree) != jax.tree.structure(like):
        return False
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(like), strict=True)
    of = jnp.shape if any_dtype else _shape_and_dtype
    return all(of(a) == of(b) for a, b in pairs)


def alike(
    what: str, tree: Tree, other: str, like: Tree, mend: str = "", *, any_dtype: bool = False
) -> None:
    """Refuse a tree that is not like another: of its structure, its shapes and its dtypes.

    - `what`, `other`: what the two are called in the message.
    - `mend`: "" proposes to take the shapes and dtypes of the other.
    - `any_dtype`: floats of any width will do; complex numbers stand for complex numbers alone.

    Raises ParamsError, ShapeError or DtypeError, with the path of the first leaf that differs.

    >>> alike("v", {"w": jnp.ones(2)}, "params", {"w": jnp.ones(3)})
    Traceback (most recent call last):
    fnn.core.errors.ShapeError: expected v w (3,), as in params, got v w (2,) float32; ...
    """
    mend = mend or f"give {what} the structure, shapes and dtypes of {other}"
    if jax.tree.structure(tree) != jax.tree.structure(like):
        raise ParamsError(f"{what} like {other}, {show(like)}", f"{what} {show(tree)}", mend)
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    for (path, a), b in zip(leaves, jax.tree.leaves(like), strict=True):
        (shape, dtype), (wanted, wanted_dtype) = map(_shape_and_dtype, (a, b))
        name = f"{what} {path_of(path)}".rstrip()
        got = f"{name} {shape} {dtype}"
        if shape != wanted:
            raise ShapeError(f"{name} {wanted}, as in {other}", got, mend)
        same = is_complex(dtype) == is_complex(wanted_dtype) if any_dtype else dtype == wanted_dtype
        if not same:
            raise DtypeError(f"{name} {wanted} {wanted_dtype}, as in {other}", got, mend)


def _shape_and_dtype(leaf: Any) -> tuple[tuple[int, ...], Any]:
    if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
        leaf = struct(leaf)
        return leaf.shape, leaf.dtype
    return jnp.shape(leaf), jnp.result_type(leaf)


def check_tree(
    what: str, have: Tree, specs: Mapping, want: Mapping, xs: tuple, mend: str = ""
) -> None:
    """Check a leaf layer's params or state against its declarations: names, shapes, dtypes.

    `specs` are the declarations for the inputs `xs`, `want` the shapes and dtypes of their arrays.
    """
    check_names(what, have, specs, specs, mend)
    mend = mend or f"take {what} from net.init of this network"
    floating = any(map(is_floating, jax.tree.leaves(xs)))
    for name, spec in specs.items():
        value, wanted = have[name], want[name]
        if isinstance(wanted, Mapping):
            with at(name):
                check_tree(
                    what, value, spec if isinstance(spec, Mapping) else wanted, wanted, xs, mend
                )
            continue
        if not isinstance(value, (jax.Array, np.ndarray, np.generic)):
            raise ParamsError(f"{name} {show(wanted)}", f"{name} {show(value)}", mend)
        if value.shape != wanted.shape:
            _check_last_axis(name, value.shape, wanted.shape, getattr(spec, "axes", None), xs)
            raise ParamsError(
                f"{name} {wanted.shape}" + (f" for x {shapes(xs)}" if xs else ""),
                f"{name} {value.shape}",
                mend,
            )
        x = xs[0] if xs else None
        if value.dtype == wanted.dtype or not floating and all(map(is_floating, (value, wanted))):
            continue  # without a floating input there is none that the params could clash with
        if wanted.dtype == getattr(x, "dtype", None):
            narrow = is_floating(wanted) and wide(wanted.dtype) != wanted.dtype
            mend = f"; to compute in it, fnn.cast(net, jnp.{wanted.dtype})" if narrow else ""
            raise DtypeError(
                f"x of {value.dtype} ({name} is {value.dtype})",
                f"x {show(x)}",
                f"cast x or the params, as x.astype(jnp.{value.dtype}){mend}",
            )
        raise DtypeError(
            f"{name} of {wanted.dtype}",
            f"{name} {show(value)}",
            f"cast it, as {name}.astype(jnp.{wanted.dtype})",
        )


def check_same(
    what: str, have: Tree, want: Tree, mend: str = "", *, any_float: bool = False
) -> None:
    """Check a tree of arrays against the arrays it should have: names, shapes, dtypes.

    - `any_float`: floats of any width will do.
    """
    mend = mend or f"take {what} from net.init of this network"
    if not isinstance(want, Mapping):
        shape, dtype = (getattr(have, of, None) for of in ("shape", "dtype"))
        floats = any_float and dtype is not None and is_floating(have) and is_floating(want)
        if shape != want.shape or not (floats or dtype == want.dtype):
            raise ParamsError(f"{what} {show(want)}", f"{what} {show(have)}", mend)
        return
    check_names(what, have, want, want, mend)
    for name, wanted in want.items():
        with at(name):
            check_same(name, have[name], wanted, mend, any_float=any_float)


def _check_last_axis(name: str, shape: tuple, wanted: tuple, axes: Any, xs: tuple) -> None:
    """Report a mismatch in a kernel's input axis alone as one of the input's last axis."""
    if axes is None or not 2 <= len(shape) == len(wanted) == len(axes):
        return
    wrong = [axis for axis, a, b in zip(axes, shape, wanted, strict=True) if a != b]
    own = "in" if "in" in axes else axes[-2] if name == "kernel" else None
    if own is not None and wrong == [own]:
        at_in = axes.index(own)
        groups = xs[0].shape[-1] // max(wanted[at_in], 1)
        raise ShapeError(
            f"last axis {shape[at_in] * groups} ({name} is {shape})",
            f"x {xs[0].shape}",
            "give x that last axis (channels come last), or init the network for this x",
        )


def check_names(
    what: str, have: Tree, known: Iterable[str], needed: Iterable[str] = (), mend: str = ""
) -> None:
    """Refuse a tree of params or state with missing or unknown names."""
    known, needed = list(known), list(needed)
    mend = mend or f"take {what} from net.init of this network"
    if not isinstance(have, Mapping):
        if isinstance(have, tuple):
            mend = "net.init returns two: params, state = net.init(key, x)"
        raise ParamsError(f"{what} to be a dict", show(have), mend)
    missing = [name for name in needed if name not in have]
    extra = [name for name in have if name not in known]
    if missing:
        if what == "state" and not have:
            mend = "this network has state: pass it, as net(params, x, state=state)"
        got = f"no {names(missing)}" + (f", but {names(map(str, extra))}" if extra else "")
        raise ParamsError(f"{what} with {names(needed)}", got, mend)
    if extra:
        wanted = f"{what} with no more than {names(known)}" if known else f"{what} to be empty"
        raise ParamsError(wanted, f"also {names(map(str, extra))}", mend)
