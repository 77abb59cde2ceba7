"""The shapes of questions and answers."""

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from kgtrace_server.schema import answers, examples, options as of_clients, questions
from kgtrace_server.schema.answer import Answer, from_json, to_json
from kgtrace_server.schema.fields import Question, TripleRef
from kgtrace_store.errors import BadRequest


@pytest.mark.parametrize("triple", [["a", "r", 3], {"head": "a", "relation": "r", "tail": 3}])
def test_a_triple_is_a_list_or_an_object(triple: Any) -> None:
    """Both spellings mean the same; strings stay labels and integers ids."""
    request = questions.InfluenceRequest.model_validate({"triples": [triple]})
    assert request.triples[0] == TripleRef(head="a", relation="r", tail=3)


def test_defaults_are_those_documented() -> None:
    """A request may consist of triples alone."""
    request = questions.InfluenceRequest.model_validate({"triples": [["a", "r", "b"]]})
    assert request.model_dump(exclude={"triples"}) == {
        "top_k": 10,
        "order": "proponents",
        "exact": False,
        "max_candidates": None,
        "filter": None,
        "within_hops": None,
        "direction": "tail",
        "score": None,
        "damping": None,
        "outcome": "logit",
    }


@pytest.mark.parametrize(
    "request_",
    [
        questions.InfluenceRequest,
        questions.PredictionRequest,
        questions.AggregateRequest,
        questions.SelfInfluenceRequest,
    ],
)
def test_request_examples_are_valid(request_: type[Question]) -> None:
    """Examples in the documentation can be sent as they are."""
    for example in request_.model_json_schema()["examples"]:
        request_.model_validate(example)


EXAMPLES = [value for value in vars(examples).values() if isinstance(value, Answer)]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: type(example).__name__)
def test_answers_are_read_as_they_were_written(example: Answer) -> None:
    """By the clients, from the JSON of the service; no field is lost."""
    assert len(EXAMPLES) > 10
    assert from_json(type(example), to_json(example)) == example
    assert to_json(example) == json.dumps(asdict(example), ensure_ascii=False, separators=(",", ":")).encode()


def test_numbers_that_json_lacks_become_null() -> None:
    """Whoever builds an answer should not leave any in it; if so, the JSON is sound."""
    seconds = answers.Seconds(float("nan"), float("inf"), 1.0)
    assert to_json(seconds) == b'{"gradient":null,"search":null,"rerank":1.0}'


VALID: dict[str, Any] = {"triples": [["a", "r", "b"]]}


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"triples": []}, "triples", "at least 1"),
        ({"triples": [["a", "r", "b"]] * 257}, "triples", "at most 256"),
        ({"triples": [["a", "r"]]}, "triples.0", "has 2 items"),
        ({"triples": [["a", "r", "b", "c"]]}, "triples.0", "has 4 items"),
        ({"triples": ["a"]}, "triples.0", "must be [head, relation, tail]"),
        ({"triples": [{"head": "a", "relation": "r"}]}, "triples.0.tail", "required"),
        ({"triples": [{"head": "a", "relation": "r", "tail": "b", "x": 1}]}, "triples.0.x", "not permitted"),
        ({"triples": [[True, "r", "b"]]}, "triples.0.head", "label (string) or an id"),
        ({"triples": [["a", 1.0, "b"]]}, "triples.0.relation", "label (string) or an id"),
        ({"triples": [["a", "r", None]]}, "triples.0.tail", "label (string) or an id"),
        ({"top_k": 0}, "top_k", "greater than or equal to 1"),
        ({"top_k": 1001}, "top_k", "less than or equal to 1000"),
        ({"top_k": "10"}, "top_k", "valid integer"),
        ({"top_k": True}, "top_k", "valid integer"),
        ({"top_k": 10**400}, "top_k", "less than or equal to 1000"),
        ({"order": "best"}, "order", "'proponents', 'opponents' or 'absolute'"),
        ({"exact": 1}, "exact", "valid boolean"),
        ({"max_candidates": -1}, "max_candidates", "greater than or equal to 0"),
        ({"max_candidates": 2**31}, "max_candidates", "less than or equal to"),
        ({"filter": {"should": {}}}, "filter.should", "not permitted"),
        ({"filter": {"must": {"subject": ["a"]}}}, "filter.must.subject", "not permitted"),
        ({"filter": {"must": {"head": "a"}}}, "filter.must.head", "valid list"),
        ({"filter": {"must": {"head": []}}}, "filter.must.head", "at least 1"),
        ({"filter": {"must_not": {"head": [1.5]}}}, "filter.must_not.head.0", "label (string) or an id"),
        ({"direction": "both"}, "direction", "'tail' or 'head'"),
        ({"topk": 3}, "topk", "not permitted"),
    ],
)
def test_wrong_fields_are_named(change: Any, field: str, words: str) -> None:
    """Each wrong field gives one error, at its place, saying what is wanted."""
    with pytest.raises(ValidationError) as raised:
        questions.InfluenceRequest.model_validate({**VALID, **change})
    (error,) = raised.value.errors()
    assert ".".join(map(str, error["loc"])) == field
    assert words in error["msg"]


@pytest.mark.parametrize(
    "of",
    [
        lambda **more: questions.InfluenceRequest.of(triples=[["a", "r", "b"]] * 257, **more),
        lambda **more: questions.AggregateRequest.of(triples=np.zeros((257, 3), int), by="head", **more),
        lambda **more: questions.InfluenceRequest.of(triples=[("a", "r", 0)], **more),
    ],
)
def test_in_process_there_are_no_limits(of: Callable[..., Any]) -> None:
    """Of HTTP, that is: wrong values stay wrong, and the message names field and value."""
    question = of(top_k=np.int64(5000), within_hops=17, must={"head": range(10_001)})
    assert (question.top_k, question.within_hops, len(question.filter.must.head)) == (5000, 17, 10_001)
    with pytest.raises(BadRequest, match=r"^top_k: input should be greater than or equal to 1, is 0$"):
        of(top_k=0)
    with pytest.raises(BadRequest, match=r"^filter\.must\.nose: unknown field$"):
        of(must={"nose": [1]})
    with pytest.raises(ValidationError, match="less than or equal to 1000"):
        type(question).model_validate({**question.model_dump(), "triples": [["a", "r", "b"]]})


def test_the_options_of_clients_are_the_fields_of_questions() -> None:
    """Their signatures repeat the names, and a checker of types knows no others."""
    for options, question in (
        (of_clients.InfluenceOptions, questions.InfluenceRequest),
        (of_clients.Options, questions.AggregateRequest),
        (of_clients.RankingOptions, questions.SelfInfluenceRequest),
        (of_clients.PredictionOptions, questions.PredictionRequest),
        (of_clients.WhatIfOptions, questions.WhatIfRequest),
        (of_clients.SetOptions, questions.SetRequest),
    ):
        given = {"triple", "triples", "without", "by"}
        names = {"must", "must_not"} & set(options.__annotations__)
        assert set(options.__annotations__) - names == set(question.model_fields) - given - (
            {"filter"} if names else set()
        )
