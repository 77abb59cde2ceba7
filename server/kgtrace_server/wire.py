"""The shapes that travel over HTTP, with the examples that the documentation shows.

Requests are models, because they are checked; answers are typed dictionaries, because they are only written: a
request may ask for a quarter of a million influences.
"""

import ast
import sys
from functools import cache
from inspect import cleandoc, getsource
from itertools import pairwise
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
    model_validator,
    with_config,
)
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from kgtrace_indexer.names import Direction, Group, Order, Ranking, Score

S = TypeVar("S")

MAX_TRIPLES = 256
"""Test triples in a request: a second or two of work on a large index."""

MAX_TOP_K = 1000
"""Influences of a test triple."""

MAX_CANDIDATES = 2**31 - 1
"""Rows of an index are counted in 32 bits."""

MAX_HOPS = 16
"""From a test triple; in most graphs a few reach everything, and each takes a pass over the training triples."""

MAX_FILTER = 10_000
"""Labels or ids in one field of a filter."""

MAX_FIELDS = 16
"""Fields of an object in a request, known or not. Each unknown one is an error to report; a body has room for a
hundred thousand, and whatever looks at them keeps the event loop."""

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


class _Asked(BaseModel):
    """Unknown fields are refused: a misspelt option must not be passed over."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) > MAX_FIELDS:
            raise PydanticCustomError(
                "fields", "has {count} fields, at most {most} are looked at", {"count": len(value), "most": MAX_FIELDS}
            )
        return value


class _Request(_Asked):
    """A body: values of another type are refused, too."""

    model_config = ConfigDict(strict=True)


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


Refs = Annotated[list[Ref], Field(min_length=1, max_length=MAX_FILTER, fail_fast=True)]
"""Alternatives. The first that is wrong is reported alone."""


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


TopK = Annotated[int, Field(ge=1, le=MAX_TOP_K)]
Hops = Annotated[int, Field(ge=1, le=MAX_HOPS)]


def _damping(value: Any, valid: ValidatorFunctionWrapHandler) -> Any:
    try:
        return valid(value)
    except ValidationError as e:
        raise PydanticCustomError("damping", "must be a number greater than 0, or auto") from e


Damping = Annotated[Annotated[float, Field(gt=0, allow_inf_nan=False)] | Literal["auto"], WrapValidator(_damping)]


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
    top_k: TopK = 10
    """How many training triples to name for each."""
    order: Order = "proponents"
    """Largest influence first, most negative first, or largest magnitude first."""
    exact: bool = False
    """Compute the influence of every training triple instead of searching: slow, and independent of the index."""
    max_candidates: Annotated[int, Field(ge=0, le=MAX_CANDIDATES)] | None = None
    """Look at no more than so many training triples; an answer that was cut short is not certified."""
    filter: Filter | None = None
    """Which training triples may be named."""
    within_hops: Hops | None = None
    """Name only training triples so near to the test triple: with 1 those that touch its head or tail, with 2 also
    those that touch one of these, and so on."""
    direction: Direction = "tail"
    """Explain the tail, or the head."""
    score: Score | None = None
    """``tracin``: inner products of gradients; ``preconditioned``: of those of embedding rows, with the inverse of
    their second moment between. Null for what the index was built with."""
    damping: Damping | None = None
    """σ² of the preconditioned score, in its unit; ``auto`` is 3, null the index's own."""


class _Query(_Asked):
    """Parameters in the address: everything is text there, so numbers are read from it."""


class InfluenceQuery(_Query):
    """One test triple in the address."""

    head: str
    """Label, or id where no label is made of digits."""
    relation: str
    """Label, or id where no label is made of digits."""
    tail: str
    """Label, or id where no label is made of digits."""
    top_k: TopK = 10
    """How many training triples to name."""
    order: Order = "proponents"
    """Largest influence first, most negative first, or largest magnitude first."""
    exact: bool = False
    """Compute the influence of every training triple instead of searching."""
    max_candidates: Annotated[int, Field(ge=0, le=MAX_CANDIDATES)] | None = None
    """Look at no more than so many training triples."""
    within_hops: Hops | None = None
    """Name only training triples so near to the test triple: with 1 those that touch its head or tail."""
    direction: Direction = "tail"
    """Explain the tail, or the head."""
    score: Score | None = None
    """``tracin`` or ``preconditioned``; without it, what the index was built with."""
    damping: Damping | None = None
    """σ² of the preconditioned score, in its unit; ``auto`` is 3, without it the index's own counts."""


class SelfInfluenceRequest(_Request):
    """Which training triples pulled hardest on the model?"""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"top_k": 10, "order": "descending", "filter": {"must": {"relation": ["treats"]}}}]
        }
    )

    top_k: TopK = 10
    """How many training triples to name."""
    order: Ranking = "descending"
    """Largest first, or smallest."""
    score: Score | None = None
    """``tracin`` for ‖g‖², ``preconditioned`` for gᵀPg; null for what the index was built to answer with."""
    filter: Filter | None = None
    """Which training triples may be named."""


class SelfInfluenceQuery(_Query):
    """Training triples by self-influence, in the address. Parameters that are given several times name alternatives."""

    top_k: TopK = 10
    """How many training triples to name."""
    order: Ranking = "descending"
    """Largest first, or smallest."""
    score: Score | None = None
    """``tracin`` for ‖g‖², ``preconditioned`` for gᵀPg; null for what the index was built to answer with."""
    head: list[str] = []
    """Label, or id where no label is made of digits, of the training triple's head."""
    relation: list[str] = []
    """The same of its relation."""
    tail: list[str] = []
    """The same of its tail."""


class PredictionRequest(_Request):
    """What would the model put in the place of the missing tail, or head?"""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"head": "aspirin", "relation": "treats", "top_k": 10, "filtered": True}]}
    )

    head: Ref | None = None
    """Given, tails are predicted."""
    relation: Ref
    tail: Ref | None = None
    """Given, heads are predicted."""
    top_k: TopK = 10
    """How many entities to name."""
    filtered: bool = False
    """Leave out those that make a training triple."""


class PredictionQuery(_Query):
    """The same in the address."""

    head: str | None = None
    """Label, or id where no label is made of digits. Given, tails are predicted."""
    relation: str
    """Label, or id where no label is made of digits."""
    tail: str | None = None
    """Label, or id where no label is made of digits. Given, heads are predicted."""
    top_k: TopK = 10
    """How many entities to name."""
    filtered: bool = False
    """Leave out those that make a training triple."""


class AggregateRequest(_Request):
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

    triple: TripleRef | None = None
    """Test triple: what to explain."""
    triples: Annotated[list[TripleRef], Field(min_length=1, max_length=MAX_TRIPLES)] | None = None
    """Or several, the influences on which are summed."""
    by: Group
    """What the training triples of a group have in common; with ``triple`` each is a group of its own."""
    top_k: TopK = 10
    """How many groups to name."""
    order: Order = "proponents"
    """Largest sum first, most negative first, or largest magnitude first."""
    exact: bool = False
    """Compute the influence of every training triple: slow. Else sums are estimates with bounds on their errors."""
    filter: Filter | None = None
    """Which training triples count."""
    within_hops: Hops | None = None
    """Count only training triples so near to the test triple; of several, to each for its own influences."""
    direction: Direction = "tail"
    """Explain the tail, or the head."""
    score: Score | None = None
    """``tracin``: inner products of gradients; ``preconditioned``: of those of embedding rows, with the inverse of
    their second moment between. Null for what the index was built with."""
    damping: Damping | None = None
    """σ² of the preconditioned score, in its unit; ``auto`` is 3, null the index's own."""

    @model_validator(mode="after")
    def _one_or_several(self) -> Self:
        if (self.triple is None) == (self.triples is None):
            raise PydanticCustomError("triples", "exactly one of triple and triples must be given")
        return self


class AggregateQuery(_Query):
    """One test triple in the address, and by what to sum."""

    head: str
    """Label, or id where no label is made of digits."""
    relation: str
    """Label, or id where no label is made of digits."""
    tail: str
    """Label, or id where no label is made of digits."""
    by: Group
    """What the training triples of a group have in common."""
    top_k: TopK = 10
    """How many groups to name."""
    order: Order = "proponents"
    """Largest sum first, most negative first, or largest magnitude first."""
    exact: bool = False
    """Compute the influence of every training triple: slow."""
    within_hops: Hops | None = None
    """Count only training triples so near to the test triple."""
    direction: Direction = "tail"
    """Explain the tail, or the head."""
    score: Score | None = None
    """``tracin`` or ``preconditioned``; without it, what the index was built with."""
    damping: Damping | None = None
    """σ² of the preconditioned score, in its unit; ``auto`` is 3, without it the index's own counts."""


class SearchQuery(_Query):
    """A look-up by label or name."""

    q: Annotated[str, Field(max_length=MAX_SEARCH)] = ""
    """What the label or name equals, starts with or contains, in this order; upper and lower case are the same."""
    limit: Annotated[int, Field(ge=1, le=MAX_SEARCH)] = 20
    """How many to return."""


@cache
def _docstrings() -> dict[str, dict[str, str]]:
    """Return, by class and field of this module, the docstring below the field."""
    return {
        node.name: {
            field.target.id: cleandoc(text.value.value)
            for field, text in pairwise(node.body)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
            if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
        }
        for node in ast.parse(getsource(sys.modules[__name__])).body
        if isinstance(node, ast.ClassDef)
    }


def _described(shape: type[S]) -> type[S]:
    """Give the fields of a typed dictionary their docstrings as descriptions.

    Pydantic could do so by itself, but reads the whole module again for every use of every shape: a second for each
    application.
    """
    hints = shape.__annotations__
    for name, text in _docstrings()[shape.__name__].items():
        hints[name] = Annotated[hints[name], Field(description=text)]
    return with_config(ConfigDict(extra="forbid"))(shape)


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
    rank: float
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
    notes: list[str]
    """Remarks for people: why the numbers say less than they seem to. Empty as a rule."""
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
    score: Score
    """Of influences: plain, or preconditioned."""
    results: list[Explanation]
    """One for each test triple, in the order asked."""
    seconds: Seconds


@_described
class SelfInfluence(TypedDict):
    """One training triple and its self-influence."""

    train_index: int
    """Row of the training triples as read, from 0."""
    triple: NamedTriple
    self_influence: float | None
    """Squared norm of the triple's own gradient, or its preconditioned influence on itself: large where the model has
    to strain to hold it."""


@_described
class SelfInfluences(TypedDict):
    """Training triples in the order of their self-influence; equal ones in that of their rows."""

    generation: str
    """The generation of the index that answered."""
    score: Score
    """Which of the two it is."""
    loss: str
    """Whose gradient: that of the index, but ``bce`` where that is ``removal``, whose slope is always the same."""
    self_influences: list[SelfInfluence]


@_described
class Prediction(TypedDict):
    """One entity that completes a triple."""

    entity: Named
    triple: NamedTriple
    """Complete."""
    score: float | None
    """The model's score."""
    rank: float
    """Filtered rank among all entities: those that make another training triple do not count, and of those with an
    equal score half do, so it may end in .5."""
    in_training: bool
    """Whether the complete triple is a training triple."""


@_described
class Predictions(TypedDict):
    """The model's best completions."""

    generation: str
    """The generation of the index that answered."""
    direction: Direction
    """Whether the tail or the head was missing."""
    predictions: list[Prediction]
    """Best first."""


@_described
class InfluenceSum(TypedDict):
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


@_described
class GroupInfluence(InfluenceSum):
    """The training triples of one relation, head or tail, or one training triple."""

    group: Named | NamedTriple
    """What they have in common, or the training triple."""
    train_index: int | None
    """Row of the training triple as read, from 0; null where groups are of several."""


@_described
class Aggregate(TypedDict):
    """Influence on test triples, summed by training relation, head or tail, or of each training triple."""

    generation: str
    """The generation of the index that answered."""
    score: Score
    """Of influences: plain, or preconditioned."""
    triple: NamedTriple | None
    """The test triple; null where there were several."""
    test_triples: int
    """How many there were."""
    by: Group
    """What the training triples of a group have in common."""
    exact: bool
    """Whether the influence of every training triple was computed."""
    certified: bool
    """Whether it is proved that these are the first groups, in this order."""
    total: InfluenceSum
    """Over all groups, those that are not named included."""
    groups: list[GroupInfluence]


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
    """How gradients are kept in the index: `pca` certifies answers, `gaussian` and `sparse` do not, `none` scans."""
    sample_rate: float
    """Share of the training triples that is indexed: no others can be named, and `certified` is about these."""
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
    agreement: Agreement | None
    """With the generation before it, as the gate found it; null for the first one, too."""


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


class Nearest(TypedDict):
    """An entity or relation whose label or name is like one that is unknown."""

    label: str
    name: str | None


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
    unknown: str = ""
    """The label that names no entity or relation."""
    nearest: list[Nearest] = []
    """What it may have been meant to be, most alike first."""


def _named(id_: int, label: str, name: str | None = None) -> Named:
    return {"id": id_, "label": label, "name": name}


EXAMPLE_INFLUENCES: Influences = {
    "generation": "20261123T020000Z-1a2b3c",
    "score": "preconditioned",
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
            "loss": -7.31,
            "self_influence": 42.6,
            "certified": True,
            "bound_gap": 0.0,
            "candidates": 241,
            "exact_terms": 12,
            "notes": [],
            "influences": [
                {
                    "train_index": 1234,
                    "triple": {
                        "head": _named(5, "Q186969", "ibuprofen"),
                        "relation": _named(1, "treats"),
                        "tail": _named(7, "Q86", "headache"),
                    },
                    "influence": 11.9,
                    "cosine": 0.28,
                }
            ],
        }
    ],
    "seconds": {"gradient": 0.004, "search": 0.002, "rerank": 0.006},
}

EXAMPLE_SELF_INFLUENCES: SelfInfluences = {
    "generation": "20261123T020000Z-1a2b3c",
    "score": "preconditioned",
    "loss": "bce",
    "self_influences": [
        {
            "train_index": 1234,
            "triple": {
                "head": _named(5, "Q186969", "ibuprofen"),
                "relation": _named(1, "treats"),
                "tail": _named(7, "Q86", "headache"),
            },
            "self_influence": 41.7,
        }
    ],
}

EXAMPLE_PREDICTIONS: Predictions = {
    "generation": "20261123T020000Z-1a2b3c",
    "direction": "tail",
    "predictions": [
        {
            "entity": _named(7, "Q86", "headache"),
            "triple": {
                "head": _named(3, "Q18216", "aspirin"),
                "relation": _named(1, "treats"),
                "tail": _named(7, "Q86", "headache"),
            },
            "score": 7.31,
            "rank": 1,
            "in_training": False,
        }
    ],
}

EXAMPLE_AGGREGATE: Aggregate = {
    "generation": "20261123T020000Z-1a2b3c",
    "score": "preconditioned",
    "triple": {
        "head": _named(3, "Q18216", "aspirin"),
        "relation": _named(1, "treats"),
        "tail": _named(7, "Q86", "headache"),
    },
    "test_triples": 1,
    "by": "relation",
    "exact": False,
    "certified": True,
    "total": {"count": 32888, "sum": 160.2, "positive": 183.9, "negative": -23.7, "error": 14.6},
    "groups": [
        {
            "group": _named(1, "treats"),
            "train_index": None,
            "count": 312,
            "sum": 98.1,
            "positive": 101.5,
            "negative": -3.4,
            "error": 2.9,
        }
    ],
}

EXAMPLE_CONFIGURATION = {
    "loss": "removal",
    "layers": ["all"],
    "dim": 64,
    "landmarks": 2048,
    "precondition": "fisher",
    "seed": 0,
}

EXAMPLE_INDEX: IndexInfo = {
    "generation": "20261123T020000Z-1a2b3c",
    "built_at": "2026-11-23T02:00:00Z",
    "age_seconds": 4211.0,
    "fingerprint": "1a2b3c",
    "model": "ConvE",
    "loss": "removal",
    "layers": ["all"],
    "projection": {"type": "pca", "dim": 64, "landmarks": 2048, "seed": 0},
    "sample_rate": 1.0,
    "counts": {"triples": 32888, "entities": 2034, "relations": 42},
    "configuration": EXAMPLE_CONFIGURATION,
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
            "configuration": EXAMPLE_CONFIGURATION,
            "bytes": 61865984,
            "agreement": {"generation": "20261122T020000Z-4d5e6f", "overlap": 0.81, "top_k": 10, "triples": 32},
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
