"""Sets of training triples in labels: the service, HTTP, the clients and the command line, on a real index."""

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from kgtrace_indexer import BuildConfig, ModelFile, TripleTable, build, open_index
from kgtrace_indexer.explaining.explainer import SetExplainer
from kgtrace_server.client import AsyncClient, Client, LocalClient
from kgtrace_server.http.app import create_app
from kgtrace_server.schema.fields import MAX_SET
from kgtrace_server.schema.sets import SetExplanation, WhatIf
from kgtrace_server.service import Service
from kgtrace_server.settings import Settings
from kgtrace_store import Vocabulary
from kgtrace_store.errors import BadRequest, IdOutOfRange, UnknownEntity
from tests.conftest import Shared
from tests.server.cli.command import run
from tests.server.conftest import Client as Asking, assert_documented
from tests.server.transports import URL, Bridge

Umls = tuple[ModelFile, Vocabulary, TripleTable]
Check = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def index(umls: Umls, made_once: Shared) -> Path:
    """Of some training triples, with the default scores."""
    model, vocabulary, table = umls
    part = TripleTable(table.ids[:400], table.train_index[:400] + 7, 0)
    config = BuildConfig(dim=8, landmarks=64)
    return made_once("umls-sets", lambda root: build(root, model, vocabulary, part, config))


@pytest.fixture(scope="module")
def service(index: Path) -> Service:
    return Service(open_index(index, device="cpu", verify=False))


@pytest.fixture(scope="module")
def over_http(service: Service) -> Iterator[Client]:
    with Client(URL, transport=Bridge(create_app(service, Settings()))) as client:
        yield client


@pytest.fixture(scope="module")
def prediction(service: Service) -> tuple[int, int, int]:
    """A triple that the model ranks first, whose head has training triples."""
    attributor = service._attributor
    asked = np.asarray(attributor.training.triples[::40], np.int64)
    found = attributor.complete(asked, top_k=1, filtered=True)
    head, relation, tail = next(one.triples[0] for one in found if one.ranks[0] == 1).tolist()
    return head, relation, tail


def test_what_if_is_the_explainers_answer_in_labels(
    service: Service, over_http: Client, prediction: tuple[int, int, int]
) -> None:
    """A set may be named by labels, ids and rows, once or twice."""
    attributor = service._attributor
    training, names = attributor.training, attributor.vocabulary
    rows = training.train_index[[0, 5, 9]]
    found = SetExplainer(attributor).what_if(np.array(prediction), rows, top_k=3)
    first, second = (tuple(training.triples[i].tolist()) for i in (0, 5))
    labels = (names.entities[first[0]], names.relations[first[1]], names.entities[first[2]])
    answer = over_http.what_if(prediction, [labels, second, int(rows[2]), int(rows[0])], top_k=3)
    assert answer == over_http.what_if(prediction, rows.tolist(), top_k=3)
    assert [fact.train_index for fact in answer.facts] == found.train_index.tolist()
    assert [fact.change for fact in answer.facts] == found.changes.tolist()
    assert answer.facts[0].triple.head.label == labels[0]
    assert (answer.score.before, answer.score.after) == (found.score, found.score_after)
    assert (answer.score.low, answer.score.high) == found.interval
    assert (answer.rank.before, answer.rank.after) == (found.rank, found.rank_after)
    assert [member.entity.id for member in answer.completions] == found.entities.tolist()
    np.testing.assert_allclose([member.score.after for member in answer.completions], found.scores_after)


def test_a_necessary_set_is_the_explainers(
    service: Service, over_http: Client, prediction: tuple[int, int, int]
) -> None:
    """With what is predicted without it."""
    options: dict[str, Any] = {"max_facts": 3, "candidates": "both"}
    found = SetExplainer(service._attributor).necessary(np.array(prediction), **options)
    answer = over_http.explanation(prediction, **options)
    assert [fact.train_index for fact in answer.facts] == found.what_if.train_index.tolist()
    assert (answer.suffices, answer.margin, answer.candidates) == (found.suffices, found.margin, found.candidates)
    assert answer.rival is not None
    assert answer.rival.id == found.rival
    assert answer.certified
    assert answer.score is not None
    assert answer.score.after == found.what_if.score_after
    assert answer.rank.after == found.what_if.rank_after


def test_a_sufficient_set_is_the_explainers(
    service: Service, over_http: Client, prediction: tuple[int, int, int]
) -> None:
    """With each entity that it was tried with."""
    found = SetExplainer(service._attributor).sufficient(np.array(prediction), entities=3, seed=1)
    answer = over_http.explanation(prediction, mode="sufficient", entities=3, seed=1)
    assert [fact.train_index for fact in answer.facts] == found.train_index.tolist()
    assert [member.entity.id for member in answer.entities] == found.entities.tolist()
    assert [member.rank.after for member in answer.entities] == found.ranks_after.tolist()
    assert (answer.rank.before, answer.rank.after) == (found.ranks.mean(), found.ranks_after.mean())
    assert not answer.certified


def test_facts_have_the_reasons_that_influences_have(over_http: Client, prediction: tuple[int, int, int]) -> None:
    """Of every kind of set, in a tag, in words, and with the path."""
    (named,) = over_http.influences([prediction], top_k=400).results
    reasons = {each.train_index: each.fields("triple", "reason", "because", "path") for each in named.influences}
    sets = (
        over_http.what_if(prediction, list(reasons)),
        over_http.explanation(prediction, candidates="both"),
        over_http.explanation(prediction, mode="sufficient"),
    )
    for facts in (answer.facts for answer in sets):
        assert facts
        for fact in facts:
            assert fact.fields("triple", "reason", "because", "path") == reasons[fact.train_index]
    assert any(fact.path for fact in sets[0].facts)


def test_the_same_question_has_the_same_answer_everywhere(
    service: Service, index: Path, over_http: Client, prediction: tuple[int, int, int]
) -> None:
    """Over HTTP with and without an event loop, and in process."""

    async def ask() -> list[Any]:
        transport = httpx.ASGITransport(create_app(service, Settings()))
        async with AsyncClient(URL, transport=transport) as client:
            return [await client.what_if(prediction, [7, 8]), await client.explanation(prediction, connected=True)]

    local = LocalClient(index, device="cpu")
    for client in (over_http, local):
        answers = [client.what_if(prediction, [7, 8]), client.explanation(prediction, connected=True)]
        assert answers == asyncio.run(ask())


@pytest.mark.parametrize(
    ("without", "words"),
    [
        ([], "without: list should have at least 1 item"),
        ([["nobody", 0, 0]], "unknown entity 'nobody'"),
        ([[0, 0, 999]], "999"),
        ([[0, 0]], "must be [head, relation, tail], has 2 items"),
        ([-1], "without[0]"),
        ([True], "without[0]"),
        ([1 << 63], "without[0]"),
        ([(1 << 63) - 1], "is of no indexed training triple"),
        ([6], "train_index 6 is of no indexed training triple"),
        ([7, [0, 0, 0]], "without[1]: (0, 0, 0) is no indexed training triple"),
        (list(range(MAX_SET + 1)), f"at most {MAX_SET} items"),
    ],
)
def test_a_wrong_set_is_refused(service: Service, assert_problem: Check, without: list[Any], words: str) -> None:
    """422, and the member that is wrong."""
    client = Asking(create_app(service, Settings()))
    assert_problem(client.post("/v1/what-if", {"triple": [0, 0, 1], "without": without}), 422, words)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"mode": "enough"}, "mode: input should be 'necessary' or 'sufficient'"),
        ({"max_facts": 0}, "max_facts: input should be greater than or equal to 1"),
        ({"max_facts": 65}, "max_facts: input should be less than or equal to 64"),
        ({"candidates": "all"}, "candidates: input should be 'head', 'tail' or 'both'"),
        ({"mode": "sufficient", "connected": True}, "connected are of mode necessary"),
        ({"mode": "sufficient", "entities": 101}, "entities: input should be less than or equal to 100"),
        ({"without": [7]}, "without: unknown field"),
    ],
)
def test_a_wrong_question_is_refused(
    service: Service, assert_problem: Check, prediction: tuple[int, int, int], fields: dict[str, Any], words: str
) -> None:
    """422, and the field that is wrong."""
    client = Asking(create_app(service, Settings()))
    assert_problem(client.post("/v1/explanations", {"triple": prediction, **fields}), 422, words)


def test_what_is_not_ranked_first_has_no_necessary_set(
    service: Service, assert_problem: Check, prediction: tuple[int, int, int]
) -> None:
    """422; what-if answers."""
    head, relation, _ = prediction
    (found,) = service._attributor.complete(np.array([prediction]), top_k=4, filtered=True)
    client = Asking(create_app(service, Settings()))
    triple = [head, relation, int(found.entities[3])]
    rank = f"{found.ranks[3]:g}"
    assert_problem(client.post("/v1/explanations", {"triple": triple}), 422, f"ranks this tail {rank}")
    answered = client.post("/v1/what-if", {"triple": triple, "without": [7]})
    assert answered.json()["rank"]["before"] == found.ranks[3]
    assert_documented(WhatIf, answered.json())


def test_clients_raise_what_the_service_does(over_http: Client, index: Path) -> None:
    """The same errors over HTTP and in process."""
    for client in (over_http, LocalClient(index, device="cpu")):
        with pytest.raises(UnknownEntity):
            client.what_if(("nobody", 0, 0), [7])
        with pytest.raises(IdOutOfRange):
            client.what_if((0, 0, 1), [(0, 0, 999)])
        with pytest.raises(BadRequest, match="no indexed training triple"):
            client.what_if((0, 0, 1), [6])


def explain(capsys: pytest.CaptureFixture[str], index: Path, triple: tuple[int, ...], *arguments: str) -> str:
    """Call the verb, and return what it prints."""
    call = ("explain", "--index", str(index), "--device", "cpu", "--triple", *map(str, triple), *arguments)
    code, out, err = run(capsys, *call)
    assert (code, err) == (0, "")
    return out


def test_the_command_prints_a_set(
    capsys: pytest.CaptureFixture[str], index: Path, over_http: Client, prediction: tuple[int, int, int]
) -> None:
    """As JSON what HTTP answers, else a page that names the facts, the change of score and rank, and the source."""
    answer = over_http.explanation(prediction, max_facts=2, candidates="both")
    arguments = ("--max-facts", "2", "--candidates", "both")
    assert json.loads(explain(capsys, index, prediction, *arguments, "--json")) == json.loads(as_json(answer))
    page = explain(capsys, index, prediction, *arguments)
    assert answer.score is not None
    assert f"score {answer.score.before:.4g} → {answer.score.after:.4g}" in page
    assert f"rank {answer.rank.before} → {answer.rank.after}; 90 %: ConvE on UMLS" in page
    for fact in answer.facts:
        assert f"{fact.change:.4g}" in page
        assert f"{fact.train_index}  {fact.triple.head}" in page
        assert f"  {fact.reason}\n" in page
    told = explain(capsys, index, prediction, "--mode", "sufficient", "--entities", "3")
    sufficient = over_http.explanation(prediction, mode="sufficient", entities=3)
    first = sum(member.rank.after == 1 for member in sufficient.entities)
    assert f"told of 3 other entities: predicted first with {first}, mean rank {sufficient.rank.before:.4g}" in told
    assert str(sufficient.entities[0].entity) in told


def test_the_command_tries_a_set(
    capsys: pytest.CaptureFixture[str],
    index: Path,
    service: Service,
    over_http: Client,
    prediction: tuple[int, int, int],
) -> None:
    """Each --without is a training triple, also one whose label begins with a dash."""
    members = [tuple(service._attributor.training.triples[i].tolist()) for i in (0, 5)]
    answer = over_http.what_if(prediction, members)
    arguments = [text for member in members for text in ("--without", *map(str, member))]
    assert json.loads(explain(capsys, index, prediction, *arguments, "--json")) == json.loads(as_json(answer))
    assert "without 2 training triples: score" in explain(capsys, index, prediction, *arguments)
    call = ("explain", "--index", str(index), "--triple", *map(str, prediction), "--without", "-x", "--json", "--seed")
    code, _, err = run(capsys, *call)
    assert (code, err.count("\n")) == (1, 1)
    assert "unknown entity '-x'" in err


def as_json(answer: SetExplanation | WhatIf) -> bytes:
    from kgtrace_server.schema.answer import to_json

    return to_json(answer)
