"""A process for one contender, or for those that share it: reads commands on stdin, answers in
JSON lines. Each command follows the name of the contender that it is for.

    build     make the call (imports the library)
    first     seconds of the first call: traces and compiles
    check     the numbers on which all contenders must agree, in full float32
    time N    seconds a call, over N calls after one untimed
    memory    peak memory of this process, MiB
    device    what JAX or PyTorch runs on here

Between commands it waits for its next line, so that only the contender being timed runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Any

from benchmarks.task import EXACT, Call, Missing, load


def wait(out: Any) -> None:
    """Return when `out` has been computed, by whichever library made it."""
    jax, torch = sys.modules.get("jax"), sys.modules.get("torch")
    if jax and hasattr(jax, "block_until_ready"):
        jax.block_until_ready(out)
    if torch and torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(call: Call, n: int) -> float:
    """Seconds a call takes, over `n` in a row; waited for at the end, as in a training loop."""
    out = None
    start = time.perf_counter()
    for _ in range(n):
        out = call()
    wait(out)
    return (time.perf_counter() - start) / n


def device() -> list[str] | None:
    """Platform and kind of the device in use; None without a library that knows."""
    if jax := sys.modules.get("jax"):
        return [jax.devices()[0].platform, jax.devices()[0].device_kind]
    return None


@contextlib.contextmanager
def float32() -> Iterator[None]:
    """Products of float32 in float32: a GPU's are of 10 bits otherwise, and what is checked in the
    first steps of two libraries, equal but for their rounding, would differ by some of these."""
    jax, torch = sys.modules.get("jax"), sys.modules.get("torch")
    before = torch and (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)
    if torch:
        torch.backends.cudnn.allow_tf32 = False
    os.environ[EXACT] = "1"
    with jax.default_matmul_precision("highest") if jax else contextlib.nullcontext():
        yield
    del os.environ[EXACT]
    if torch:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def main(task_name: str, case_name: str) -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints goes to stderr, not among the answers
    task = load(task_name)
    case = task.cases[case_name]
    calls: dict[str, Call] = {}

    def do(name: str, command: str, n: int = 1) -> Any:
        contender = task.contenders[name]
        match command:
            case "build":
                calls[name] = contender(case)
            case "first":
                return seconds(calls[name], 1)
            case "check":
                with float32():
                    return task.check(contender, case) if task.check else []
            case "time":
                wait(calls[name]())
                return seconds(calls[name], n)
            case "memory":
                return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            case "device":
                return device()
            case _:
                raise ValueError(f"unknown command {command!r}")

    for line in sys.stdin:
        name, command, *n = line.split()
        try:
            answer = {"value": do(name, command, *map(int, n))}
        except (ModuleNotFoundError, Missing) as error:
            answer = {"missing": str(error)}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
