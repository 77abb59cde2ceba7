"""Questions to an index and their answers, in ids."""

from collections.abc import Collection, Sequence
from dataclasses import astuple, dataclass, field

import numpy as np

from kgtrace_indexer.names import ReasonName

Ids = tuple[int, int, int]
"""Head, relation, tail."""


@dataclass(frozen=True, slots=True)
class Restriction:
    """The training triples that an answer may name; an absent field is unrestricted."""

    must: dict[str, Collection[int]] = field(default_factory=dict)
    """``{"head" | "relation" | "tail": ids}``: the field's id is one of these."""
    must_not: dict[str, Collection[int]] = field(default_factory=dict)
    """The field's id is none of these."""
    within_hops: int | None = None
    """At least 1: a path of at most so many training triples, the triple itself among them, leads to the test triple's
    head or tail, whichever way its triples point. With 1, the triple itself touches the head or the tail."""


@dataclass(frozen=True, slots=True)
class Attribution:
    """The most influential training triples of one test triple, in the order of the query."""

    triple: Ids
    score: float
    """The model's s(h, r, t)."""
    rank: float
    """Filtered realistic rank among all tails (or heads): 1 + the number of entities with a higher score + half the
    number of other entities with the same score; entities that make a training triple do not count. It is the mean of
    the most and the least favourable rank."""
    in_training: bool
    """Whether the test triple is one of the training triples."""
    loss: float
    """ℓ of the direction explained."""
    self_influence: float
    """‖∇ℓ‖² of the direction explained, or ∇ℓᵀP∇ℓ."""
    certified: bool
    """True if no indexed training triple outside the list can have more influence than its last entry."""
    bound_gap: float
    """How much larger an unseen triple's influence could be: 0 when certified."""
    candidates: int
    """Training triples whose factor bound was computed."""
    exact_terms: int
    """Candidates whose exact influence was computed."""
    train_index: np.ndarray
    """(k,) int64: rows of the training triples as read."""
    triples: np.ndarray
    """(k, 3) int32."""
    influence: np.ndarray
    """(k,) float32: ⟨∇ℓ, ∇ℓ'⟩, or ⟨∇ℓ, P∇ℓ'⟩."""
    cosine: np.ndarray
    """(k,) float32: the same over the norms of both sides; 0 where one is zero."""
    tracin: np.ndarray
    """(k,) float32: ⟨∇ℓ, ∇ℓ'⟩ over all indexed parameters, exact: `influence` itself where that is the score."""
    preconditioned: np.ndarray | None
    """(k,) float32: ⟨∇ℓ, P∇ℓ'⟩, exact likewise; None where an index has no such score."""
    notes: list[str] = field(default_factory=list)
    """Remarks for people that limit the meaning of the numbers. Usually empty."""


@dataclass(frozen=True, slots=True)
class Reason:
    """How a training triple is related to a test triple."""

    name: ReasonName
    share: float | None = None
    """Of ``inverse`` alone: the share of its relation's training triples that the test triple's relation reverses."""
    path: tuple[Ids, ...] = ()
    """Of ``path`` alone: two or three training triples from the test triple's head to its tail, this one among them."""


@dataclass(frozen=True, slots=True)
class Seconds:
    """The time of a call, by stage."""

    gradient: float
    """Terms of the test triples."""
    search: float
    """Index and bounds."""
    rerank: float
    """Exact influences."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One attribution for each test triple, and the time they took together."""

    attributions: list[Attribution]
    seconds: Seconds

    @classmethod
    def joined(cls, parts: "Sequence[Answer]") -> "Answer":
        """Join the answers for parts of a batch that were computed side by side."""
        stages = zip(*(astuple(part.seconds) for part in parts), strict=True)
        return cls([attribution for part in parts for attribution in part.attributions], Seconds(*map(max, stages)))


@dataclass(frozen=True, slots=True)
class Completions:
    """The model's best entities in place of a missing tail (or head), best first."""

    triples: np.ndarray
    """(k, 3) int64, complete."""
    entities: np.ndarray
    """(k,) int64: the entity that completes each."""
    scores: np.ndarray
    """(k,) float32, descending; equal ones by ascending entity."""
    ranks: np.ndarray
    """(k,) float64: filtered ranks, as of an `Attribution`."""
    in_training: np.ndarray
    """(k,) bool: whether the complete triple is one of the training triples."""


@dataclass(frozen=True, slots=True)
class Sums:
    """Influence summed over g groups of training triples."""

    counts: np.ndarray
    """(g,) int64: training triples in each group that count for at least one test triple."""
    sums: np.ndarray
    """(g,) float64: Σ⟨∇ℓ, ∇ℓ'⟩ over the training triples and the test triples."""
    positive: np.ndarray
    """(g,) float64: the part of the proponents: training triples whose influence on all test triples is positive."""
    negative: np.ndarray
    """(g,) float64: the part of the opponents."""
    errors: np.ndarray
    """(g,) float64: largest possible error of each of the three; 0 where every influence was computed."""


@dataclass(frozen=True, slots=True)
class Aggregation:
    """The groups of training triples that influenced test triples most, in the order of the query."""

    groups: np.ndarray
    """(g,) int64: the relation or entity of each, or the place of a training triple among the indexed ones."""
    sums: Sums
    """Of these groups."""
    total: Sums
    """Of all training triples that count, as one group."""
    certified: bool
    """True if these are proved to be the first groups, in this order."""


@dataclass(frozen=True, slots=True)
class WhatIf:
    """What the model is predicted to say of a test triple if it was trained without a set of m training triples."""

    triple: tuple[int, int, int]
    """Head, relation, tail."""
    train_index: np.ndarray
    """(m,) int64: rows of the training triples as read."""
    triples: np.ndarray
    """(m, 3) int32."""
    changes: np.ndarray
    """(m,) float64: the predicted change of the test triple's score by each alone, which add up; 0 for a training
    triple that reads none of the test triple's rows."""
    score: float
    """The model's s(h, r, t)."""
    score_after: float
    """Predicted, without the set."""
    interval: tuple[float, float] | None
    """Holds the score of a model trained again with 90 % probability; None where nothing was measured for the model."""
    measured_on: str | None
    """The experiment that the interval comes from."""
    rank: float
    """Filtered rank among all tails (or heads), as of an `Attribution`."""
    rank_after: float
    """Predicted; training triples of the set do not count as rivals here either."""
    entities: np.ndarray
    """(k,) int64: the entities of highest predicted scores, best first, without those that make a training triple other
    than the test triple."""
    scores: np.ndarray
    """(k,) float32: their scores."""
    scores_after: np.ndarray
    """(k,) float32: their predicted scores, descending."""


@dataclass(frozen=True, slots=True)
class NecessarySet:
    """The smallest set of training triples whose removal is predicted to take a test triple from the first rank."""

    what_if: WhatIf
    """What is predicted without the set."""
    suffices: bool
    """Whether the set is predicted to do it. If no set of the candidates is, this is the one that comes nearest."""
    rival: int | None
    """The entity that is predicted to rank before the test triple's own then, or to come nearest; None for no set."""
    margin: float
    """By how much its predicted score is higher, negative if it is not: the largest margin of sets of that size."""
    candidates: int
    """Training triples that the set was chosen from: all of their sets were considered."""


@dataclass(frozen=True, slots=True)
class SufficientSet:
    """Training triples of a test triple's head which, told of other entities, are predicted to give them its tail."""

    triple: tuple[int, int, int]
    """Head, relation, tail."""
    train_index: np.ndarray
    """(m,) int64: rows of the training triples as read, in the order in which they were chosen."""
    triples: np.ndarray
    """(m, 3) int32."""
    suffices: bool
    """Whether the tail is predicted to rank first with every one of the other entities."""
    candidates: int
    """Training triples that the set was chosen from."""
    entities: np.ndarray
    """(n,) int64: the entities that took the place of the head, or of the tail if the head is explained."""
    scores: np.ndarray
    """(n,) float32: the scores of the tail with each."""
    scores_after: np.ndarray
    """(n,) float32: predicted with the set."""
    ranks: np.ndarray
    """(n,) float64: filtered ranks of the tail with each."""
    ranks_after: np.ndarray
    """(n,) float64: predicted with the set."""
