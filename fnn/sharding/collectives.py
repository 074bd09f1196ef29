"""What the devices of a compiled program send one another, and which layer is the cause."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from fnn.analysis.hlo import Instruction, Program

_OPS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_LISTED = re.compile(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}")
_IOTA = re.compile(r"replica_groups=(\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)")
_MESH = re.compile(
    r"replica_groups=(?:@?\w+)?\[([^\]]*)\](?:, device_ids=\(([^ ]*)\))? \{([^}]*)\}"
)
_CHAIN = re.compile(r'channel_id=(\d+).*chain_id="(\d+)"')
_AXIS = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?(?:=(\d+))?")


class Collective(NamedTuple):
    """What devices send one another, for one layer: all of a kind, in one run of the program.

    - `op`: as XLA names it, such as "all-gather"; for TPUs it writes some of these as an all-reduce
      of parts among zeros, which counts as one here.
    - `path`: of the layer; "optimizer", or "(loss)" and "(other)" for what is in no layer.
    - `backward`: whether of the backward pass.
    - `times`: how many run, every iteration of a loop counted.
    - `nbytes`: of the arrays after an all-gather, before a reduce-scatter; a device's own, of the
      others.
    - `sent`: the bytes that a device sends, as rings send them: (n - 1) / n of `nbytes` among n
      devices, twice that for an all-reduce, and `nbytes` for a collective-permute.
    - `devices`: the number among which it runs, of the largest.
    - `seconds`: sent over the bandwidth that was given.
    """

    op: str
    path: str
    backward: bool
    times: int
    nbytes: int
    sent: int
    devices: int
    seconds: float


class Sent(NamedTuple):
    """One collective of the program's text, how often it runs, and the `op_name` of its cause."""

    op: str
    op_name: str
    times: int
    nbytes: int
    sent: int
    groups: np.ndarray  # [groups, devices]


def sends(program: Program, devices: int) -> list[Sent]:
    """Every collective of a program, in order, for a number of devices.

    The compiler of TPUs spreads one over a chain of fusions, which compute meanwhile: it runs as
    often as that of them which runs least.
    """
    found: dict[object, Sent] = {}
    for one, each in _sends(program, program.entry, "", 1, devices):
        chain = _CHAIN.search(one.options)
        key = chain.groups() if chain else len(found)
        if key not in found or each.times < found[key].times:
            found[key] = each
    return list(found.values())


def _sends(
    program: Program, name: str, caller: str, times: int, devices: int
) -> Iterator[tuple[Instruction, Sent]]:
    inside = program.computations.get(name, {})
    for one in inside.values():
        op = one.opcode.removesuffix("-start")
        if op in _OPS:
            if name.startswith("all-reduce-scatter"):  # as TPUs have a reduce-scatter
                op = "reduce-scatter"
            cause = one.op_name or caller or _near(program, inside, one)
            groups = groups_of(one.options, devices)
            nbytes, sent = _volume(op, groups, _read(one, inside))
            yield one, Sent(op, cause, times, nbytes, sent, groups)
        for called in one.called:
            below = one.op_name if one.opcode == "fusion" else ""
            yield from _sends(program, called, below, times * one.trips, devices)


def _read(one: Instruction, inside: dict[str, Instruction]) -> int:
    return sum(inside[name].nbytes for name in one.operands if name in inside)


def _volume(op: str, groups: np.ndarray, own: int) -> tuple[int, int]:
    """(bytes of the whole arrays, bytes that a device sends), from what a device has."""
    n = groups.shape[1]
    if op == "collective-permute":
        return own, own if (groups[:, 0] != groups[:, 1]).any() else 0
    nbytes = own * n if op == "all-gather" else own
    return nbytes, nbytes * (n - 1) // n * (2 if op == "all-reduce" else 1)


def _near(program: Program, inside: dict[str, Instruction], one: Instruction) -> str:
    """The `op_name` of what an instruction reads, which the compiler made without a name."""
    near = [one]
    for _ in range(4):
        near = [inside[name] for each in near for name in each.operands if name in inside]
        names = Counter(name for each in near for name in _op_names(program, each))
        if names:
            return names.most_common(1)[0][0]
    return ""


def _op_names(program: Program, one: Instruction) -> Iterator[str]:
    if one.op_name:
        yield one.op_name
    elif one.opcode == "fusion":
        fused = (program.computations.get(name, {}) for name in one.called)
        yield from (each.op_name for inside in fused for each in inside.values() if each.op_name)


def groups_of(options: str, devices: int) -> np.ndarray:
    """The devices among which a collective runs, [groups, devices], from its text.

    >>> groups_of("channel_id=1, replica_groups=[2,2]<=[2,2]T(1,0)", 4).tolist()
    [[0, 2], [1, 3]]
    >>> groups_of("replica_groups=mesh['a'=2,'b'=2] {'a'}, dimensions={0}", 4).tolist()
    [[0, 2], [1, 3]]
    """
    if found := _LISTED.search(options):
        return np.array([_numbers(group) for group in found[1].split("},{")])
    if found := _IOTA.search(options):
        shape, listed = found[1].split("<=")
        return _iota(listed).reshape(_numbers(shape))
    if found := _MESH.search(options):
        return _of_mesh(found[1], found[2], found[3], devices)
    return np.arange(devices).reshape(1, devices)  # none given: all


def _of_mesh(axes: str, listed: str | None, among: str, devices: int) -> np.ndarray:
    """Groups along named axes of a mesh; 'a':(2)4 is a part of an axis, of size 4 after 2."""
    sizes = {name: int(size) for name, _, _, size in _AXIS.findall(axes) if size}
    parts = {
        name: (int(before), int(size)) for name, before, size, _ in _AXIS.findall(among) if size
    }
    named = {name for name, *_ in _AXIS.findall(among)}
    shape, chosen = [], []
    for name, size in sizes.items():
        before, part = parts.get(name, (1, size if name in named else 1))
        for each, taken in (
            (before, False),
            (part, name in named),
            (size // (before * part), False),
        ):
            chosen += [len(shape)] * taken
            shape.append(each)
    ids = (_iota(listed) if listed else np.arange(devices)).reshape(shape)
    rest = [axis for axis in range(len(shape)) if axis not in chosen]
    n = math.prod(shape[axis] for axis in chosen)
    return ids.transpose(rest + chosen).reshape(-1, n)


def _iota(text: str) -> np.ndarray:
    """ "[2,4]T(1,0)" is 0, 1, ... in this shape, transposed so."""
    shape, _, order = text.partition("T")
    ids = np.arange(math.prod(_numbers(shape))).reshape(_numbers(shape))
    return (ids.transpose(_numbers(order)) if order else ids).reshape(-1)


def _numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]


# --- by layer


def by_layer(
    program: Program,
    devices: int,
    place: Callable[[str], tuple[str, bool]],
    bandwidth: Callable[[np.ndarray], float],
) -> tuple[Collective, ...]:
    """The collectives of a program, those that send most first.

    - `place`: (path, backward) of an `op_name`.
    - `bandwidth`: bytes a second that one device sends in such groups.
    """
    found: dict[tuple[str, str, bool], list] = defaultdict(lambda: [0, 0, 0, 0, 0.0])
    for each in sends(program, devices):
        row = found[each.op, *place(each.op_name)]
        row[0] += each.times
        row[1] += each.times * each.nbytes
        row[2] += each.times * each.sent
        row[3] = max(row[3], each.groups.shape[1] if each.op != "collective-permute" else 2)
        row[4] += each.times * each.sent / bandwidth(each.groups)
    rows = (Collective(*key, *row) for key, row in found.items())
    return tuple(sorted(rows, key=lambda row: -row.sent))
