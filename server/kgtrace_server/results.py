"""Answers as Python objects. Fields that a newer service adds are passed over."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from kgtrace_server.tables import Columns, named_columns, triple_columns
from kgtrace_store.errors import MissingExtra

if TYPE_CHECKING:
    import pandas as pd

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Named:
    """An entity or relation."""

    id: int
    label: str
    name: str | None
    """Human-readable name, where there is one."""

    @classmethod
    def read(cls, content: Json) -> Named:
        """Take it from an answer."""
        return cls(content["id"], content["label"], content["name"])

    def columns(self, prefix: str) -> dict[str, Any]:
        """Return id, label and name by column."""
        return {prefix: self.id, f"{prefix}_label": self.label, f"{prefix}_name": self.name}

    def __str__(self) -> str:
        """Return the name, or the label where there is none."""
        return self.name or self.label


@dataclass(frozen=True, slots=True)
class NamedTriple:
    """A triple in ids, labels and names."""

    head: Named
    relation: Named
    tail: Named

    @classmethod
    def read(cls, content: Json) -> NamedTriple:
        """Take it from an answer."""
        return cls(Named.read(content["head"]), Named.read(content["relation"]), Named.read(content["tail"]))

    def columns(self, prefix: str) -> dict[str, Any]:
        """Return ids, labels and names by column."""
        return {
            **self.head.columns(f"{prefix}head"),
            **self.relation.columns(f"{prefix}relation"),
            **self.tail.columns(f"{prefix}tail"),
        }


@dataclass(frozen=True, slots=True)
class Influence:
    """One training triple and what it did to the test triple."""

    train_index: int
    """Row of the training triples as read, from 0."""
    triple: NamedTriple
    influence: float | None
    """⟨∇ℓ, ∇ℓ'⟩: positive where training on the triple lowered the test triple's loss."""
    cosine: float | None
    """The same over both gradients' norms."""

    @classmethod
    def read(cls, content: Json) -> Influence:
        """Take it from an answer."""
        return cls(content["train_index"], NamedTriple.read(content["triple"]), content["influence"], content["cosine"])


@dataclass(frozen=True, slots=True)
class Explanation:
    """The most influential training triples of one test triple. Numbers that are not finite are None."""

    triple: NamedTriple
    score: float | None
    """The model's score."""
    rank: float
    """Filtered rank among all tails (or heads): a whole number, unless scores are equal."""
    in_training: bool
    """Whether the test triple is itself a training triple."""
    loss: float | None
    self_influence: float | None
    """‖∇ℓ‖² of the test triple."""
    certified: bool
    """Whether it is proved that no other training triple belongs in the list."""
    bound_gap: float | None
    """How much larger an unseen triple's influence could be."""
    candidates: int
    """Training triples looked at beyond the index."""
    exact_terms: int
    """For how many of them the exact influence was computed."""
    influences: tuple[Influence, ...]
    notes: tuple[str, ...] = ()
    """Remarks for people: why the numbers say less than they seem to."""

    @classmethod
    def read(cls, content: Json) -> Explanation:
        """Take it from an answer."""
        return cls(
            triple=NamedTriple.read(content["triple"]),
            score=content["score"],
            rank=content["rank"],
            in_training=content["in_training"],
            loss=content["loss"],
            self_influence=content["self_influence"],
            certified=content["certified"],
            bound_gap=content["bound_gap"],
            candidates=content["candidates"],
            exact_terms=content["exact_terms"],
            influences=tuple(map(Influence.read, content["influences"])),
            notes=tuple(content.get("notes", ())),  # older services have none
        )


@dataclass(frozen=True, slots=True)
class Seconds:
    """Where the time went, for all requests that were computed together."""

    gradient: float
    search: float
    rerank: float


@dataclass(frozen=True, slots=True)
class Influences:
    """One explanation for each test triple, in the order asked."""

    COLUMNS: ClassVar[Columns] = {
        "test_index": "integer",
        **triple_columns("test_"),
        "certified": "truth",
        "position": "integer",
        "train_index": "integer",
        **triple_columns("train_"),
        "influence": "number",
        "cosine": "number",
    }
    """Of tabular output, one row per influence: ids, ``_label`` and ``_name``; ``position`` counts from 1."""

    generation: str
    """The generation of the index that answered."""
    score: str
    """Of influences: ``tracin`` or ``preconditioned``."""
    results: tuple[Explanation, ...]
    seconds: Seconds

    @classmethod
    def read(cls, content: Json) -> Influences:
        """Take it from an answer."""
        seconds = content["seconds"]
        return cls(
            content["generation"],
            content.get("score", "tracin"),  # older services have no other
            tuple(map(Explanation.read, content["results"])),
            Seconds(seconds["gradient"], seconds["search"], seconds["rerank"]),
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row for each influence, in the columns of ``kgtrace query --output FILE.csv``.

        Raises `MissingExtra` without pandas.
        """
        return _frame(self.rows(range(len(self.results))), self.COLUMNS)

    def rows(self, test_indices: Iterable[int]) -> Iterator[dict[str, Any]]:
        """Return the rows; ``test_indices`` tells which test triple each result is about."""
        for test_index, result in zip(test_indices, self.results, strict=True):
            for position, found in enumerate(result.influences, 1):
                yield {
                    "test_index": test_index,
                    **result.triple.columns("test_"),
                    "certified": result.certified,
                    "position": position,
                    "train_index": found.train_index,
                    **found.triple.columns("train_"),
                    "influence": found.influence,
                    "cosine": found.cosine,
                }


@dataclass(frozen=True, slots=True)
class SelfInfluence:
    """One training triple and its self-influence."""

    train_index: int
    """Row of the training triples as read, from 0."""
    triple: NamedTriple
    self_influence: float | None
    """‖∇ℓ‖²."""

    @classmethod
    def read(cls, content: Json) -> SelfInfluence:
        """Take it from an answer."""
        return cls(content["train_index"], NamedTriple.read(content["triple"]), content["self_influence"])


@dataclass(frozen=True, slots=True)
class SelfInfluences:
    """Training triples in the order of their self-influence."""

    COLUMNS: ClassVar[Columns] = {
        "position": "integer",
        "train_index": "integer",
        **triple_columns(),
        "self_influence": "number",
    }
    """Of tabular output, one row per training triple."""

    generation: str
    """The generation of the index that answered."""
    score: str | None
    """``tracin`` or ``preconditioned``; older services do not say it, nor the next."""
    loss: str | None
    """Whose gradient."""
    self_influences: tuple[SelfInfluence, ...]

    @classmethod
    def read(cls, content: Json) -> SelfInfluences:
        """Take it from an answer."""
        found = tuple(map(SelfInfluence.read, content["self_influences"]))
        return cls(content["generation"], content.get("score"), content.get("loss"), found)

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row for each training triple, in the columns of ``kgtrace self-influence --output FILE.csv``.

        Raises `MissingExtra` without pandas.
        """
        return _frame(self.rows(), self.COLUMNS)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Return the rows."""
        for position, found in enumerate(self.self_influences, 1):
            yield {
                "position": position,
                "train_index": found.train_index,
                **found.triple.columns(""),
                "self_influence": found.self_influence,
            }


@dataclass(frozen=True, slots=True)
class Prediction:
    """One entity that completes a triple."""

    entity: Named
    triple: NamedTriple
    """Complete."""
    score: float | None
    rank: float
    """Filtered rank among all entities, as of an `Explanation`."""
    in_training: bool
    """Whether the complete triple is a training triple."""

    @classmethod
    def read(cls, content: Json) -> Prediction:
        """Take it from an answer."""
        return cls(
            entity=Named.read(content["entity"]),
            triple=NamedTriple.read(content["triple"]),
            score=content["score"],
            rank=content["rank"],
            in_training=content["in_training"],
        )


@dataclass(frozen=True, slots=True)
class Predictions:
    """What the model would put in the place of a missing tail (or head), best first."""

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
    direction: str
    """``tail`` or ``head``: what was missing."""
    predictions: tuple[Prediction, ...]

    @classmethod
    def read(cls, content: Json) -> Predictions:
        """Take it from an answer."""
        return cls(content["generation"], content["direction"], tuple(map(Prediction.read, content["predictions"])))

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row for each prediction. Raises `MissingExtra` without pandas."""
        return _frame(self.rows(), self.COLUMNS)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Return the rows."""
        for position, found in enumerate(self.predictions, 1):
            yield {
                "position": position,
                **found.triple.columns(""),
                "score": found.score,
                "rank": found.rank,
                "in_training": found.in_training,
            }


@dataclass(frozen=True, slots=True)
class InfluenceSum:
    """Influence summed over training triples."""

    count: int
    """Training triples."""
    sum: float | None
    positive: float | None
    """The part of the proponents."""
    negative: float | None
    """The part of the opponents."""
    error: float | None
    """How far each of the three may be from the exact one; 0 where every influence was computed."""

    @classmethod
    def read(cls, content: Json) -> InfluenceSum:
        """Take it from an answer."""
        return cls(**{name: content[name] for name in cls.__slots__})


@dataclass(frozen=True, slots=True)
class GroupInfluence:
    """The training triples of one relation, head or tail, or one training triple."""

    group: Named | NamedTriple
    """What they have in common, or the training triple."""
    train_index: int | None
    """Row of the training triple as read, from 0; None where groups are of several."""
    influence: InfluenceSum

    @classmethod
    def read(cls, content: Json) -> GroupInfluence:
        """Take it from an answer."""
        group = content["group"]
        read = NamedTriple.read if "head" in group else Named.read
        return cls(read(group), content.get("train_index"), InfluenceSum.read(content))


@dataclass(frozen=True, slots=True)
class Aggregate:
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
    score: str
    """Of influences: ``tracin`` or ``preconditioned``."""
    triple: NamedTriple | None
    """The test triple; None where there were several."""
    test_triples: int
    """How many there were."""
    by: str
    """What the training triples of a group have in common."""
    exact: bool
    """Whether every influence was computed."""
    certified: bool
    """Whether it is proved that these are the first groups, in this order."""
    total: InfluenceSum
    """Over all groups, those that are not named included."""
    groups: tuple[GroupInfluence, ...]

    @classmethod
    def read(cls, content: Json) -> Aggregate:
        """Take it from an answer."""
        return cls(
            generation=content["generation"],
            score=content.get("score", "tracin"),
            triple=None if content["triple"] is None else NamedTriple.read(content["triple"]),
            test_triples=content.get("test_triples", 1),
            by=content["by"],
            exact=content["exact"],
            certified=content["certified"],
            total=InfluenceSum.read(content["total"]),
            groups=tuple(map(GroupInfluence.read, content["groups"])),
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row for each group, in `columns`. Raises `MissingExtra` without pandas."""
        return _frame(self.rows(), self.columns)

    @property
    def columns(self) -> Columns:
        """Of tabular output."""
        return self.TRIPLE_COLUMNS if self.by == "triple" else self.COLUMNS

    def rows(self) -> Iterator[dict[str, Any]]:
        """Return the rows."""
        for position, found in enumerate(self.groups, 1):
            sums = asdict(found.influence)
            if self.by == "triple":
                del sums["count"]
                names = {"train_index": found.train_index, **found.group.columns("")}
            else:
                names = found.group.columns("group")
            yield {"position": position, **names, **sums}


@dataclass(frozen=True, slots=True)
class IndexInfo:
    """What is served."""

    generation: str
    built_at: str
    """RFC 3339, UTC."""
    age_seconds: float
    fingerprint: str
    """Equal fingerprints mean equal model, triples and configuration."""
    model: str | None
    loss: str | None
    layers: list[str] | None
    projection: Json
    counts: Mapping[str, int]
    """Triples, entities, relations."""
    configuration: Json

    @classmethod
    def read(cls, content: Json) -> IndexInfo:
        """Take it from an answer."""
        return cls(**{name: content[name] for name in cls.__slots__})

    @property
    def sample_rate(self) -> float:
        """Share of the training triples that is indexed: no others can be named."""
        rate: float = self.configuration.get("sample_rate", 1.0)
        return rate


@dataclass(frozen=True, slots=True)
class GenerationInfo:
    """One generation on disk."""

    id: str
    live: bool
    """Whether it is the one to be served."""
    problem: str | None
    """Why it cannot be read, where it cannot; what follows is then None."""
    built_at: str | None
    model: str | None
    counts: Mapping[str, int] | None
    configuration: Json | None
    bytes: int | None
    agreement: Json | None
    """With the generation before it: ``generation``, ``overlap``, ``top_k`` and ``triples``."""

    @classmethod
    def read(cls, content: Json) -> GenerationInfo:
        """Take it from an answer."""
        return cls(**{name: content[name] for name in cls.__slots__})


@dataclass(frozen=True, slots=True)
class Switched:
    """What became of a publication or rollback."""

    live: str
    """The generation that is live now."""
    serving: str | None
    """The generation that answers now: still the one before where the new one could not be loaded."""

    @classmethod
    def read(cls, content: Json) -> Switched:
        """Take it from an answer."""
        return cls(content["live"], content["serving"])


def _frame(rows: Iterable[Json], columns: Columns) -> pd.DataFrame:
    try:
        import pandas as pd
    except ImportError as e:
        raise MissingExtra("data frames need pandas: pip install 'kgtrace[dataframe]'") from e
    return pd.DataFrame(list(rows), columns=list(columns))
