"""Triples from tab-separated files, read as streams.

Labels are taken as they are, but for the quotes of CSV, with which PyKEEN reads files.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from kgtrace_indexer.inputs.text_files import INTEGER, counted, csv_fields, line_ends, quote, read_lines
from kgtrace_store.errors import EmptyInput, IdOutOfRange, MalformedTriple, UnknownLabel
from kgtrace_store.vocabulary import Vocabulary

HEADER = ["head", "relation", "tail"]
"""First line of a file of ids."""


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
    """Return a row of triples (n, 3) with an id that the model lacks, and the reason; None if there is none."""
    for column, (noun, limit) in enumerate((("head", entities), ("relation", relations), ("tail", entities))):
        wrong = np.flatnonzero((ids[:, column] < 0) | (ids[:, column] >= limit))
        if len(wrong):
            return int(wrong[0]), f"{noun} id {ids[wrong[0], column]} is out of range: the model has {limit}"
    return None


def read_triples(path: Path, vocabulary: Vocabulary, *, skip_unknown: bool = False, ids: bool = False) -> TripleTable:
    """Read ``head⇥relation⇥tail`` lines of labels, or of ids if `ids` is on.

    A file whose first line is the header ``head⇥relation⇥tail`` holds ids, too, as PyKEEN's
    ``numeric_triples.tsv.gz`` does, unless these three are labels themselves. A file whose first line is the number of
    those that follow is OpenKE's: lines of the ids of head, *tail*, relation. A line with a label that is not known, or
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
    lines = read_lines(path)
    first = next(lines, None)
    if first is not None and INTEGER.fullmatch(first[1].strip()):
        return _read_numeric(path, _in_order(counted(path, first, lines)), vocabulary)
    lines = lines if first is None else chain([first], lines)
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

    triples = array("i")
    rows = array("q")
    row = -1
    look_like_ids = vocabulary.entity_ref("0") == 0
    for number, line in lines:
        fields = line.split("\t")
        triple = look_up(fields) if len(fields) == 3 else None
        if triple is None and '"' in line:
            unquoted = csv_fields(line) or fields
            triple = look_up(unquoted) if len(unquoted) == 3 else None
            fields = unquoted if len(fields) != 3 else fields
        if len(fields) != 3 or not all(fields):
            raise _malformed_triple(path, number, line)
        row += 1
        look_like_ids = look_like_ids and all(map(INTEGER.fullmatch, fields))
        if triple is None:
            if row == 0 and fields == HEADER:
                return _read_numeric(path, chain([(number, line)], lines), vocabulary)
            if skip_unknown:
                continue
            triple = _resolve(path, number, fields, vocabulary, look_like_ids=look_like_ids)
        triples.extend(triple)
        rows.append(row)
    if row < 0:
        raise EmptyInput(f"{path} holds no triple")
    if not rows:
        hint = _SAY_IDS if look_like_ids else ""
        raise EmptyInput(f"{path} holds no triple with known labels: all {row + 1} were skipped{hint}")
    return _table(triples, rows, skipped=row + 1 - len(rows))


def _in_order(lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Put the ids of OpenKE's lines, head tail relation, into the order of all other files."""
    for number, line in lines:
        fields = line.split()
        yield number, "\t".join([fields[0], fields[2], fields[1]] if len(fields) == 3 else fields)


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
        if not all(map(INTEGER.fullmatch, fields)):
            raise MalformedTriple(
                f"{path} line {number}: {quote(line)} is not three ids, which a file with the header "
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
    """Ids of a line's labels; the error for an unknown label gives its line and the nearest labels."""
    head, relation, tail = fields
    try:
        return vocabulary.entity_id(head), vocabulary.relation_id(relation), vocabulary.entity_id(tail)
    except UnknownLabel as e:
        hint = _SAY_IDS if look_like_ids else "; --skip-unknown leaves such lines out"
        raise type(e)(f"{path} line {number}: {e}{hint}", e.label, e.nearest) from e


def _malformed_triple(path: Path, number: int, line: str) -> MalformedTriple:
    fields = line.split("\t")
    description = "an empty field" if len(fields) == 3 else f"{len(fields)} tab-separated fields"
    return MalformedTriple(
        f"{path} line {number}: expected head⇥relation⇥tail, found {description} in {quote(line)}{line_ends(line)}"
    )
