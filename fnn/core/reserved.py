"""Reserved names in a state, which no layer can have.

The state of one layer may hold several trees of a kind: "(frozen)", "(frozen)'" and so on.
"""

from collections.abc import Callable, Mapping

from fnn.core.types import Tree

FROZEN = "(frozen)"  # params that are not trained
NOTES = "(notes)"  # scalars for the training loop


def is_under(reserved: str, name: str) -> bool:
    """Whether a name in a state is this reserved one."""
    return name.rstrip("'") == reserved


def has(reserved: str, state: Tree) -> bool:
    """Whether a state contains the reserved name."""
    return isinstance(state, Mapping) and any(
        is_under(reserved, name) or has(reserved, below) for name, below in state.items()
    )


def map_under(reserved: str, fn: Callable, state: Tree, *others: Tree) -> Tree:
    """The state with `fn` applied to all trees under the name, in it and in others like it."""
    if not has(reserved, state):
        return state

    def at(name):
        row = state[name], *(other[name] for other in others)
        return fn(*row) if is_under(reserved, name) else map_under(reserved, fn, *row)

    return {name: at(name) for name in state}


def without(reserved: str, state: Tree) -> Tree:
    """The state without the trees under the name, and without dicts that this empties."""
    if not has(reserved, state):
        return state
    kept = without_here(reserved, state)
    clean = {name: without(reserved, below) for name, below in kept.items()}
    return {name: below for name, below in clean.items() if not is_empty(below)}


def without_here(reserved: str, state: Tree) -> Tree:
    """The state of one layer without its own tree under the name; those further down stay."""
    return {name: below for name, below in state.items() if not is_under(reserved, name)}


def is_empty(tree: Tree) -> bool:
    """Whether a tree is {}."""
    return isinstance(tree, Mapping) and not tree
