"""All first values of a network, drawn by one compiled sampler.

Parameters are declared, `Param(shape, init)`, and drawn later, all together. Elsewhere,
initialization is slow because each shape compiles a random kernel of its own. Here the only
compiled program samples fixed-size blocks of a standard distribution; a parameter takes as many
blocks as it needs, cut to its shape and multiplied by its scale, which NumPy does uncompiled.

A block's key is folded from the parameter's path, the member of its stack and the block's number.
So a value depends on nothing else in the network; and since the multiplication is the only rounding
after the draw, it is the same to the last bit eagerly, under `jit` and under `vmap`.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from fnn.core import checks, errors
from fnn.core.declarations import Derived, Param
from fnn.core.origins import Origin
from fnn.core.reserved import FROZEN, is_under
from fnn.core.static import run_once_compiled
from fnn.core.types import Dtype, Key, Tree

Spread: TypeAlias = Callable[[jax.Array, int], jax.Array]  # an array, and the axis to cut

BLOCK = 1024  # values in a block
CHUNK = 256  # blocks a call of the compiled sampler draws
LARGE = 2**20  # values of a param that a traced init draws apart from others


# --- distributions


@dataclass(frozen=True)
class Distribution:
    """A standard distribution times a scale: a hashable initializer `f(key, shape, dtype)`.

    - `base`: a sampler of `jax.random`, by name, and its options: `("uniform", ("maxval", 1.0))`.
    - `scale`: a number, or a function from the shape to one.
    - `finish`: a function applied to the draw of one member before scaling, if any.
    - `origin`: the call of the initializer that made it, such as "lecun_normal()"; it is printed.

    >>> Distribution(("uniform",), 0.1)(jax.random.key(0), (2, 3)).shape
    (2, 3)
    """

    base: tuple
    scale: Any = 1.0
    finish: Callable[[jax.Array], jax.Array] | None = None
    origin: Origin | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        return str(self.origin or f"{self.base[0]} x {self.scale}")

    def fields(self) -> tuple:
        return self.base, self.scale, self.finish

    def with_origin(self, origin: Origin) -> Distribution:
        return replace(self, origin=replace(origin, fields=self.fields()))

    def __call__(self, key, shape, dtype=jnp.float32) -> jax.Array:
        return draw(key, Param(tuple(shape), self, dtype))


@dataclass(frozen=True)
class Constant:
    """One value everywhere: a hashable initializer that draws nothing.

    >>> print(Constant(1.0)(jax.random.key(0), (2,)))
    [1. 1.]
    """

    value: Any
    origin: Origin | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        return f"constant({self.value})"

    def fields(self) -> tuple:
        return (self.value,)

    def with_origin(self, origin: Origin) -> Constant:
        return replace(self, origin=replace(origin, fields=self.fields()))

    def __call__(self, key, shape, dtype=jnp.float32) -> jax.Array:
        return jnp.full(shape, self.value, dtype)


# --- drawing


def draw(key: Key, specs: Tree, spread: Spread | None = None) -> Tree:
    """Arrays for a tree of `Param` and `Derived`, in a constant number of compiled programs.

    - `key`: a typed key, concrete or traced.
    - `specs`: a nested dict of declarations; each is drawn by its path.
    - `spread`: cuts an axis of a large traced param over many devices, while it is drawn.

    >>> specs = {"w": Param((2, 3), Distribution(("normal",))), "b": Param((3,), Constant(0.0))}
    >>> jax.tree.map(jnp.shape, draw(jax.random.key(0), specs))
    {'b': (3,), 'w': (2, 3)}
    """
    checks.key(key)
    nodes, treedef = jax.tree_util.tree_flatten_with_path(specs)
    paths = [errors.path_of(path) for path, _ in nodes]
    params: dict[str, Param] = {}
    derived: list[tuple] = []
    found = [
        _collect(as_unfrozen(path), path, node, params, derived)
        for path, (_, node) in zip(paths, nodes, strict=True)
    ]
    eager = not isinstance(jax.random.key_data(key), jax.core.Tracer)
    values = _sample(key, params, eager, spread or (lambda x, axis: x))
    rest = []
    for path, param in params.items():
        if isinstance(param.init, Constant):
            values[path] = _constant(param)
        elif path not in values or param.init.finish:
            rest.append((path, param))
    if rest or derived:  # all that must be compiled by shape goes into one program
        used = [path for path, _ in rest] + [path for *_, inner, _ in derived for path in inner]
        words = {value: words for value, *_, words in derived if words is not None}
        steps = tuple((value, node.fn, *how) for value, node, *how, _ in derived)
        plan = functools.partial(_finish, tuple(rest), steps)
        given = {path: values[path] for path in used if path in values}
        values |= run_once_compiled(plan, key, words, given)
    arrays = [values[path] for path in found]
    return jax.tree.unflatten(treedef, jax.device_put(arrays) if eager else arrays)


def as_unfrozen(path: str) -> str:
    """The path by which a param is drawn: the one it would have if it were not frozen.

    >>> as_unfrozen("state/body/(frozen)/dense1/kernel")
    'params/body/dense1/kernel'
    """
    names = path.split("/")
    if not any(is_under(FROZEN, name) for name in names):
        return path
    return "/".join(["params", *(name for name in names[1:] if not is_under(FROZEN, name))])


def _collect(
    path: str, result: str, node: Any, params: dict[str, Param], derived: list[tuple]
) -> str:
    """List the Params below `node`, and its Derived nodes, innermost first.

    Returns the name of its value: for a Param, the path by which it is drawn, so that one declared
    twice, such as the source of a mask and the values it masks, is drawn once.
    """
    if isinstance(node, Derived):
        inner, treedef = jax.tree_util.tree_flatten_with_path(node.specs)
        below = []
        for keys, inner_node in inner:
            name = errors.path_of(keys)
            drawn, own = (f"{where}/{name}" if name else where for where in (path, result))
            below.append(_collect(drawn, own, inner_node, params, derived))
        value = f"{result} derived"
        while any(value == other for other, *_ in derived):  # two halves of one node
            value += "'"
        words = _words(f"{path} key", node, 1).reshape(*node.stack, 2) if node.keyed else None
        derived.append((value, node, treedef, tuple(below), words))
        return value
    if isinstance(node, Param):
        if params.setdefault(path, node) != node:
            raise errors.InputError(
                "one declaration of a param", f"two of {path}", "declare both parts alike"
            )
        return path
    raise errors.InputError(
        "specs of Param and Derived", f"{path}: {errors.show(node)}", "declare it as a Param"
    )


def _sample(key, params: dict[str, Param], eager: bool, spread: Spread) -> dict[str, Any]:
    """The standard draws of all declared distributions, scaled unless `finish` comes first."""
    groups: dict[tuple, dict[str, Param]] = {}
    for path, param in params.items():
        if isinstance(param.init, Distribution):
            apart = not eager and math.prod(param.stack + param.shape) >= LARGE
            shape = (param.stack, param.shape) if apart else None
            group = groups.setdefault((param.init.base, _wide(param.dtype), shape), {})
            group[path] = param
    values = {}
    for (base, wide, shape), group in groups.items():
        blocks = functools.partial(_blocks, key, base=base, wide=wide, eager=eager)
        drawn = _joined(group, blocks) if shape is None else _alike(group, blocks, spread)
        for (path, param), value in zip(group.items(), drawn, strict=True):
            with errors.at(path.split("/", 1)[-1]):
                values[path] = value if param.init.finish else _scaled(value, param)
    return values


def _joined(params: dict[str, Param], blocks: Callable) -> Iterator[Any]:
    """The draws of params of any shapes, cut from one array."""
    counts = [math.ceil(math.prod(param.shape) / BLOCK) for param in params.values()]
    words = [_words(*each, n) for each, n in zip(params.items(), counts, strict=True)]
    raw, start = blocks(np.concatenate(words)), 0
    for param, n in zip(params.values(), counts, strict=True):
        members = math.prod(param.stack)
        flat = raw[start : start + members * n].reshape(members, n * BLOCK)
        yield flat[:, : math.prod(param.shape)].reshape(param.stack + param.shape)
        start += members * n


def _alike(params: dict[str, Param], blocks: Callable, spread: Spread) -> Iterator[Any]:
    """The draws of large params of one shape, each in parts.

    Cut from one array with others, one that is to lie over devices would be drawn whole by each.
    """
    first = next(iter(params.values()))
    stack, shape = first.stack, first.shape
    n = math.ceil(math.prod(shape) / BLOCK)
    words = [_words(*each, n).reshape(-1, n, 2) for each in params.items()]
    raw = spread(blocks(np.stack(words)), 2)  # [params, members, n, BLOCK]
    for value in raw.reshape(*raw.shape[:2], n * BLOCK)[..., : math.prod(shape)]:
        yield spread(value.reshape(stack + shape), len(stack))


def _words(path: str, param: Param | Derived, blocks: int) -> np.ndarray:
    """64 bits for each (path, member, block): [members * blocks, 2] uint32."""
    members = itertools.product(*map(range, param.stack))
    digests = [
        hashlib.blake2b(f"{path} {member} {block}".encode(), digest_size=8).digest()
        for member in members
        for block in range(blocks)
    ]
    return np.frombuffer(b"".join(digests), "<u4").astype(np.uint32).reshape(-1, 2)


def _blocks(key, words: np.ndarray, base: tuple, wide: str, eager: bool) -> Any:
    """[..., BLOCK] standard draws of words [..., 2]: in chunks for NumPy, or traced all at once."""
    if not eager:  # the barrier keeps XLA from folding the scale into the draw's constants
        return jax.lax.optimization_barrier(_sampler(key, words, base, wide))
    padded = np.pad(words, ((0, -len(words) % CHUNK), (0, 0)))
    chunks = [
        _sampler(key, padded[i : i + CHUNK], base, wide) for i in range(0, len(padded), CHUNK)
    ]
    drawn = [np.asarray(chunk) for chunk in chunks] or [np.zeros((0, BLOCK), wide)]
    return np.concatenate(drawn)


@functools.partial(jax.jit, static_argnames=("base", "wide"))
def _sampler(key, words, base: tuple, wide: str) -> jax.Array:
    kind, *options = base
    sample = functools.partial(getattr(jax.random, kind), shape=(BLOCK,), dtype=wide)

    def block(words):
        return sample(_fold(key, words), **dict(options))

    for _ in words.shape[:-1]:
        block = _mapped(block, key)
    return block(words)


def _fold(key, words) -> Any:
    """The key folded with each word in turn, by a scan, since each fold is slow to compile."""
    return jax.lax.scan(lambda k, word: (jax.random.fold_in(k, word), None), key, words)[0]


def _mapped(fn: Callable, key: Key) -> Callable:
    """`fn`, which draws, mapped over a first axis; in a loop if vmap would draw other numbers."""
    threefry = str(jax.random.key_impl(key)) == "threefry2x32"
    return jax.vmap(fn) if threefry else functools.partial(jax.lax.map, fn)


def _wide(dtype: Dtype) -> str:
    """The dtype of a draw: narrow floats are drawn in float32, then rounded."""
    return "float64" if dtype == np.float64 else "float32"


def _scaled(value: Any, param: Param) -> Any:
    scale: Any = param.init.scale(param.shape) if callable(param.init.scale) else param.init.scale
    if jnp.shape(scale) != ():
        raise errors.OptionError("one number as scale", errors.show(scale), "pass a scalar")
    concrete = isinstance(scale, (int, float)) and isinstance(value, np.ndarray)
    xp = np if concrete else jnp
    return (value * xp.asarray(scale, value.dtype)).astype(param.dtype)


def _constant(param: Param) -> Any:
    concrete = not isinstance(param.init.value, jax.Array)
    return (np if concrete else jnp).full(param.stack + param.shape, param.init.value, param.dtype)


def _finish(
    rest: tuple, derived: tuple, key, of_keys: dict[str, Any], values: dict[str, Any]
) -> dict[str, Any]:
    """Other initializers and `finish` functions, then those of Derived nodes, innermost first."""
    values = dict(values)
    for path, param in rest:
        if isinstance(param.init, Distribution):
            finish = param.init.finish or (lambda z: z)
            values[path] = _scaled(_each(finish, param)(values[path]), param)
        else:
            words = _words(path, param, 1).reshape(*param.stack, 2)
            values[path] = _each(lambda w, p=param: _other(p, _fold(key, w)), param, key)(words)
    for path, fn, treedef, paths in derived:
        own = jax.tree.unflatten(treedef, [values[p] for p in paths])
        if path in of_keys:
            fold = functools.partial(_fold, key)
            for _ in range(of_keys[path].ndim - 1):
                fold = jax.vmap(fold)
            values[path] = fn(own, fold(of_keys[path]))
        else:
            values[path] = fn(own)
    return values


def _other(param: Param, key) -> jax.Array:
    value = param.init(key, param.shape, param.dtype)
    if jnp.shape(value) != param.shape or jnp.result_type(value) != param.dtype:
        raise errors.ParamsError(
            f"{param.shape} {jnp.dtype(param.dtype)} from the initializer",
            errors.show(value),
            "an initializer is f(key, shape, dtype) and returns an array of that shape and dtype",
        )
    return value


def _each(fn: Callable, param: Param, key: Key | None = None) -> Callable:
    """`fn` mapped over the members of a stack; with a key, `fn` draws."""
    for _ in param.stack:
        fn = jax.vmap(fn) if key is None else _mapped(fn, key)
    return fn
