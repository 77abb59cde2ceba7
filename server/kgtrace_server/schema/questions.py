"""What can be asked: one model for each kind of question, as a body of JSON, and one as parameters of an address.

The options of a question are the fields of its model. From these follow the checks and the documentation of HTTP, the
questions of the service, and the options that the command line passes on; `kgtrace_server.schema.options` repeats their
names for the signatures of the clients.
"""

from collections.abc import Hashable
from typing import Annotated, Self

from pydantic import ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from kgtrace_indexer.names import Direction, Group, Order, Outcome, Ranking, Score, SetCandidates, SetMode
from kgtrace_server.schema.fields import (
    MAX_ENTITIES,
    MAX_FACTS,
    MAX_RELATIONS,
    MAX_SEARCH,
    AtMost,
    Body,
    Candidates,
    Damping,
    Filter,
    Hops,
    Question,
    Ref,
    TopK,
    TrainingRefs,
    TripleRef,
    TripleRefs,
)
from kgtrace_store.errors import BadRequest

# Fields that several questions share. A model lists these bases in the opposite order of its fields.


class _Options(Question):
    top_k: TopK = 10
    """How many training triples, or groups of these, to name for each question."""
    order: Order = "proponents"
    """Largest influence first, most negative first, or largest magnitude first."""
    exact: bool = False
    """Compute the influence of every training triple instead of searching: slow, and independent of the index. Sums
    are else estimates with bounds on their errors."""
    within_hops: Hops | None = None
    """Name only training triples so near to the test triple: with 1 those that touch its head or tail, with 2 also
    those that touch one of these, and so on. Of several test triples, each has neighbours of its own."""
    direction: Direction = "tail"
    """Explain the tail, or the head."""
    score: Score | None = None
    """``tracin``: inner products of gradients; ``preconditioned``: of those of embedding rows, with the inverse of
    their second moment between. Null for what the index was built with."""
    damping: Damping | None = None
    """σ² of the preconditioned score, in its unit; ``auto`` is 3, null the index's own."""
    outcome: Outcome = "logit"
    """What the preconditioned score explains: the triple's own score, or the log-probability that a softmax over all
    tails (or heads) gives it."""


class _Triple(Question):
    head: str
    """Label, or id where no label is made of digits."""
    relation: str
    """Label, or id where no label is made of digits."""
    tail: str
    """Label, or id where no label is made of digits."""


class _Triples(Body):
    triples: TripleRefs
    """Test triples: what to explain."""


class _Groups(Body):
    triple: TripleRef | None = None
    """Test triple: what to explain."""
    triples: TripleRefs | None = None
    """Or several, the influences on which are summed."""
    by: Group
    """What the training triples of a group have in common; with ``triple`` each is a group of its own."""


class _TripleAndGroups(_Triple):
    by: Group
    """What the training triples of a group have in common; with ``triple`` each is a group of its own."""


class _Ranked(Question):
    top_k: TopK = 10
    """How many training triples to name."""
    order: Ranking = "descending"
    """Largest first, or smallest."""
    score: Score | None = None
    """``tracin`` for ‖g‖², ``preconditioned`` for gᵀPg; null for what the index was built to answer with."""


class _Incomplete(Body):
    head: Ref | None = None
    """Given, tails are predicted."""
    relation: Ref | None = None
    """Null for the relations of which the given entity has most training triples in its place, ten of them at most."""
    tail: Ref | None = None
    """Given, heads are predicted."""


class _IncompleteText(Question):
    head: str | None = None
    """Label, or id where no label is made of digits. Given, tails are predicted."""
    relation: str | None = None
    """Label, or id where no label is made of digits. Without it, those of which the given entity has most training
    triples in its place, ten of them at most."""
    tail: str | None = None
    """Label, or id where no label is made of digits. Given, heads are predicted."""


class _Completed(Question):
    top_k: TopK = 10
    """How many entities to name for each relation."""
    filtered: bool = False
    """Leave out those that make a training triple."""


class _Alone(Body):
    @property
    def alike(self) -> Hashable:
        """Equal in no two questions: each is a computation of its own."""
        return object()


# Questions.


class InfluenceRequest(_Options, _Triples):
    """Which training triples made the model score these triples as it does?"""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "triples": [["aspirin", "treats", "headache"], {"head": 3, "relation": 1, "tail": 7}],
                    "top_k": 10,
                    "order": "proponents",
                    "exact": False,
                    "max_candidates": None,
                    "filter": {"must": {"relation": ["treats"]}, "must_not": {"head": ["aspirin"]}},
                }
            ]
        }
    )

    max_candidates: Candidates | None = None
    """Look at no more than so many training triples; an answer that was cut short is not certified."""
    filter: Filter | None = None
    """Which training triples may be named."""

    @property
    def alike(self) -> Hashable:
        """Questions in which this is equal differ in their triples alone."""
        return self.key("triples")

    @property
    def size(self) -> int:
        """The number of its test triples."""
        return len(self.triples)


class InfluenceQuery(_Options, _Triple):
    """One test triple in the address."""

    max_candidates: Candidates | None = None
    """Look at no more than so many training triples; an answer that was cut short is not certified."""


class AggregateRequest(_Options, _Groups):
    """Which relations, heads or tails of training triples, or which training triples, made the model score these
    triples as it does?"""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"triple": ["aspirin", "treats", "headache"], "by": "relation", "top_k": 10},
                {"triples": [["aspirin", "treats", "headache"], ["aspirin", "treats", "fever"]], "by": "triple"},
            ]
        }
    )

    filter: Filter | None = None
    """Which training triples count."""

    @model_validator(mode="after")
    def _one_or_several(self) -> Self:
        if (self.triple is None) == (self.triples is None):
            raise PydanticCustomError("triples", "exactly one of triple and triples must be given")
        return self

    @property
    def alike(self) -> Hashable:
        """Equal in no two questions: each is a scan of its own."""
        return object()


class AggregateQuery(_Options, _TripleAndGroups):
    """One test triple in the address, and by what to sum."""


class SelfInfluenceRequest(_Ranked, Body):
    """Which training triples pulled hardest on the model?"""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"top_k": 10, "order": "descending", "filter": {"must": {"relation": ["treats"]}}}]
        }
    )

    filter: Filter | None = None
    """Which training triples may be named."""


class SelfInfluenceQuery(_Ranked):
    """Training triples by self-influence, in the address. Parameters that are given several times name alternatives."""

    head: list[str] = Field([])
    """Label, or id where no label is made of digits, of the training triple's head."""
    relation: list[str] = Field([])
    """The same of its relation."""
    tail: list[str] = Field([])
    """The same of its tail."""


class PredictionRequest(_Completed, _Incomplete):
    """What would the model put in the place of the missing tail, or head?"""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"head": "aspirin", "relation": "treats", "top_k": 10, "filtered": True},
                {"tail": "headache", "top_k": 3, "filtered": True},
            ]
        }
    )

    @property
    def given(self) -> tuple[Direction, Ref]:
        """The missing side, and the entity of the other. Raises `BadRequest` where not exactly one of them is given."""
        match self.head, self.tail:
            case head, None if head is not None:
                return "tail", head
            case None, tail if tail is not None:
                return "head", tail
        given = "neither" if self.head is None else "both"
        raise BadRequest(f"exactly one of head and tail must be given: {given} were")

    @property
    def alike(self) -> Hashable:
        """Questions in which this is equal differ in their triples alone."""
        return type(self), self.given[0], self.top_k, self.filtered

    @property
    def size(self) -> int:
        """The most incomplete triples that it is about."""
        return 1 if self.relation is not None else MAX_RELATIONS


class PredictionQuery(_Completed, _IncompleteText):
    """The same in the address."""


class WhatIfRequest(_Alone):
    """What would the model say of a prediction if it was trained without these training triples?"""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"triple": ["aspirin", "treats", "headache"], "without": [["aspirin", "treats", "fever"], 1234]}
            ]
        }
    )

    triple: TripleRef
    """The prediction."""
    without: TrainingRefs
    """What is left out: training triples, or the ``train_index`` of each. A triple that is there several times is left
    out altogether."""
    direction: Direction = "tail"
    """Predict tails, or heads."""
    top_k: TopK = 10
    """How many of the entities with the highest predicted scores to name."""


class SetRequest(_Alone):
    """Which set of training triples does a prediction rest on?"""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "triple": ["aspirin", "treats", "headache"],
                    "mode": "necessary",
                    "max_facts": 4,
                    "candidates": "head",
                },
                {"triple": ["aspirin", "treats", "headache"], "mode": "sufficient", "entities": 10, "seed": 0},
            ]
        }
    )

    triple: TripleRef
    """The prediction."""
    mode: SetMode = "necessary"
    """``necessary``: the smallest set whose removal is predicted to take the prediction from rank 1; ``sufficient``:
    facts of the head that are predicted to give its tail to other entities."""
    max_facts: Annotated[int, Field(ge=1), AtMost(MAX_FACTS)] = 4
    """The most training triples of a set."""
    candidates: SetCandidates = "head"
    """Of a necessary set: training triples that have the head, the tail, or either."""
    connected: bool = False
    """Of a necessary set: a path of its own training triples must lead from the head to the tail."""
    direction: Direction = "tail"
    """Explain the tail, or the head; a sufficient set is then of the tail's facts."""
    top_k: TopK = 10
    """How many of the entities with the highest predicted scores to name, without a necessary set."""
    entities: Annotated[int, Field(ge=1), AtMost(MAX_ENTITIES)] = 10
    """How many other entities a sufficient set is tried with."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the draw of these."""


class SearchQuery(Question):
    """A look-up by label or name."""

    q: Annotated[str, Field(max_length=MAX_SEARCH)] = ""
    """What the label or name equals, starts with or contains, in this order; upper and lower case are the same."""
    limit: Annotated[int, Field(ge=1), AtMost(MAX_SEARCH)] = 20
    """How many to return."""


class PublishRequest(Body):
    """A generation to make live."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"generation": "20261123T020000Z-1a2b3c"}]})

    generation: Annotated[str, Field(min_length=1, max_length=100)]
    """Its id."""
