"""Notes: scalars, such as auxiliary losses, passed from inside a network to the training loop.

A body writes `f.note("balance", value)`. State is the only side channel of a layer, so notes are
part of the state, under a name that no layer can have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase

import jax
import jax.numpy as jnp

from fnn.core.reserved import NOTES, map_under
from fnn.core.types import Tree


def notes(state: Tree, *patterns: str) -> dict[str, jax.Array]:
    """The notes of the last training call, `{path: scalar}`, read from the state it returned.

    A path consists of the layer's path and the note's name: "blocks/router/balance". Notes are
    summed over the members of `repeat` and `ensemble`, the steps of `rnn`, and repeated calls of a
    layer. They are differentiable, like any output. Evaluation leaves them unchanged.

    - `patterns`: globs of the paths to keep, such as "*/balance"; none keeps all.

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
    found = dict(_collect(state))
    if not patterns:
        return found
    return {
        path: value
        for path, value in found.items()
        if any(fnmatchcase(path, pattern) for pattern in patterns)
    }


def _collect(tree: Tree, path: str = "") -> Iterator[tuple[str, jax.Array]]:
    if not isinstance(tree, Mapping):
        return
    for name, value in tree.items():
        if name == NOTES:
            for own, note in value.items():
                yield (f"{path}/{own}" if path else own), jnp.sum(note)
        else:
            yield from _collect(value, f"{path}/{name}" if path else name)


def no_notes(state: Tree) -> Tree:
    """The state with all notes set to zero."""
    return map_under(NOTES, lambda note: jax.tree.map(jnp.zeros_like, note), state)


def add_notes(before: Tree, after: Tree) -> Tree:
    """The state `after` a call, with the notes in `before` added to its own."""
    return map_under(NOTES, lambda a, b: jax.tree.map(jnp.add, a, b), after, before)
