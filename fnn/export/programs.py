"""The programs of an artifact: a network in evaluation mode, and single steps of one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.export

from fnn.core import errors
from fnn.core.declarations import MEMORY
from fnn.core.errors import IN_LAYER
from fnn.core.layer import Layer, inputs_of
from fnn.core.types import Tree
from fnn.export.shapes import described
from fnn.layers.frozen import held_in, joined


class Program(NamedTuple):
    """A program as bytes, and what the manifest says of it."""

    data: bytes
    said: dict[str, Any]


def apply_program(
    net: Layer, args: tuple, xs: tuple, decode: Callable, platforms: Sequence[str]
) -> Program:
    """(params, state, *xs) -> y in evaluation mode; without the first two if `args` has neither."""

    def apply(params, state, *xs):
        return net.apply(decode(params), state, *xs)[0]

    with any_sizes():
        y = jax.eval_shape(bound(apply, args), *_given(args), *xs)
    data = _exported(bound(apply, args), (*_given(args), *xs), platforms)
    said = {"role": "apply", "inputs": described(names_of(net, len(xs)), xs)}
    return Program(data, said | {"outputs": described(["y"], [y])})


def step_programs(
    name: str, net: Layer, args: tuple, xs: tuple, decode: Callable, platforms: Sequence[str]
) -> dict[str, Program]:
    """(params, state, carry, *xs) -> (carry, y), and (params, state, *xs) -> carry, the first one.

    The carry is that of a recurrent cell; of any other network its state, such as a cache.
    """
    cell = net.carry is not None

    def first(params, state, *xs):
        params = decode(params)
        if net.carry is not None:
            return net.carry(joined(params, held_in(state)), *xs)
        return _first_state(net, state, xs)

    def step(params, state, carry, *xs):
        params = decode(params)
        if cell:
            return net.apply(params, state, carry, *xs)[0]
        y, carry = net.apply(params, carry, *xs)
        return carry, y

    given = _given(args)
    with any_sizes():
        carry = jax.eval_shape(bound(first, args), *given, *xs)
        out = jax.eval_shape(bound(step, args), *given, carry, *xs)
    if jax.tree.map(_form, out[0]) != jax.tree.map(_form, carry):
        raise errors.InputError(
            f"a step {name} that keeps the shapes of its carry, {errors.show(carry)}",
            errors.show(out[0]),
            "pass the shapes of one step, and a cell or a network with a cache",
        )
    names = names_of(net, len(xs) + cell)[cell:]
    inputs, places = described(names, xs), described(["carry"], [carry])
    stepped = _exported(bound(step, args), (*given, carry, *xs), platforms)
    began = _exported(bound(first, args), (*given, *xs), platforms)
    said = {"role": "step", "first": f"{name}.first", "carry": places, "inputs": inputs}
    return {
        name: Program(stepped, said | {"outputs": described(["y"], [out[1]])}),
        f"{name}.first": Program(began, {"role": "first", "inputs": inputs, "outputs": places}),
    }


def names_of(net: Layer, count: int) -> list[str]:
    """The names of so many inputs of a network, x1, x2 ... if they have none."""
    parameters = list(inputs_of(net).parameters.values())
    if any(p.kind == p.VAR_POSITIONAL for p in parameters) or len(parameters) < count:
        return ["x"] if count == 1 else [f"x{i + 1}" for i in range(count)]
    return [p.name for p in parameters[:count]]


def bound(fn: Callable, args: tuple) -> Callable:
    """`fn`, with the params and the state as constants if they are arrays."""
    if not args[2]:
        return fn
    return lambda *rest: fn(args[0], args[1], *rest)


def _given(args: tuple) -> tuple:
    """Structs of params and state, where the program takes them."""
    return () if args[2] else jax.tree.map(_struct, args[:2])


def _struct(a: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(a.shape, a.dtype)


def _form(a: Any) -> tuple:
    return tuple(map(str, a.shape)), str(a.dtype)


def _first_state(net: Layer, state: Tree, xs: tuple) -> Tree:
    """The state before a sequence: new caches, for inputs like xs, and all else as it was."""
    found = {
        errors.path_of(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(state)
    }

    def leaf(keys, declared):
        path = errors.path_of(keys)
        if declared.kind in MEMORY:
            shape = declared.stack + declared.shape
            return declared.init(jax.random.key(0), shape, declared.dtype)
        if path not in found:
            mend = "save the state of the network with which it shares them"
            raise errors.ParamsError(f"state with {path}", errors.names(found), mend)
        return found[path]

    return jax.tree_util.tree_map_with_path(leaf, net.specs(*xs)[1])


@contextlib.contextmanager
def any_sizes() -> Iterator[None]:
    """Say what mends a network that compares a named size, or takes it for a number."""
    try:
        yield
    except Exception as error:
        if "InconclusiveDimensionOperation" not in type(error).__name__ and "_DimExpr" not in str(
            error
        ):
            raise
        got = f"one that must know them: {str(error).splitlines()[0]}"
        mend = 'pass a number for that size, or constraints=["time <= 128"]'
        wrong = errors.InputError("a network that takes inputs of any named sizes", got, mend)
        notes = [note for note in getattr(error, "__notes__", []) if note.startswith(IN_LAYER)]
        wrong.path = notes[-1].removeprefix(IN_LAYER) if notes else ""
        raise wrong from error


def _exported(fn: Callable, args: tuple, platforms: Sequence[str]) -> bytes:
    with any_sizes():
        exported = jax.export.export(jax.jit(fn), platforms=tuple(platforms))(*args)
    try:
        return bytes(exported.serialize())
    except ImportError as error:
        raise ImportError("programs need flatbuffers: pip install 'fnn[export]'") from error
