"""What a dry run found, as plain fields and as a table."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from fnn.analysis.units import of_bytes, of_seconds, short
from fnn.sharding.collectives import Collective
from fnn.sharding.machines import Topology


class Memory(NamedTuple):
    """Bytes of a compiled program on one device.

    - `arguments`, `outputs`; `aliased`: of the outputs, what is written into arguments.
    - `temporaries`: all else while it runs; `code`: the program itself.
    """

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    code: int

    @property
    def peak(self) -> int:
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.code


class Array(NamedTuple):
    """An array of a compiled program, as XLA writes its shape, and the layer that makes it."""

    shape: str
    path: str
    backward: bool
    nbytes: int


class Estimate(NamedTuple):
    """Seconds of a step on paper: work over the makers' full rates, which no program reaches.

    - `compute`: of `Report.flops`; `memory`: of reading all arguments and writing all outputs once;
      `links`: of all that collectives send.
    - `least`: if all three happen at once; `most`: if one after another.
    """

    compute: float
    memory: float
    links: float

    @property
    def least(self) -> float:
        return max(self)

    @property
    def most(self) -> float:
        return sum(self)


@dataclass(frozen=True)
class Report:
    """A dry run: what `fnn.dryrun` returns. Bytes, FLOPs and collectives are those of one device.

    - `topology`: the devices; `mesh`: their axes and sizes.
    - `params`, `optimizer`, `state`, `batch`: bytes of these arguments, by their shardings.
    - `whole`: bytes of the training state over all devices, each array counted once.
    - `memory`: a `Memory`, of the compiled program; None if there is none.
    - `peak`: bytes that the step needs; None if the compiler did not say.
    - `refusal`: why there is no program; "" if there is.
    - `flops`: of the step as it is traced, divided by the devices; loops count each iteration.
    - `collectives`: those that send most first.
    - `largest`: the largest arrays that the program makes, one of each shape and layer.
    - `operations`: how many instructions of each kind the program has; fusions count as one, and
      custom calls, such as those of cuDNN, go by their names.
    - `seconds`: of compiling.
    - `recomputes`: whether the backward pass computes anything again, as `fnn.remat` has it.
    - `text`: the compiled program, as XLA prints it.
    - `halved`: the memory with half of the batch, if it was asked for.
    - `advice`: what would help, in sentences with figures.

    Printed, it is a table.
    """

    topology: Topology
    mesh: dict[str, int]
    whole: int
    params: int
    optimizer: int
    state: int
    batch: int
    memory: Memory | None = None
    peak: int | None = None
    refusal: str = ""
    flops: int = 0
    collectives: tuple[Collective, ...] = ()
    largest: tuple[Array, ...] = ()
    operations: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    recomputes: bool = False
    halved: Memory | None = None
    text: str = field(default="", repr=False)

    @property
    def fits(self) -> bool:
        """Whether there is a program, and all that it needs is there."""
        return not self.refusal and (self.peak or 0) <= self.topology.machine.memory

    @property
    def sent(self) -> int:
        """Bytes that one device sends in a step."""
        return sum(each.sent for each in self.collectives)

    def estimate(
        self, flops: float | None = None, memory: float | None = None, link: float | None = None
    ) -> Estimate | None:
        """An `Estimate` of the step, on paper; None if there is no program.

        - `flops`: a second, by default the machine's in bfloat16; `memory`, `link`: bytes a second,
          by default the machine's. Give those that you have measured.
        """
        if self.memory is None:
            return None
        machine = self.topology.machine
        moved = self.memory.arguments + self.memory.outputs
        links = self.sent / link if link else sum(each.seconds for each in self.collectives)
        return Estimate(
            self.flops / (flops or machine.flops),
            moved / (memory or machine.memory_bandwidth),
            links,
        )

    def advised(self, half: Report) -> Report:
        """The same report, with what half of the batch saves."""
        return dataclasses.replace(self, halved=half.memory)

    @property
    def advice(self) -> tuple[str, ...]:
        """What would help; each sentence has figures that were added up or compiled."""
        return tuple(_advice(self))

    def compare(self, other: Report, names: tuple[str, str] = ("this", "other")) -> str:
        """Two placements side by side, as a table."""
        columns = [dict(_figures(report)) for report in (self, other)]
        rows = [("", *names)]
        rows += [
            (key, *(column.get(key, "") for column in columns))
            for key in dict.fromkeys(key for column in columns for key in column)
        ]
        return _aligned(rows)

    def __str__(self) -> str:
        lines = [self._verdict(), _aligned(_figures(self))]
        if self.collectives:
            lines += ["", "collectives of one device, in one step", _collectives(self.collectives)]
        if self.largest:
            rows = [(of_bytes(a.nbytes), a.shape, a.path + " (backward)" * a.backward)
                    for a in self.largest]  # fmt: skip
            lines += ["", "largest arrays that the program makes", _aligned(rows)]
        if estimate := self.estimate():
            lines += ["", _on_paper(self, estimate)]
        if self.advice:
            lines += ["", "what would help", *(f"- {each}" for each in self.advice)]
        return "\n".join(lines)

    def _verdict(self) -> str:
        sizes = ", ".join(f"{name}={size}" for name, size in self.mesh.items())
        where = f"{self.topology} ({sizes})" if sizes else str(self.topology)
        has = f"{of_bytes(self.topology.machine.memory)} a device"
        if self.fits:
            return f"fits on {where}: {of_bytes(self.peak or 0)} of {has}"
        need = f" {of_bytes(self.peak)} of" if self.peak else ""
        reason = f" ({self.refusal})" if self.refusal else ""
        return f"does not fit on {where}:{need} {has}{reason}"


def _figures(report: Report) -> Iterator[tuple[str, str]]:
    """(name, value) of what fits in one line."""
    for name in ("params", "optimizer", "state", "batch"):
        yield name, of_bytes(getattr(report, name))
    if report.memory:
        yield "temporaries", of_bytes(report.memory.temporaries)
        yield "program", of_bytes(report.memory.code)
    if report.peak:
        yield "peak", of_bytes(report.peak)
    yield "memory of a device", of_bytes(report.topology.machine.memory)
    yield "fits", "yes" if report.fits else "no"
    if report.memory:
        yield "FLOPs", short(report.flops)
        yield "sent to others", of_bytes(report.sent)
        yield "collectives", str(sum(each.times for each in report.collectives))
        estimate = report.estimate()
        assert estimate is not None
        yield "a step, on paper", f"{of_seconds(estimate.least)} to {of_seconds(estimate.most)}"
    if report.seconds:
        yield "compiled in", of_seconds(report.seconds)


def _collectives(found: tuple[Collective, ...], most: int = 12) -> str:
    rows = [("op", "layer", "times", "among", "of arrays", "sent", "on paper")]
    for each in found[:most]:
        path = each.path + " (backward)" * each.backward
        rows.append((each.op, path, f"{each.times:,}", str(each.devices), of_bytes(each.nbytes),
                     of_bytes(each.sent), of_seconds(each.seconds)))  # fmt: skip
    rest = found[most:]
    if rest:
        rows.append((f"{len(rest)} more rows", "", f"{sum(each.times for each in rest):,}", "",
                     of_bytes(sum(each.nbytes for each in rest)),
                     of_bytes(sum(each.sent for each in rest)),
                     of_seconds(sum(each.seconds for each in rest))))  # fmt: skip
    return _aligned(rows)


def _on_paper(report: Report, estimate: Estimate) -> str:
    machine = report.topology.machine
    network = f", {machine.network / 1e9:.0f} GB/s to other hosts" if machine.network else ""
    return (
        f"on paper, not measured: FLOPs {of_seconds(estimate.compute)} at "
        f"{machine.flops / 1e12:.0f} TFLOP/s (bfloat16), arguments and outputs "
        f"{of_seconds(estimate.memory)} at {machine.memory_bandwidth / 1e9:.0f} GB/s, "
        f"collectives {of_seconds(estimate.links)} at {machine.link / 1e9:.0f} GB/s{network}.\n"
        f"A step takes at least {of_seconds(estimate.least)}, if all of it happens at once, and "
        f"{of_seconds(estimate.most)} one after another, both at rates that no program reaches.\n"
        f"Figures of the machine: {machine.source}."
    )


def _advice(report: Report) -> Iterator[str]:
    machine, devices = report.topology.machine, report.topology.devices
    held = report.params + report.optimizer + report.state
    shared = held - math.ceil(report.whole / devices)
    if shared > machine.memory / 100:
        yield (
            f"fsdp over all {devices} devices: params and optimizer would take "
            f"{of_bytes(held - shared)} of each, {of_bytes(shared)} less than now"
        )
    if held > machine.memory:
        ways = math.ceil(report.whole / machine.memory)
        yield f"at least {ways} devices, which hold the {of_bytes(report.whole)} of the state once"
    if report.memory and report.memory.aliased < held / 2:
        yield f"donate=True: the new state takes the memory of the old one, {of_bytes(held)} less"
    if report.halved and report.memory:
        less = report.memory.temporaries - report.halved.temporaries
        yield (
            f"half of the batch: temporaries of {of_bytes(report.halved.temporaries)}, "
            f"{of_bytes(less)} less (compiled)"
        )
    if report.memory and not report.recomputes and report.largest:
        one, much = report.largest[0], report.memory.temporaries
        if much > max(held, machine.memory / 10):
            yield (
                f"fnn.remat around layers that are repeated: temporaries take {of_bytes(much)}, "
                f"more than the state, and the largest is {one.shape} of {one.path}"
            )
    if machine.platform == "cuda" and report.fits and (report.peak or 0) > 0.75 * machine.memory:
        yield (
            "XLA_PYTHON_CLIENT_MEM_FRACTION=0.95: JAX takes 0.75 of a GPU's memory by default, "
            f"{of_bytes(int(0.75 * machine.memory))}"
        )


def _aligned(rows: Iterable[tuple[str, ...]]) -> str:
    """Rows in columns, those of numbers to the right."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    numeric = [
        all(not row[i] or row[i][0].isdigit() for row in rows[1:]) for i in range(len(widths))
    ]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in rows
    )
