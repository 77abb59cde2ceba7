"""Answers as Python objects. Fields that a newer service adds are passed over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
            f"{prefix}_{field}{suffix}": value
            for field, named in (("head", self.head), ("relation", self.relation), ("tail", self.tail))
            for suffix, value in (("", named.id), ("_label", named.label), ("_name", named.name))
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
    rank: int
    """Filtered rank among all tails (or heads)."""
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
    influences: tuple[Influence, ...]

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
            influences=tuple(map(Influence.read, content["influences"])),
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

    generation: str
    """The generation of the index that answered."""
    results: tuple[Explanation, ...]
    seconds: Seconds

    @classmethod
    def read(cls, content: Json) -> Influences:
        """Take it from an answer."""
        seconds = content["seconds"]
        return cls(
            content["generation"],
            tuple(map(Explanation.read, content["results"])),
            Seconds(seconds["gradient"], seconds["search"], seconds["rerank"]),
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row for each influence, in the columns of ``kgtrace query --output FILE.csv``.

        Raises `MissingExtra` without pandas.
        """
        try:
            import pandas as pd
        except ImportError as e:
            raise MissingExtra("data frames need pandas: pip install 'kgtrace[dataframe]'") from e
        from kgtrace_server.render import COLUMNS

        return pd.DataFrame(list(self._rows()), columns=list(COLUMNS))

    def _rows(self) -> Iterator[dict[str, Any]]:
        for test_index, result in enumerate(self.results):
            for position, found in enumerate(result.influences, 1):
                yield {
                    "test_index": test_index,
                    **result.triple.columns("test"),
                    "certified": result.certified,
                    "position": position,
                    "train_index": found.train_index,
                    **found.triple.columns("train"),
                    "influence": found.influence,
                    "cosine": found.cosine,
                }


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
