"""The shapes of requests and answers."""

from typing import Any, get_args

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from kgtrace_indexer.names import Direction, Order, Ranking
from kgtrace_server import wire
from kgtrace_server.cli import parser as cli


@pytest.mark.parametrize("triple", [["a", "r", 3], {"head": "a", "relation": "r", "tail": 3}])
def test_a_triple_is_a_list_or_an_object(triple: Any) -> None:
    """Both spellings mean the same; strings stay labels and integers ids."""
    request = wire.InfluenceRequest.model_validate({"triples": [triple]})
    assert request.triples[0] == wire.TripleRef(head="a", relation="r", tail=3)


def test_defaults_are_those_documented() -> None:
    """A request may consist of triples alone."""
    request = wire.InfluenceRequest.model_validate({"triples": [["a", "r", "b"]]})
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
    }


@pytest.mark.parametrize(
    "request_", [wire.InfluenceRequest, wire.PredictionRequest, wire.AggregateRequest, wire.SelfInfluenceRequest]
)
def test_request_examples_are_valid(request_: type[BaseModel]) -> None:
    """Examples in the documentation can be sent as they are."""
    for example in request_.model_json_schema()["examples"]:
        request_.model_validate(example)


@pytest.mark.parametrize(
    ("shape", "example"),
    [
        (wire.Influences, wire.EXAMPLE_INFLUENCES),
        (wire.IndexInfo, wire.EXAMPLE_INDEX),
        (wire.Entities, wire.EXAMPLE_ENTITIES),
        (wire.Relations, wire.EXAMPLE_RELATIONS),
    ],
)
def test_answer_examples_are_valid(shape: Any, example: Any) -> None:
    """Examples in the documentation have the documented shape."""
    assert TypeAdapter(shape).validate_python(example, strict=True) == example


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
        wire.InfluenceRequest.model_validate({**VALID, **change})
    (error,) = raised.value.errors()
    assert ".".join(map(str, error["loc"])) == field
    assert words in error["msg"]


def test_the_command_line_offers_what_requests_take() -> None:
    """The command line writes the choices out to start quickly."""
    assert get_args(Order) == cli.ORDERS
    assert get_args(Direction) == cli.DIRECTIONS
    assert get_args(Ranking) == cli.RANKINGS
