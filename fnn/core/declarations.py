"""Declarations: the shape, dtype, kind, axes and stack of every array of a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from fnn.core import errors, html
from fnn.core.types import Dtype, Shape, Tree

MEMORY = ("cache", "carry")  # kinds in a state that a network fills as it reads a sequence


@dataclass(frozen=True)
class Param:
    """A declared array: shape, dtype, initializer and role.

    - `shape`: of one member; the array itself has shape `stack + shape`.
    - `init`: `f(key, shape, dtype)`, one of `fnn.initializers` or any such function.
    - `kind`: `"kernel"`, `"bias"`, `"scale"`, `"embedding"`, `"statistic"` ...; decay masks,
      summaries and shardings follow it.
    - `axes`: a logical name for each axis of `shape`: `"in"` is the input's last axis and `"out"`
      the output's; `"heads"`, `"hidden"` (between two layers of one block), `"vocabulary"`; the
      axes of a window are `"depth"`, `"height"`, `"width"`.
    - `parts`: for each axis of `shape`, of how many equal parts it consists that belong together,
      as the values of a head do, so that `fnn.sharding` cuts between them alone; None for no parts.
    - `stack`: leading axes of independent draws, which do not count as fans. Member i is drawn from
      i alone, so its values do not depend on the size of the stack.

    >>> import fnn
    >>> Param((3, 4), fnn.initializers.normal(0.1)).shape
    (3, 4)
    """

    shape: Shape
    init: Callable[..., Any]
    dtype: Dtype = jnp.float32
    kind: str = "kernel"
    axes: tuple[str, ...] | None = None
    stack: Shape = ()
    parts: tuple[int | None, ...] | None = None

    def __post_init__(self):
        if not isinstance(self.shape, tuple):
            raise errors.OptionError(
                "a Param's shape to be a tuple", errors.show(self.shape), "write (n,) for one axis"
            )
        if self.init is not None and not callable(self.init):
            raise errors.OptionError(
                "a Param's init to be f(key, shape, dtype)",
                errors.show(self.init),
                "pass an initializer, such as fnn.initializers.zeros",
            )
        if self.axes is not None and len(self.axes) != len(self.shape):
            raise errors.OptionError(
                f"a name for each axis of {self.shape}", f"{self.axes}", "name those of one member"
            )
        if self.parts is not None and (
            len(self.parts) != len(self.shape)
            or any(
                n is not None and size % n for n, size in zip(self.parts, self.shape, strict=True)
            )
        ):
            wanted = f"a number of parts, which divides it, or None for each axis of {self.shape}"
            raise errors.OptionError(wanted, f"{self.parts}", "give one for each axis")

    def _repr_html_(self) -> str:
        fields = [("shape", self.stack + self.shape), ("dtype", jnp.dtype(self.dtype).name)]
        fields += [("kind", self.kind), ("axes", ", ".join(self.axes or ()) or "unnamed")]
        fields += [("stack", self.stack)] if self.stack else []
        init = getattr(self.init, "__name__", None) or repr(self.init)
        return html.of_fields("Param", [*fields, ("init", init)])


@dataclass(frozen=True)
class Derived:
    """Declared values that are transformed after drawing: `fn(values)`; `specs` declares values.

    - `fn`: its result, any tree, takes the place of this node in the params. If `keyed`, it is
      called as `fn(values, key)` and may draw.
    - `inverse`: from such a result back to values, for `fnn.merge`; None if there is no way back.
    - `axes`: logical names of the axes of the result; or a dict of them by the name of a leaf, or
      of a dict above it; or a function from the former Param to such a dict. A leaf that keeps its
      path and its number of axes needs none.
    - `plain`: whether the layer takes the values themselves too, in place of what fn makes of them.
    - `stack`: leading axes of independent members, as in `Param`.

    >>> import fnn
    >>> doubled = Derived(lambda w: 2 * w, Param((2,), fnn.initializers.ones))
    >>> def specs(x):
    ...     return {"w": doubled}, {}
    >>> layer = fnn.leaf("twos", specs, lambda params, state, x, **mode: (x, state))
    >>> print(layer.init(jax.random.key(0), (1, 2))[0]["w"])
    [2. 2.]
    """

    fn: Callable[[Any], Any]
    specs: Tree
    inverse: Callable[[Any], Any] | None = None
    axes: Any = None
    stack: Shape = ()
    keyed: bool = False
    plain: bool = False


def arrays_of(specs: Tree) -> Tree:
    """The ShapeDtypeStructs of the arrays declared by a tree of Param and Derived."""

    def array(node):
        if isinstance(node, Derived):
            keys = [jax.eval_shape(lambda: keys_of(node.stack))] if node.keyed else []
            return jax.eval_shape(node.fn, arrays_of(node.specs), *keys)
        return jax.ShapeDtypeStruct(node.stack + node.shape, node.dtype)

    return jax.tree.map(array, specs)


def keys_of(stack: Shape) -> jax.Array:
    """Keys of this shape; only their shape and dtype matter."""
    return jnp.broadcast_to(jax.random.key(0), stack)


def zeros_of(specs: Tree) -> Tree:
    """Zeros for every declared array."""
    return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), arrays_of(specs))


def declared(specs: Tree) -> Tree:
    """A Param for every array, derived ones included: a tree like the params.

    - `specs`: `net.specs(x)[0]`.

    A derived leaf has the kind of the leaf with its path, or with a path above or at the end of it;
    `"value"` if there is none. Its axes are those given by `Derived`, else the old ones if it has
    as many, else None.

    >>> import fnn
    >>> specs, _ = fnn.weight_norm(fnn.dense(3)).specs((1, 4))
    >>> found = declared(specs)["kernel"]
    >>> found["gain"].kind, found["gain"].axes, found["direction"].axes
    ('kernel', ('out',), ('in', 'out'))
    """
    return jax.tree.map(_resolved, specs)


def _resolved(node: Any) -> Any:
    if isinstance(node, Param):
        return node
    if not isinstance(node, Derived):
        raise errors.InputError("specs of Param", errors.show(node), "pass net.specs(x)[0]")
    before = {
        errors.path_of(keys).removeprefix("params/"): param
        for specs in (node.specs, plain_specs(node.specs, takes_plain))
        for keys, param in jax.tree_util.tree_flatten_with_path(declared(specs))[0]
    }

    def leaf(keys, array):
        path, names = errors.path_of(keys), [errors.path_of((key,)) for key in keys]
        old = _of_path(path, before)
        base = old or Param((), None, kind="value")  # type: ignore[arg-type]
        given: Any = node.axes
        if callable(given):
            given = given(base)
        if isinstance(given, Mapping):
            given = next((given[name] for name in reversed(names) if name in given), None)
        rank = len(base.shape) if given is None else len(given)
        of_members = array.shape[: len(base.stack)] == base.stack
        keeps = of_members and len(array.shape) == len(base.stack) + rank
        stack = base.stack if keeps else node.stack
        shape = array.shape[len(stack) :]
        if given is None and old is not None and len(old.shape) == len(shape):
            given = old.axes
        parts = base.parts if shape == base.shape else None
        return replace(base, shape=shape, dtype=array.dtype, axes=given, stack=stack, parts=parts)

    return jax.tree_util.tree_map_with_path(leaf, arrays_of(node))


def _of_path(path: str, before: Mapping[str, Param]) -> Param | None:
    """The former leaf at a path, above it, or at the end of it."""
    for old, param in before.items():
        if path == old or not old or path.startswith(f"{old}/") or path.endswith(f"/{old}"):
            return param
    return None


def invertible(node: Derived) -> bool:
    return node.inverse is not None


def takes_plain(node: Derived) -> bool:
    return node.plain


def plain_specs(node: Tree, through: Callable[[Derived], bool] = invertible) -> Tree:
    """The declarations of the plain params, below the derived nodes that `through` accepts."""
    if isinstance(node, Mapping):
        return {name: plain_specs(below, through) for name, below in node.items()}
    if isinstance(node, Derived) and through(node):
        return plain_specs(node.specs, through)
    return node


def plain_values(node: Tree, value: Tree, through: Callable[[Derived], bool] = invertible) -> Tree:
    """The plain params, from those of a network with such declarations."""
    if isinstance(node, Mapping):
        return {name: plain_values(below, value[name], through) for name, below in node.items()}
    if isinstance(node, Derived) and through(node):
        assert node.inverse is not None
        return plain_values(node.specs, node.inverse(value), through)
    return value


def output_axis(param: Param) -> int:
    """The axis of a kernel that counts its output features: "out", else the last.

    >>> output_axis(Param((3, 5, 4), None, axes=("width", "out", "in")))
    1
    """
    axes = param.axes or ()
    return axes.index("out") if "out" in axes else len(param.shape) - 1
