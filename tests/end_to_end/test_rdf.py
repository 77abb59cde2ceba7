"""From RDF to an answer, and the answer as RDF: the command line with a model whose labels are IRIs."""

import gzip
import json
from pathlib import Path
from typing import Any

import networkx as nx
import pyoxigraph as ox
import pytest

from kgtrace_indexer import read_training_folder
from kgtrace_server.cli import parser as cli
from kgtrace_server.schema.answer import from_json
from kgtrace_server.schema.answers import Influences
from kgtrace_store import IndexRoot
from tests.server.test_graphs import check_graph, check_statements

EX = "http://example.org/umls/"
LABEL = "<http://www.w3.org/2000/01/rdf-schema#label>"
SUBJECT = ox.NamedNode("http://www.w3.org/1999/02/22-rdf-syntax-ns#subject")
SMALL = ("--dim", "4", "--landmarks", "64", "--json")


@pytest.fixture(scope="module")
def data(umls_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The training triples and names of UMLS in Turtle, the id maps of its IRIs, and a triple in N-Triples."""
    folder = tmp_path_factory.mktemp("rdf")
    vocabulary, table = read_training_folder(umls_folder / "training_triples")
    for noun, labels in (("entity", vocabulary.entities), ("relation", vocabulary.relations)):
        (folder / f"{noun}.tsv").write_text("".join(f"{EX}{label}\t{i}\n" for i, label in enumerate(labels)))
    triples = [(vocabulary.entities[h], vocabulary.relations[r], vocabulary.entities[t]) for h, r, t in table.ids]
    lines = [f"ex:{head} ex:{relation} ex:{tail} .\n" for head, relation, tail in triples]
    turtle = f"@prefix ex: <{EX}> .\n{''.join(lines)}ex:alga {LABEL} 'Alge'@de , 'Alga'@en .\n"
    (folder / "umls.ttl.gz").write_bytes(gzip.compress(turtle.encode()))
    (folder / "names.nt").write_text(f'<{EX}alga> {LABEL} "Alge"@de .\n<{EX}human> {LABEL} "Mensch"@de .\n')
    new = next(
        f"<{EX}{h}> <{EX}{r}> <{EX}{t}> .\n" for h, r, _ in triples for t in ("alga",) if (h, r, t) not in triples
    )
    (folder / "new.nt").write_text(f"{new}<{EX}alga> <{EX}{triples[0][1]}> _:something .\n")
    return folder


def build(umls_folder: Path, data: Path, index: Path, *options: str) -> int:
    maps = ("--entity-to-id", str(data / "entity.tsv"), "--relation-to-id", str(data / "relation.tsv"))
    call = ["build", "--model", str(umls_folder), "--train", str(data / "umls.ttl.gz"), *maps, "--index", str(index)]
    return cli.main([*call, *SMALL, *options])


@pytest.fixture(scope="module")
def index(umls_folder: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of them."""
    root = tmp_path_factory.mktemp("index") / "root"
    assert build(umls_folder, data, root, "--names", str(data / "umls.ttl.gz"), "--prefix", f"umls={EX}") == 0
    return root


def answer(index: Path, capsys: pytest.CaptureFixture[str], *triple: str) -> dict[str, Any]:
    capsys.readouterr()
    assert cli.main(["query", "--index", str(index), "--triple", *triple, "--top-k", "3", "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)["results"][0]
    return result


def test_a_triple_is_asked_for_by_iris_and_by_prefixed_names(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All spellings are one question; names and prefixes are shown."""
    by_iri = answer(index, capsys, f"{EX}alga", f"{EX}interacts_with", f"{EX}human")
    names = [(part["label"], part["name"]) for part in by_iri["triple"].values()]
    assert names == [(f"{EX}alga", "Alga"), (f"{EX}interacts_with", "ex:interacts_with"), (f"{EX}human", "ex:human")]
    assert answer(index, capsys, "ex:alga", "umls:interacts_with", "ex:human") == by_iri
    assert cli.main(["query", "--index", str(index), "--triple", "ex:alga", "ex:interacts_with", "ex:human"]) == 0
    assert capsys.readouterr().out.startswith("Alga  ex:interacts_with  ex:human\n")


def test_what_is_left_out_is_said_or_refused(
    umls_folder: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line says how many statements are no triples; with --only-iris the build ends there."""
    assert build(umls_folder, data, tmp_path / "index", "--names", str(data / "names.nt"), "--lang", "de") == 0
    said = capsys.readouterr()
    report = json.loads(said.out)
    left_out = "statements of {} have a literal or a blank node: they were left out\n"
    assert left_out.format(data / "umls.ttl.gz") in said.err
    assert report["skipped"] == 0
    with IndexRoot(tmp_path / "index").open() as live:
        assert live.manifest.counts["training_triples"] == report["triples"]
    assert answer(tmp_path / "index", capsys, "ex:alga", "ex:treats", "ex:human")["triple"]["tail"]["name"] == "Mensch"
    more = ["append", "--index", str(tmp_path / "index"), "--train", str(data / "new.nt"), "--json"]
    assert cli.main([*more, "--only-iris"]) == 1
    assert "new.nt line 2: a literal or blank node is no entity" in capsys.readouterr().err
    assert cli.main(more) == 0
    said = capsys.readouterr()
    assert f"1 {left_out.format(data / 'new.nt')}" in said.err
    assert json.loads(said.out)["triples"] == report["triples"] + 1
    assert answer(tmp_path / "index", capsys, "ex:alga", "ex:treats", "ex:human")["triple"]["tail"]["name"] == "Mensch"


@pytest.mark.parametrize("prefix", ["wd", "wd=", "w:d=http://x/"])
def test_a_prefix_has_a_name_and_an_iri(
    umls_folder: Path, data: Path, tmp_path: Path, prefix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 2."""
    with pytest.raises(SystemExit) as raised:
        build(umls_folder, data, tmp_path / "index", "--prefix", prefix)
    assert raised.value.code == 2
    assert f"'{prefix}' is not NAME=IRI" in capsys.readouterr().err


def test_codex_goes_from_rdf_to_an_answer_and_back(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A full-size model over IRIs, asked by prefixed names; graphs that are written hold what JSON holds."""
    model, data = shared / "models" / "conve-codex-s", shared / "data" / "CoDEx-S"
    vocabulary, _ = read_training_folder(model / "training_triples")
    described = json.loads((data / "relations.en.json").read_text())
    wd, wdt = "http://www.wikidata.org/entity/", "http://www.wikidata.org/prop/direct/"
    lines = [f"@prefix wd: <{wd}> .\n@prefix wdt: <{wdt}> .\n"]
    for line in (data / "train.txt").read_text().splitlines():
        head, relation, tail = line.split("\t")
        lines.append(f"wd:{head} wdt:{relation} wd:{tail} .\n")
    lines += [f"wdt:{label} {LABEL} {json.dumps(described[label]['label'])}@en .\n" for label in vocabulary.relations]
    (tmp_path / "codex.trig").write_text("".join(lines))
    for name, namespace, labels in (("e.tsv", wd, vocabulary.entities), ("r.tsv", wdt, vocabulary.relations)):
        (tmp_path / name).write_text("".join(f"{namespace}{label}\t{i}\n" for i, label in enumerate(labels)))
    given = {"train": "codex.trig", "names": "codex.trig", "entity-to-id": "e.tsv", "relation-to-id": "r.tsv"}
    files = [text for flag, name in given.items() for text in (f"--{flag}", str(tmp_path / name))]
    assert cli.main(["build", "--model", str(model), *files, "--index", str(tmp_path / "index"), *SMALL]) == 0

    test = tmp_path / "test.tsv"
    known = {*vocabulary.entities, *vocabulary.relations}
    triples = [line.split("\t") for line in (data / "test.txt").read_text().splitlines()]
    triples = [triple for triple in triples if known.issuperset(triple)][:5]
    test.write_text("".join(f"wd:{head}\twdt:{relation}\twd:{tail}\n" for head, relation, tail in triples))
    outputs = {ending: tmp_path / f"out{ending}" for ending in (".json", ".graphml", ".jsonld")}
    for output in outputs.values():
        assert (
            cli.main(["query", "--index", str(tmp_path / "index"), "--test", str(test), "--output", str(output)]) == 0
        )
    answer = from_json(Influences, outputs[".json"].read_bytes())
    assert [str(result.triple.head) for result in answer.results] == [f"wd:{head}" for head, _, _ in triples]
    assert [str(result.triple.relation) for result in answer.results] == [described[r]["label"] for _, r, _ in triples]
    assert {result.certified for result in answer.results} == {True}
    check_graph(nx.read_graphml(outputs[".graphml"], force_multigraph=True), answer, [*range(len(triples))])
    store = ox.Store()
    store.load(path=outputs[".jsonld"], format=ox.RdfFormat.JSON_LD)
    check_statements(store, answer)
    head = f"{wd}{triples[0][0]}"
    assert ox.NamedNode(head) in {quad.object for quad in store.quads_for_pattern(None, SUBJECT, None)}
