"""Published sufficient explanations, told of the same entities as ours."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from benchmarks.truth import convincing, retraining, whole
from benchmarks.truth.graphs import Graph
from benchmarks.truth.paper import OURS, RANDOM, Explanation, Row, write

from tests.benchmarks.test_truth import RECIPE, graph

__all__ = ["graph"]  # a fixture


def test_facts_told_of_entities_are_read(graph: Graph, tmp_path: Path) -> None:
    """Empty fields are no facts; an entity that training lacks is passed over."""
    line = "e1;r0;e2;e5;r0;e2;e5;r1;e3;e4;r0;e5;;;;;;;0.1;4.5;30;1\n"
    (tmp_path / "facts.csv").write_text(line + line.replace("e5", "unknown"))
    ((pair, found),) = convincing.read(tmp_path / "facts.csv", graph).items()
    assert pair == ((1, 0, 2), 5)
    assert (found.triple, found.prediction) == ((1, 0, 2), (5, 0, 2))
    assert found.facts.tolist() == [[5, 1, 3], [4, 0, 5]]


def test_anybodys_facts_are_compared_with_ours(graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the form that the author's kit writes; every method tells the same entities, with the same controls."""
    monkeypatch.setattr(whole, "FOLDER", tmp_path)
    monkeypatch.setattr(retraining, "FOLDER", tmp_path)
    monkeypatch.setattr(convincing, "FOLDER", tmp_path / "none")
    monkeypatch.setitem(whole.PROBLEMS, "X-ComplEx", ("X", replace(RECIPE, model="ComplEx", epochs=60)))
    told = [
        Explanation.of(triple, entity, graph.train[(graph.train == triple).all(1)])
        for triple in graph.train[:12].tolist()
        for entity in (0, 3, 7)
        if entity != triple[0]
    ]
    unknown = np.zeros((3, len(told)))
    write(tmp_path / "facts.csv", Row("sufficient", "x", 1, None, told), graph, unknown, unknown)
    found = convincing.measure("X-ComplEx", graph, seeds=1, predictions=str(tmp_path / "facts.csv"))
    theirs, *_, ours, random = found["rows"]
    assert (theirs["method"], ours["method"], random["method"]) == ("file", OURS, RANDOM)
    assert 0 < found["predictions"] <= found["published"] == 12
    assert 0 < theirs["looked at"] == ours["looked at"] < len(told)
    assert theirs["control"] == ours["control"]
    assert theirs["effect"]["mrr"]["mean"] > 0  # they were told outright
    assert "| sufficient | file " in convincing.shown({"X-ComplEx": {**found, "seeds": 1}})
