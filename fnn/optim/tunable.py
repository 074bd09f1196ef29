"""Hyperparameters in the optimizer's state, to be read, replaced and scheduled."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from fnn.core import errors, trees
from fnn.core.origins import Origin
from fnn.core.types import Tree
from fnn.optim.arithmetic import increment
from fnn.optim.schedules.curves import real, widest_float
from fnn.optim.transform import Transform, check_state, check_transform, taking_extra


class TunableState(NamedTuple):
    """The number of updates, the hyperparameters by name, and the state of the optimizer."""

    count: jax.Array
    hyperparams: dict[str, jax.Array]
    inner_state: Tree


@errors.named
def tunable(build: Callable[..., Transform], static: tuple[str, ...] = ()) -> Callable:
    """The builder `build`, whose transform keeps its numeric hyperparameters in its state.

        tx = tunable(adam)(learning_rate=1e-3)
        opt_state.hyperparams["learning_rate"]                                 # read
        opt_state._replace(hyperparams={**opt_state.hyperparams, "b1": 0.8})   # replaced

    Another value compiles nothing, `vmap` over a stacked state trains a population, and the
    gradient with respect to the state includes that of every hyperparameter. Updates equal those of
    `build`.

    - `build`: a builder of a transform; `tunable(build)` takes the same arguments. Each number,
      defaults included, becomes a scalar in the widest enabled float, under its name. A function
      from a count to a number is a schedule: every update overwrites its value. Everything else is
      left alone: bools, None, strings, masks, and whole numbers that `build` takes only as Python
      ints, since they shape the program.
    - `static`: names of arguments to leave alone.

    Raises OptionError for arguments that `build` does not have or refuses, ParamsError for a state
    whose hyperparameters have other names or are not scalars.

    >>> from fnn.optim import sgd
    >>> tx, g = tunable(sgd)(learning_rate=0.1), jnp.ones(1)
    >>> opt_state = tx.init(g)
    >>> opt_state = opt_state._replace(hyperparams={"learning_rate": 0.5})
    >>> print(tx.update(g, opt_state)[0])
    [-0.5]
    """
    if isinstance(build, tuple) or not callable(build):
        raise errors.OptionError(
            "a builder of a transform",
            errors.show(build),
            "pass the builder, then its arguments: tunable(adam)(1e-3)",
        )
    signature = inspect.signature(build)
    static = (static,) if isinstance(static, str) else tuple(static)
    _check_names(static, signature)

    @errors.named
    @functools.wraps(build)
    def tuned(*args, **kwargs) -> Transform:
        given = _bind(signature, args, kwargs)
        free = {name: value for name, value in given.items() if name not in static}
        schedules = {name: value for name, value in free.items() if _is_schedule(value)}

        def build_with(hyperparams):
            bound = inspect.BoundArguments(signature, {**given, **hyperparams})
            tx = build(*bound.args, **bound.kwargs)
            check_transform(tx)
            return tx

        def scheduled(count):
            return {name: real(schedule(count)) for name, schedule in schedules.items()}

        at_first = scheduled(0)
        build_with(at_first)  # raises what `build` raises
        numbers = {
            name: value
            for name, value in free.items()
            if _is_number(value) and _takes_traced(build_with, name, at_first)
        }

        def init(params):
            count = jnp.zeros((), jnp.int32)
            hyperparams = {**jax.tree.map(real, numbers), **scheduled(count)}
            hyperparams = jax.tree.map(jnp.array, hyperparams)  # copies: they may be donated
            return TunableState(count, hyperparams, build_with(hyperparams).init(params))

        def update(grads, opt_state, params=None, **extra):
            check_state(opt_state, TunableState)
            count, hyperparams, inner = opt_state
            _check_hyperparams(hyperparams, {**numbers, **schedules})
            hyperparams = {**jax.tree.map(real, hyperparams), **scheduled(count)}
            inner_update = taking_extra(build_with(hyperparams).update)
            updates, inner = inner_update(grads, inner, params, **extra)
            return updates, TunableState(increment(count), hyperparams, inner)

        return Transform(init, update).with_origin(Origin(_tuned, (build, static, args, kwargs)))

    vars(tuned)["_is_builder"] = True
    return tuned


def _tuned(build: Callable[..., Transform], static: tuple, args: tuple, kwargs: dict) -> Transform:
    return tunable(build, static)(*args, **kwargs)


def _is_number(value: Any) -> bool:
    if isinstance(value, (jax.Array, np.ndarray, np.generic)):
        kinds = np.floating, np.integer
        return value.shape == () and any(jnp.issubdtype(value.dtype, kind) for kind in kinds)
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_schedule(value: Any) -> bool:
    """Whether it is a function from a count to a number, unlike a mask or a dtype."""
    if isinstance(value, type) or not callable(value):
        return False
    try:
        out = jax.eval_shape(lambda count: jnp.asarray(value(count)), _SCALAR(jnp.int32))
    except Exception:  # a function of something else may raise anything
        return False
    return out.shape == () and out.dtype != jnp.bool_


def _takes_traced(build_with: Callable, name: str, others: dict) -> bool:
    """Whether an argument may be a traced number: all but those that shape the program may."""
    try:
        jax.eval_shape(
            lambda value: build_with({**others, name: value}) and None, _SCALAR(widest_float())
        )
    except Exception:  # any builder's; it accepted the plain number before
        return False
    return True


_SCALAR = functools.partial(jax.ShapeDtypeStruct, ())


# --- checks -------------------------------------------------------------------------------------


def _check_names(static: tuple[str, ...], signature: inspect.Signature) -> None:
    if unknown := [name for name in static if name not in signature.parameters]:
        known = errors.names(signature.parameters)
        raise errors.OptionError(
            f"static to name arguments, {known}", errors.names(unknown), "leave it out"
        )


def _bind(signature: inspect.Signature, args: tuple, kwargs: dict) -> dict[str, Any]:
    """The arguments by name, defaults included."""
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        known = errors.names(signature.parameters)
        raise errors.OptionError(
            f"the arguments {known}", str(error), "call it as the builder itself"
        ) from None
    bound.apply_defaults()
    return dict(bound.arguments)


def _check_hyperparams(hyperparams: Any, known: dict) -> None:
    trees.check_names("hyperparams", hyperparams, known, known)
    for name, value in hyperparams.items():
        if not _is_number(value):
            raise errors.ParamsError(
                f"{name}, one number", errors.show(value), "for many, jax.vmap over the state"
            )
