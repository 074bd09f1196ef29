"""From times to words: medians, paired ratios, goals and the Markdown that states them.

A result is plain data, as it is written to JSON; a row holds the seconds a call took in each round.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from benchmarks.task import Goal

# "seconds", "first_call", "first_calls", "peak_mib"; or "failed" or "skipped", a reason
Row = Mapping[str, Any]
HEADER = """# Benchmarks

Written by `python -m benchmarks.run TASK`; do not edit. Every contender runs in a process of its
own, and their timed blocks take turns in an order shuffled each round. A time is the median over
the rounds (with its quartiles); a ratio is the median of the ratios within each round, which drift
of the machine leaves alone. The first call (tracing and compiling) is apart. A row which disagrees
with the others on what it computed is failed, whatever its time.
"""


def ratio(a: Sequence[float], b: Sequence[float]) -> float:
    """Median over the rounds of a's time over b's in the same round."""
    return median(x / y for x, y in zip(a, b, strict=True))


def disagreement(numbers: Sequence[float], truth: Sequence[float], rtol: float) -> str:
    """How `numbers` differ from `truth`, in words; empty where they agree."""
    if len(numbers) != len(truth):
        return f"{len(numbers)} numbers to check, expected {len(truth)}"
    for i, (x, y) in enumerate(zip(numbers, truth, strict=True)):
        if not math.isclose(x, y, rel_tol=rtol):
            return f"number {i} to check is {x:.6g}, expected {y:.6g} (rtol {rtol:g})"
    return ""


def judge(
    goal: Goal, rows: Mapping[str, Row], than: Mapping[str, Row] | None = None
) -> dict[str, Any]:
    """A goal beside what was measured; `met` is None where it could not be.

    `rows` are those of its case, `than` those of the case it is compared with, if another."""
    than = rows if than is None else than
    verdict = {"goal": goal.text, "limit": goal.limit, "measured": None, "met": None, "why": ""}
    mine = rows.get(goal.contender, {"skipped": "not run"})
    if "seconds" not in mine:
        reason = mine.get("failed") or mine.get("skipped")
        return verdict | {
            "met": False if "failed" in mine else None,
            "why": f"{goal.contender}: {reason}",
        }
    if not goal.over:
        measured, against = median(mine[goal.of]), ""
    else:
        others = {k: than[k][goal.of] for k in goal.over if "seconds" in than.get(k, {})}
        if not others:
            return verdict | {"why": f"none of {', '.join(goal.over)} was measured"}
        against = min(others, key=lambda k: median(others[k]))
        measured = ratio(mine[goal.of], others[against])
        against += f" in {goal.than}" if goal.than else ""
    met = measured <= goal.limit
    if goal.otherwise and "seconds" in rows.get(goal.otherwise[0], {}):
        name, limit = goal.otherwise
        met = met or ratio(mine[goal.of], rows[name][goal.of]) <= limit
    why = "" if met else goal.cause or "cause not yet found"
    if absent := [name for name in goal.over if "seconds" not in than.get(name, {})]:
        why = f"{why} (without {', '.join(absent)})".strip()
    return verdict | {"measured": measured, "against": against, "met": met, "why": why}


def duration(seconds: float) -> str:
    """Three digits and a unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def state(verdict: Mapping[str, Any]) -> str:
    """One line on one goal."""
    word = {True: "met", False: "**MISSED**", None: "not measured"}[verdict["met"]]
    line = f"{word}: {verdict['goal']}"
    if verdict["measured"] is not None:
        against = verdict["against"]
        value = f"{verdict['measured']:.3g} x {against}" if against else None
        line += f": {value or duration(verdict['measured'])}"
        if against:
            line += f" (limit {verdict['limit']:.4g})"
    return f"{line}. {verdict['why']}".rstrip(". ") + "."


def table(
    rows: Mapping[str, Row], baseline: str, samples: int | None = None, first: bool = True
) -> str:
    """The rows as aligned Markdown, fastest first; then those without times, with the reason.

    With the `samples` of a call, its median is also how many of them a second. `first`: with the
    first call, which was timed alone."""
    timed = {name: row for name, row in rows.items() if "seconds" in row}
    references = [r for r in dict.fromkeys((baseline, "fnn")) if r in timed]
    head = ["contender", "median", "quartiles", "fastest", *(f"/ {r}" for r in references)]
    head += ["samples / s"] if samples else []
    cells = [[*head, *["first call"][:first], "peak memory"]]
    for name, row in sorted(timed.items(), key=lambda item: median(item[1]["seconds"])):
        times = row["seconds"]
        low, middle, high = quantiles(times, n=4, method="inclusive") if times[1:] else times * 3
        cells.append(
            [name, duration(middle), f"{duration(low)} to {duration(high)}", duration(min(times))]
            + [f"{ratio(times, timed[r]['seconds']):.2f}" for r in references]
            + ([f"{samples / middle:,.0f}"] if samples else [])
            + [duration(row["first_call"])][:first]
            + [f"{row['peak_mib']:.0f} MiB"]
        )
    lines = aligned(cells)
    lines += [""] if any("seconds" not in row for row in rows.values()) else []
    for name, row in rows.items():
        if "failed" in row:
            lines.append(f"- **FAILED** {name}: {row['failed']}")
        elif "skipped" in row:
            lines.append(f"- skipped {name}: {row['skipped']}")
    return "\n".join(lines)


def aligned(cells: list[list[str]]) -> list[str]:
    """Markdown lines of a table, the first of the rows its head."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rows = [cells[0], ["-" * w for w in widths], *cells[1:]]
    return [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]


def pair_table(cases: Mapping[str, Mapping[str, Row]], pairs: Mapping[str, str]) -> str:
    """A row for each case: how many times as long a contender takes as its pair, and the pair."""
    cells, failed = [["case", *(f"{name} / {pair}" for name, pair in pairs.items())]], []
    for case, rows in cases.items():
        cells.append([case])
        for name, pair in pairs.items():
            both = [rows.get(one, {}) for one in (name, pair)]
            failed += [f"- **FAILED** {case}: {row['failed']}" for row in both if "failed" in row]
            if all("seconds" in row for row in both):
                mine, theirs = (row["seconds"] for row in both)
                cells[-1].append(f"{ratio(mine, theirs):.2f} ({duration(median(theirs))})")
            else:
                cells[-1].append("")
    return "\n".join([*aligned(cells), *([""] if failed else []), *failed])


def heading(task: str, platform: str) -> str:
    return task if platform == "cpu" else f"{task} on {platform.upper()}"


def section(result: Mapping[str, Any]) -> str:
    """One task's part of the report."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    kept, alone = result.get("fresh") == 0, result.get("jobs", 1) == 1
    counts = sorted(
        {
            len(row["seconds"])
            for rows in result["cases"].values()
            for row in rows.values()
            if row.get("seconds")
        }
    )
    rounds = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else result["rounds"]
    how = f"{' (quick)' if result['quick'] else ''}{' of the same processes' if kept else ''}"
    lines = [
        f"## {heading(result['task'], result['platform'])}: {result['title']}\n",
        f"{result['device']}; {rounds} rounds{how}, "
        f"{result['when']}, load average {result['load'][0]:.1f} before and "
        f"{result['load'][1]:.1f} after, commit {result['commit']}. {versions}.\n",
    ]
    samples, goals = result.get("samples", {}), result["goals"]
    if pairs := result.get("pairs"):
        lines += [pair_table(result["cases"], pairs) + "\n"]
        met = [goal["met"] for goal in goals if goal["met"] is not None]
        lines += [f"{sum(met)} of {len(met)} goals are met.\n"]
        goals = [goal for goal in goals if goal["met"] is False]
    else:
        for case, rows in result["cases"].items():
            rows = table(rows, result["baseline"], samples.get(case), alone)
            lines += [f"### {case}\n", rows + "\n"]
    lines += ["### Goals\n", *(f"- {state(v)}" for v in goals), ""] if goals else []
    lines += [f"`{name}`: {legend}.  " for name, legend in result["legends"].items()]
    return "\n".join(lines)


def write(result: Mapping[str, Any], folder: Path) -> None:
    """The result as JSON, and the report of all results in the folder as RESULTS.md.

    A part of the report whose JSON is not there stays as it stands.
    """
    results, path = folder / "results", folder / "RESULTS.md"
    results.mkdir(parents=True, exist_ok=True)
    name = f"{result['task']}-{result['platform']}.json"
    (results / name).write_text(json.dumps(result, indent=1) + "\n")
    there = [json.loads(file.read_text()) for file in results.glob("*.json")]
    parts = {(one["task"], one["platform"]): section(one) for one in there}
    timed = {heading(*key) for key in parts}
    for part in path.read_text().split("\n## ")[1:] if path.exists() else ():
        task = part.split(":", 1)[0]
        if task not in timed:
            parts[task, ""] = f"## {part}".rstrip()
    path.write_text("\n".join([HEADER, *(parts[key] for key in sorted(parts))]).rstrip() + "\n")


def put(part: str, path: Path) -> None:
    """Put a part that is no task's, with its heading, into RESULTS.md, in order."""
    text = path.read_text() if path.exists() else HEADER
    head, *others = text.rstrip("\n").split("\n## ")
    parts = {each.split(":")[0]: each for each in [*others, part.removeprefix("## ").rstrip()]}
    path.write_text("\n## ".join([head, *(parts[name] for name in sorted(parts))]) + "\n")
