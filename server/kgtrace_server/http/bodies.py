"""Reading the body of a request, in a time that its size bounds: it happens on the event loop.

What is slow about JSON is neither text nor numbers but lists and objects: a megabyte has room for 350,000 of them,
which take a hundred times as long as a megabyte of labels. No request needs more than a few hundred.
"""

import json
import re
from collections.abc import Awaitable, Callable
from functools import partial
from http import HTTPStatus
from inspect import iscoroutinefunction
from typing import Any, get_type_hints

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

MAX_CONTAINERS = 1024
"""Lists and objects in a body; the largest request, of `MAX_TRIPLES`, has about 270."""

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', re.DOTALL)
"""A string, or one that lacks its end. It matches at every quotation mark, so no byte is looked at twice."""


def read_json(body: bytes) -> Any:
    """Return the value of a JSON body, as RFC 8259 has it: UTF-8, no NaN, no Infinity.

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


class StrictRoute(APIRoute):
    """Reads a body itself: strictly, and in one pass, where the framework takes several."""

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
        """Return the framework's handler, or one that reads a body.

        The latter hands the request to the endpoint's dependencies, which are coroutines of it alone.
        """
        if self.body_field is None:
            return super().get_route_handler()
        endpoint, dependant, name = self.endpoint, self.dependant, self.body_field.name
        question: type[BaseModel] = get_type_hints(endpoint)[name]
        call = endpoint if iscoroutinefunction(endpoint) else partial(run_in_threadpool, endpoint)

        async def strict(request: Request) -> Response:
            content = await _content(request)
            values = {
                dependency.name: await dependency.call(request)
                for dependency in dependant.dependencies
                if dependency.name and dependency.call
            }
            try:
                values[name] = question.model_validate(content)
            except ValidationError as e:
                raise RequestValidationError(
                    [{**error, "loc": ("body", *error["loc"])} for error in e.errors(include_url=False)]
                ) from e
            if dependant.request_param_name is not None:
                values[dependant.request_param_name] = request
            response: Response = await call(**values)
            return response

        return strict


async def _content(request: Request) -> Any:
    """Return the value of a request's body. Raises `HTTPException` if it is empty or of another media type."""
    media_type = request.headers.get("Content-Type", "application/json").partition(";")[0]
    if media_type.strip().lower() != "application/json":
        raise HTTPException(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"Content-Type is {media_type[:100]!r}: send application/json"
        )
    body = await request.body()
    if not body:
        raise HTTPException(HTTPStatus.BAD_REQUEST, "the body is empty: send a JSON object")
    return read_json(body)
