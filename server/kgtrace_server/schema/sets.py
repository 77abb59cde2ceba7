"""What the service answers about sets of training triples."""

from __future__ import annotations

from dataclasses import dataclass

from kgtrace_indexer.names import Direction, ReasonName, SetMode
from kgtrace_server.schema.answer import Answer
from kgtrace_server.schema.answers import Named, NamedTriple


@dataclass(frozen=True, slots=True)
class Fact(Answer):
    """One training triple of a set."""

    train_index: int
    """Row of the training triples as read, from 0."""
    triple: NamedTriple
    change: float | None
    """Predicted change of the prediction's score by leaving out this one alone: changes add up. 0 where the training
    triple does not touch the prediction. Null in a sufficient set."""
    reason: ReasonName | None = None
    """How the triple is related to the prediction in the training graph: the first of these that holds. Null from
    older services."""
    because: str | None = None
    """The same in words."""
    path: tuple[NamedTriple, ...] = ()
    """Of ``path``: the two or three training triples from the prediction's head to its tail, in this order."""


@dataclass(frozen=True, slots=True)
class PredictedScore(Answer):
    """A score of the model, and what is predicted of it."""

    before: float | None
    """The model's."""
    after: float | None
    """Predicted."""
    low: float | None = None
    """The lower end of the interval that is to hold the score of a model trained again with 90 % probability; null
    where nothing was measured for such models."""
    high: float | None = None
    """Its upper end."""


@dataclass(frozen=True, slots=True)
class PredictedRank(Answer):
    """A filtered rank, and what is predicted of it."""

    before: int | float
    after: int | float


@dataclass(frozen=True, slots=True)
class Completion(Answer):
    """An entity that completes the prediction, among those that make no other training triple."""

    entity: Named
    score: PredictedScore


@dataclass(frozen=True, slots=True, kw_only=True)
class WhatIf(Answer):
    """What the model is predicted to say if it was trained without a set of training triples."""

    generation: str
    """The generation of the index that answered."""
    triple: NamedTriple
    """The prediction."""
    direction: Direction
    """The side whose entities compete."""
    facts: tuple[Fact, ...]
    """What is left out."""
    score: PredictedScore
    """Of the prediction."""
    rank: PredictedRank
    """Of the prediction among all entities in its place; half of those with an equal score count. Entities that make
    another training triple do not count, whether or not that is left out."""
    measured_on: str | None
    """The models and data that the interval was measured on; null where there is none."""
    completions: tuple[Completion, ...]
    """The entities with the highest predicted scores, best first."""


@dataclass(frozen=True, slots=True)
class Convinced(Answer):
    """Another entity in the head's place, which is told the facts of a sufficient set."""

    entity: Named
    score: PredictedScore
    """Of the prediction's tail with this entity."""
    rank: PredictedRank
    """The same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetExplanation(Answer):
    """The smallest set without which a prediction falls, or a set that gives it to other entities."""

    generation: str
    """The generation of the index that answered."""
    mode: SetMode
    """``necessary`` or ``sufficient``."""
    triple: NamedTriple
    """The prediction."""
    direction: Direction
    """The side that is explained."""
    facts: tuple[Fact, ...]
    """The set."""
    suffices: bool
    """Whether the set is predicted to do it: to take the prediction from rank 1, or to bring it there with all of the
    entities. If no set is, this is the one that comes nearest."""
    certified: bool
    """Whether it is proved that no smaller set of the candidates is predicted to do it, and none of the same size with
    a larger margin."""
    candidates: int
    """Training triples that the set was chosen from."""
    score: PredictedScore | None
    """Of the prediction without a necessary set; null in mode ``sufficient``."""
    rank: PredictedRank
    """Of the prediction without a necessary set, or the mean over `entities` with a sufficient one."""
    rival: Named | None
    """The entity that is predicted to pass the prediction, or to come nearest, without a necessary set."""
    margin: float | None
    """By how much its predicted score is higher than the prediction's."""
    measured_on: str | None
    """The models and data that the interval was measured on; null where there is none."""
    completions: tuple[Completion, ...]
    """The entities with the highest predicted scores without a necessary set."""
    entities: tuple[Convinced, ...]
    """The entities that a sufficient set was told of."""
