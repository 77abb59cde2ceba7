"""What questions are made of: the base of all, the types of their fields, and the limits that HTTP sets."""

import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import numpy as np
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

MAX_SEARCH = 1000
"""Characters of a search text, and entities or relations that a search returns."""

_MOST_ERRORS = 5
"""Wrong fields that one message names: a request may hold hundreds of triples."""

_LONGEST_FIELD = 200
"""Characters of a field's name that a message repeats."""

_LONGEST_VALUE = 40
"""Characters of a field's value that a message repeats."""

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
        """Return what is equal in questions of equal fields, ``without`` some of them; lists may differ in order."""
        return type(self), *((name, _hashable(value)) for name, value in self.options(*without).items())


def _hashable(value: Any) -> Hashable:
    if isinstance(value, Question):
        return value.key()
    return frozenset(value) if isinstance(value, list) else value


class Body(Question):
    """A question in JSON: values of another type are refused, too."""

    model_config = ConfigDict(strict=True)


def as_json(fields: Mapping[str, Any]) -> str:
    """Return a question's fields as the body of a request; ``must`` and ``must_not`` become its ``filter``.

    Raises `BadRequest` for what JSON cannot hold.
    """
    restriction = {name: fields[name] for name in ("must", "must_not") if name in fields}
    body = {name: value for name, value in fields.items() if name not in restriction}
    if restriction:
        body["filter"] = restriction
    try:
        return json.dumps(body, allow_nan=False, default=_plain)
    except (TypeError, ValueError) as e:  # NaN, infinity, or a condition whose field is no string
        raise BadRequest(f"the request cannot be sent: {e}") from e


def _plain(value: object) -> Any:
    """Return a number of NumPy's as Python's, and items as a list. Raises `BadRequest` for anything else."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Iterable):
        return list(value)
    raise BadRequest(
        f"{value!r} cannot be sent: an entity or relation is a label (string) or an id (integer), an option a number, "
        "a string or a Boolean"
    )


def wrong_fields(errors: Sequence[Mapping[str, Any]], *, within: int = 0) -> str:
    """Name the fields that validation refused, and why; the first ``within`` steps to each are left out."""
    named = [f"{_path(error['loc'][within:])}: {_reason(error)}" for error in errors[:_MOST_ERRORS]]
    if len(errors) > _MOST_ERRORS:
        named.append(f"and {len(errors) - _MOST_ERRORS} more")
    return "; ".join(named)


def _path(location: Sequence[str | int]) -> str:
    """``("triples", 0, "head")`` → ``triples[0].head``."""
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in location)
    return _short(path.removeprefix(".") or "the body", _LONGEST_FIELD)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[:most] + "…"


def _reason(error: Mapping[str, Any]) -> str:
    if error["type"] == "extra_forbidden":
        return "unknown field"
    message = str(error["msg"])
    message = message[0].lower() + message[1:]
    if error["type"] != "missing" and isinstance(error.get("input", ...), str | int | float | None):
        message += f", is {_short(repr(error['input']), _LONGEST_VALUE)}"
    return message


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
    schema["anyOf"] = [triple, spelled_out]


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
