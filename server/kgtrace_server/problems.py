"""Errors over HTTP: one table from error to status, and RFC 9457 problem documents.

::

    KgtraceError
    ├── Refused                    a request that the service turns away, whatever it asks
    │   ├── NotReady               no generation is loaded, or only an older one
    │   ├── QueueFull              too many requests wait
    │   └── DeadlineExceeded (TimeoutError)
    ├── CannotSwitch               the generation asked for cannot be made live
    └── GenerationUnavailable      the generation that is to answer is not there, or cannot be read
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

from starlette.responses import Response

from kgtrace_server.schema.plain import wrong_fields
from kgtrace_store import errors
from kgtrace_store.errors import (
    Abandoned,
    BadRequest,
    CorruptGeneration,
    DeviceMemoryFull,
    GenerationNotFound,
    IndexNotFound,
    InputError,
    KgtraceError,
    LocksUnavailable,
    MissingInverseRelations,
    PublishConflict,
    SchemaTooNew,
    SchemaTooOld,
    SearchUnavailable,
    StorageFailed,
    UnknownLabel,
)

MEDIA_TYPE = "application/problem+json"

TYPE_PREFIX = "https://kgtrace.readthedocs.io/problems#"
"""Before the error's name, ``unknown-entity``: clients compare the whole, and people may open it."""

_INVALID = "Invalid request"

INVALID_REQUEST = TYPE_PREFIX + "invalid-request"
"""Type of the problem document of a request that does not have the documented shape."""


class Refused(KgtraceError):
    """The service turns a request away, whatever it asks."""


class NotReady(Refused):
    """No generation is loaded, or only one older than the request allows; or the service is shutting down."""


class QueueFull(Refused):
    """Too many requests wait for the computing thread."""


class DeadlineExceeded(Refused, TimeoutError):
    """The answer took longer than the deadline."""


class CannotSwitch(KgtraceError):
    """The generation asked for cannot be made live."""


class GenerationUnavailable(KgtraceError):
    """The generation that is to answer was pruned or never there, or its files cannot be read."""


STATUSES: Mapping[type[KgtraceError], HTTPStatus] = {
    InputError: HTTPStatus.UNPROCESSABLE_ENTITY,
    MissingInverseRelations: HTTPStatus.UNPROCESSABLE_ENTITY,
    QueueFull: HTTPStatus.TOO_MANY_REQUESTS,
    NotReady: HTTPStatus.SERVICE_UNAVAILABLE,
    SearchUnavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    DeviceMemoryFull: HTTPStatus.SERVICE_UNAVAILABLE,
    DeadlineExceeded: HTTPStatus.GATEWAY_TIMEOUT,
    Abandoned: HTTPStatus.GATEWAY_TIMEOUT,
    CannotSwitch: HTTPStatus.CONFLICT,
    GenerationUnavailable: HTTPStatus.CONFLICT,
    KgtraceError: HTTPStatus.INTERNAL_SERVER_ERROR,
}
"""Status of each error; an error that is not named has the status of its nearest ancestor."""

RETRY_AFTER = "1"
"""Seconds: a place in the queue is free again after one request, and those take milliseconds to seconds."""


def status_of(error: KgtraceError) -> HTTPStatus:
    """Return the status of an error."""
    return next(STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES)


def error_response(error: KgtraceError) -> Response:
    """Return the problem document of an error that the caller may see."""
    status = status_of(error)
    headers = {"Retry-After": RETRY_AFTER} if isinstance(error, QueueFull | NotReady | SearchUnavailable) else {}
    return problem(status, str(error), title=_words(type(error)), headers=headers, members=_members(error))


def error_of(document: Mapping[str, Any]) -> KgtraceError | None:
    """Return the error that a problem document was made from, with all its fields; None where it does not name one.

    Raises `KeyError`, `TypeError` or `ValueError` for a document that is no problem document.
    """
    kind = _KINDS.get(document["type"])
    if kind is None:
        return None
    detail = str(document["detail"])
    if not issubclass(kind, UnknownLabel):
        return kind(detail)
    nearest = [(near["label"], near["name"]) for near in document.get("nearest", ())]
    return kind(detail, document.get("unknown", ""), nearest)


def _members(error: KgtraceError) -> Mapping[str, Any]:
    """Return an error's fields, as `error_of` reads them; empty fields are left out."""
    if not isinstance(error, UnknownLabel):
        return {}
    nearest = [{"label": label, "name": name} for label, name in error.nearest]
    members = {"unknown": error.label, "nearest": nearest}
    return {name: value for name, value in members.items() if value}


@contextmanager
def root_errors_as(kind: type[KgtraceError]) -> Iterator[None]:
    """Raise errors of one kind where an index root, or a generation of it, cannot be read or changed."""
    try:
        yield
    except (
        CorruptGeneration,
        GenerationNotFound,
        IndexNotFound,
        LocksUnavailable,
        PublishConflict,
        SchemaTooNew,
        SchemaTooOld,
        StorageFailed,
    ) as e:
        raise kind(str(e)) from e


def type_of(kind: type[KgtraceError]) -> str:
    """Return the ``type`` of an error's problem document."""
    return _type(_words(kind))


def problem(
    status: int,
    detail: str,
    *,
    title: str | None = None,
    headers: Mapping[str, str] | None = None,
    members: Mapping[str, Any] | None = None,
) -> Response:
    """Return a problem document; without a ``title`` it is of the type that says no more than its status.

    ``members`` are the members that the type adds to the standard's.
    """
    body = {
        "type": "about:blank" if title is None else _type(title),
        "title": HTTPStatus(status).phrase if title is None else title,
        "status": int(status),
        "detail": detail,
        **(members or {}),
    }
    # ASCII only: a detail may repeat half of a surrogate pair, which UTF-8 cannot hold.
    return Response(json.dumps(body), status, headers, media_type=MEDIA_TYPE)


def invalid_request(errors: Sequence[Mapping[str, Any]]) -> Response:
    """Return the problem document of a request that does not have the documented shape, naming the fields."""
    # Each location begins with ``body`` or ``query``.
    return problem(HTTPStatus.UNPROCESSABLE_ENTITY, wrong_fields(errors, within=1), title=_INVALID)


def _words(kind: type[KgtraceError]) -> str:
    """``UnknownEntity`` → ``Unknown entity``."""
    return re.sub(r"(?<!^)(?=[A-Z])", " ", kind.__name__).capitalize()


def _type(title: str) -> str:
    return TYPE_PREFIX + title.lower().replace(" ", "-")


_TREE = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, KgtraceError)]

_KINDS: Mapping[str, type[KgtraceError]] = {
    type_of(kind): kind
    for kind in (*_TREE, NotReady, QueueFull, DeadlineExceeded, CannotSwitch, GenerationUnavailable)
    if status_of(kind("")) != HTTPStatus.INTERNAL_SERVER_ERROR  # answered without its cause, as about:blank
} | {INVALID_REQUEST: BadRequest}
"""The error that each type of a problem document stands for."""
