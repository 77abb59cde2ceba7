"""Requests of the clients over HTTP: how each is built, when it is sent again, and how its answer is read."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import httpx

from kgtrace_indexer.names import Group
from kgtrace_server.problems import error_of
from kgtrace_server.schema.answer import Answer, from_json
from kgtrace_server.schema.answers import Aggregate, Influences, Predictions, SelfInfluences
from kgtrace_server.schema.operation import Entities, Generations, IndexInfo, Relations, Switched
from kgtrace_server.schema.plain import as_json
from kgtrace_server.schema.sets import SetExplanation, WhatIf
from kgtrace_store import errors

if TYPE_CHECKING:
    from kgtrace_server.schema.options import Triple, Triples, Without

A = TypeVar("A", bound=Answer)

AT_LEAST = "X-Kgtrace-Generation-At-Least"
"""Header of a request that no generation older than the one it names may answer."""

EXACTLY = "X-Kgtrace-Generation-Exactly"
"""Header of a request that the generation it names is to answer, live or not."""

_LONGEST = 500
"""Characters that an error repeats of an answer that is no problem document."""

_TRY_AGAIN = frozenset({429, 503})
"""The service did nothing and asks to come back."""


class ServiceError(errors.KgtraceError):
    """The service answered with an error that is not the request's fault, or with none of its own."""

    def __init__(self, message: str, status: int | None = None, request_id: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        """HTTP status; None where there was no answer."""
        self.request_id = request_id
        """What the service's log knows the request by."""


@dataclass(frozen=True, slots=True)
class Retries:
    """When to ask again: after 429 and 503, and where a connection failed before there was an answer."""

    attempts: int = 6
    """Requests in all."""
    base: float = 0.1
    """Seconds added to the first pause at most; doubled each time."""
    cap: float = 30.0
    """Seconds of a pause at most. A request is not repeated if the service demands a longer one."""
    chance: Callable[[], float] = field(default=random.random, repr=False)
    """From 0 to 1: spreads clients that were refused together."""

    def pause(self, attempt: int, requested: float) -> float | None:
        """Return the seconds to wait after attempt (from 0), given the service's ``Retry-After``; None to give up."""
        if attempt + 1 >= self.attempts or requested > self.cap:
            return None
        return min(self.cap, requested + self.base * 2.0**attempt * self.chance())


@dataclass(frozen=True, slots=True)
class Call(Generic[A]):
    """A request, and the type of its answer."""

    method: str
    path: str
    answer: type[A]
    body: Mapping[str, Any] | None = None
    params: Mapping[str, str | int] | None = None
    repeatable: bool = True
    """Whether doing it twice is the same as doing it once."""

    def request(self, client: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """Return the request. Raises `BadRequest` for a body that JSON cannot hold."""
        if self.body is None:
            return client.build_request(self.method, self.path, params=self.params)
        headers = {"Content-Type": "application/json"}
        return client.build_request(self.method, self.path, content=as_json(self.body), headers=headers)

    def pause(self, retries: Retries, attempt: int, outcome: httpx.Response | httpx.TransportError) -> float | None:
        """Return the seconds to wait before another attempt, None if this was the last."""
        if isinstance(outcome, httpx.Response):
            return retries.pause(attempt, _retry_after(outcome)) if outcome.status_code in _TRY_AGAIN else None
        # Not after a timeout: the service is working on it, and more of the same would slow it further.
        lost = isinstance(outcome, httpx.NetworkError | httpx.RemoteProtocolError)
        if isinstance(outcome, httpx.ConnectError) or (lost and self.repeatable):
            return retries.pause(attempt, 0.0)
        return None

    def result(self, outcome: httpx.Response | httpx.TransportError) -> A:
        """Return the answer. Raises the error that was answered, or `ServiceError`."""
        if isinstance(outcome, httpx.TransportError):
            raise ServiceError(f"{self.method} {outcome.request.url}: {outcome or type(outcome).__name__}") from outcome
        if not outcome.is_success:
            raise _error(outcome)
        try:
            return from_json(self.answer, outcome.content)
        except ValueError as e:
            raise _service_error(outcome, f"this is no answer of the service: {outcome.text[:_LONGEST]}") from e


def influences(triples: Triples, options: Mapping[str, Any]) -> Call[Influences]:
    """Explain test triples."""
    return Call("POST", "/v1/influences", Influences, {"triples": triples, **options})


def predictions(options: Mapping[str, Any]) -> Call[Predictions]:
    """Complete a triple."""
    return Call("POST", "/v1/predictions", Predictions, options)


def aggregate(triples: Triple | Triples, by: Group, options: Mapping[str, Any]) -> Call[Aggregate]:
    """Sum influences on one test triple, or on several."""
    return Call("POST", "/v1/aggregate", Aggregate, one_or_several(triples) | {"by": by, **options})


def one_or_several(triples: Triple | Triples) -> dict[str, Any]:
    """Return triples as a field of an `AggregateRequest`; one whose first item is a label or an id is a single one."""
    alone = isinstance(triples, str) or not hasattr(triples, "__len__")  # and no triple either: validation says so
    if not alone and len(triples):
        alone = isinstance(triples[0], str) or not hasattr(triples[0], "__len__")
    return {"triple" if alone else "triples": triples}


def what_if(triple: Triple, without: Without, options: Mapping[str, Any]) -> Call[WhatIf]:
    """Predict without a set."""
    return Call("POST", "/v1/what-if", WhatIf, {"triple": triple, "without": without, **options})


def explanation(triple: Triple, options: Mapping[str, Any]) -> Call[SetExplanation]:
    """Explain by a set."""
    return Call("POST", "/v1/explanations", SetExplanation, {"triple": triple, **options})


def self_influence(options: Mapping[str, Any]) -> Call[SelfInfluences]:
    """Rank training triples."""
    return Call("POST", "/v1/self-influence", SelfInfluences, options)


def entities(q: str, limit: int) -> Call[Entities]:
    """Search entities."""
    return Call("GET", "/v1/entities", Entities, params={"q": q, "limit": limit})


def relations(q: str, limit: int) -> Call[Relations]:
    """Search relations."""
    return Call("GET", "/v1/relations", Relations, params={"q": q, "limit": limit})


def publish(generation: str) -> Call[Switched]:
    """Make a generation live."""
    return Call("POST", "/v1/admin/publish", Switched, {"generation": generation})


INDEX = Call("GET", "/v1/index", IndexInfo)
GENERATIONS = Call("GET", "/v1/generations", Generations)
ROLLBACK = Call("POST", "/v1/admin/rollback", Switched, repeatable=False)


def _retry_after(response: httpx.Response) -> float:
    """Seconds; 0 if the service names none, or a date, which it never does."""
    header = response.headers.get("Retry-After", "")
    return float(header) if header.isascii() and header.isdecimal() else 0.0


def _error(response: httpx.Response) -> errors.KgtraceError:
    try:
        content = response.json()
        if (error := error_of(content)) is not None:
            return error
        detail = str(content["detail"])
    except (ValueError, KeyError, TypeError):
        detail = response.text[:_LONGEST] or response.reason_phrase
    return _service_error(response, detail)


def _service_error(response: httpx.Response, detail: str) -> ServiceError:
    message = f"{response.request.method} {response.request.url}: {response.status_code}: {detail}"
    return ServiceError(message, response.status_code, response.headers.get("X-Request-Id"))
