"""Labels in, labelled influences out."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from kgtrace_indexer import open_index
from kgtrace_server.schema.answer import from_json, to_json
from kgtrace_server.schema.answers import Influences, Named
from kgtrace_server.schema.operation import Entities, IndexInfo, Relations
from kgtrace_server.schema.questions import InfluenceRequest, SearchQuery
from kgtrace_server.service import Service
from kgtrace_store.errors import IdOutOfRange, KgtraceError, UnknownEntity, UnknownRelation


def test_labels_and_ids_name_the_same_triple(service: Service, attributor: Any) -> None:
    """A string is a label and an integer an id, in one triple."""
    service.influences(InfluenceRequest.of(triples=[("aspirin", 0, "headache"), (0, "treats", 2)]))
    assert attributor.calls[0]["triples"].dtype == np.int64
    assert attributor.calls[0]["triples"].tolist() == [[0, 0, 2], [0, 0, 2]]


def test_answers_have_the_documented_shape(service: Service) -> None:
    """Everything written over HTTP validates against the published schema, and is JSON."""
    answer = service.influences(InfluenceRequest.of(triples=[("aspirin", "treats", "headache")], top_k=20))
    answers = ((Influences, answer), (Entities, service.entities()), (Relations, service.relations()))
    for kind, answer in (*answers, (IndexInfo, service.index_info())):
        assert from_json(kind, to_json(answer)) == answer
        assert json.loads(to_json(answer)) == json.loads(json.dumps(asdict(answer), allow_nan=False))


def test_influences_are_labelled_and_in_order(service: Service, attributor: Any) -> None:
    """Each influence names its row and triple, with the human name where there is one."""
    answer = service.influences(InfluenceRequest.of(triples=[("aspirin", "treats", "headache")], top_k=3))
    (result,) = answer.results
    assert result.triple.head == Named(0, "aspirin", "Aspirin®")
    assert result.triple.tail == Named(2, "headache", None)
    assert [each.train_index for each in result.influences] == [100, 102, 104]
    assert [each.influence for each in result.influences] == [1.0, 0.33333334, 0.2]
    for each in result.influences:
        ids = [each.triple.head.id, each.triple.relation.id, each.triple.tail.id]
        assert ids == attributor.triples[each.train_index - 100].tolist()


def test_numbers_read_back_as_the_same_float32(service: Service) -> None:
    """Short decimals lose nothing of what was computed."""
    (result,) = service.influences(InfluenceRequest.of(triples=[(0, 0, 0)], top_k=20, order="absolute")).results
    expected = (1 / (1 + np.arange(20)) * np.where(np.arange(20) % 2, -1, 1)).astype(np.float32)
    np.testing.assert_array_equal(np.array([each.influence for each in result.influences], np.float32), expected)


def test_what_is_not_finite_becomes_null(service: Service) -> None:
    """JSON has no infinity: an unknown bound is null."""
    (result,) = service.influences(InfluenceRequest.of(triples=[(0, 0, 0)], max_candidates=0)).results
    assert result.certified is False
    assert result.bound_gap is None


def test_filters_take_labels_and_ids(service: Service) -> None:
    """``must`` keeps and ``must_not`` drops, by field."""
    question = InfluenceRequest.of(
        triples=[(0, 0, 0)], top_k=20, must={"relation": ["treats", 2]}, must_not={"head": [0, "ibuprofen"]}
    )
    (result,) = service.influences(question).results
    assert result.influences
    for each in result.influences:
        assert each.triple.relation.label in ("treats", "2")
        assert each.triple.head.id not in (0, 1)


@pytest.mark.parametrize(
    ("question", "error", "words"),
    [
        (InfluenceRequest.of(triples=[("asprin", "treats", "headache")]), UnknownEntity, "'aspirin' (Aspirin®)"),
        (InfluenceRequest.of(triples=[("aspirin", "treat", "headache")]), UnknownRelation, "'treats'"),
        (InfluenceRequest.of(triples=[(7, 0, 0)]), IdOutOfRange, "7"),
        (InfluenceRequest.of(triples=[(-1, 0, 0)]), IdOutOfRange, "-1"),
        (InfluenceRequest.of(triples=[(10**30, 0, 0)]), IdOutOfRange, "out of range"),
        (InfluenceRequest.of(triples=[(0, 0, 0)], must={"tail": ["nowhere"]}), UnknownEntity, "'nowhere'"),
        (InfluenceRequest.of(triples=[(0, 0, 0)], must_not={"relation": [9]}), IdOutOfRange, "9"),
    ],
)
def test_what_the_vocabulary_lacks_is_named(
    service: Service, question: InfluenceRequest, error: type, words: str
) -> None:
    """Unknown labels and ids beyond the tables are refused wherever they stand."""
    with pytest.raises(error) as raised:
        service.influences(question)
    assert words in str(raised.value)


def test_digits_in_text_are_labels_where_a_label_is_made_of_digits(service: Service) -> None:
    """``7`` is the entity whose label is 7, and ``3`` none, for it could be meant as a label."""
    assert service.triple_ids(*service.refs_from_text("aspirin", "2", "7")) == (0, 2, 4)
    for text in ("3", "8", "-1", "٣", "1" * 5000, "1.0", ""):
        with pytest.raises(UnknownEntity):
            service.triple_ids(*service.refs_from_text(text, "2", "7"))
    with pytest.raises(UnknownRelation):
        service.triple_ids(*service.refs_from_text("aspirin", "0", "7"))


def test_lookups_find_by_label_and_name(service: Service) -> None:
    """Completion boxes get ids, labels and names."""
    for text in ("ASPIRIN", "in"):
        assert [each.label for each in service.entities(SearchQuery(q=text)).entities] == ["aspirin"]
    assert [each.label for each in service.relations(SearchQuery(q="loc")).relations] == ["located in"]
    assert len(service.entities(SearchQuery(limit=3)).entities) == 3


def test_the_index_is_described(service: Service) -> None:
    """Model, loss, layers, projection, counts and age come from the manifest."""
    info = service.index_info()
    assert info.model == "ConvE"
    assert info.projection == {"type": "pca", "dim": 64, "landmarks": 2048, "seed": 0}
    assert info.counts["triples"] == 20
    assert math.isclose(info.age_seconds, 3600, abs_tol=3600)


REFS = st.one_of(
    st.integers(-2, 9),
    st.sampled_from(["aspirin", "headache", "7", "Zürich", "treats", "2", "nobody"]),
    st.text(max_size=3),
)
CONDITIONS = st.dictionaries(
    st.sampled_from(["head", "relation", "tail"]), st.lists(REFS, min_size=1, max_size=2), max_size=2
)
QUESTIONS = st.builds(
    InfluenceRequest.of,
    triples=st.lists(st.tuples(REFS, REFS, REFS), min_size=1, max_size=3),
    top_k=st.integers(1, 25),
    order=st.sampled_from(["proponents", "opponents", "absolute"]),
    exact=st.booleans(),
    max_candidates=st.none() | st.integers(0, 5),
    must=CONDITIONS,
    must_not=CONDITIONS,
    direction=st.sampled_from(["tail", "tail", "head"]),
)


def outcome(service: Service, question: InfluenceRequest) -> Any:
    """What a question gets alone: an answer, or the kind of its error and its message."""
    try:
        return service.influences(question)
    except KgtraceError as e:
        return type(e), str(e)


@given(st.lists(QUESTIONS, min_size=1, max_size=8))
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_questions_get_together_what_they_get_alone(service: Service, questions: list[InfluenceRequest]) -> None:
    """Whatever is asked, named errors and answers are the same in a batch, and equal keys mean equal options."""
    groups: dict[Any, list[InfluenceRequest]] = {}
    for question in questions:
        groups.setdefault(question.alike, []).append(question)
    for alike in groups.values():
        together = service.together(alike)
        for question, found in zip(alike, together, strict=True):
            told = (type(found), str(found)) if isinstance(found, Exception) else found
            assert told == outcome(service, question)


def test_an_answer_does_not_depend_on_the_company(umls_index: Path) -> None:
    """On a real index, too: questions of several triples, answered together and one by one, name the same triples."""
    service = Service(open_index(umls_index, device="cpu"))
    triples = [(i, i % 5, i + 7) for i in range(6)]
    questions = [
        InfluenceRequest.of(triples=triples[start : start + size], top_k=5) for start, size in ((0, 1), (1, 2), (3, 3))
    ]
    together = service.together(questions)
    for question, found in zip(questions, together, strict=True):
        assert isinstance(found, Influences)
        alone = service.influences(question)
        for one, other in zip(found.results, alone.results, strict=True):
            assert one.rank == other.rank
            assert one.certified
            for a, b in zip(one.influences, other.influences, strict=True):
                assert a.influence == pytest.approx(b.influence, rel=1e-4, abs=1e-6)
