"""Triples in three columns of a Parquet or Arrow file, read in chunks of bounded length by pyarrow.

Files are told by their names: ``train.parquet``, ``train.arrow`` or ``train.feather``. Rows are counted from 0.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kgtrace_indexer.inputs.text_files import quote
from kgtrace_store.errors import BadRequest, IdOutOfRange, MalformedTriple, MissingExtra, UnreadableInput
from kgtrace_store.vocabulary import Vocabulary

CHUNK = 16_384
"""Rows whose labels are in memory at a time."""

_PARQUET = ".parquet"
_ARROW = (".arrow", ".feather")

_PAGE_BYTES = 1 << 20
"""Of a column of a Parquet file, read at a time."""

_NAMES: Mapping[str, tuple[str, ...]] = {
    "head": ("head", "subject", "source", "h", "s"),
    "relation": ("relation", "predicate", "r", "p"),
    "tail": ("tail", "object", "target", "t", "o"),
}
"""Names by which a column is known, in upper or lower case."""

_INTEGERS = ("int8", "int16", "int32", "int64")
_STRINGS = ("string", "large_string", "string_view")
_STRING = "large_string"
"""pyarrow's names of types; as the last, all strings are read."""

_ARROW_FILE = b"ARROW1"
"""Begins an Arrow file; a stream of Arrow has no such mark."""

_STREAM_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"
"""Ends a stream of Arrow; one that was cut off between two batches would be read without complaint."""

_MOST_NAMES = 10
"""Columns that a message names."""

_LONGEST_REASON = 200
"""Characters of pyarrow's message."""

UNKNOWN = -1
"""Stands for the id of a label that is not in the vocabulary."""


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Consecutive triples of a file."""

    start: int
    """Row of the first one."""
    ids: np.ndarray
    """(m, 3) int32: head, relation, tail; `UNKNOWN` for labels that are not in the vocabulary."""
    columns: tuple[Any, Any, Any]
    """Three pyarrow arrays (m,), of large strings or integers as in the file."""
    labelled: bool
    """Whether any of them holds labels."""


def is_columnar(path: Path) -> bool:
    """Whether a file is named as Parquet or Arrow files are."""
    return path.suffix.lower() in (_PARQUET, *_ARROW)


@dataclass(frozen=True, slots=True)
class ColumnFile:
    """A Parquet or Arrow file, to be read once from its beginning to its end."""

    path: Path
    vocabulary: Vocabulary
    ids: bool
    """Whether integers are ids, even where labels are made of digits."""

    def chunks(self) -> Iterator[Chunk]:
        """Yield the triples, at most `CHUNK` at a time.

        Strings are labels. Integers are ids; but where labels are made of digits they are these, unless `ids` is on.

        Raises
        ------
        UnreadableInput
            The file is missing, damaged, or not what its name says.
        MalformedTriple
            A column is missing, or holds neither strings nor integers; a field is null or empty.
        IdOutOfRange
            An id is not in the vocabulary.
        BadRequest
            `ids` is on for labels.
        MissingExtra
            There is no pyarrow.
        """
        entities = {label: i for i, label in enumerate(self.vocabulary.entities)}
        relations = {label: i for i, label in enumerate(self.vocabulary.relations)}
        tables = (entities, relations, entities)
        digits = [ref("0") != 0 for ref in (self.vocabulary.entity_ref, self.vocabulary.relation_ref)]
        digits_are_labels = (digits[0], digits[1], digits[0])
        start = 0
        for columns in self._batches():
            ids = np.empty((len(columns[0]), 3), np.int32)
            labelled = False
            for role, (noun, column) in enumerate(zip(_NAMES, columns, strict=True)):
                self._require_values(noun, column, start)
                if not _is_integer(column.type) and self.ids:
                    raise BadRequest(f"{self.path}: the {noun} column holds labels, not ids: leave --ids out")
                if _is_integer(column.type) and (self.ids or not digits_are_labels[role]):
                    ids[:, role] = self._in_range(noun, column, len(tables[role]), start)
                else:
                    ids[:, role] = _looked_up(column.cast(_STRING), tables[role])
                    labelled = True
            yield Chunk(start, ids, columns, labelled)
            start += len(ids)

    def fields(self, chunk: Chunk, i: int) -> tuple[str, str, str]:
        """Return the labels of triple i of a chunk, also of those that the vocabulary lacks."""
        labels = (self.vocabulary.entities, self.vocabulary.relations, self.vocabulary.entities)
        head, relation, tail = (
            str(column[i]) if id_ == UNKNOWN else known[id_]
            for known, column, id_ in zip(labels, chunk.columns, chunk.ids[i].tolist(), strict=True)
        )
        return head, relation, tail

    def _batches(self) -> Iterator[tuple[Any, Any, Any]]:
        """Yield heads, relations and tails, as three pyarrow arrays (m,), m ≤ `CHUNK`."""
        with self._opened() as (schema, batches):
            names = self._names(schema.names)
            kinds = [self._kind(name, schema.field(name).type) for name in names]
            for batch in batches(names):
                for start in range(0, len(batch), CHUNK):
                    piece = batch.slice(start, CHUNK).select(names)
                    piece.validate(full=True)
                    head, relation, tail = (c.cast(kind) for c, kind in zip(piece.columns, kinds, strict=True))
                    yield head, relation, tail

    def _kind(self, name: str, kind: Any) -> Any:
        """Return as what a column is read: its integers, or `_STRING`. Raises `MalformedTriple`."""
        plain = kind.value_type if str(kind).startswith("dictionary<") else kind
        if _is_integer(plain):
            return plain
        if str(plain) in _STRINGS:
            return _STRING
        raise MalformedTriple(
            f"{self.path}: column {quote(name)} holds {kind}: strings are labels, and integers are ids"
        )

    @contextmanager
    def _opened(self) -> Iterator[tuple[Any, Callable[[Sequence[str]], Iterator[Any]]]]:
        """Open the file; give its schema, and a function from names of columns to record batches with these columns."""
        pa = _pyarrow(self.path)
        is_parquet = self.path.suffix.lower() == _PARQUET
        try:
            # Mapped, since an Arrow file may be one batch of any length.
            with (pa.OSFile if is_parquet else pa.memory_map)(str(self.path)) as source:
                if is_parquet:
                    parquet = pa.parquet.ParquetFile(source, buffer_size=_PAGE_BYTES, pre_buffer=False)
                    yield parquet.schema_arrow, lambda names: parquet.iter_batches(CHUNK, None, names, False)
                elif source.read(len(_ARROW_FILE)) == _ARROW_FILE:
                    file = pa.ipc.open_file(source)
                    yield file.schema, lambda _: map(file.get_batch, range(file.num_record_batches))
                else:
                    source.seek(max(0, source.size() - len(_STREAM_END)))
                    if source.read() != _STREAM_END:
                        raise pa.ArrowInvalid("it does not begin as a file of Arrow, nor end as a stream")
                    source.seek(0)
                    stream = pa.ipc.open_stream(source)
                    yield stream.schema, lambda _: iter(stream)
        except (pa.ArrowException, OSError) as e:
            if isinstance(e, OSError) and e.errno is not None:
                raise UnreadableInput(f"cannot read {self.path}: {os.strerror(e.errno)}") from e
            noun = "a Parquet file" if is_parquet else "an Arrow file"
            reason = str(e).partition("\n")[0][:_LONGEST_REASON]
            raise UnreadableInput(f"{self.path} is not {noun}, or damaged: {reason}") from e

    def _names(self, names: Sequence[str]) -> list[str]:
        """Return the names of the columns of heads, relations and tails: known ones, else all where these are three."""
        roles = [[name for name in names if name.lower() in known] for known in _NAMES.values()]
        if not any(roles) and len(names) == len(set(names)) == 3:
            return list(names)
        for (noun, known), found in zip(_NAMES.items(), roles, strict=True):
            if len(found) != 1:
                raise MalformedTriple(
                    f"{self.path}: {len(found) or 'no'} columns of {', '.join(map(quote, names[:_MOST_NAMES]))} are "
                    f"named {' or '.join(known)}: name one of them {noun}"
                )
        return [name for (name,) in roles]

    def _require_values(self, noun: str, column: Any, start: int) -> None:
        """Raise `MalformedTriple` for a null or an empty string."""
        pc = _pyarrow(self.path).compute
        missing = column.is_null()
        if not _is_integer(column.type):
            missing = pc.or_(missing, pc.equal(pc.fill_null(pc.binary_length(column), 0), 0))
        at = pc.index(missing, True).as_py()
        if at >= 0:
            kind = "null" if column[at].as_py() is None else "empty"
            raise MalformedTriple(f"{self.path} row {start + at}, counted from 0: the {noun} is {kind}")

    def _in_range(self, noun: str, column: Any, limit: int, start: int) -> np.ndarray:
        """Return ids (m,). Raises `IdOutOfRange`."""
        ids: np.ndarray = column.to_numpy(zero_copy_only=False)
        wrong = np.flatnonzero((ids < 0) | (ids >= limit))
        if len(wrong):
            raise IdOutOfRange(
                f"{self.path} row {start + wrong[0]}, counted from 0: {noun} id {ids[wrong[0]]} is out of range: "
                f"there are {limit}"
            )
        return ids


def _looked_up(column: Any, table: Mapping[str, int]) -> np.ndarray:
    """Return the ids of labels (m,) int32; each different label is looked up once."""
    encoded = column.dictionary_encode()
    ids = np.array([table.get(label, UNKNOWN) for label in encoded.dictionary.to_pylist()], np.int32)
    found: np.ndarray = ids[encoded.indices.to_numpy()]
    return found


def _is_integer(kind: Any) -> bool:
    return str(kind).removeprefix("u") in _INTEGERS


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError as e:
        raise MissingExtra(f"{path} needs pyarrow: pip install 'kgtrace[parquet]'") from e
    return pyarrow
