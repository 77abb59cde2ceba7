"""What all answers have in common: they are frozen, written as JSON and read from it, and some have rows.

Fields that a newer service adds are passed over when an answer is read; fields that an older one lacks have defaults.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from kgtrace_server.tables import Columns
from kgtrace_store.errors import MissingExtra

if TYPE_CHECKING:
    import pandas as pd
    from pydantic import TypeAdapter

A = TypeVar("A", bound="Answer")


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, or a part of one."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {
        "use_attribute_docstrings": True,
        "json_schema_serialization_defaults_required": True,
        "json_schema_extra": {"additionalProperties": False},
    }
    """How OpenAPI documents them; a plain dictionary, because `kgtrace list` has no time to import pydantic."""

    def fields(self, *names: str) -> dict[str, Any]:
        """Return some of the fields, as they are."""
        return {name: getattr(self, name) for name in names}

    def values(self, *without: str) -> dict[str, Any]:
        """Return the fields that are numbers, truths or texts and are known; what may be a fraction is a float."""
        known = {field: getattr(self, field.name) for field in fields(self) if field.name not in without}
        return {
            field.name: float(value) if "float" in str(field.type) else value
            for field, value in known.items()
            if isinstance(value, str | int | float)
        }


def adapter(kind: type[A]) -> TypeAdapter[A]:
    """Return the adapter that writes and reads answers of a kind, made when it is first needed."""
    from pydantic import TypeAdapter

    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


_ADAPTERS: dict[type[Answer], TypeAdapter[Any]] = {}


def to_json(answer: Answer, indent: int | None = None) -> bytes:
    """Return an answer, or a part of one, as JSON."""
    return adapter(type(answer)).dump_json(answer, indent=indent)


def from_json(kind: type[A], content: bytes) -> A:
    """Read an answer. Raises `ValueError` for JSON that is none."""
    return adapter(kind).validate_json(content)


@dataclass(frozen=True, slots=True)
class Table(Answer):
    """An answer that has rows."""

    COLUMNS: ClassVar[Columns] = {}
    """Of tabular output, as in the files of the command line."""

    @property
    def columns(self) -> Columns:
        """Of tabular output."""
        return self.COLUMNS

    def rows(self) -> Iterator[dict[str, Any]]:
        """Return the rows, by column."""
        raise NotImplementedError

    def to_dataframe(self) -> pd.DataFrame:
        """Return the rows, in `columns`. Raises `MissingExtra` without pandas."""
        try:
            import pandas as pd
        except ImportError as e:
            raise MissingExtra("data frames need pandas: pip install 'kgtrace[dataframe]'") from e
        return pd.DataFrame(list(self.rows()), columns=list(self.columns))
