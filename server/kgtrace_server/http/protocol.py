"""HTTP on a connection, within bounds that nothing above it could set."""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 64 * 1024
"""Bytes of a request's line and headers, of all that is not body; the parser itself would take any number."""

HEAD_SECONDS = 10.0
"""From a request's first byte, or the connection's beginning, to the end of its headers."""


class BoundedProtocol(HttpToolsProtocol):
    """Closes connections whose request's head is too long, or too long in coming."""

    _waiting: asyncio.TimerHandle | None = None
    _unfinished = 0
    """Bytes since something was finished: a head, a piece of a body, a message."""
    _in_body = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse the bytes received."""
        if not self._in_body:
            self._wait()
        self._unfinished += len(data)
        super().data_received(data)
        if self._unfinished > HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response(f"The head of a request may have {HEAD_BYTES} bytes.")

    def on_headers_complete(self) -> None:
        """Hand the request on."""
        self._stop_waiting()
        self._unfinished = 0
        self._in_body = True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Keep a piece of the body."""
        self._unfinished = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End the request; another may follow on the connection."""
        self._unfinished = 0
        self._in_body = False
        super().on_message_complete()

    def _wait(self) -> None:
        if self._waiting is None:
            self._waiting = self.loop.call_later(HEAD_SECONDS, self._too_late)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _too_late(self) -> None:
        self._waiting = None
        self.transport.close()
