"""Whether a model ranks its training triples better than chance, and what is said where it does not."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kgtrace_indexer import BuildConfig, ModelFile, TripleTable, build, open_index
from kgtrace_indexer.building.checks import verify
from kgtrace_indexer.building.fit import fit
from kgtrace_indexer.index.training_set import TrainingSet
from kgtrace_store import Vocabulary

Umls = tuple[ModelFile, Vocabulary, TripleTable]
SMALL = BuildConfig(precondition="none", dim=4, landmarks=64)


class Scored:
    """What `fit` asks of an index: triples, and scores of all entities by head and relation."""

    def __init__(self, triples: np.ndarray, scores: np.ndarray) -> None:
        ordered = triples[np.lexsort(triples.T[[2, 0, 1]])].astype(np.int32)
        self.vocabulary = Vocabulary([str(i) for i in range(scores.shape[2])], ["0"])
        self.training = TrainingSet(ordered, np.arange(len(ordered)), np.ones(len(ordered)), {}, ordered)
        self.scores = scores

    def __len__(self) -> int:
        return len(self.training.triples)

    def candidate_scores(self, triples: np.ndarray) -> np.ndarray:
        scores: np.ndarray = self.scores[triples[:, 0], triples[:, 1]]
        return scores


def shares_of_tails(scored: Scored, permutation: np.ndarray) -> float:
    """Mean share, by counting, of entities without training triple that each triple's permuted tail outranks."""
    shares = []
    for head, relation, tail in scored.training.triples.tolist():
        known = set(scored.training.tails_of(head, relation).tolist())
        row = scored.scores[head, relation]
        others = [row[entity] for entity in range(len(row)) if entity not in known]
        own = row[permutation[tail]]
        shares.append(sum((own > other) + (own == other) / 2 for other in others) / len(others))
    return float(np.mean(shares))


@pytest.fixture
def scored() -> Scored:
    rng = np.random.default_rng(0)
    triples = np.unique(np.stack([rng.integers(0, 20, 90), rng.integers(0, 3, 90), rng.integers(0, 11, 90)], 1), axis=0)
    scores = rng.normal(size=(20, 3, 20)).round(1)  # with ties
    scores[triples[:, 0], triples[:, 1], triples[:, 2]] += 0.5
    return Scored(triples, scores)


def test_deviations_are_those_of_permuted_tails(scored: Scored) -> None:
    """Mean and variance in closed form are those of counted shares over permutations drawn at random."""
    found = fit(scored)  # type: ignore[arg-type]
    tails = np.unique(scored.training.triples[:, 2])
    assert (found.triples, found.tails) == (len(scored), len(tails))
    identity = np.arange(20)
    assert found.outranked == pytest.approx(shares_of_tails(scored, identity))
    rng = np.random.default_rng(1)
    drawn = []
    for _ in range(500):
        permutation = identity.copy()
        permutation[tails] = rng.permutation(tails)
        drawn.append(shares_of_tails(scored, permutation))
    assert found.deviations == pytest.approx((found.outranked - np.mean(drawn)) / np.std(drawn), rel=0.15)
    assert not found.chance


def test_equal_scores_are_chance_and_few_tails_say_nothing(scored: Scored) -> None:
    """A model that scores everything alike knows nothing; with seven tails nobody can tell."""
    scored.scores[:] = 1.0
    found = fit(scored)  # type: ignore[arg-type]
    assert (found.outranked, found.deviations, found.chance) == (0.5, 0.0, True)
    few = Scored(scored.training.triples[scored.training.triples[:, 2] < 7], scored.scores)
    assert not fit(few).chance  # type: ignore[arg-type]


def test_a_trained_model_is_told_from_chance(umls_index: Path) -> None:
    """After four epochs, and far from the threshold."""
    found = fit(open_index(umls_index, device="cpu"))
    assert found.triples == 512
    assert found.outranked > 0.6
    assert found.deviations > 5


def test_ids_made_anew_and_untrained_models_are_built_with_a_warning(umls: Umls, tmp_path: Path) -> None:
    """Both are legal and published; report, verdict and `verify` say what is wrong."""
    model, vocabulary, table = umls
    rng = np.random.default_rng(0)
    kept = rng.choice(len(table.ids), 300, replace=False)
    entities, relations = rng.permutation(model.num_entities), rng.permutation(model.num_relations)
    head, relation, tail = table.ids[kept].T
    renumbered = np.stack([entities[head], relations[relation], entities[tail]], 1).astype(np.int32)
    untrained = {
        name: torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0)) * 0.1
        if name.endswith("_embeddings.weight")
        else tensor
        for name, tensor in model.tensors.items()
    }
    rows = np.arange(300)
    right = build(tmp_path / "right", model, vocabulary, TripleTable(table.ids[kept], rows, 0), SMALL)
    assert right.warnings == ()
    for name, used, ids in (
        ("renumbered", model, renumbered),
        ("untrained", replace(model, tensors=untrained), table.ids[kept]),
    ):
        report = build(
            tmp_path / name, used, vocabulary, TripleTable(ids, rows, 0), SMALL, gate_report=tmp_path / "report.json"
        )
        assert report.published
        (warning,) = report.warnings
        assert warning.startswith("ranks of training triples: hardly better than chance: tails of 300 outrank ")
        assert "id maps" in warning
        verdict = json.loads((tmp_path / "report.json").read_bytes())
        assert verdict["ok"]
        assert [check["name"] for check in verdict["checks"] if check["warning"]] == ["ranks of training triples"]
        checked = {check.name: check for check in verify(open_index(tmp_path / name, device="cpu"))}
        assert checked["ranks of training triples"].warning
