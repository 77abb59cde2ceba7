"""The parts of the benchmark of sets that can be wrong without anybody noticing."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from benchmarks.fb15k237 import RESULTS
from benchmarks.truth import sets, whole
from benchmarks.truth.graphs import Graph
from benchmarks.truth.scores import indexed
from benchmarks.truth.training import tail_scores

from kgtrace_indexer import BuildConfig
from kgtrace_indexer.explaining.calibration import BY_INTERACTION
from kgtrace_indexer.explaining.predictor import Predictor
from tests.benchmarks.test_truth import graph as graph, toy as toy


def test_a_fit_finds_the_factor_and_covers_what_it_says() -> None:
    """Of changes whose spread grows with what is predicted, the half width does so, too."""
    rng = np.random.default_rng(0)
    predicted = rng.normal(size=4000)
    noise = rng.normal(size=(4000, 3)) * (0.2 + 0.8 * np.abs(5 * predicted))[:, None]
    changes = 5 * predicted[:, None] + noise
    found = sets.fit(predicted[:2000], changes[:2000])
    assert found["factor"] == pytest.approx(5, abs=0.2)
    assert found["slope"] > 0.5
    assert sets.coverage(found, predicted[2000:], changes[2000:]) == pytest.approx(sets.COVERAGE, abs=0.01)


def test_changes_without_growing_spread_have_an_interval_of_one_width() -> None:
    """And as many lie inside as were asked for."""
    rng = np.random.default_rng(0)
    predicted = rng.normal(size=4000)
    changes = predicted[:, None] + rng.normal(size=(4000, 2))
    found = sets.fit(predicted, changes)
    assert found["slope"] <= 0.05
    assert found["floor"] == pytest.approx(1.645, abs=0.1)  # of a normal distribution


def test_moved_rows_say_to_first_order_what_is_predicted(graph: Graph, toy: str) -> None:
    """And the model is afterwards what it was."""
    explained = whole.Explained(whole.Whole(toy, graph), graph.test[:5])
    members, positions = np.arange(5), np.array([3, 11, 20])
    head, relation, _ = torch.from_numpy(explained.test).T
    before = tail_scores(explained.whole.module, head, 2 * relation).detach()
    with indexed(explained.whole.model, graph, BuildConfig(device="cpu", dim=8, landmarks=20)) as attributor:
        predictor = Predictor(attributor)
        wanted = [predictor.own_changes(predictor.completions(t, "tail"), positions).sum() for t in explained.test]
        found = sets.moved_changes(explained, predictor, positions, 0.1 * predictor.factor, members)
    assert max(map(abs, wanted)) > 0.1
    np.testing.assert_allclose(np.array(found) / 0.1, wanted, atol=0.02 * max(map(abs, wanted)))
    np.testing.assert_array_equal(tail_scores(explained.whole.module, head, 2 * relation).detach(), before)


@pytest.mark.slow
def test_sets_compare_with_models_that_were_trained_on_everything(graph: Graph, toy: str) -> None:
    """Every prediction loses a set of every size, and the tables show all of it."""
    found = sets.measure(toy, replace(graph, test=graph.train[:20]), seeds=2, predictions=6)
    assert np.array(found["changes"]).shape == (len(found["predicted"]), 2)
    assert len(found["predicted"]) == len(sets.SIZES) * found["predictions"] == found["rows"]["all"]["sets"]
    text = sets.shown({toy: found | {"seeds": 2}})
    assert all(f"| {title} |" in text for title in found["rows"])
    assert f"| toy | {found['fit']['factor']:.3f} |" in text


def test_the_product_has_what_was_measured() -> None:
    """Its constants are the fits in the repository; nobody edits a figure."""
    for problem, interaction in (("umls", "ConvE"), ("umls-complex", "ComplEx")):
        measured = json.loads((RESULTS / f"sets-{problem}-cpu.json").read_text())["fit"]
        calibration = BY_INTERACTION[interaction]
        assert {name: round(value, 3) for name, value in measured.items()} == {
            "factor": calibration.factor, "floor": calibration.floor, "slope": calibration.slope
        }  # fmt: skip
