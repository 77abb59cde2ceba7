"""Explanations as linked data: JSON-LD in the words of PROV-O, https://www.w3.org/TR/prov-o/.

::

    explanation (prov:Entity)
    ├── triple                          the test triple, an rdf:Statement
    └── prov:qualifiedDerivation        one for each influence, with its values
        └── prov:entity                 the training triple, an rdf:Statement
"""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import fields
from typing import Any, BinaryIO
from urllib.parse import quote

from kgtrace_server.schema.answer import to_json
from kgtrace_server.schema.answers import Explanation, Influence, Influences, Named, NamedTriple

MEDIA_TYPE = "application/ld+json"

TERMS = "https://kgtrace.readthedocs.io/rdf#"
"""Before the names of fields: what they mean is said there."""

THINGS = "tag:kgtrace.readthedocs.io,2026:"
"""Before the names of explanations and training triples, and of entities and relations whose label is no IRI."""

CONTEXT = {
    "@vocab": TERMS,
    "prov": "http://www.w3.org/ns/prov#",
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "xsd": "http://www.w3.org/2001/XMLSchema#",
    "name": "http://www.w3.org/2000/01/rdf-schema#label",
    "head": "rdf:subject",
    "relation": "rdf:predicate",
    "tail": "rdf:object",
    "influences": "prov:qualifiedDerivation",
    **{
        field.name: {"@id": TERMS + field.name, "@type": "xsd:double"}
        for kind in (Explanation, Influence)
        for field in fields(kind)
        if "float" in str(field.type)
    },
}

_IRI = re.compile(r"(?:[a-z][a-z0-9+.-]*://|urn:)[^\x00-\x20<>\"{}|^`\\]+", re.IGNORECASE)


def write(sink: BinaryIO, answers: Iterable[Influences]) -> int:
    """Write answers as one document, an explanation a line; return how many influences they hold."""
    count = 0
    sink.write(f'{{"@context": {_json(CONTEXT)},\n"@graph": ['.encode())
    separator = "\n"
    for answer in answers:
        for result in answer.results:
            sink.write(f"{separator}{_json(_explanation(answer, result))}".encode())
            separator = ",\n"
            count += len(result.influences)
    sink.write(b"\n]}\n")
    return count


def _json(content: object) -> str:
    return json.dumps(content, ensure_ascii=False, allow_nan=False)


def _explanation(answer: Influences, result: Explanation) -> dict[str, Any]:
    digest = hashlib.sha256(_json(answer.origin).encode() + to_json(result)).hexdigest()
    return {
        "@id": f"{THINGS}{answer.generation}/explanation/{digest[:16]}",
        "@type": ["prov:Entity", "Explanation"],
        **answer.origin,
        **result.values(),
        "notes": result.notes,
        "triple": _statement(result.triple),
        "influences": [
            {
                "@type": "prov:Derivation",
                "position": position,
                **influence.values("train_index"),
                "prov:entity": {
                    "@id": f"{THINGS}{answer.generation}/training-triple/{influence.train_index}",
                    **influence.fields("train_index"),
                    **_statement(influence.triple),
                },
            }
            for position, influence in enumerate(result.influences, 1)
        ],
    }


def _statement(triple: NamedTriple) -> dict[str, Any]:
    parts = {field.name: getattr(triple, field.name) for field in fields(triple)}
    nodes = {name: {"@id": _iri(named, name), "name": str(named)} for name, named in parts.items()}
    return {"@type": ["prov:Entity", "rdf:Statement"], **nodes}


def _iri(named: Named, field: str) -> str:
    """Return the label of an entity or relation if it is an IRI, else one that is made of it."""
    if _IRI.fullmatch(named.label):
        return named.label
    return f"{THINGS}{'relation' if field == 'relation' else 'entity'}/{quote(named.label, safe='')}"
