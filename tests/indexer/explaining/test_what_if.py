"""Predicted scores, against sums of the influences that an index gives."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kgtrace_indexer import Attributor
from kgtrace_indexer.explaining import completions
from kgtrace_indexer.explaining.calibration import BY_INTERACTION
from kgtrace_indexer.explaining.explainer import SetExplainer
from kgtrace_indexer.inputs.model_reader import with_checkpoints, with_models
from kgtrace_indexer.names import Direction
from kgtrace_store.errors import BadRequest, IdOutOfRange
from tests.indexer.explaining.indexes import Data, alive, changes, indexed
from tests.indexer.models.zoo import Save, nations as nations, save as save, seeds

POSITIONS = np.array([2, 9, 10, 30, 59])
DIRECTIONS: tuple[Direction, Direction] = ("tail", "head")


@pytest.fixture(scope="module")
def attributor(save: Save, nations: Data, tmp_path_factory: pytest.TempPathFactory) -> Attributor:
    """Of a ComplEx without inverse relations."""
    return indexed(tmp_path_factory.mktemp("index"), save("ComplEx", False).model, nations)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("name", ["ConvE", "ComplEx", "TransE", "RotatE", "TuckER"])
def test_changes_are_sums_of_influences(
    save: Save, nations: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, inverse: bool
) -> None:
    """Of every completion, in both directions, for a training triple and a loop, and in blocks of a few entities."""
    monkeypatch.setattr(completions, "BLOCK", 5)
    attributor = indexed(tmp_path, alive(save, name, inverse), nations)
    explainer, training = SetExplainer(attributor), attributor.training
    for triple in (np.asarray(training.triples[9], np.int64), np.array([3, 1, 3])):
        for direction in DIRECTIONS:
            found = explainer.what_if(
                triple, training.train_index[POSITIONS], direction=direction, top_k=len(attributor.vocabulary.entities)
            )
            wanted = changes(attributor, triple, POSITIONS, direction)
            close = 2e-4 * abs(wanted).max()
            assert close > 0
            np.testing.assert_allclose(found.scores_after - found.scores, wanted.sum(0)[found.entities], atol=close)
            target = int(triple[2 if direction == "tail" else 0])
            np.testing.assert_allclose(found.changes, wanted[:, target], atol=close)
            np.testing.assert_allclose(found.score_after - found.score, wanted.sum(0)[target], atol=close)
            np.testing.assert_array_equal(found.triples, training.triples[POSITIONS])


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_ranks_and_best_completions_are_of_the_predicted_scores(attributor: Attributor, direction: Direction) -> None:
    """The best come first; a training triple other than the target neither counts nor shows."""
    training = attributor.training
    column, fixed = (2, [0, 1]) if direction == "tail" else (0, [1, 2])
    _, first, counts = np.unique(training.triples[:, fixed], axis=0, return_index=True, return_counts=True)
    triple = np.asarray(training.triples[first[counts > 1][0]], np.int64)
    found = SetExplainer(attributor).what_if(triple, training.train_index[POSITIONS], direction=direction, top_k=5)
    after = attributor.candidate_scores(triple[None], direction)[0]
    after += changes(attributor, triple, POSITIONS, direction).sum(0)
    same = (training.triples[:, fixed] == triple[fixed]).all(1)
    after[np.setdiff1d(training.triples[same, column], triple[[column]])] = -np.inf
    np.testing.assert_array_equal(found.entities, np.argsort(-after, kind="stable")[:5])
    assert found.rank_after == 1 + (after > after[triple[column]]).sum()
    (before,) = attributor.query(triple[None], direction=direction).attributions
    assert (found.rank, found.score) == (before.rank, pytest.approx(before.score, rel=1e-6))


def test_a_training_triple_of_other_rows_changes_nothing(attributor: Attributor) -> None:
    """Its change is 0, where the others' are not."""
    training = attributor.training
    triple = np.asarray(training.triples[0], np.int64)
    apart = ~np.isin(training.triples[:, [0, 2]], triple[[0, 2]]).any(1) & (training.triples[:, 1] != triple[1])
    places = np.array([0, np.flatnonzero(apart)[0]])
    found = SetExplainer(attributor).what_if(triple, training.train_index[places])
    by_index = dict(zip(found.train_index.tolist(), found.changes.tolist(), strict=True))
    assert by_index[int(training.train_index[places[1]])] == 0 != by_index[int(training.train_index[0])]


def test_an_interval_is_of_models_that_were_tried(save: Save, nations: Data, tmp_path: Path) -> None:
    """It grows with the change; a TransE has none, nor a model of another loss, or without inverse relations."""
    tried = indexed(tmp_path / "tried", save("ComplEx", True, loss="bcewithlogits").model, nations)
    training = tried.training
    triple = np.asarray(training.triples[9], np.int64)
    wide, narrow = (SetExplainer(tried).what_if(triple, training.train_index[p]) for p in (POSITIONS, POSITIONS[-1:]))
    calibration = BY_INTERACTION["ComplEx"]
    halves = [calibration.half_width(found.score_after - found.score) for found in (wide, narrow)]
    for found, half in zip((wide, narrow), halves, strict=True):
        assert found.interval == pytest.approx((found.score_after - half, found.score_after + half))
        assert found.measured_on == calibration.measured_on
    assert halves[0] > halves[1] >= calibration.floor
    others: list[tuple[str, bool, str, dict[str, Any]]] = [
        ("TransE", True, "bcewithlogits", {}),
        ("ComplEx", True, "crossentropy", {}),
        ("ComplEx", False, "bcewithlogits", {}),
        ("ComplEx", True, "bcewithlogits", {"damping": 1.0}),
        ("ComplEx", True, "bcewithlogits", {"layers": ("last:1",)}),
        ("ComplEx", True, "bcewithlogits", {"sample_rate": 0.9}),
    ]
    for number, (name, inverse, loss, config) in enumerate(others):
        other = indexed(tmp_path / str(number), save(name, inverse, loss=loss).model, nations, **config)
        unknown = SetExplainer(other).what_if(triple, other.training.train_index[:3])
        assert (unknown.interval, unknown.measured_on) == (None, None)


def test_wrong_questions_are_refused(attributor: Attributor) -> None:
    """A set without triples, rows that are not indexed, ids beyond the tables."""
    explainer, triple = SetExplainer(attributor), np.array([0, 0, 1])
    with pytest.raises(BadRequest, match="no training triples to leave out"):
        explainer.what_if(triple, np.array([], np.int64))
    unknown = int(attributor.training.train_index.max()) + 1
    with pytest.raises(BadRequest, match=f"train_index {unknown} is of no indexed training triple"):
        explainer.what_if(triple, np.array([unknown]))
    with pytest.raises(IdOutOfRange):
        explainer.what_if(np.array([0, 0, 999]), attributor.training.train_index[:1])
    with pytest.raises(BadRequest, match="type float64, needs integers"):
        explainer.what_if(triple, np.array([0.5]))
    with pytest.raises(BadRequest, match="top_k is 0"):
        explainer.what_if(triple, attributor.training.train_index[:1], top_k=0)


def test_indexes_of_other_scores_are_refused(save: Save, nations: Data, umls_index: Path, tmp_path: Path) -> None:
    """Of a loss that is not the score, and of several checkpoints."""
    model = save("ComplEx", False).model
    triple = np.array([0, 0, 1])
    other = indexed(tmp_path / "loss", model, nations, loss="bce")
    with pytest.raises(BadRequest, match="of the loss bce"):
        SetExplainer(other).what_if(triple, other.training.train_index[:1])
    state = tmp_path / "state.pt"
    torch.save(save("ComplEx", False).original.state_dict(), state)
    several = indexed(tmp_path / "checkpoints", with_checkpoints(model, [state, state], [1.0]), nations)
    with pytest.raises(BadRequest, match="over checkpoints of weights 1, 1, and"):
        SetExplainer(several).what_if(triple, several.training.train_index[:1])


@pytest.mark.parametrize(("name", "inverse"), [("ConvE", True), ("ComplEx", True), ("TransE", False)])
def test_several_models_predict_the_mean_of_their_changes(
    save: Save, nations: Data, tmp_path: Path, name: str, inverse: bool
) -> None:
    """Each with its own unit of damping, with factors of the score and without; scores are the first model's."""
    models = seeds(alive(save, name, inverse), 3)
    together = SetExplainer(indexed(tmp_path / "all", with_models(models[0], models[1:]), nations))
    apart = [indexed(tmp_path / str(i), model, nations) for i, model in enumerate(models)]
    training, positions = together.predictor.training, POSITIONS
    triple = np.asarray(training.triples[3], np.int64)
    factors = [SetExplainer(one).predictor.factor for one in apart]
    alone = [changes(one, triple, positions, "tail") / f for one, f in zip(apart, factors, strict=True)]
    wanted = together.predictor.factor * np.mean(alone, 0)
    found = together.what_if(triple, training.train_index[positions], top_k=200)
    first = apart[0].candidate_scores(triple[None])[0]
    scale = np.abs(wanted).max()
    assert found.score == pytest.approx(float(first[triple[2]]))
    assert found.score_after - found.score == pytest.approx(wanted[:, triple[2]].sum(), abs=1e-3 * scale)
    np.testing.assert_allclose(found.changes, wanted[:, triple[2]], rtol=1e-3, atol=1e-3 * scale)
    np.testing.assert_allclose(found.scores_after, (first + wanted.sum(0))[found.entities], atol=2e-3 * scale)
    assert (found.interval, found.measured_on) == (None, None)
