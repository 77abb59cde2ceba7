"""Triples from tab-separated files, from columns and from RDF, read as streams.

Labels are taken as they are, but for the quotes of CSV, with which PyKEEN reads files. Of RDF, IRIs are the labels.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from kgtrace_indexer.inputs import columnar, rdf
from kgtrace_indexer.inputs.text_files import INTEGER, counted, csv_fields, line_ends, quote, read_lines
from kgtrace_store.errors import BadRequest, EmptyInput, IdOutOfRange, MalformedTriple, UnknownLabel
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
    """Lines left out, because of an unknown label or as `left_out` says."""
    labelled: bool = True
    """Whether the file holds labels, not ids."""
    other_terms: int = 0
    """Statements of RDF with a literal or blank node. They are no triples, so rows do not count them."""
    prefixes: Mapping[str, str] = field(default_factory=dict)
    """IRIs by prefix that an RDF file declares."""
    left_out: int = 0
    """Lines left out because a file of triples to skip names them."""

    def warnings(self, source: Path) -> list[str]:
        """Return what to tell people about the file that was read."""
        if not self.other_terms:
            return []
        return [f"{self.other_terms:,} statements of {source} have a literal or a blank node: they were left out"]


def out_of_range(ids: np.ndarray, entities: int, relations: int) -> tuple[int, str] | None:
    """Return a row of triples (n, 3) with an id that the model lacks, and the reason; None if there is none."""
    for column, (noun, limit) in enumerate((("head", entities), ("relation", relations), ("tail", entities))):
        wrong = np.flatnonzero((ids[:, column] < 0) | (ids[:, column] >= limit))
        if len(wrong):
            return int(wrong[0]), f"{noun} id {ids[wrong[0], column]} is out of range: the model has {limit}"
    return None


def read_triples(
    path: Path,
    vocabulary: Vocabulary,
    *,
    skip_unknown: bool = False,
    ids: bool = False,
    only_iris: bool = False,
) -> TripleTable:
    """Read ``head⇥relation⇥tail`` lines of labels, or of ids if `ids` is on.

    A file whose first line is the header ``head⇥relation⇥tail`` holds ids, too, as PyKEEN's
    ``numeric_triples.tsv.gz`` does, unless these three are labels themselves. A file whose first line is the number of
    those that follow is OpenKE's: lines of the ids of head, *tail*, relation. A line with a label that is not known, or
    without three fields, is read once more with the quotes of CSV undone, as PyKEEN reads files.

    Parquet and Arrow files, told by their names, have three columns; see `columnar`.

    N-Triples, N-Quads, Turtle and TriG are told by the file's name, such as ``dump.nt.gz``; their IRIs are the labels.
    Statements with a literal or blank node are counted and left out, or with `only_iris` an error.

    Raises
    ------
    UnreadableInput
        The file is missing, truncated or not UTF-8.
    MalformedTriple
        A line has not three fields, or one is empty; or a statement of RDF cannot be parsed, or is refused.
    UnknownEntity, UnknownRelation
        A label is not in the vocabulary and `skip_unknown` is off.
    IdOutOfRange
        An id is not in the vocabulary.
    EmptyInput
        There is no triple, or none with known labels.
    BadRequest
        `ids` is on for RDF, or for columns of labels.
    MissingExtra
        RDF cannot be read without pyoxigraph, Parquet and Arrow not without pyarrow.
    """
    if columnar.is_columnar(path):
        return _read_columns(path, vocabulary, skip_unknown=skip_unknown, ids=ids)
    if rdf.syntax(path) is not None:
        if ids:
            raise BadRequest(f"{path} is RDF, whose terms are labels, not ids: leave --ids out")
        return _read_rdf(path, vocabulary, skip_unknown=skip_unknown, only_iris=only_iris)
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
            return vocabulary.find(head, relation, tail) if vocabulary.prefixes else None

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
            raise _unknown_label(f"{path} line {number}", fields, vocabulary, look_like_ids=look_like_ids)
        triples.extend(triple)
        rows.append(row)
    _require_some(path, rows, row + 1, _SAY_IDS if look_like_ids else "")
    return _table(triples, rows, skipped=row + 1 - len(rows))


def _read_rdf(path: Path, vocabulary: Vocabulary, *, skip_unknown: bool, only_iris: bool) -> TripleTable:
    """Statements of three IRIs."""
    file = rdf.RdfFile(path, MalformedTriple)
    entities = {label: i for i, label in enumerate(vocabulary.entities)}
    relations = {label: i for i, label in enumerate(vocabulary.relations)}
    triples = array("i")
    rows = array("q")
    row, other_terms = -1, 0
    for statement in file.statements():
        if statement is None:
            other_terms += 1
            if only_iris:
                raise MalformedTriple(f"{path} {file.place(row + 1 + other_terms)}: {_OTHER_TERM}")
            continue
        row += 1
        head, relation, tail = statement
        try:
            triples.extend((entities[head], relations[relation], entities[tail]))
            rows.append(row)
        except KeyError:
            if not skip_unknown:
                place = f"{path} {file.place(row + 1 + other_terms)}"
                raise _unknown_label(place, statement, vocabulary) from None
    _require_some(path, rows, row + 1, f"; {other_terms:,} statements have a literal or blank node")
    return _table(triples, rows, skipped=row + 1 - len(rows), other_terms=other_terms, prefixes=file.prefixes)


def _read_columns(path: Path, vocabulary: Vocabulary, *, skip_unknown: bool, ids: bool) -> TripleTable:
    """Columns of labels or ids."""
    triples = array("i")
    rows = array("q")
    count, labelled = 0, False
    file = columnar.ColumnFile(path, vocabulary, ids)
    for chunk in file.chunks():
        known = (chunk.ids != columnar.UNKNOWN).all(1)
        for i in np.flatnonzero(~known).tolist():
            fields = file.fields(chunk, i)
            if (triple := vocabulary.find(*fields)) is not None:
                chunk.ids[i], known[i] = triple, True
            elif not skip_unknown:
                raise _unknown_label(f"{path} row {chunk.start + i}, counted from 0", fields, vocabulary)
        triples.frombytes(chunk.ids[known].tobytes())
        rows.frombytes((chunk.start + np.flatnonzero(known)).tobytes())
        count += len(chunk.ids)
        labelled = chunk.labelled
    _require_some(path, rows, count, "")
    return _table(triples, rows, skipped=count - len(rows), labelled=labelled)


def _require_some(path: Path, rows: Sequence[int], count: int, hint: str) -> None:
    """Raise `EmptyInput` if none of the triples of a file was found."""
    if not count:
        raise EmptyInput(f"{path} holds no triple")
    if not rows:
        raise EmptyInput(f"{path} holds no triple with known labels: all {count} were skipped{hint}")


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


def _table(triples: array[int], rows: array[int], **facts: Any) -> TripleTable:
    return TripleTable(
        np.frombuffer(triples, dtype=np.intc).astype(np.int32, copy=False).reshape(-1, 3),  # (3n,) -> (n, 3)
        np.frombuffer(rows, dtype=np.int64),
        **facts,
    )


_SAY_IDS = "; if the lines hold ids, say so with --ids"
_OTHER_TERM = "a literal or blank node is no entity; without --only-iris such statements are left out"


def _unknown_label(
    place: str, fields: Sequence[str], vocabulary: Vocabulary, *, look_like_ids: bool = False
) -> UnknownLabel:
    """The error about a triple's unknown label, which says where it is and what is near it."""
    head, relation, tail = fields
    try:
        vocabulary.entity_id(head), vocabulary.relation_id(relation), vocabulary.entity_id(tail)
    except UnknownLabel as e:
        hint = _SAY_IDS if look_like_ids else "; --skip-unknown leaves such lines out"
        return type(e)(f"{place}: {e}{hint}", e.label, e.nearest)
    raise AssertionError(f"{place}: all labels are known")


def _malformed_triple(path: Path, number: int, line: str) -> MalformedTriple:
    fields = line.split("\t")
    description = "an empty field" if len(fields) == 3 else f"{len(fields)} tab-separated fields"
    return MalformedTriple(
        f"{path} line {number}: expected head⇥relation⇥tail, found {description} in {quote(line)}{line_ends(line)}"
    )
