"""Pairing the layers of two networks.

First by `names`, and if all remaining names are equal, by these. Otherwise by the shapes of their
arrays, and among equal shapes by their names: by their roles (q, k, v; up, gate, down), then by
words that occur as often there as here (or by lying in a numbered block), then by their numbers, 2
before 10. Last comes the order of registration, if it is known. If none of these distinguishes
them, an error lists the candidates: the pairing never guesses.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NoReturn

from fnn.convert.table import Framework, Groups, Names, Part
from fnn.convert.words import levels, natural, numbered, parts_of, role, says_gated, signs
from fnn.core import errors
from fnn.tree.selection import unknown

Pair = tuple[Part, str]


def pairs(
    framework: Framework, ours: list[Part], groups: Groups, names: Names, *, registered: bool
) -> list[Pair]:
    """Each of our layers with the name of theirs, in our order.

    - `registered`: whether the groups stand in the order in which their layers were registered.
    """
    chosen: dict[str, str] = {}
    rest, left = list(ours), list(groups)
    for pattern, theirs in _checked(names):
        here = _matches(pattern, [part.path for part in rest], "/")
        there = _matches(theirs, left, framework.separator)
        if not here:
            _check_known(pattern, ours)
            continue
        if not there:
            _unknown_there(theirs, chosen, groups)
        if len(here) != len(there):
            raise errors.ParamsError(
                f"as many layers for {theirs} as for {pattern}, {errors.names(map(_head, here))}",
                errors.names(map(_head, there)),
                "write patterns that match as many",
            )
        for below, theirs_below in zip(here.values(), there.values(), strict=True):
            some = [part for part in rest if part.path in below]
            alone = [name for name in theirs_below if _depth(name) == _depth(theirs)]
            some_there = alone if alone and len(some) == 1 else theirs_below
            chosen |= _paired(framework, some, some_there, groups, registered)
        rest = [part for part in rest if part.path not in chosen]
        left = [name for name in left if name not in chosen.values()]
    chosen |= _paired(framework, rest, left, groups, registered)
    return [(part, chosen[part.path]) for part in ours]


def named(framework: Framework, ours: list[Part], names: Names) -> dict[str, str]:
    """{path of each layer: its name there}; the numbers for `*` count from 0."""
    paths = [part.path for part in ours]
    found: dict[str, str] = {}
    for pattern, theirs in _checked(names):
        here = _matches(pattern, [path for path in paths if path not in found], "/")
        if not here:
            _check_known(pattern, ours)
        if pattern.count("*") != theirs.count("*"):
            raise errors.OptionError(f"as many * as in {pattern}", theirs, "number both alike")
        columns = [sorted(set(column), key=numbered) for column in zip(*here, strict=True)]
        for stars, below in here.items():
            name = theirs
            for column, star in zip(columns, stars, strict=True):
                name = name.replace("*", str(column.index(star)), 1)
            for path in below:
                inside = path.split("/")[pattern.count("/") + 1 :] if pattern else [path]
                found[path] = framework.separator.join(filter(None, [name, *inside]))
    return {path: found.get(path, path.replace("/", framework.separator)) for path in paths}


# --- by given names


def _checked(names: Names) -> list[tuple[str, str]]:
    """The names, the longest first: the name of a block takes what is left of it."""
    if names is None:
        return []
    if not isinstance(names, Mapping) or not all(isinstance(n, str) for n in names.values()):
        raise errors.OptionError(
            "names to be a dict of strings", errors.show(names), 'as {"conv1": "features.0"}'
        )
    pairs = [(str(pattern), theirs) for pattern, theirs in names.items()]
    return sorted(pairs, key=lambda pair: (-pair[0].count("/"), pair[0].count("*")))


def _check_known(pattern: str, ours: list[Part]) -> None:
    paths = [part.path for part in ours]
    if not _matches(pattern, paths, "/"):
        unknown(pattern, paths, "layers")


def _matches(pattern: str, names: Iterable[str], separator: str) -> dict[tuple, list[str]]:
    """The names at or below those that match a pattern, by what its stars match."""
    inside = f"[^{re.escape(separator)}]*"
    head = re.escape(pattern).replace(r"\*", f"({inside})")
    found: dict[tuple, list[str]] = {}
    for name in names:
        if match := re.fullmatch(f"{head}(?:{re.escape(separator)}.*)?", name, re.DOTALL):
            found.setdefault(match.groups(), []).append(name)
    by_number = sorted(found, key=lambda stars: [numbered(star) for star in stars])
    return {stars: found[stars] for stars in by_number}


def _depth(name: str) -> int:
    return len(parts_of(name))


def _head(stars: tuple) -> str:
    return ".".join(stars) or "one"


def _unknown_there(name: str, chosen: Mapping[str, str], groups: Groups) -> NoReturn:
    if name in chosen.values():
        raise errors.OptionError("one layer for each name", f"two for {name}", "change one")
    unknown(name, groups, "layers of the other network")


# --- by shapes, words, numbers and order


def _paired(
    framework: Framework, ours: list[Part], theirs: list[str], groups: Groups, registered: bool
) -> dict[str, str]:
    """{our path: their name} of some of the layers."""
    plain = {part.path: part.path.replace("/", framework.separator) for part in ours}
    if set(plain.values()) == set(theirs):
        return plain
    found: dict[str, str] = {}
    for look in dict.fromkeys(_look(part) for part in ours):
        here = [part for part in ours if _look(part) == look]
        there = [name for name in theirs if _look_of(groups[name]) == look]
        if len(here) == len(there):
            try:
                found |= {part.path: name for part, name in _by_role(here, there, registered)}
            except _Ambiguous:
                _refuse(framework, here, there, dict(look))
    rest = [part for part in ours if part.path not in found]
    left = [name for name in theirs if name not in found.values()]
    if len(rest) == len(left) == 1:  # the two are named where they do not fit
        return found | {rest[0].path: left[0]}
    if rest or left:
        _unpaired(rest, left, groups)
    return found


class _Ambiguous(Exception):
    pass


def _by_role(ours: list[Part], theirs: list[str], registered: bool) -> Iterator[Pair]:
    """Layers of equal shapes: role by role, then those without one."""
    if len(ours) == 1:
        yield ours[0], theirs[0]
        return
    here = [role(part.path) for part in ours]
    gated = "gate" in here and says_gated(theirs)
    there = [role(name, gated=gated) for name in theirs]
    common = {r for r in here if r and here.count(r) == there.count(r)}
    for one in sorted(common):
        yield from _by_word(
            [part for part, r in zip(ours, here, strict=True) if r == one],
            [name for name, r in zip(theirs, there, strict=True) if r == one],
            registered,
        )
    rest = [part for part, r in zip(ours, here, strict=True) if r not in common]
    left = [name for name, r in zip(theirs, there, strict=True) if r not in common]
    if any({*here} - common - {None}) and any({*there} - common - {None}):
        raise _Ambiguous  # the roles contradict
    if rest:
        yield from _by_word(rest, left, registered)


def _by_word(ours: list[Part], theirs: list[str], registered: bool) -> Iterator[Pair]:
    """By the words that occur in as many layers here as there."""
    here, there = ([signs(n) for n in side] for side in ([part.path for part in ours], theirs))
    counts, counts_there = (Counter(w for own in side for w in own) for side in (here, there))
    telling = {w for w, n in counts.items() if counts_there[w] == n < len(ours)}
    here, there = ([own & telling for own in side] for side in (here, there))
    if Counter(here) != Counter(there):
        raise _Ambiguous  # the words contradict
    for sign in dict.fromkeys(here):
        yield from _by_number(
            [part for part, own in zip(ours, here, strict=True) if own == sign],
            [name for name, own in zip(theirs, there, strict=True) if own == sign],
            registered,
        )


def _by_number(ours: list[Part], theirs: list[str], registered: bool) -> Iterator[Pair]:
    """By the numbers in their names, or in the order of registration."""
    if len(ours) > 1 and len({role(part.path) for part in ours}) > 1:
        raise _Ambiguous  # q and k have no order
    paths, sorted_theirs = [part.path for part in ours], natural(theirs)
    if sorted_theirs is None:
        if not registered:
            raise _Ambiguous
        yield from zip(ours, theirs, strict=True)
        return
    levels_here, levels_there = levels(paths), levels(theirs)
    for i, word in enumerate(levels_there):
        if word and word in levels_here and levels_here.index(word) != i:
            raise _Ambiguous  # norms1.0, and blocks/0/norm1 here
    by_path = {part.path: part for part in ours}
    sorted_ours = natural(paths) or paths
    yield from ((by_path[p], name) for p, name in zip(sorted_ours, sorted_theirs, strict=True))


def _look(part: Part) -> tuple:
    return tuple(sorted((leaf.entry, leaf.shape()) for leaf in part.leaves))


def _look_of(group: Mapping[str, Any]) -> tuple:
    return tuple(sorted((e, tuple(getattr(array, "shape", ()))) for e, array in group.items()))


# --- messages


def _refuse(framework: Framework, ours: list[Part], theirs: list[str], look: Mapping) -> NoReturn:
    raise errors.ParamsError(
        f"names that tell which is which of {errors.names(part.path for part in ours)}, "
        f"all {_shown(look)}",
        errors.names(theirs),
        f'pair them, as names={{"{ours[0].path}": ...}} with one of these' + framework.whole,
    )


def _unpaired(ours: list[Part], theirs: list[str], groups: Groups) -> NoReturn:
    here = [f"{part.path or part.kind} {_shown(dict(_look(part)))}" for part in ours]
    there = [f"{name} {_shown(dict(_look_of(groups[name])))}".strip() for name in theirs]
    raise errors.ParamsError(
        f"a layer for each of {errors.names(here)}" if here else "no more layers than there are",
        errors.names(there),
        "build the same layers, pair them with names=, or leave out what has no counterpart",
    )


def _shown(shapes: Mapping[str, tuple]) -> str:
    inner = ", ".join(f"{entry} {shape}".strip() for entry, shape in shapes.items())
    return f"({inner})"
