"""Runs in the terminal, while they are written: a table of the metrics, with a sparkline each."""

from __future__ import annotations

import argparse
import math
import pathlib
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from fnn.core.errors import FnnError
from fnn.log.read import Rows
from fnn.log.values import RESERVED

BARS, ASCII_BARS = "▁▂▃▄▅▆▇█", "_.-=+*%@"
TAIL = 256  # bytes before the end that tell whether the file is still the one that was read


class Tail:
    """A log that grows; only what is new is read."""

    def __init__(self, path: pathlib.Path):
        self.path, self.problem = path, ""
        self._restart()

    def _restart(self) -> None:
        self.rows, self.end, self.tail = Rows(self.path), 0, b""

    def update(self) -> None:
        """Read the whole lines that came; start over if the file was cut or replaced."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self.end - len(self.tail))
                if file.read(len(self.tail)) != self.tail:
                    self._restart()
                    file.seek(0)
                new = file.read()
        except OSError as error:
            self._restart()
            self.problem = (error.strerror or type(error).__name__).lower()
            return
        whole = new[: new.rfind(b"\n") + 1]
        self.end, self.tail = self.end + len(whole), (self.tail + whole)[-TAIL:]
        try:
            self.rows.extend(whole.split(b"\n")[:-1])
        except FnnError as error:  # mended, it is read from the start
            self._restart()
            self.problem = error.got
            return
        self.problem = "" if self.rows.count else "no rows so far"


def spark(values: Sequence[float], width: int, bars: str = BARS, log: bool = False) -> str:
    """Values as a line of bars, each the mean of those it stands for; "!" where one is not finite.

    - `log`: on a logarithmic scale, if all means are positive.

    >>> spark([0.0, 1.0, 2.0, math.nan, 7.0], 10)
    '▁▂▃!█'
    """
    n, width = len(values), max(1, width)
    cuts = [i * n // min(n, width) for i in range(min(n, width) + 1)] if n else [0]
    parts = [values[low:high] for low, high in zip(cuts, cuts[1:], strict=False)]
    means = [sum(part) / len(part) for part in parts]  # not finite if one value is not
    finite = [mean for mean in means if math.isfinite(mean)]
    if log and min(finite, default=0.0) > 0:
        means = [math.log(mean) if math.isfinite(mean) else mean for mean in means]
        finite = [mean for mean in means if math.isfinite(mean)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    span = high / 2 - low / 2  # by halves, since the difference may overflow

    def bar(mean: float) -> str:
        if not math.isfinite(mean):
            return "!"
        return bars[round((mean / 2 - low / 2) / span * (len(bars) - 1)) if span else 0]

    return "".join(map(bar, means))


def numbers(values: Iterable[Any]) -> list[float]:
    """The values that are there; of an array its mean."""
    found = []
    for value in values:
        if isinstance(value, list):
            parts = numbers(value)
            value = sum(parts) / len(parts) if parts else None
        if isinstance(value, (int, float)):
            found.append(float(value))
    return found


def header(tail: Tail, now: float) -> str:
    """The name of a run, and how far it is."""
    columns = tail.rows.columns
    if not tail.rows.count:
        return f"{tail.path}: {tail.problem}"
    step, epoch, times = columns["step"][-1], columns["epoch"][-1], columns["time"]
    age = max(0.0, now - times[-1])
    text = f"{tail.path}: step {step:,}, epoch {epoch}"
    i = max(0, len(times) - 200)
    steps, seconds = step - columns["step"][i], times[-1] - times[i]
    if steps > 0 and seconds > 0:
        rate = steps / seconds
        text += f", {rate:,.0f} steps/s" if rate >= 100 else f", {rate:.3g} steps/s"
    return f"{text}, {_span(age)} ago" + (f"; {tail.problem}" if tail.problem else "")


def _span(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


class Look(NamedTuple):
    """How runs are shown: within a width and perhaps a height, in ASCII, on a log scale."""

    width: int
    height: int | None = None
    plain: bool = False
    log: bool = False


def view(tails: Sequence[Tail], look: Look, now: float) -> Any:
    """All runs, for rich to print: a line and a table each."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    width, plain = look.width, look.plain
    room = None if look.height is None else max(1, (look.height - 1) // len(tails) - 5)
    dots, bars = ("..", ASCII_BARS) if plain else ("…", BARS)
    parts: list[Any] = []
    for tail in tails:
        names = [name for name in tail.rows.columns if name not in RESERVED]
        hidden = 0 if room is None else max(0, len(names) - room)
        parts += [Text()] * bool(parts)
        parts.append(Text(header(tail, now), style="bold", overflow="fold"))
        if not names:
            continue
        shown = names[: len(names) - hidden]
        cell = 9
        narrow = width < 60
        longest = max(map(len, shown), default=0)
        name_width = min(longest, max(8, width // 3))
        fixed = name_width + (cell + 2) * (1 if narrow else 3) + 4
        table = Table(box=box.ASCII if plain else box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        table.add_column("metric", no_wrap=True, width=name_width, overflow="crop")
        for title in ("last",) if narrow else ("last", "lowest", "highest"):
            table.add_column(title, justify="right", no_wrap=True, width=cell, overflow="crop")
        table.add_column("", no_wrap=True, overflow="crop")
        for name in shown:
            values = numbers(tail.rows.columns[name])
            finite = [value for value in values if math.isfinite(value)] or [math.nan]
            cells = [values[-1:], [min(finite)], [max(finite)]][: 1 if narrow else 3]
            if len(name) > name_width:  # the end tells more
                name = dots + name[len(name) - name_width + len(dots) :]
            line = spark(values, max(4, width - fixed - 4), bars, look.log)
            table.add_row(Text(name), *(f"{c[0]:.4g}" if c else "" for c in cells), Text(line))
        parts.append(table)
        if hidden:
            parts.append(Text(f"{dots} and {hidden} more", style="dim"))
    return Group(*parts)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fnn.log", description=__doc__)
    parser.add_argument("paths", nargs="+", type=pathlib.Path, help="jsonl or csv files")
    parser.add_argument("--once", action="store_true", help="print once and exit")
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between looks")
    parser.add_argument("--log", action="store_true", help="bars on a logarithmic scale")
    args = parser.parse_args(arguments)
    try:
        from rich.console import Console
        from rich.live import Live
    except ImportError:
        raise ImportError("python -m fnn.log needs rich: pip install 'fnn[table]'") from None
    console = Console(highlight=False)
    plain = not _encodes(BARS + "…─", getattr(sys.stdout, "encoding", None))
    tails = [Tail(path) for path in args.paths]

    def look(height: int | None) -> Any:
        for tail in tails:
            tail.update()
        return view(tails, Look(console.width, height, plain, args.log), time.time())

    if args.once:
        console.print(look(None))
        return 0 if all(tail.rows.count for tail in tails) else 1
    try:
        if not console.is_terminal:  # a pipe: one table after the other
            while True:
                console.print(look(None))
                time.sleep(args.interval)
        with Live(look(console.height), console=console, auto_refresh=False) as live:
            while True:
                time.sleep(args.interval)
                live.update(look(console.height), refresh=True)
    except KeyboardInterrupt:
        return 0


def _encodes(text: str, encoding: str | None) -> bool:
    try:
        text.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
