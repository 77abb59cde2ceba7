"""What the service answers about itself: its index, the generations on disk, how loading went, and its problems."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from typing_extensions import TypedDict

from kgtrace_server.schema.answer import Answer
from kgtrace_server.schema.answers import Named


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexInfo(Answer):
    """What is being served."""

    generation: str
    """The generation of the index that answered."""
    built_at: str
    """RFC 3339, UTC."""
    age_seconds: float
    fingerprint: str
    """Equal fingerprints mean equal model, triples and configuration."""
    model: str | None
    """The model's interaction function."""
    summed: list[dict[str, Any]]
    """`model` and `weight` of the checkpoints, or models of other seeds, whose influences are summed; empty for one."""
    loss: str | None
    layers: list[str] | None
    projection: dict[str, Any]
    """How gradients are kept in the index: `pca` certifies answers, `gaussian` and `sparse` do not, `none` scans."""
    sample_rate: float = 1.0
    """Share of the training triples that is indexed: no others can be named, and `certified` is about these."""
    counts: dict[str, int]
    """Triples, entities, relations."""
    configuration: dict[str, Any]
    """Everything the index was built with."""


@dataclass(frozen=True, slots=True)
class Entities(Answer):
    """Entities that match a search."""

    generation: str
    entities: tuple[Named, ...]


@dataclass(frozen=True, slots=True)
class Relations(Answer):
    """Relations that match a search."""

    generation: str
    relations: tuple[Named, ...]


class Agreement(TypedDict):
    """How far a generation names the same training triples as the one that was live when it was built."""

    generation: str
    """The other one's id."""
    overlap: float | None
    """Mean share of the training triples that both name for the same test triples; null where they could not be
    compared."""
    top_k: int
    """How many training triples each names for a test triple."""
    triples: int
    """How many test triples both explained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationInfo(Answer):
    """One generation on disk."""

    id: str
    live: bool
    """Whether it is the one to be served."""
    problem: str | None
    """Why it cannot be read, where it cannot; what follows is then null."""
    built_at: str | None = None
    """RFC 3339, UTC."""
    model: str | None = None
    """The model's interaction function."""
    counts: dict[str, int] | None = None
    """Triples, entities, relations."""
    configuration: dict[str, Any] | None = None
    """Everything that it was built with."""
    bytes: int | None = None
    """Size of its files."""
    agreement: Agreement | None = None
    """With the generation before it, as the gate measured it; null for the first one, too."""


@dataclass(frozen=True, slots=True)
class Generations(Answer):
    """The generations on disk."""

    live: str | None
    """The generation to be served."""
    serving: str | None
    """The generation that answers: another than the live one while that is being loaded, or when that failed."""
    generations: tuple[GenerationInfo, ...]
    """Oldest first."""


@dataclass(frozen=True, slots=True)
class Reload(Answer):
    """How an attempt to load a generation ended."""

    generation: str | None
    """Its id; null where the index root did not tell which is live."""
    ok: bool
    reason: str | None
    """Why it failed."""
    at: str
    """When it ended: RFC 3339, UTC."""
    seconds: float
    """How long it took."""


@dataclass(frozen=True, slots=True)
class Switched(Answer):
    """The outcome of a publication or rollback."""

    live: str
    """The generation that is live now."""
    serving: str | None
    """The generation that answers now: still the one before where the new one could not be loaded."""
    reload: Reload | None = None
    """How loading it ended; null where nothing had to be loaded."""


@dataclass(frozen=True, slots=True)
class Status(Answer):
    """The answer of the probe of life."""

    status: str


@dataclass(frozen=True, slots=True)
class Ready(Answer):
    """The answer of the probe of readiness."""

    status: str
    generation: str
    """The generation that answers."""
    draining: tuple[str, ...]
    """Replaced generations that still answer requests."""
    reload: Reload | None
    """The last attempt to load a generation, where the service follows an index root."""


@dataclass(frozen=True, slots=True)
class Nearest(Answer):
    """An entity or relation whose label or name is like one that is unknown."""

    label: str
    name: str | None


@dataclass(frozen=True, slots=True)
class Problem(Answer):
    """An error, as RFC 9457 words it."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"use_attribute_docstrings": True}

    type: str
    """Names the kind of error; ``about:blank`` where the status says it all."""
    title: str
    """The kind of error in words."""
    status: int
    """The HTTP status."""
    detail: str
    """What is wrong here, and what can be done about it."""
    unknown: str = ""
    """The label that names no entity or relation."""
    nearest: tuple[Nearest, ...] = ()
    """What it may have been meant to be, most alike first."""
