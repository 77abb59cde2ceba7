"""Questions to an index and their answers, in ids."""

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, slots=True)
class Restriction:
    """Which training triples may be named; an absent field is unrestricted."""

    must: dict[str, Collection[int]] = field(default_factory=dict)
    """``{"head" | "relation" | "tail": ids}``: the field's id is one of these."""
    must_not: dict[str, Collection[int]] = field(default_factory=dict)
    """The field's id is none of these."""
    within_hops: int | None = None
    """At least 1: an entity of the triple is at most so many training triples, less one, away from the test triple's
    head or tail, whichever way those point. With 1, the triple itself touches the head or the tail."""


@dataclass(frozen=True, slots=True)
class Attribution:
    """The most influential training triples of one test triple, in the order asked for."""

    triple: tuple[int, int, int]
    """Head, relation, tail."""
    score: float
    """The model's s(h, r, t)."""
    rank: float
    """Filtered realistic rank among all tails (or heads): 1 + how many entities that make no training triple score
    higher + half of how many others of these score the same; so the mean of the most and the least favourable rank."""
    in_training: bool
    """Whether the test triple is one of the training triples."""
    loss: float
    """ℓ of the direction explained."""
    self_influence: float
    """‖∇ℓ‖² of the direction explained, or ∇ℓᵀP∇ℓ."""
    certified: bool
    """Whether no indexed training triple that was not named can have more influence than the last one named."""
    bound_gap: float
    """How much larger an unseen triple's influence could be: 0 when certified."""
    candidates: int
    """How many training triples were looked at beyond the index."""
    exact_terms: int
    """For how many of them the exact influence was computed."""
    train_index: np.ndarray
    """(k,) int64: rows of the training triples as read."""
    triples: np.ndarray
    """(k, 3) int32."""
    influence: np.ndarray
    """(k,) float32: ⟨∇ℓ, ∇ℓ'⟩, or ⟨∇ℓ, P∇ℓ'⟩."""
    cosine: np.ndarray
    """(k,) float32: the same over the norms of both sides; 0 where one is zero."""
    notes: list[str] = field(default_factory=list)
    """Remarks for people: why the numbers say less than they seem to. Empty as a rule."""


@dataclass(frozen=True, slots=True)
class Seconds:
    """Where the time of a call went."""

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


@dataclass(frozen=True, slots=True)
class Completions:
    """What the model would put in the place of a missing tail (or head), best first."""

    triples: np.ndarray
    """(k, 3) int64, complete."""
    entities: np.ndarray
    """(k,) int64: what completes each."""
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
    """(g,) int64: training triples in each, that count for one of the test triples or more."""
    sums: np.ndarray
    """(g,) float64: Σ⟨∇ℓ, ∇ℓ'⟩, over the test triples, too."""
    positive: np.ndarray
    """(g,) float64: the part of the proponents: training triples whose influence on all test triples is positive."""
    negative: np.ndarray
    """(g,) float64: the part of the opponents."""
    errors: np.ndarray
    """(g,) float64: how far each of the three may be from the exact one; 0 where every influence was computed."""


@dataclass(frozen=True, slots=True)
class Aggregation:
    """The groups of training triples that influenced test triples most, in the order asked for."""

    groups: np.ndarray
    """(g,) int64: the relation or entity of each, or the place of a training triple among those that are indexed."""
    sums: Sums
    """Of these groups."""
    total: Sums
    """Of all training triples that count, as one group."""
    certified: bool
    """Whether it is proved that these are the first groups, in this order."""
