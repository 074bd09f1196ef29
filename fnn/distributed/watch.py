"""Processes that end together: a connection of each with the first, whose end is a death.

JAX's own heartbeats, of threads that wait for no lock of Python's, find a process that is stopped
or that the network has lost. They take as long for one that has died, whose connection says so at
once, and they cannot tell the others why.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import sys
import threading
import time
from typing import Any, NoReturn

import jax

from fnn.core.agreement import gather

LAUNCHER = "FNN_LAUNCHER"  # the process id of `python -m fnn.distributed`, for those it started
PATIENCE = 30.0  # seconds to connect
GRACE = 0.2  # seconds for a message to reach the others


def say(text: str) -> None:
    """On stderr, if anybody still reads it."""
    with contextlib.suppress(Exception):
        print(text, file=sys.stderr)


def leave(status: int) -> NoReturn:
    """End this process now, whatever its other threads wait for."""
    for file in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            file.flush()
    os._exit(status)


class Watch:
    """This process's part in the watch; process 0 hears of all, and tells all.

    Messages are lines of JSON: `{"kind": "failed", "process": i, "why": ...}` from any to all,
    `{"kind": "done", "process": i}` to process 0, and `{"kind": "end"}` from it.
    """

    def __init__(self, coordinator: str | None):
        self.me, self.count = jax.process_index(), jax.process_count()
        self.over = threading.Event()  # every process is done
        self.lock = threading.Lock()
        self.finished: set[int] = set()
        self.own, self.told = "", False  # why this process fails, and whether others know
        listener = socket.create_server(("", 0)) if self.me == 0 else None
        port = listener.getsockname()[1] if listener else 0
        said = {"hosts": _hosts(coordinator), "port": port, "token": secrets.token_hex(16)}
        first = json.loads(gather(json.dumps(said if listener else {}).encode())[0])
        if listener:
            self.others = _accepted(listener, first["token"], self.count - 1)
        else:
            self.others = {0: _connected(first, self.me)}
        for process, (connection, lines) in self.others.items():
            self._start(self._hear, process, connection, lines)
        if LAUNCHER in os.environ:
            self._start(self._follow, int(os.environ[LAUNCHER]))

    def failed(self, why: str) -> None:
        """Tell the others that this process fails, unless it hears meanwhile that another did."""
        self.own = f"failed: {why[:1000]}"
        time.sleep(GRACE)
        self.told = True
        self._send({"kind": "failed", "process": self.me, "why": self.own})
        time.sleep(GRACE)

    def done(self) -> None:
        """Wait until every process is done."""
        self._finish(self.me)
        self._send({"kind": "done", "process": self.me})
        self.over.wait()

    def _start(self, target: Any, *arguments: Any) -> None:
        threading.Thread(target=target, args=arguments, name="fnn watch", daemon=True).start()

    def _send(self, message: dict, but: int | None = None) -> None:
        line = f"{json.dumps(message)}\n".encode()
        with self.lock:
            for process, (connection, _) in self.others.items():
                if process != but:
                    with contextlib.suppress(OSError):  # it is gone, which `_hear` finds out
                        connection.sendall(line)

    def _hear(self, process: int, connection: socket.socket, lines: Any) -> None:
        """Messages of one process, until its connection ends."""
        with contextlib.suppress(OSError, ValueError):
            for line in lines:
                message = json.loads(line)
                if message["kind"] == "done" and self.me == 0:
                    self._finish(message["process"])
                elif message["kind"] == "failed":
                    self._end(message["process"], message["why"])
                elif message["kind"] == "end":
                    self.over.set()
        if not self.over.is_set():
            self._end(process, "has died: its connection ended")

    def _finish(self, process: int) -> None:
        with self.lock:
            self.finished.add(process)
            all_done = self.me == 0 and len(self.finished) == self.count
        if all_done:
            self.over.set()
            self._send({"kind": "end"})

    def _end(self, process: int, why: str) -> NoReturn:
        """End this process because of another, and tell of it."""
        if self.me == 0:
            self._send({"kind": "failed", "process": process, "why": why}, but=process)
            time.sleep(GRACE)
        if not self.told and why != self.own:  # else it has said so itself
            say(f"fnn.distributed: process {self.me} ends, since process {process} {why}")
        leave(1)

    def _follow(self, launcher: int) -> None:
        """End when the launcher is gone, which has passed this process on to another parent."""
        while os.getppid() == launcher:
            time.sleep(1)
        say(f"fnn.distributed: process {self.me} ends, since its launcher did")
        leave(1)


# --- connecting


def _hosts(coordinator: str | None) -> list[str]:
    """Under which names others may reach this machine."""
    hosts = [coordinator.rpartition(":")[0].strip("[]")] if coordinator else []
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing, but chooses the address of the network
        hosts.append(probe.getsockname()[0])
    return [*hosts, socket.gethostname()]


def _accepted(listener: socket.socket, token: str, count: int) -> dict[int, Any]:
    """The connections of so many processes, by their numbers; others are turned away."""
    others: dict[int, Any] = {}
    listener.settimeout(PATIENCE)
    with listener:
        while len(others) < count:
            connection, _ = listener.accept()
            connection.settimeout(PATIENCE)
            lines = connection.makefile("r", encoding="utf-8")
            try:
                said = json.loads(lines.readline(1000))
            except (OSError, ValueError):
                said = None
            if isinstance(said, dict) and said.get("token") == token:
                connection.settimeout(None)
                others[said["process"]] = connection, lines
            else:
                connection.close()
    return others


def _connected(first: dict, me: int) -> Any:
    """A connection with process 0."""
    tried = []
    for host in first["hosts"]:
        try:
            connection = socket.create_connection((host, first["port"]), PATIENCE / 3)
        except OSError as error:
            tried.append(f"{host}: {error}")
            continue
        connection.settimeout(None)
        connection.sendall(json.dumps({"token": first["token"], "process": me}).encode() + b"\n")
        return connection, connection.makefile("r", encoding="utf-8")
    port = first["port"]
    raise ConnectionError(f"process {me} cannot reach process 0 at port {port} ({tried})")
