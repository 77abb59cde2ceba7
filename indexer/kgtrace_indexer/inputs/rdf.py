"""Statements of RDF files, read as streams: N-Triples, N-Quads, Turtle and TriG, which pyoxigraph parses.

Files are told by their names, ``dump.nt`` or ``dump.ttl.gz``. Names of graphs are passed over.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kgtrace_indexer.inputs.text_files import content, is_blank, text_lines
from kgtrace_store.errors import BadRequest, EmptyInput, InputError, MalformedTriple, MissingExtra

if TYPE_CHECKING:
    from pyoxigraph import Quad

SYNTAXES = {".nt": "N_TRIPLES", ".nq": "N_QUADS", ".ttl": "TURTLE", ".trig": "TRIG"}
"""pyoxigraph's names of the syntaxes, by ending."""

_COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")
_BY_LINES = ("N_TRIPLES", "N_QUADS")

_LABELS = ("http://www.w3.org/2004/02/skos/core#prefLabel", "http://www.w3.org/2000/01/rdf-schema#label")
"""Predicates of names, the better one first."""

_LONGEST_REASON = 200
"""Characters of the parser's message, which repeats parts of the file."""

Statement = tuple[str, str, str] | None
"""Subject, predicate and object; None where one of them is a literal, a blank node or a triple."""


def syntax(path: Path) -> str | None:
    """Return the syntax of an RDF file by its name; None for other files."""
    name = path.with_suffix("") if path.suffix.lower() in _COMPRESSED else path
    return SYNTAXES.get(name.suffix.lower())


@dataclass(frozen=True, slots=True)
class RdfFile:
    """An RDF file, to be read once from its beginning to its end."""

    path: Path
    malformed: type[InputError]
    """Raised for statements that cannot be parsed."""
    prefixes: dict[str, str] = field(default_factory=dict)
    """IRIs by prefix, as the file declares them; complete when it has been read."""

    def statements(self) -> Iterator[Statement]:
        """Yield all statements.

        Raises `malformed`, naming the line, `UnreadableInput`, and `MissingExtra` without pyoxigraph.
        """
        NamedNode = _pyoxigraph(self.path).NamedNode
        for subject, predicate, value, _ in self._quads():
            if type(subject) is NamedNode and type(value) is NamedNode:
                yield subject.value, predicate.value, value.value
            else:
                yield None

    def names(self, known: Container[str], lang: str) -> dict[str, str]:
        """Return the best name of each known IRI: an ``rdfs:label`` or ``skos:prefLabel``.

        Names in `lang` are better than those in a regional variant of it, then come names of no language, then those in
        others; of equally good names a ``skos:prefLabel``, then the first one counts. Raises as `statements`.
        """
        library = _pyoxigraph(self.path)
        best: dict[str, tuple[int, int, str]] = {}
        for subject, predicate, value, _ in self._quads():
            if predicate.value not in _LABELS or type(value) is not library.Literal or not value.value:
                continue
            if type(subject) is not library.NamedNode or subject.value not in known:
                continue
            name = (_distance(value.language, lang.lower()), _LABELS.index(predicate.value), value.value)
            best[subject.value] = min(best.get(subject.value, name), name, key=lambda ranked: ranked[:2])
        return {iri: name for iri, (_, _, name) in best.items()}

    def place(self, number: int) -> str:
        """Say where statement `number`, from 1, is: in which line, if the syntax gives each a line of its own."""
        line = None
        if syntax(self.path) in _BY_LINES and self.path.is_file():  # a pipe cannot be read again
            lines = (line for line, text in text_lines(self.path) if not is_blank(text) and text.lstrip()[:1] != "#")
            line = next(islice(lines, number - 1, None), None)
        return f"triple {number}" if line is None else f"line {line}"

    def _quads(self) -> Iterator[Quad]:
        library = _pyoxigraph(self.path)
        name = syntax(self.path)
        if name is None:
            raise BadRequest(f"{self.path} is not named as RDF is: its name must end in {', '.join(SYNTAXES)}")
        count = 0
        with content(self.path, lambda: f"triple {count}") as f:
            parser = library.parse(f, getattr(library.RdfFormat, name))
            try:
                for quad in parser:
                    count += 1
                    yield quad
            except SyntaxError as e:
                _, _, reason = e.msg.partition(": ")
                raise self.malformed(f"{self.path} line {e.lineno}: {reason[:_LONGEST_REASON]}") from e
            except MemoryError as e:  # of the parser, which keeps no more than 16 MiB of a statement
                raise self.malformed(f"{self.path} after triple {count}: a statement does not end: {e}") from e
        self.prefixes.update(parser.prefixes)


def read_rdf(path: Path) -> np.ndarray:
    """Read the triples of an RDF file as labels, (n, 3) of str, for PyKEEN's ``TriplesFactory.from_labeled_triples``.

    Statements with a literal or blank node are left out. Raises `EmptyInput` if all are, `MalformedTriple`,
    `UnreadableInput`, and `MissingExtra` without pyoxigraph.
    """
    labels = [statement for statement in RdfFile(path, MalformedTriple).statements() if statement is not None]
    if not labels:
        raise EmptyInput(f"{path} holds no triple of three IRIs")
    return np.array(labels, object)


def _pyoxigraph(path: Path) -> Any:
    try:
        import pyoxigraph
    except ImportError as e:
        raise MissingExtra(f"{path} is RDF, which needs pyoxigraph: pip install 'kgtrace[rdf]'") from e
    return pyoxigraph


def _distance(tag: str | None, lang: str) -> int:
    """Return how far the language of a name, None for none, is from the wanted one."""
    if tag is None:
        return 2
    tag = tag.lower()
    return 0 if tag == lang else 1 if tag.startswith(f"{lang}-") else 3
