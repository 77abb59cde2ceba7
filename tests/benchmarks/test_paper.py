"""An author's table of necessary and sufficient explanations."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.truth import paper, published, retraining, whole
from benchmarks.truth.deletion import ranked_first
from benchmarks.truth.graphs import Graph
from benchmarks.truth.paper import Explanation, Row
from benchmarks.truth.whole import Explained, Whole

from tests.benchmarks.test_truth import RECIPE, graph

__all__ = ["graph"]  # a fixture


@pytest.fixture
def explained(graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Explained:
    """A trained model and some of its training triples."""
    monkeypatch.setattr(whole, "FOLDER", tmp_path)
    monkeypatch.setattr(retraining, "FOLDER", tmp_path)
    monkeypatch.setitem(whole.PROBLEMS, "X-ComplEx", ("X", replace(RECIPE, model="ComplEx", epochs=60)))
    return Explained(Whole("X-ComplEx", graph), graph.train[:2])


def test_facts_are_told_of_another_entity() -> None:
    """On whichever side the head stands; other entities stay."""
    facts = np.array([[5, 0, 2], [3, 1, 5], [5, 2, 5]])
    found = Explanation.of((5, 0, 9), 7, facts)
    assert found.prediction == (7, 0, 9)
    assert found.facts.tolist() == [[7, 0, 2], [3, 1, 7], [7, 2, 7]]
    assert Explanation.of((5, 0, 9), 5, facts).facts.tolist() == facts.tolist()


def test_necessary_facts_are_taken_away_and_sufficient_ones_added(explained: Explained) -> None:
    """Facts that are there already are not added again; a run with additions is another than one without."""
    train = explained.graph.train
    there, new = train[4:6], np.array([[train[0, 0], train[0, 1], train[1, 0]]])
    assert not (train == new).all(1).any()
    triple = tuple(train[0].tolist())
    away = Row("necessary", "x", 4, None, [Explanation(triple, triple[0], there)]).jobs(explained, 2)
    assert [(job.seed, np.flatnonzero(~job.kept).tolist(), job.added) for job in away] == [
        (0, [4, 5], None),
        (1, [4, 5], None),
    ]
    both = np.concatenate([there, new])
    (job,) = Row("sufficient", "x", 4, None, [Explanation(triple, int(train[9, 0]), both)]).jobs(explained, 1)
    assert job.kept.all()
    assert job.added is not None
    assert job.added.tolist() == new.tolist()
    assert job.predictions.tolist() == [[train[9, 0], *triple[1:]]]
    assert job.file != replace(job, added=None).file
    (looked_at,) = retraining.retrain([job])
    assert looked_at.shape == (3, 1)


def test_the_table_and_the_files_of_an_author(explained: Explained, tmp_path: Path) -> None:
    """Both modes of both sizes beside random facts; files are those that published explanations come in."""
    graph = explained.graph
    seen = replace(graph, test=graph.train)  # what it knows by heart, it ranks first
    found = paper.measure("X-ComplEx", seen, output=str(tmp_path / "out"), seeds=1, predictions=5, entities=3)
    asked = [(row["mode"], row["method"], row["k"]) for row in found["rows"]]
    assert asked == [
        (m, who, k) for m in ("necessary", "sufficient") for k in (1, 4) for who in (paper.OURS, paper.RANDOM)
    ]
    folder = tmp_path / "out" / "X-ComplEx"
    rows = {tuple(triple): row for row, triple in enumerate(graph.train.tolist())}
    read = dict(published.read(folder / "necessary-kgtrace-4.csv", graph, rows))
    assert len(read) == found["predictions"]
    assert (
        len(np.unique(np.concatenate([np.array(facts, int) for facts in read.values()]))) == found["rows"][2]["facts"]
    )
    with (folder / "sufficient-kgtrace-4.csv").open(newline="") as lines:
        sufficient = list(csv.reader(lines, delimiter=";"))
    assert len(sufficient) == found["rows"][6]["looked at"]
    assert all(len(line) == 3 + 3 + 3 * 4 + 4 for line in sufficient)
    assert all(line[4:6] == line[1:3] != line[3] for line in sufficient)
    assert all(line[3] in line[6:9] for line in sufficient if line[6])  # the first fact is of the other entity
    for file in ("table.csv", "table.md", "table.tex"):
        assert "sufficient" in (folder / file).read_text()
    assert "5 predictions" in paper.shown({"X-ComplEx": {**found, "seeds": 1}})


def test_without_entities_to_tell_facts_of_there_is_no_sufficient_row(
    explained: Explained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the model ranks the tail first with all of them, say."""
    monkeypatch.setattr(
        paper, "_sufficient", lambda explained, explainer, k, entities: Row("sufficient", "x", k, 0, [])
    )
    monkeypatch.setattr(paper, "retrain", lambda jobs: [np.ones((3, len(job.predictions))) for job in jobs])
    explained.whole.graph = replace(explained.graph, test=explained.graph.train)
    found = paper.examine(explained.whole, output=str(tmp_path / "out"), seeds=1, predictions=5, entities=3)
    assert [(row["mode"], row["k"]) for row in found["rows"]] == [("necessary", k) for k in (1, 1, 4, 4)]


def test_a_prediction_that_only_a_test_triple_outranks_is_first_among_what_an_index_does_not_know(
    explained: Explained,
) -> None:
    """The kit leaves it out: to `kgtrace explain` its tail is the second."""
    whole, known = explained.whole, set(map(tuple, explained.graph.train.tolist()))
    head, relation, _ = explained.graph.train[0].tolist()
    with torch.inference_mode():
        scores = whole.recipe.scores(whole.module, *torch.tensor([[head], [relation]]))[0]
    unknown = [e for e in scores.argsort(descending=True).tolist() if (head, relation, e) not in known]
    test = np.array([[head, relation, entity] for entity in unknown[:2]])
    whole.graph = replace(whole.graph, test=test)
    for filtered, wanted in ((True, test.tolist()), (False, test[:1].tolist())):
        assert sorted(ranked_first(whole, 9, filtered=filtered).test.tolist()) == sorted(wanted)
