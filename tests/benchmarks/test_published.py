"""Published explanations, deleted beside ours."""

from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.truth import published, retraining, whole
from benchmarks.truth.graphs import Graph

from tests.benchmarks.test_truth import RECIPE, graph

__all__ = ["graph"]  # a fixture


def test_predictions_and_facts_are_read(graph: Graph, tmp_path: Path) -> None:
    """Empty fields are no facts; a prediction of an entity that training lacks is passed over."""
    rows = {tuple(triple): row for row, triple in enumerate(graph.train.tolist())}
    (h, r, t), (h2, r2, t2) = graph.train[3].tolist(), graph.train[7].tolist()
    line = f"e1;r0;e2;e{h};r{r};e{t};e{h2};r{r2};e{t2};;;;;;;1.5;0.2;1;7\n"
    (tmp_path / "facts.csv").write_text(line + "unknown;r0;e2" + line[8:])
    assert list(published.read(tmp_path / "facts.csv", graph, rows)) == [((1, 0, 2), [3, 7])]


def test_a_file_of_anybodys_is_compared_with_ours(
    graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of its predictions those that the model ranks first; deletions are trained without, and shown."""
    monkeypatch.setattr(whole, "FOLDER", tmp_path)
    monkeypatch.setattr(retraining, "FOLDER", tmp_path)
    monkeypatch.setattr(published, "FOLDER", tmp_path / "none")
    monkeypatch.setitem(whole.PROBLEMS, "X-ComplEx", ("X", replace(RECIPE, model="ComplEx", epochs=60)))
    triples = [f"e{h};r{r};e{t}" for h, r, t in graph.train.tolist()]
    facts = [f"{triple};{triples[(i + 1) % len(triples)]}" for i, triple in enumerate(triples)]
    (tmp_path / "facts.csv").write_text("\n".join(facts) + "\n")
    found = published.measure("X-ComplEx", graph, seeds=1, predictions=str(tmp_path / "facts.csv"))
    assert 0 < found["predictions"] <= found["published"] == len(graph.train)
    assert set(found["rows"]) >= {"file", "kgtrace explain, up to 4", "kgtrace, logit, 1", "kgtrace, probability, 4"}
    assert found["rows"]["file"]["deleted"] > 0
    shown = published.shown({"X-ComplEx": {**found, "seeds": 1}})
    assert f"{found['predictions']} of {len(graph.train)} published predictions" in shown
    assert "| nothing | 0 |" in shown
