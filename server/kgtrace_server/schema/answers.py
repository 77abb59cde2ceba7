"""What the service answers: written as JSON over HTTP, read from it by the clients, handed over as it is in process.

Numbers that are not finite are None.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from kgtrace_indexer.names import Direction, Group, Outcome, ReasonName, Score
from kgtrace_server.schema.answer import Answer, Table
from kgtrace_server.tables import Columns, named_columns, triple_columns


@dataclass(frozen=True, slots=True)
class Named(Answer):
    """An entity or relation."""

    id: int
    label: str
    name: str | None
    """Human-readable name, where there is one."""

    def columns(self, prefix: str) -> dict[str, Any]:
        """Return id, label and name by column."""
        return {prefix: self.id, f"{prefix}_label": self.label, f"{prefix}_name": self.name}

    def __str__(self) -> str:
        """Return the name, or the label where there is none."""
        return self.name or self.label


@dataclass(frozen=True, slots=True)
class NamedTriple(Answer):
    """A triple in ids, labels and names."""

    head: Named
    relation: Named
    tail: Named

    def columns(self, prefix: str = "") -> dict[str, Any]:
        """Return ids, labels and names by column."""
        return {
            **self.head.columns(f"{prefix}head"),
            **self.relation.columns(f"{prefix}relation"),
            **self.tail.columns(f"{prefix}tail"),
        }


@dataclass(frozen=True, slots=True)
class Influence(Answer):
    """One training triple and its influence on the test triple."""

    train_index: int
    """Row of the training triples as read, from 0."""
    triple: NamedTriple
    influence: float | None
    """Inner product of the two loss gradients: positive where training on the triple lowered the test triple's loss."""
    cosine: float | None
    """The same over both gradients' norms."""
    tracin: float | None = None
    """Plain influence over all indexed parameters, whatever the score; null from older services."""
    preconditioned: float | None = None
    """Preconditioned influence, likewise; null of an index without it."""
    reason: ReasonName | None = None
    """How the triple is related to the test triple in the training graph: the first of these that holds. Null from
    older services."""
    because: str | None = None
    """The same in words."""
    path: tuple[NamedTriple, ...] = ()
    """Of ``path``: the two or three training triples from the test triple's head to its tail, in this order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation(Answer):
    """The most influential training triples of one test triple."""

    triple: NamedTriple
    score: float | None
    """The model's score."""
    rank: int | float
    """Filtered rank among all tails (or heads); half of those with an equal score count, so it may end in .5."""
    in_training: bool
    """Whether the test triple is itself a training triple."""
    loss: float | None
    self_influence: float | None
    """Squared norm of the test triple's own gradient."""
    certified: bool
    """Whether it is proved that no other training triple belongs in the list."""
    bound_gap: float | None
    """How much larger an unseen triple's influence could be: 0 when certified, null when unknown."""
    candidates: int
    """Training triples looked at beyond the index."""
    exact_terms: int
    """Of these, how many had their exact influence computed."""
    notes: tuple[str, ...] = ()
    """Remarks for people: why the numbers say less than they seem to. Empty as a rule."""
    influences: tuple[Influence, ...]


@dataclass(frozen=True, slots=True)
class Seconds(Answer):
    """Where the time went, for all requests that were computed together."""

    gradient: float
    search: float
    rerank: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Influences(Table):
    """One explanation for each test triple."""

    COLUMNS: ClassVar[Columns] = {
        "test_index": "integer",
        **triple_columns("test_"),
        "certified": "truth",
        "position": "integer",
        "train_index": "integer",
        **triple_columns("train_"),
        **dict.fromkeys(("influence", "cosine", "tracin", "preconditioned"), "number"),
        **dict.fromkeys(("reason", "because"), "text"),
    }
    """Of tabular output, one row per influence: ids, ``_label`` and ``_name``; ``position`` counts from 1."""

    generation: str
    """The generation of the index that answered."""
    score: Score = "tracin"
    """Of influences: plain, or preconditioned."""
    outcome: Outcome = "logit"
    """What the latter explain of the test triples."""
    results: tuple[Explanation, ...]
    """One for each test triple, in the order of the request."""
    seconds: Seconds

    @property
    def origin(self) -> dict[str, Any]:
        """What an explanation says of itself apart from the answer: generation, the score that ranks, the outcome."""
        return {"generation": self.generation, "ranked_by": self.score, "outcome": self.outcome}

    def rows(self, test_indices: Iterable[int] | None = None) -> Iterator[dict[str, Any]]:
        """Return the rows; ``test_indices`` tells which test triple each result is about, by default counted from 0."""
        indices = range(len(self.results)) if test_indices is None else test_indices
        for test_index, result in zip(indices, self.results, strict=True):
            for position, influence in enumerate(result.influences, 1):
                yield {
                    "test_index": test_index,
                    **result.triple.columns("test_"),
                    "certified": result.certified,
                    "position": position,
                    "train_index": influence.train_index,
                    **influence.triple.columns("train_"),
                    **influence.fields("influence", "cosine", "tracin", "preconditioned", "reason", "because"),
                }


@dataclass(frozen=True, slots=True)
class SelfInfluence(Answer):
    """One training triple and its self-influence."""

    train_index: int
    """Row of the training triples as read, from 0."""
    triple: NamedTriple
    self_influence: float | None
    """Squared norm of the triple's own gradient, or its preconditioned influence on itself: large where the model has
    to strain to hold it."""
    tracin: float | None = None
    """The squared norm, whatever the score; null from older services."""
    preconditioned: float | None = None
    """The preconditioned one, likewise; null of an index without it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfInfluences(Table):
    """Training triples in the order of their self-influence; equal ones in that of their rows."""

    COLUMNS: ClassVar[Columns] = {
        "position": "integer",
        "train_index": "integer",
        **triple_columns(),
        **dict.fromkeys(("self_influence", "tracin", "preconditioned"), "number"),
    }
    """Of tabular output, one row per training triple."""

    generation: str
    """The generation of the index that answered."""
    score: Score = "tracin"
    """Which of the two it is."""
    loss: str | None = None
    """Whose gradient. Null from older services, which do not say it."""
    count: int | None = None
    """How many indexed training triples the filter allows, named or not. Null from older services."""
    self_influences: tuple[SelfInfluence, ...]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Return one row for each training triple."""
        for position, member in enumerate(self.self_influences, 1):
            yield {
                "position": position,
                "train_index": member.train_index,
                **member.triple.columns(),
                **member.fields("self_influence", "tracin", "preconditioned"),
            }


@dataclass(frozen=True, slots=True)
class Prediction(Answer):
    """One entity that completes a triple."""

    entity: Named
    triple: NamedTriple
    """Complete."""
    score: float | None
    """The model's score."""
    rank: int | float
    """Filtered rank among all entities: those that make another training triple do not count, and of those with an
    equal score half do, so it may end in .5."""
    in_training: bool
    """Whether the complete triple is a training triple."""


@dataclass(frozen=True, slots=True)
class Predictions(Table):
    """The model's best completions."""

    COLUMNS: ClassVar[Columns] = {
        "position": "integer",
        **triple_columns(),
        "score": "number",
        "rank": "number",
        "in_training": "truth",
    }
    """Of tabular output, one row per prediction."""

    generation: str
    """The generation of the index that answered."""
    direction: Direction
    """Whether the tail or the head was missing."""
    predictions: tuple[Prediction, ...]
    """Best first; of several relations, those of the entity's most frequent relation first."""
    relations: int | None = None
    """How many relations the given entity has in its place, predicted for or not; null where the question named
    one."""

    def rows(self) -> Iterator[dict[str, Any]]:
        """Return one row for each prediction."""
        for position, prediction in enumerate(self.predictions, 1):
            yield {
                "position": position,
                **prediction.triple.columns(),
                **prediction.fields("score", "rank", "in_training"),
            }


@dataclass(frozen=True, slots=True)
class InfluenceSum(Answer):
    """Influence summed over training triples."""

    count: int
    """How many, of those that are indexed."""
    sum: float | None
    """Over the test triples, too."""
    positive: float | None
    """The part of those with positive influence on all test triples together."""
    negative: float | None
    """The part of those with negative influence."""
    error: float | None
    """How far each of the three may be from the exact one: 0 where every influence was computed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupInfluence(Answer):
    """The training triples of one relation, head or tail, or one training triple."""

    group: Named | NamedTriple
    """What they have in common, or the training triple."""
    train_index: int | None = None
    """Row of the training triple as read, from 0; null where groups are of several."""
    count: int
    """How many, of those that are indexed."""
    sum: float | None
    """Over the test triples, too."""
    positive: float | None
    """The part of those with positive influence on all test triples together."""
    negative: float | None
    """The part of those with negative influence."""
    error: float | None
    """How far each of the three may be from the exact one: 0 where every influence was computed."""

    @property
    def influence(self) -> InfluenceSum:
        """The last five."""
        return InfluenceSum(self.count, self.sum, self.positive, self.negative, self.error)


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregate(Table):
    """Influence on test triples, summed by training relation, head or tail, or of each training triple."""

    COLUMNS: ClassVar[Columns] = {
        "position": "integer",
        **{f"group{suffix}": kind for suffix, kind in named_columns().items()},
        "count": "integer",
        **dict.fromkeys(("sum", "positive", "negative", "error"), "number"),
    }
    """Of tabular output, one row per group."""
    TRIPLE_COLUMNS: ClassVar[Columns] = {
        "position": "integer",
        "train_index": "integer",
        **triple_columns(),
        **dict.fromkeys(("sum", "positive", "negative", "error"), "number"),
    }
    """The same by ``triple``, one row per training triple."""

    generation: str
    """The generation of the index that answered."""
    score: Score = "tracin"
    """Of influences: plain, or preconditioned."""
    outcome: Outcome = "logit"
    """What the latter explain of the test triples."""
    triple: NamedTriple | None
    """The test triple; null where there were several."""
    test_triples: int = 1
    """How many there were."""
    by: Group
    """What the training triples of a group have in common."""
    exact: bool
    """Whether the influence of every training triple was computed."""
    certified: bool
    """Whether it is proved that these are the first groups, in this order."""
    total: InfluenceSum
    """Over all groups, those that are not named included."""
    groups: tuple[GroupInfluence, ...]

    @property
    def columns(self) -> Columns:
        """Of tabular output."""
        return self.TRIPLE_COLUMNS if self.by == "triple" else self.COLUMNS

    def rows(self) -> Iterator[dict[str, Any]]:
        """Return one row for each group."""
        for position, member in enumerate(self.groups, 1):
            sums = asdict(member.influence)
            if isinstance(member.group, NamedTriple):
                del sums["count"]
                names = {"train_index": member.train_index, **member.group.columns()}
            else:
                names = member.group.columns("group")
            yield {"position": position, **names, **sums}
