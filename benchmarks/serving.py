"""Servers of one network under load: requests per second, latencies, and a soak among bad clients.

    python -m benchmarks.serving                    # 1 and 16 clients; with and without batches
    python -m benchmarks.serving --soak 600         # ten minutes at 64 clients, a third of them bad

The network is that of examples/mnist_cnn.py, not trained. Each contender is a process of its own,
asked in turns by one process of clients that keep their connections, send the next request when an
answer has come, and compare every answer with what the network gives by hand. LitServe takes part
if `--litserve PYTHON` names an environment with litserve and jax.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

CONTENDERS = {"fnn": "64", "fnn, no batches": "1"}  # --max-batch
ROUNDS = 7
TOLERANCE = 2e-4

LITSERVE = """
import sys
import litserve as ls
import numpy as np

class Api(ls.LitAPI):
    def setup(self, device):
        import fnn
        self.net = fnn.export.load(sys.argv[1])
        for n in (1, 2, 4, 8, 16, 32, 64):
            np.asarray(self.net(np.zeros((n, 28, 28, 1), np.float32)))

    def decode_request(self, request):
        return np.asarray(request["x"], np.float32)

    def batch(self, inputs):
        return np.stack(inputs)

    def predict(self, x):  # padded to what is compiled
        size = 1 << (len(x) - 1).bit_length()
        padded = np.concatenate([x, np.broadcast_to(x[:1], (size - len(x), *x.shape[1:]))])
        return np.asarray(self.net(padded))[:len(x)]

    def unbatch(self, output):
        return list(output)

    def encode_response(self, output):
        return {"y": output.tolist()}

if __name__ == "__main__":
    server = ls.LitServer(Api(max_batch_size=64, batch_timeout=0.0), accelerator="cpu")
    address = dict(host="127.0.0.1", port=int(sys.argv[2]))
    server.run(**address, log_level="error", generate_client_file=False)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=FORM)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one round of one contender")
    parser.add_argument("--soak", type=float, default=0.0, help="seconds of a soak instead")
    parser.add_argument("--litserve", help="the python of an environment with litserve")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        examples = make(pathlib.Path(folder) / "net")
        if args.soak:
            return asyncio.run(soak(folder + "/net", examples, args.soak))
        compare(folder, examples, args.seconds, args.litserve)
    return 0


FORM = argparse.RawDescriptionHelpFormatter


def make(path: pathlib.Path, count: int = 64) -> list[tuple[Any, Any]]:
    """Write the artifact; return examples with what the network gives for each alone."""
    import jax
    import numpy as np

    import fnn

    net = fnn.serial(
        fnn.conv(32, (3, 3)), jax.nn.relu, fnn.max_pool((2, 2)),
        fnn.conv(64, (3, 3)), jax.nn.relu, fnn.max_pool((2, 2)),
        fnn.flatten(3), fnn.dense(128), jax.nn.relu, fnn.dropout(0.5), fnn.dense(10),
    )  # fmt: skip
    params, state = net.init(jax.random.key(0), (1, 28, 28, 1))
    x = np.random.default_rng(0).integers(0, 256, (count, 28, 28, 1))
    x = np.where(x < 200, 0, x / 255).round(4).astype(np.float32)  # mostly dark, as digits are
    fnn.export.save(path, net, params, state, ("batch", 28, 28, 1), examples=x, platforms=["cpu"])
    return [(row, np.asarray(net(params, row)).tolist()) for row in x]


def request(x: Any, kind: str) -> bytes:
    """One request as bytes."""
    import numpy as np

    file = io.BytesIO()
    np.save(file, x)
    body = json.dumps({"x": x.tolist()}).encode() if kind == "json" else file.getvalue()
    content = {"json": "application/json", "npy": "application/x-npy"}[kind]
    top = "POST /predict HTTP/1.1\r\nhost: 127.0.0.1\r\n"
    return f"{top}content-type: {content}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


# --- processes


@contextlib.contextmanager
def served(command: Sequence[str]) -> Iterator[tuple[subprocess.Popen, int]]:
    """A server as a process, and its port."""
    pipe = subprocess.PIPE
    process = subprocess.Popen([*command], stdout=pipe, text=True, start_new_session=True)
    try:
        port = command[-1]
        if "fnn.serve" in command:
            assert process.stdout
            port = process.stdout.readline().strip().rsplit(":", 1)[1]
        wait_for(int(port), process)
        yield process, int(port)
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its children too
        process.wait()


def wait_for(port: int, process: subprocess.Popen) -> None:
    while process.poll() is None:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port)).close()
            return
        time.sleep(0.1)
    raise OSError(f"the server on {port} ended with code {process.returncode}")


def fnn_command(path: str, max_batch: str = "64") -> list[str]:
    options = ["--max-batch", max_batch, "--timeout", "5", "--port", "0"]
    return [sys.executable, "-m", "fnn.serve", path, *options]


# --- clients


class Client(asyncio.Protocol):
    """One connection that asks for ever, and notes how long each answer took."""

    def __init__(self, asked: list, end: float, seconds: list[float], found: Counter):
        self.asked, self.end, self.seconds, self.found = asked, end, seconds, found
        self.buffer = b""
        self.over = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        data, self.want, self.kind = random.choice(self.asked)
        self.start = time.perf_counter()
        self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        top, found, body = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(top.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        if len(body) < length:
            return
        self.buffer = b""
        self.seconds.append(time.perf_counter() - self.start)
        self.found[self.judged(top, body)] += 1
        if time.perf_counter() < self.end:
            self.ask()
        else:
            self.transport.close()

    def judged(self, top: bytes, body: bytes) -> str:
        if b" 200 " not in top[:15]:
            return top[9:12].decode()
        if self.kind == "json":
            y = json.loads(body)["y"]
        else:
            import numpy as np

            y = np.frombuffer(body[-40:], np.float32).tolist()
        near = all(abs(a - b) < TOLERANCE for a, b in zip(y, self.want, strict=True))
        return "right" if near else "wrong"

    def connection_lost(self, exc: Exception | None) -> None:
        if time.perf_counter() < self.end:
            self.found["lost"] += 1
        if not self.over.done():
            self.over.set_result(None)


async def load(port: int, asked: list, clients: int, seconds: float) -> tuple[list, Counter, float]:
    """Latencies, kinds of answers and the time that all took."""
    times: list[float] = []
    found: Counter = Counter()
    loop, start = asyncio.get_running_loop(), time.perf_counter()
    made = [
        await loop.create_connection(
            lambda: Client(asked, start + seconds, times, found), "127.0.0.1", port
        )
        for _ in range(clients)
    ]
    await asyncio.wait_for(asyncio.gather(*(client.over for _, client in made)), seconds + 60)
    return times, found, time.perf_counter() - start


def percentile(values: Sequence[float], share: float) -> float:
    ranked = sorted(values)
    return ranked[min(int(share * len(ranked)), len(ranked) - 1)]


# --- what is measured


def compare(folder: str, examples: list, seconds: float, litserve: str | None) -> None:
    import uvloop  # so that clients take little from the cores

    commands = {name: fnn_command(folder + "/net", size) for name, size in CONTENDERS.items()}
    if litserve:
        script = pathlib.Path(folder) / "api.py"
        script.write_text(LITSERVE)
        commands["litserve"] = [litserve, str(script), folder + "/net", "8377"]
    kinds = {kind: [(request(x, kind), y, kind) for x, y in examples] for kind in ("json", "npy")}
    results: dict[tuple, list] = {}
    turns = [[name for name in commands if name in CONTENDERS], ["litserve"] * bool(litserve)]
    for names in turns:  # LitServe alone: its worker takes a core while it waits
        with contextlib.ExitStack() as stack:
            ports = {name: stack.enter_context(served(commands[name]))[1] for name in names}
            for name in names:
                wait_until_right(ports[name], kinds["json"], name)
            cases = [
                (k, c) for k in kinds for c in (1, 16) if k == "json" or "litserve" not in names
            ]
            for _ in range(ROUNDS):
                for kind, clients in cases:
                    for name in random.sample(names, len(names)):
                        found = uvloop.run(load(ports[name], kinds[kind], clients, seconds))
                        assert set(found[1]) == {"right"}, (name, found[1])
                        results.setdefault((kind, clients, name), []).append(found)
    print(f"{'':24}{'requests/s':>12}{'p50 ms':>10}{'p99 ms':>10}")
    for (kind, clients, name), rounds in sorted(results.items()):
        rate = percentile([len(times) / took for times, _, took in rounds], 0.5)
        times = [1e3 * t for r in rounds for t in r[0]]
        row = f"{kind:4} {clients:2} {name:16}{rate:12,.0f}"
        print(f"{row}{percentile(times, 0.5):10.2f}{percentile(times, 0.99):10.2f}")


def wait_until_right(port: int, asked: list, name: str) -> None:
    for _ in range(100):
        found = asyncio.run(load(port, asked, 1, 0.3))[1]
        if set(found) == {"right"}:
            return
        time.sleep(0.3)
    raise OSError(f"{name} gives no right answers: {found}")


async def bad(port: int, end: float, good: bytes, kind: str, found: Counter) -> None:
    """A client that does one thing wrong, again and again, and notes what it is told."""
    top, _, body = good.partition(b"\r\n\r\n")
    huge = b"POST /predict HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
    while time.perf_counter() < end:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            found[kind, "refused"] += 1
            continue
        with contextlib.suppress(OSError):
            if kind == "slow":
                for i in range(0, len(good), 1 + len(good) // 40):
                    writer.write(good[i : i + 1 + len(good) // 40])
                    await asyncio.sleep(0.05)
            elif kind == "too slow":
                writer.write(good[: len(top) + 20])
            elif kind == "broken":
                writer.write(top + b"\r\n\r\n" + b"[" * len(body))
            elif kind == "large":
                writer.write(huge + b"content-length: 9000000\r\n\r\n" + bytes(500_000))
            elif kind == "chunked":
                chunk = b"10000\r\n" + bytes(65536) + b"\r\n"
                writer.write(huge + b"transfer-encoding: chunked\r\n\r\n" + chunk * 40)
            elif kind == "leaves":
                writer.write(good if random.random() < 0.5 else good[: len(good) // 2])
                await writer.drain()
                await asyncio.sleep(random.random() * 0.01)
        status = "closed"
        if kind != "leaves":
            with contextlib.suppress(OSError):
                status = (await reader.read(65536))[9:12].decode() or "closed"
        found[kind, status] += 1
        writer.transport.abort()
        await asyncio.sleep(0.02)


async def soak(path: str, examples: list, seconds: float) -> int:
    asked = [(request(x, kind), y, kind) for x, y in examples for kind in ("json", "npy")]
    with served(fnn_command(path)) as (process, port):
        start = time.perf_counter()
        end, told = start + seconds, Counter()
        kinds = ("slow", "too slow", "broken", "large", "chunked", "leaves")
        others = [
            asyncio.create_task(bad(port, end, asked[0][0], kind, told))
            for kind in kinds
            for _ in range(4)
        ]
        good = asyncio.create_task(load(port, asked, 40, seconds))
        resident = []
        while not good.done():
            await asyncio.sleep(min(seconds / 20, 30))
            resident.append(memory(process.pid))
            print(f"{time.perf_counter() - start:6.0f} s  {resident[-1]:7.1f} MiB", flush=True)
        times, found, took = await good
        await asyncio.gather(*others)
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
    print(f"{len(times):,} answers to 40 good clients in {took:.0f} s: {dict(found)}")
    print(f"{len(times) / took:,.0f} requests/s, ms at p50 {1e3 * percentile(times, 0.5):.1f}, "
          f"p99 {1e3 * percentile(times, 0.99):.1f}, most {1e3 * max(times):.1f}")  # fmt: skip
    for (kind, status), count in sorted(told.items()):
        print(f"  {kind:10} {status:8} {count:,}")
    grown = max(resident[-3:]) - resident[len(resident) // 4]
    print(f"memory grew by {grown:.1f} MiB in the last three quarters; SIGTERM: code {code}")
    return int(set(found) != {"right"} or code != 0)


def memory(pid: int) -> float:
    """The resident memory of a process in MiB."""
    pages = int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    sys.exit(main())
