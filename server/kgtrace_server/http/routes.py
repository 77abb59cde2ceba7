"""The routes: probes, questions, and the switching of generations. None of them computes: the worker's thread does."""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

from kgtrace_server.calls import AT_LEAST, EXACTLY
from kgtrace_server.http import media
from kgtrace_server.http.backend import Backend
from kgtrace_server.http.bodies import StrictRoute
from kgtrace_server.http.metrics import CONTENT_TYPE, Metrics
from kgtrace_server.http.middleware import CLIENT_GONE
from kgtrace_server.http.openapi import answered, answered_by_generation
from kgtrace_server.http.worker import Task
from kgtrace_server.schema import examples
from kgtrace_server.schema.answer import Answer, to_json
from kgtrace_server.schema.answers import Influences
from kgtrace_server.schema.fields import FIELDS
from kgtrace_server.schema.questions import (
    AggregateQuery,
    AggregateRequest,
    InfluenceQuery,
    InfluenceRequest,
    PredictionQuery,
    PredictionRequest,
    PublishRequest,
    SearchQuery,
    SelfInfluenceQuery,
    SelfInfluenceRequest,
    SetRequest,
    WhatIfRequest,
)
from kgtrace_server.service import Computed, Service
from kgtrace_store.layout import GENERATION_ID

_READ = (401, 422, 503, 504)
"""Problems of a question in the address."""

_POSTED = (400, 401, 413, 415, 422, 503, 504)
"""Problems of a question in the body."""

_QUEUED = (429,)
"""A problem of the routes that compute, by which `queueing` knows them."""


async def _ready(request: Request) -> Service:  # a coroutine: plain functions are called in a thread of their own
    """Return the service, and pin its generation to the answer.

    Raises `RequestValidationError` for a header `EXACTLY` or `AT_LEAST` that holds no generation's id.
    """
    backend: Backend = request.app.state.backend
    exactly, at_least = _generation(request, EXACTLY), _generation(request, AT_LEAST)
    if exactly is not None:
        service = await backend.exactly(exactly)
    elif at_least is not None:
        service = await backend.at_least(at_least)
    else:
        service = backend.service
    request.state.generation = service.generation
    return service


def _generation(request: Request, header: str) -> str | None:
    """Return the generation's id that a header holds, None without the header."""
    sent = request.headers.get(header)
    if sent is None or GENERATION_ID.fullmatch(sent):
        return sent
    message = "It should be a generation's id, as X-Kgtrace-Generation has it"
    raise RequestValidationError([{"loc": ("header", header), "type": "id", "msg": message, "input": sent}])


_Ready = Annotated[Service, Depends(_ready)]


async def _backend(request: Request) -> Backend:
    backend: Backend = request.app.state.backend
    return backend


_Backend = Annotated[Backend, Depends(_backend)]


def queueing(router: APIRouter) -> frozenset[str]:
    """Return the paths whose routes say that they may answer 429: the routes that compute."""
    return frozenset(route.path for route in router.routes if isinstance(route, APIRoute) and 429 in route.responses)


def probes() -> APIRouter:
    """Return the routes that watch the process."""
    router = APIRouter(tags=["probes"])

    @router.get("/livez", summary="Is the process alive?", **answered(examples.STATUS))
    async def is_alive() -> Response:
        return _json(examples.STATUS)

    @router.get("/readyz", summary="Can it answer?", **answered(examples.READY, 503))
    async def is_ready(backend: _Backend) -> Response:
        return _json(backend.ready())

    @router.get(
        "/metrics",
        summary="Numbers for Prometheus",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    def get_metrics(request: Request) -> Response:
        measured: Metrics = request.app.state.metrics
        return Response(measured.text(), headers={"Content-Type": CONTENT_TYPE})

    return router


def questions() -> APIRouter:
    """Return the routes that anybody with the read key may use."""
    router = APIRouter(prefix="/v1", route_class=StrictRoute, tags=["questions"])

    @router.post(
        "/influences", summary="Explain test triples", **answered_by_generation(examples.INFLUENCES, *_POSTED, *_QUEUED)
    )
    async def explain_influences(request: Request, body: InfluenceRequest, service: _Ready) -> Response:
        return await _computed(request, service, body, _wanted(request))

    @router.get(
        "/influences",
        summary="Explain one test triple",
        **answered_by_generation(examples.INFLUENCES, *_READ, *_QUEUED),
    )
    async def get_influences(request: Request, query: Annotated[InfluenceQuery, Query()], service: _Ready) -> Response:
        triple = service.refs_from_text(query.head, query.relation, query.tail)
        question = InfluenceRequest.of(triples=[triple], **query.options(*FIELDS))
        return await _computed(request, service, question, _wanted(request))

    @router.post(
        "/predictions",
        summary="Predict tails or heads",
        **answered_by_generation(examples.PREDICTIONS, *_POSTED, *_QUEUED),
    )
    async def predict(request: Request, body: PredictionRequest, service: _Ready) -> Response:
        return await _computed(request, service, body)

    @router.get(
        "/predictions",
        summary="Predict tails or heads",
        **answered_by_generation(examples.PREDICTIONS, *_READ, *_QUEUED),
    )
    async def get_predictions(
        request: Request, query: Annotated[PredictionQuery, Query()], service: _Ready
    ) -> Response:
        question = PredictionRequest.of(
            head=None if query.head is None else service.entity_ref(query.head),
            relation=None if query.relation is None else service.relation_ref(query.relation),
            tail=None if query.tail is None else service.entity_ref(query.tail),
            **query.options(*FIELDS),
        )
        return await _computed(request, service, question)

    @router.post(
        "/aggregate",
        summary="Sum influence by relation, head or tail",
        **answered_by_generation(examples.AGGREGATE, *_POSTED, *_QUEUED),
    )
    async def aggregate(request: Request, body: AggregateRequest, service: _Ready) -> Response:
        return await _computed(request, service, body)

    @router.get(
        "/aggregate",
        summary="Sum influence by relation, head or tail",
        **answered_by_generation(examples.AGGREGATE, *_READ, *_QUEUED),
    )
    async def get_aggregate(request: Request, query: Annotated[AggregateQuery, Query()], service: _Ready) -> Response:
        triple = service.refs_from_text(query.head, query.relation, query.tail)
        question = AggregateRequest.of(triple=triple, **query.options(*FIELDS))
        return await _computed(request, service, question)

    @router.post(
        "/what-if", summary="Predict without a set", **answered_by_generation(examples.WHAT_IF, *_POSTED, *_QUEUED)
    )
    async def predict_without(request: Request, body: WhatIfRequest, service: _Ready) -> Response:
        return await _computed(request, service, body)

    @router.post(
        "/explanations", summary="Explain by a set", **answered_by_generation(examples.EXPLANATION, *_POSTED, *_QUEUED)
    )
    async def explain_by_set(request: Request, body: SetRequest, service: _Ready) -> Response:
        return await _computed(request, service, body)

    @router.post(
        "/self-influence",
        summary="Rank training triples by self-influence",
        **answered_by_generation(examples.SELF_INFLUENCES, *_POSTED),
    )
    def rank_self_influence(body: SelfInfluenceRequest, service: _Ready) -> Response:
        return _json(service.self_influences(body))

    @router.get(
        "/self-influence",
        summary="Rank training triples by self-influence",
        **answered_by_generation(examples.SELF_INFLUENCES, *_READ),
    )
    def get_self_influence(query: Annotated[SelfInfluenceQuery, Query()], service: _Ready) -> Response:
        refs = {
            "head": list(map(service.entity_ref, query.head)),
            "relation": list(map(service.relation_ref, query.relation)),
            "tail": list(map(service.entity_ref, query.tail)),
        }
        must = {field: named for field, named in refs.items() if named}
        return _json(service.self_influences(SelfInfluenceRequest.of(must=must, **query.options(*FIELDS))))

    @router.get("/index", summary="What is served", **answered_by_generation(examples.INDEX, 401, 422, 503))
    def get_index(service: _Ready) -> Response:
        return _json(service.index_info())

    @router.get(
        "/entities",
        summary="Find entities by label or name",
        **answered_by_generation(examples.ENTITIES, 401, 422, 503),
    )
    def search_entities(query: Annotated[SearchQuery, Query()], service: _Ready) -> Response:
        return _json(service.entities(query))

    @router.get(
        "/relations",
        summary="Find relations by label or name",
        **answered_by_generation(examples.RELATIONS, 401, 422, 503),
    )
    def search_relations(query: Annotated[SearchQuery, Query()], service: _Ready) -> Response:
        return _json(service.relations(query))

    @router.get("/generations", summary="What is on disk", **answered(examples.GENERATIONS, 401, 409))
    def get_generations(backend: _Backend) -> Response:
        return _json(backend.generations())

    return router


def admin() -> APIRouter:
    """Return the routes that need the admin key."""
    router = APIRouter(prefix="/v1/admin", route_class=StrictRoute, tags=["admin"])

    @router.post(
        "/publish",
        summary="Make a generation live",
        **answered(examples.SWITCHED, 400, 401, 403, 409, 413, 415, 422, 504),
    )
    def publish(body: PublishRequest, backend: _Backend) -> Response:
        return _json(backend.publish(body.generation))

    @router.post(
        "/rollback",
        summary="Make the generation before the live one live",
        **answered(examples.SWITCHED, 401, 403, 409, 413, 504),
    )
    def rollback(backend: _Backend) -> Response:
        return _json(backend.rollback())

    return router


def _wanted(request: Request) -> str:
    """Return the media type in which a client wants an explanation."""
    return media.preferred(request.headers.get("Accept", media.JSON))


async def _computed(request: Request, service: Service, question: Computed, media_type: str = media.JSON) -> Response:
    """Answer in the worker's thread, together with questions that are alike; answers are written there, too.

    Wait for that, or until the client is gone: a computation that nobody waits for is not begun.
    """
    backend: Backend = request.app.state.backend
    metrics: Metrics = request.app.state.metrics

    def respond(questions: Sequence[Computed]) -> list[tuple[Response, dict[str, float]] | Exception]:
        outcomes = service.together(questions, backend.worker.wanted)
        metrics.answers([outcome for outcome in outcomes if isinstance(outcome, Influences)])
        return [
            outcome if isinstance(outcome, Exception) else (_response(outcome, media_type), _stages(outcome))
            for outcome in outcomes
        ]

    task = Task(respond, question, (service, question.alike, media_type), question.size)
    computing = backend.worker.submit(task)
    leaving = asyncio.ensure_future(_disconnected(request))
    leaving.add_done_callback(lambda _: computing.cancel())
    try:
        computed = await computing
    except asyncio.CancelledError:
        if (this := asyncio.current_task()) is not None and this.cancelling():
            raise
        return Response(status_code=CLIENT_GONE)
    finally:
        leaving.cancel()
    response, request.state.stage_seconds = computed.value
    request.state.queue_seconds = computed.waited
    return response


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _json(answer: Answer) -> Response:
    return Response(to_json(answer), media_type=media.JSON)


def _response(answer: Answer, media_type: str) -> Response:
    vary = {"Vary": "Accept"} if isinstance(answer, Influences) else {}
    return Response(media.written(answer, media_type), headers=vary, media_type=media_type)


def _stages(answer: Answer) -> dict[str, float]:
    """Return the seconds of each stage of a computation."""
    return asdict(answer.seconds) if isinstance(answer, Influences) else {}
