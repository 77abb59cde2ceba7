"""The HTTP service: its routes behind their middleware, and the answers to errors.

::

    Observe ─► Identify ─► CORS ─► RequireKey ─► Deadline ─► LimitBody ─► Admit ─► routes ─► Worker ─► Service
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.routing import Match, Route

from kgtrace_server.calls import AT_LEAST, EXACTLY
from kgtrace_server.dashboard import dashboard
from kgtrace_server.http import routes
from kgtrace_server.http.backend import Backend
from kgtrace_server.http.metrics import Metrics
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
from kgtrace_server.http.openapi import Documented, documented_keys, operation_id
from kgtrace_server.http.pages import documentation
from kgtrace_server.http.tracing import Trace
from kgtrace_server.problems import error_response, invalid_request, problem, status_of
from kgtrace_server.service import Service
from kgtrace_server.settings import Settings
from kgtrace_store.errors import KgtraceError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_FIRST_LOAD = 60.0
"""Seconds that one process of several has for loading before it takes requests all the same, and answers 503."""

_log = logging.getLogger(__name__)


def create_app(
    source: Service | Callable[[str], Service], settings: Settings, tracer: "TracerProvider | None" = None
) -> FastAPI:
    """Return the application.

    Parameters
    ----------
    source
        A service, or a function that loads the generation of an id. With the latter ``settings.index`` is followed
        once the application has started: whichever generation is live there answers, and until one does it is 503.
        With several ``settings.workers`` it has started when the live generation is loaded, or could not be.
    tracer
        Middleware that makes a span of each request; see `tracing`.

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
        if settings.workers > 1:  # other processes answer meanwhile
            await backend.look(_FIRST_LOAD)
        yield
        await asyncio.to_thread(backend.close)

    pages, page = documentation(), dashboard(settings.frame_ancestors, settings.entity_url)
    probes, v1, admin = routes.probes(), routes.questions(), routes.admin()
    app = Documented(
        title="kgtrace",
        summary="Which training triples made a knowledge-graph embedding model say this?",
        version="1",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=operation_id,
        lifespan=lifespan,
        middleware=_traced(tracer) + _middleware(backend, metrics, settings, routes.queueing(v1)),
    )
    app.state.backend = backend
    app.state.metrics = metrics
    keys = documented_keys()
    app.include_router(v1, dependencies=keys if settings.read_key else [])  # first, since routes are tried in order
    app.include_router(admin, dependencies=keys)
    app.include_router(pages)
    app.include_router(page)
    app.include_router(probes)
    app.state.routers = (app.router, v1, admin, pages, page, probes)
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
                allow_headers=["Authorization", "Content-Type", "X-API-Key", REQUEST_ID, AT_LEAST, EXACTLY],
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
    """Return the methods of all routes to a path; the framework names the methods of the first route alone."""
    return {
        method
        for router in request.app.state.routers
        for route in router.routes
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE
        for method in route.methods or ()
    }
