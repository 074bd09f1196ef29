"""Notes: what a body inside a network hands to whoever trains it, as an auxiliary loss.

A body writes `f.note("balance", value)`. State is the one side channel of a layer, so a note stands
in the state, under a name that no layer can have, beside the states of the body's sublayers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fnn.core.reserved import NOTES, map_under


def notes(state: Any, *patterns: str) -> dict[str, jax.Array]:
    """The notes of the last training call, `{path: scalar}`, from the state that it returned.

    The path is the layer's and the note's own name, as "blocks/router/balance". Members of `repeat`
    and `ensemble`, the steps of `rnn`, and the calls of a layer that is called more than once are
    summed. They are differentiable like any output; evaluation leaves the state, and so its notes,
    as they were.

    - `patterns`: globs of the paths to keep, as "*/balance"; all without any.

    >>> import fnn, jax, jax.numpy as jnp
    >>> @fnn.compose(dense=fnn.dense(3))
    ... def layer(f, x):
    ...     y = f.dense(x)
    ...     f.note("size", jnp.mean(y**2))
    ...     return y
    >>> net = fnn.serial(layer)
    >>> params, state = net.init(jax.random.key(0), (1, 4))
    >>> y, state = net.apply(params, state, jnp.ones((2, 4)), train=True)
    >>> {path: value.shape for path, value in notes(state).items()}
    {'layer1/size': ()}
    """
    from fnmatch import fnmatchcase

    found = dict(_collect(state))
    if not patterns:
        return found
    return {
        path: value
        for path, value in found.items()
        if any(fnmatchcase(path, pattern) for pattern in patterns)
    }


def _collect(tree: Any, path: str = "") -> Iterator[tuple[str, jax.Array]]:
    if not isinstance(tree, Mapping):
        return
    for name, value in tree.items():
        if name == NOTES:
            for own, note in value.items():
                yield (f"{path}/{own}" if path else own), jnp.sum(note)
        else:
            yield from _collect(value, f"{path}/{name}" if path else name)


def no_notes(state: Any) -> Any:
    """The state with all its notes at zero."""
    return map_under(NOTES, lambda note: jax.tree.map(jnp.zeros_like, note), state)


def add_notes(before: Any, after: Any) -> Any:
    """The state `after` a call, with the notes of `before` added to its own."""
    return map_under(NOTES, lambda a, b: jax.tree.map(jnp.add, a, b), after, before)
