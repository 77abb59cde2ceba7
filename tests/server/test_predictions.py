"""What the model would say: labels in, labelled completions out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kgtrace_indexer import open_index
from kgtrace_server.schema.answers import Predictions
from kgtrace_server.schema.questions import InfluenceRequest, PredictionRequest
from kgtrace_server.service import Service
from kgtrace_store.errors import BadRequest, IdOutOfRange, MissingInverseRelations, UnknownEntity
from tests.server.conftest import ENTITIES, GENERATION, Client, assert_documented

Check = Callable[..., dict[str, Any]]
PATH = "/v1/predictions"


def test_predictions_are_answered_as_documented(client: Client) -> None:
    """Best first, with labels, scores, ranks and what is known; the address asks the same as a body."""
    body = client.post(PATH, {"head": "aspirin", "relation": "treats", "top_k": 4}).json()
    assert_documented(Predictions, body)
    assert (body["generation"], body["direction"]) == (GENERATION, "tail")
    assert [found["entity"]["label"] for found in body["predictions"]] == list(ENTITIES[:4])
    assert [found["score"] for found in body["predictions"]] == [0.0, -1.0, -2.0, -3.0]
    assert body["predictions"][1]["triple"] == {
        "head": {"id": 0, "label": "aspirin", "name": "Aspirin®"},
        "relation": {"id": 0, "label": "treats", "name": None},
        "tail": {"id": 1, "label": "ibuprofen", "name": None},
    }
    assert client.get(PATH, params={"head": "aspirin", "relation": "treats", "top_k": 4}).json() == body


def test_known_facts_are_marked_or_left_out(client: Client, attributor: Any) -> None:
    """With ``filtered`` only what makes no training triple is named, under the same ranks."""
    known = {int(t) for h, r, t in attributor.triples if (h, r) == (0, 0)}
    assert known
    every, others = (
        client.get(PATH, params={"head": "aspirin", "relation": "treats", "filtered": filtered}).json()["predictions"]
        for filtered in (False, True)
    )
    assert {found["entity"]["id"] for found in every if found["in_training"]} == known
    assert others == [found for found in every if not found["in_training"]]
    assert [found["rank"] for found in others] == list(range(1, len(ENTITIES) - len(known) + 1))


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"relation": "treats"}, "exactly one of head and tail must be given: neither were"),
        ({"head": "aspirin", "relation": "treats", "tail": "fever"}, "must be given: both were"),
        ({"head": "aspirin"}, "relation: field required"),
        ({"head": "asprin", "relation": "treats"}, "unknown entity 'asprin'; nearest: 'aspirin'"),
        ({"head": "aspirin", "relation": "treat"}, "unknown relation 'treat'"),
        ({"relation": "treats", "tail": "fever"}, "no inverse relations"),
        ({"head": "aspirin", "relation": "treats", "top_k": 0}, "top_k"),
        ({"head": "aspirin", "relation": "treats", "top_k": 1001}, "1000"),
        ({"head": "aspirin", "relation": "treats", "order": "best"}, "unknown field"),
    ],
)
def test_wrong_questions_are_unprocessable(
    client: Client, assert_problem: Check, asked: dict[str, Any], words: str
) -> None:
    """422 that says what to change, in the address as in a body."""
    assert_problem(client.post(PATH, asked), 422, words)
    assert_problem(client.get(PATH, params=asked), 422, words)


@pytest.mark.parametrize(
    ("question", "error"),
    [
        ({}, BadRequest),
        ({"head": 0, "tail": 0}, BadRequest),
        ({"head": "nobody"}, UnknownEntity),
        ({"head": 99}, IdOutOfRange),
        ({"tail": 3}, MissingInverseRelations),
        ({"head": 0, "top_k": 0}, BadRequest),
    ],
)
def test_the_service_refuses_by_name(service: Service, question: dict[str, Any], error: type) -> None:
    """Without HTTP, too."""
    with pytest.raises(error):
        service.predictions(PredictionRequest.of(relation=0, **question))


def test_a_prediction_can_be_explained(umls_index: Path) -> None:
    """On a real index a prediction's score and rank are those of its explanation, for tails and for heads."""
    service = Service(open_index(umls_index, device="cpu"))
    for given, direction in (({"head": 3}, "tail"), ({"tail": 9}, "head")):
        answer = service.predictions(PredictionRequest.of(relation=5, top_k=2, **given))
        assert answer.direction == direction
        triples = [(p.triple.head.id, p.triple.relation.id, p.triple.tail.id) for p in answer.predictions]
        explained = service.influences(InfluenceRequest.of(triples=triples, top_k=1, direction=direction))
        for prediction, explanation in zip(answer.predictions, explained.results, strict=True):
            assert prediction.triple == explanation.triple
            assert prediction.rank == explanation.rank
            assert prediction.score == pytest.approx(explanation.score, rel=1e-5)
            assert prediction.in_training == explanation.in_training
