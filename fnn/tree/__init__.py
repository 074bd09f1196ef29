"""Names, selection and surgery of parameter trees.

A leaf's path is the names on the way to it, joined by "/": "block/conv1/kernel". Patterns select
leaves: they are shell globs over whole paths, in which `*` matches any characters, "/" included,
`?` one, `[ab]` one of these. So "*/kernel" is every kernel below the top, at any depth, "block/*"
everything in block, and "*" all. A pattern that matches no leaf raises.

Every function is pure and works on tracers; leaves that are not selected stay unchanged.
"""

from fnn.tree.comparison import Difference, Differences, compare
from fnn.tree.paths import from_paths, paths, to_paths
from fnn.tree.selection import count, mask, merge, nbytes, select, split, stop_gradient
from fnn.tree.surgery import update

__all__ = [
    "Difference", "Differences", "compare", "count", "from_paths", "mask", "merge", "nbytes",
    "paths", "select", "split", "stop_gradient", "to_paths", "update",
]  # fmt: skip
