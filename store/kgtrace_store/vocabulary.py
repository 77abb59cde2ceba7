"""Labels and human names of entities and relations, by id."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from rapidfuzz import fuzz, process

from kgtrace_store import durable, layout
from kgtrace_store.errors import (
    CorruptGeneration,
    DuplicateId,
    IdOutOfRange,
    InputError,
    UnknownEntity,
    UnknownLabel,
    UnknownRelation,
)

_NEAREST = 3
"""Suggestions in the message about an unknown label: more do not fit one line."""

_NEAREST_CUTOFF = 60.0
"""Similarity (0..100) below which a suggestion would only confuse."""

_LONGEST_QUOTE = 100
"""Characters of an unknown label that its message repeats."""

_MOST_DIGITS = 18
"""Of an id in a text: more do not fit 64 bits, and Python refuses to read numbers of thousands."""

_ESCAPED = "escaped"
"""First line of a file whose labels and names are escaped: it has no tab, which every other line has."""

_ESCAPES = {"\\": "\\\\", "\t": "\\t", "\n": "\\n"}
_ESCAPE = re.compile(r"\\(.?)")

_BREAK = "\x00"
"""Stands for a line break inside a label in the text that is searched, whose lines are the labels."""


@dataclass(frozen=True)
class Vocabulary:
    """Labels and names of the model's rows. Lookup tables are built when first used."""

    entities: Sequence[str]
    """Label of entity i at position i."""
    relations: Sequence[str]
    """Label of relation i at position i; the original relations, without inverses."""
    entity_names: Mapping[int, str] = field(default_factory=dict)
    """Human-readable name by entity id, where there is one."""
    relation_names: Mapping[int, str] = field(default_factory=dict)
    """Human-readable name by relation id, where there is one."""
    prefixes: Mapping[str, str] = field(default_factory=dict)
    """IRI by prefix: with ``wd`` for ``http://www.wikidata.org/entity/``, ``wd:Q42`` means the label that begins so."""

    def entity_id(self, label: str) -> int:
        """Id of the entity with this label.

        Raises :class:`UnknownEntity`, naming the nearest labels.
        """
        return self._entities.id(label)

    def relation_id(self, label: str) -> int:
        """Id of the relation with this label.

        Raises :class:`UnknownRelation`, naming the nearest labels.
        """
        return self._relations.id(label)

    def find(self, head: str, relation: str, tail: str) -> tuple[int, int, int] | None:
        """Ids of a triple of labels; None if one is unknown."""
        ids = self._entities.find(head), self._relations.find(relation), self._entities.find(tail)
        return None if None in ids else ids  # type: ignore[return-value]

    def with_prefixes(self, prefixes: Mapping[str, str]) -> Vocabulary:
        """The same labels with more prefixes, which also name those that have no name: ``wd:Q42``."""
        both = {**self.prefixes, **prefixes}
        names = (
            _shortened(self.entities, self.entity_names, both),
            _shortened(self.relations, self.relation_names, both),
        )
        return Vocabulary(self.entities, self.relations, *names, both)

    def resolve_entity(self, ref: str | int) -> int:
        """Id of an entity given by label (``str``) or id (``int``).

        Raises :class:`UnknownEntity` or :class:`IdOutOfRange`.
        """
        return self._entities.resolve(ref)

    def resolve_relation(self, ref: str | int) -> int:
        """Id of a relation given by label (``str``) or id (``int``).

        Raises :class:`UnknownRelation` or :class:`IdOutOfRange`.
        """
        return self._relations.resolve(ref)

    def entity_ref(self, text: str) -> str | int:
        """Tell an id from a label in a text: digits are an id, unless the label of any entity is made of digits.

        So a label that the vocabulary lacks is never taken for an id. Neither is looked up.
        """
        return self._entities.ref(text)

    def relation_ref(self, text: str) -> str | int:
        """Tell an id from a label in a text, as :meth:`entity_ref` does, by the labels of the relations."""
        return self._relations.ref(text)

    def search_entities(self, q: str, limit: int) -> list[int]:
        """Ids of up to ``limit`` entities whose label or name equals, then starts with, then contains ``q``.

        Upper and lower case are the same; within each group ids ascend; an empty ``q`` matches everything.
        """
        return self._entities.search(q, limit)

    def search_relations(self, q: str, limit: int) -> list[int]:
        """Ids of relations, in the manner of :meth:`search_entities`."""
        return self._relations.search(q, limit)

    def write(self, folder: Path) -> None:
        """Write both tables into ``folder``, whose entries need :func:`durable.sync_folder`.

        Raises :class:`InputError` for a label or name that is not valid Unicode, :class:`DuplicateId` for a
        repeated label and :class:`StorageFailed`.
        """
        files = {layout.ENTITIES: self._entities.encode(), layout.RELATIONS: self._relations.encode()}
        if self.prefixes:
            files[layout.PREFIXES] = _encode(list(self.prefixes.items()), "prefixes")
        durable.make_folder(folder)
        for name, data in files.items():
            durable.write_file(folder / name, data)

    @classmethod
    def read(cls, folder: Path) -> Vocabulary:
        """Read the tables that :meth:`write` wrote. Raises :class:`CorruptGeneration`."""
        entities, entity_names = _read_table(folder / layout.ENTITIES)
        relations, relation_names = _read_table(folder / layout.RELATIONS)
        prefixes: dict[str, str] = {}
        if (folder / layout.PREFIXES).exists():
            short, iris = _read_table(folder / layout.PREFIXES)
            prefixes = {prefix: iris[i] for i, prefix in enumerate(short) if i in iris}
        return cls(entities, relations, entity_names, relation_names, prefixes)

    @cached_property
    def _entities(self) -> _Table:
        return _Table("entity", "entities", UnknownEntity, self.entities, self.entity_names, self.prefixes)

    @cached_property
    def _relations(self) -> _Table:
        return _Table("relation", "relations", UnknownRelation, self.relations, self.relation_names, self.prefixes)


@dataclass(frozen=True)
class _Table:
    """One column of ids with its labels and names: entities and relations behave alike."""

    noun: str
    plural: str
    unknown: type[UnknownLabel]
    labels: Sequence[str]
    names: Mapping[int, str]
    prefixes: Mapping[str, str]

    def find(self, label: str) -> int | None:
        known = self._ids.get(label)
        return self._ids.get(self._expanded(label)) if known is None else known

    def id(self, label: str) -> int:
        known = self.find(label)
        if known is None:
            twin = self._same_text(label)
            nearest = [twin] if twin is not None else self._nearest(self._expanded(label))
            hint = self._suggestion(nearest) if twin is None else _other_form(label, self.labels[twin])
            if _digits(label) and self.digits_are_labels:
                hint = f"digits are labels here, not ids; {hint}"
            message = f"unknown {self.noun} {_quote(label)}; {hint}"
            raise self.unknown(message, label, [(self.labels[i], self.names.get(i)) for i in nearest])
        return known

    def resolve(self, ref: str | int) -> int:
        if isinstance(ref, str):
            return self.id(ref)
        if not 0 <= ref < len(self.labels):
            raise IdOutOfRange(f"{self.noun} id {ref} is out of range: there are {len(self.labels)} {self.plural}")
        return int(ref)

    def ref(self, text: str) -> str | int:
        if _digits(text) and len(text) <= _MOST_DIGITS and not self.digits_are_labels:
            return int(text)
        return text

    @cached_property
    def digits_are_labels(self) -> bool:
        """True if the label of at least one entry is made of digits alone."""
        return any(map(_digits, self.labels))

    def search(self, q: str, limit: int) -> list[int]:
        if not q:
            return list(range(min(limit, len(self.labels))))
        ids: dict[int, None] = {}
        folded = self._expanded(q).replace("\n", _BREAK).casefold().encode("utf-8", "surrogatepass")
        for pattern in (b"\n" + folded + b"\n", b"\n" + folded, folded):
            for i in self._matches(pattern):
                if len(ids) >= limit:
                    return list(ids)
                ids[i] = None
        return list(ids)

    def encode(self) -> bytes:
        _ = self._ids  # refuses duplicates
        beyond = [i for i in self.names if not 0 <= i < len(self.labels)]
        if beyond:
            raise IdOutOfRange(
                f"name {self.names[beyond[0]]!r} is for {self.noun} id {beyond[0]}, "
                f"but there are {len(self.labels)} {self.plural}"
            )
        return _encode([(label, self.names.get(i, "")) for i, label in enumerate(self.labels)], self.plural)

    def _expanded(self, text: str) -> str:
        """``wd:Q42`` with the IRI of its prefix; any other text as it is."""
        prefix, colon, local = text.partition(":")
        return self.prefixes[prefix] + local if colon and prefix in self.prefixes else text

    @cached_property
    def _ids(self) -> dict[str, int]:
        ids = {label: i for i, label in enumerate(self.labels)}
        if len(ids) != len(self.labels):
            first, label = next((i, label) for i, label in enumerate(self.labels) if ids[label] != i)
            raise DuplicateId(f"{self.noun} ids {first} and {ids[label]} have the same label {_quote(label)}")
        return ids

    @cached_property
    def _text(self) -> bytes:
        """All labels and names, case folded, between line breaks: line 2i is label i, line 2i + 1 its name.

        One long byte string is searched at the speed of ``memmem``, a hundred times faster than a loop over
        labels.
        """
        texts = (text for i, label in enumerate(self.labels) for text in (label, self.names.get(i, "")))
        lines = [text.replace("\n", _BREAK) for text in texts]
        return ("\n" + "\n".join(lines) + "\n").casefold().encode("utf-8", "surrogatepass")

    @cached_property
    def _breaks(self) -> np.ndarray:
        """(2 n + 1,) int64: positions of the line breaks in the text; break i stands before line i."""
        return np.flatnonzero(np.frombuffer(self._text, dtype=np.uint8) == ord("\n"))

    def _matches(self, pattern: bytes) -> Iterator[int]:
        """Ids of the entries in which ``pattern`` occurs, ascending; an id may come twice."""
        at = self._text.find(pattern)
        while at >= 0:
            line = int(np.searchsorted(self._breaks, at, side="right")) - 1
            yield line // 2
            at = self._text.find(pattern, int(self._breaks[line + 1]))

    def _same_text(self, label: str) -> int | None:
        """Id of the entry whose label reads the same and is another sequence of characters, if there is one."""
        normalized = unicodedata.normalize("NFC", label)
        return next(
            (i for i, known in enumerate(self.labels) if unicodedata.normalize("NFC", known) == normalized), None
        )

    def _nearest(self, label: str) -> list[int]:
        by_label = process.extract(label, self.labels, scorer=fuzz.ratio, limit=_NEAREST, score_cutoff=_NEAREST_CUTOFF)
        by_name = process.extract(label, self.names, scorer=fuzz.ratio, limit=_NEAREST, score_cutoff=_NEAREST_CUTOFF)
        hits = sorted([(-score, i) for _, score, i in (*by_label, *by_name)])
        return list(dict.fromkeys(i for _, i in hits))[:_NEAREST]

    def _suggestion(self, nearest: Sequence[int]) -> str:
        if not nearest:
            return f"none of the {len(self.labels)} {self.plural} is similar"
        return "nearest: " + ", ".join(self._describe(i) for i in nearest)

    def _describe(self, i: int) -> str:
        name = self.names.get(i)
        return _quote(self.labels[i]) + (f" ({name})" if name else "")


def _shortened(labels: Sequence[str], names: Mapping[int, str], prefixes: Mapping[str, str]) -> Mapping[int, str]:
    """Names by id, and for labels without one that begin with the IRI of a prefix the prefix and the rest."""
    by_iri = {iri: prefix for prefix, iri in prefixes.items() if iri}
    if not by_iri:
        return names
    longest_first = re.compile("|".join(map(re.escape, sorted(by_iri, key=len, reverse=True))))
    begins = ((i, longest_first.match(label)) for i, label in enumerate(labels) if i not in names)
    return {**names, **{i: f"{by_iri[iri[0]]}:{iri.string[iri.end() :]}" for i, iri in begins if iri}}


def _encode(pairs: Sequence[tuple[str, str]], plural: str) -> bytes:
    """Lines of two texts with a tab between. Raises `InputError` for texts that are not valid Unicode."""
    lines = [f"{left}\t{right}\n" for left, right in pairs]
    if any("\t" in text or "\n" in text for pair in pairs for text in pair):
        lines = [f"{_ESCAPED}\n", *(f"{_escaped(left)}\t{_escaped(right)}\n" for left, right in pairs)]
    try:
        return "".join(lines).encode("utf-8")
    except UnicodeEncodeError as e:
        raise InputError(f"a label or name of the {plural} is not valid Unicode: {e}") from e


def _digits(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def _other_form(label: str, known: str) -> str:
    """Say that two labels look alike, and which Unicode normalization forms they are in."""
    return f"it is in {_form(label)}, the label that reads the same is in {_form(known)}: {_short(known)!a}"


def _form(text: str) -> str:
    forms = [form for form in ("NFC", "NFD") if unicodedata.is_normalized(form, text)]
    return f"Unicode form {forms[0]}" if forms else "no Unicode normal form"


def _escaped(text: str) -> str:
    return "".join(_ESCAPES.get(character, character) for character in text)


def _unescaped(text: str) -> str:
    """Undo `_escaped`. Raises `KeyError` for an escape that it does not write."""
    characters = {escape[1]: character for character, escape in _ESCAPES.items()}
    return _ESCAPE.sub(lambda match: characters[match[1]], text)


def _quote(text: str) -> str:
    return repr(_short(text))


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_QUOTE else text[:_LONGEST_QUOTE] + "…"


def _read_table(path: Path) -> tuple[tuple[str, ...], dict[int, str]]:
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError as e:
        raise CorruptGeneration(f"{path} is missing") from e
    except UnicodeDecodeError as e:
        raise CorruptGeneration(f"{path} is not UTF-8: {e}") from e
    *lines, rest = text.split("\n")  # not splitlines(): labels may hold other separators
    if rest:
        raise CorruptGeneration(f"{path} is truncated: its last line {_quote(rest)} does not end")
    escaped = lines[:1] == [_ESCAPED]
    labels, names = [], {}
    for i, line in enumerate(lines[1:] if escaped else lines):
        label, tab, name = line.partition("\t")
        if not tab or "\t" in name:
            raise CorruptGeneration(f"{path} line {i + 1 + escaped}: expected label and name, found {_quote(line)}")
        if escaped:
            try:
                label, name = _unescaped(label), _unescaped(name)
            except KeyError as e:
                raise CorruptGeneration(f"{path} line {i + 2}: there is no escape {_quote(line)}") from e
        labels.append(label)
        if name:
            names[i] = name
    return tuple(labels), names
