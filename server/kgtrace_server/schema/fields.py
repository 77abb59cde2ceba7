"""What questions are made of: the base of all, the types of their fields, and the limits that HTTP sets."""

import json
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, PydanticKnownError, core_schema

from kgtrace_server.schema.plain import as_json, wrong_fields
from kgtrace_store.errors import BadRequest

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

MAX_SET = 1000
"""Training triples that a question leaves out: each reads a few rows, and every row is multiplied with P."""

MAX_FACTS = 64
"""Training triples of a set that explains."""

MAX_ENTITIES = 100
"""Entities that a sufficient set is tried with, each with predictions of its own."""

MAX_RELATIONS = 10
"""Relations of an entity that a question completes without naming one: each takes a forward pass of its own."""

MAX_SEARCH = 1000
"""Characters of a search text, and entities or relations that a search returns."""

_UNLIMITED = {"limited": False}
"""Context of validation for questions that did not come over HTTP."""

FIELDS = ("head", "relation", "tail")


class Question(BaseModel):
    """Unknown fields are refused: a misspelt option must not be passed over."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) > MAX_FIELDS:
            raise PydanticCustomError(
                "fields", "has {count} fields, at most {most} are looked at", {"count": len(value), "most": MAX_FIELDS}
            )
        return value

    @classmethod
    def of(cls, **fields: Any) -> Self:
        """Return a question of Python's values, or NumPy's, without the limits of HTTP; see `as_json`.

        Raises `BadRequest`.
        """
        try:
            return cls.model_validate(json.loads(as_json(fields)), context=_UNLIMITED)
        except ValidationError as e:
            raise BadRequest(wrong_fields(e.errors())) from e

    def options(self, *without: str) -> dict[str, Any]:
        """Return fields by name, ``without`` some of them."""
        return {name: value for name, value in self if name not in without}

    def key(self, *without: str) -> Hashable:
        """Return a key that is equal for questions of equal fields, ``without`` some; lists may differ in order."""
        return type(self), *((name, _hashable(value)) for name, value in self.options(*without).items())


def _hashable(value: Any) -> Hashable:
    if isinstance(value, Question):
        return value.key()
    return frozenset(value) if isinstance(value, list) else value


class Body(Question):
    """A question in JSON: values of another type are refused, too."""

    model_config = ConfigDict(strict=True)

    @property
    def size(self) -> int:
        """Its share of what is computed together."""
        return 1


@dataclass(frozen=True, slots=True)
class AtMost:
    """The largest number, or the most items of a list, that a request over HTTP may hold."""

    most: int

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Validate the annotated type, and the limit."""
        return core_schema.with_info_wrap_validator_function(self._validate, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Document the limit."""
        documented = handler(schema)
        return {**documented, "maxItems" if documented["type"] == "array" else "maximum": self.most}

    def _validate(self, value: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        limited = info.context != _UNLIMITED
        if limited and isinstance(value, list) and len(value) > self.most:  # before a look at any of the items
            lengths = {"field_type": "List", "max_length": self.most, "actual_length": len(value)}
            raise PydanticKnownError("too_long", lengths)
        validated = handler(value)
        if limited and isinstance(validated, int) and validated > self.most:
            raise PydanticKnownError("less_than_equal", {"le": self.most})
        return validated


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

TopK = Annotated[int, Field(ge=1), AtMost(MAX_TOP_K)]
Hops = Annotated[int, Field(ge=1), AtMost(MAX_HOPS)]
Candidates = Annotated[int, Field(ge=0), AtMost(MAX_CANDIDATES)]


def _damping(value: Any, valid: ValidatorFunctionWrapHandler) -> Any:
    try:
        return valid(value)
    except ValidationError as e:
        raise PydanticCustomError("damping", "must be a number greater than 0, or auto") from e


Damping = Annotated[Annotated[float, Field(gt=0, allow_inf_nan=False)] | Literal["auto"], WrapValidator(_damping)]


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
    schema["anyOf"] = [triple, {"title": "TripleObject", **spelled_out}]  # or generated clients make up a name for it


class TripleRef(Body):
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


TripleRefs = Annotated[list[TripleRef], Field(min_length=1), AtMost(MAX_TRIPLES)]

_Row = Annotated[int, Field(ge=0, lt=1 << 63)]
TrainingRefs = Annotated[list[TripleRef | _Row], Field(min_length=1), AtMost(MAX_SET)]
"""Training triples, each as such or by its ``train_index``."""

Refs = Annotated[list[Ref], Field(min_length=1, fail_fast=True), AtMost(MAX_FILTER)]
"""Alternatives. The first that is wrong is reported alone."""


class Condition(Body):
    """Labels or ids by field of the training triple."""

    head: Refs | None = None
    relation: Refs | None = None
    tail: Refs | None = None


class Filter(Body):
    """Which training triples may be named."""

    must: Condition | None = None
    """In every field given here, one of these."""
    must_not: Condition | None = None
    """In no field given here, one of these."""
