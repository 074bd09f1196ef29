"""What answers a path: predictions, constant pages, and the counting of both."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fnn.serve.batcher import Arrays, Batcher, log
from fnn.serve.bodies import Gone, Reader, Receive, Send, answer, busy, refuse
from fnn.serve.interface import Interface
from fnn.serve.messages import Refused, decode, encode, kind_of
from fnn.serve.monitoring import Monitor

Scope = Any
PATIENCE = 0.02  # seconds; a request that waits for longer looks whether its client is still there
HEADERS = {
    "cache-control": "no-store",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class Predict:
    """Answers a request by the outputs of the network."""

    path = "/predict"

    def __init__(self, interface: Interface, batcher: Batcher, reader: Reader, monitor: Monitor):
        self.interface, self.batcher, self.reader = interface, batcher, reader
        self.monitor = monitor

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        unread = True
        try:
            headers = dict(scope["headers"])
            kind = kind_of(headers.get(b"content-type", b"").decode("latin-1"), self.interface)
            body = await self.reader.read(headers, receive)
            unread = False
            data = await self._answer(body, kind, receive)
        except Refused as refused:
            await refuse(refused, unread, receive, send)
        except Gone:
            self.monitor.left.inc()
        else:
            await answer(send, 200, data, kind)

    async def _answer(self, body: bytearray, kind: str, receive: Receive) -> bytes:
        if self.batcher.full:  # before the work of decoding
            raise busy()
        xs, alone = decode(body, kind, self.interface)
        ys = await self._ask(xs, receive)
        return encode(ys, kind, self.interface, alone)

    async def _ask(self, xs: Arrays, receive: Receive) -> Arrays:
        """The outputs, unless the client leaves first."""
        try:
            ys = self.batcher.submit(xs)
        except asyncio.QueueFull:
            raise busy() from None
        if self.monitor.watch:
            self.monitor.watch.add(xs)
        watched: list[asyncio.Task] = []

        def watch_client() -> None:
            watched.append(asyncio.create_task(cancel_when_gone(receive, ys)))

        late = asyncio.get_running_loop().call_later(PATIENCE, watch_client)
        try:
            return await ys
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task and task.cancelling():  # by the server
                ys.cancel()
                raise
            raise Gone from None
        except RuntimeError:
            log.exception("the network failed on a batch")
            raise Refused(500, "the network failed on this batch") from None
        finally:
            late.cancel()
            for task in watched:
                task.cancel()


async def cancel_when_gone(receive: Receive, future: asyncio.Future) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    future.cancel()


class Get:
    """Answers by a constant, or by what a function returns."""

    def __init__(
        self,
        path: str,
        body: bytes | Callable[[], Awaitable[tuple[int, bytes]]],
        kind: str,
        **headers: str,
    ):
        self.path, self.body, self.kind, self.headers = path, body, kind, headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status, body = (200, self.body) if isinstance(self.body, bytes) else await self.body()
        await answer(send, status, body, self.kind, headers=self.headers)


class Counted:
    """Middleware that counts and times answers, and adds the headers that all of them have.

    - `posts`: by path, what answers a POST before the router is asked, which takes as long as the
      reading of a npy file.
    """

    def __init__(
        self,
        app: Callable,
        monitor: Monitor,
        posts: Mapping[str, Callable],
        headers: Mapping[str, str] = HEADERS,
    ):
        self.app, self.monitor, self.posts = app, monitor, posts
        self.headers = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status, app = time.perf_counter(), 0, self.app
        if scope["method"] == "POST" and not scope.get("root_path"):
            if post := self.posts.get(scope["path"]):
                scope["endpoint"] = app = post

        async def counted(message):
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", []), *self.headers]}
            await send(message)

        try:
            await app(scope, receive, counted)
        except Exception:
            status = status or 500
            raise
        finally:
            path = getattr(scope.get("endpoint"), "path", "other")  # of those there are, no others
            if status:
                self.monitor.requests_of(path, str(status)).inc()
                self.monitor.seconds_of(path).observe(time.perf_counter() - start)
