"""Digits where a label or an id may stand: one rule at every door."""

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest

from kgtrace_server.cli import parser as cli
from kgtrace_server.http.app import create_app
from kgtrace_server.schema.questions import InfluenceRequest
from kgtrace_server.service import Service
from kgtrace_store.vocabulary import Vocabulary
from tests.server.conftest import Client, FakeAttributor, patient

PLAIN = Vocabulary(("ann", "bob", "cid", "dan", "eve", "fay", "gus"), ("knows", "likes", "hates"))
"""No label is made of digits: digits are ids."""
NUMBERED = Vocabulary(("10280", "50", "7", "300", "4", "12", "2"), ("50", "51", "9"))
"""Labels are integers with gaps: 3 is the id of an entity, and the label of none; 1 likewise of relations."""

COMMANDS: dict[str, tuple[str, ...]] = {
    "head of a triple": ("query", "--triple", "3", "R", "T"),
    "relation of a triple": ("query", "--triple", "H", "1", "T"),
    "tail of a triple": ("query", "--triple", "H", "R", "3"),
    "--head": ("query", "--triple", "H", "R", "T", "--head", "3"),
    "--not-head": ("query", "--triple", "H", "R", "T", "--not-head", "H", "3"),
    "--relation": ("query", "--triple", "H", "R", "T", "--relation", "1"),
    "--not-relation": ("query", "--triple", "H", "R", "T", "--not-relation", "1"),
    "--tail": ("query", "--triple", "H", "R", "T", "--tail", "3"),
    "--not-tail": ("query", "--triple", "H", "R", "T", "--not-tail", "3"),
    "self-influence --head": ("self-influence", "--head", "3"),
    "self-influence --relation": ("self-influence", "--relation", "1"),
    "self-influence --not-tail": ("self-influence", "--not-tail", "3"),
}
ADDRESSES: dict[str, tuple[str, dict[str, str]]] = {
    f"{route} {field}": (f"/v1/{route}", {**others, field: "1" if field == "relation" else "3", **more})
    for route, more in (("influences", {}), ("aggregate", {"by": "head"}))
    for field in ("head", "relation", "tail")
    for others in ({"head": "H", "relation": "R", "tail": "T"},)
} | {
    "predictions head": ("/v1/predictions", {"head": "3", "relation": "R"}),
    "predictions relation": ("/v1/predictions", {"head": "H", "relation": "1"}),
    "self-influence head": ("/v1/self-influence", {"head": "3"}),
    "self-influence relation": ("/v1/self-influence", {"relation": "1"}),
    "self-influence tail": ("/v1/self-influence", {"tail": "3"}),
}


def with_labels(text: str, vocabulary: Vocabulary) -> str:
    """Put labels of the vocabulary in the places of H, R and T."""
    return {"H": vocabulary.entities[0], "R": vocabulary.relations[0], "T": vocabulary.entities[2]}.get(text, text)


@pytest.fixture
def attributor_with(monkeypatch: pytest.MonkeyPatch) -> Callable[[Vocabulary], FakeAttributor]:
    """An index with the labels of a vocabulary, which the command line opens, too."""

    def make(vocabulary: Vocabulary) -> FakeAttributor:
        attributor = FakeAttributor()
        attributor.vocabulary = vocabulary
        monkeypatch.setattr("kgtrace_indexer.query.opening.open_index", lambda *_, **__: attributor)
        return attributor

    return make


@pytest.mark.parametrize("door", COMMANDS)
def test_the_command_line_takes_digits_for_ids_only_where_no_label_is_made_of_digits(
    door: str, attributor_with: Callable[[Vocabulary], FakeAttributor], capsys: pytest.CaptureFixture[str]
) -> None:
    """An entity that the model does not know is an error, not the entity in the row of that number."""
    for vocabulary in (PLAIN, NUMBERED):
        attributor_with(vocabulary)
        verb, *options = (with_labels(text, vocabulary) for text in COMMANDS[door])
        code = cli.main([verb, "--index", "x", *options, "--json"])
        out, err = capsys.readouterr()
        if vocabulary is PLAIN:
            assert (code, err) == (0, "")
            assert json.loads(out)
        else:
            assert (code, out) == (1, "")
            assert "digits are labels here, not ids" in err


@pytest.mark.parametrize("door", ADDRESSES)
def test_addresses_follow_the_same_rule(door: str, attributor_with: Callable[[Vocabulary], FakeAttributor]) -> None:
    """Parameters of GET are text, as arguments of the command line are."""
    for vocabulary in (PLAIN, NUMBERED):
        service = Service(attributor_with(vocabulary))  # type: ignore[arg-type]
        path, parameters = ADDRESSES[door]
        named = {name: with_labels(text, vocabulary) for name, text in parameters.items()}
        response = Client(create_app(service, patient())).get(path, params=named)
        if vocabulary is PLAIN:
            assert response.status_code == 200, response.text
        else:
            assert response.status_code == 422
            assert "digits are labels here, not ids" in response.json()["detail"]


def test_labels_of_digits_are_found_everywhere(
    attributor_with: Callable[[Vocabulary], FakeAttributor], capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that the vocabulary has are labels at every door, and integers in JSON stay ids."""
    service = Service(attributor_with(NUMBERED))  # type: ignore[arg-type]
    expected = service.influences(InfluenceRequest.of(triples=[(2, 1, 4)])).results[0].triple
    assert [expected.head.label, expected.relation.label, expected.tail.label] == ["7", "51", "4"]
    client = Client(create_app(service, patient()))
    assert cli.main(["query", "--index", "x", "--triple", "7", "51", "4", "--json"]) == 0
    answers: list[Any] = [json.loads(capsys.readouterr().out)]
    answers.append(client.get("/v1/influences", params={"head": "7", "relation": "51", "tail": "4"}).json())
    bodies = [{"triples": [triple]} for triple in ([2, 1, 4], ["7", "51", "4"])]
    answers += [client.post("/v1/influences", body).json() for body in bodies]
    assert [answer["results"][0]["triple"] for answer in answers] == [asdict(expected)] * 4
    assert client.post("/v1/influences", {"triples": [[3, 1, 0]]}).status_code == 200
    assert client.post("/v1/influences", {"triples": [["3", "51", "4"]]}).status_code == 422
