"""What the model would say: labels in, labelled completions out."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kgtrace_indexer import open_index
from kgtrace_server.schema.answers import Predictions
from kgtrace_server.schema.fields import MAX_RELATIONS
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
        ({"tail": "fever"}, "no inverse relations"),
        ({"top_k": 3}, "neither were"),
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


@pytest.mark.parametrize("direction", ["tail", "head"])
def test_an_entity_is_completed_by_its_own_relations(umls_index: Path, direction: Any) -> None:
    """As if each was asked for alone, the most frequent first; entities without training triples have none."""
    service = Service(open_index(umls_index, device="cpu"))
    training = service._attributor.training.known
    given, column = ("head", 0) if direction == "tail" else ("tail", 2)
    cut = False
    for entity in range(0, len(service._vocabulary.entities), 7):
        counts = Counter(training[training[:, column] == entity, 1].tolist())
        relations = sorted(counts, key=lambda relation: (-counts[relation], relation))
        answer = service.predictions(PredictionRequest.of(**{given: entity}, top_k=3, filtered=True))
        alone = [
            service.predictions(PredictionRequest.of(**{given: entity}, relation=relation, top_k=3, filtered=True))
            for relation in relations[:MAX_RELATIONS]
        ]
        assert answer.relations == len(relations)
        cut |= len(relations) > MAX_RELATIONS
        assert [each.triple for each in answer.predictions] == [
            one.triple for each in alone for one in each.predictions
        ]
        assert [each.rank for each in answer.predictions] == [one.rank for each in alone for one in each.predictions]
        np.testing.assert_allclose(
            [each.score for each in answer.predictions],
            [one.score for each in alone for one in each.predictions],
            rtol=1e-5,
            atol=1e-5,
        )
    assert cut


def test_questions_with_and_without_a_relation_are_answered_together(service: Service, attributor: Any) -> None:
    """Each gets its own answer; one about an entity without training triples gets none."""
    asked = [PredictionRequest.of(head=0, relation=1), PredictionRequest.of(head=0), PredictionRequest.of(head=6)]
    assert len({question.alike for question in asked}) == 1
    named, every, nothing = service.together(asked)
    assert len(attributor.calls) == 1
    assert (named, every) == tuple(map(service.predictions, asked[:2]))
    assert isinstance(named, Predictions)
    assert isinstance(every, Predictions)
    assert isinstance(nothing, Predictions)
    assert (named.relations, every.relations) == (None, 3)
    assert set(named.predictions) < set(every.predictions)
    assert (nothing.predictions, nothing.relations) == ((), 0)
    assert service.predictions(asked[2]) == nothing


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
