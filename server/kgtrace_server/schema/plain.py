"""Questions as JSON, and messages about wrong ones, free of pydantic: clients over HTTP check nothing themselves."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from kgtrace_store.errors import BadRequest

_MOST_ERRORS = 5
"""Wrong fields that one message names: a request may hold hundreds of triples."""

_LONGEST_FIELD = 200
"""Characters of a field's name that a message repeats."""

_LONGEST_VALUE = 40
"""Characters of a field's value that a message repeats."""


def as_json(fields: Mapping[str, Any]) -> str:
    """Return a question's fields as the body of a request; ``must`` and ``must_not`` become its ``filter``.

    Raises `BadRequest` for values that JSON cannot hold.
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
    value = error.get("input", {})
    if error["type"] == "missing" or not isinstance(value, str | int | float | None):
        return message  # lists and objects are not repeated
    return f"{message}, is {_short(repr(value), _LONGEST_VALUE)}"
