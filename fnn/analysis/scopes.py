"""Where an operation stands in a network, read from the names that JAX keeps with it.

Every layer runs under `jax.named_scope` of its name, so operations carry names such as
"blocks/attention/q", in a jaxpr as in a compiled program. Derivatives wrap them:
"transpose(jvp(blocks))/attention/q" is the backward pass of the same layer.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable
from typing import NamedTuple

_JIT = re.compile(r"\bp?jit\([^()]*\)")  # holds the name of a function, not of a scope
_TOKEN = re.compile(r"([^/()]+)(\()?")
_REMAT = ("checkpoint", "rematted_computation")


class Place(NamedTuple):
    """The names around an operation, and its part in a derivative.

    - `differentiated`: whether it belongs to a function that is differentiated.
    - `backward`: whether it belongs to the backward pass.
    """

    names: tuple[str, ...] = ()
    differentiated: bool = False
    backward: bool = False

    def inside(self, text: str) -> Place:
        """The place of an operation named `text`, relative to this one.

        >>> Place(("net",)).inside("transpose(jvp(a))/b")
        Place(names=('net', 'a', 'b'), differentiated=True, backward=True)
        """
        backward = self.backward or "transpose(" in text
        differentiated = self.differentiated or backward or "jvp(" in text
        return Place(self.names + _names(text), differentiated, backward)


def in_program(text: str, known: Container[tuple[str, ...]]) -> Place:
    """The place of an operation of a compiled program, from its `op_name`.

    There the names of loops and of the operation itself stand among those of the scopes, so only
    what leads on to a `known` path counts.

    >>> in_program("jit(f)/jvp(a)/while/body/b/dot_general", {("a",), ("a", "b")})
    Place(names=('a', 'b'), differentiated=True, backward=False)
    """
    place = Place().inside(text.rpartition("/")[0])
    names: tuple[str, ...] = ()
    for name in place.names:
        if (*names, name) in known:
            names = (*names, name)
    return place._replace(names=names)


def prefixes(places: Iterable[Place]) -> dict[tuple[str, ...], None]:
    """All paths of these places and all paths above them, in order."""
    paths = (place.names for place in places)
    return dict.fromkeys(names[:n] for names in paths for n in range(1, len(names) + 1))


def strays(places: Iterable[Place]) -> dict[tuple[str, ...], tuple[str, ...]]:
    """Where names belong that JAX writes otherwise when it differentiates.

    - What is the same in every step of a scan it moves out, and with it only the names inside: it
      belongs to the first path of the network that ends so.
    - The backward pass of a function under `jit` or `checkpoint` it names twice: a/b/a/b is a/b.
    """
    places = dict.fromkeys(places)
    forward = prefixes(place for place in places if not place.backward)
    whole = prefixes(place for place in places if place.differentiated)
    found = {}
    for names, differentiated, backward in places:
        if backward and names not in forward:
            found[names] = _once(names, forward)
        elif names and not differentiated and names not in whole:
            found[names] = next((path for path in whole if path[-len(names) :] == names), names)
    return found


def _once(names: tuple[str, ...], known: Container[tuple[str, ...]]) -> tuple[str, ...]:
    """The names with parts that stand twice in a row taken once, until the path is known."""
    shorter = (
        names[:i] + names[i + n :]
        for n in range(len(names) // 2, 0, -1)
        for i in range(len(names) - 2 * n + 1)
        if names[i : i + n] == names[i + n : i + 2 * n]
    )
    once = next(shorter, names)
    return once if once in known or once == names else _once(once, known)


def _names(text: str) -> tuple[str, ...]:
    found = _TOKEN.findall(_JIT.sub("", text))
    return tuple(
        name
        for name, opens in found
        if not opens and name not in _REMAT and "->" not in name  # einsum names its equation
    )
