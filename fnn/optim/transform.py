"""The contract of optimizers, chains of them, and transforms from one rule per leaf.

    tx.init(params) -> opt_state
    tx.update(grads, opt_state, params=None, **extra) -> (updates, opt_state)

Updates are added to the params. `extra` carries `value`, `grad` and `value_fn` for the transforms
that need them; the others ignore it. The protocol is optax's, so transforms of either library run
inside the other's `chain`. optax's chain passes `extra` only to its own type: wrap a transform that
needs it, as `optax.GradientTransformationExtraArgs(*tx)`.

The gradient of a complex parameter z = x + iy is dL/dx + i dL/dy, the direction of ascent, as in
optax: the conjugate of what `jax.grad` gives (`fnn.train.step` conjugates). Second moments are
those of |g|^2, and real.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fnn.core import checks, errors, trees
from fnn.core.dtypes import is_complex, real_part, wide, widened, widest
from fnn.core.origins import Origin, builder
from fnn.core.plain import built, plain
from fnn.core.types import Dtype, Scalar, Schedule, Tree
from fnn.optim.arithmetic import as_dtype, increment
from fnn.optim.members import each_member, is_stack, refuse_undeclared


class _Functions(NamedTuple):
    init: Callable[[Tree], Tree]
    update: Callable[..., tuple[Tree, Tree]]


class Transform(_Functions):
    """A pure gradient transformation: `init(params)` and `update(grads, opt_state, params)`.

    >>> double = Transform(lambda params: (), lambda g, s, p=None, **extra: (2 * g, s))
    >>> double.update(3.0, double.init(0.0))
    (6.0, ())

    A tuple of the two, whose `origin` is the call of the builder that made it, for pickle.
    """

    origin: Origin | None = None

    def with_origin(self, origin: Origin) -> Transform:
        made = Transform(*self)
        made.origin = origin
        return made

    def __repr__(self) -> str:
        return super().__repr__() if self.origin is None else str(self.origin)

    def __copy__(self) -> Transform:
        return self

    def __deepcopy__(self, memo) -> Transform:
        return self

    def __reduce_ex__(self, protocol):
        return built, (plain(self),)


class CountState(NamedTuple):
    """The number of updates made."""

    count: jax.Array


@builder
def chain(*transforms: Transform) -> Transform:
    """The transforms one after the other, each applied to the updates of the last.

    The state is the tuple of theirs. `extra` goes to those whose `update` takes it.

    >>> from fnn.optim import trace
    >>> tx = chain(trace(0.9), scale_by_learning_rate(0.1))
    >>> tx.update(jnp.ones(()), tx.init(jnp.ones(())))[0]
    Array(-0.1, dtype=float32)
    """
    for tx in transforms:
        check_transform(tx)
    updates = [taking_extra(tx.update) for tx in transforms]

    def init(params):
        return tuple(tx.init(params) for tx in transforms)

    def update(grads, opt_state, params=None, **extra):
        if len(opt_state) != len(transforms):
            raise errors.ParamsError(
                f"the states of {len(transforms)} transforms",
                f"{len(opt_state)}",
                "take opt_state from this transform's init",
            )
        states = []
        for one, state in zip(updates, opt_state, strict=True):
            grads, state = one(grads, state, params, **extra)
            states.append(state)
        return grads, tuple(states)

    return Transform(init, update)


@builder
def named_chain(**transforms: Transform) -> Transform:
    """`chain` of named transforms; the state is a dict of theirs, by name.

    >>> from fnn.optim import trace
    >>> tx = named_chain(momentum=trace(0.9), rate=scale_by_learning_rate(0.1))
    >>> sorted(tx.init(jnp.zeros(2)))
    ['momentum', 'rate']
    """
    inner = chain(*transforms.values())

    def init(params):
        return dict(zip(transforms, inner.init(params), strict=True))

    def update(grads, opt_state, params=None, **extra):
        if not isinstance(opt_state, dict) or set(opt_state) != set(transforms):
            raise errors.ParamsError(
                f"a dict of the states of {errors.names(transforms)}",
                errors.names(opt_state) if isinstance(opt_state, dict) else errors.show(opt_state),
                "take opt_state from this transform's init",
            )
        states = tuple(opt_state[name] for name in transforms)
        updates, states = inner.update(grads, states, params, **extra)
        return updates, dict(zip(transforms, states, strict=True))

    return Transform(init, update)


def check_transform(tx: Any) -> None:
    if not (callable(getattr(tx, "init", None)) and callable(getattr(tx, "update", None))):
        raise errors.OptionError(
            "a transform with init and update", errors.show(tx), "build it, as fnn.optim.adam(1e-3)"
        )


def taking_extra(update: Callable) -> Callable:
    """`update` if it takes `**extra`, else the same ignoring it."""
    inputs = inspect.signature(update).parameters.values()
    if any(p.kind == p.VAR_KEYWORD for p in inputs):
        return update
    return lambda grads, opt_state, params=None, **extra: update(grads, opt_state, params)


def apply_updates(params: Tree, updates: Tree) -> Tree:
    """params + updates, leaf by leaf, in the dtype of params.

    Raises ParamsError if the two trees or the shapes of their leaves differ, DtypeError for
    leaves that are not floating.

    >>> print(apply_updates({"w": jnp.ones(2)}, {"w": jnp.array([0.5, -0.5])})["w"])
    [1.5 0.5]
    """
    check_alike("updates", updates, "params", params)

    def add(p, u):
        p, u = jnp.asarray(p), jnp.asarray(u)
        dtype = widest(p.dtype, u.dtype)
        return (p.astype(dtype) + u.astype(dtype)).astype(p.dtype)

    return jax.tree.map(add, params, updates)


@builder
def scale_by_learning_rate(learning_rate: Scalar | Schedule) -> Transform:
    """updates = -learning_rate * updates: the sign turns ascent into descent.

    - `learning_rate`: a number, or a schedule, a function of the count of updates made before this
      one, from 0.

    >>> tx = scale_by_learning_rate(lambda count: 0.1 * (count + 1))
    >>> g = jnp.ones(1)
    >>> first, state = tx.update(g, tx.init(g))
    >>> second, state = tx.update(g, state)
    >>> print(first, second)
    [-0.1] [-0.2]
    """
    schedule = learning_rate if callable(learning_rate) else None
    if schedule is None:
        checks.number("learning_rate", learning_rate, float("-inf"), float("inf"))

    def init(params):
        return CountState(jnp.zeros((), jnp.int32)) if schedule else ()

    def update(grads, opt_state, params=None, **extra):
        rate: Any = schedule(opt_state.count) if schedule else learning_rate
        if jnp.shape(rate) != ():
            raise errors.ShapeError("a scalar learning rate", errors.show(rate), "pass one number")
        (updates,) = each_leaf(lambda p, g: (-as_dtype(rate, g.dtype) * g,), grads)
        return updates, CountState(increment(opt_state.count)) if schedule else opt_state

    return Transform(init, update)


# --- transforms from one rule for all leaves


def leafwise(
    state: Any,
    rule: Callable,
    start: Callable | None = None,
    *,
    whole: bool = False,
    outputs: bool = False,
) -> Transform:
    """The transform with one rule for all leaves: only the equations.

        u, *slots = rule(t, p, g, *slots)

    - `state`: a NamedTuple type with a field for each slot; its first field may be `count`.
    - `rule`: at update t = 1, 2, ... (None without a count), from the parameter p (None if `update`
      gets none), the gradient g and the slots: the update u and the new slots. All have one dtype,
      float32 or wider; for complex params, t and the slots that start real have its real dtype, and
      a rule that is not for complex numbers raises DtypeError.
    - `start(p)`: the first slots of a leaf, a tuple; None fills them with zeros like p.
    - `whole`: the rule depends on all of a leaf: its axes, its norm or another number of it. So
      layers stacked in one leaf need `stacked`, and the transform raises without it.
    - `outputs`: as `whole`, and the rule takes the last axis as the outputs'.

    u is cast to the gradient's dtype. Raises ParamsError if the trees or shapes of state, params or
    gradients differ, DtypeError for leaves that are not floating.

    >>> class MeanState(NamedTuple):
    ...     count: jax.Array
    ...     total: Any
    >>> mean = leafwise(MeanState, lambda t, p, g, total: ((total + g) / t, total + g))
    >>> opt_state = mean.init(jnp.zeros(2))
    >>> _, opt_state = mean.update(jnp.array([1.0, 2.0]), opt_state)
    >>> print(mean.update(jnp.array([3.0, 2.0]), opt_state)[0])
    [2. 2.]
    """
    if not hasattr(state, "_fields") or isinstance(state, tuple):
        got, mend = errors.show(state), "pass a NamedTuple class"
        raise errors.OptionError("a class as state of leafwise", got, mend)
    counts = "count" in state._fields
    n = len(state._fields) - (1 if counts else 0)
    fill = start or (lambda p: tuple(jnp.zeros_like(p) for _ in range(n)))  # for donation
    traced_once = jax.jit(rule)  # for all leaves of one shape
    minds = dict(whole=whole or outputs, outputs=outputs)

    def init(params):
        checks.floating_leaves("params", params, or_complex=True)
        refuse_undeclared(params, rule, **minds)
        leaves, treedef = jax.tree.flatten(params, is_leaf=is_stack)
        slots = [each_member(lambda p: fill(widened(p)), p) for p in leaves]
        slots = _columns(treedef, slots, n)
        return state(jnp.zeros((), jnp.int32), *slots) if counts else state(*slots)

    def update(grads, opt_state, params=None, **extra):
        check_state(opt_state, state)
        slots = opt_state[1:] if counts else tuple(opt_state)
        _check_slots(grads, slots, fill)
        t = increment(opt_state[0]) if counts else None
        times = functools.cache(lambda dtype: None if t is None else t.astype(dtype))

        def counted(p, g, *slots):
            row = traced_once(times(real_part(g.dtype)), p, g, *slots)
            if not isinstance(row, tuple) or len(row) != 1 + n:
                wanted = ", ".join(["u", *(f for f in state._fields if f != "count")])
                checks.not_a_pair("rule", f"({wanted})" if n else "(u,)", row)
            return row

        updates, *slots = each_leaf(counted, grads, params, slots)
        return updates, state(t, *slots) if counts else state(*slots)

    return Transform(init, update)


def stateless(rule: Callable, *, whole: bool = False, outputs: bool = False) -> Transform:
    """The transform u = rule(p, g) at every leaf, with the dtypes and options of `leafwise`.

    >>> tx = stateless(lambda p, g: 2 * g)
    >>> print(tx.update(jnp.ones(2), tx.init(jnp.ones(2)))[0])
    [2. 2.]
    """

    def update(grads, opt_state, params=None, **extra):
        refuse_undeclared(grads, rule, whole or outputs, outputs)
        (updates,) = each_leaf(lambda p, g: (rule(p, g),), grads, params)
        return updates, opt_state

    return Transform(lambda params: (), update)


def each_leaf(
    rule: Callable, grads: Tree, params: Tree = None, slots: Iterable = (), *, stacks: bool = True
) -> list[Tree]:
    """`u, *slots = rule(p, g, *slots)` at every leaf, in its widest dtype; the trees of them.

    For a leaf that is a stack, at every member, or with `stacks=False` at its whole array.
    """
    checks.floating_leaves("grads", grads, or_complex=True)
    if params is not None:
        check_alike("grads", grads, "params", params)
    leaves, treedef = jax.tree.flatten(grads, is_leaf=is_stack if stacks else None)
    of_slots = [treedef.flatten_up_to(slot) for slot in slots]
    of_params = [None] * len(leaves) if params is None else treedef.flatten_up_to(params)

    def at(g, p, *row):
        g = jnp.asarray(g)
        dtype = functools.reduce(
            widest, map(jnp.result_type, jax.tree.leaves((p, row))), wide(g.dtype)
        )

        def cast(a):  # a second moment stays real
            return a.astype(dtype if is_complex(a.dtype) else real_part(dtype))

        p, *row = jax.tree.map(cast, (p, *row))
        u, *row = rule(p, g.astype(dtype), *row)
        return u.astype(g.dtype), *row

    rows = [each_member(at, *row) for row in zip(leaves, of_params, *of_slots, strict=True)]
    return _columns(treedef, rows, 1 + len(of_slots))


def _columns(treedef: Any, rows: list, n: int) -> list[Tree]:
    """The n trees whose leaves are the columns of the rows."""
    columns = zip(*rows, strict=True) if rows else [()] * n
    return [jax.tree.unflatten(treedef, column) for column in columns]


def kept_in(name: str, dtype: Dtype) -> Callable[[jax.Array], jax.Array]:
    """The cast of a slot of a `leafwise` rule to the dtype of the state; None does not cast.

    Raises OptionError for what is no dtype; the cast raises DtypeError if only one is complex.
    """
    if dtype is None:
        return lambda a: a
    if dtype not in (jnp.complex64, jnp.complex128, "complex64", "complex128"):
        checks.floating(name, dtype)
    dtype = jnp.dtype(dtype)

    def cast(a):
        if jnp.iscomplexobj(a) != is_complex(dtype):
            whose = "complex" if jnp.iscomplexobj(a) else "real"
            raise errors.DtypeError(
                f"a {whose} {name} for {whose} params", dtype.name, f"leave out {name}"
            )
        return a.astype(dtype)

    return cast


# --- checks


def zeros_like(params: Tree, or_complex: bool = False) -> Tree:
    """Zeros like params, in float32 or wider and with their sharding: the first moments."""
    checks.floating_leaves("params", params, or_complex=or_complex)
    return jax.tree.map(lambda p: jnp.zeros_like(p, wide(jnp.result_type(p))), params)


def check_state(opt_state: Tree, kind: type) -> None:
    if not isinstance(opt_state, kind):
        raise errors.ParamsError(
            f"the optimizer's state, a {kind.__name__}",
            errors.show(opt_state),
            "take it from tx.init(params), or from the last update",
        )


def need_params(params: Tree) -> None:
    if params is None:
        raise errors.ParamsError(
            "params, which this transform reads",
            "params=None",
            "pass them, as tx.update(grads, opt_state, params)",
        )


def check_alike(what: str, tree: Tree, other: str, like: Tree) -> None:
    """Refuse a tree whose leaves are not floating, or not like those of another tree."""
    checks.floating_leaves(what, tree, or_complex=True)
    trees.alike(what, tree, other, like, any_dtype=True)


def _check_slots(grads: Tree, slots: tuple, fill: Callable) -> None:
    """Refuse a state whose slots are not like those that `fill` makes for these gradients."""
    checks.floating_leaves("grads", grads, or_complex=True)
    leaves, treedef = jax.tree.flatten(grads, is_leaf=is_stack)
    structs = [jax.tree.map(_wide_struct, g) for g in leaves]
    shapes = {g: jax.eval_shape(lambda g: each_member(fill, g), g) for g in set(structs)}
    wanted = _columns(treedef, [shapes[g] for g in structs], len(slots))
    mend = "take opt_state from init(params), of the params of these grads"
    for slot, like in zip(slots, wanted, strict=True):
        what, other = "the optimizer's state", "a new one for these grads"
        trees.alike(what, slot, other, like, mend, any_dtype=True)


def _wide_struct(g: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(g), wide(jnp.result_type(g)))
