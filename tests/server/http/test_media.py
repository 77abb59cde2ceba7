"""Explanations over HTTP in the media type that a client asks for."""

import io
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

import networkx as nx
import pyoxigraph as ox
import pytest

from kgtrace_server.http.media import preferred
from kgtrace_server.schema.answer import from_json
from kgtrace_server.schema.answers import Influences
from tests.server.conftest import GENERATION, Client
from tests.server.test_graphs import check_graph, check_statements

JSON, JSON_LD, GRAPHML = "application/json", "application/ld+json", "application/graphml+xml"
TRIPLE = {"head": "aspirin", "relation": "treats", "tail": "headache"}
BODY = {"triples": [TRIPLE, ["fever", "2", "a/b?c=d"]], "top_k": 3}


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        (JSON_LD, JSON_LD),
        (GRAPHML.upper(), GRAPHML),
        (f"{JSON_LD};profile=expanded", JSON_LD),
        (f"{GRAPHML}, {JSON_LD}", GRAPHML),
        (f"{GRAPHML};q=0.5, {JSON_LD} ; Q=0.7", JSON_LD),
        (f"{JSON_LD}, */*;q=0.1", JSON_LD),
        (f"{JSON_LD};q=0.1, */*", JSON),
        (f"{JSON_LD};q=0", JSON),
        (f"text/turtle, {JSON_LD};q=0.2", JSON_LD),
        ("text/turtle", JSON),
        ("application/*", JSON),
        ("", JSON),
        (",;q=,;q=9", JSON),
    ],
)
def test_the_weightiest_type_is_chosen(accept: str, media_type: str) -> None:
    """The first of equal ones; JSON where none is asked for."""
    assert preferred(accept) == media_type


def test_one_answer_in_three_types(client: Client) -> None:
    """By POST and GET; caches are told that it depends on the header."""
    answered = client.post("/v1/influences", BODY)
    answer = from_json(Influences, answered.content)
    assert answered.headers["Vary"] == "Accept"
    graph = client.post("/v1/influences", BODY, headers={"Accept": GRAPHML})
    assert graph.headers["Content-Type"] == GRAPHML
    assert graph.headers["X-Kgtrace-Generation"] == GENERATION
    check_graph(nx.read_graphml(io.BytesIO(graph.content), force_multigraph=True), answer, [0, 1])

    address = f"/v1/influences?{urlencode(TRIPLE | {'top_k': 3})}"
    answer = from_json(Influences, client.get(address).content)
    linked = client.get(address, headers={"Accept": JSON_LD})
    assert linked.headers["Content-Type"] == JSON_LD
    store = ox.Store()
    store.load(linked.content, ox.RdfFormat.JSON_LD)
    check_statements(store, answer)


def test_errors_and_other_answers_stay_as_they_are(client: Client, assert_problem: Callable[..., Any]) -> None:
    """Problems are problem documents, and predictions JSON, whatever is asked for."""
    unknown = {"triples": [["algae", "treats", "headache"]]}
    assert_problem(client.post("/v1/influences", unknown, headers={"Accept": JSON_LD}), 422, "algae")
    body = {"head": "aspirin", "relation": "treats"}
    assert client.post("/v1/predictions", body, headers={"Accept": GRAPHML}).headers["Content-Type"] == JSON
