"""The service from Python: over HTTP, or the same methods on an index folder without a server.

::

    with Client("http://127.0.0.1:8000") as client:
        answer = client.influences([("aspirin", "treats", "headache")], top_k=5)
        print(answer.results[0].influences[0].triple.head)
        answer.to_dataframe()

Errors are the same that the index raises in process (`UnknownEntity`, `IdOutOfRange`, ...), with all their fields,
wherever the index is; of its own faults a service says only that there was one (`ServiceError`).
"""

from __future__ import annotations

import asyncio
import time
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar, Unpack

import httpx

from kgtrace_indexer.names import Group
from kgtrace_server import calls, catalogue
from kgtrace_server.calls import AT_LEAST, EXACTLY, Call, Retries as Retries, ServiceError as ServiceError
from kgtrace_server.problems import CannotSwitch, root_errors_as
from kgtrace_server.schema.answer import Answer
from kgtrace_server.schema.answers import Aggregate, Influences, Named, Predictions, SelfInfluences
from kgtrace_server.schema.operation import GenerationInfo, IndexInfo, Switched
from kgtrace_server.schema.sets import SetExplanation, WhatIf
from kgtrace_store.generations import IndexRoot

if TYPE_CHECKING:
    from kgtrace_server.schema.options import (
        InfluenceOptions,
        Options,
        PredictionOptions,
        RankingOptions,
        SetOptions,
        Triple,
        Triples,
        WhatIfOptions,
        Without,
    )
    from kgtrace_server.service import Service

A = TypeVar("A", bound=Answer)

_RETRIES = Retries()


class Client:
    """Asks a service. Its methods raise the errors of `Service`, and `ServiceError`."""

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        generation_at_least: str | None = None,
        generation: str | None = None,
        timeout: float = 60.0,
        retries: Retries = _RETRIES,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Store; nothing is sent.

        No generation older than ``generation_at_least`` answers: the id of one that was published, or has answered
        before. ``generation`` is the id of one that answers everything, live or not. ``timeout`` is in seconds, for
        each request; ``transport`` is for tests.
        """
        self._retries = retries
        headers = _headers(key, generation_at_least, generation)
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout, transport=transport)

    def influences(self, triples: Triples, **options: Unpack[InfluenceOptions]) -> Influences:
        """Return the training triples that influenced each test triple, as `Attributor.query` does."""
        return self._send(calls.influences(triples, options))

    def predictions(self, **options: Unpack[PredictionOptions]) -> Predictions:
        """Return the model's best tails for a head, or heads for a tail, as `Attributor.complete` does.

        Without a relation, those of the relations that the entity has most training triples of.
        """
        return self._send(calls.predictions(options))

    def aggregate(self, triple: Triple | Triples, by: Group, **options: Unpack[Options]) -> Aggregate:
        """Return influence on a test triple, or summed over several, as `Attributor.aggregate` does."""
        return self._send(calls.aggregate(triple, by, options))

    def what_if(self, triple: Triple, without: Without, **options: Unpack[WhatIfOptions]) -> WhatIf:
        """Return what the model is predicted to say without training triples, as `SetExplainer.what_if` does."""
        return self._send(calls.what_if(triple, without, options))

    def explanation(self, triple: Triple, **options: Unpack[SetOptions]) -> SetExplanation:
        """Return a set that explains a prediction, as `SetExplainer.necessary` or `SetExplainer.sufficient` does."""
        return self._send(calls.explanation(triple, options))

    def self_influence(self, **options: Unpack[RankingOptions]) -> SelfInfluences:
        """Return the training triples of largest (or smallest) self-influence; `score` None is the index's own."""
        return self._send(calls.self_influence(options))

    def entities(self, q: str = "", limit: int = 20) -> list[Named]:
        """Return entities whose label or name equals, starts with or contains ``q``."""
        return list(self._send(calls.entities(q, limit)).entities)

    def relations(self, q: str = "", limit: int = 20) -> list[Named]:
        """Return relations, as `entities`."""
        return list(self._send(calls.relations(q, limit)).relations)

    def index(self) -> IndexInfo:
        """Describe the index that is served."""
        return self._send(calls.INDEX)

    def generations(self) -> list[GenerationInfo]:
        """Return the generations on disk, oldest first."""
        return list(self._send(calls.GENERATIONS).generations)

    def publish(self, generation: str) -> Switched:
        """Make a generation live; takes the admin key."""
        return self._send(calls.publish(generation))

    def rollback(self) -> Switched:
        """Make the generation before the live one live; takes the admin key."""
        return self._send(calls.ROLLBACK)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, call: Call[A]) -> A:
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
        generation_at_least: str | None = None,
        generation: str | None = None,
        timeout: float = 60.0,
        retries: Retries = _RETRIES,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Store; nothing is sent."""
        self._retries = retries
        headers = _headers(key, generation_at_least, generation)
        self._http = httpx.AsyncClient(base_url=url, headers=headers, timeout=timeout, transport=transport)

    async def influences(self, triples: Triples, **options: Unpack[InfluenceOptions]) -> Influences:
        """As `Client.influences`."""
        return await self._send(calls.influences(triples, options))

    async def predictions(self, **options: Unpack[PredictionOptions]) -> Predictions:
        """As `Client.predictions`."""
        return await self._send(calls.predictions(options))

    async def aggregate(self, triple: Triple | Triples, by: Group, **options: Unpack[Options]) -> Aggregate:
        """As `Client.aggregate`."""
        return await self._send(calls.aggregate(triple, by, options))

    async def what_if(self, triple: Triple, without: Without, **options: Unpack[WhatIfOptions]) -> WhatIf:
        """As `Client.what_if`."""
        return await self._send(calls.what_if(triple, without, options))

    async def explanation(self, triple: Triple, **options: Unpack[SetOptions]) -> SetExplanation:
        """As `Client.explanation`."""
        return await self._send(calls.explanation(triple, options))

    async def self_influence(self, **options: Unpack[RankingOptions]) -> SelfInfluences:
        """As `Client.self_influence`."""
        return await self._send(calls.self_influence(options))

    async def entities(self, q: str = "", limit: int = 20) -> list[Named]:
        """As `Client.entities`."""
        return list((await self._send(calls.entities(q, limit))).entities)

    async def relations(self, q: str = "", limit: int = 20) -> list[Named]:
        """As `Client.relations`."""
        return list((await self._send(calls.relations(q, limit))).relations)

    async def index(self) -> IndexInfo:
        """As `Client.index`."""
        return await self._send(calls.INDEX)

    async def generations(self) -> list[GenerationInfo]:
        """As `Client.generations`."""
        return list((await self._send(calls.GENERATIONS)).generations)

    async def publish(self, generation: str) -> Switched:
        """As `Client.publish`."""
        return await self._send(calls.publish(generation))

    async def rollback(self) -> Switched:
        """As `Client.rollback`."""
        return await self._send(calls.ROLLBACK)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _send(self, call: Call[A]) -> A:
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
    """The same methods on an index folder in this process, without the limits of HTTP.

    Stays on its generation until a call of `publish` or `rollback`.
    """

    def __init__(self, root: Path, *, generation: str | None = None, device: str = "auto") -> None:
        """Open the generation of an id, by default the live one. Raises the errors of `open_index`."""
        self._root = Path(root)
        self._device = device
        self._service = self._open(generation)

    def influences(self, triples: Triples, **options: Unpack[InfluenceOptions]) -> Influences:
        """As `Client.influences`, for any number of triples."""
        from kgtrace_server.schema.questions import InfluenceRequest

        return self._service.influences(InfluenceRequest.of(triples=triples, **options))

    def predictions(self, **options: Unpack[PredictionOptions]) -> Predictions:
        """As `Client.predictions`."""
        from kgtrace_server.schema.questions import PredictionRequest

        return self._service.predictions(PredictionRequest.of(**options))

    def aggregate(self, triple: Triple | Triples, by: Group, **options: Unpack[Options]) -> Aggregate:
        """As `Client.aggregate`, for any number of triples."""
        from kgtrace_server.schema.questions import AggregateRequest

        return self._service.aggregate(AggregateRequest.of(**calls.one_or_several(triple), by=by, **options))

    def what_if(self, triple: Triple, without: Without, **options: Unpack[WhatIfOptions]) -> WhatIf:
        """As `Client.what_if`, for sets of any size."""
        from kgtrace_server.schema.questions import WhatIfRequest

        return self._service.what_if(WhatIfRequest.of(triple=triple, without=without, **options))

    def explanation(self, triple: Triple, **options: Unpack[SetOptions]) -> SetExplanation:
        """As `Client.explanation`."""
        from kgtrace_server.schema.questions import SetRequest

        return self._service.explanation(SetRequest.of(triple=triple, **options))

    def self_influence(self, **options: Unpack[RankingOptions]) -> SelfInfluences:
        """As `Client.self_influence`."""
        from kgtrace_server.schema.questions import SelfInfluenceRequest

        return self._service.self_influences(SelfInfluenceRequest.of(**options))

    def entities(self, q: str = "", limit: int = 20) -> list[Named]:
        """As `Client.entities`."""
        from kgtrace_server.schema.questions import SearchQuery

        return list(self._service.entities(SearchQuery.of(q=q, limit=limit)).entities)

    def relations(self, q: str = "", limit: int = 20) -> list[Named]:
        """As `Client.relations`."""
        from kgtrace_server.schema.questions import SearchQuery

        return list(self._service.relations(SearchQuery.of(q=q, limit=limit)).relations)

    def index(self) -> IndexInfo:
        """As `Client.index`."""
        return self._service.index_info()

    def generations(self) -> list[GenerationInfo]:
        """As `Client.generations`."""
        with root_errors_as(CannotSwitch):
            return catalogue.generations(IndexRoot(self._root))

    def publish(self, generation: str) -> Switched:
        """Make a generation live, and go on with it."""
        with root_errors_as(CannotSwitch):
            IndexRoot(self._root).publish(generation)
        return self._switched(generation)

    def rollback(self) -> Switched:
        """Make the generation before the live one live, and go on with it."""
        with root_errors_as(CannotSwitch):
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

    def _open(self, generation: str | None = None) -> Service:
        from kgtrace_indexer.query.opening import open_index
        from kgtrace_server.service import Service

        return Service(open_index(self._root, generation, device=self._device))


def _headers(key: str | None, at_least: str | None, exactly: str | None) -> dict[str, str]:
    sent = {"Authorization": None if key is None else f"Bearer {key}", AT_LEAST: at_least, EXACTLY: exactly}
    return {name: value for name, value in sent.items() if value is not None}
