"""What happens to every request before and after its route. Plain ASGI: microseconds, and disconnects pass through."""

import hmac
import logging
import uuid
from collections.abc import Callable
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kgtrace_server.problems import problem

REQUEST_ID = "X-Request-Id"
GENERATION = "X-Kgtrace-Generation"

PUBLIC = frozenset({"/livez", "/readyz", "/docs", "/docs/oauth2-redirect", "/openapi.json"})
"""Paths that need no key. Any other does, so that a new route is never open by oversight."""

_LONGEST_REQUEST_ID = 128

_log = logging.getLogger(__name__)


class Identify:
    """Puts the request's id and the index's generation on every answer, and answers 500 to what nobody caught."""

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
            await send(message)

        try:
            await self._app(scope, receive, send_identified)
        except Exception:
            _log.exception("request %s failed", request_id)
            if not started:
                await internal_error(request_id)(scope, receive, send_identified)


class RequireKey:
    """Refuses requests without the key, before their body is read."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._key = key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] == "http" and scope["path"] not in PUBLIC and not self._admits(Headers(scope=scope)):
            refusal = problem(
                HTTPStatus.UNAUTHORIZED,
                "send the service's key as Authorization: Bearer KEY or X-API-Key: KEY",
                headers={"WWW-Authenticate": "Bearer"},
            )
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _admits(self, headers: Headers) -> bool:
        scheme, _, token = headers.get("Authorization", "").partition(" ")
        sent = token.strip() if scheme.lower() == "bearer" else headers.get("X-API-Key", "")
        return hmac.compare_digest(sent.encode("latin-1"), self._key)


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
        announced = Headers(scope=scope).get("Content-Length", "")
        if announced.isdecimal() and (len(announced) > len(str(self._limit)) or int(announced) > self._limit):
            await problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, self._detail, headers=_CLOSE)(scope, receive, send)
            return
        read = 0

        async def receive_limited() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._limit:
                raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, self._detail, _CLOSE)
            return message

        await self._app(scope, receive_limited, send)

    @property
    def _detail(self) -> str:
        return f"the body is larger than {self._limit} bytes: send fewer triples a request"


_CLOSE = {"Connection": "close"}
"""Without it the server would read the rest of the body in search of the next request."""


def internal_error(request_id: str) -> Response:
    """Say that the fault is ours, and no more: causes belong in the log."""
    return problem(HTTPStatus.INTERNAL_SERVER_ERROR, f"internal error; the log has it under request id {request_id}")


def _request_id(sent: str | None) -> str:
    if sent and len(sent) <= _LONGEST_REQUEST_ID and all(" " <= character <= "~" for character in sent):
        return sent
    return uuid.uuid4().hex
