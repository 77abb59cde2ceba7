"""RDF as a source of triples and names: every syntax says the same as a tab-separated file, and errors are named."""

import bz2
import gzip
import json
import os
import sys
import threading
import tracemalloc
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from pykeen.triples import TriplesFactory

from kgtrace_indexer import read_rdf, read_triples, read_vocabulary
from kgtrace_store import Vocabulary
from kgtrace_store.errors import (
    BadRequest,
    EmptyInput,
    MalformedTriple,
    MalformedVocabulary,
    MissingExtra,
    UnknownEntity,
    UnknownRelation,
    UnreadableInput,
)

zstd = import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")

EX, WD, WDT = "http://example.org/", "http://www.wikidata.org/entity/", "http://www.wikidata.org/prop/direct/"
VOCABULARY = Vocabulary([f"{EX}ann", f"{EX}bob", f"{EX}cid"], [f"{EX}knows", f"{EX}likes"])

TURTLE = """
@prefix ex: <http://example.org/> .
@prefix rdfs: <http://www.w3.org/2000/01/rdf-schema#> .
ex:ann ex:knows ex:bob , [ rdfs:label "somebody" ] ; ex:likes ex:cid ; ex:age 31 .
ex:bob a ex:Person ; ex:likes ex:ann .
"""
"""Triples 0, 1 and 3 are of known labels, 2 of unknown ones; three statements have a literal or a blank node."""


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a file and give its path."""

    def write(content: str | bytes, name: str) -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


Write = Callable[..., Path]


def test_statements_of_three_iris_are_triples(write: Write) -> None:
    """Literals and blank nodes are counted and are no rows, unknown labels are skipped and are rows."""
    table = read_triples(write(TURTLE, "t.ttl"), VOCABULARY, skip_unknown=True)
    assert table.ids.tolist() == [[0, 0, 1], [0, 1, 2], [1, 1, 0]]
    assert table.train_index.tolist() == [0, 1, 3]
    assert (table.skipped, table.other_terms) == (1, 3)
    assert table.prefixes["ex"] == EX
    assert table.warnings(Path("t.ttl")) == ["3 statements of t.ttl have a literal or a blank node: they were left out"]


LINES = f"""# a comment

<{EX}ann> <{EX}knows> <{EX}bob> .
<{EX}ann> <{EX}age> "31" .
<{EX}ann> <{EX}knows> <{EX}dan> .
"""


def test_errors_about_statements_say_where_they_are(write: Write) -> None:
    """By line where the syntax has one for each statement, else by number; syntax errors always by line."""
    nt, ttl = write(LINES, "t.nt"), write(TURTLE, "t.TTL")
    with pytest.raises(
        UnknownEntity, match=r"t.nt line 5: unknown entity 'http://example.org/dan'; nearest: .*--skip-u"
    ):
        read_triples(nt, VOCABULARY)
    with pytest.raises(UnknownRelation, match=r"t.TTL triple 6: unknown relation 'http://www.w3.*#type'"):
        read_triples(ttl, VOCABULARY)
    with pytest.raises(
        MalformedTriple, match=r"t.nt line 4: a literal or blank node is no entity; without --only-iris"
    ):
        read_triples(nt, VOCABULARY, only_iris=True)
    with pytest.raises(UnknownEntity, match=r"cr.nq triple 3: unknown entity"):
        read_triples(write(LINES.replace("\n", "\r"), "cr.nq"), VOCABULARY)
    for number, (name, content) in enumerate(
        {"b.nt": f"{LINES}<{EX}ann> <knows> <{EX}bob> .\n", "b.ttl": f"\n{TURTLE}ex:ann wrong:knows ex:bob .\n"}.items()
    ):
        for error, read in (
            (MalformedTriple, lambda path: read_triples(path, VOCABULARY, skip_unknown=True)),
            (MalformedTriple, read_rdf),
            (MalformedVocabulary, lambda path: named(write, path)),
        ):
            with pytest.raises(error, match=rf"{name} line {(6, 7)[number]}: "):
                read(write(content, name))


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    """An error in it is not looked for a second time."""
    path = tmp_path / "pipe.nt"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=(LINES,))
    writer.start()
    with pytest.raises(UnknownEntity, match=r"pipe.nt triple 3: unknown entity"):
        read_triples(path, VOCABULARY)
    writer.join()


def named(write: Write, names: Path, lang: str = "en") -> Vocabulary:
    """The vocabulary with the names of a file."""
    maps = (
        write("".join(f"{label}\t{i}\n" for i, label in enumerate(labels)), f"{len(labels)}.tsv")
        for labels in (VOCABULARY.entities, VOCABULARY.relations)
    )
    return read_vocabulary(*maps, names, lang=lang)


@pytest.mark.parametrize(
    ("content", "name", "error", "message"),
    [
        ("", "t.nt", EmptyInput, "holds no triple"),
        (f'<{EX}ann> <{EX}age> "3" .', "t.nt", EmptyInput, "holds no triple"),
        (f"<{EX}a> <{EX}b> <{EX}c> .\n<{EX}a> <{EX}b> _:c .", "t.nt", EmptyInput, "all 1 were skipped; 1 st"),
        (b"\xff\xfe<\x00", "t.nt", UnreadableInput, "it is UTF-16"),
        (b"<http://a> <http://b> <http://\xe4> .", "t.nt", MalformedTriple, "line 1: Invalid UTF-8"),
        (f'<{EX}ann> <{EX}age> """' + "x" * 20_000_000, "t.ttl", MalformedTriple, "a statement does not end"),
        (gzip.compress(LINES.encode() * 999)[:-9], "t.nt.gz", UnreadableInput, "damaged gzip file after triple "),
        (zstd.compress(LINES.encode() * 999)[:-9], "t.nt.zst", UnreadableInput, "damaged Zstandard file after triple "),
    ],
    ids=["empty", "literals", "unknown", "utf-16", "latin-1", "endless", "gzip", "zstd"],
)  # fmt: skip
def test_bad_files_are_named(
    write: Write, content: str | bytes, name: str, error: type[Exception], message: str
) -> None:
    """The message names the file and what is wrong with it."""
    with pytest.raises(error, match=rf"{name}.*{message}"):
        read_triples(write(content, name), VOCABULARY, skip_unknown=True)


def test_wrong_calls_are_named(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """RDF holds no ids, other files are not RDF, and the parser may be missing."""
    with pytest.raises(BadRequest, match=r"t.nt is RDF, whose terms are labels, not ids"):
        read_triples(write(LINES, "t.nt"), VOCABULARY, ids=True)
    with pytest.raises(BadRequest, match=r"t.tsv is not named as RDF is: its name must end in .nt, .nq, .ttl, .trig"):
        read_rdf(write(LINES, "t.tsv"))
    with pytest.raises(UnreadableInput, match=r"cannot read .*absent.nt: No such file"):
        read_rdf(Path("absent.nt"))
    monkeypatch.setitem(sys.modules, "pyoxigraph", None)
    with pytest.raises(MissingExtra, match=r"t.nt is RDF, which needs pyoxigraph: pip install 'kgtrace\[rdf\]'"):
        read_triples(write(LINES, "t.nt"), VOCABULARY)


NAMES = """
@prefix ex: <http://example.org/> .
@prefix rdfs: <http://www.w3.org/2000/01/rdf-schema#> .
@prefix skos: <http://www.w3.org/2004/02/skos/core#> .
ex:ann rdfs:label "Anna"@de , "Ann"@en , "Annie"@en-GB , "A." ; rdfs:comment "not a name"@en .
ex:bob rdfs:label "Robert"@en-GB , "Bob" ; skos:prefLabel "Bobby"@en-US .
ex:knows rdfs:label "knows"@en ; skos:prefLabel "is acquainted with"@en ; skos:altLabel "knows"@en .
ex:likes rdfs:label "mag"@de .
ex:unknown rdfs:label "unknown" .
"""


@pytest.mark.parametrize(
    ("lang", "ann", "bob"),
    [("en", "Ann", "Bobby"), ("EN-gb", "Annie", "Robert"), ("de", "Anna", "Bob"), ("fr", "A.", "Bob")],
)
def test_names_are_in_the_wanted_language_or_the_nearest(write: Write, lang: str, ann: str, bob: str) -> None:
    """Then come its regional variants, no language, any other; of equals `skos:prefLabel`, and the first."""
    vocabulary = named(write, write(NAMES, "names.ttl"), lang)
    assert vocabulary.entity_names == {0: ann, 1: bob, 2: "ex:cid"}
    assert vocabulary.relation_names == {
        0: "is acquainted with" if lang == "en" else vocabulary.relation_names[0],
        1: "mag",
    }
    assert vocabulary.prefixes["ex"] == EX


def test_a_file_without_names_is_refused(write: Write) -> None:
    """It is probably another file."""
    with pytest.raises(
        MalformedVocabulary, match=r"t.ttl: it gives no entity and no relation an rdfs:label or skos:prefLabel"
    ):
        named(write, write(TURTLE, "t.ttl"))


def test_pykeen_takes_the_labels(write: Write) -> None:
    """What is read for training has the ids and rows of what is read for the index."""
    path = write(TURTLE, "t.ttl")
    factory = TriplesFactory.from_labeled_triples(read_rdf(path))
    vocabulary = Vocabulary(list(factory.entity_to_id), list(factory.relation_to_id))
    assert sorted(map(tuple, factory.mapped_triples.tolist())) == sorted(
        map(tuple, read_triples(path, vocabulary).ids.tolist())
    )


def test_memory_holds_ids_alone(write: Write) -> None:
    """The text of a file passes through."""
    path = write("".join(f"<{EX}ann> <{EX}knows> <{EX}bob> .\n" for _ in range(100_000)), "t.nt")
    tracemalloc.start()
    assert len(read_triples(path, VOCABULARY).ids) == 100_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6_000_000  # 20 bytes a triple, twice while arrays grow; the file has 80


# CoDEx-S as RDF.

Triples = list[tuple[str, str, str]]


def n_triples(triples: Triples, names: dict[str, str]) -> str:
    lines = [f"<{WD}{h}> <{WDT}{r}> <{WD}{t}> .\n" for h, r, t in triples]
    return "".join(
        lines
        + [
            f"<{iri}> <http://www.w3.org/2000/01/rdf-schema#label> {json.dumps(name)}@en .\n"
            for iri, name in names.items()
        ]
    )


def turtle(triples: Triples, names: dict[str, str]) -> str:
    head = f"@prefix wd: <{WD}> .\nPREFIX wdt: <{WDT}>\n@prefix s: <http://www.w3.org/2004/02/skos/core#> .\n"
    lines = [f"wd:{h} wdt:{r} wd:{t} .\n" for h, r, t in triples]
    return head + "".join(
        lines + [f"<{iri}> s:prefLabel {json.dumps(name)}@en, 'x'@de .\n" for iri, name in names.items()]
    )


def trig(triples: Triples, names: dict[str, str]) -> str:
    *head, body = turtle(triples, names).split("\n", 3)
    return "\n".join([*head, "GRAPH wd:graph {", body.replace(".\n", " .\n"), "}"])


def n_quads(triples: Triples, names: dict[str, str]) -> str:
    return n_triples(triples, names).replace(" .\n", " <http://graph> .\n")


@pytest.mark.parametrize(
    ("name", "write_rdf", "pack"),
    [
        ("codex.nt", n_triples, None),
        ("codex.nt.gz", n_triples, gzip.compress),
        ("codex.nq.bz2", n_quads, bz2.compress),
        ("codex.ttl", turtle, None),
        ("codex.ttl.zst", turtle, zstd.compress),
        ("codex.trig", trig, None),
        ("codex.trig.gz", trig, gzip.compress),
    ],
)  # fmt: skip
def test_codex_reads_the_same_from_every_syntax(
    shared: Path, write: Write, name: str, write_rdf: Callable[..., str], pack: Callable[[bytes], bytes] | None
) -> None:
    """Triples, rows and names are those of the tab-separated file and the JSON of names."""
    data = shared / "data" / "CoDEx-S"
    triples: Triples = [tuple(line.split("\t")) for line in (data / "train.txt").read_text().splitlines()]  # type: ignore[misc]
    described = json.loads((data / "relations.en.json").read_text())
    entities = sorted({label for h, _, t in triples for label in (h, t)})
    relations = sorted({r for _, r, _ in triples})
    expected = read_triples(data / "train.txt", Vocabulary(entities, relations))
    names = {f"{WDT}{relation}": described[relation]["label"] for relation in relations}

    content = write_rdf(triples, names).encode()
    path = write(pack(content) if pack else content, name)
    entity_map = write("".join(f"{WD}{label}\t{i}\n" for i, label in enumerate(entities)), "e.tsv")
    relation_map = write("".join(f"{WDT}{label}\t{i}\n" for i, label in enumerate(relations)), "r.tsv")
    vocabulary = read_vocabulary(entity_map, relation_map, path)
    table = read_triples(path, vocabulary)
    np.testing.assert_array_equal(table.ids, expected.ids)
    np.testing.assert_array_equal(table.train_index, expected.train_index)
    assert list(vocabulary.relation_names.values()) == [names[f"{WDT}{relation}"] for relation in relations]
    assert table.other_terms == len(relations) * (1 if write_rdf in (n_triples, n_quads) else 2)
    if write_rdf in (turtle, trig):
        assert vocabulary.prefixes["wdt"] == WDT
        assert vocabulary.entity_names == {i: f"wd:{label}" for i, label in enumerate(entities)}
