"""Id maps and names from tab-separated files; labels may have the quotes of CSV where PyKEEN writes them.

Names may also be those of an RDF file.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from kgtrace_indexer.inputs import rdf
from kgtrace_indexer.inputs.text_files import (
    INTEGER,
    counted,
    csv_rows,
    is_blank,
    line_ends,
    quote,
    read_lines,
    text_lines,
    without_ends,
)
from kgtrace_store.errors import DuplicateId, EmptyInput, IdOutOfRange, MalformedVocabulary
from kgtrace_store.vocabulary import Vocabulary


def read_vocabulary(
    entity_to_id: Path, relation_to_id: Path, names: Path | None = None, *, lang: str = "en"
) -> Vocabulary:
    """Read two id maps and, optionally, human-readable names.

    An id map has two columns. A header ``id⇥label`` or ``label⇥id`` says which is which, and labels are then quoted
    as in CSV, which is how PyKEEN writes them: they may hold tabs and line breaks, and CR before the end of a line
    belongs to the label unless every line has it. Without a header the ids are the column that holds 0..n−1. OpenKE's
    maps begin with the number of their lines, label and id.
    `names` has lines ``label⇥name``, of entities or relations; those of labels that the maps lack are ignored. Or it is
    RDF: its ``rdfs:label`` and ``skos:prefLabel`` are names of labels that are IRIs, in the language `lang` where there
    is a choice, and its prefixes are those of the vocabulary.

    Raises
    ------
    UnreadableInput
        A file is missing, truncated or not UTF-8.
    MalformedVocabulary
        A line has not two fields, no column or both could hold the ids, or RDF cannot be parsed.
    DuplicateId
        A label or an id occurs twice.
    IdOutOfRange
        The ids are not 0..n−1.
    EmptyInput
        A map has no entries.
    MissingExtra
        RDF cannot be read without pyoxigraph.
    """
    entities = read_id_map(entity_to_id, "entity")
    relations = read_id_map(relation_to_id, "relation")
    return named(entities, relations, names, lang)


@dataclass(frozen=True, slots=True)
class _Pairs:
    """A file of two columns."""

    numbers: array[int]
    """Line number, from 1, of each pair."""
    left: list[str]
    right: list[str]


def _read_pairs(path: Path, description: str, rows: Iterable[tuple[int, Sequence[str]]]) -> _Pairs:
    """The two fields of every row; `description` is of both, for messages."""
    pairs = _Pairs(array("q"), [], [])
    for number, fields in rows:
        if len(fields) != 2:
            line = "\t".join(fields)
            raise MalformedVocabulary(
                f"{path} line {number}: expected {description}, found {len(fields)} tab-separated fields in "
                f"{quote(line)}{line_ends(line)}"
            )
        pairs.numbers.append(number)
        pairs.left.append(fields[0])
        pairs.right.append(fields[1])
    return pairs


def read_id_map(path: Path, noun: str) -> tuple[str, ...]:
    """Labels in the order of their ids."""
    lines = text_lines(path)
    first = next(((number, text) for number, text in lines if not is_blank(text)), None)
    if first is None:
        raise EmptyInput(f"{path} holds no {noun}")
    has_header = _is_header(first[1].rstrip("\r").split("\t"))
    rows: Iterable[tuple[int, list[str]]]
    if INTEGER.fullmatch(first[1].strip()):  # the number of lines, as OpenKE writes it
        rows = ((number, line.rsplit(maxsplit=1)) for number, line in counted(path, first, without_ends(lines)))
    elif has_header:
        rows = csv_rows(chain([first], lines))
    else:
        rows = ((number, line.split("\t")) for number, line in without_ends(chain([first], lines)))
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
        if not INTEGER.fullmatch(text):
            raise MalformedVocabulary(f"{path} line {number}: id {quote(text)} of {quote(label)} is not an integer")
        if not label:
            raise MalformedVocabulary(f"{path} line {number}: id {text} has an empty label: give it one")
        i = int(text)
        if i in line_of_id:
            raise DuplicateId(f"{path} lines {line_of_id[i]} and {number}: two {noun} labels have id {i}")
        if label in line_of_label:
            raise DuplicateId(f"{path} lines {line_of_label[label]} and {number}: {quote(label)} has two ids")
        if not 0 <= i < len(ids):
            raise IdOutOfRange(
                f"{path} line {number}: id {i} of {quote(label)} is not among 0..{len(ids) - 1}; "
                f"the ids of {len(ids)} labels must leave no gap"
            )
        line_of_id[i] = line_of_label[label] = number
        ordered[i] = label
    return tuple(ordered)


def _is_header(fields: Sequence[str]) -> bool:
    header = [field.lower() for field in fields]
    return len(header) == 2 and header.count("id") == 1 and not any(map(INTEGER.fullmatch, header))


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
            f"{path} line {pairs.numbers[left]}: neither {quote(pairs.left[left])} nor "
            f"{quote(pairs.right[right])} is an id; expected label⇥id or id⇥label, or one of these as the first line"
        )
    return left > right  # the better of two columns; the id that is no integer is named later


def _first_non_integer(column: Sequence[str]) -> int:
    """Position of the first field that is not an integer; the length if all are."""
    return next((i for i, text in enumerate(column) if not INTEGER.fullmatch(text)), len(column))


def _is_dense(column: Sequence[str]) -> bool:
    """Whether the fields are 0..n−1 in some order, written without leading zeros."""
    return len(set(column)) == len(column) and all(
        str(i) == text and 0 <= i < len(column) for text in column for i in (int(text),)
    )


def named(entities: Sequence[str], relations: Sequence[str], names: Path | None, lang: str = "en") -> Vocabulary:
    """Give entities and relations the names of a file, as `read_vocabulary` does."""
    if names is None:
        return Vocabulary(entities, relations)
    if rdf.syntax(names) is None:
        prefixes, by_label = {}, _read_names(names)
        hint = f"none of its {len(by_label)} labels is an entity or a relation; expected lines label⇥name"
    else:
        file = rdf.RdfFile(names, MalformedVocabulary)
        by_label, prefixes = file.names({*entities, *relations}, lang), file.prefixes
        hint = "it gives no entity and no relation an rdfs:label or skos:prefLabel"
    entity_names, relation_names = (
        {i: by_label[label] for i, label in enumerate(labels) if label in by_label} for labels in (entities, relations)
    )
    if not entity_names and not relation_names:
        raise MalformedVocabulary(f"{names}: {hint}")
    return Vocabulary(entities, relations, entity_names, relation_names).with_prefixes(prefixes)


def _read_names(path: Path) -> dict[str, str]:
    """The first name of each label."""
    pairs = _read_pairs(path, "label⇥name", ((number, line.split("\t")) for number, line in read_lines(path)))
    named = zip(reversed(pairs.left), reversed(pairs.right), strict=True)
    return {label: name for label, name in named if name}
