"""Bodies of requests, read up to a size and within a time, and refusals that clients can read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fnn.serve.messages import JSON, Refused

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]

BODIES = 8  # so many of the largest may be in memory unfinished
LINGER = 2.0  # seconds for which the rest of a refused body is read, and thrown away


class Gone(Exception):
    """The client has closed its connection."""


class Reader:
    """Reads bodies of at most `limit` bytes, each within `seconds`, and BODIES * limit in all."""

    def __init__(self, limit: int, seconds: float):
        self.limit, self.seconds = limit, seconds
        self.held = 0  # bytes of unfinished bodies

    async def read(self, headers: dict[bytes, bytes], receive: Receive) -> bytearray:
        """The body; raises Refused, 413, 408 or 503, or Gone."""
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 18 or int(length) > self.limit:
            raise self._too_large()
        body = bytearray()
        try:
            async with asyncio.timeout(self.seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Gone
                    part = message.get("body", b"")
                    if len(body) + len(part) > self.limit:
                        raise self._too_large()
                    body += part
                    self.held += len(part)
                    if self.held > BODIES * self.limit:
                        raise busy()
                    if not message.get("more_body"):
                        return body
        except TimeoutError as error:
            raise Refused(408, f"expected the body within {self.seconds:g} s") from error
        finally:
            self.held -= len(body)

    def _too_large(self) -> Refused:
        return Refused(413, f"expected a body of at most {self.limit} bytes")


def busy() -> Refused:
    return Refused(503, "busy; try again", **{"retry-after": "1"})


async def refuse(refused: Refused, unread: bool, receive: Receive, send: Send) -> None:
    """Answer by a status and a reason, also a client that is still sending its body.

    To close a connection while data comes in would reset it, and the client might never see the
    answer; so some of the data is read first.
    """
    body = json.dumps({"error": refused.reason}).encode()
    headers = refused.headers | {"connection": "close"} if unread else refused.headers
    await answer(send, refused.status, body, JSON, headers=headers, more=unread)
    if not unread:
        return
    try:
        async with asyncio.timeout(LINGER):
            while (message := await receive())["type"] != "http.disconnect":
                if not message.get("more_body"):
                    break
    except TimeoutError:
        pass
    await send({"type": "http.response.body", "body": b""})


async def answer(
    send: Send,
    status: int,
    body: bytes,
    kind: str,
    *,
    headers: Mapping[str, str] | None = None,
    more: bool = False,
) -> None:
    """Send an answer; with `more`, its end is yet to be sent."""
    fields = {"content-type": kind, "content-length": str(len(body)), **(headers or {})}
    encoded = [(name.encode(), value.encode()) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body, "more_body": more})
