"""Id maps, names and triples from tab-separated files, read as streams.

All files may be compressed with gzip, bzip2 or xz, or be the only file of a zip archive (told by content, not by name);
they may start with a byte-order mark, end lines with CRLF and hold blank lines. Labels are taken as they are, but for
the quotes of CSV where PyKEEN writes or reads them.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import re
import zipfile
import zlib
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np

from kgtrace_store.errors import (
    DuplicateId,
    EmptyInput,
    IdOutOfRange,
    InputError,
    MalformedTriple,
    MalformedVocabulary,
    UnknownLabel,
    UnreadableInput,
    UnreadableModel,
    VocabularyMismatch,
)
from kgtrace_store.vocabulary import Vocabulary

ENTITY_TO_ID = "entity_to_id.tsv.gz"
RELATION_TO_ID = "relation_to_id.tsv.gz"
NUMERIC_TRIPLES = "numeric_triples.tsv.gz"
BASE = "base.pth"
"""Files of PyKEEN's ``training_triples`` folder."""

HEADER = ["head", "relation", "tail"]
"""First line of a file of ids."""

MAX_LINE_BYTES = 1 << 20
"""A longer line means that the file is not text; reading it whole could take all memory."""

_BUFFER_BYTES = 1 << 20
_INTEGER = re.compile(r"-?[0-9]{1,18}")
_QUOTED = re.compile(r'"((?:[^"]|"")*)"(?=\t|\r?\Z)')
"""A field in the quotes of CSV: it may hold anything, and quotes twice."""
_LONGEST_QUOTE = 100

_IN_COMMON = 0.5
"""Share of the triples of the smaller of two sets that must be in the other one, too, if both are of one model."""


@dataclass(frozen=True, slots=True, eq=False)
class TripleTable:
    """Triples as ids, in the order of the file."""

    ids: np.ndarray
    """(n, 3) int32: head, relation, tail."""
    train_index: np.ndarray
    """(n,) int64: row in the file from 0, counting neither header nor blank lines, but counting skipped ones."""
    skipped: int
    """Lines left out because of an unknown label."""
    labelled: bool = True
    """Whether the file holds labels, not ids."""


def out_of_range(ids: np.ndarray, entities: int, relations: int) -> tuple[int, str] | None:
    """Return a row of triples (n, 3) with an id that a model of so many lacks, and what is wrong with it, if any is."""
    for column, (noun, limit) in enumerate((("head", entities), ("relation", relations), ("tail", entities))):
        wrong = np.flatnonzero((ids[:, column] < 0) | (ids[:, column] >= limit))
        if len(wrong):
            return int(wrong[0]), f"{noun} id {ids[wrong[0], column]} is out of range: the model has {limit}"
    return None


def read_vocabulary(entity_to_id: Path, relation_to_id: Path, names: Path | None = None) -> Vocabulary:
    """Read two id maps and, optionally, human-readable names.

    An id map has two columns. A header ``id⇥label`` or ``label⇥id`` says which is which, and labels are then quoted
    as in CSV, which is how PyKEEN writes them: they may hold tabs and line breaks, and CR before the end of a line
    belongs to the label unless every line has it. Without a header the ids are the column that holds 0..n−1.
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
    return _named(entities, relations, names)


def read_triples(path: Path, vocabulary: Vocabulary, *, skip_unknown: bool = False, ids: bool = False) -> TripleTable:
    """Read ``head⇥relation⇥tail`` lines of labels, or of ids if `ids` is on.

    A file whose first line is the header ``head⇥relation⇥tail`` holds ids, too, as PyKEEN's
    ``numeric_triples.tsv.gz`` does, unless these three are labels themselves. A line with a label that is not known, or
    without three fields, is read once more with the quotes of CSV undone, as PyKEEN reads files.

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
    lines = _lines(path)
    if ids:
        return _read_numeric(path, lines, vocabulary)
    entities = {label: i for i, label in enumerate(vocabulary.entities)}
    relations = {label: i for i, label in enumerate(vocabulary.relations)}

    def look_up(fields: Sequence[str]) -> tuple[int, int, int] | None:
        head, relation, tail = fields
        try:
            return entities[head], relations[relation], entities[tail]
        except KeyError:
            return None

    found = array("i")
    rows = array("q")
    row = -1
    look_like_ids = vocabulary.entity_ref("0") == 0
    for number, line in lines:
        fields = line.split("\t")
        triple = look_up(fields) if len(fields) == 3 else None
        if triple is None and '"' in line:
            unquoted = _csv_fields(line) or fields
            triple = look_up(unquoted) if len(unquoted) == 3 else None
            fields = unquoted if len(fields) != 3 else fields
        if len(fields) != 3 or not all(fields):
            raise _malformed_triple(path, number, line)
        row += 1
        look_like_ids = look_like_ids and all(map(_INTEGER.fullmatch, fields))
        if triple is None:
            if row == 0 and fields == HEADER:
                return _read_numeric(path, chain([(number, line)], lines), vocabulary)
            if skip_unknown:
                continue
            triple = _resolve(path, number, fields, vocabulary, look_like_ids=look_like_ids)
        found.extend(triple)
        rows.append(row)
    if row < 0:
        raise EmptyInput(f"{path} holds no triple")
    if not rows:
        hint = _SAY_IDS if look_like_ids else ""
        raise EmptyInput(f"{path} holds no triple with known labels: all {row + 1} were skipped{hint}")
    return _table(found, rows, skipped=row + 1 - len(rows))


def read_training_folder(folder: Path) -> tuple[Vocabulary, TripleTable]:
    """Read PyKEEN's ``training_triples`` folder: two id maps and the triples as ids.

    Raises as :func:`read_folder_vocabulary` and :func:`read_triples` do.
    """
    vocabulary = read_folder_vocabulary(folder)
    path = folder / NUMERIC_TRIPLES
    return vocabulary, _read_numeric(path, _lines(path), vocabulary)


def read_folder_vocabulary(
    folder: Path,
    *,
    entity_to_id: Path | None = None,
    relation_to_id: Path | None = None,
    names: Path | None = None,
) -> Vocabulary:
    """Read the id maps of PyKEEN's ``training_triples`` folder, or in their place those given, and names.

    A folder without id maps is that of a ``CoreTriplesFactory``, whose triples have no labels: ids serve as labels.

    Raises
    ------
    UnreadableInput
        The folder lacks files.
    InputError
        As :func:`read_vocabulary`.
    """
    paths = (entity_to_id or folder / ENTITY_TO_ID, relation_to_id or folder / RELATION_TO_ID)
    if has_labels(folder) or not (folder / NUMERIC_TRIPLES).is_file():
        missing = [path.name for path in (*paths, folder / NUMERIC_TRIPLES) if not path.is_file()]
        if missing:
            raise UnreadableInput(
                f"{folder} lacks {', '.join(missing)}; pass --train, --entity-to-id and --relation-to-id"
            )
    if None in (entity_to_id, relation_to_id) and not has_labels(folder):
        sizes = _sizes(folder)
        given = (entity_to_id, "entity"), (relation_to_id, "relation")
        entities, relations = (
            tuple(map(str, range(size))) if path is None else _read_id_map(path, noun)
            for (path, noun), size in zip(given, sizes, strict=True)
        )
        return _named(entities, relations, names)
    return read_vocabulary(*paths, names)


def has_labels(folder: Path) -> bool:
    """Whether PyKEEN's ``training_triples`` folder has an id map, and so labels."""
    return any((folder / name).is_file() for name in (ENTITY_TO_ID, RELATION_TO_ID))


def check_against_folder(folder: Path, vocabulary: Vocabulary, table: TripleTable, source: Path) -> None:
    """Compare id maps and triples, read from `source`, with those that PyKEEN saved beside the model.

    Ids that were made anew are within the model's tables and mean something else. Files of the folder that are absent,
    or cannot be read, are compared with nothing.

    Raises
    ------
    VocabularyMismatch
        A label has another id there; or where labels do not tell, most of the triples are not there.
    """
    try:
        own = read_vocabulary(folder / ENTITY_TO_ID, folder / RELATION_TO_ID)
    except InputError:
        own = Vocabulary((), ())
    tables = (
        ("entity", own.entities, vocabulary.entities),
        ("relation", own.relations, vocabulary.relations),
    )
    for noun, theirs, ours in tables:
        ids = {label: i for i, label in enumerate(theirs)}
        if wrong := [(label, i) for i, label in enumerate(ours) if ids.get(label, i) != i]:
            label, i = wrong[0]
            raise VocabularyMismatch(
                f"{noun} {_quote(label)} has id {i} in the id map given and {ids[label]} in {folder}, which was saved "
                f"with the model ({len(wrong):,} of {len(ours):,} differ): use the id maps it was trained with"
            )
    if table.labelled and all(tuple(theirs) == tuple(ours) for _, theirs, ours in tables):
        return
    path = folder / NUMERIC_TRIPLES
    try:
        trained = _read_numeric(path, _lines(path), vocabulary).ids
    except InputError:
        return
    a, b = (np.unique(ids, axis=0) for ids in (trained, table.ids))
    common = len(a) + len(b) - len(np.unique(np.concatenate([a, b]), axis=0))
    if common < _IN_COMMON * min(len(a), len(b)):
        raise VocabularyMismatch(
            f"by the id maps given, {common:,} of the {len(b):,} triples of {source} are among the {len(a):,} of "
            f"{path}, saved with the model: use the id maps and the triples it was trained with"
        )


def _sizes(folder: Path) -> tuple[int, int]:
    """Number of entities and of relations, without inverses, in a folder without id maps."""
    from kgtrace_indexer.inputs.torch_files import (
        open_archive,
    )  # imports torch, which the rest of this module does without

    try:
        with open_archive(folder / BASE) as archive:
            facts = archive.root if isinstance(archive.root, dict) else {}
    except UnreadableModel as e:
        raise UnreadableInput(
            f"{folder} has no labels, and how many ids there are cannot be read: {e}; "
            "pass --train, --entity-to-id and --relation-to-id"
        ) from e
    sizes = facts.get("num_entities"), facts.get("num_relations")
    if not all(type(size) is int and size > 0 for size in sizes):
        raise UnreadableInput(
            f"{folder / BASE} does not say how many entities and relations there are: "
            "pass --train, --entity-to-id and --relation-to-id"
        )
    return sizes  # type: ignore[return-value]


def _read_numeric(path: Path, lines: Iterable[tuple[int, str]], vocabulary: Vocabulary) -> TripleTable:
    """Lines of three ids, under a header or not."""
    entities, relations = len(vocabulary.entities), len(vocabulary.relations)
    ids = array("i")
    first = True
    for number, line in lines:
        fields = line.split("\t")
        if first and fields == HEADER:
            first = False
            continue
        first = False
        if len(fields) != 3:
            raise _malformed_triple(path, number, line)
        if not all(map(_INTEGER.fullmatch, fields)):
            raise MalformedTriple(
                f"{path} line {number}: {_quote(line)} is not three ids, which a file with the header "
                "head⇥relation⇥tail holds, and every file with --ids; for labels remove the header, and leave --ids out"
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
    return _table(ids, array("q", range(len(ids) // 3)), skipped=0, labelled=False)


def _table(ids: array[int], rows: array[int], *, skipped: int, labelled: bool = True) -> TripleTable:
    return TripleTable(
        ids=np.frombuffer(ids, dtype=np.intc).astype(np.int32, copy=False).reshape(-1, 3),  # (3n,) -> (n, 3)
        train_index=np.frombuffer(rows, dtype=np.int64),
        skipped=skipped,
        labelled=labelled,
    )


_SAY_IDS = "; if the lines hold ids, say so with --ids"


def _resolve(
    path: Path, number: int, fields: Sequence[str], vocabulary: Vocabulary, *, look_like_ids: bool
) -> tuple[int, int, int]:
    """Ids of a line's labels; for an unknown one the error says where it stands and what is near it."""
    head, relation, tail = fields
    try:
        return vocabulary.entity_id(head), vocabulary.relation_id(relation), vocabulary.entity_id(tail)
    except UnknownLabel as e:
        hint = _SAY_IDS if look_like_ids else "; --skip-unknown leaves such lines out"
        raise type(e)(f"{path} line {number}: {e}{hint}", e.label, e.nearest) from e


def _malformed_triple(path: Path, number: int, line: str) -> MalformedTriple:
    fields = line.split("\t")
    what = "an empty field" if len(fields) == 3 else f"{len(fields)} tab-separated fields"
    return MalformedTriple(
        f"{path} line {number}: expected head⇥relation⇥tail, found {what} in {_quote(line)}{_line_ends(line)}"
    )


# Id maps and names.


@dataclass(frozen=True, slots=True)
class _Pairs:
    """A file of two columns."""

    numbers: array[int]
    """Line number, from 1, of each pair."""
    left: list[str]
    right: list[str]


def _read_pairs(path: Path, what: str, rows: Iterable[tuple[int, Sequence[str]]]) -> _Pairs:
    """The two fields of every row; `what` describes them for messages."""
    pairs = _Pairs(array("q"), [], [])
    for number, fields in rows:
        if len(fields) != 2:
            line = "\t".join(fields)
            raise MalformedVocabulary(
                f"{path} line {number}: expected {what}, found {len(fields)} tab-separated fields in "
                f"{_quote(line)}{_line_ends(line)}"
            )
        pairs.numbers.append(number)
        pairs.left.append(fields[0])
        pairs.right.append(fields[1])
    return pairs


def _read_id_map(path: Path, noun: str) -> tuple[str, ...]:
    """Labels in the order of their ids."""
    lines = _text_lines(path)
    first = next(((number, text) for number, text in lines if not _is_blank(text)), None)
    if first is None:
        raise EmptyInput(f"{path} holds no {noun}")
    has_header = _is_header(first[1].rstrip("\r").split("\t"))
    lines = chain([first], lines)
    rows = _csv_rows(lines) if has_header else ((number, line.split("\t")) for number, line in _without_ends(lines))
    pairs = _read_pairs(path, "label⇥id or id⇥label", rows)
    if has_header and all(right.endswith("\r") for right in pairs.right[:-1]):  # the last line may lack its end
        pairs.right[:] = [right.removesuffix("\r") for right in pairs.right]
    ids_left = pairs.left[0].lower() == "id" if has_header else _ids_are_left(path, pairs)
    start = 1 if has_header else 0
    numbers = pairs.numbers[start:]
    ids, labels = (pairs.left[start:], pairs.right[start:]) if ids_left else (pairs.right[start:], pairs.left[start:])
    if not ids:
        raise EmptyInput(f"{path} holds no {noun}")

    line_of_id: dict[int, int] = {}
    line_of_label: dict[str, int] = {}
    ordered = [""] * len(ids)
    for number, text, label in zip(numbers, ids, labels, strict=True):
        if not _INTEGER.fullmatch(text):
            raise MalformedVocabulary(f"{path} line {number}: id {_quote(text)} of {_quote(label)} is not an integer")
        if not label:
            raise MalformedVocabulary(f"{path} line {number}: id {text} has an empty label: give it one")
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


def _is_header(fields: Sequence[str]) -> bool:
    header = [field.lower() for field in fields]
    return len(header) == 2 and header.count("id") == 1 and not any(map(_INTEGER.fullmatch, header))


def _ids_are_left(path: Path, pairs: _Pairs) -> bool:
    """Whether the ids are in the left column of a file without header."""
    left, right = _first_non_integer(pairs.left), _first_non_integer(pairs.right)
    size = len(pairs.left)
    if left == right == size:  # labels that look like numbers: only one column should be 0..n−1
        dense = [_is_dense(pairs.left), _is_dense(pairs.right)]
        if pairs.left != pairs.right and dense[0] == dense[1]:
            both = "both columns hold" if dense[0] else "neither column holds"
            raise MalformedVocabulary(f"{path}: {both} the ids 0..{size - 1}; add a first line id⇥label or label⇥id")
        return dense[0]
    if size in (left, right):
        return left == size
    if left == right:
        raise MalformedVocabulary(
            f"{path} line {pairs.numbers[left]}: neither {_quote(pairs.left[left])} nor "
            f"{_quote(pairs.right[right])} is an id; expected label⇥id or id⇥label, or one of these as the first line"
        )
    return left > right  # the better of two columns; the id that is no integer is named later


def _first_non_integer(column: Sequence[str]) -> int:
    """Position of the first field that is not an integer; the length if all are."""
    return next((i for i, text in enumerate(column) if not _INTEGER.fullmatch(text)), len(column))


def _is_dense(column: Sequence[str]) -> bool:
    """Whether the fields are 0..n−1 in some order, written without leading zeros."""
    return len(set(column)) == len(column) and all(
        str(i) == text and 0 <= i < len(column) for text in column for i in (int(text),)
    )


def _named(entities: Sequence[str], relations: Sequence[str], names: Path | None) -> Vocabulary:
    if names is None:
        return Vocabulary(entities, relations)
    return Vocabulary(entities, relations, *_read_names(names, entities, relations))


def _read_names(path: Path, entities: Sequence[str], relations: Sequence[str]) -> tuple[dict[int, str], dict[int, str]]:
    """Names by entity id and by relation id."""
    pairs = _read_pairs(path, "label⇥name", ((number, line.split("\t")) for number, line in _lines(path)))
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
    return _without_ends(_text_lines(path))


def _without_ends(lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, without CR at their ends."""
    return ((number, text.rstrip("\r")) for number, text in lines if not _is_blank(text))


def _is_blank(text: str) -> bool:
    return not text.rstrip("\r").strip(" ")


def _csv_rows(lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, list[str]]]:
    """Number of the first line, and fields, of every row of a file with the quotes of CSV; CR at the end is kept.

    A field in quotes may go on over several lines. Quotes that CSV would not write are taken as they are.
    """
    lines = iter(lines)
    waiting: deque[tuple[int, str]] = deque()
    while line := waiting.popleft() if waiting else next(lines, None):
        number, text = line
        if _is_blank(text):
            continue
        fields = _csv_fields(text)
        if fields is None and text.count('"') % 2:
            taken: list[str] = []
            room, ended = MAX_LINE_BYTES, False
            while room > 0 and not ended and (line := waiting.popleft() if waiting else next(lines, None)):
                taken.append(line[1])
                room, ended = room - len(line[1]) - 1, line[1].count('"') % 2 == 1
            fields = _csv_fields("\n".join([text, *taken]))
            if fields is None:
                waiting.extendleft((number + len(taken) - i, text) for i, text in enumerate(reversed(taken)))
        yield number, text.split("\t") if fields is None else fields


def _csv_fields(text: str) -> list[str] | None:
    """The fields of a row with the quotes of CSV undone; None if a quote opens a field and none ends it."""
    if '"' not in text:
        return text.split("\t")
    fields = []
    at = 0
    while True:
        quoted = _QUOTED.match(text, at)
        if quoted is None and text.startswith('"', at):
            return None
        start = at if quoted is None else quoted.end()
        end = text.find("\t", start)
        end = len(text) if end < 0 else end
        fields.append(text[start:end] if quoted is None else quoted[1].replace('""', '"') + text[start:end])
        if end == len(text):
            return fields
        at = end + 1


def _text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number, from 1, and text of every line, up to its LF.

    Raises :class:`UnreadableInput`, naming the line.
    """
    number = 0
    kind = None
    try:
        with ExitStack() as stack:
            raw = stack.enter_context(io.BufferedReader(io.FileIO(path), _BUFFER_BYTES))
            kind = _compression(raw.peek(10)[:10])
            f = raw if kind is None else stack.enter_context(_decompressed(path, raw, kind))
            while line := f.readline(MAX_LINE_BYTES):
                number += 1
                if number == 1:
                    _check_encoding(path, line)
                    line = line.removeprefix(codecs.BOM_UTF8)
                if len(line) >= MAX_LINE_BYTES:
                    why = "its lines end in CR alone: end them with LF" if b"\r" in line else "not a text file?"
                    raise UnreadableInput(f"{path} line {number} is longer than {MAX_LINE_BYTES} bytes: {why}")
                yield number, line.removesuffix(b"\n").decode("utf-8")
    except UnicodeDecodeError as e:
        raise UnreadableInput(
            f"{path} line {number} is not UTF-8: {e.reason} at byte {e.start}; convert the file"
        ) from e
    except (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile) as e:
        raise UnreadableInput(f"{path} is a truncated or damaged {kind} file after line {number}: {e}") from e
    except OSError as e:
        if kind is not None and e.errno is None:  # not the system's, but what gzip and bz2 say of their data
            raise UnreadableInput(f"{path} is a truncated or damaged {kind} file after line {number}: {e}") from e
        raise UnreadableInput(f"cannot read {path}: {e.strerror}") from e


def _compression(head: bytes) -> str | None:
    """What a file that begins so is compressed with, if with anything that is read here."""
    if head.startswith(b"\x1f\x8b"):
        return "gzip"
    if head.startswith(b"BZh") and head[4:] in (b"1AY&SY", b"\x17rE8P\x90"):  # the first block, or the end of none
        return "bzip2"
    if head.startswith(b"\xfd7zXZ\x00"):
        return "xz"
    return "zip" if head.startswith(b"PK\x03\x04") else None


def _decompressed(path: Path, raw: io.BufferedReader[Any], kind: str) -> IO[bytes]:
    """The content of a compressed file; of a zip archive, that of its only file."""
    if kind == "gzip":
        return gzip.GzipFile(fileobj=raw)  # type: ignore[return-value]
    if kind == "bzip2":
        return bz2.BZ2File(raw)
    if kind == "xz":
        return lzma.LZMAFile(raw)
    archive = zipfile.ZipFile(raw)
    files = [entry for entry in archive.infolist() if not entry.is_dir() and not entry.filename.startswith("__MACOSX/")]
    if len(files) != 1:
        raise UnreadableInput(
            f"{path} is a zip archive of {len(files)} files, not of one: unpack it and name one of them"
        )
    try:
        return archive.open(files[0])
    except (RuntimeError, NotImplementedError) as e:  # encrypted, or compressed in a way that Python does not know
        raise UnreadableInput(f"{path} cannot be unpacked here: {e}; unpack it first") from e


def _check_encoding(path: Path, line: bytes) -> None:
    """Raise `UnreadableInput` for a file that is text in another encoding, or compressed in another way."""
    if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UnreadableInput(f"{path} line 1 is not UTF-8: it is UTF-16; convert it: iconv -f UTF-16 -t UTF-8")
    if line.startswith(b"\x28\xb5\x2f\xfd"):
        raise UnreadableInput(f"{path} is compressed with Zstandard, which is not read here: decompress it first")


def _line_ends(line: str) -> str:
    """Say in a message what is wrong with a line that holds CR."""
    return "; its lines end in CR alone: end them with LF" if "\r" in line else ""


def _quote(text: str) -> str:
    """A field or line for a message: one line, of bounded length."""
    return repr(text if len(text) <= _LONGEST_QUOTE else text[:_LONGEST_QUOTE] + "…")
