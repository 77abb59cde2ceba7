"""The HTTP service: routes, and nothing that computes.

::

    Observe ─► Identify ─► CORS ─► RequireKey ─► Deadline ─► LimitBody ─► Admit ─► routes ─► Worker ─► Service
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from kgtrace_server import wire
from kgtrace_server.backend import Backend
from kgtrace_server.metrics import CONTENT_TYPE, Metrics
from kgtrace_server.middleware import (
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
from kgtrace_server.pages import documentation
from kgtrace_server.problems import (
    MEDIA_TYPE,
    TYPE_PREFIX,
    error_response,
    invalid_request,
    problem,
    status_of,
)
from kgtrace_server.service import Field, Question, Ref, Service
from kgtrace_server.settings import Settings
from kgtrace_server.worker import Task
from kgtrace_store.errors import KgtraceError

_log = logging.getLogger(__name__)


def create_app(source: Service | Callable[[str], Service], settings: Settings) -> FastAPI:
    """Return the application.

    Parameters
    ----------
    source
        A service, or a function that loads the generation of an id. With the latter ``settings.index`` is followed
        once the application has started: whichever generation is live there answers, and until one does it is 503.

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

    v1 = _v1()
    app = _Documented(
        title="kgtrace",
        summary="Which training triples made a knowledge-graph embedding model say this?",
        version="1",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        middleware=_middleware(backend, metrics, settings, _queueing(v1)),
    )
    app.state.backend = backend
    app.state.metrics = metrics
    app.include_router(documentation())
    app.include_router(_probes())
    keys = _documented_keys()
    app.include_router(v1, dependencies=keys if settings.read_key else [])
    app.include_router(_admin(), dependencies=keys)
    app.add_exception_handler(KgtraceError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_status)
    app.add_exception_handler(ClientDisconnect, _on_gone)
    return app


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
            direction=query.direction,
        )
        return await _explained(request, service, question)

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
    """Explain in the worker's thread, together with questions that are alike; answers are written there, too."""
    metrics: Metrics = request.app.state.metrics
    backend: Backend = request.app.state.backend

    def explain(questions: Sequence[Question]) -> list[Response | Exception]:
        outcomes = service.influences_together(questions, backend.worker.wanted)
        metrics.answers([answer for answer in outcomes if not isinstance(answer, Exception)])
        return [answer if isinstance(answer, Exception) else _json(answer) for answer in outcomes]

    return await _computed(request, Task(explain, question, (service, question.alike), len(question.triples)))


async def _computed(request: Request, task: Task[Any, Response]) -> Response:
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
    return computed.value


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
        direction=body.direction,
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
    """Reads JSON as RFC 8259 has it: UTF-8, no NaN, no Infinity."""

    async def json(self) -> Any:
        """Return the body. Raises `HTTPException` with status 400."""
        try:
            return json.loads((await self.body()).decode(), parse_constant=_refuse_constant)
        except RecursionError as e:
            raise HTTPException(HTTPStatus.BAD_REQUEST, "the body is nested too deeply") from e
        except ValueError as e:
            raise HTTPException(HTTPStatus.BAD_REQUEST, f"the body is not JSON: {e}") from e


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


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"it holds {constant}")


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
    detail = error.detail
    if error.status_code == HTTPStatus.NOT_FOUND:
        detail = f"no route {request.url.path}: /docs lists them"
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (error.headers or {}).get("Allow", "another method")
        detail = f"{request.url.path} does not take {request.method}: use {allowed}"
    return problem(error.status_code, detail, headers=error.headers)


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
    """Adds to the OpenAPI document the schema that all problem responses refer to."""

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document."""
        document = super().openapi()
        document["components"]["schemas"]["Problem"] = wire.Problem.model_json_schema()
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
