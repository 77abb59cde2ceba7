"""What the OpenAPI document says beyond the routes' types: examples, problems and keys."""

from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Security
from fastapi.routing import APIRoute
from fastapi.security import APIKeyHeader, HTTPBearer
from pydantic import TypeAdapter

from kgtrace_server import graphml, jsonld
from kgtrace_server.calls import AT_LEAST, EXACTLY
from kgtrace_server.http.media import JSON
from kgtrace_server.problems import MEDIA_TYPE, TYPE_PREFIX
from kgtrace_server.schema import answers, operation, sets
from kgtrace_server.schema.answer import Answer
from kgtrace_store.layout import GENERATION_ID

_PROBLEM_EXAMPLES: Mapping[int, tuple[str | None, str]] = {
    400: (None, "the body is not JSON: Expecting ',' delimiter: line 1 column 24 (char 23)"),
    401: (None, "send the service's key as Authorization: Bearer KEY or X-API-Key: KEY"),
    403: (None, "this takes the admin key"),
    409: ("Cannot switch", "there is no generation '20261123T020000Z-1a2b3c'; there is 20261122T020000Z-4d5e6f"),
    413: (None, "the body is larger than 1048576 bytes: send fewer triples a request"),
    415: (None, "Content-Type is 'text/plain': send application/json"),
    422: ("Unknown entity", "unknown entity 'asprin'; nearest: 'aspirin'"),
    429: ("Queue full", "64 requests are waiting already: try again shortly"),
    503: ("Not ready", "the index is being loaded, or none has been published yet: try again shortly"),
    504: ("Deadline exceeded", "no answer within 30 seconds: ask for fewer triples or set max_candidates"),
}
"""Title, where the problem has a type of its own, and detail."""

_UNAVAILABLE = (
    "Generation unavailable",
    "the index root has no generation '20261122T020000Z-4d5e6f'; it has 20261123T020000Z-1a2b3c",
)
"""The 409 of a route that answers from an index."""

_HEADERS: Mapping[str, str] = {
    AT_LEAST: "Header: id of a generation. It answers, or a later one does: a process that serves an older one loads "
    "the live one first. Where that does not help, or takes too long, the answer is 503.",
    EXACTLY: "Header: id of a generation on disk. It answers, live or not, whatever the other header says, and is "
    "opened first if need be. One that was pruned or cannot be read is 409; while another is being opened, or where "
    "there is no memory for it, the answer is 503.",
}
"""Of every route that answers from an index."""

_SCHEMA = "#/components/schemas/{model}"


class Documented(FastAPI):
    """Adds to the OpenAPI document the schemas of answers, which the routes refer to by name."""

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document."""
        document = super().openapi()
        document["components"]["schemas"] |= _answer_schemas()
        return document


def operation_id(route: APIRoute) -> str:
    """Return the name of a route's function, which generated clients give to theirs, so it must not change."""
    return route.name


@cache
def _answer_schemas() -> dict[str, Any]:
    """Return the schemas of all answers and their parts, by name."""
    # As parts of one schema, because each schema reads the source of its classes anew, for their docstrings.
    either: TypeAdapter[Answer] = TypeAdapter(
        answers.Influences
        | answers.SelfInfluences
        | answers.Predictions
        | answers.Aggregate
        | sets.WhatIf
        | sets.SetExplanation
        | operation.IndexInfo
        | operation.Entities
        | operation.Relations
        | operation.Generations
        | operation.Switched
        | operation.Status
        | operation.Ready
        | operation.Problem
    )
    schema = either.json_schema(mode="serialization", ref_template=_SCHEMA.format(model="{model}"))
    schemas: dict[str, Any] = schema["$defs"]
    return schemas


def answered(example: Answer, *statuses: int) -> dict[str, Any]:
    """Document the type of a route's answers, of which ``example`` is one, and the statuses of its problems."""
    schema = {"$ref": _SCHEMA.format(model=type(example).__name__)}
    content: dict[str, Any] = {JSON: {"schema": schema, "example": asdict(example)}}
    if isinstance(example, answers.Influences):
        content |= {
            jsonld.MEDIA_TYPE: {"schema": {"type": "object"}},
            graphml.MEDIA_TYPE: {"schema": {"type": "string"}},
        }
    return {"responses": {200: {"content": content}, **problems(*statuses)}}


def answered_by_generation(example: Answer, *statuses: int) -> dict[str, Any]:
    """Document a route that answers from an index: as `answered`, and the headers that say from which generation.

    One of these may be answered 409.
    """
    id_ = {"type": "string", "pattern": f"^{GENERATION_ID.pattern.replace('?P<time>', '')}$"}
    headers = [
        {"name": name, "in": "header", "schema": {**id_, "description": description}}
        for name, description in _HEADERS.items()
    ]
    documented = answered(example, *statuses)
    documented["responses"][409] = _problem(409, *_UNAVAILABLE)
    return {**documented, "openapi_extra": {"parameters": headers}}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Document the statuses of problems."""
    return {status: _problem(status, *_PROBLEM_EXAMPLES[status]) for status in statuses}


def _problem(status: int, title: str | None, detail: str) -> dict[str, Any]:
    phrase = HTTPStatus(status).phrase
    example = {
        "type": "about:blank" if title is None else TYPE_PREFIX + title.lower().replace(" ", "-"),
        "title": phrase if title is None else title,
        "status": status,
        "detail": detail,
    }
    schema = {"$ref": _SCHEMA.format(model=operation.Problem.__name__)}
    return {"description": phrase, "content": {MEDIA_TYPE: {"schema": schema, "example": example}}}


def documented_keys() -> list[Any]:
    """`RequireKey` checks keys; these only put the "Authorize" button on the documentation page."""
    return [Security(HTTPBearer(auto_error=False)), Security(APIKeyHeader(name="X-API-Key", auto_error=False))]
