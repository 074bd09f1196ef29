"""A carry kept in the state, from one call to the next."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.core
import jax.numpy as jnp

from fnn.core import errors
from fnn.core.declarations import Param
from fnn.core.shapes import struct
from fnn.core.types import Tree
from fnn.initializers import zeros

# --- a carry in the state

SEQUENCE = "sequence"  # its name in the state, beside the cell's own


def forget(state: Tree) -> Tree:
    """The state with which all stateful layers of a network start from their first carries again.

    >>> import jax, jax.numpy as jnp, fnn
    >>> net = fnn.serial(fnn.rnn(fnn.cells.gru(3), stateful=True))
    >>> params, state = net.init(jax.random.key(0), (2, 5, 4))
    >>> _, state = net.apply(params, state, jnp.ones((2, 5, 4)))
    >>> print(state["rnn1"]["sequence"]["started"])
    True
    >>> print(forget(state)["rnn1"]["sequence"]["started"])
    False
    """
    if not isinstance(state, Mapping):
        return state
    fresh = {name: forget(value) for name, value in state.items()}
    if isinstance(kept := fresh.get(SEQUENCE), dict) and "started" in kept:
        fresh[SEQUENCE] = {**kept, "started": jnp.zeros_like(kept["started"])}
    return fresh


def kept_in_state(carry: Tree) -> dict[str, Param]:
    """The declaration of a carry kept in the state, its arrays numbered."""
    arrays = [Param(tuple(a.shape), zeros, a.dtype, "carry") for a in jax.tree.leaves(carry)]
    return _numbered(Param((), zeros, jnp.bool_, "carry"), arrays)


def apart(state: Tree, first: Tree) -> tuple[dict, Tree]:
    """The cell's own state, and the carry kept beside it: the first one, if there is none yet."""
    arrays = [struct(a) for a in jax.tree.leaves(first)]
    wanted = _numbered(jax.ShapeDtypeStruct((), jnp.bool_), arrays)
    kept = state.get(SEQUENCE)
    if jax.tree.map(struct, kept) != wanted:
        raise errors.ParamsError(
            f"state with {SEQUENCE} {errors.show(wanted)}",
            "none" if kept is None else f"{SEQUENCE} {errors.show(kept)}",
            "a stateful layer takes batches of one size: take the state from net.init for this one",
        )
    old = jax.tree.unflatten(jax.tree.structure(first), [kept[str(i)] for i in range(len(arrays))])
    carry = jax.tree.map(partial(jnp.where, kept["started"]), old, first)
    return {name: value for name, value in state.items() if name != SEQUENCE}, carry


def together(state: dict, carry: Tree) -> dict:
    """The cell's own state with the carry in it, through which no gradient flows to this call."""
    leaves = jax.lax.stop_gradient(jax.tree.leaves(carry))
    return {**state, SEQUENCE: _numbered(jnp.ones((), bool), leaves)}


def _numbered(started: Any, arrays: list[Any]) -> dict[str, Any]:
    return {"started": started} | {str(i): a for i, a in enumerate(arrays)}
