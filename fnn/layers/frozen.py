"""Params that do not learn: the state holds them, out of reach of gradients and optimizers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import jax

from fnn.core import errors, trees
from fnn.core.declarations import Derived, declared
from fnn.core.layer import Layer, as_layer, outline, same_arrays
from fnn.core.origins import builder
from fnn.core.reserved import FROZEN, is_empty, is_under
from fnn.core.types import Tree
from fnn.core.wrapping import wrap


@builder
def frozen(layer: Layer | Callable, *patterns: str, kinds: tuple[str, ...] = ()) -> Layer:
    """The layer with params that do not learn: the state holds them, under "(frozen)".

    So they have no gradient, no moments and no update under any optimizer, fnn's or another's, and
    cost none of these; they stay bitwise the same.

    - `patterns`: of the paths of params, in which `*` stands for anything, slashes included.
    - `kinds`: the kinds of params (see `fnn.Param`), such as `("embedding", "scale")`.

    With neither, the whole layer is frozen, and runs in evaluation mode whatever the mode of the
    network: no dropout, no change of batch statistics. First values are those of the layer alone.
    To freeze one layer of a network, build it frozen, or `fnn.swap(net, {"body":
    fnn.frozen(body)})`. `fnn.unmerge` puts in trained params, `fnn.merge` gives them all back.

    Raises OptionError for a pattern or a kind that no param has.

    >>> import jax, jax.numpy as jnp, fnn
    >>> net = fnn.serial(body=frozen(fnn.dense(8)), head=fnn.dense(3))
    >>> params, state = net.init(jax.random.key(0), (1, 4))
    >>> jax.tree.map(jnp.shape, params)
    {'head': {'bias': (3,), 'kernel': (8, 3)}}
    >>> jax.tree.map(jnp.shape, state)
    {'body': {'(frozen)': {'bias': (8,), 'kernel': (4, 8)}}}
    >>> net(params, jnp.ones((2, 4)), state=state).shape
    (2, 3)
    """
    layer = as_layer(layer)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise errors.OptionError("patterns of paths", errors.show(pattern), 'as "body/*"')
    if not isinstance(kinds, tuple):
        raise errors.OptionError("a tuple of kinds", errors.show(kinds), 'as ("bias",)')
    whole = not patterns and not kinds

    def chosen(path: str, kind: str) -> bool:
        return whole or kind in kinds or any(fnmatchcase(path, p) for p in patterns)

    def check(params):
        with errors.within("frozen"):
            _check_found(declared(params), patterns, kinds)

    return hold(layer, chosen, check, whole=whole)


def hold(
    layer: Layer,
    chosen: Callable[[str, str], bool],
    check: Callable[[Any], None] | None = None,
    *,
    whole: bool = False,
) -> Layer:
    """`frozen`, for the params whose path and kind `chosen` accepts; `whole`: for all."""

    def declare(layer, *xs):
        (params, state), y = outline(layer, xs)
        if check is not None:
            check(params)
        learnt, held = _split(params, chosen)
        last = _last(state)  # of a layer that is frozen in part already
        if last or not is_empty(held):
            state = {**state, f"{last}'" if last else FROZEN: held}
        return (learnt, state), y

    def apply(layer, params, state, *xs, key, train):
        if not isinstance(state, Mapping):
            trees.check_names("state", state, ())
        last = _last(state)
        if last is None and not (whole and is_empty(params)):
            raise errors.ParamsError(
                f"state with {FROZEN}, which holds the frozen params",
                "params alone" if params else "none",
                "take both from net.init, or give trained params to fnn.unmerge",
            )
        own = {name: value for name, value in state.items() if name != last}
        mode = {"key": None, "train": False} if whole else {"key": key, "train": train}
        try:
            together = joined(params, state.get(last, {}))
            y, after = layer.apply(together, own, *xs, **mode)
        except errors.ParamsError as error:
            if last is None:
                error.mend = "the state holds frozen params: take params and state from net.init"
            raise
        if same_arrays(own, after):
            return y, state
        return y, {**after, last: state[last]} if last else after

    def carry(layer, params, x, *, key, train):
        assert layer.carry is not None
        try:
            return layer.carry(params, x, key=key, train=train)
        except KeyError as error:
            mend = "run the cell by fnn.rnn, or give it a carry: the state holds the frozen params"
            raise errors.ParamsError(
                "the frozen params of a first carry", f"no {error}", mend
            ) from None

    return wrap(layer, apply, declare=declare, carry=layer.carry and carry)


def _last(state: Tree) -> str | None:
    """The name of the params that were frozen last."""
    return max((name for name in state if is_under(FROZEN, name)), key=len, default=None)


@dataclass(frozen=True)
class Part:
    """`fn`, but only the leaves at some paths of its result; hashable."""

    fn: Callable
    paths: frozenset[str]

    def __call__(self, *values: Any) -> Tree:
        def keep(tree, path=""):
            if not isinstance(tree, Mapping):
                return tree if path in self.paths else None
            below = {k: keep(v, f"{path}/{k}" if path else k) for k, v in tree.items()}
            return {k: v for k, v in below.items() if v is not None and not is_empty(v)}

        return keep(self.fn(*values))


def _split(specs: Tree, chosen: Callable[[str, str], bool], path: str = "") -> tuple[Tree, Tree]:
    """(The declarations not chosen, those chosen), without empty dicts."""
    if isinstance(specs, Mapping):
        parts = {
            name: _split(node, chosen, f"{path}/{name}" if path else name)
            for name, node in specs.items()
        }
        return tuple(  # type: ignore[return-value]
            {name: part[i] for name, part in parts.items() if not is_empty(part[i])} for i in (0, 1)
        )
    found = jax.tree_util.tree_flatten_with_path(declared(specs))[0]
    paths: tuple[set[str], set[str]] = (set(), set())
    for keys, param in found:
        own = errors.path_of(keys)
        full = "/".join(filter(None, (path, own)))
        paths[chosen(full, param.kind)].add(own)
    if not paths[0] or not paths[1]:
        return ({}, specs) if paths[1] else (specs, {})
    assert isinstance(specs, Derived)
    halves = [replace(specs, fn=Part(specs.fn, frozenset(own))) for own in paths]
    return halves[0], halves[1]


def _check_found(specs: Tree, patterns: tuple[str, ...], kinds: tuple[str, ...]) -> None:
    leaves = jax.tree_util.tree_flatten_with_path(specs)[0]
    paths = {errors.path_of(keys): param.kind for keys, param in leaves}
    for pattern in patterns:
        if not any(fnmatchcase(path, pattern) for path in paths):
            raise errors.OptionError(
                f"patterns of params, among {errors.names(paths)}",
                pattern,
                "see fnn.analysis.summary",
            )
    for kind in kinds:
        if kind not in paths.values():
            known = errors.names(sorted(set(paths.values())))
            raise errors.OptionError(f"kinds of params, among {known}", kind, "see fnn.Param")


def joined(params: Tree, held: Tree) -> Tree:
    """All params of a layer, or their declarations: those that learn and those that are held."""
    if is_empty(held):
        return params
    if is_empty(params):
        return held
    if isinstance(params, Derived) or isinstance(held, Derived):
        both = [_unparted(getattr(half, "fn", None)) for half in (params, held)]
        if both[0] is None or both[0] != both[1]:
            raise errors.ParamsError(
                "frozen params outside of reparametrized ones, to be merged",
                "a reparametrization around them, as fnn.lora(fnn.frozen(layer))",
                "freeze the reparametrized layer, as fnn.frozen(fnn.lora(layer), pattern)",
            )
        return replace(params, fn=both[0])
    if not isinstance(params, Mapping) or not isinstance(held, Mapping):
        raise errors.ParamsError(
            "params without those that are frozen", errors.show(params), "leave them in the state"
        )
    both = {**held, **params}
    for name in params:
        if name in held:
            with errors.at(name):
                both[name] = joined(params[name], held[name])
    return both


def _unparted(fn: Any) -> Any:
    """The function that a `Part`, or a `Part` of one, was made of, also within a stack's."""
    if isinstance(fn, Part):
        return _unparted(fn.fn)
    return replace(fn, fn=_unparted(fn.fn)) if hasattr(fn, "fn") else fn


def held_in(state: Tree) -> Tree:
    """All frozen params of a state, or their declarations, at their paths as params."""
    found: Tree = {}
    for name, below in state.items() if isinstance(state, Mapping) else ():
        part = below if is_under(FROZEN, name) else held_in(below)
        if not is_empty(part):
            found = joined(found, part if is_under(FROZEN, name) else {name: part})
    return found
