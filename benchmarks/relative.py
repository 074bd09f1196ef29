"""The picture of a task: the time of each contender in each case, relative to fnn's.

python -m benchmarks.relative      # results/whole_networks-cpu.json -> images/whole_networks.png
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.report import duration, ratio

HERE = Path(__file__).parent
LOOKS = {  # name, colour, marker
    "nnx": ("flax nnx", "tab:blue", "s"),
    "equinox": ("equinox", "tab:purple", "D"),
    "torch": ("PyTorch", "tab:brown", "o"),
    "torch_compiled": ("torch.compile", "tab:orange", "^"),
}


def relative(result: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """{case: {contender: its time / fnn's, as in the report}}, of what was timed."""
    found = {}
    for case, rows in result["cases"].items():
        times = {name: row["seconds"] for name, row in rows.items() if "seconds" in row}
        if "fnn" in times:
            found[case] = {name: ratio(some, times["fnn"]) for name, some in times.items()}
    return found


def draw(result: Mapping[str, Any], path: Path) -> None:
    """A line for each case, fnn at 1 on a logarithmic axis, and its time on the right."""
    import matplotlib.pyplot as plt

    ratios = relative(result)
    height = 1.3 + 0.27 * len(ratios)
    figure, axes = plt.subplots(figsize=(8.5, height), layout="constrained")
    for name, (label, colour, marker) in LOOKS.items():
        points = [(by[name], y) for y, by in enumerate(ratios.values()) if name in by]
        if points:
            axes.plot(*zip(*points, strict=True), marker, color=colour, label=label, alpha=0.85)
    axes.axvline(1, color="tab:red", lw=2.5, label="fnn", zorder=0)
    least, *_, most = sorted(value for by in ratios.values() for value in by.values())
    least, most = min(least, 0.5) / 1.15, max(most, 2) * 1.15
    axes.axvspan(least, 1, color="tab:red", alpha=0.06, lw=0)
    axes.set(xscale="log", xlim=(least, most), ylim=(len(ratios) - 0.4, -0.6))
    axes.set_xlabel("time relative to fnn (left of the line: faster than fnn)")
    ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if least <= t <= most]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_yticks(range(len(ratios)), list(ratios))
    axes.grid(alpha=0.3)
    kinds = [case.split()[0] for case in ratios]
    for y in range(1, len(kinds)):
        if kinds[y] != kinds[y - 1]:
            axes.axhline(y - 0.5, color="black", lw=0.6)
    right = axes.secondary_yaxis("right")
    times = [duration(median(result["cases"][case]["fnn"]["seconds"])) for case in ratios]
    right.set_yticks(range(len(ratios)), times, color="tab:red")
    right.tick_params(length=0)
    for spine in (*axes.spines.values(), *right.spines.values()):
        spine.set_visible(False)
    axes.set_title(f"{result['device']}; fnn's time on the right", fontsize=10, loc="left")
    figure.legend(loc="outside upper center", ncols=5, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("benchmarks.relative", None, __doc__, formatter_class=raw)
    parser.add_argument("--results", type=Path, default=HERE / "results/whole_networks-cpu.json")
    parser.add_argument("--out", type=Path, default=HERE / "images/whole_networks.png")
    options = parser.parse_args()
    draw(json.loads(options.results.read_text()), options.out)
    print(options.out)


if __name__ == "__main__":
    main()
