"""Reading the body of a request, in a time that its size bounds: it happens on the event loop.

What is slow about JSON is neither text nor numbers but lists and objects: a megabyte has room for 350,000 of them,
which take a hundred times as long as a megabyte of labels. No request needs more than a few hundred.
"""

import json
import re
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException

MAX_CONTAINERS = 1024
"""Lists and objects in a body; the largest request, of `wire.MAX_TRIPLES`, has about 270."""

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
