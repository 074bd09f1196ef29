"""The launcher of one machine: processes that start together and end together."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from fnn.distributed.run import COORDINATOR, PROCESS, PROCESSES
from fnn.distributed.watch import LAUNCHER

SAVE, GRACE = 30.0, 2.0  # seconds to end after a signal to this launcher, and after a failure
DEVICES, FLAGS = "JAX_LOCAL_DEVICE_IDS", "XLA_FLAGS"


def main(arguments: Sequence[str] | None = None) -> int:
    """Start the processes and pass on what they print; the status of the first that fails, or 0."""
    parser = argparse.ArgumentParser(
        prog="python -m fnn.distributed",
        description="Run a script that calls fnn.distributed.run in several processes on this "
        "machine. Each line that they print is marked [i]. When one fails, all end.",
    )
    parser.add_argument("--processes", type=int, required=True, help="how many")
    parser.add_argument(
        "--devices", type=int, default=1, metavar="N",
        help="devices of each process: process i has GPUs i N to i N + N - 1, or N CPU devices",
    )  # fmt: skip
    parser.add_argument("script", help="a Python file")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="passed on to the script")
    asked = parser.parse_args(arguments)
    if asked.processes < 1 or asked.devices < 1:
        parser.error("--processes and --devices count from 1")
    command = [sys.executable, "-u", asked.script, *asked.arguments]
    return _Processes(command, asked.processes, asked.devices).wait()


class _Processes:
    """The processes of a run, each of a group of its own, which its children belong to."""

    def __init__(self, command: Sequence[str], count: int, devices: int):
        self.asked: int | None = None  # a signal to this launcher
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._note)
        environment = {
            **os.environ,
            COORDINATOR: f"127.0.0.1:{_free_port()}",
            PROCESSES: str(count),
            LAUNCHER: str(os.getpid()),
        }
        if devices > 1:
            flag = f"--xla_force_host_platform_device_count={devices}"
            environment[FLAGS] = f"{os.environ.get(FLAGS, '')} {flag}".strip()
        self.all, self.readers = [], []
        for i in range(count):
            own = ",".join(str(i * devices + j) for j in range(devices))
            process = subprocess.Popen(
                command, env={**environment, PROCESS: str(i), DEVICES: own},
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                start_new_session=True,
            )  # fmt: skip
            self.all.append(process)
            for source, target in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
                reader = threading.Thread(target=_pass_on, args=(i, source, target), daemon=True)
                reader.start()
                self.readers.append(reader)

    def wait(self) -> int:
        """The status of the first process that fails, once all have ended; 0 if none does."""
        try:
            status = self._first_failure()
            if status:
                self._until(GRACE)  # the others see it too, and say so
        finally:
            for number in (signal.SIGTERM, signal.SIGKILL):
                self._signal(number)
                self._until(GRACE)
        for reader in self.readers:
            reader.join(1)
        return status

    def _first_failure(self) -> int:
        while True:
            if self.asked is not None:
                number, self.asked = self.asked, None
                self._signal(number)
                self._until(SAVE)  # or until a second signal
                return 128 + number
            statuses = [process.poll() for process in self.all]
            for i, status in enumerate(statuses):
                if status:
                    print(f"fnn.distributed: process {i} {_shown(status)}", file=sys.stderr)
                    return status if status > 0 else 128 - status
            if None not in statuses:
                return 0
            time.sleep(0.05)

    def _until(self, seconds: float) -> None:
        """Wait until all have ended, or so long."""
        end = time.monotonic() + seconds
        while any(process.poll() is None for process in self.all):
            if time.monotonic() > end or self.asked is not None:
                break
            time.sleep(0.02)

    def _signal(self, number: int) -> None:
        """To what is left of every group."""
        for process in self.all:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, number)

    def _note(self, number: int, _: Any) -> None:
        self.asked = number


def _shown(status: int) -> str:
    if status > 0:
        return f"ended with status {status}"
    return f"was ended by {signal.Signals(-status).name}"


def _pass_on(i: int, source: Any, target: Any) -> None:
    """Every line that a process prints, marked with its number."""
    for line in iter(source.readline, b""):
        text = line.decode(errors="replace").rstrip("\n")
        with contextlib.suppress(OSError, ValueError):  # nobody reads any more
            target.write(f"[{i}] {text}\n")
            target.flush()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
