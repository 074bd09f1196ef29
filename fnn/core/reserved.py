"""Names that no layer can have, under which a state holds what is none of the layers' own.

Under each the state of a layer may hold several trees: "(frozen)", "(frozen)'" and so on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

FROZEN = "(frozen)"  # params that do not learn, at their paths below it
NOTES = "(notes)"  # what a body hands to whoever trains the network


def is_under(reserved: str, name: str) -> bool:
    """Whether a name in a state is the reserved one."""
    return name.rstrip("'") == reserved


def has(reserved: str, state: Any) -> bool:
    """Whether a state has the name anywhere."""
    return isinstance(state, Mapping) and any(
        is_under(reserved, name) or has(reserved, below) for name, below in state.items()
    )


def map_under(reserved: str, fn: Callable, state: Any, *others: Any) -> Any:
    """The state with `fn` of what stands under the name, there and in states like it."""
    if not has(reserved, state):
        return state

    def at(name):
        row = state[name], *(other[name] for other in others)
        return fn(*row) if is_under(reserved, name) else map_under(reserved, fn, *row)

    return {name: at(name) for name in state}


def without(reserved: str, state: Any) -> Any:
    """The state without what stands under the name, and without what is empty then."""
    if not has(reserved, state):
        return state
    kept = {name: below for name, below in state.items() if not is_under(reserved, name)}
    clean = {name: without(reserved, below) for name, below in kept.items()}
    return {name: below for name, below in clean.items() if not is_empty(below)}


def is_empty(tree: Any) -> bool:
    """Whether it is a tree without anything: {}."""
    return isinstance(tree, Mapping) and not tree
