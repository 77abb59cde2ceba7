"""OpenTelemetry: a span for each request, which says where its time went.

Off unless the environment names a collector, by the variables that OpenTelemetry's specification gives. The
instrumentation is OpenTelemetry's own; this module adds the facts that only this service knows.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kgtrace_store.errors import BadRequest, MissingExtra

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")

_PROTOCOL = "http/protobuf"
"""The one that needs no compiled library."""

_UNTRACED = "/livez$,/readyz$,/metrics$"
"""Asked every few seconds by machines."""

_WHOLE = "kgtrace.scope"


def provider_from(environment: Mapping[str, str]) -> "TracerProvider | None":
    """Return a middleware that sends spans to the collector that the environment names; None where it names none.

    Raises `BadRequest` for an exporter or a protocol that is not supported, and `MissingExtra`.
    """
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    named = any(environment.get(name) for name in _ENDPOINTS)
    exporter = environment.get("OTEL_TRACES_EXPORTER") or ("otlp" if named else "none")
    if exporter == "none":
        return None
    if exporter != "otlp":
        raise BadRequest(f"OTEL_TRACES_EXPORTER is {exporter!r}: set it to otlp or none")
    for name in _PROTOCOLS:
        if environment.get(name, _PROTOCOL) != _PROTOCOL:
            raise BadRequest(f"{name} is {environment[name]!r}: spans are sent over {_PROTOCOL} alone")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as e:
        raise MissingExtra("OpenTelemetry is not installed: pip install 'kgtrace[otel]', or unset OTEL_*") from e
    service = environment.get("OTEL_SERVICE_NAME") or "kgtrace"
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: service}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


class Trace:
    """Makes a span of each request, a child of the caller's where its headers name one.

    Nothing of the question is in it: the query of the address is hidden from the instrumentation.
    """

    def __init__(self, app: ASGIApp, provider: "TracerProvider") -> None:
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

        self._app = app
        self._traced = OpenTelemetryMiddleware(
            self._annotated, excluded_urls=_UNTRACED, tracer_provider=provider, exclude_spans=["receive", "send"]
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        await self._traced({**scope, "query_string": b"", _WHOLE: scope}, receive, send)

    async def _annotated(self, shown: Scope, receive: Receive, send: Send) -> None:
        from opentelemetry.trace import get_current_span

        scope: Scope = shown[_WHOLE]
        span = get_current_span()

        async def send_annotated(message: Message) -> None:
            if message["type"] == "http.response.start":  # with the answer's end the span ends
                _annotate(span, scope)
            await send(message)

        await self._app(scope, receive, send_annotated)


def _annotate(span: "Span", scope: Scope) -> None:
    state = scope["state"]
    if (route := getattr(scope.get("route"), "path", None)) is not None:
        span.update_name(f"{scope['method']} {route}")
        span.set_attribute("http.route", route)
    span.set_attribute("kgtrace.request_id", state["request_id"])
    if (generation := state.get("generation")) is not None:
        span.set_attribute("kgtrace.generation", generation)
    if (queued := state.get("queue_seconds")) is not None:
        span.set_attribute("kgtrace.queue_seconds", queued)
    for stage, seconds in state.get("stage_seconds", {}).items():
        span.set_attribute(f"kgtrace.{stage}_seconds", seconds)
