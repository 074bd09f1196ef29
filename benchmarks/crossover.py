"""The picture of when to train many runs side by side: runs per second by width of the network.

python -m benchmarks.crossover      # results/sweep-*.json -> images/sweep_crossover.png
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.task import load

HERE = Path(__file__).parent
GAP = 0.062  # between two labels, as a share of the axis
COLOURS = {
    "fnn": "tab:red", "fnn_vmap": "tab:blue", "fnn_map": "tab:cyan", "fnn_loop": "tab:green",
    "fnn_flat": "tab:pink", "compiled": "tab:olive", "optax_loop": "black",
    "threads": "tab:gray", "equinox": "tab:purple",
    "torch": "tab:brown", "torch_func": "tab:orange",
}  # fmt: skip


def speeds(result: Mapping[str, Any]) -> dict[str, dict[int, float]]:
    """{contender: {width: runs per second}}, from the cases whose name is a width."""
    counts = {name: runs.count for name, runs in load("sweep").cases.items()}
    found: dict[str, dict[int, float]] = {}
    for case, rows in result["cases"].items():
        for name, row in rows.items():
            if case.isdecimal() and "seconds" in row:
                by_width = found.setdefault(name, {})
                by_width[int(case)] = counts[case] / median(row["seconds"])
    return {name: dict(sorted(by_width.items())) for name, by_width in found.items()}


def spread(heights: list[float], gap: float) -> list[float]:
    """Increasing heights, moved apart to at least `gap`, and no further than that takes."""
    groups: list[list[float]] = []  # of heights less their offset in the group: each has one mean
    for i, height in enumerate(heights):
        groups.append([height - i * gap])
        while len(groups) > 1 and mean(groups[-2]) > mean(groups[-1]):
            groups[-2:] = [groups[-2] + groups[-1]]
    levels = [mean(group) for group in groups for _ in group]
    return [level + i * gap for i, level in enumerate(levels)]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def draw(results: list[Mapping[str, Any]], path: Path) -> None:
    """One panel a result; every line is named at its right end."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np
    from matplotlib.ticker import LogLocator

    figure, (panels,) = plt.subplots(
        1, len(results), figsize=(7.5 * len(results), 5), layout="constrained", squeeze=False
    )
    for axes, result in zip(panels, results, strict=True):
        lines = speeds(result)
        for name, by_width in lines.items():
            axes.plot(
                *zip(*by_width.items(), strict=True), "o-", color=COLOURS.get(name), markersize=4,
                linewidth=3 if name == "fnn" else 1.2, clip_on=False,
            )  # fmt: skip
        axes.set(xscale="log", yscale="log", xlabel="width of the hidden layer",
                 ylabel="training runs per second", title=result["device"])  # fmt: skip
        widths = sorted({width for line in lines.values() for width in line})
        axes.set_xticks(widths, [str(width) for width in widths])
        axes.minorticks_off()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_xlim(min(widths) / 1.15, max(widths))
        axes.spines[["top", "right"]].set_visible(False)
        low, high = np.log10(axes.get_ylim())
        ends = sorted(lines, key=lambda name: list(lines[name].values())[-1])
        shares = [(np.log10(list(lines[n].values())[-1]) - low) / (high - low) for n in ends]
        for name, share, height in zip(ends, shares, spread(shares, GAP), strict=True):
            weight = "bold" if name == "fnn" else "normal"
            look = {"color": COLOURS.get(name), "transform": axes.transAxes, "clip_on": False}
            axes.plot((1.01, 1.06), (share, height), lw=0.6, **look)
            axes.text(1.07, height, name, va="center", weight=weight, **look)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("benchmarks.crossover", None, __doc__, formatter_class=raw)
    parser.add_argument("--results", type=Path, default=HERE / "results", help="of a benchmark run")
    parser.add_argument("--out", type=Path, default=HERE / "images/sweep_crossover.png")
    options = parser.parse_args()
    there = [options.results / f"sweep-{platform}.json" for platform in ("cpu", "gpu")]
    results = [json.loads(file.read_text()) for file in there if file.exists()]
    if not results:
        raise SystemExit(f"no sweep-cpu.json in {options.results}: python -m benchmarks.run sweep")
    draw(results, options.out)
    print(options.out)


if __name__ == "__main__":
    main()
