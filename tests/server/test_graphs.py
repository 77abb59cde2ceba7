"""Explanations as graphs: what other programs read in GraphML and JSON-LD is what the JSON says."""

import io
import math
from dataclasses import replace
from typing import Any

import networkx as nx
import pyoxigraph as ox
import pytest

from kgtrace_server import graphml, jsonld
from kgtrace_server.schema.answers import Explanation, Influences, Named
from kgtrace_server.schema.questions import InfluenceRequest
from kgtrace_server.service import Service

PROV, RDF, RDFS = (
    "http://www.w3.org/ns/prov#",
    "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "http://www.w3.org/2000/01/rdf-schema#",
)


@pytest.fixture
def answer(service: Service) -> Influences:
    return service.influences(
        InfluenceRequest.of(triples=[("aspirin", "treats", "headache"), ("fever", "2", "a/b?c=d")], top_k=3)
    )


def read_graph(answer: Influences, *test_indices: int) -> nx.MultiDiGraph:
    """The graph that networkx reads from what is written."""
    content = io.BytesIO()
    graphml.write(content, [answer], *[test_indices] * bool(test_indices))
    content.seek(0)
    graph: nx.MultiDiGraph = nx.read_graphml(content, force_multigraph=True)
    return graph


def check_graph(graph: nx.MultiDiGraph, answer: Influences, test_indices: list[int]) -> None:
    """Compare a graph with the answer that it was written from."""
    assert {name: graph.graph[name] for name in answer.origin} == answer.origin
    edges = {key: (graph.nodes[u], values, graph.nodes[v]) for u, v, key, values in graph.edges(keys=True, data=True)}
    influences = (pair for result in answer.results for pair in enumerate(result.influences, 1))
    expected = {
        **{f"prediction-{i}": (result, result.triple) for i, result in enumerate(answer.results, 1)},
        **{f"influence-{i}": (influence, influence.triple) for i, (_, influence) in enumerate(influences, 1)},
    }
    assert set(edges) == set(expected)
    for key, (head, values, tail) in edges.items():
        part, triple = expected[key]
        assert [each["label"] for each in (head, values, tail)] == [
            named.label for named in (triple.head, triple.relation, triple.tail)
        ]
        assert [each["name"] for each in (head, values, tail)] == [
            str(named) for named in (triple.head, triple.relation, triple.tail)
        ]
        assert {name: values[name] for name in part.values()} == part.values()
        assert values["prediction"] == isinstance(part, Explanation)
    for test_index, result in zip(test_indices, answer.results, strict=True):
        mine = [values for _, values, _ in edges.values() if values["test_index"] == test_index]
        assert len(mine) == 1 + len(result.influences)
        assert {values["certified"] for values in mine} == {result.certified}
        assert sorted(values["position"] for values in mine if not values["prediction"]) == [*range(1, len(mine))]


def test_networkx_reads_the_graph(answer: Influences) -> None:
    """Nodes, edges and every number come back; each edge says which prediction it is about."""
    check_graph(read_graph(answer), answer, [0, 1])
    check_graph(read_graph(answer, 7, 9), answer, [7, 9])


def test_characters_that_xml_lacks_are_shown_as_escapes(answer: Influences) -> None:
    """A label may hold any character; the document stays readable."""
    first = answer.results[0]
    label = "a\x00b\rc\ufffe<&>\"'\td\ne"
    triple = replace(first.triple, head=Named(99, label, None))
    graph = read_graph(replace(answer, results=(replace(first, triple=triple),)))
    assert graph.nodes["99"]["label"] == "a\\x00b\\rc\\ufffe<&>\"'\td\ne"


def read_statements(answer: Influences) -> ox.Store:
    """What an RDF library reads from what is written."""
    content = io.BytesIO()
    jsonld.write(content, [answer])
    store = ox.Store()
    store.load(content.getvalue(), ox.RdfFormat.JSON_LD)
    return store


def check_statements(store: ox.Store, answer: Influences) -> None:
    """Compare RDF with the answer that it was written from."""
    rows: Any = store.query(
        f"""
        PREFIX prov: <{PROV}> PREFIX rdf: <{RDF}> PREFIX rdfs: <{RDFS}> PREFIX : <{jsonld.TERMS}>
        SELECT ?gen ?ranked_by ?h ?score ?certified ?position ?row ?head ?relation ?tail ?influence ?tracin ?pre {{
            ?explanation a prov:Entity, :Explanation ; :generation ?gen ; :ranked_by ?ranked_by ;
                :certified ?certified ; :score ?score ; :triple [ a rdf:Statement ; rdf:subject/rdfs:label ?h ] ;
                prov:qualifiedDerivation ?derivation .
            ?derivation a prov:Derivation ; :position ?position ; :influence ?influence ; :tracin ?tracin ;
                :preconditioned ?pre ; prov:entity ?triple .
            ?triple a prov:Entity, rdf:Statement ; :train_index ?row ; rdf:subject/rdfs:label ?head ;
                rdf:predicate/rdfs:label ?relation ; rdf:object/rdfs:label ?tail .
        }}"""
    )
    found = sorted(tuple(term.value for term in row) for row in rows)
    expected = sorted(
        (
            answer.generation, answer.score, str(result.triple.head), result.score, str(result.certified).lower(),
            str(position), str(one.train_index), str(one.triple.head), str(one.triple.relation), str(one.triple.tail),
            one.influence, one.tracin, one.preconditioned,
        )
        for result in answer.results
        for position, one in enumerate(result.influences, 1)
    )  # fmt: skip
    numbers = (3, 10, 11, 12)
    assert (
        sorted(tuple(float(value) if i in numbers else value for i, value in enumerate(row)) for row in found)
        == expected
    )


def test_an_rdf_library_reads_the_provenance(answer: Influences) -> None:
    """Explanations, derivations and training triples are connected in the words of PROV-O, with every value."""
    store = read_statements(answer)
    check_statements(store, answer)
    terms = {
        quad.predicate.value.removeprefix(jsonld.TERMS)
        for quad in store
        if quad.predicate.value.startswith(jsonld.TERMS)
    }
    assert {*answer.results[0].values(), *answer.results[0].influences[0].values()} <= terms


def test_iris_name_themselves_and_labels_are_escaped(answer: Influences) -> None:
    """A label that is an IRI is the node; any other becomes one, the same for the same label."""
    first = answer.results[0]
    triple = replace(first.triple, head=Named(98, "http://example.org/a", "A"), relation=Named(97, "a b:<c>", None))
    store = read_statements(replace(answer, results=(replace(first, triple=triple),)))
    nodes = {quad.object.value for quad in store.quads_for_pattern(None, ox.NamedNode(f"{RDF}subject"), None)}
    assert "http://example.org/a" in nodes
    relations = {quad.object.value for quad in store.quads_for_pattern(None, ox.NamedNode(f"{RDF}predicate"), None)}
    assert f"{jsonld.THINGS}relation/a%20b%3A%3Cc%3E" in relations


def test_unknown_numbers_are_left_out(answer: Influences) -> None:
    """JSON has null for them; a graph has nothing."""
    first = answer.results[0]
    unknown = replace(answer, results=(replace(first, bound_gap=None, certified=False, notes=("flat",)),))
    (edge,) = [values for *_, values in read_graph(unknown).edges(data=True) if values["prediction"]]
    assert "bound_gap" not in edge
    store = read_statements(unknown)
    assert not list(store.quads_for_pattern(None, ox.NamedNode(f"{jsonld.TERMS}bound_gap"), None))
    (note,) = store.quads_for_pattern(None, ox.NamedNode(f"{jsonld.TERMS}notes"), None)
    assert note.object == ox.Literal("flat")
    assert math.isfinite(edge["score"])
