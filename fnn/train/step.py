"""One training step, as a pure function of the training state and a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.core import Tracer

from fnn.core import checks, errors, trees
from fnn.core.agreement import Together
from fnn.core.declarations import arrays_of
from fnn.core.layer import Layer, declare_and_draw
from fnn.core.names import folded
from fnn.core.placement import Placement
from fnn.core.reserved import FROZEN, has
from fnn.core.shapes import as_struct, from_numpy, natives
from fnn.core.static import run_once_compiled
from fnn.core.types import Key, Scalar, Schedule, Tree
from fnn.optim.arithmetic import increment
from fnn.optim.clip import global_norm
from fnn.optim.schedule_free import check_rate, rate_at
from fnn.optim.stacked import check_stacks
from fnn.optim.transform import Transform, check_transform
from fnn.train.update import Trained, check_loss, update_of


class TrainState(NamedTuple):
    """All that a training run carries from step to step; a plain tree.

    - `step`: the number of steps taken, int32.
    - `params`, `state`: of the network.
    - `opt_state`: of the optimizer.
    - `key`: of the run; step n draws from the key folded with n, so the key itself never changes.

    `fnn.checkpoint` saves and restores it: a run that starts from it continues as if it had never
    stopped.
    """

    step: jax.Array
    params: Tree
    state: Tree
    opt_state: Tree
    key: Key


Step: TypeAlias = Callable[[TrainState, Tree], tuple[TrainState, Any]]


@errors.named
def init(
    net: Layer,
    tx: Transform,
    key: Key,
    *xs,
    params: Tree = None,
    state: Tree = None,
    shardings: Placement | None = None,
    **inputs,
) -> TrainState:
    """The training state before the first step, for inputs like `xs` (arrays or shapes).

    The params are those of `net.init(key, *xs)`; the run's own key is folded from the same key.

    - `params`, `state`: values to start from instead, or any part of them, such as the trained
      params of some layers, at their paths; the rest is drawn. Params of a network without `lora`,
      `frozen` and the like go through `fnn.unmerge` first.
    - `shardings`: from `fnn.sharding.plan`: every array is made where it is to be, and is nowhere
      whole; its values are the same to the last bit.

    Raises ParamsError for an entry that the network does not have, or has with another shape or
    dtype, and for an optimizer that depends on stacks of layers, such as those of `repeat`, but
    does not know the network's (see `fnn.optim.stacked`).

    >>> import fnn
    >>> ts = fnn.train.init(fnn.dense(3), fnn.optim.sgd(0.1), jax.random.key(0), (1, 4))
    >>> ts.step, ts.params["kernel"].shape
    (Array(0, dtype=int32), (4, 3))
    >>> net, tx = fnn.dense(3), fnn.optim.sgd(0.1)
    >>> trained = {"bias": jnp.ones(3)}
    >>> print(fnn.train.init(net, tx, jax.random.key(0), (1, 4), params=trained).params["bias"])
    [1. 1. 1.]
    """
    check_transform(tx)
    key = checks.typed_key(key)
    if shardings is not None:
        return _init_placed(shardings, key, (params, state), partial(_init, net, tx), xs, inputs)
    return _init(net, tx, key, (params, state), xs, inputs)


def _init(
    net: Layer,
    tx: Transform,
    key: Key,
    given: tuple,
    xs: tuple,
    inputs: dict,
    spread: Callable | None = None,
) -> TrainState:
    specs, first = declare_and_draw(net, key, xs, inputs, spread)
    check_stacks(tx, specs[0])
    try:
        params, state = (
            _given(what, drawn, {} if part is None else part)
            for what, drawn, part in zip(("params", "state"), first, given, strict=True)
        )
    except errors.ParamsError as error:
        if has(FROZEN, specs[1]):
            error.mend += "; what is frozen goes in by fnn.unmerge"
        raise
    opt_state = run_once_compiled(tx.init, params)
    run_key = folded(key, "train")
    return TrainState(jnp.zeros((), jnp.int32), params, state, opt_state, run_key)


def _init_placed(
    placed: Placement, key: Key, given: tuple, make: Callable, xs: tuple, inputs: dict
) -> TrainState:
    """The training state by one program, whose outputs are placed as they are made."""
    if not isinstance(key, Tracer):
        placed.check_here()
    structs = tuple(map(as_struct, xs)), {name: as_struct(x) for name, x in inputs.items()}

    def first(key, given):
        return make(key, given, *structs, placed.spread)

    placed.check(jax.eval_shape(first, key, given), placed.train_state)
    return jax.jit(first, out_shardings=placed.train_state)(key, given)


def _given(what: str, drawn: Tree, part: Tree) -> Tree:
    """The drawn tree, with the given part in place of its own."""
    if not isinstance(drawn, Mapping):
        part = from_numpy(part)
        trees.check_same(what, part, drawn)
        return part
    trees.check_names(what, part, drawn)
    out = dict(drawn)
    for name in part:
        with errors.at(name):
            out[name] = _given(name, drawn[name], part[name])
    return out


def shapes(net: Layer, tx: Transform, *xs) -> TrainState:
    """The training state of `init`, as `jax.ShapeDtypeStruct`s: nothing is drawn, however large.

    >>> import fnn
    >>> ts = shapes(fnn.dense(3), fnn.optim.adam(0.1), (1, 4))
    >>> ts.params["kernel"].shape, ts.opt_state[0].mu["kernel"].shape
    ((4, 3), (4, 3))
    """
    check_transform(tx)
    specs = net.specs(*xs)
    check_stacks(tx, specs[0])
    params, state = map(arrays_of, specs)
    key = jax.eval_shape(lambda: jax.random.key(0))
    step = jax.ShapeDtypeStruct((), jnp.int32)
    return TrainState._make((step, params, state, jax.eval_shape(tx.init, params), key))


def data_key(train_state: TrainState) -> Key:
    """The key from which the order of a run's data is drawn, a function of `train_state.key` alone.

    `fnn.data.stream(source, batch_size, data_key(train_state))` has the batches of
    `fit(step, train_state, arrays, batch_size=batch_size, ...)`.

    >>> import fnn
    >>> ts = fnn.train.init(fnn.dense(3), fnn.optim.sgd(0.1), jax.random.key(0), (1, 4))
    >>> print(next(fnn.data.stream(jnp.arange(6), 3, data_key(ts))(epoch=0)))
    [3 2 5]
    """
    return folded(checks.typed_key(train_state.key), "data")


def check_train_state(train_state: Any) -> None:
    if not isinstance(train_state, TrainState):
        raise errors.InputError(
            "a TrainState", errors.show(train_state), "make one: fnn.train.init(net, tx, key, x)"
        )


def step(
    loss_fn: Callable,
    tx: Transform,
    *,
    grad: Callable = jax.value_and_grad,
    learning_rate: Scalar | Schedule | None = None,
    grad_norm: bool = False,
    donate: bool = False,
    shardings: Placement | None = None,
) -> Step:
    """A pure, jitted training step: `(train_state, batch) -> (train_state, metrics)`.

        (loss, (state, metrics)), g = value_and_grad(loss_fn)(params, state, batch, key)
        updates, opt_state = tx.update(g, opt_state, params, value=loss, grad=g, value_fn=...)
        params = params + updates

    - `loss_fn(params, state, batch, key) -> (loss, (state, metrics))`: your own function; the loss
      is a scalar, metrics a dict of arrays, batch any tree. Return a masked or weighted mean as
      `fnn.losses.mean(losses, mask)`, among the metrics too: it carries its weight, so that
      `optim.accumulate` gives the result of the whole batch.
    - `tx`: the optimizer; `value_fn(params)` gives it the loss of this batch at other params.
    - `grad`: how to differentiate, called as `grad(fn, has_aux=True)(params, batch, key)`:
      `jax.value_and_grad`, or `partial(fnn.optim.accumulate, k=4)`, `fnn.optim.sam` or the like.
    - `learning_rate`: the number or schedule that `tx` was built with; adds its value at this step
      to the metrics.
    - `grad_norm`: whether to add the global norm of the gradient to the metrics.
    - `donate`: whether a call may write the new training state into the memory of the given one,
      which then no longer exists: less memory and time. `fnn.train.fit` does so by itself, on a
      copy of its own. All arrays of the state must be distinct, as those of `fnn.train.init` are.
    - `shardings`: from `fnn.sharding.plan`: the training state stays where it was planned to be,
      and every device gets its own part of each batch, in `fit` and `run` too.

    A step that `fnn.optim.skip_nonfinite` skips leaves params, state and opt_state bitwise
    unchanged, counters aside. The returned metrics are loss_fn's, `loss`, and those asked for.
    The step works under `jax.vmap` over stacked training states (an ensemble, trained at once) and
    inside `jax.lax.scan`.
    Raises ShapeError if the loss is not a scalar, ParamsError if the state comes back with another
    structure or metrics has its own `loss`.

    >>> import fnn
    >>> net, tx = fnn.serial(fnn.dense(1), fnn.dropout(0.1)), fnn.optim.sgd(0.1)
    >>> def loss_fn(params, state, batch, key):
    ...     x, y = batch
    ...     outputs, state = net.apply(params, state, x, key=key, train=True)
    ...     return jnp.mean((outputs - y) ** 2), (state, {})
    >>> ts = fnn.train.init(net, tx, jax.random.key(0), (1, 4))
    >>> ts, metrics = fnn.train.step(loss_fn, tx)(ts, (jnp.ones((2, 4)), jnp.ones((2, 1))))
    >>> sorted(metrics), int(ts.step)
    (['loss'], 1)
    """
    check_loss(loss_fn)
    update = update_of(tx, grad)
    if learning_rate is not None:
        check_rate(learning_rate)

    def train_step(train_state, batch):
        key = jax.random.fold_in(train_state.key, train_state.step)
        before = Trained(train_state.params, train_state.state, train_state.opt_state)
        after, seen = update(loss_fn, before, batch, key)
        asked = {}
        if learning_rate is not None:
            asked["learning_rate"] = rate_at(learning_rate, train_state.step, float)
        if grad_norm:
            asked["grad_norm"] = global_norm(seen.grads)
        new = TrainState(increment(train_state.step), *after, train_state.key)
        return new, seen.reported(asked)

    placed = train_step if shardings is None else _placed(train_step, shardings)
    made = with_donating(partial(jit_step, placed, placement=shardings), donate)
    vars(made)["network"] = getattr(loss_fn, "network", None)
    return made


def _placed(step: Step, shardings: Placement) -> Step:
    """The same step, whose state and batch are where they were planned to be."""

    def train_step(train_state, batch):
        start = shardings.constrain(train_state), shardings.constrain_batch(batch)
        new, metrics = step(*start)
        if jax.process_count() > 1:  # each has the values of all
            metrics = jax.lax.with_sharding_constraint(metrics, shardings.whole)
        return shardings.constrain(new), metrics

    return train_step


def with_donating(make: Callable[[bool], Step], donate: bool = False) -> Step:
    """A step that knows the one that donates its state, for loops that own theirs."""
    donating = make(True)
    step = donating if donate else make(False)
    vars(step)["donating"] = step, donating
    return step


def donating(step: Step) -> Step:
    """The step that donates its state, of a step from this library; any other step itself.

    `functools.wraps`, which `jax.vmap` and users' wrappers call, copies attributes: they are those
    of another step then.
    """
    owner, own = getattr(step, "donating", (None, step))
    return own if owner is step else step


def placement_of(step: Step) -> Placement | None:
    """Where a step from this library keeps its training state; None of any other step."""
    owner, placement = getattr(step, "placement", (None, None))
    return placement if owner is step else None


def jit_step(step: Step, donate: bool = False, placement: Placement | None = None) -> Step:
    """`jax.jit` of a step, which takes NumPy's arrays too; they go to the devices of a placement.

    The run's key never changes: it is neither donated nor returned through jit, which is slow for
    typed keys, and slower for a named tuple than for a tuple.
    """

    @partial(jax.jit, donate_argnums=(0,) if donate else ())
    def program(moving, key, batch):
        try:
            (*moved, _), metrics = step(TrainState._make((*moving, key)), batch)
        except Exception as error:
            checks.automatic_axes(error, moving, batch)
            raise
        return tuple(moved), metrics

    together = Together()

    def train_step(train_state: TrainState, batch: Tree) -> tuple[TrainState, Any]:
        check_train_state(train_state)
        batch = natives(batch, "batch")
        together.check_shapes(batch, train_state)
        if placement is not None:
            batch = placement.put(batch)
        *moving, key = train_state
        lower = partial(program.lower, tuple(moving), key, batch)
        together.check_first(train_state, batch, lower)
        try:
            moved, metrics = program(tuple(moving), key, batch)
        except (RuntimeError, ValueError) as error:
            _check_not_donated(train_state, error)
            raise
        return TrainState._make((*moved, key)), metrics

    vars(train_step)["placement"] = train_step, placement
    return train_step


def _check_not_donated(train_state: TrainState, error: Exception) -> None:
    """Say of a deleted array who deleted it."""
    leaves = jax.tree_util.tree_leaves_with_path(train_state)
    gone = [path for path, leaf in leaves if _is_deleted(leaf)]
    if gone:
        raise errors.InputError(
            "a training state that exists",
            f"one that an earlier step with donate=True has used up ({errors.path_of(gone[0])})",
            "go on from the state that the step returned, or copy first: "
            "jax.tree.map(jnp.copy, train_state)",
        ) from error


def _is_deleted(leaf: Any) -> bool:
    concrete = isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer)
    return concrete and leaf.is_deleted()
