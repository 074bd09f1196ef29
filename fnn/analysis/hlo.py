"""What the operations of a compiled program move through memory, read from its text.

Times and names of a compiled program are those of its own operations, fusions among them, which the
jaxpr does not know. The text (HLO) is what `jax.jit(f).lower(x).compile().as_text()` gives:

    %dot.3 = f32[8,4]{1,0} dot(%x, %w), ..., metadata={op_name="jit(f)/dense1/dot_general"}
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*)(?:e\d\w*)?\[([\d,<=]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_BODY = re.compile(r"body=%([\w.\-]+)")
_INDEX = re.compile(r"index=(\d+)")

# These compute nothing, or name values that others have written.
_FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast after-all partition-id replica-id "
    "optimization-barrier async-done copy-done".split()
)
_CONTAINERS = ("while", "conditional", "call")


class Instruction(NamedTuple):
    """An instruction: `nbytes` of its result, `operands` by name, `called` computations.

    The operand of a parameter is its number, that of a constant its value; `options` is the text
    that follows the operands.
    """

    name: str
    opcode: str
    op_name: str
    nbytes: int
    operands: tuple[str, ...]
    called: tuple[str, ...]
    trips: int
    shape: str
    options: str


class Moved(NamedTuple):
    """An instruction of a program, the `times` that it runs, and the bytes that one run moves."""

    instruction: Instruction
    times: int
    nbytes: int


class Program(NamedTuple):
    """The computations of a program, by name, each a dict of instructions; and its `entry`."""

    computations: dict[str, dict[str, Instruction]]
    entry: str

    def names(self) -> dict[str, str]:
        """The `op_name` of every instruction."""
        every = (one for inside in self.computations.values() for one in inside.values())
        return {one.name: one.op_name for one in every}

    def inputs(self) -> dict[str, frozenset[str]]:
        """The instructions that compute what an instruction reads, in its own computation."""
        found: dict[str, frozenset[str]] = {}
        for inside in self.computations.values():
            for one in inside.values():  # operands come first
                read = (
                    found[name] if inside[name].opcode in _FREE else {name}
                    for name in one.operands
                    if name in found
                )
                found[one.name] = frozenset().union(*read)
        return found

    def moved(self) -> list[Moved]:
        """What runs when the program does: loops as often as they are known to, else once."""
        return list(self._moved(self.entry, 1)) if self.entry else []

    def kinds(self) -> Counter[str]:
        """How many instructions of each kind stand in the program, loops' bodies included.

        A fusion is one; one that only copies or transposes is a "copy", as are those instructions.
        A custom call goes by its target.
        """
        found, left = Counter[str](), [self.entry] if self.entry else []
        while left:
            for one in self.computations[left.pop()].values():
                if one.opcode in _CONTAINERS:
                    left += one.called
                if one.opcode not in _FREE:
                    found[_kind(one)] += 1
        return found

    def _moved(self, computation: str, times: int) -> Iterator[Moved]:
        inside = self.computations[computation]
        for one in inside.values():
            if one.opcode in _CONTAINERS:
                branches = [list(self._moved(c, times * one.trips)) for c in one.called]
                yield from max(branches, key=_total, default=[])
            elif one.opcode not in _FREE:
                yield Moved(one, times, self._nbytes(one, inside))

    def _nbytes(self, one: Instruction, inside: dict[str, Instruction]) -> int:
        """What one run reads and writes; of what it takes a slice, the slice."""
        sizes = [inside[name].nbytes if name in inside else 0 for name in one.operands]
        if one.opcode == "fusion" and one.called:
            return self._of_fusion(self.computations[one.called[0]], one.nbytes, sizes)
        if one.opcode in ("dynamic-slice", "gather"):
            return 2 * one.nbytes + sum(sizes[1:])
        if one.opcode == "dynamic-update-slice":  # in place: (array, update, *start)
            return sizes[1] + sum(sizes[1:])
        if one.opcode == "scatter":  # in place: (array, indices, updates)
            return sizes[-1] + sum(sizes[1:])
        return one.nbytes + sum(sizes)

    def _of_fusion(self, fused: dict[str, Instruction], written: int, sizes: list[int]) -> int:
        parameters = [one for one in fused.values() if one.opcode == "parameter"]
        parameters.sort(key=lambda one: int(one.operands[0]))
        read = 0
        for parameter, size in zip(parameters, sizes, strict=False):
            users = [one for one in fused.values() if parameter.name in one.operands]
            parts = [_part(one, parameter.name) for one in users]
            read += size if None in parts else min(size, sum(p for p in parts if p is not None))
        updates = [fused[u.operands[1]].nbytes for u in fused.values() if _updates_all(u, written)]
        return read + (min(written, sum(updates)) if updates else written)


def parse(text: str) -> Program:
    """The program that a text holds.

    >>> import jax, jax.numpy as jnp
    >>> x = jnp.ones((8, 8))
    >>> text = jax.jit(jnp.dot).lower(x, x).compile().as_text()
    >>> [(each.times, each.nbytes) for each in parse(text).moved()]
    [(1, 768)]
    """
    computations: dict[str, dict[str, Instruction]] = {}
    entry, inside = "", dict[str, Instruction]()
    for line in text.splitlines():
        if header := _HEADER.match(line):
            inside = computations[header[2]] = {}
            entry = header[2] if header[1] else entry
        elif found := _LINE.match(line):
            one = _instruction(*found.groups())
            inside[one.name] = one
    for inside in computations.values():
        for one in inside.values():
            if one.opcode == "while" and not _TRIPS.search(one.options):
                inside[one.name] = one._replace(trips=_counted(one, computations))
    return Program(computations, entry)


def _counted(loop: Instruction, computations: dict[str, dict[str, Instruction]]) -> int:
    """How often a loop runs whose condition is that a count from 0 is less than a constant."""
    condition, body = (
        computations.get(found[1], {}) if (found := pattern.search(loop.options)) else {}
        for pattern in (_CONDITION, _BODY)
    )
    compares = [one for one in condition.values() if one.opcode == "compare"]
    if len(compares) != 1 or "direction=LT" not in compares[0].options:
        return 1
    count, limit = (condition.get(name) for name in compares[0].operands)
    return -(-(_constant(limit) or 1) // (_increment(count, body) or 1))


def _increment(count: Instruction | None, body: dict[str, Instruction]) -> int | None:
    """What a loop adds to its count: an unrolled one more than 1."""
    index = _INDEX.search(count.options) if count else None
    results = next((one for one in reversed(body.values()) if one.opcode == "tuple"), None)
    if not index or not results or int(index[1]) >= len(results.operands):
        return None
    added = body.get(results.operands[int(index[1])])
    if not added or added.opcode != "add":
        return None
    return next(filter(None, (_constant(body.get(name)) for name in added.operands)), None)


def _constant(one: Instruction | None) -> int | None:
    value = one.operands[0] if one and one.opcode == "constant" else ""
    return int(value) if value.isdigit() else None


def _instruction(name: str, shape: str, opcode: str, rest: str) -> Instruction:
    inputs, _, options = rest.partition("), ")
    number = (inputs.rstrip(")"),) if opcode in ("parameter", "constant") else None
    op_name, trips = _NAME.search(options), _TRIPS.search(options)
    called = _CALLED.findall(options)
    for group in _BRANCHES.findall(options):
        called += re.findall(r"[\w.\-]+", group)
    return Instruction(
        name,
        opcode,
        op_name[1] if op_name else "",
        sum(map(_array_bytes, _ARRAY.finditer(shape))),
        number or tuple(re.findall(r"%([\w.\-]+)", inputs)),
        tuple(called),
        int(trips[1]) if trips else 1,
        shape,
        options,
    )


def _array_bytes(found: re.Match[str]) -> int:
    kind, dims = found.groups()
    bits = 8 if kind == "pred" else int("".join(c for c in kind if c.isdigit()) or 0)
    sizes = (int(d.lstrip("<=")) for d in dims.split(",") if d)
    return math.prod(sizes) * bits // 8


def _part(user: Instruction, name: str) -> int | None:
    """The bytes of an operand that an instruction reads if it takes a slice, else None."""
    if user.operands[0] == name and user.operands.count(name) == 1:
        if user.opcode in ("dynamic-slice", "gather"):
            return user.nbytes
        if user.opcode == "dynamic-update-slice":
            return 0
    return None


def _kind(one: Instruction) -> str:
    if one.opcode == "custom-call":
        target = _TARGET.search(one.options)
        return target[1] if target else one.opcode
    moves = one.opcode == "fusion" and re.search("copy|transpose", one.name)
    return "copy" if moves or one.opcode in ("copy", "copy-start", "transpose") else one.opcode


def _updates_all(one: Instruction, written: int) -> bool:
    return one.opcode == "dynamic-update-slice" and one.nbytes == written


def _total(moved: list[Moved]) -> int:
    return sum(each.times * each.nbytes for each in moved)
