"""Fitted functions one after another, and splits prepared by what one of them alone was asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fnn.core import checks, errors
from fnn.core.types import Tree


class Chain(NamedTuple):
    """Fitted functions, applied in order, from `chain`."""

    fitted: tuple

    def __call__(self, x: Tree) -> Tree:
        for fn in self.fitted:
            x = fn(x)
        return x

    def inverse(self, y: Tree) -> Tree:
        """The inverses in reverse order. Raises InputError if one has none."""
        without = [type(fn).__name__ for fn in self.fitted if not hasattr(fn, "inverse")]
        with errors.within("chain"):
            if without:
                mend = "undo the others one by one, from chain.fitted"
                got = f"{errors.names(without)}, which has none"
                raise errors.InputError("fitted functions with an inverse", got, mend)
        for fn in reversed(self.fitted):
            y = fn.inverse(y)
        return y


@errors.named
def chain(*fitted: Callable[[Tree], Tree]) -> Chain:
    """Fitted functions one after another; the inverse undoes them, the last first.

    - `fitted`: what `standardize`, `impute`, `encode` and the like return, or any function that is
      a tree of arrays.

    Returns a `Chain(fitted)`, a function and a plain tree. Raises OptionError for anything else.

    >>> from fnn.data import clip_outliers, standardize
    >>> x = np.array([1.0, 2.0, 3.0, 4.0, 100.0])
    >>> clip = clip_outliers(x)
    >>> both = chain(clip, standardize(clip(x)))
    >>> both(x).round(1)
    array([-1.2, -0.7, -0.2,  0.3,  1.7])
    """
    for fn in fitted:
        _check_fitted(fn)
    return Chain(fitted)


def _check_fitted(fn: Any) -> None:
    arrays = all(isinstance(a, (np.ndarray, jax.Array)) for a in jax.tree.leaves(fn))
    if not callable(fn) or not arrays:
        raise errors.OptionError(
            "functions that are trees of arrays, which travel with the model",
            errors.show(fn),
            "fit it, as standardize(x); call plain functions, such as np.log1p, on the data before",
        )


@errors.named
def prepare(
    parts: Mapping[str, Mapping[str, Any]],
    fits: Mapping[str, Callable | Sequence[Callable]],
    fit_on: str = "train",
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Fit on one part of the data, and apply what was fitted to all of them.

        fitted[name] = fit(parts[fit_on][name]);  parts[p][name] = fitted[name](parts[p][name])

    - `parts`: dicts of data by the part's name, as from `split` of a dict.
    - `fits`: by the name of an entry, a function of data that returns a fitted one, such as
      `fnn.data.standardize`; options by `functools.partial(fnn.data.impute, strategy="median")`. A
      list of them is fitted and applied in order, as a `chain`. Other entries stay as they are.
    - `fit_on`: the part to fit on.

    Returns (parts, fitted): new dicts, and the fitted functions by name, a plain tree to be saved
    with the params, and applied to what comes later. Raises OptionError for a part or an entry that
    does not exist, and for a function that returns no fitted one.

    >>> from fnn.data import encode, standardize
    >>> parts = {
    ...     "train": {"x": np.array([1.0, 3.0]), "kind": np.array(["a", "b"])},
    ...     "test": {"x": np.array([5.0]), "kind": np.array(["c"])},
    ... }
    >>> parts, fitted = prepare(parts, {"x": standardize, "kind": encode})
    >>> parts["test"]["x"], parts["test"]["kind"], fitted["kind"].size
    (array([3.]), array([2], dtype=int32), 2)
    """
    for part, data in {"parts": parts, **parts}.items() if isinstance(parts, Mapping) else ():
        if not isinstance(data, Mapping):
            mend = 'pass {"train": {"x": ...}, "test": {"x": ...}}'
            raise errors.InputError(f"dicts by name in {part}", errors.show(data), mend)
    checks.mapping("fits", fits)
    if not isinstance(parts, Mapping) or fit_on not in parts:
        got = errors.names(parts) if isinstance(parts, Mapping) else errors.show(parts)
        raise errors.OptionError(f"a part {fit_on}", got, "name in fit_on the part to fit on")
    for part, data in parts.items():
        for name in fits:
            if name not in data:
                got = f"{part} with {errors.names(map(str, data))}"
                raise errors.OptionError(f"{name} in each part", got, "leave it out of fits")
    fitted = {}
    for name, fit in fits.items():
        with errors.at(name):
            fitted[name] = _fit(fit, parts[fit_on][name])
    prepared = {}
    for part, data in parts.items():
        with errors.at(part):
            prepared[part] = {name: _applied(fitted, name, x) for name, x in data.items()}
    return prepared, fitted


def _fit(fit: Any, x: Tree) -> Any:
    if not isinstance(fit, (list, tuple)) or isinstance(fit, tuple) and hasattr(fit, "_fields"):
        return _fit_one(fit, x)
    fitted = []
    for one in fit:
        fn = _fit_one(one, x)
        fitted.append(fn)
        x = fn(x)
    return Chain(tuple(fitted))


def _fit_one(fit: Any, x: Tree) -> Any:
    checks.function("each fit", fit, "data that returns a fitted one")
    fn = fit(x)
    _check_fitted(fn)
    return fn


def _applied(fitted: dict[str, Any], name: str, x: Any) -> Any:
    if name not in fitted:
        return x
    with errors.at(name):
        return fitted[name](x)
