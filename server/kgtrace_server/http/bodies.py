"""Reading the body of a request, in a time that its size bounds: it happens on the event loop.

What is slow about JSON is neither text nor numbers but lists and objects: a megabyte has room for 350,000 of them,
which take a hundred times as long as a megabyte of labels. No request needs more than a few hundred.
"""

import json
import re
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

MAX_CONTAINERS = 1024
"""Lists and objects in a body; the largest request, of `MAX_TRIPLES`, has about 270."""

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', re.DOTALL)
"""A string, or what would be one but for its end. It matches at every quotation mark, so no byte is looked at twice."""


def read_json(body: bytes) -> Any:
    """Return what a body holds, as RFC 8259 has it: UTF-8, no NaN, no Infinity.

    Raises `HTTPException` with status 400.
    """
    if _containers(body) > MAX_CONTAINERS and (count := _containers(_STRING.sub(b"", body))) > MAX_CONTAINERS:
        raise HTTPException(
            HTTPStatus.BAD_REQUEST, f"the body holds {count} lists and objects: {MAX_CONTAINERS} are read at most"
        )
    try:
        return json.loads(body.decode(), parse_constant=_refuse_constant)
    except RecursionError as e:
        raise HTTPException(HTTPStatus.BAD_REQUEST, "the body is nested too deeply") from e
    except ValueError as e:
        raise HTTPException(HTTPStatus.BAD_REQUEST, f"the body is not JSON: {e}") from e


def _containers(text: bytes) -> int:
    return text.count(b"[") + text.count(b"{")


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"it holds {constant}")


class _StrictRequest(Request):
    """Reads JSON strictly."""

    async def json(self) -> Any:
        """Return the body. Raises `HTTPException` with status 400."""
        return read_json(await self.body())


class StrictRoute(APIRoute):
    """Refuses a body that is empty or of another media type before the framework looks at it."""

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
        """Wrap the framework's handler."""
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            if self.body_field is not None:
                media_type = request.headers.get("Content-Type", "application/json").partition(";")[0]
                if media_type.strip().lower() != "application/json":
                    raise HTTPException(
                        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                        f"Content-Type is {media_type[:100]!r}: send application/json",
                    )
                headers = [h for h in request.scope["headers"] if h[0] != b"content-type"]
                scope = {**request.scope, "headers": [*headers, (b"content-type", b"application/json")]}
                request = _StrictRequest(scope, request.receive)
                if not await request.body():
                    raise HTTPException(HTTPStatus.BAD_REQUEST, "the body is empty: send a JSON object")
            return await handle(request)

        return strict
