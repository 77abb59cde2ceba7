"""The HTTP service: routes, and nothing that computes.

::

    Observe ─► Identify ─► CORS ─► RequireKey ─► Deadline ─► LimitBody ─► Admit ─► routes ─► Worker ─► Service
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Hashable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.routing import Match, Route

from kgtrace_server import wire
from kgtrace_server.dashboard import dashboard
from kgtrace_server.http.backend import Backend
from kgtrace_server.http.bodies import read_json
from kgtrace_server.http.metrics import CONTENT_TYPE, Metrics
from kgtrace_server.http.middleware import (
    CLIENT_GONE,
    GENERATION,
    REQUEST_ID,
    Admit,
    Deadline,
    Identify,
    LimitBody,
    Observe,
    RequireKey,
    internal_error,
)
from kgtrace_server.http.pages import documentation
from kgtrace_server.http.tracing import Trace
from kgtrace_server.http.worker import Task
from kgtrace_server.problems import (
    MEDIA_TYPE,
    TYPE_PREFIX,
    error_response,
    invalid_request,
    problem,
    status_of,
)
from kgtrace_server.service import Field, Grouping, Incomplete, Question, Ref, Service
from kgtrace_server.settings import Settings
from kgtrace_store.errors import KgtraceError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_log = logging.getLogger(__name__)

Q = TypeVar("Q")


def create_app(
    source: Service | Callable[[str], Service], settings: Settings, tracer: "TracerProvider | None" = None
) -> FastAPI:
    """Return the application.

    Parameters
    ----------
    source
        A service, or a function that loads the generation of an id. With the latter ``settings.index`` is followed
        once the application has started: whichever generation is live there answers, and until one does it is 503.
    tracer
        What makes a span of each request; see `tracing`.

    Raises
    ------
    BadRequest
        ``source`` is a function and ``settings.index`` is not set.
    """
    metrics = Metrics()
    backend = Backend(source, settings, metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        backend.start()
        yield
        await asyncio.to_thread(backend.close)

    pages, page, probes, v1, admin = documentation(), dashboard(), _probes(), _v1(), _admin()
    app = _Documented(
        title="kgtrace",
        summary="Which training triples made a knowledge-graph embedding model say this?",
        version="1",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        middleware=_traced(tracer) + _middleware(backend, metrics, settings, _queueing(v1)),
    )
    app.state.backend = backend
    app.state.metrics = metrics
    app.include_router(pages)
    app.include_router(page)
    app.include_router(probes)
    keys = _documented_keys()
    app.include_router(v1, dependencies=keys if settings.read_key else [])
    app.include_router(admin, dependencies=keys)
    app.state.routers = (app.router, pages, page, probes, v1, admin)
    app.add_exception_handler(KgtraceError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_status)
    app.add_exception_handler(ClientDisconnect, _on_gone)
    return app


def _traced(tracer: "TracerProvider | None") -> list[Middleware]:
    return [] if tracer is None else [Middleware(Trace, provider=tracer)]


def _middleware(backend: Backend, metrics: Metrics, settings: Settings, queueing: Collection[str]) -> list[Middleware]:
    stack = [Middleware(Observe, metrics=metrics), Middleware(Identify, generation=lambda: backend.generation)]
    if settings.cors_origins:
        stack.append(
            Middleware(
                CORSMiddleware,
                allow_origins=settings.cors_origins,
                allow_methods=["GET", "POST"],
                allow_headers=["Authorization", "Content-Type", "X-API-Key", REQUEST_ID],
                expose_headers=[REQUEST_ID, GENERATION, "Retry-After"],
            )
        )
    return [
        *stack,
        Middleware(RequireKey, read_key=settings.read_key, admin_key=settings.admin_key),
        Middleware(Deadline, seconds=settings.deadline),
        Middleware(LimitBody, limit=settings.body_limit),
        Middleware(Admit, worker=backend.worker, paths=queueing),
    ]


# Routes.


def _ready(request: Request) -> Service:
    """Return the service, and pin its generation to the answer."""
    service: Service = request.app.state.backend.service
    request.state.generation = service.generation
    return service


_Ready = Annotated[Service, Depends(_ready)]


def _probes() -> APIRouter:
    router = APIRouter(tags=["probes"])

    @router.get("/livez", summary="Is the process alive?")
    async def livez() -> wire.Status:
        return {"status": "alive"}

    @router.get("/readyz", summary="Can it answer?", responses=_problems(503))
    async def readyz(request: Request) -> wire.Ready:
        backend: Backend = request.app.state.backend
        return backend.ready()

    @router.get(
        "/metrics",
        summary="Numbers for Prometheus",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    def metrics(request: Request) -> Response:
        measured: Metrics = request.app.state.metrics
        return Response(measured.text(), headers={"Content-Type": CONTENT_TYPE})

    return router


def _queueing(router: APIRouter) -> frozenset[str]:
    """Return the paths whose routes say that they may answer 429: those that compute."""
    return frozenset(route.path for route in router.routes if isinstance(route, APIRoute) and 429 in route.responses)


def _v1() -> APIRouter:
    router = APIRouter(prefix="/v1", route_class=_StrictRoute, tags=["v1"])

    @router.post(
        "/influences",
        summary="Explain test triples",
        response_model=wire.Influences,
        responses={**_example(wire.EXAMPLE_INFLUENCES), **_problems(400, 401, 413, 415, 422, 429, 503, 504)},
    )
    async def post_influences(request: Request, body: wire.InfluenceRequest, service: _Ready) -> Response:
        return await _explained(request, service, _question(body))

    @router.get(
        "/influences",
        summary="Explain one test triple",
        response_model=wire.Influences,
        responses={**_example(wire.EXAMPLE_INFLUENCES), **_problems(401, 422, 429, 503, 504)},
    )
    async def get_influences(
        request: Request, query: Annotated[wire.InfluenceQuery, Query()], service: _Ready
    ) -> Response:
        question = Question(
            [service.refs_from_text(query.head, query.relation, query.tail)],
            top_k=query.top_k,
            order=query.order,
            exact=query.exact,
            max_candidates=query.max_candidates,
            within_hops=query.within_hops,
            direction=query.direction,
            score=query.score,
            damping=query.damping,
        )
        return await _explained(request, service, question)

    @router.post(
        "/predictions",
        summary="Predict tails or heads",
        response_model=wire.Predictions,
        responses={**_example(wire.EXAMPLE_PREDICTIONS), **_problems(400, 401, 413, 415, 422, 429, 503, 504)},
    )
    async def post_predictions(request: Request, body: wire.PredictionRequest, service: _Ready) -> Response:
        return await _predicted(request, service, Incomplete(**dict(body)))

    @router.get(
        "/predictions",
        summary="Predict tails or heads",
        response_model=wire.Predictions,
        responses={**_example(wire.EXAMPLE_PREDICTIONS), **_problems(401, 422, 429, 503, 504)},
    )
    async def get_predictions(
        request: Request, query: Annotated[wire.PredictionQuery, Query()], service: _Ready
    ) -> Response:
        question = Incomplete(
            None if query.head is None else service.entity_ref(query.head),
            service.relation_ref(query.relation),
            None if query.tail is None else service.entity_ref(query.tail),
            top_k=query.top_k,
            filtered=query.filtered,
        )
        return await _predicted(request, service, question)

    @router.post(
        "/aggregate",
        summary="Sum influence by relation, head or tail",
        response_model=wire.Aggregate,
        responses={**_example(wire.EXAMPLE_AGGREGATE), **_problems(400, 401, 413, 415, 422, 429, 503, 504)},
    )
    async def post_aggregate(request: Request, body: wire.AggregateRequest, service: _Ready) -> Response:
        return await _summed(request, service, _grouping(body))

    @router.get(
        "/aggregate",
        summary="Sum influence by relation, head or tail",
        response_model=wire.Aggregate,
        responses={**_example(wire.EXAMPLE_AGGREGATE), **_problems(401, 422, 429, 503, 504)},
    )
    async def get_aggregate(
        request: Request, query: Annotated[wire.AggregateQuery, Query()], service: _Ready
    ) -> Response:
        question = Grouping(
            [service.refs_from_text(query.head, query.relation, query.tail)],
            query.by,
            top_k=query.top_k,
            order=query.order,
            exact=query.exact,
            within_hops=query.within_hops,
            direction=query.direction,
            score=query.score,
            damping=query.damping,
        )
        return await _summed(request, service, question)

    @router.post(
        "/self-influence",
        summary="Rank training triples by self-influence",
        response_model=wire.SelfInfluences,
        responses={**_example(wire.EXAMPLE_SELF_INFLUENCES), **_problems(400, 401, 413, 415, 422, 503, 504)},
    )
    def post_self_influence(body: wire.SelfInfluenceRequest, service: _Ready) -> Response:
        asked = body.filter or wire.Filter()
        must, must_not = _condition(asked.must), _condition(asked.must_not)
        return _json(
            service.self_influences(top_k=body.top_k, order=body.order, score=body.score, must=must, must_not=must_not)
        )

    @router.get(
        "/self-influence",
        summary="Rank training triples by self-influence",
        response_model=wire.SelfInfluences,
        responses={**_example(wire.EXAMPLE_SELF_INFLUENCES), **_problems(401, 422, 503, 504)},
    )
    def get_self_influence(query: Annotated[wire.SelfInfluenceQuery, Query()], service: _Ready) -> Response:
        refs: dict[Field, list[Ref]] = {
            "head": [service.entity_ref(text) for text in query.head],
            "relation": [service.relation_ref(text) for text in query.relation],
            "tail": [service.entity_ref(text) for text in query.tail],
        }
        must = {field: named for field, named in refs.items() if named}
        return _json(service.self_influences(top_k=query.top_k, order=query.order, score=query.score, must=must))

    @router.get(
        "/index",
        summary="What is served",
        response_model=wire.IndexInfo,
        responses={**_example(wire.EXAMPLE_INDEX), **_problems(401, 503)},
    )
    def index(service: _Ready) -> Response:
        return _json(service.index_info())

    @router.get(
        "/entities",
        summary="Find entities by label or name",
        response_model=wire.Entities,
        responses={**_example(wire.EXAMPLE_ENTITIES), **_problems(401, 422, 503)},
    )
    def entities(query: Annotated[wire.SearchQuery, Query()], service: _Ready) -> Response:
        return _json(service.entities(query.q, query.limit))

    @router.get(
        "/relations",
        summary="Find relations by label or name",
        response_model=wire.Relations,
        responses={**_example(wire.EXAMPLE_RELATIONS), **_problems(401, 422, 503)},
    )
    def relations(query: Annotated[wire.SearchQuery, Query()], service: _Ready) -> Response:
        return _json(service.relations(query.q, query.limit))

    @router.get(
        "/generations",
        summary="What is on disk",
        response_model=wire.Generations,
        responses={**_example(wire.EXAMPLE_GENERATIONS), **_problems(401, 409)},
    )
    def generations(request: Request) -> Response:
        backend: Backend = request.app.state.backend
        return _json(backend.generations())

    return router


def _admin() -> APIRouter:
    router = APIRouter(prefix="/v1/admin", route_class=_StrictRoute, tags=["admin"])

    @router.post(
        "/publish",
        summary="Make a generation live",
        response_model=wire.Switched,
        responses={**_example(wire.EXAMPLE_SWITCHED), **_problems(400, 401, 403, 409, 413, 415, 422, 504)},
    )
    def publish(request: Request, body: wire.PublishRequest) -> Response:
        backend: Backend = request.app.state.backend
        return _json(backend.publish(body.generation))

    @router.post(
        "/rollback",
        summary="Make the generation before the live one live",
        response_model=wire.Switched,
        responses={**_example(wire.EXAMPLE_SWITCHED), **_problems(401, 403, 409, 413, 504)},
    )
    def rollback(request: Request) -> Response:
        backend: Backend = request.app.state.backend
        return _json(backend.rollback())

    return router


async def _explained(request: Request, service: Service, question: Question) -> Response:
    """Explain in the worker's thread, together with questions that are alike."""
    metrics: Metrics = request.app.state.metrics
    backend: Backend = request.app.state.backend

    def explain(questions: Sequence[Question]) -> list[wire.Influences | Exception]:
        outcomes = service.influences_together(questions, backend.worker.wanted)
        metrics.answers([answer for answer in outcomes if not isinstance(answer, Exception)])
        return outcomes

    return await _answered(request, explain, question, (service, question.alike), len(question.triples))


async def _predicted(request: Request, service: Service, question: Incomplete) -> Response:
    """Predict in the worker's thread, together with questions that are alike."""
    return await _answered(request, service.predictions_together, question, (service, Incomplete, question.alike))


async def _summed(request: Request, service: Service, question: Grouping) -> Response:
    """Sum up in the worker's thread, alone: nothing is gained by company."""
    backend: Backend = request.app.state.backend

    def sum_up(questions: Sequence[Grouping]) -> list[wire.Aggregate]:
        return [service.aggregate(question, backend.worker.wanted) for question in questions]

    return await _answered(request, sum_up, question, object())


async def _answered(
    request: Request,
    answer: Callable[[Sequence[Q]], Sequence[Mapping[str, Any] | Exception]],
    question: Q,
    key: Hashable,
    size: int = 1,
) -> Response:
    """Answer in the worker's thread, together with the questions of an equal key; answers are written there, too."""

    def respond(questions: Sequence[Q]) -> list[_Written | Exception]:
        return [outcome if isinstance(outcome, Exception) else _written(outcome) for outcome in answer(questions)]

    return await _computed(request, Task(respond, question, key, size))


@dataclass(frozen=True, slots=True)
class _Written:
    """An answer as it is sent."""

    response: Response
    seconds: Mapping[str, float]
    """Of each stage of its computation."""


def _written(answer: Mapping[str, Any]) -> _Written:
    return _Written(_json(answer), answer.get("seconds", {}))


async def _computed(request: Request, task: Task[Any, _Written]) -> Response:
    """Wait for a task, or until the client is gone: what nobody waits for is not begun."""
    backend: Backend = request.app.state.backend
    computing = asyncio.ensure_future(backend.worker.run(task))
    leaving = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((computing, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not computing.done():
            return Response(status_code=CLIENT_GONE)
        computed = computing.result()
    finally:
        computing.cancel()
        leaving.cancel()
    request.state.queue_seconds = computed.waited
    request.state.stage_seconds = computed.value.seconds
    return computed.value.response


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _json(content: Mapping[str, Any]) -> Response:
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Response(text, media_type="application/json")


def _question(body: wire.InfluenceRequest) -> Question:
    asked = body.filter or wire.Filter()
    return Question(
        [(triple.head, triple.relation, triple.tail) for triple in body.triples],
        top_k=body.top_k,
        order=body.order,
        exact=body.exact,
        max_candidates=body.max_candidates,
        must=_condition(asked.must),
        must_not=_condition(asked.must_not),
        within_hops=body.within_hops,
        direction=body.direction,
        score=body.score,
        damping=body.damping,
    )


def _grouping(body: wire.AggregateRequest) -> Grouping:
    asked = body.filter or wire.Filter()
    triples = [body.triple] if body.triple is not None else body.triples or []
    return Grouping(
        [(triple.head, triple.relation, triple.tail) for triple in triples],
        body.by,
        top_k=body.top_k,
        order=body.order,
        exact=body.exact,
        must=_condition(asked.must),
        must_not=_condition(asked.must_not),
        within_hops=body.within_hops,
        direction=body.direction,
        score=body.score,
        damping=body.damping,
    )


def _condition(condition: wire.Condition | None) -> dict[Field, list[Ref]]:
    if condition is None:
        return {}
    fields: dict[Field, list[Ref] | None] = {
        "head": condition.head,
        "relation": condition.relation,
        "tail": condition.tail,
    }
    return {field: refs for field, refs in fields.items() if refs is not None}


# Bodies.


class _StrictRequest(Request):
    """Reads JSON strictly."""

    async def json(self) -> Any:
        """Return the body. Raises `HTTPException` with status 400."""
        return read_json(await self.body())


class _StrictRoute(APIRoute):
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


# Errors.


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, KgtraceError)
    if status_of(error) != HTTPStatus.INTERNAL_SERVER_ERROR:
        return error_response(error)
    request_id = request.scope["state"]["request_id"]
    _log.error("request %s failed", request_id, exc_info=error)
    return internal_error(request_id)


async def _on_invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return invalid_request(error.errors())


async def _on_gone(_: Request, __: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)


async def _on_status(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail, headers = error.detail, error.headers
    if error.status_code == HTTPStatus.NOT_FOUND:
        detail = f"no route {request.url.path}: /docs lists them"
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = ", ".join(sorted(_methods(request)))
        detail = f"{request.url.path} does not take {request.method}: use {allowed}"
        headers = {"Allow": allowed}
    return problem(error.status_code, detail, headers=headers)


def _methods(request: Request) -> set[str]:
    """Return the methods of all routes to a path; the framework names those of the first."""
    return {
        method
        for router in request.app.state.routers
        for route in router.routes
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE
        for method in route.methods or ()
    }


# Documentation.

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


class _Documented(FastAPI):
    """Adds to the OpenAPI document the schema that all problem responses refer to, and those that it refers to."""

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document."""
        document = super().openapi()
        schema = wire.Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        document["components"]["schemas"] |= schema.pop("$defs", {}) | {"Problem": schema}
        return document


def _example(answer: Mapping[str, Any]) -> dict[int | str, dict[str, Any]]:
    return {200: {"content": {"application/json": {"example": answer}}}}


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: _problem(status) for status in statuses}


def _problem(status: int) -> dict[str, Any]:
    title, detail = _PROBLEM_EXAMPLES[status]
    phrase = HTTPStatus(status).phrase
    example = {
        "type": "about:blank" if title is None else TYPE_PREFIX + title.lower().replace(" ", "-"),
        "title": phrase if title is None else title,
        "status": status,
        "detail": detail,
    }
    schema = {"$ref": "#/components/schemas/Problem"}
    return {"description": phrase, "content": {MEDIA_TYPE: {"schema": schema, "example": example}}}


def _documented_keys() -> list[Any]:
    """`RequireKey` checks keys; these only put the "Authorize" button on the documentation page."""
    return [
        Security(HTTPBearer(auto_error=False)),
        Security(APIKeyHeader(name="X-API-Key", auto_error=False)),
    ]
