"""What is said when something is wrong: where, what was expected, what came, what mends it.

Every mistake reads `path: expected E, got G; mend`, as in

    conv2/dense1: expected last axis 3 (kernel is (3, 4)), got x (2, 5); ...

A layer raises without knowing where it stands. `compose` writes the path on the way out, name by
name, so the text is the same eagerly and under `jit`, and no layer carries a path around.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NoReturn, ParamSpec, TypeVar

import jax
import jax.core
import numpy as np

from fnn.core.dtypes import is_floating, wide

P = ParamSpec("P")
T = TypeVar("T")


class FnnError(Exception):
    """A mistake in the use of a layer: `expected`, `got` and `mend`, at `path` in the network."""

    def __init__(self, expected: str, got: str, mend: str):
        super().__init__(expected, got, mend)
        self.expected, self.got, self.mend = expected, got, mend
        self.path = ""
        self.layer = ""  # the name of the layer that raised, where no network gives a path

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
    """A tree of params or state with a missing, extra or misshapen entry."""


class OptionError(FnnError, ValueError):
    """An option of a builder outside its legal values."""


class RandomKeyError(FnnError, ValueError):
    """A random key that is missing where one is needed, or is no key."""


class ComposeError(FnnError, ValueError):
    """A body that does not use its sublayers as `compose` declared them."""


class TransformError(FnnError, ValueError):
    """A sublayer that needs a key or changes state inside a transform that the body opened."""


def locate(error: BaseException, name: str) -> None:
    """Write `name` in front of the path that `error` has collected so far."""
    if isinstance(error, FnnError):
        error.path = f"{name}/{error.path}" if error.path else name
        return
    prefix = "in the fnn layer "  # someone else's error: the path goes in a note
    notes = getattr(error, "__notes__", [])
    ours = [note for note in notes if note.startswith(prefix)]
    for note in ours:
        notes.remove(note)
    error.add_note(prefix + "/".join([name] + [note[len(prefix) :] for note in ours[-1:]]))


@contextlib.contextmanager
def at(name: str) -> Iterator[None]:
    """`with at(name):` locates whatever is raised inside."""
    try:
        yield
    except Exception as error:
        locate(error, name)
        raise


@contextlib.contextmanager
def within(name: str) -> Iterator[None]:
    """`with within(layer_name):` names the layer in mistakes raised outside any network."""
    try:
        yield
    except FnnError as error:
        error.layer = error.layer or name
        raise


def builder(build: Callable[P, T]) -> Callable[P, T]:
    """Mistakes in a builder's options are said of the layer it builds."""

    @functools.wraps(build)
    def named(*args: P.args, **kwargs: P.kwargs) -> T:
        with within(getattr(build, "__name__", "")):
            return build(*args, **kwargs)

    vars(named)["_is_builder"] = True
    return named


def is_builder(fn: Any) -> bool:
    """Whether `fn` builds a layer or a transform, and was not called for it."""
    return getattr(fn, "_is_builder", False) is True


# --- how things are shown


def show(x: Any) -> str:
    """A value in a message: arrays by shape and dtype, never by content, so that jit says the same.

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


class Unnamed:
    """The key of what a node wraps without giving it a name: no path shows it."""

    def __str__(self) -> str:
        return ""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unnamed)

    def __hash__(self) -> int:
        return hash(Unnamed)


def path_of(keys: Iterable[Any]) -> str:
    """The path of a leaf, from its keys: "conv1/kernel"."""
    named = tuple(key for key in keys if not isinstance(key, Unnamed))
    return jax.tree_util.keystr(named, simple=True, separator="/")


def names(some: Iterable[str]) -> str:
    return ", ".join(some) or "none"


# --- what leaf layers and compose say


def wrong_arity(least: float, most: float, came: int) -> NoReturn:
    wanted = f"{least}" if least == most else f"{least} or more"
    raise InputError(
        f"{wanted} input{'s' if wanted != '1' else ''}",
        f"{came}",
        "call net(params, x, state=state), net.apply(params, state, x, key=key, train=True) or "
        "net.init(key, x)",
    )


def unknown_input(name: str, known: Iterable[str]) -> NoReturn:
    raise InputError(
        f"inputs among {names(known)}", name, "pass inputs by position, or under their names"
    )


def missing_input(name: str) -> NoReturn:
    raise InputError(f"the input {name}", "none", "pass it, by position or by its name")


def input_twice(name: str) -> NoReturn:
    raise InputError(f"{name} once", "it by position and by name", "leave one out")


def not_apply(name: str) -> NoReturn:
    error = InputError(
        "inputs and state in a call, which evaluates",
        "key or train",
        "train by net.apply(params, state, x, key=key, train=True)",
    )
    error.layer = name
    raise error


def rebuilt_by_hand(name: str) -> NoReturn:
    raise ComposeError(
        f"a {name} that can be rebuilt over other sublayers",
        "one whose apply or specs were replaced by hand, which rebuilding would undo",
        "wrap it instead, as fnn.wrap(layer, apply)",
    )


def not_an_array(x: Any) -> NoReturn:
    if isinstance(x, bool):
        raise InputError(
            "arrays", repr(x), "train= is given by name; as an input, pass jnp.array of it"
        )
    raise InputError(
        "arrays (or shapes, where only shapes matter)",
        show(x),
        "pass an array, a jax.ShapeDtypeStruct, or a shape such as (8, 28, 28, 1)",
    )


def not_pickled(layer: Any) -> NoReturn:
    raise InputError(
        "arrays and plain data to pickle",
        f"the layer {layer}, which is made of functions",
        "save params and state, which are dicts of arrays, and build the network again by the "
        "function that built it",
    )


def traced_shape() -> NoReturn:
    raise InputError(
        "a shape of plain ints",
        "a tuple of traced values",
        "jit made the shape an argument: close over it, as "
        "jax.jit(lambda key: net.init(key, shape))",
    )


def check_tree(what: str, have: Any, specs: Mapping, want: Mapping, xs: tuple) -> None:
    """Hold a leaf layer's params or state against its declaration: names, shapes, dtypes.

    `specs` are the declarations for the inputs `xs`, `want` the shapes and dtypes of their arrays.
    """
    check_names(what, have, specs, specs)
    mend = f"take {what} from net.init of this network"
    floating = any(map(is_floating, jax.tree.leaves(xs)))
    for name, spec in specs.items():
        value, wanted = have[name], want[name]
        if isinstance(wanted, Mapping):
            with at(name):
                check_tree(what, value, spec if isinstance(spec, Mapping) else wanted, wanted, xs)
            continue
        if not isinstance(value, (jax.Array, np.ndarray, np.generic)):
            raise ParamsError(f"{name} {show(wanted)}", f"{name} {show(value)}", mend)
        if value.shape != wanted.shape:
            _check_last_axis(name, value.shape, wanted.shape, getattr(spec, "axes", None), xs)
            raise ParamsError(
                f"{name} {wanted.shape}" + (f" for x {_shapes(xs)}" if xs else ""),
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


def check_same(what: str, have: Any, want: Any) -> None:
    """Hold a tree of arrays against the arrays that it should have: names, shapes, dtypes."""
    mend = f"take {what} from net.init of this network"
    if not isinstance(want, Mapping):
        if any(getattr(have, of, None) != getattr(want, of) for of in ("shape", "dtype")):
            raise ParamsError(f"{what} {show(want)}", f"{what} {show(have)}", mend)
        return
    check_names(what, have, want, want)
    for name, wanted in want.items():
        with at(name):
            check_same(name, have[name], wanted)


def _check_last_axis(name: str, shape: tuple, wanted: tuple, axes: Any, xs: tuple) -> None:
    """A mismatch in a kernel's input axis alone is said of the input, whose last axis it is."""
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


def _shapes(xs: tuple) -> str:
    shapes = jax.tree.map(lambda x: tuple(x.shape), xs)
    return ", ".join(map(str, shapes))


def check_names(what: str, have: Any, known: Iterable[str], needed: Iterable[str] = ()) -> None:
    """Refuse a tree of params or state by the names that it lacks or should not have."""
    known, needed = list(known), list(needed)
    mend = f"take {what} from net.init of this network"
    if not isinstance(have, Mapping):
        if isinstance(have, tuple):
            mend = "net.init returns two: params, state = net.init(key, x)"
        raise ParamsError(f"{what} to be a dict", show(have), mend)
    missing = [name for name in needed if name not in have]
    extra = [name for name in have if name not in known]
    if missing:
        if what == "state" and not have:
            mend = "this network has state: pass it, as net(params, x, state=state)"
        raise ParamsError(f"{what} with {names(needed)}", f"no {names(missing)}", mend)
    if extra:
        wanted = f"{what} with no more than {names(known)}" if known else f"{what} to be empty"
        raise ParamsError(wanted, f"also {names(map(str, extra))}", mend)


def not_a_pair(of: str, pair: str, got: Any) -> NoReturn:
    raise InputError(f"{of} to return {pair}", show(got), f"return {pair.strip('()')}")


def uncalled(missing: Iterable[str], body: str) -> NoReturn:
    raise ComposeError(
        "every declared sublayer to be called",
        f"no call of {names(missing)} in {body}",
        "call it in the body, or leave it out of compose",
    )


def disagreement(first: Any, first_xs: tuple, second: Any, second_xs: tuple) -> NoReturn:
    def call(needs: Any, xs: tuple) -> str:
        return f"{show(needs[0])} for x {_shapes(xs)}"

    raise ComposeError(
        "all calls of one sublayer to need the same params",
        f"{call(first, first_xs)} and {call(second, second_xs)}",
        "declare two sublayers, or give both calls inputs of one shape and dtype",
    )


def no_carry(name: str) -> NoReturn:
    raise ComposeError(
        "a recurrent cell, which has a carry", f"{name} without one", f"call f.{name}(x) alone"
    )


def unknown_params(name: str) -> NoReturn:
    raise ComposeError(
        f"a call of f.{name} before its params or carry are used",
        "none so far",
        f"call f.{name} first: the call tells what its params are",
    )


def unknown_name(name: str, known: Iterable[str]) -> NoReturn:
    raise AttributeError(
        f"{name}: expected one of the declared sublayers {names(known)}, got {name}; "
        "declare it in compose"
    )


_INSTEAD = (
    "call it outside, as layers take any leading axes; repeat, rnn, ensemble or remat are the "
    "transforms that split keys and stack state"
)


def key_in_transform(inner: FnnError | str) -> TransformError:
    error = TransformError(
        "no random draw inside a transform that the body opens (scan, vmap, cond, grad, "
        "checkpoint), where one draw would silently repeat",
        "one" if isinstance(inner, FnnError) else inner,
        _INSTEAD,
    )
    error.path = inner.path if isinstance(inner, FnnError) else ""
    return error


def state_in_transform() -> TransformError:
    return TransformError(
        "no change of state inside a transform that the body opens (scan, vmap, cond, grad, "
        "checkpoint), which the new state would leak out of",
        "one",
        _INSTEAD,
    )
