"""What happens to every request before and after its route. Plain ASGI: microseconds, and disconnects pass through."""

import asyncio
import hmac
import logging
import time
import uuid
from collections.abc import Callable, Collection
from http import HTTPStatus
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kgtrace_server.http.logs import Line, write_line
from kgtrace_server.problems import DeadlineExceeded, QueueFull, error_response, problem

if TYPE_CHECKING:
    from kgtrace_server.http.metrics import Metrics
    from kgtrace_server.http.worker import Worker

REQUEST_ID = "X-Request-Id"
GENERATION = "X-Kgtrace-Generation"

PUBLIC = frozenset({"/", "/livez", "/readyz", "/metrics", "/docs", "/openapi.json"})
"""Paths that need no key, and `PUBLIC_FOLDERS`. Any other does, so that a new route is never open by oversight."""

PUBLIC_FOLDERS = ("/docs/", "/dashboard/")
"""What the documentation's page and the dashboard are made of."""

ADMIN = "/v1/admin/"
"""Paths below need the admin key."""

CLIENT_GONE = 499
"""Status, in logs and metrics alone, of a request whose client did not wait for the answer; nginx's number."""

_LONGEST_REQUEST_ID = 128

_LINGER_BYTES = 16 << 20
_LINGER_SECONDS = 2.0
"""How much of a refused body is read and thrown away, so that its sender gets to see why: closing a connection on
bytes that were not read discards the answer. It is more than what is under way in buffers when the answer is sent."""

_SAFE = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)
"""On every answer that does not say otherwise: it is data, and no browser should make anything else of it."""

_log = logging.getLogger(__name__)


class Observe:
    """Measures every request, and writes one line about it."""

    def __init__(self, app: ASGIApp, metrics: "Metrics") -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = CLIENT_GONE

        async def send_observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_observed)
        finally:
            state = scope["state"]
            line = Line(
                request_id=state["request_id"],
                method=scope["method"],
                route=_route(scope),
                status=status,
                seconds=time.perf_counter() - started,
                queue_seconds=state.get("queue_seconds"),
                generation=state.get("generation"),
            )
            self._metrics.request(line)
            write_line(line)


class Identify:
    """Puts on every answer the request's id, the index's generation and restrictions for browsers.

    Answers 500 to exceptions that no handler caught.
    """

    def __init__(self, app: ASGIApp, generation: Callable[[], str | None]) -> None:
        self._app = app
        self._generation = generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(Headers(scope=scope).get(REQUEST_ID))
        scope.setdefault("state", {})["request_id"] = request_id
        started = False

        async def send_identified(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID] = request_id
                headers[GENERATION] = scope["state"].get("generation") or self._generation() or "none"
                names = {name for name, _ in headers.raw}
                headers.raw.extend(header for header in _SAFE if header[0] not in names)
            await send(message)

        try:
            await self._app(scope, receive, send_identified)
        except Exception:
            _log.exception("request %s failed", request_id)
            if not started:
                await internal_error(request_id)(scope, receive, send_identified)


class RequireKey:
    """Refuses requests without the key that their path needs, before their body is read.

    The admin key opens everything. Without a read key everything but the admin paths is open; without an admin key
    those are closed to everybody.
    """

    def __init__(self, app: ASGIApp, read_key: str | None, admin_key: str | None) -> None:
        self._app = app
        self._read_key = read_key
        self._admin_key = admin_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        await (refusal or self._app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        path: str = scope["path"]
        if path in PUBLIC or path.startswith(PUBLIC_FOLDERS):
            return None
        sent = _sent_key(Headers(scope=scope))
        # Both are always compared, so that the time taken tells nothing.
        reads, administers = _equal(sent, self._read_key), _equal(sent, self._admin_key)
        if administers:
            return None
        if not path.startswith(ADMIN):
            return None if reads or self._read_key is None else _unauthorized()
        if self._admin_key is None and (reads or self._read_key is None):
            return problem(
                HTTPStatus.FORBIDDEN,
                "the service has no admin key: set KGTRACE_ADMIN_KEY, or use the command line beside the index",
            )
        return problem(HTTPStatus.FORBIDDEN, "this takes the admin key") if reads else _unauthorized()


class Deadline:
    """Ends requests that take too long, with 504 where the answer has not begun.

    The time runs from the request's head, so a body that trickles in counts, too.
    """

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self._app = app
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        read_whole = False

        async def receive_noted() -> Message:
            nonlocal read_whole
            message = await receive()
            read_whole = not message.get("more_body", False)
            return message

        async def send_in_time(message: Message) -> None:
            limit.reschedule(None)
            await send(message)

        try:
            async with asyncio.timeout(self._seconds) as limit:
                await self._app(scope, receive_noted, send_in_time)
        except TimeoutError:
            if not limit.expired():
                raise
            response = error_response(
                DeadlineExceeded(
                    f"no answer within {self._seconds:g} seconds: ask for fewer triples or set max_candidates"
                )
            )
            if not read_whole:
                response.headers.update(_CLOSE)
            await response(scope, receive, send)


class LimitBody:
    """Refuses bodies over a limit: announced ones unread, others as soon as they exceed it."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        announced = headers.get("Content-Length", "")
        if announced.isdecimal() and (len(announced) > len(str(self._limit)) or int(announced) > self._limit):
            refusal = problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, self._detail, headers=_CLOSE)
            # A client that asks before it sends has sent nothing.
            linger = _until_sent if "Expect" in headers else _lingering
            await refusal(scope, receive, linger(receive, send))
            return
        read = 0
        exceeded = False
        send_refusal = _lingering(receive, send)

        async def receive_limited() -> Message:
            nonlocal read, exceeded
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._limit:
                exceeded = True
                raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, self._detail, _CLOSE)
            return message

        async def send_limited(message: Message) -> None:
            await (send_refusal if exceeded else send)(message)

        await self._app(scope, receive_limited, send_limited)

    @property
    def _detail(self) -> str:
        return f"the body is larger than {self._limit} bytes: send fewer triples a request"


class Admit:
    """Refuses a request for which the queue has no room, before its body is read."""

    def __init__(self, app: ASGIApp, worker: "Worker", paths: Collection[str]) -> None:
        self._app = app
        self._worker = worker
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        app = self._app
        if scope["type"] == "http" and scope["path"] in self._paths:
            try:
                self._worker.require_room()
            except QueueFull as e:
                app = error_response(e)
        await app(scope, receive, send)


_CLOSE = {"Connection": "close"}
"""Without it the server would read the rest of the body in search of the next request."""


def internal_error(request_id: str) -> Response:
    """Say that the fault is ours, and no more: causes belong in the log."""
    return problem(HTTPStatus.INTERNAL_SERVER_ERROR, f"internal error; the log has it under request id {request_id}")


def _until_sent(_: Receive, send: Send) -> Send:
    return send


def _lingering(receive: Receive, send: Send) -> Send:
    """Return a ``send`` that, before the answer's end, throws away a bounded part of the request."""

    async def linger() -> None:
        left = _LINGER_BYTES
        while left > 0:
            message = await receive()
            if message["type"] == "http.disconnect" or not message.get("more_body", False):
                return
            left -= len(message.get("body", b""))

    async def send_lingering(message: Message) -> None:
        if message["type"] != "http.response.body" or message.get("more_body", False):
            await send(message)
            return
        await send({**message, "more_body": True})
        try:
            async with asyncio.timeout(_LINGER_SECONDS):
                await linger()
        except TimeoutError:
            pass
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    return send_lingering


def _sent_key(headers: Headers) -> str:
    scheme, _, token = headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else headers.get("X-API-Key", "")


def _equal(sent: str, key: str | None) -> bool:
    return hmac.compare_digest(sent.encode("latin-1"), (key or "").encode()) and key is not None


def _unauthorized() -> Response:
    return problem(
        HTTPStatus.UNAUTHORIZED,
        "send the service's key as Authorization: Bearer KEY or X-API-Key: KEY",
        headers={"WWW-Authenticate": "Bearer"},
    )


def _route(scope: Scope) -> str:
    """Return the matched route's path as declared: there are few, so that they can label metrics."""
    return getattr(scope.get("route"), "path", "none")


def _request_id(sent: str | None) -> str:
    if sent and len(sent) <= _LONGEST_REQUEST_ID and all(" " <= character <= "~" for character in sent):
        return sent
    return uuid.uuid4().hex
