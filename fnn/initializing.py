"""All parameters of a network, drawn by one compiled sampler.

A parameter is declared, `Param(shape, init)`, and drawn later, with all the others. Compiling one
random kernel per shape is what makes initialization slow elsewhere, so here the only thing ever
compiled is a sampler of fixed-size blocks of a standard distribution. A parameter is as many blocks
as it needs, cut to its shape and multiplied by its scale, which NumPy does without compiling.

A block's key is folded from the parameter's path, its member of the stack and the block's number.
So a value depends on nothing else in the network, and since the multiplication is the only
rounding after the draw, it is the same to the last bit eagerly, under `jit` and under `vmap`.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from fnn import errors

BLOCK = 1024  # values in a block
CHUNK = 256  # blocks a call of the compiled sampler draws


@dataclass(frozen=True)
class Param:
    """A declared array: its shape and dtype, how its first values are drawn, and what it is for.

    - `shape`: of one member; the array itself has shape `stack + shape`.
    - `init`: `f(key, shape, dtype)`, one of this module's distributions or any function like it.
    - `kind`: `"kernel"`, `"bias"`, `"scale"`, `"embedding"`, `"statistic"` ...: what decay masks,
      summaries and shardings go by.
    - `axes`: one logical name per axis of `shape`; `"in"` is the input's last axis.
    - `stack`: leading axes of independent draws, which do not count as fans. Member i is drawn
      from i alone, so its values do not depend on the size of the stack.

    >>> Param((3, 4), lecun_normal()).shape
    (3, 4)
    """

    shape: tuple[int, ...]
    init: Callable[..., Any]
    dtype: Any = jnp.float32
    kind: str = "kernel"
    axes: tuple[str, ...] | None = None
    stack: tuple[int, ...] = ()


@dataclass(frozen=True)
class Derived:
    """A node that is drawn and then mapped: `fn(values)`, where `specs` declares the values.

    The result of `fn` (any tree) stands in the params where this node stands.

    >>> doubled = Derived(lambda w: 2 * w, Param((2,), ones))
    >>> print(draw(jax.random.key(0), {"w": doubled})["w"])
    [2. 2.]
    """

    fn: Callable[[Any], Any]
    specs: Any


# --- distributions


@dataclass(frozen=True)
class Distribution:
    """A standard distribution times a scale: a hashable initializer `f(key, shape, dtype)`.

    - `base`: a sampler of `jax.random` by name, and its options: `("uniform", ("maxval", 1.0))`.
    - `scale`: a number, or a function from the shape to one.
    - `finish`: what is done to the draw of one member before it is scaled, if anything.
    """

    base: tuple
    scale: Any = 1.0
    finish: Callable[[jax.Array], jax.Array] | None = None

    def __call__(self, key, shape, dtype=jnp.float32) -> jax.Array:
        return draw(key, Param(tuple(shape), self, dtype))


@dataclass(frozen=True)
class Constant:
    """The same value everywhere: a hashable initializer that draws nothing."""

    value: Any

    def __call__(self, key, shape, dtype=jnp.float32) -> jax.Array:
        return jnp.full(shape, self.value, dtype)


zeros = Constant(0.0)
ones = Constant(1.0)


def constant(value) -> Constant:
    """The same `value` everywhere (a number, or an array that broadcasts to the shape).

    >>> print(constant(0.5)(jax.random.key(0), (2,)))
    [0.5 0.5]
    """
    return Constant(value)


def normal(stddev=1e-2) -> Distribution:
    """Normal with mean 0: x ~ N(0, stddev^2).

    >>> normal(0.1)(jax.random.key(0), (3, 4)).shape
    (3, 4)
    """
    return Distribution(("normal",), stddev)


def truncated_normal(stddev=1e-2, lower: float = -2.0, upper: float = 2.0) -> Distribution:
    """Normal cut before scaling: x = stddev z, z ~ N(0, 1) given lower < z < upper.

    As in `jax.nn.initializers`, `stddev` is the scale: the cut makes the deviation smaller.

    >>> abs(truncated_normal(1.0)(jax.random.key(0), (100,))).max() <= 2
    Array(True, dtype=bool)
    """
    return Distribution(
        ("truncated_normal", ("lower", float(lower)), ("upper", float(upper))), stddev
    )


def uniform(scale=1e-2) -> Distribution:
    """Uniform from 0 to `scale`: x ~ U[0, scale).

    >>> uniform(1.0)(jax.random.key(0), (100,)).min() >= 0
    Array(True, dtype=bool)
    """
    return Distribution(("uniform",), scale)


_STANDARD = {  # a base of variance 1 / factor^2, and the factor
    "normal": (("normal",), 1.0),
    "truncated_normal": (
        ("truncated_normal", ("lower", -2.0), ("upper", 2.0)),
        1 / 0.87962566103423978,
    ),
    "uniform": (("uniform", ("minval", -1.0)), math.sqrt(3)),
}


def variance_scaling(
    scale=1.0,
    mode: str = "fan_in",
    distribution: str = "truncated_normal",
    in_axis: int = -2,
    out_axis: int = -1,
) -> Distribution:
    """Mean 0 and variance `scale / n`, n the fans that `mode` names (Glorot & Bengio, 2010).

    - `mode`: `"fan_in"`, `"fan_out"`, `"fan_avg"` (their mean) or `"fan_geo_avg"` (their root
      product). A fan is the size of its axis times the receptive field, the product of the axes
      that are neither `in_axis` nor `out_axis`.
    - `distribution`: `"normal"`, `"truncated_normal"` (cut at two deviations, corrected for the
      cut) or `"uniform"`.

    Raises OptionError for an unknown option, and for a shape with fewer than two axes.

    >>> variance_scaling(2.0, "fan_out", "uniform")(jax.random.key(0), (3, 3, 8, 16)).shape
    (3, 3, 8, 16)
    """
    errors.check_choice("mode", mode, ("fan_in", "fan_out", "fan_avg", "fan_geo_avg"))
    errors.check_choice("distribution", distribution, tuple(_STANDARD))
    base, factor = _STANDARD[distribution]
    return Distribution(base, FanScale(scale, mode, in_axis, out_axis, factor))


@dataclass(frozen=True)
class FanScale:
    """The scale of a kernel's draw, factor * sqrt(scale / fan), from its shape."""

    scale: Any
    mode: str
    in_axis: int
    out_axis: int
    factor: float

    def __call__(self, shape: tuple[int, ...]) -> Any:
        if len(shape) < 2:
            raise errors.OptionError(
                "a shape of two axes or more, for fans to be counted",
                f"shape {shape}",
                "draw it from normal(stddev) or constant(value)",
            )
        field = math.prod(shape) / max(shape[self.in_axis] * shape[self.out_axis], 1)
        fan_in, fan_out = shape[self.in_axis] * field, shape[self.out_axis] * field
        fan = {
            "fan_in": fan_in,
            "fan_out": fan_out,
            "fan_avg": (fan_in + fan_out) / 2,
            "fan_geo_avg": math.sqrt(fan_in * fan_out),
        }[self.mode]
        root = math.sqrt if isinstance(self.scale, (int, float)) else jnp.sqrt
        return self.factor * root(self.scale / max(fan, 1))


def lecun_normal() -> Distribution:
    """Variance 1 / fan_in, truncated normal (LeCun et al., 1998): the default of kernels.

    >>> lecun_normal() == variance_scaling(1.0, "fan_in", "truncated_normal")
    True
    """
    return variance_scaling(1.0, "fan_in", "truncated_normal")


def lecun_uniform() -> Distribution:
    """Variance 1 / fan_in, uniform (LeCun et al., 1998).

    >>> lecun_uniform() == variance_scaling(1.0, "fan_in", "uniform")
    True
    """
    return variance_scaling(1.0, "fan_in", "uniform")


def glorot_normal() -> Distribution:
    """Variance 2 / (fan_in + fan_out), truncated normal (Glorot & Bengio, 2010).

    >>> glorot_normal() == variance_scaling(1.0, "fan_avg", "truncated_normal")
    True
    """
    return variance_scaling(1.0, "fan_avg", "truncated_normal")


def glorot_uniform() -> Distribution:
    """Variance 2 / (fan_in + fan_out), uniform (Glorot & Bengio, 2010, equation 16).

    >>> glorot_uniform() == variance_scaling(1.0, "fan_avg", "uniform")
    True
    """
    return variance_scaling(1.0, "fan_avg", "uniform")


def he_normal() -> Distribution:
    """Variance 2 / fan_in, truncated normal, for networks of rectifiers (He et al., 2015).

    >>> he_normal() == variance_scaling(2.0, "fan_in", "truncated_normal")
    True
    """
    return variance_scaling(2.0, "fan_in", "truncated_normal")


def he_uniform() -> Distribution:
    """Variance 2 / fan_in, uniform, for networks of rectifiers (He et al., 2015).

    >>> he_uniform() == variance_scaling(2.0, "fan_in", "uniform")
    True
    """
    return variance_scaling(2.0, "fan_in", "uniform")


def orthogonal(scale=1.0) -> Distribution:
    """`scale` times a uniformly drawn matrix with orthonormal columns, or rows if it is wide.

    All axes but the last are rows (Saxe et al., 2014). The draw is the Q of a normal matrix's QR
    with the signs of R's diagonal, which makes it uniform (Mezzadri, 2007).

    >>> q = orthogonal()(jax.random.key(0), (4, 4))
    >>> bool(jnp.allclose(q.T @ q, jnp.eye(4), atol=1e-5))
    True
    """
    return Distribution(("normal",), scale, _orthogonal)


def _orthogonal(z: jax.Array) -> jax.Array:
    if z.ndim < 2:
        raise errors.OptionError(
            "a shape of two axes or more, to be orthogonal",
            f"shape {z.shape}",
            "draw it from normal(stddev)",
        )
    matrix = z.reshape(-1, z.shape[-1])
    wide = matrix.shape[0] < matrix.shape[1]
    q, r = jnp.linalg.qr(matrix.T if wide else matrix)
    q = q * jnp.where(jnp.diagonal(r) < 0, -1, 1).astype(q.dtype)
    return (q.T if wide else q).reshape(z.shape)


# --- drawing


def draw(key, specs) -> Any:
    """Arrays for a tree of `Param` and `Derived`, in a constant number of compiled programs.

    - `key`: a typed key, concrete or traced.
    - `specs`: a nested dict of declarations; each is drawn from its path in it.

    >>> specs = {"kernel": Param((2, 3), normal()), "bias": Param((3,), zeros)}
    >>> jax.tree.map(jnp.shape, draw(jax.random.key(0), specs))
    {'bias': (3,), 'kernel': (2, 3)}
    """
    errors.check_key(key)
    nodes, treedef = jax.tree_util.tree_flatten_with_path(specs)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in nodes]
    params: dict[str, Param] = {}
    derived: list[tuple] = []
    for path, (_, node) in zip(paths, nodes, strict=True):
        _collect(path, node, params, derived)

    eager = not isinstance(jax.random.key_data(key), jax.core.Tracer)
    values = _sample(key, params, eager)
    rest = []
    for path, param in params.items():
        if isinstance(param.init, Constant):
            values[path] = _constant(param)
        elif path not in values or param.init.finish:
            rest.append((path, param))
    if rest or derived:  # what must be compiled for its shape goes into one program
        plan = tuple(rest), tuple(derived)
        used = [path for path, _ in rest] + [path for *_, inner in derived for path in inner]
        program = _compiled_finish if _hashable(plan) else _finish
        values |= program(*plan, key, {path: values[path] for path in used if path in values})
    arrays = [values[path] for path in paths]
    return jax.tree.unflatten(treedef, jax.device_put(arrays) if eager else arrays)


def _collect(path: str, node: Any, params: dict[str, Param], derived: list[tuple]) -> None:
    """List the Params below `node`, and its Derived nodes from the innermost out."""
    if isinstance(node, Derived):
        inner, treedef = jax.tree_util.tree_flatten_with_path(node.specs)
        names = [jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in inner]
        paths = [f"{path}/{name}" if name else path for name in names]
        for inner_path, (_, inner_node) in zip(paths, inner, strict=True):
            _collect(inner_path, inner_node, params, derived)
        derived.append((path, node.fn, treedef, tuple(paths)))
    elif isinstance(node, Param):
        params[path] = node
    else:
        raise errors.InputError(
            "specs of Param and Derived", f"{path}: {errors.show(node)}", "declare it as a Param"
        )


def _sample(key, params: dict[str, Param], eager: bool) -> dict[str, Any]:
    """The standard draws behind all declared distributions; scaled, where nothing comes before."""
    groups: dict[tuple, list[str]] = {}
    for path, param in params.items():
        if isinstance(param.init, Distribution):
            groups.setdefault((param.init.base, _wide(param.dtype)), []).append(path)
    values = {}
    for (base, wide), paths in groups.items():
        blocks = [math.ceil(math.prod(params[path].shape) / BLOCK) for path in paths]
        words = [_words(path, params[path], n) for path, n in zip(paths, blocks, strict=True)]
        raw = _blocks(key, np.concatenate(words), base, wide, eager)
        start = 0
        for path, n in zip(paths, blocks, strict=True):
            shape, stack = params[path].shape, params[path].stack
            members = math.prod(stack)
            flat = raw[start : start + members * n].reshape(members, n * BLOCK)
            value = flat[:, : math.prod(shape)].reshape(stack + shape)
            values[path] = value if params[path].init.finish else _scaled(value, params[path])
            start += members * n
    return values


def _words(path: str, param: Param, blocks: int) -> np.ndarray:
    """Sixty-four bits for each (path, member, block), as [members * blocks, 2] uint32."""
    members = itertools.product(*map(range, param.stack))
    digests = [
        hashlib.blake2b(f"{path} {member} {block}".encode(), digest_size=8).digest()
        for member in members
        for block in range(blocks)
    ]
    return np.frombuffer(b"".join(digests), "<u4").astype(np.uint32).reshape(-1, 2)


def _blocks(key, words: np.ndarray, base: tuple, wide: str, eager: bool) -> Any:
    """[len(words), BLOCK] standard draws: chunk by chunk for NumPy, or traced, all at once."""
    if not eager:
        return _sampler(key, words, base, wide)
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

    return jax.vmap(block)(words)


def _fold(key, words) -> Any:
    """The key folded with each word in turn (a scan, since a fold is slow to compile)."""
    return jax.lax.scan(lambda k, word: (jax.random.fold_in(k, word), None), key, words)[0]


def _wide(dtype: Any) -> str:
    """What a parameter is drawn in: narrow floats are drawn in float32, then rounded."""
    return "float64" if dtype == np.float64 else "float32"


def _scaled(value: Any, param: Param) -> Any:
    scale = param.init.scale(param.shape) if callable(param.init.scale) else param.init.scale
    concrete = isinstance(scale, (int, float)) and isinstance(value, np.ndarray)
    xp = np if concrete else jnp
    return (value * xp.asarray(scale, value.dtype)).astype(param.dtype)


def _constant(param: Param) -> Any:
    concrete = not isinstance(param.init.value, jax.Array)
    return (np if concrete else jnp).full(param.stack + param.shape, param.init.value, param.dtype)


def _finish(rest: tuple, derived: tuple, key, values: dict[str, Any]) -> dict[str, Any]:
    """Foreign initializers, finishes, and then the functions of Derived nodes, inside out."""
    values = dict(values)
    for path, param in rest:
        if isinstance(param.init, Distribution):
            finish = param.init.finish or (lambda z: z)
            values[path] = _scaled(_each(finish, param)(values[path]), param)
        else:
            words = _words(path, param, 1).reshape(*param.stack, 2)
            values[path] = _each(lambda w, p=param: _foreign(p, _fold(key, w)), param)(words)
    for path, fn, treedef, paths in derived:
        values[path] = fn(jax.tree.unflatten(treedef, [values[p] for p in paths]))
    return values


_compiled_finish = jax.jit(_finish, static_argnums=(0, 1))


def _foreign(param: Param, key) -> jax.Array:
    value = param.init(key, param.shape, param.dtype)
    if jnp.shape(value) != param.shape or jnp.result_type(value) != param.dtype:
        raise errors.ParamsError(
            f"{param.shape} {jnp.dtype(param.dtype)} from the initializer",
            errors.show(value),
            "an initializer is f(key, shape, dtype) and returns an array of that shape and dtype",
        )
    return value


def _hashable(plan: tuple) -> bool:
    try:
        hash(plan)
    except TypeError:  # a traced option, or a foreign initializer that cannot be hashed
        return False
    return True


def _each(fn: Callable, param: Param) -> Callable:
    """`fn` over the members of a stack."""
    for _ in param.stack:
        fn = jax.vmap(fn)
    return fn
