"""Spans, for whoever collects them."""

import sys
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from kgtrace_server.http.app import create_app
from kgtrace_server.http.tracing import provider_from
from kgtrace_server.service import Service
from kgtrace_store.errors import BadRequest, MissingExtra
from tests.server.conftest import GENERATION, Client, patient

INFLUENCES = "/v1/influences"
BODY = {"triples": [["aspirin", "treats", "headache"]]}
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


@pytest.fixture
def traced(service: Service) -> tuple[Client, InMemorySpanExporter]:
    """A client of an application that makes spans, and where these end up."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Client(create_app(service, patient(), provider)), exporter


def test_each_request_is_one_span(traced: tuple[Client, InMemorySpanExporter]) -> None:
    """It is named after the route, and says by whom it was answered, how it ended and where the time went."""
    client, exporter = traced
    assert client.post(INFLUENCES, BODY, headers={"X-Request-Id": "job-7"}).status_code == 200
    (span,) = exporter.get_finished_spans()
    assert (span.name, span.kind) == (f"POST {INFLUENCES}", SpanKind.SERVER)
    found: Any = span.attributes
    assert (found["http.route"], found["http.status_code"]) == (INFLUENCES, 200)
    assert (found["kgtrace.request_id"], found["kgtrace.generation"]) == ("job-7", GENERATION)
    assert found["kgtrace.queue_seconds"] >= 0
    for stage, seconds in (("gradient", 0.1), ("search", 0.2), ("rerank", 0.3)):
        assert found[f"kgtrace.{stage}_seconds"] == seconds


def test_a_span_joins_the_trace_of_its_caller(traced: tuple[Client, InMemorySpanExporter]) -> None:
    """As W3C's header names it."""
    client, exporter = traced
    client.get("/v1/index", headers={"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"})
    (span,) = exporter.get_finished_spans()
    assert span.parent is not None
    assert f"{span.parent.trace_id:x}" == "ab" * 16 == f"{span.get_span_context().trace_id:x}"


def test_what_was_asked_is_not_in_a_span(traced: tuple[Client, InMemorySpanExporter]) -> None:
    """As in the log; and what a span cannot say it leaves out."""
    client, exporter = traced
    assert client.get(f"{INFLUENCES}?head=aspirin&relation=treats&tail=headache").status_code == 200
    assert client.get("/v1/entities?q=aspirin").status_code == 200
    assert client.get("/nowhere?q=aspirin").status_code == 404
    spans = exporter.get_finished_spans()
    assert [span.name for span in spans] == [f"GET {INFLUENCES}", "GET /v1/entities", "GET /nowhere"]
    assert "aspirin" not in "".join(span.to_json() for span in spans)
    assert "kgtrace.queue_seconds" not in (spans[2].attributes or {})


def test_failures_are_marked(traced: tuple[Client, InMemorySpanExporter], attributor: Any) -> None:
    """Our own are errors, the caller's are not."""
    client, exporter = traced

    def fail() -> None:
        raise ZeroDivisionError

    attributor.before_query = fail
    assert client.post(INFLUENCES, BODY).status_code == 500
    assert client.post(INFLUENCES, {}).status_code == 422
    assert [span.status.is_ok for span in exporter.get_finished_spans()] == [False, True]


def test_probes_are_not_traced(traced: tuple[Client, InMemorySpanExporter]) -> None:
    """They come every few seconds; a search for their name is traced."""
    client, exporter = traced
    for path in ("/livez", "/readyz", "/metrics", "/livez?x=1", "/v1/entities?q=/livez"):
        client.get(path)
    assert [span.name for span in exporter.get_finished_spans()] == ["GET /v1/entities"]


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_TRACES_EXPORTER": "none", ENDPOINT: "http://127.0.0.1:1"},
        {"OTEL_SDK_DISABLED": "true", ENDPOINT: "http://127.0.0.1:1"},
        {ENDPOINT: ""},
    ],
)
def test_nothing_is_traced_unasked(environment: dict[str, str]) -> None:
    """Without a collector, or where the environment says so."""
    assert provider_from(environment) is None


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({ENDPOINT: "http://127.0.0.1:1"}, "kgtrace"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1"}, "kgtrace"),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_SERVICE_NAME": "explainer"}, "explainer"),
    ],
)
def test_the_standard_variables_switch_it_on(environment: dict[str, str], name: str) -> None:
    """And name the service."""
    provider = provider_from(environment)
    assert provider is not None
    assert provider.resource.attributes["service.name"] == name
    provider.shutdown()


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "'zipkin': set it to otlp or none"),
        ({ENDPOINT: "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "'grpc': spans are sent over http"),
    ],
)
def test_what_is_not_supported_is_named(environment: dict[str, str], words: str) -> None:
    """Rather than sending nothing, or to nobody."""
    with pytest.raises(BadRequest, match=words):
        provider_from(environment)


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for spans without it is told what to install."""
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(MissingExtra, match=r"kgtrace\[otel\]"):
        provider_from({ENDPOINT: "http://127.0.0.1:1"})


def test_an_ordinary_application_makes_no_spans(make_client: Callable[..., Client]) -> None:
    """Its middleware is not even there."""
    assert "Trace" not in {layer.cls.__name__ for layer in make_client().app.user_middleware}  # type: ignore[attr-defined]
