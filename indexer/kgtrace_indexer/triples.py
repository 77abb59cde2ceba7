"""Id maps, names and triples from tab-separated files, read as streams.

All files may be gzipped (told by content, not by name), start with a byte-order mark, end lines with CRLF and
hold blank lines. Labels are taken as they are.
"""

from __future__ import annotations

import gzip
import re
import zlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kgtrace_store.errors import (
    DuplicateId,
    EmptyInput,
    IdOutOfRange,
    MalformedTriple,
    MalformedVocabulary,
    UnknownLabel,
    UnreadableInput,
)
from kgtrace_store.vocabulary import Vocabulary

ENTITY_TO_ID = "entity_to_id.tsv.gz"
RELATION_TO_ID = "relation_to_id.tsv.gz"
NUMERIC_TRIPLES = "numeric_triples.tsv.gz"
"""Files of PyKEEN's ``training_triples`` folder."""

MAX_LINE_BYTES = 1 << 20
"""A longer line means that the file is not text; reading it whole could take all memory."""

_BUFFER_BYTES = 1 << 20
_INTEGER = re.compile(r"-?[0-9]{1,18}")
_LONGEST_QUOTE = 100


@dataclass(frozen=True, slots=True, eq=False)
class TripleTable:
    """Triples as ids, in the order of the file."""

    ids: np.ndarray
    """(n, 3) int32: head, relation, tail."""
    train_index: np.ndarray
    """(n,) int64: row in the file from 0, counting neither header nor blank lines, but counting skipped ones."""
    skipped: int
    """Lines left out because of an unknown label."""


def out_of_range(ids: np.ndarray, entities: int, relations: int) -> tuple[int, str] | None:
    """Return a row of triples (n, 3) with an id that a model of so many lacks, and what is wrong with it, if any is."""
    for column, (noun, limit) in enumerate((("head", entities), ("relation", relations), ("tail", entities))):
        wrong = np.flatnonzero((ids[:, column] < 0) | (ids[:, column] >= limit))
        if len(wrong):
            return int(wrong[0]), f"{noun} id {ids[wrong[0], column]} is out of range: the model has {limit}"
    return None


def read_vocabulary(entity_to_id: Path, relation_to_id: Path, names: Path | None = None) -> Vocabulary:
    """Read two id maps and, optionally, human-readable names.

    An id map has two columns. A header ``id⇥label`` or ``label⇥id`` says which is which, and its labels are quoted
    as in CSV, which is how PyKEEN writes them. Without a header the ids are the column that holds 0..n−1.
    `names` has lines ``label⇥name``, of entities or relations; those of labels that the maps lack are ignored.

    Raises
    ------
    UnreadableInput
        A file is missing, truncated or not UTF-8.
    MalformedVocabulary
        A line has not two fields, or no column or both could hold the ids.
    DuplicateId
        A label or an id occurs twice.
    IdOutOfRange
        The ids are not 0..n−1.
    EmptyInput
        A map has no entries.
    """
    entities = _read_id_map(entity_to_id, "entity")
    relations = _read_id_map(relation_to_id, "relation")
    if names is None:
        return Vocabulary(entities, relations)
    return Vocabulary(entities, relations, *_read_names(names, entities, relations))


def read_triples(path: Path, vocabulary: Vocabulary, *, skip_unknown: bool = False) -> TripleTable:
    """Read ``head⇥relation⇥tail`` lines of labels.

    A file whose first line is the header ``head⇥relation⇥tail`` holds ids instead, as PyKEEN's
    ``numeric_triples.tsv.gz`` does, unless these three are labels themselves.

    Raises
    ------
    UnreadableInput
        The file is missing, truncated or not UTF-8.
    MalformedTriple
        A line has not three fields, or one is empty.
    UnknownEntity, UnknownRelation
        A label is not in the vocabulary and `skip_unknown` is off.
    IdOutOfRange
        An id is not in the vocabulary.
    EmptyInput
        There is no triple, or none with known labels.
    """
    entities = {label: i for i, label in enumerate(vocabulary.entities)}
    relations = {label: i for i, label in enumerate(vocabulary.relations)}
    ids = array("i")
    rows = array("q")
    row = -1
    for number, line in _lines(path):
        fields = line.split("\t")
        if len(fields) != 3 or not all(fields):
            raise _malformed_triple(path, number, line)
        head, relation, tail = fields
        row += 1
        try:
            triple = (entities[head], relations[relation], entities[tail])
        except KeyError:
            if row == 0 and fields == ["head", "relation", "tail"]:
                return _read_numeric(path, vocabulary)
            if skip_unknown:
                continue
            triple = _resolve(path, number, fields, vocabulary)
        ids.extend(triple)
        rows.append(row)
    if row < 0:
        raise EmptyInput(f"{path} holds no triple")
    if not rows:
        raise EmptyInput(f"{path} holds no triple with known labels: all {row + 1} were skipped")
    return _table(ids, rows, skipped=row + 1 - len(rows))


def read_training_folder(folder: Path) -> tuple[Vocabulary, TripleTable]:
    """Read PyKEEN's ``training_triples`` folder: two id maps and the triples as ids.

    Raises as :func:`read_vocabulary` and :func:`read_triples` do.
    """
    missing = [n for n in (ENTITY_TO_ID, RELATION_TO_ID, NUMERIC_TRIPLES) if not (folder / n).is_file()]
    if missing:
        raise UnreadableInput(f"{folder} lacks {', '.join(missing)}; pass --train, --entity-to-id and --relation-to-id")
    vocabulary = read_vocabulary(folder / ENTITY_TO_ID, folder / RELATION_TO_ID)
    return vocabulary, _read_numeric(folder / NUMERIC_TRIPLES, vocabulary)


def _read_numeric(path: Path, vocabulary: Vocabulary) -> TripleTable:
    """Lines of three ids, under a header."""
    entities, relations = len(vocabulary.entities), len(vocabulary.relations)
    ids = array("i")
    for row, (number, line) in enumerate(_lines(path)):
        fields = line.split("\t")
        if row == 0:
            if fields != ["head", "relation", "tail"]:
                raise MalformedTriple(
                    f"{path} line {number}: expected the header head⇥relation⇥tail, found {_quote(line)}"
                )
            continue
        if len(fields) != 3:
            raise _malformed_triple(path, number, line)
        if not all(map(_INTEGER.fullmatch, fields)):
            raise MalformedTriple(
                f"{path} line {number}: {_quote(line)} is not three ids, which a file with the header "
                "head⇥relation⇥tail holds; for labels remove the header"
            )
        head, relation, tail = map(int, fields)
        if not (0 <= head < entities and 0 <= relation < relations and 0 <= tail < entities):
            raise IdOutOfRange(
                f"{path} line {number}: ids {head}, {relation}, {tail} are out of range: "
                f"there are {entities} entities and {relations} relations"
            )
        ids.extend((head, relation, tail))
    if not ids:
        raise EmptyInput(f"{path} holds no triple")
    return _table(ids, array("q", range(len(ids) // 3)), skipped=0)


def _table(ids: array[int], rows: array[int], *, skipped: int) -> TripleTable:
    return TripleTable(
        ids=np.frombuffer(ids, dtype=np.intc).astype(np.int32, copy=False).reshape(-1, 3),  # (3n,) -> (n, 3)
        train_index=np.frombuffer(rows, dtype=np.int64),
        skipped=skipped,
    )


def _resolve(path: Path, number: int, fields: Sequence[str], vocabulary: Vocabulary) -> tuple[int, int, int]:
    """Ids of a line's labels; for an unknown one the error says where it stands and what is near it."""
    head, relation, tail = fields
    try:
        return vocabulary.entity_id(head), vocabulary.relation_id(relation), vocabulary.entity_id(tail)
    except UnknownLabel as e:
        raise type(e)(f"{path} line {number}: {e}; --skip-unknown leaves such lines out") from e


def _malformed_triple(path: Path, number: int, line: str) -> MalformedTriple:
    fields = line.split("\t")
    what = "an empty field" if len(fields) == 3 else f"{len(fields)} tab-separated fields"
    return MalformedTriple(f"{path} line {number}: expected head⇥relation⇥tail, found {what} in {_quote(line)}")


# Id maps and names.


@dataclass(frozen=True, slots=True)
class _Pairs:
    """A file of two columns."""

    numbers: array[int]
    """Line number, from 1, of each pair."""
    left: list[str]
    right: list[str]


def _read_pairs(path: Path, what: str) -> _Pairs:
    """Every line's two fields; `what` describes them for messages."""
    pairs = _Pairs(array("q"), [], [])
    for number, line in _lines(path):
        fields = line.split("\t")
        if len(fields) != 2:
            raise MalformedVocabulary(
                f"{path} line {number}: expected {what}, found {len(fields)} tab-separated fields in {_quote(line)}"
            )
        pairs.numbers.append(number)
        pairs.left.append(fields[0])
        pairs.right.append(fields[1])
    return pairs


def _read_id_map(path: Path, noun: str) -> tuple[str, ...]:
    """Labels in the order of their ids."""
    pairs = _read_pairs(path, "label⇥id or id⇥label")
    has_header, ids_left = _layout(path, pairs)
    first = 1 if has_header else 0
    numbers = pairs.numbers[first:]
    ids, labels = (pairs.left[first:], pairs.right[first:]) if ids_left else (pairs.right[first:], pairs.left[first:])
    if has_header:
        labels = [_unquoted(label) for label in labels]
    if not ids:
        raise EmptyInput(f"{path} holds no {noun}")

    line_of_id: dict[int, int] = {}
    line_of_label: dict[str, int] = {}
    ordered = [""] * len(ids)
    for number, text, label in zip(numbers, ids, labels, strict=True):
        if not _INTEGER.fullmatch(text):
            raise MalformedVocabulary(f"{path} line {number}: id {_quote(text)} of {_quote(label)} is not an integer")
        if not label:
            raise MalformedVocabulary(f"{path} line {number}: id {text} has an empty label")
        i = int(text)
        if i in line_of_id:
            raise DuplicateId(f"{path} lines {line_of_id[i]} and {number}: two {noun} labels have id {i}")
        if label in line_of_label:
            raise DuplicateId(f"{path} lines {line_of_label[label]} and {number}: {_quote(label)} has two ids")
        if not 0 <= i < len(ids):
            raise IdOutOfRange(
                f"{path} line {number}: id {i} of {_quote(label)} is not among 0..{len(ids) - 1}; "
                f"the ids of {len(ids)} labels must leave no gap"
            )
        line_of_id[i] = line_of_label[label] = number
        ordered[i] = label
    return tuple(ordered)


def _layout(path: Path, pairs: _Pairs) -> tuple[bool, bool]:
    """Whether there is a header, and whether the ids are on the left."""
    if not pairs.left:
        return False, False
    header = [pairs.left[0].lower(), pairs.right[0].lower()]
    if header.count("id") == 1 and not any(map(_INTEGER.fullmatch, header)):
        return True, header[0] == "id"
    left, right = _first_non_integer(pairs.left), _first_non_integer(pairs.right)
    size = len(pairs.left)
    if left == right == size:  # labels that look like numbers: only one column should be 0..n−1
        dense = [_is_dense(pairs.left), _is_dense(pairs.right)]
        if pairs.left != pairs.right and dense[0] == dense[1]:
            both = "both columns hold" if dense[0] else "neither column holds"
            raise MalformedVocabulary(f"{path}: {both} the ids 0..{size - 1}; add a first line id⇥label or label⇥id")
        return False, dense[0]
    if size in (left, right):
        return False, left == size
    if left == right:
        raise MalformedVocabulary(
            f"{path} line {pairs.numbers[left]}: neither {_quote(pairs.left[left])} nor "
            f"{_quote(pairs.right[right])} is an id; expected label⇥id or id⇥label, or one of these as the first line"
        )
    return False, left > right  # the better of two columns; the id that is no integer is named later


def _first_non_integer(column: Sequence[str]) -> int:
    """Position of the first field that is not an integer; the length if all are."""
    return next((i for i, text in enumerate(column) if not _INTEGER.fullmatch(text)), len(column))


def _is_dense(column: Sequence[str]) -> bool:
    """Whether the fields are 0..n−1 in some order, written without leading zeros."""
    return len(set(column)) == len(column) and all(
        str(i) == text and 0 <= i < len(column) for text in column for i in (int(text),)
    )


def _unquoted(field: str) -> str:
    """A CSV field without its quotes."""
    if len(field) >= 2 and field[0] == field[-1] == '"':
        return field[1:-1].replace('""', '"')
    return field


def _read_names(path: Path, entities: Sequence[str], relations: Sequence[str]) -> tuple[dict[int, str], dict[int, str]]:
    """Names by entity id and by relation id."""
    pairs = _read_pairs(path, "label⇥name")
    ids = {
        **{label: (1, i) for i, label in enumerate(relations)},
        **{label: (0, i) for i, label in enumerate(entities)},
    }
    names: tuple[dict[int, str], dict[int, str]] = ({}, {})
    for label, name in zip(pairs.left, pairs.right, strict=True):
        if label in ids and name:
            kind, i = ids[label]
            names[kind].setdefault(i, name)
    if not any(names):
        raise MalformedVocabulary(
            f"{path}: none of its {len(pairs.left)} labels is an entity or a relation; expected lines label⇥name"
        )
    return names


# Lines.


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number, from 1, and text of every line that is not blank.

    Raises :class:`UnreadableInput`, naming the line.
    """
    number = 0
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if zipped else path.open("rb", buffering=_BUFFER_BYTES) as f:
            while line := f.readline(MAX_LINE_BYTES):
                number += 1
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if len(line) >= MAX_LINE_BYTES:
                    raise UnreadableInput(
                        f"{path} line {number} is longer than {MAX_LINE_BYTES} bytes: not a text file?"
                    )
                text = line.rstrip(b"\r\n").decode("utf-8")
                if text.strip(" "):
                    yield number, text
    except UnicodeDecodeError as e:
        raise UnreadableInput(
            f"{path} line {number} is not UTF-8: {e.reason} at byte {e.start}; convert the file"
        ) from e
    except (EOFError, gzip.BadGzipFile, zlib.error) as e:
        raise UnreadableInput(f"{path} is a truncated or damaged gzip file after line {number}: {e}") from e
    except OSError as e:
        raise UnreadableInput(f"cannot read {path}: {e.strerror}") from e


def _quote(text: str) -> str:
    """A field or line for a message: one line, of bounded length."""
    return repr(text if len(text) <= _LONGEST_QUOTE else text[:_LONGEST_QUOTE] + "…")
