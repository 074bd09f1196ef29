"""What is checked before a program runs: that it is the one described, and its inputs too."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from fnn.core import errors
from fnn.core.shapes import from_numpy

# Calls out of a program that compute, of compilers and libraries: linear algebra, Fourier
# transforms, random bits, placement. What calls back into Python is not among them.
CALLS = re.compile(
    r"lapack_\w+|(dynamic_)?ducc_fft|cu\w+|hip\w+|__cu\w+\$\w+|(mhlo|stablehlo|chlo)\.\w+|"
    r"Sharding|SPMD\w+|shape_assertion|annotate_device_placement|ApproxTopK|Eigh|Qr|"
    r"LuDecomposition|ProductOfElementaryHouseholderReflectors|xla\.sdy\.\w+"
)


def check_program(exported: jax.export.Exported, said: dict[str, Any], given: tuple) -> None:
    """Raise ValueError for a program that is not as described, or calls anything but libraries."""
    there = [(tuple(map(str, a.shape)), a.dtype) for a in exported.in_avals]
    held = [(tuple(map(str, a.shape)), a.dtype) for a in jax.tree.leaves(given)]
    arrays = said.get("carry", []) + said["inputs"]
    if there != held + [_form(array) for array in arrays]:
        raise ValueError("takes other inputs than the manifest says")
    if [(tuple(map(str, a.shape)), a.dtype) for a in exported.out_avals] != [
        _form(array) for array in said.get("carry", []) + said["outputs"]
    ]:
        raise ValueError("has other outputs than the manifest says")
    if set(exported.platforms) != set(said["platforms"]):
        raise ValueError("is for other platforms than the manifest says")
    if exported.disabled_safety_checks:
        raise ValueError("was made with checks of safety switched off")
    called = re.findall(r"custom_call\s+@([^\s(]+)", exported.mlir_module())
    others = sorted({name for name in called if not CALLS.fullmatch(name.strip('"'))})
    if others:
        raise ValueError(f"calls {errors.names(others)}")


def checked(inputs: Sequence[dict], xs: tuple, sizes: dict[str, int], before: str = "") -> tuple:
    """Inputs as JAX's arrays, which are as described; `sizes` are those of named sizes so far."""
    flat, treedef = jax.tree_util.tree_flatten_with_path(xs)
    wanted = before + (", ".join(map(described, inputs)) or "no inputs")
    names = [said["name"].partition("/")[2] for said in inputs]
    if [errors.path_of(keys[1:]) for keys, _ in flat] != names:
        raise errors.InputError(wanted, errors.show(xs), "pass them in this order")
    arrays = []
    for said, (_, x) in zip(inputs, flat, strict=True):
        if not (hasattr(x, "shape") and hasattr(x, "dtype")):
            raise errors.InputError(f"arrays, {wanted}", errors.show(x), "make an array of it")
        x = from_numpy(x, said["name"])
        if x.dtype != jnp.dtype(said["dtype"]):
            got, mend = f"{said['name']} {errors.show(x)}", f'pass x.astype("{said["dtype"]}")'
            raise errors.DtypeError(described(said), got, mend)
        _check_shape(said, x, sizes)
        arrays.append(x)
    return jax.tree.unflatten(treedef, arrays)


def _check_shape(said: dict, x: Any, sizes: dict[str, int]) -> None:
    """Named sizes are from 1, and the same wherever the name is; formulas the program checks."""
    fits = len(x.shape) == len(said["shape"])
    for wanted, size in zip(said["shape"], x.shape, strict=True) if fits else ():
        if not isinstance(wanted, int):
            fits = fits and size == (
                sizes.setdefault(wanted, size) if wanted.isidentifier() else size
            )
            fits = fits and size >= 1
        else:
            fits = fits and size == wanted
    if not fits:
        known = [f"{name} is {size}" for name, size in sizes.items() if name in said["shape"]]
        wanted = described(said) + (f", where {', '.join(known)}" if known else "")
        mend = "named sizes are from 1, and the same in all inputs"
        raise errors.ShapeError(wanted, f"{said['name']} {errors.show(x)}", mend)


def described(said: dict) -> str:
    """An input as a message shows it."""
    return f"{said['name']} ({', '.join(map(str, said['shape']))}) {said['dtype']}"


def _form(said: dict) -> tuple:
    return tuple(map(str, said["shape"])), jnp.dtype(said["dtype"])
