"""Uvicorn's HTTP, with limits for the headers of requests as well."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADERS = 1 << 16  # bytes


class Protocol(HttpToolsProtocol):
    """A connection whose headers must come in time, and be no longer than HEADERS.

    Uvicorn limits the time between requests, but not that of headers which come byte by byte.
    """

    waiting: asyncio.TimerHandle | None = None
    early = 0  # bytes since the last request, or the start

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop()
            return
        self.early += len(data)
        if self.early > HEADERS:
            self.transport.close()
        if self.waiting is None:
            self._wait()

    def timeout_keep_alive_handler(self) -> None:
        if self.transport.get_write_buffer_size():  # the client reads no more
            self.transport.abort()
        super().timeout_keep_alive_handler()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self.waiting = self.loop.call_later(self.config.timeout_keep_alive, self.transport.close)

    def _stop(self) -> None:
        self.early = 0
        if self.waiting is not None:
            self.waiting.cancel()
            self.waiting = None
