"""The service from Python: over HTTP, or the same methods on an index folder without a server.

::

    with Client("http://127.0.0.1:8000") as client:
        answer = client.influences([("aspirin", "treats", "headache")], top_k=5)
        print(answer.results[0].influences[0].triple.head)
        answer.to_dataframe()

Errors are those that the index raises in process (`UnknownEntity`, `IdOutOfRange`, ...), with all their fields,
wherever it is; a service whose fault they are answers no more than that (`ServiceError`).
"""

import asyncio
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, cast

import httpx
import numpy as np

from kgtrace_server import catalogue
from kgtrace_server.problems import cannot_switch, error_of
from kgtrace_server.results import (
    Aggregate,
    GenerationInfo,
    IndexInfo,
    Influences,
    Named,
    Predictions,
    SelfInfluences,
    Switched,
)
from kgtrace_store import errors
from kgtrace_store.generations import IndexRoot

if TYPE_CHECKING:
    from kgtrace_indexer.names import Damping, Direction, Group, Order, Ranking, Score
    from kgtrace_server.service import Field, Service

R = TypeVar("R")

Ref = int | str
"""An entity or relation: a string is a label, an integer an id."""

Triple = tuple[Ref, Ref, Ref]
"""Head, relation and tail."""

Triples = Sequence[Triple]

Condition = Mapping["Field", Sequence[Ref]]
"""Labels or ids by field of the training triple."""

_NOWHERE: Condition = {}

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
    """Seconds of a pause at most. A service that asks for a longer one is not asked again."""
    chance: Callable[[], float] = field(default=random.random, repr=False)
    """From 0 to 1: spreads clients that were refused together."""

    def pause(self, attempt: int, asked: float) -> float | None:
        """Return the seconds to wait after an attempt (from 0), given those the service asks for; None to give up."""
        if attempt + 1 >= self.attempts or asked > self.cap:
            return None
        return min(self.cap, asked + self.base * 2.0**attempt * self.chance())


_RETRIES = Retries()


@dataclass(frozen=True, slots=True)
class _Call(Generic[R]):
    """A request, and how to read its answer."""

    method: str
    path: str
    read: Callable[[Any], R]
    params: Mapping[str, str | int] | None = None
    json: Any = None
    repeatable: bool = True
    """Whether doing it twice is the same as doing it once."""

    def request(self, client: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """Return the request. Raises `BadRequest` for a body that JSON cannot hold."""
        if self.json is None:
            return client.build_request(self.method, self.path, params=self.params)
        try:
            body = json.dumps(self.json, allow_nan=False, default=_plain)
        except (TypeError, ValueError) as e:  # NaN, infinity, or a condition whose field is no string
            raise errors.BadRequest(f"the request cannot be sent: {e}") from e
        headers = {"Content-Type": "application/json"}
        return client.build_request(self.method, self.path, content=body, headers=headers)

    def pause(self, retries: Retries, attempt: int, outcome: httpx.Response | httpx.TransportError) -> float | None:
        """Return the seconds to wait before another attempt, None if this was the last."""
        if isinstance(outcome, httpx.Response):
            return retries.pause(attempt, _retry_after(outcome)) if outcome.status_code in _TRY_AGAIN else None
        # Not after a timeout: the service is working on it, and more of the same would slow it further.
        lost = isinstance(outcome, httpx.NetworkError | httpx.RemoteProtocolError)
        if isinstance(outcome, httpx.ConnectError) or (lost and self.repeatable):
            return retries.pause(attempt, 0.0)
        return None

    def result(self, outcome: httpx.Response | httpx.TransportError) -> R:
        """Return what was answered. Raises the error that was answered, or `ServiceError`."""
        if isinstance(outcome, httpx.TransportError):
            raise ServiceError(f"{self.method} {outcome.request.url}: {outcome or type(outcome).__name__}") from outcome
        if outcome.is_success:
            return self.read(outcome.json())
        raise _error(outcome)


def _influences(
    triples: Triples,
    *,
    top_k: int = 10,
    order: "Order" = "proponents",
    exact: bool = False,
    max_candidates: int | None = None,
    must: Condition = _NOWHERE,
    must_not: Condition = _NOWHERE,
    within_hops: int | None = None,
    direction: "Direction" = "tail",
    score: "Score | None" = None,
    damping: "Damping | None" = None,
) -> _Call[Influences]:
    body: dict[str, Any] = {
        "triples": list(map(_row, triples)),
        "top_k": top_k,
        "order": order,
        "exact": exact,
        "max_candidates": max_candidates,
        "filter": _filter(must, must_not),
        "within_hops": within_hops,
        "direction": direction,
        "score": score,
        "damping": damping,
    }
    return _Call("POST", "/v1/influences", Influences.read, json=body)


def _predictions(
    *, relation: Ref, head: Ref | None, tail: Ref | None, top_k: int, filtered: bool
) -> _Call[Predictions]:
    body = {"head": head, "relation": relation, "tail": tail, "top_k": top_k, "filtered": filtered}
    return _Call("POST", "/v1/predictions", Predictions.read, json=body)


def _aggregate(
    triple: Triple | Triples,
    by: "Group",
    *,
    top_k: int,
    order: "Order",
    exact: bool,
    must: Condition,
    must_not: Condition,
    within_hops: int | None,
    direction: "Direction",
    score: "Score | None",
    damping: "Damping | None",
) -> _Call[Aggregate]:
    triples = _several(triple)
    asked = {"triple": _row(cast("Triple", triple))} if triples is None else {"triples": list(map(_row, triples))}
    body = {
        **asked,
        "by": by,
        "top_k": top_k,
        "order": order,
        "exact": exact,
        "filter": _filter(must, must_not),
        "within_hops": within_hops,
        "direction": direction,
        "score": score,
        "damping": damping,
    }
    return _Call("POST", "/v1/aggregate", Aggregate.read, json=body)


def _several(triple: Triple | Triples) -> Triples | None:
    """Return several test triples; None for one, whose first item is a label or an id."""
    if isinstance(triple, str) or not hasattr(triple, "__len__"):
        return None  # and no triple either: `_row` says so
    one = len(triple) > 0 and (isinstance(triple[0], str) or not hasattr(triple[0], "__len__"))
    return None if one else cast("Triples", triple)


def _self_influence(
    *, top_k: int, order: "Ranking", score: "Score | None", must: Condition, must_not: Condition
) -> _Call[SelfInfluences]:
    body = {"top_k": top_k, "order": order, "score": score, "filter": _filter(must, must_not)}
    return _Call("POST", "/v1/self-influence", SelfInfluences.read, json=body)


def _row(triple: Triple) -> list[Ref]:
    """Return a triple as JSON has it. Raises `BadRequest` for a label or an id in its place."""
    if isinstance(triple, str) or not hasattr(triple, "__len__"):
        raise errors.BadRequest(f"{triple!r} is not a triple: give head, relation and tail")
    return list(triple)


def _filter(must: Condition, must_not: Condition) -> dict[str, Any]:
    return {
        name: {f: list(refs) for f, refs in condition.items()}
        for name, condition in (("must", must), ("must_not", must_not))
        if condition
    }


def _entities(q: str, limit: int) -> _Call[list[Named]]:
    return _Call("GET", "/v1/entities", lambda c: list(map(Named.read, c["entities"])), {"q": q, "limit": limit})


def _relations(q: str, limit: int) -> _Call[list[Named]]:
    return _Call("GET", "/v1/relations", lambda c: list(map(Named.read, c["relations"])), {"q": q, "limit": limit})


_INDEX = _Call("GET", "/v1/index", IndexInfo.read)
_GENERATIONS = _Call("GET", "/v1/generations", lambda c: list(map(GenerationInfo.read, c["generations"])))
_ROLLBACK = _Call("POST", "/v1/admin/rollback", Switched.read, repeatable=False)


def _publish(generation: str) -> _Call[Switched]:
    return _Call("POST", "/v1/admin/publish", Switched.read, json={"generation": generation})


class Client:
    """Asks a service. Its methods raise the errors of `Service`, and `ServiceError`."""

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        timeout: float = 60.0,
        retries: Retries = _RETRIES,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Store; nothing is sent. ``timeout`` is in seconds, for each request; ``transport`` is for tests."""
        self._retries = retries
        self._http = httpx.Client(base_url=url, headers=_headers(key), timeout=timeout, transport=transport)

    def influences(
        self,
        triples: Triples,
        *,
        top_k: int = 10,
        order: "Order" = "proponents",
        exact: bool = False,
        max_candidates: int | None = None,
        must: Condition = _NOWHERE,
        must_not: Condition = _NOWHERE,
        within_hops: int | None = None,
        direction: "Direction" = "tail",
        score: "Score | None" = None,
        damping: "Damping | None" = None,
    ) -> Influences:
        """Return the training triples that influenced each test triple, as `Attributor.query` does."""
        return self._send(
            _influences(
                triples,
                top_k=top_k,
                order=order,
                exact=exact,
                max_candidates=max_candidates,
                must=must,
                must_not=must_not,
                within_hops=within_hops,
                direction=direction,
                score=score,
                damping=damping,
            )
        )

    def predictions(
        self,
        *,
        relation: Ref,
        head: Ref | None = None,
        tail: Ref | None = None,
        top_k: int = 10,
        filtered: bool = False,
    ) -> Predictions:
        """Return the model's best tails for a head, or heads for a tail, as `Attributor.complete` does."""
        return self._send(_predictions(relation=relation, head=head, tail=tail, top_k=top_k, filtered=filtered))

    def aggregate(
        self,
        triple: Triple | Triples,
        by: "Group",
        *,
        top_k: int = 10,
        order: "Order" = "proponents",
        exact: bool = False,
        must: Condition = _NOWHERE,
        must_not: Condition = _NOWHERE,
        within_hops: int | None = None,
        direction: "Direction" = "tail",
        score: "Score | None" = None,
        damping: "Damping | None" = None,
    ) -> Aggregate:
        """Return influence on a test triple, or summed over several, as `Attributor.aggregate` does."""
        return self._send(
            _aggregate(
                triple,
                by,
                top_k=top_k,
                order=order,
                exact=exact,
                must=must,
                must_not=must_not,
                within_hops=within_hops,
                direction=direction,
                score=score,
                damping=damping,
            )
        )

    def self_influence(
        self,
        *,
        top_k: int = 10,
        order: "Ranking" = "descending",
        score: "Score | None" = None,
        must: Condition = _NOWHERE,
        must_not: Condition = _NOWHERE,
    ) -> SelfInfluences:
        """Return the training triples of largest (or smallest) self-influence; `score` None is the index's own."""
        return self._send(_self_influence(top_k=top_k, order=order, score=score, must=must, must_not=must_not))

    def entities(self, q: str = "", limit: int = 20) -> list[Named]:
        """Return entities whose label or name equals, starts with or contains ``q``."""
        return self._send(_entities(q, limit))

    def relations(self, q: str = "", limit: int = 20) -> list[Named]:
        """Return relations, found as `entities`."""
        return self._send(_relations(q, limit))

    def index(self) -> IndexInfo:
        """Return what is served."""
        return self._send(_INDEX)

    def generations(self) -> list[GenerationInfo]:
        """Return what is on disk, oldest first."""
        return self._send(_GENERATIONS)

    def publish(self, generation: str) -> Switched:
        """Make a generation live; takes the admin key."""
        return self._send(_publish(generation))

    def rollback(self) -> Switched:
        """Make the generation before the live one live; takes the admin key."""
        return self._send(_ROLLBACK)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, call: _Call[R]) -> R:
        for attempt in count():
            outcome: httpx.Response | httpx.TransportError
            try:
                outcome = self._http.send(call.request(self._http))
            except httpx.TransportError as e:
                outcome = e
            pause = call.pause(self._retries, attempt, outcome)
            if pause is None:
                break
            time.sleep(pause)
        return call.result(outcome)


class AsyncClient:
    """`Client` for programs with an event loop."""

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        timeout: float = 60.0,
        retries: Retries = _RETRIES,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Store; nothing is sent."""
        self._retries = retries
        self._http = httpx.AsyncClient(base_url=url, headers=_headers(key), timeout=timeout, transport=transport)

    async def influences(
        self,
        triples: Triples,
        *,
        top_k: int = 10,
        order: "Order" = "proponents",
        exact: bool = False,
        max_candidates: int | None = None,
        must: Condition = _NOWHERE,
        must_not: Condition = _NOWHERE,
        within_hops: int | None = None,
        direction: "Direction" = "tail",
        score: "Score | None" = None,
        damping: "Damping | None" = None,
    ) -> Influences:
        """As `Client.influences`."""
        return await self._send(
            _influences(
                triples,
                top_k=top_k,
                order=order,
                exact=exact,
                max_candidates=max_candidates,
                must=must,
                must_not=must_not,
                within_hops=within_hops,
                direction=direction,
                score=score,
                damping=damping,
            )
        )

    async def predictions(
        self,
        *,
        relation: Ref,
        head: Ref | None = None,
        tail: Ref | None = None,
        top_k: int = 10,
        filtered: bool = False,
    ) -> Predictions:
        """As `Client.predictions`."""
        return await self._send(_predictions(relation=relation, head=head, tail=tail, top_k=top_k, filtered=filtered))

    async def aggregate(
        self,
        triple: Triple | Triples,
        by: "Group",
        *,
        top_k: int = 10,
        order: "Order" = "proponents",
        exact: bool = False,
        must: Condition = _NOWHERE,
        must_not: Condition = _NOWHERE,
        within_hops: int | None = None,
        direction: "Direction" = "tail",
        score: "Score | None" = None,
        damping: "Damping | None" = None,
    ) -> Aggregate:
        """As `Client.aggregate`."""
        return await self._send(
            _aggregate(
                triple,
                by,
                top_k=top_k,
                order=order,
                exact=exact,
                must=must,
                must_not=must_not,
                within_hops=within_hops,
                direction=direction,
                score=score,
                damping=damping,
            )
        )

    async def self_influence(
        self,
        *,
        top_k: int = 10,
        order: "Ranking" = "descending",
        score: "Score | None" = None,
        must: Condition = _NOWHERE,
        must_not: Condition = _NOWHERE,
    ) -> SelfInfluences:
        """As `Client.self_influence`."""
        return await self._send(_self_influence(top_k=top_k, order=order, score=score, must=must, must_not=must_not))

    async def entities(self, q: str = "", limit: int = 20) -> list[Named]:
        """As `Client.entities`."""
        return await self._send(_entities(q, limit))

    async def relations(self, q: str = "", limit: int = 20) -> list[Named]:
        """As `Client.relations`."""
        return await self._send(_relations(q, limit))

    async def index(self) -> IndexInfo:
        """As `Client.index`."""
        return await self._send(_INDEX)

    async def generations(self) -> list[GenerationInfo]:
        """As `Client.generations`."""
        return await self._send(_GENERATIONS)

    async def publish(self, generation: str) -> Switched:
        """As `Client.publish`."""
        return await self._send(_publish(generation))

    async def rollback(self) -> Switched:
        """As `Client.rollback`."""
        return await self._send(_ROLLBACK)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _send(self, call: _Call[R]) -> R:
        for attempt in count():
            outcome: httpx.Response | httpx.TransportError
            try:
                outcome = await self._http.send(call.request(self._http))
            except httpx.TransportError as e:
                outcome = e
            pause = call.pause(self._retries, attempt, outcome)
            if pause is None:
                break
            await asyncio.sleep(pause)
        return call.result(outcome)


class LocalClient:
    """The same methods on an index folder in this process. Stays on its generation until told to switch."""

    def __init__(self, root: Path, *, device: str = "auto") -> None:
        """Open the live generation. Raises what `open_index` raises."""
        self._root = Path(root)
        self._device = device
        self._service = self._open()

    def influences(
        self,
        triples: Triples,
        *,
        top_k: int = 10,
        order: "Order" = "proponents",
        exact: bool = False,
        max_candidates: int | None = None,
        must: Condition = _NOWHERE,
        must_not: Condition = _NOWHERE,
        within_hops: int | None = None,
        direction: "Direction" = "tail",
        score: "Score | None" = None,
        damping: "Damping | None" = None,
    ) -> Influences:
        """As `Client.influences`, for any number of triples."""
        from kgtrace_server.service import Question

        question = Question(
            triples,
            top_k=top_k,
            order=order,
            exact=exact,
            max_candidates=max_candidates,
            must=must,
            must_not=must_not,
            within_hops=within_hops,
            direction=direction,
            score=score,
            damping=damping,
        )
        return Influences.read(self._service.influences(question))

    def predictions(
        self,
        *,
        relation: Ref,
        head: Ref | None = None,
        tail: Ref | None = None,
        top_k: int = 10,
        filtered: bool = False,
    ) -> Predictions:
        """As `Client.predictions`."""
        from kgtrace_server.service import Incomplete

        return Predictions.read(self._service.predictions(Incomplete(head, relation, tail, top_k, filtered)))

    def aggregate(
        self,
        triple: Triple | Triples,
        by: "Group",
        *,
        top_k: int = 10,
        order: "Order" = "proponents",
        exact: bool = False,
        must: Condition = _NOWHERE,
        must_not: Condition = _NOWHERE,
        within_hops: int | None = None,
        direction: "Direction" = "tail",
        score: "Score | None" = None,
        damping: "Damping | None" = None,
    ) -> Aggregate:
        """As `Client.aggregate`, for any number of triples."""
        from kgtrace_server.service import Grouping

        triples = _several(triple)
        question = Grouping(
            [cast("Triple", triple)] if triples is None else triples,
            by,
            top_k=top_k,
            order=order,
            exact=exact,
            must=must,
            must_not=must_not,
            within_hops=within_hops,
            direction=direction,
            score=score,
            damping=damping,
        )
        return Aggregate.read(self._service.aggregate(question))

    def self_influence(
        self,
        *,
        top_k: int = 10,
        order: "Ranking" = "descending",
        score: "Score | None" = None,
        must: Condition = _NOWHERE,
        must_not: Condition = _NOWHERE,
    ) -> SelfInfluences:
        """As `Client.self_influence`."""
        answer = self._service.self_influences(top_k=top_k, order=order, score=score, must=must, must_not=must_not)
        return SelfInfluences.read(answer)

    def entities(self, q: str = "", limit: int = 20) -> list[Named]:
        """As `Client.entities`."""
        return list(map(Named.read, self._service.entities(q, limit)["entities"]))

    def relations(self, q: str = "", limit: int = 20) -> list[Named]:
        """As `Client.relations`."""
        return list(map(Named.read, self._service.relations(q, limit)["relations"]))

    def index(self) -> IndexInfo:
        """As `Client.index`."""
        return IndexInfo.read(self._service.index_info())

    def generations(self) -> list[GenerationInfo]:
        """As `Client.generations`."""
        with cannot_switch():
            return list(map(GenerationInfo.read, catalogue.generations(IndexRoot(self._root))))

    def publish(self, generation: str) -> Switched:
        """Make a generation live, and go on with it."""
        with cannot_switch():
            IndexRoot(self._root).publish(generation)
        return self._switched(generation)

    def rollback(self) -> Switched:
        """Make the generation before the live one live, and go on with it."""
        with cannot_switch():
            live = IndexRoot(self._root).rollback()
        return self._switched(live)

    def close(self) -> None:
        """Do nothing: files are let go with the object."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _switched(self, live: str) -> Switched:
        self._service = self._open()
        return Switched(live, self._service.generation)

    def _open(self) -> "Service":
        from kgtrace_indexer.query.attributor import open_index
        from kgtrace_server.service import Service

        return Service(open_index(self._root, device=self._device))


def _plain(value: object) -> Any:
    """Return a number of NumPy's as Python's. Raises `BadRequest` for anything else that JSON does not know."""
    if isinstance(value, np.generic):
        return value.item()
    raise errors.BadRequest(
        f"{value!r} cannot be sent: an entity or relation is a label (string) or an id (integer), an option a number, "
        "a string or a Boolean"
    )


def _headers(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Authorization": f"Bearer {key}"}


def _retry_after(response: httpx.Response) -> float:
    """Seconds; 0 where none are asked for, or as a date, which the service never does."""
    asked = response.headers.get("Retry-After", "")
    return float(asked) if asked.isascii() and asked.isdecimal() else 0.0


def _error(response: httpx.Response) -> errors.KgtraceError:
    try:
        content = response.json()
        if (error := error_of(content)) is not None:
            return error
        detail = str(content["detail"])
    except (ValueError, KeyError, TypeError):
        detail = response.text[:_LONGEST] or response.reason_phrase
    message = f"{response.request.method} {response.request.url}: {response.status_code}: {detail}"
    return ServiceError(message, response.status_code, response.headers.get("X-Request-Id"))
