"""Error types, and how a message names places and shows values.

Every message reads `path: expected E, got G; mend`, as in

    conv2/dense1: expected last axis 3 (kernel is (3, 4)), got x (2, 5); ...

A layer raises without knowing its place. `compose` adds the path on the way out, name by name, so
the text is the same eagerly and under `jit`, and no layer carries a path around.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ParamSpec, TypeVar

import jax
import jax.core

IN_LAYER = "in the fnn layer "

P = ParamSpec("P")
T = TypeVar("T")


class FnnError(Exception):
    """Wrong use of fnn: `expected`, `got` and `mend`, at `path` in the network."""

    def __init__(self, expected: str, got: str, mend: str):
        super().__init__(expected, got, mend)
        self.expected, self.got, self.mend = expected, got, mend
        self.path = ""
        self.layer = ""  # the layer or function that raised, for errors outside any network

    def __str__(self) -> str:
        where = self.path or self.layer
        text = f"expected {self.expected}, got {self.got}; {self.mend}"
        return f"{where}: {text}" if where else text


class ShapeError(FnnError, ValueError):
    """An input whose shape or rank does not fit the layer or its parameters."""


class DtypeError(FnnError, TypeError):
    """An input or a parameter of the wrong dtype."""


class InputError(FnnError, TypeError):
    """Inputs that are not arrays, or the wrong number of them."""


class ParamsError(FnnError, ValueError):
    """A tree, such as params or state, with a missing, extra or misshapen entry."""


class OptionError(FnnError, ValueError):
    """An option outside its legal values."""


class DataError(FnnError, ValueError):
    """An example that cannot be read, or a worker that died while it read one."""


class CheckpointError(FnnError, ValueError):
    """A checkpoint that is damaged, incomplete, or of another tree."""


class ArtifactError(FnnError, ValueError):
    """An exported artifact that is damaged, incomplete, or not what it claims to be."""


class DescriptionError(FnnError, ValueError):
    """A description of a network that is damaged, or names what it may not."""


class AgreementError(FnnError, ValueError):
    """Processes of one run that do not do the same: other programs, params or batches."""


class RandomKeyError(FnnError, ValueError):
    """A random key that is missing, or something else in its place."""


class ComposeError(FnnError, ValueError):
    """A body that does not use its sublayers as declared in `compose`."""


class SublayerError(ComposeError, AttributeError):
    """A sublayer that `compose` does not declare."""


class TransformError(FnnError, ValueError):
    """A sublayer that needs a key or changes state inside a transform opened by the body."""


def locate(error: BaseException, name: str) -> None:
    """Put `name` in front of the path collected so far."""
    if isinstance(error, FnnError):
        error.path = f"{name}/{error.path}" if error.path else name
        return
    prefix = IN_LAYER  # an error of another library: the path goes into a note
    notes = getattr(error, "__notes__", [])
    ours = [note for note in notes if note.startswith(prefix)]
    for note in ours:
        notes.remove(note)
    error.add_note(prefix + "/".join([name] + [note[len(prefix) :] for note in ours[-1:]]))


@contextlib.contextmanager
def at(name: str) -> Iterator[None]:
    """`with at(name):` puts a name in front of the path of any error raised inside."""
    try:
        yield
    except Exception as error:
        locate(error, name)
        raise


@contextlib.contextmanager
def within(name: str) -> Iterator[None]:
    """`with within(name):` names the layer or function in errors raised outside any network."""
    try:
        yield
    except FnnError as error:
        error.layer = error.layer or name
        raise


def named(fn: Callable[P, T]) -> Callable[P, T]:
    """Name the function in errors raised inside it, as `within` does."""
    name = getattr(fn, "__name__", "")

    @functools.wraps(fn)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        with within(name):
            return fn(*args, **kwargs)

    return call


def is_builder(fn: Any) -> bool:
    """Whether `fn` is a builder, which was passed where its result is wanted."""
    return getattr(fn, "_is_builder", False) is True


# --- how messages show things


def show(x: Any) -> str:
    """A value in a message: arrays by shape and dtype, never by content, as under jit.

    >>> import jax.numpy as jnp
    >>> show(jnp.zeros((2, 3)))
    '(2, 3) float32'
    """
    if hasattr(x, "shape") and hasattr(x, "dtype"):
        return f"{tuple(x.shape)} {x.dtype}"
    if isinstance(x, Mapping):
        return "{" + ", ".join(f"{k}: {show(v)}" for k, v in x.items()) + "}"
    if isinstance(x, (tuple, list)):
        return "(" + ", ".join(map(show, x)) + ")"
    return repr(x) if isinstance(x, (int, float, str, type(None))) else type(x).__name__


def shapes(xs: tuple) -> str:
    """The shapes of inputs, in a message."""
    return ", ".join(map(str, jax.tree.map(lambda x: tuple(x.shape), xs)))


class Unnamed:
    """The key of a child that no path shows, in a pytree node that wraps one value."""

    def __str__(self) -> str:
        return ""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unnamed)

    def __hash__(self) -> int:
        return hash(Unnamed)


def path_of(keys: Iterable[Any]) -> str:
    """The path of a leaf, such as "conv1/kernel", from its pytree keys."""
    named = tuple(key for key in keys if not isinstance(key, Unnamed))
    return jax.tree_util.keystr(named, simple=True, separator="/")


def path_in(name: str, keys: Iterable[Any]) -> str:
    """The path of a leaf of a tree with a name: that alone, if the leaf is the tree."""
    return f"{name}/{path_of(keys)}".removesuffix("/")


def names(some: Iterable[str]) -> str:
    return ", ".join(some) or "none"
