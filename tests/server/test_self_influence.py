"""Training triples by self-influence: over HTTP and on the command line."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from kgtrace_server.cli import parser as cli
from kgtrace_server.schema.answer import from_json
from kgtrace_server.schema.answers import SelfInfluences
from kgtrace_server.schema.questions import SelfInfluenceRequest
from kgtrace_server.service import Service
from kgtrace_store.errors import BadRequest
from tests.server.conftest import GENERATION, Client, assert_documented

Check = Callable[..., dict[str, Any]]
PATH = "/v1/self-influence"


def rows(answer: dict[str, Any]) -> list[int]:
    return [found["train_index"] for found in answer["self_influences"]]


def test_rankings_are_answered_as_documented(client: Client) -> None:
    """Largest first, equal ones in the order of the rows; the address asks the same as a body."""
    body = client.post(PATH, {"top_k": 5}).json()
    assert_documented(SelfInfluences, body)
    assert (body["generation"], body["score"], body["loss"]) == (GENERATION, "tracin", "ce-1vsall")
    assert body["count"] == 20
    assert [found["self_influence"] for found in body["self_influences"]] == [3.0, 3.0, 2.5, 2.5, 2.5]
    assert rows(body) == [106, 113, 105, 112, 119]
    assert body["self_influences"][0]["triple"]["head"]["label"] == "ibuprofen"
    assert client.get(PATH, params={"top_k": 5}).json() == body
    assert rows(client.get(PATH, params={"top_k": 4, "order": "ascending"}).json()) == [100, 107, 114, 101]


def test_the_other_score_can_be_asked_for(client: Client) -> None:
    """In the body and in the address; the answer says which it is."""
    body = client.post(PATH, {"top_k": 3, "score": "preconditioned"}).json()
    assert body["score"] == "preconditioned"
    assert rows(body) == [106, 113, 100]
    assert client.get(PATH, params={"top_k": 3, "score": "preconditioned"}).json() == body


def test_an_index_answers_by_its_own_score(service: Service, attributor: Any) -> None:
    """Unless another is asked for; where it does not hold that, it says how to build one that does."""
    attributor.score = "preconditioned"
    assert service.self_influences(SelfInfluenceRequest()).score == "preconditioned"
    assert service.self_influences(SelfInfluenceRequest(score="tracin")).score == "tracin"
    attributor.score = "tracin"
    attributor.training.self_influence.pop("preconditioned")
    assert service.self_influences(SelfInfluenceRequest()).score == "tracin"
    with pytest.raises(BadRequest, match="holds self-influences of tracin alone: build it with projection pca"):
        service.self_influences(SelfInfluenceRequest(score="preconditioned"))


def test_rankings_can_be_restricted(client: Client, attributor: Any) -> None:
    """To labels of relation, head and tail, or ids in JSON; several are alternatives."""
    got = client.get(PATH, params={"top_k": 100, "relation": ["treats", "located in"], "head": "aspirin"}).json()
    posted = client.post(
        PATH, {"top_k": 100, "filter": {"must": {"relation": ["treats", 1], "head": ["aspirin"]}}}
    ).json()
    assert got == posted
    expected = [i + 100 for i, (h, r, _) in enumerate(attributor.triples.tolist()) if r in (0, 1) and h == 0]
    assert sorted(rows(got)) == expected
    other = client.post(PATH, {"top_k": 100, "filter": {"must_not": {"head": ["aspirin"]}}}).json()
    assert not set(rows(other)) & set(expected)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"top_k": 0}, "top_k"),
        ({"top_k": 1001}, "1000"),
        ({"order": "largest"}, "order"),
        ({"score": "fisher"}, "score"),
        ({"relation": "treat"}, "unknown relation 'treat'"),
        ({"head": "99"}, "unknown entity '99'"),
        ({"entity": "aspirin"}, "entity: unknown field"),
    ],
)
def test_wrong_parameters_are_unprocessable(
    client: Client, assert_problem: Check, parameters: dict[str, Any], words: str
) -> None:
    """422 that says what to change."""
    assert_problem(client.get(PATH, params=parameters), 422, words)


def test_the_service_refuses_none(service: Service) -> None:
    """Without HTTP, too."""
    with pytest.raises(BadRequest, match="top_k: input should be greater than or equal to 1, is 0"):
        SelfInfluenceRequest.of(top_k=0)


# Command line.


@pytest.fixture
def _fake(attributor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kgtrace_indexer.query.opening.open_index", lambda *_, **__: attributor)


@pytest.mark.usefixtures("_fake")
def test_the_command_line_answers_what_the_service_answers(
    capsys: pytest.CaptureFixture[str], service: Service
) -> None:
    """As JSON, and as a table for people."""
    call = [
        "self-influence",
        "--index",
        "x",
        "--top-k",
        "3",
        "--order",
        "ascending",
        "--relation",
        "treats",
        "located in",
    ]
    assert cli.main([*call, "--not-tail", "7", "--json"]) == 0
    restriction = {"must": {"relation": ["treats", 1]}, "must_not": {"tail": ["7"]}}
    question = SelfInfluenceRequest.of(top_k=3, order="ascending", **restriction)
    assert from_json(SelfInfluences, capsys.readouterr().out.encode()) == service.self_influences(question)
    for score in (["--score", "preconditioned"], ["--precondition", "fisher"]):
        assert cli.main([*call[:5], *score, "--json"]) == 0
        answer = service.self_influences(SelfInfluenceRequest(top_k=3, score="preconditioned"))
        assert from_json(SelfInfluences, capsys.readouterr().out.encode()) == answer
    assert cli.main(call) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["tracin", "preconditioned", "row", "head", "relation", "tail"]
    assert [line.split()[3] for line in lines[1:]] == ["100", "107", "101"]


@pytest.mark.usefixtures("_fake")
@pytest.mark.parametrize("ending", [".json", ".csv", ".parquet"])
def test_rankings_are_written_to_files(
    capsys: pytest.CaptureFixture[str], service: Service, tmp_path: Path, ending: str
) -> None:
    """JSON as over HTTP; tables with a row for each training triple: ids, labels, names."""
    out = tmp_path / f"out{ending}"
    assert cli.main(["self-influence", "--index", "x", "--top-k", "2", "--output", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}: 2 training triples\n"
    answer = service.self_influences(SelfInfluenceRequest(top_k=2))
    if ending == ".json":
        assert from_json(SelfInfluences, out.read_bytes()) == answer
        return
    expected = list(answer.rows())
    if ending == ".csv":
        with out.open(newline="") as f:
            found: list[Any] = list(csv.DictReader(f))
        expected = [{k: "" if v is None else str(v) for k, v in row.items()} for row in expected]
    else:
        found = pyarrow.parquet.read_table(out).to_pylist()
    assert found == expected
    assert list(found[0]) == list(SelfInfluences.COLUMNS)
    assert found[0]["head_label"] == "ibuprofen"
