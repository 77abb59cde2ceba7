"""The shapes that travel over HTTP, with the examples that the documentation shows.

Requests are models, because they are checked; answers are typed dictionaries, because they are only written: a
request may ask for a quarter of a million influences.
"""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema, model_validator, with_config
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from kgtrace_indexer.answers import Direction, Order

MAX_TRIPLES = 256
"""Test triples in a request: a second or two of work on a large index."""

MAX_TOP_K = 1000
"""Influences of a test triple."""

MAX_CANDIDATES = 2**31 - 1
"""Rows of an index are counted in 32 bits."""

MAX_SEARCH = 1000
"""Characters of a search text, and entities or relations that a search returns."""

FIELDS = ("head", "relation", "tail")


def _ref(value: Any) -> int | str:
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise PydanticCustomError("ref", "must be a label (string) or an id (integer)")


Ref = Annotated[
    int | str,
    PlainValidator(_ref),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "integer", "minimum": 0}]}),
]
"""An entity or relation: a string is a label, an integer an id."""


class _Request(BaseModel):
    """Unknown fields and values of another type are refused: a misspelt option must not be passed over."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


def _also_a_list(schema: dict[str, Any]) -> None:
    """Document that a triple may be a list of three."""
    ref = schema["properties"]["head"]
    spelled_out = {key: schema.pop(key) for key in list(schema) if key not in ("title", "description")}
    triple = {
        "type": "array",
        "prefixItems": [{key: value for key, value in ref.items() if key == "anyOf"}] * len(FIELDS),
        "minItems": len(FIELDS),
        "maxItems": len(FIELDS),
    }
    schema["anyOf"] = [triple, spelled_out]


class TripleRef(_Request):
    """A test triple: ``[head, relation, tail]`` or an object of the three; strings are labels, integers ids."""

    model_config = ConfigDict(json_schema_extra=_also_a_list)

    head: Ref
    relation: Ref
    tail: Ref

    @model_validator(mode="before")
    @classmethod
    def _from_list(cls, value: Any) -> Any:
        if isinstance(value, list):
            if len(value) != len(FIELDS):
                raise PydanticCustomError(
                    "triple", "must be [head, relation, tail], has {length} items", {"length": len(value)}
                )
            return dict(zip(FIELDS, value, strict=True))
        if isinstance(value, dict | TripleRef):
            return value
        raise PydanticCustomError("triple", "must be [head, relation, tail] or an object of the three")


Refs = Annotated[list[Ref], Field(min_length=1)]


class Condition(_Request):
    """Labels or ids by field of the training triple."""

    head: Refs | None = None
    relation: Refs | None = None
    tail: Refs | None = None


class Filter(_Request):
    """Which training triples may be named."""

    must: Condition | None = None
    """In every field given here, one of these."""
    must_not: Condition | None = None
    """In no field given here, one of these."""


class InfluenceRequest(_Request):
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

    triples: Annotated[list[TripleRef], Field(min_length=1, max_length=MAX_TRIPLES)]
    """Test triples: what to explain."""
    top_k: Annotated[int, Field(ge=1, le=MAX_TOP_K)] = 10
    """How many training triples to name for each."""
    order: Order = "proponents"
    """Largest influence first, most negative first, or largest magnitude first."""
    exact: bool = False
    """Compute the influence of every training triple instead of searching: slow, and independent of the index."""
    max_candidates: Annotated[int, Field(ge=0, le=MAX_CANDIDATES)] | None = None
    """Look at no more than so many training triples; an answer that was cut short is not certified."""
    filter: Filter | None = None
    """Which training triples may be named."""
    direction: Direction = "tail"
    """Explain the tail, or (on a model trained with inverse relations) the head."""


class _Query(BaseModel):
    """Parameters in the address: everything is text there, so numbers are read from it."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class InfluenceQuery(_Query):
    """One test triple in the address."""

    head: str
    """Label, or id where no label is the same."""
    relation: str
    """Label, or id where no label is the same."""
    tail: str
    """Label, or id where no label is the same."""
    top_k: Annotated[int, Field(ge=1, le=MAX_TOP_K)] = 10
    """How many training triples to name."""
    order: Order = "proponents"
    """Largest influence first, most negative first, or largest magnitude first."""
    exact: bool = False
    """Compute the influence of every training triple instead of searching."""
    max_candidates: Annotated[int, Field(ge=0, le=MAX_CANDIDATES)] | None = None
    """Look at no more than so many training triples."""
    direction: Direction = "tail"
    """Explain the tail, or the head."""


class SearchQuery(_Query):
    """A look-up by label or name."""

    q: Annotated[str, Field(max_length=MAX_SEARCH)] = ""
    """What the label or name equals, starts with or contains, in this order; upper and lower case are the same."""
    limit: Annotated[int, Field(ge=1, le=MAX_SEARCH)] = 20
    """How many to return."""


_described = with_config(ConfigDict(use_attribute_docstrings=True, extra="forbid"))


@_described
class Named(TypedDict):
    """An entity or relation."""

    id: int
    label: str
    name: str | None
    """Human-readable name, where there is one."""


@_described
class NamedTriple(TypedDict):
    """A triple in ids, labels and names."""

    head: Named
    relation: Named
    tail: Named


@_described
class Influence(TypedDict):
    """One training triple and what it did to the test triple."""

    train_index: int
    """Row of the training triples as read, from 0."""
    triple: NamedTriple
    influence: float | None
    """Inner product of the two loss gradients: positive where training on the triple lowered the test triple's loss."""
    cosine: float | None
    """The same over both gradients' norms."""


@_described
class Explanation(TypedDict):
    """The most influential training triples of one test triple."""

    triple: NamedTriple
    score: float | None
    """The model's score."""
    rank: int
    """Filtered rank among all tails (or heads)."""
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
    influences: list[Influence]


@_described
class Seconds(TypedDict):
    """Where the time went, for all requests that were computed together with this one."""

    gradient: float
    search: float
    rerank: float


@_described
class Influences(TypedDict):
    """What `POST /v1/influences` answers."""

    generation: str
    """The generation of the index that answered."""
    results: list[Explanation]
    """One for each test triple, in the order asked."""
    seconds: Seconds


@_described
class IndexInfo(TypedDict):
    """What is being served."""

    generation: str
    built_at: str
    """RFC 3339, UTC."""
    age_seconds: float
    fingerprint: str
    """Equal fingerprints mean equal model, triples and configuration."""
    model: str | None
    """The model's interaction function."""
    loss: str | None
    layers: list[str] | None
    projection: dict[str, Any]
    """How gradients are projected in the index."""
    counts: dict[str, int]
    """Triples, entities, relations."""
    configuration: dict[str, Any]
    """Everything the index was built with."""


@_described
class Entities(TypedDict):
    """Entities found."""

    generation: str
    entities: list[Named]


@_described
class Relations(TypedDict):
    """Relations found."""

    generation: str
    relations: list[Named]


@_described
class Generation(TypedDict):
    """One generation on disk."""

    id: str
    live: bool
    """Whether it is the one to be served."""
    problem: str | None
    """Why it cannot be read, where it cannot; what follows is then null."""
    built_at: str | None
    """RFC 3339, UTC."""
    model: str | None
    """The model's interaction function."""
    counts: dict[str, int] | None
    """Triples, entities, relations."""
    configuration: dict[str, Any] | None
    """What it was built with."""
    bytes: int | None
    """Size of its files."""


@_described
class Generations(TypedDict):
    """What is on disk."""

    live: str | None
    """The generation to be served."""
    serving: str | None
    """The generation that answers: another than the live one while that is being loaded, or when that failed."""
    generations: list[Generation]
    """Oldest first."""


class PublishRequest(_Request):
    """A generation to make live."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"generation": "20261123T020000Z-1a2b3c"}]})

    generation: Annotated[str, Field(min_length=1, max_length=100)]
    """Its id."""


@_described
class Reload(TypedDict):
    """How an attempt to load a generation ended."""

    generation: str | None
    ok: bool
    reason: str | None
    """Why it failed."""
    at: str
    """RFC 3339, UTC."""
    seconds: float


@_described
class Switched(TypedDict):
    """What became of a publication or rollback."""

    live: str
    """The generation that is live now."""
    serving: str | None
    """The generation that answers now: still the one before where the new one could not be loaded."""
    reload: Reload | None
    """How loading it ended; null where nothing had to be loaded."""


@_described
class Status(TypedDict):
    """What the probe of life answers."""

    status: str


@_described
class Ready(TypedDict):
    """What the probe of readiness answers."""

    status: str
    generation: str
    """The generation that answers."""
    draining: list[str]
    """Replaced generations that still answer requests."""
    reload: Reload | None
    """The last attempt to load a generation, where the service follows an index root."""


class Problem(BaseModel):
    """An error, as RFC 9457 words it."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    type: str
    """Names the kind of error; ``about:blank`` where the status says it all."""
    title: str
    """The kind of error in words."""
    status: int
    """The HTTP status."""
    detail: str
    """What is wrong here, and what can be done about it."""


def _named(id_: int, label: str, name: str | None = None) -> Named:
    return {"id": id_, "label": label, "name": name}


EXAMPLE_INFLUENCES: Influences = {
    "generation": "20261123T020000Z-1a2b3c",
    "results": [
        {
            "triple": {
                "head": _named(3, "Q18216", "aspirin"),
                "relation": _named(1, "treats"),
                "tail": _named(7, "Q86", "headache"),
            },
            "score": 7.31,
            "rank": 2,
            "in_training": False,
            "loss": 0.0007,
            "self_influence": 0.12,
            "certified": True,
            "bound_gap": 0.0,
            "candidates": 241,
            "exact_terms": 12,
            "influences": [
                {
                    "train_index": 1234,
                    "triple": {
                        "head": _named(5, "Q186969", "ibuprofen"),
                        "relation": _named(1, "treats"),
                        "tail": _named(7, "Q86", "headache"),
                    },
                    "influence": 0.83,
                    "cosine": 0.91,
                }
            ],
        }
    ],
    "seconds": {"gradient": 0.004, "search": 0.002, "rerank": 0.006},
}

EXAMPLE_INDEX: IndexInfo = {
    "generation": "20261123T020000Z-1a2b3c",
    "built_at": "2026-11-23T02:00:00Z",
    "age_seconds": 4211.0,
    "fingerprint": "1a2b3c",
    "model": "ConvE",
    "loss": "bce",
    "layers": ["all"],
    "projection": {"type": "pca", "dim": 64, "landmarks": 2048, "seed": 0},
    "counts": {"triples": 32888, "entities": 2034, "relations": 42},
    "configuration": {"loss": "bce", "layers": ["all"], "dim": 64, "landmarks": 2048, "seed": 0},
}

EXAMPLE_ENTITIES: Entities = {
    "generation": "20261123T020000Z-1a2b3c",
    "entities": [_named(3, "Q18216", "aspirin")],
}

EXAMPLE_RELATIONS: Relations = {"generation": "20261123T020000Z-1a2b3c", "relations": [_named(1, "treats")]}

EXAMPLE_GENERATIONS: Generations = {
    "live": "20261123T020000Z-1a2b3c",
    "serving": "20261123T020000Z-1a2b3c",
    "generations": [
        {
            "id": "20261123T020000Z-1a2b3c",
            "live": True,
            "problem": None,
            "built_at": "2026-11-23T02:00:00Z",
            "model": "ConvE",
            "counts": {"triples": 32888, "entities": 2034, "relations": 42},
            "configuration": {"loss": "bce", "layers": ["all"], "dim": 64, "landmarks": 2048, "seed": 0},
            "bytes": 61865984,
        }
    ],
}

EXAMPLE_SWITCHED: Switched = {
    "live": "20261123T020000Z-1a2b3c",
    "serving": "20261123T020000Z-1a2b3c",
    "reload": {
        "generation": "20261123T020000Z-1a2b3c",
        "ok": True,
        "reason": None,
        "at": "2026-11-23T02:00:07Z",
        "seconds": 1.4,
    },
}
