"""Names of parts: by kind and number where none is given, and the random keys folded from them."""

import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from fnn.core import errors
from fnn.core.types import Key


def numbered(kinds: Iterable[str], parts: Iterable, named: Mapping, what: str) -> dict[str, Any]:
    """Parts by name: those without one by kind and number from 1, then the named ones.

    >>> numbered(["flip", "rotate", "flip"], [10, 20, 30], {"noise": 40}, "layer")
    {'flip1': 10, 'rotate1': 20, 'flip2': 30, 'noise': 40}
    """
    counts: dict[str, int] = {}
    by_name: dict[str, Any] = {}
    for kind, part in zip(kinds, parts, strict=True):
        counts[kind] = counts.get(kind, 0) + 1
        name = f"{kind}{counts[kind]}"
        if name in by_name or name in named:
            raise errors.OptionError(f"one {what} of each name", f"two of {name}", "rename one")
        by_name[name] = part
    return by_name | dict(named)


def folded(key: Key, name: str) -> Key:
    """The key of a part: its draws depend on its name, and on no other part."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))
