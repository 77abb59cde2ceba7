"""Predictions, sums and rankings through the clients: one interface, one answer."""

import asyncio
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from kgtrace_server.client import AsyncClient, Client, LocalClient
from kgtrace_server.http.app import create_app
from kgtrace_server.schema.answers import Aggregate, Predictions, SelfInfluences
from kgtrace_server.schema.questions import AggregateRequest, InfluenceRequest, PredictionRequest
from kgtrace_server.service import Service
from kgtrace_store.errors import BadRequest, MissingInverseRelations, UnknownEntity
from tests.server.conftest import Client as HttpClient, patient
from tests.server.transports import URL, Bridge

TRIPLE = ("aspirin", "treats", "headache")

QUESTIONS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("predictions", (), {"head": "aspirin", "relation": 0, "top_k": 3}),
    ("predictions", (), {"head": 4, "relation": "2", "filtered": True}),
    ("predictions", (), {"head": "aspirin", "top_k": 2}),
    ("aggregate", (TRIPLE, "relation"), {}),
    (
        "aggregate",
        ((0, 0, 2), "head"),
        {"top_k": 2, "order": "absolute", "exact": True, "must": {"relation": ["treats"]}, "within_hops": 2},
    ),
    ("self_influence", (), {}),
    ("self_influence", (), {"score": "preconditioned"}),
    ("self_influence", (), {"top_k": 3, "order": "ascending", "must": {"head": [4, "7"]}, "must_not": {"tail": [0]}}),
    ("influences", ([TRIPLE],), {"within_hops": 1, "top_k": 20}),
    ("influences", ([TRIPLE],), {"score": "preconditioned", "damping": 2.5}),
    ("influences", ([TRIPLE],), {"score": "preconditioned", "damping": "auto", "outcome": "probability"}),
    ("aggregate", (TRIPLE, "head"), {"score": "preconditioned", "damping": 1, "exact": True}),
]


@pytest.fixture
def over_http(service: Service) -> Iterator[Client]:
    with Client(URL, transport=Bridge(create_app(service, patient()))) as client:
        yield client


@pytest.fixture
def local(attributor: Any, root: Path, monkeypatch: pytest.MonkeyPatch) -> LocalClient:
    monkeypatch.setattr("kgtrace_indexer.query.opening.open_index", lambda *_, **__: attributor)
    return LocalClient(root)


@pytest.mark.parametrize(("method", "arguments", "options"), QUESTIONS)
def test_the_same_question_has_the_same_answer_everywhere(
    over_http: Client, local: LocalClient, service: Service, method: str, arguments: Any, options: dict[str, Any]
) -> None:
    """Over HTTP, awaited, and in process; an integer is an id everywhere, though a label be the same digits."""

    async def ask() -> Any:
        async with AsyncClient(URL, transport=httpx.ASGITransport(create_app(service, patient()))) as client:
            return await getattr(client, method)(*arguments, **options)

    answer = getattr(local, method)(*arguments, **options)
    assert getattr(over_http, method)(*arguments, **options) == answer
    assert asyncio.run(ask()) == answer


def test_a_neighbourhood_reaches_the_attributor(over_http: Client) -> None:
    """Fewer training triples are named within one hop."""
    (everywhere,) = over_http.influences([TRIPLE], top_k=20).results
    (near,) = over_http.influences([TRIPLE], top_k=20, within_hops=1).results
    assert 0 < len(near.influences) < len(everywhere.influences)
    for found in near.influences:
        assert {found.triple.head.id, found.triple.tail.id} & {0, 2}


def test_neighbourhoods_are_asked_in_the_address_and_bounded(
    client: HttpClient, assert_problem: Callable[..., Any]
) -> None:
    """GET answers as POST does; no hops, or more than are worth counting, are refused."""
    parameters = dict(zip(("head", "relation", "tail"), TRIPLE, strict=True))
    posted = client.post("/v1/influences", {"triples": [TRIPLE], "within_hops": 1})
    assert client.get("/v1/influences", params={**parameters, "within_hops": 1}).json() == posted.json()
    for wrong in (0, 17):
        assert_problem(client.get("/v1/influences", params={**parameters, "within_hops": wrong}), 422, "within_hops")
        body = {"triples": [TRIPLE], "within_hops": wrong}
        assert_problem(client.post("/v1/influences", body), 422, "within_hops")


PATHS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("/v1/influences", {}, {"triples": [TRIPLE]}),
    ("/v1/aggregate", {"by": "head"}, {"triple": TRIPLE, "by": "head"}),
]


@pytest.mark.parametrize(("path", "parameters", "body"), PATHS)
def test_an_answer_says_its_score(
    make_client: Callable[..., HttpClient],
    attributor: Any,
    assert_problem: Callable[..., Any],
    path: str,
    parameters: dict[str, Any],
    body: dict[str, Any],
) -> None:
    """Plain or preconditioned, as asked for in the body or the address, or else as the index was built."""
    client = make_client()
    address = {**dict(zip(("head", "relation", "tail"), TRIPLE, strict=True)), **parameters}
    assert client.post(path, body).json()["score"] == "tracin"
    options = {"score": "preconditioned", "damping": 2.5, "outcome": "probability"}
    posted = client.post(path, {**body, **options})
    assert attributor.calls[-1]["damping"] == 2.5
    assert attributor.calls[-1]["outcome"] == "probability"
    assert posted.json()["score"] == "preconditioned"
    assert client.get(path, params={**address, **options}).json() == posted.json()
    attributor.score = "preconditioned"
    assert client.post(path, body).json()["score"] == "preconditioned"
    assert client.post(path, {**body, "score": "tracin"}).json()["score"] == "tracin"
    assert client.post(path, {**body, "score": "preconditioned", "damping": "auto"}).status_code == 200
    assert attributor.calls[-1]["damping"] == "auto"
    for name, wrong in (
        ("score", "fisher"),
        ("outcome", "rank"),
        ("damping", 0),
        ("damping", -1),
        ("damping", "none"),
        ("damping", "nan"),
    ):
        assert_problem(client.post(path, {**body, name: wrong}), 422, name)
        assert_problem(client.get(path, params={**address, name: wrong}), 422, name)


def test_a_score_is_one_of_two(local: LocalClient) -> None:
    """In process, too."""
    with pytest.raises(BadRequest, match="score: input should be 'tracin' or 'preconditioned', is 'fisher'"):
        local.influences([TRIPLE], score="fisher")  # type: ignore[arg-type]


def test_questions_of_other_neighbourhoods_are_not_alike() -> None:
    """They are not answered together, for the neighbourhood of one would be that of all."""

    def influences(**options: Any) -> Hashable:
        return InfluenceRequest.of(**{"triples": [TRIPLE], **options}).alike

    def predictions(**options: Any) -> Hashable:
        return PredictionRequest.of(relation=0, **options).alike

    assert influences(within_hops=1) != influences(within_hops=2)
    assert influences(within_hops=1) == influences(within_hops=1, triples=[(0, 0, 0)])
    assert influences(score="preconditioned") != influences()
    assert influences(damping=1.0) != influences(damping=2.0)
    assert influences(outcome="probability") != influences()
    assert influences(must={"head": [0]}) != influences(must={"tail": [0]})
    assert predictions(head=0) == predictions(head=1)
    assert predictions(head=0) != predictions(head=0, filtered=True)
    assert predictions(head=0) != predictions(tail=0)
    sums = AggregateRequest.of(triple=TRIPLE, by="head")
    assert sums.alike != sums.alike


def test_answers_become_data_frames(over_http: Client) -> None:
    """A row for each prediction, group and training triple, also where there is none."""
    predictions = over_http.predictions(head="aspirin", relation="treats", top_k=4).to_dataframe()
    assert list(predictions.columns) == list(Predictions.COLUMNS)
    assert predictions["tail"].tolist() == [0, 1, 2, 3]
    assert predictions["head_name"].tolist() == ["Aspirin®"] * 4
    groups = over_http.aggregate(TRIPLE, "relation", exact=True).to_dataframe()
    assert list(groups.columns) == list(Aggregate.COLUMNS)
    assert sorted(groups["group_label"]) == ["2", "located in", "treats"]
    assert groups["count"].sum() == 20
    ranking = over_http.self_influence(top_k=2).to_dataframe()
    assert list(ranking.columns) == list(SelfInfluences.COLUMNS)
    assert ranking["train_index"].tolist() == [106, 113]
    empty = over_http.self_influence(must={"head": ["Zürich"]}).to_dataframe()
    assert (len(empty), list(empty.columns)) == (0, list(SelfInfluences.COLUMNS))


@pytest.mark.parametrize(
    ("method", "arguments", "options", "error"),
    [
        ("predictions", (), {"relation": 0}, BadRequest),
        ("predictions", (), {"relation": 0, "tail": 0}, MissingInverseRelations),
        ("aggregate", (("asprin", 0, 0), "head"), {}, UnknownEntity),
        ("aggregate", ((0, 0, 0), "head"), {"top_k": 0}, BadRequest),
        ("self_influence", (), {"must": {"tail": ["nobody"]}}, UnknownEntity),
        ("self_influence", (), {"top_k": 0}, BadRequest),
    ],
)
def test_errors_are_the_same_everywhere(
    over_http: Client, local: LocalClient, method: str, arguments: Any, options: dict[str, Any], error: type
) -> None:
    """What the index raises in process comes back over HTTP as itself."""
    for client in (over_http, local):
        with pytest.raises(error):
            getattr(client, method)(*arguments, **options)
