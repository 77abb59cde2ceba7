"""Answers, headers, faults and documentation of the service over HTTP."""

import json
import keyword
import logging
import re
from collections.abc import Callable
from typing import Any

import pytest

from kgtrace_server.calls import AT_LEAST
from kgtrace_server.schema.answers import Influences
from kgtrace_server.schema.operation import IndexInfo
from kgtrace_store.errors import NonFinite
from tests.server.conftest import ENTITIES, GENERATION, Client, assert_documented
from tests.server.http.questions import INFLUENCES, TRIPLE, Check

# Answers.


def test_influences_are_answered_as_documented(client: Client) -> None:
    """The body is what the service says, and has the published shape."""
    response = client.post(INFLUENCES, {"triples": [TRIPLE, {"head": 0, "relation": 0, "tail": 2}], "top_k": 3})
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "application/json"
    body = response.json()
    assert_documented(Influences, body)
    assert body["generation"] == GENERATION
    assert body["results"][0] == body["results"][1]
    assert [len(result["influences"]) for result in body["results"]] == [3, 3]


def test_every_option_reaches_the_attributor(client: Client) -> None:
    """Order, filters and budgets change the answer."""
    body = {
        "triples": [TRIPLE],
        "top_k": 5,
        "order": "opponents",
        "max_candidates": 4,
        "filter": {"must": {"relation": ["treats", 1]}, "must_not": {"head": ["aspirin"], "tail": [4]}},
        "direction": "tail",
    }
    (result,) = client.post(INFLUENCES, body).json()["results"]
    assert result["certified"] is False
    assert result["bound_gap"] is None
    influences = [found["influence"] for found in result["influences"]]
    assert influences == sorted(influences)
    assert {found["triple"]["relation"]["id"] for found in result["influences"]} <= {0, 1}


def test_one_triple_can_be_asked_in_the_address(client: Client) -> None:
    """GET answers as POST does."""
    posted = client.post(INFLUENCES, {"triples": [TRIPLE], "top_k": 2, "order": "absolute"}).json()
    got = client.get(
        INFLUENCES,
        params={"head": "aspirin", "relation": "treats", "tail": "headache", "top_k": 2, "order": "absolute"},
    )
    assert got.json() == posted


@pytest.mark.parametrize("label", ENTITIES)
def test_labels_of_any_characters_can_be_asked(client: Client, label: str) -> None:
    """Slashes, question marks and umlauts survive the address."""
    response = client.get(INFLUENCES, params={"head": label, "relation": "treats", "tail": label})
    assert response.json()["results"][0]["triple"]["head"]["label"] == label


def test_lookups_and_index(client: Client) -> None:
    """Completion boxes and dashboards find entities, relations and what is served."""
    assert client.get("/v1/entities", params={"q": "asp"}).json()["entities"] == [
        {"id": 0, "label": "aspirin", "name": "Aspirin®"}
    ]
    assert [r["label"] for r in client.get("/v1/relations").json()["relations"]] == ["treats", "located in", "2"]
    info = client.get("/v1/index").json()
    assert_documented(IndexInfo, info)
    assert info["generation"] == GENERATION


def test_probes(client: Client) -> None:
    """A loaded service is alive and ready."""
    assert client.get("/livez").json() == {"status": "alive"}
    ready = client.get("/readyz").json()
    assert ready == {"status": "ready", "generation": GENERATION, "draining": [], "reload": None}


# Headers.


def test_request_ids_are_echoed(client: Client) -> None:
    """A printable id comes back on success and failure; any other is replaced."""
    for path in ("/livez", "/nowhere", INFLUENCES):
        assert client.get(path, headers={"X-Request-Id": "job 7/e"}).headers["X-Request-Id"] == "job 7/e"
    for bad in ("x" * 129, b"caf\xe9", b"a\x01b", ""):
        replaced = client.get("/livez", headers={"X-Request-Id": bad}).headers["X-Request-Id"]
        assert len(replaced) == 32
    first, second = (client.get("/livez").headers["X-Request-Id"] for _ in range(2))
    assert first != second


def test_every_answer_names_the_generation(client: Client) -> None:
    """Also errors do."""
    for path in ("/livez", "/nowhere", "/v1/index", INFLUENCES, "/docs"):
        assert client.get(path).headers["X-Kgtrace-Generation"] == GENERATION


# 500: our faults.


@pytest.mark.parametrize("error", [ZeroDivisionError("secret"), NonFinite("/srv/secret"), RecursionError("secret")])
def test_our_faults_are_logged_and_not_shown(
    make_client: Callable[..., Client],
    attributor: Any,
    assert_problem: Check,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    """500 with the request's id and no cause; the log has both."""

    def fail() -> None:
        raise error

    attributor.before_query = fail
    with caplog.at_level(logging.ERROR):
        response = make_client().post(INFLUENCES, {"triples": [TRIPLE]}, headers={"X-Request-Id": "job-7"})
    problem = assert_problem(response, 500, "job-7")
    assert "secret" not in json.dumps(problem)
    assert "secret" in caplog.text
    assert "job-7" in caplog.text


# CORS and documentation.


def test_other_origins_are_refused_by_default(client: Client, make_client: Callable[..., Client]) -> None:
    """Only listed origins may read answers, and may read the headers that matter; errors are readable, too."""
    origin = {"Origin": "https://a.example"}
    assert "Access-Control-Allow-Origin" not in client.get("/v1/index", headers=origin).headers
    allowed = make_client(cors_origins=("https://a.example",), read_key="s3cret")
    response = allowed.get("/v1/index", headers=origin)
    assert response.status_code == 401
    assert response.headers["Access-Control-Allow-Origin"] == "https://a.example"
    assert "X-Kgtrace-Generation" in response.headers["Access-Control-Expose-Headers"]
    sent = f"x-api-key, {AT_LEAST}"
    preflight = {**origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": sent}
    assert allowed.send("OPTIONS", INFLUENCES, headers=preflight).status_code == 200


def test_the_documentation_is_complete(client: Client) -> None:
    """Every route has a summary, an example or a schema for its answer, and problem documents for its errors."""
    assert client.get("/docs").status_code == 200
    document = client.get("/openapi.json").json()
    assert set(document["paths"]) == {
        "/livez",
        "/readyz",
        "/metrics",
        "/v1/admin/publish",
        "/v1/admin/rollback",
        "/v1/generations",
        "/v1/influences",
        "/v1/predictions",
        "/v1/aggregate",
        "/v1/what-if",
        "/v1/explanations",
        "/v1/self-influence",
        "/v1/index",
        "/v1/entities",
        "/v1/relations",
    }
    schemas = document["components"]["schemas"]
    assert "HTTPValidationError" not in schemas
    assert schemas["InfluenceRequest"]["examples"]
    assert "anyOf" in schemas["TripleRef"]
    assert schemas["Influence"]["properties"]["influence"]["description"]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation["summary"]
            for status, response in operation["responses"].items():
                media_type, *others = response["content"]
                graphs = path == "/v1/influences" and status == "200"
                assert others == (["application/ld+json", "application/graphml+xml"] if graphs else [])
                fine = "text/plain" if path == "/metrics" else "application/json"
                assert media_type == (fine if status == "200" else "application/problem+json")
                if path.startswith("/v1"):
                    assert "example" in response["content"][media_type]
    references = re.findall(r'"\$ref": "([^"]*)"', json.dumps(document))
    assert set(references) <= {f"#/components/schemas/{name}" for name in schemas}


def test_operations_are_named_for_generated_clients(client: Client) -> None:
    """Names of functions in generated clients: fixed, one for each route and method, and without paths."""
    paths = client.get("/openapi.json").json()["paths"]
    names = {
        (method.upper(), path): operation["operationId"]
        for path, operations in paths.items()
        for method, operation in operations.items()
    }
    assert names == {
        ("POST", "/v1/influences"): "explain_influences",
        ("GET", "/v1/influences"): "get_influences",
        ("POST", "/v1/predictions"): "predict",
        ("GET", "/v1/predictions"): "get_predictions",
        ("POST", "/v1/aggregate"): "aggregate",
        ("GET", "/v1/aggregate"): "get_aggregate",
        ("POST", "/v1/what-if"): "predict_without",
        ("POST", "/v1/explanations"): "explain_by_set",
        ("POST", "/v1/self-influence"): "rank_self_influence",
        ("GET", "/v1/self-influence"): "get_self_influence",
        ("GET", "/v1/index"): "get_index",
        ("GET", "/v1/entities"): "search_entities",
        ("GET", "/v1/relations"): "search_relations",
        ("GET", "/v1/generations"): "get_generations",
        ("POST", "/v1/admin/publish"): "publish",
        ("POST", "/v1/admin/rollback"): "rollback",
        ("GET", "/livez"): "is_alive",
        ("GET", "/readyz"): "is_ready",
        ("GET", "/metrics"): "get_metrics",
    }
    assert len(set(names.values())) == len(names)
    for name in names.values():
        assert name.isidentifier()
        assert not keyword.iskeyword(name)
        assert not re.search("v1|_(post|get)$", name)
