"""Explanations as a graph in GraphML, http://graphml.graphdrawing.org, for Gephi, Cytoscape, Neo4j and the like.

Nodes are entities. Edges are triples: each test triple, and each training triple that influenced it.
"""

import re
from collections.abc import Iterable
from itertools import count
from typing import TYPE_CHECKING, Any, BinaryIO

from kgtrace_server.schema.answers import Influences, Named, NamedTriple

if TYPE_CHECKING:
    from networkx import MultiDiGraph

MEDIA_TYPE = "application/graphml+xml"

_NOT_XML = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot hold, and CR, which it turns into LF."""


def write(sink: BinaryIO, answers: Iterable[Influences], test_indices: Iterable[int] | None = None) -> int:
    """Write answers as one graph, which is in memory whole; return how many influences they hold.

    ``test_indices`` tells which test triple each result is about, by default counted from 0.
    """
    import networkx as nx

    graph = nx.MultiDiGraph()
    predictions = influences = 0
    numbers = iter(count() if test_indices is None else test_indices)
    for answer in answers:
        graph.graph.update(answer.origin)
        for result in answer.results:
            predictions += 1
            about = {"test_index": next(numbers), **result.values()}
            _add(graph, f"prediction-{predictions}", result.triple, prediction=True, **about)
            for position, influence in enumerate(result.influences, 1):
                influences += 1
                values = {name: about[name] for name in ("test_index", "certified")} | influence.values()
                _add(graph, f"influence-{influences}", influence.triple, prediction=False, position=position, **values)
    nx.write_graphml_xml(graph, sink)
    return influences


def _add(graph: "MultiDiGraph", edge: str, triple: NamedTriple, **values: Any) -> None:
    for entity in (triple.head, triple.tail):
        graph.add_node(str(entity.id), **_texts(entity))
    values = {name: _xml(value) if isinstance(value, str) else value for name, value in values.items()}
    graph.add_edge(str(triple.head.id), str(triple.tail.id), key=edge, **_texts(triple.relation), **values)


def _texts(named: Named) -> dict[str, str]:
    """Return what identifies an entity or relation, and what people read."""
    return {"label": _xml(named.label), "name": _xml(str(named))}


def _xml(text: str) -> str:
    """Return a text with characters that XML cannot hold written as Python writes them."""
    return _NOT_XML.sub(lambda match: repr(match[0])[1:-1], text)
