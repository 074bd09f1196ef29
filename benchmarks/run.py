"""The benchmark runner: every contender in its own process, their timed blocks interleaved.

    python -m benchmarks.run train_step               # a task of benchmarks/tasks, whole
    python -m benchmarks.run                          # every task; rewrites benchmarks/RESULTS.md
    python -m benchmarks.run dispatch --quick --cases 20 --contenders fnn,floor

A task builds and warms up its contenders one after another, fails those whose numbers disagree,
then times them in rounds: in each round every contender times one block, in an order shuffled each
round, while the others wait. Every few rounds all start anew in fresh processes. In a cold task
each block is the first call of a fresh process; contenders that are pairs share one. Goals are
judged at the end; a missed one is printed with its cause. Exits with 1 if a row failed.

On an accelerator, where starting a process takes as long as timing it, `--jobs 8` prepares so many
contenders at once (their first calls then say nothing, and are left out of the report), and
`--fresh 0` keeps the processes through all rounds.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.task import Missing, Task, load

ROOT = Path(__file__).parents[1]
FRESH = 3  # rounds until processes are started anew: where memory lies is luck, and stays
PAUSE = 0.02  # seconds between blocks: thread pools stop spinning
LIMIT = 900.0  # seconds until a worker that does not answer is ended
# Workers see none of the shell's settings of JAX (a compilation cache, strict promotion, flags),
# and keep bytecode, as installed packages do: all contenders run as a user finds them.
DROPPED = ("JAX_", "XLA_", "PYTHONDONTWRITEBYTECODE")
KEPT = ("JAX_PLATFORMS",)
PACKAGES = (
    "fnn",
    "jax",
    "jaxlib",
    "numpy",
    "optax",
    "flax",
    "equinox",
    "dm-haiku",
    "torch",
    "keras",
    "safetensors",
    "orbax-checkpoint",
)


class Failed(Exception):
    """A contender raised, or ended."""


class Worker:
    """A contender's process (see `worker.py`): its own, or that of the contender `beside`."""

    def __init__(
        self,
        task: str,
        case: str,
        contender: str,
        environment: Mapping[str, str],
        beside: Worker | None = None,
    ):
        self.contender = contender
        if beside:
            self.process, self.errors, self.sharing = beside.process, beside.errors, beside.sharing
            self.sharing.append(contender)
            return
        self.sharing = [contender]
        env = {k: v for k, v in os.environ.items() if not k.startswith(DROPPED) or k in KEPT}
        env["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # contenders share one accelerator
        env |= environment
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", task, case],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors,
            text=True, cwd=ROOT, env=env,
        )  # fmt: skip

    def ask(self, command: str) -> Any:
        """The worker's answer to one command."""
        assert self.process.stdin and self.process.stdout
        timer = threading.Timer(LIMIT, self.process.kill)
        timer.start()
        try:
            print(self.contender, command, file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        answer = json.loads(line) if line else {"error": f"ended during {command!r}"}
        if "missing" in answer:
            raise Missing(answer["missing"])
        if "error" in answer:
            self.errors.seek(0)
            print(self.errors.read()[-2000:], file=sys.stderr)
            raise Failed(answer["error"])
        return answer["value"]

    def close(self) -> None:
        self.sharing.remove(self.contender)
        if not self.sharing:
            self.process.communicate()
            self.errors.close()


class Measurement:
    """All contenders of one case, from first call to last block."""

    def __init__(self, task: Task, name: str, case: str, block: float):
        self.task, self.name, self.case, self.block = task, name, case, block
        self.rows: dict[str, dict[str, Any]] = {}
        self.workers: dict[str, Worker] = {}
        self.device: list[str] | None = None

    def attempt(self, contender: str, work: Callable[[str], None]) -> None:
        """Do the work for one contender; if it goes wrong, say so in its row and drop it."""
        try:
            work(contender)
        except (Missing, Failed) as error:
            kind = "skipped" if isinstance(error, Missing) else "failed"
            self.rows[contender] = {kind: str(error)}
            print(f"  {kind} {contender}: {error}", file=sys.stderr)
            if worker := self.workers.pop(contender, None):
                worker.close()

    def started(self, contender: str, beside: Worker | None = None) -> Worker:
        environment = self.task.environments.get(contender, {})
        return Worker(self.name, self.case, contender, environment, beside)

    def prepare(self, contender: str) -> None:
        """Build, first call, and the numbers to check."""
        row = self.rows[contender] = {"seconds": []}
        beside = next(iter(self.workers.values()), None) if self.task.pairs else None
        worker = self.workers[contender] = self.started(contender, beside)
        worker.ask("build")
        row["first_call"] = worker.ask("first")
        row["first_calls"] = [row["first_call"]]
        row["peak_mib"] = worker.ask("memory")
        row["numbers"] = worker.ask("check")
        self.device = self.device or worker.ask("device")
        first = report.duration(row["first_call"])
        print(f"  {self.case} {contender}: first call {first}", file=sys.stderr)
        if self.task.cold:
            self.workers.pop(contender).close()

    def agree(self, contender: str) -> None:
        """Whether it computed what the first in the table did, or its pair."""
        numbers = self.rows[contender]["numbers"]
        checked = {name: r["numbers"] for name, r in self.rows.items() if "numbers" in r}
        pair = self.task.pairs.get(contender, contender) if self.task.pairs else next(iter(checked))
        if numbers is not None:
            trusted = checked.get(pair) or numbers
            if words := report.disagreement(numbers, trusted, self.task.rtol):
                raise Failed(words)

    def fill(self, contender: str) -> None:
        """How many calls fill a block."""
        one = self.workers[contender].ask("time 1")
        one = one if one > self.block else self.workers[contender].ask("time 3")
        self.rows[contender]["calls"] = max(1, math.ceil(self.block / one))

    def time(self, contender: str) -> None:
        """One block; in a cold task, one fresh process."""
        row = self.rows[contender]
        time.sleep(PAUSE)
        if not self.task.cold:
            row["seconds"].append(self.workers[contender].ask(f"time {row['calls']}"))
            return
        worker = self.workers[contender] = self.started(contender)
        worker.ask("build")
        row["seconds"].append(worker.ask("first"))
        self.workers.pop(contender).close()

    def restart(self, contender: str) -> None:
        """The same contender in a fresh process, warm."""
        self.workers.pop(contender).close()
        worker = self.workers[contender] = self.started(contender)
        worker.ask("build")
        self.rows[contender]["first_calls"].append(worker.ask("first"))
        worker.ask("time 3")

    def run(self, rounds: int, fresh: int) -> None:
        """All rounds, once all have been prepared; every `fresh` of them in new processes."""
        steps = (self.agree,) if self.task.cold else (self.agree, self.fill)
        for step in steps:
            for contender in [name for name, row in self.rows.items() if "seconds" in row]:
                self.attempt(contender, step)
        order = random.Random(0)
        for i in range(rounds):
            renewed = fresh and i and i % fresh == 0
            if renewed and not self.task.cold and not self.task.pairs:
                for contender in list(self.workers):
                    self.attempt(contender, self.restart)
            live = [name for name, row in self.rows.items() if "seconds" in row]
            for contender in order.sample(live, len(live)):
                self.attempt(contender, self.time)
        for worker in self.workers.values():
            worker.close()


def prepare(some: list[Measurement], contenders: Iterable[str], jobs: int) -> None:
    """All contenders of some cases, one after another or, with jobs, so many at a time."""
    todo = [(measurement, contender) for measurement in some for contender in contenders]
    for measurement, contender in todo:
        measurement.rows[contender] = {}  # in the table's order, whichever is ready first
    if jobs > 1 and not any(measurement.task.pairs for measurement in some):
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(lambda one: one[0].attempt(one[1], one[0].prepare), todo))
    else:
        for measurement, contender in todo:
            measurement.attempt(contender, measurement.prepare)


def versions() -> dict[str, str]:
    """Of the installed packages among those that contend; Python's too."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine(device: list[str] | None) -> str:
    """Device, processor and cores, in words."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        cpu = platform.processor()
    where = f"{cpu}, {os.cpu_count()} cores"
    return where if device is None or device[0] == "cpu" else f"{device[1]} ({where})"


def commit() -> str:
    """The short hash of HEAD, with + if files differ from it; 'unknown' outside a repository."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        return (git("rev-parse", "--short", "HEAD") or "unknown") + ("+" if git("diff") else "")
    except OSError:
        return "unknown"


def earlier(name: str, device: list[str] | None, options: argparse.Namespace) -> dict[str, Any]:
    """The cases already in the result to which this one is added: of this device and versions."""
    place = device[0] if device else "cpu"
    path = (options.out or ROOT / "benchmarks") / "results" / f"{name}-{place}.json"
    old = json.loads(path.read_text()) if path.exists() else {}
    same = old and (old["device"], old["versions"]) == (machine(device), versions())
    return old["cases"] if same else {}


def run(name: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Run one task: its result, plain data, whenever it has more cases; the last one has all."""
    task, load_before = load(name), os.getloadavg()[0]
    cases = options.cases.split(",") if options.cases else list(task.cases)
    contenders = options.contenders.split(",") if options.contenders else list(task.contenders)
    asked = (("case", cases, task.cases), ("contender", contenders, task.contenders))
    for kind, given, known in asked:
        if unknown := set(given) - set(known):
            raise SystemExit(f"{name}: no {kind} {sorted(unknown)}; there are {sorted(known)}")
    contenders = [c for c in task.contenders if c in contenders]  # in the table's order
    rounds = options.rounds or (min(3, task.rounds) if options.quick else task.rounds)
    block = task.block / 10 if options.quick else task.block
    docs = {c: (made.__doc__ or "").strip().splitlines() for c, made in task.contenders.items()}
    measured: dict[str, Measurement] = {}
    at_once = max(1, options.jobs // len(contenders))  # cases, whose contenders are prepared
    for i in range(0, len(cases), at_once):
        for case in cases[i : i + at_once]:
            print(f"{name} {case}", file=sys.stderr)
            measured[case] = Measurement(task, name, case, block)
        some = [measured[case] for case in cases[i : i + at_once]]
        prepare(some, contenders, options.jobs)
        for measurement in some:
            measurement.run(rounds, options.fresh)
        device = next((m.device for m in measured.values() if m.device), None)
        found = {case: m.rows for case, m in measured.items()}
        old = earlier(name, device, options) if options.add else {}
        rows = {
            case: found.get(case) or old[case]
            for case in task.cases
            if case in found or case in old
        }
        timed = {contender for of_case in rows.values() for contender in of_case}
        goals = [g for g in task.goals if {g.case, g.than or g.case} <= set(rows)]
        if options.jobs > 1:
            goals = [goal for goal in goals if goal.of != "first_calls"]
        if device and device[0] != "cpu":
            goals = [replace(goal, cause="") for goal in goals]  # it was found on CPU
        yield {
            "task": name,
            "title": task.title,
            "when": time.strftime("%Y-%m-%d"),
            "commit": commit(),
            "platform": device[0] if device else "cpu",
            "device": machine(device),
            "versions": versions(),
            "load": [load_before, os.getloadavg()[0]],
            "quick": options.quick,
            "rounds": rounds,
            "jobs": options.jobs,
            "fresh": options.fresh,
            "baseline": task.baseline,
            "samples": dict(task.samples),
            "pairs": dict(task.pairs),
            "legends": {
                c: ", with ".join(
                    [lines[0], *(f"{k}={v}" for k, v in task.environments.get(c, {}).items())]
                )
                for c, lines in docs.items()
                if lines and c in timed
            },
            "cases": rows,
            "goals": [report.judge(g, rows[g.case], rows[g.than or g.case]) for g in goals],
        }


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("benchmarks.run", None, __doc__, formatter_class=formatter)
    add = parser.add_argument
    add("task", nargs="?", default="all", help="of benchmarks/tasks, or an importable module")
    add("--cases", help="comma-separated; all unless given")
    add("--contenders", help="comma-separated; all unless given")
    add("--rounds", type=int, help="timed blocks of each contender")
    add("--jobs", type=int, default=1, help="contenders prepared at a time")
    add("--fresh", type=int, default=FRESH, help="rounds until processes start anew; 0: never")
    add("--add", action="store_true", help="keep the cases that the result in --out has already")
    add("--quick", action="store_true", help="a few short rounds, to see that it runs")
    add("--out", type=Path, help="where to write RESULTS.md and results/*.json; unless given, a "
        "whole run writes benchmarks/ and any other only prints")  # fmt: skip
    options = parser.parse_args()
    whole = not (options.cases or options.contenders or options.rounds or options.quick)
    folder = options.out or (ROOT / "benchmarks" if whole else None)
    files = (ROOT / "benchmarks/tasks").glob("[!_]*.py")
    names = sorted(f.stem for f in files) if options.task == "all" else [options.task]
    failed = False
    for name in names:
        result: dict[str, Any] = {}
        for result in run(name, options):  # what is done is kept, should the rest be cut off
            if folder:
                report.write(result, folder)
        print(report.section(result), flush=True)
        failed |= any("failed" in row for rows in result["cases"].values() for row in rows.values())
    sys.exit(failed)


if __name__ == "__main__":
    main()
