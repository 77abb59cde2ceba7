"""Remarks on answers that are right and say nothing."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kgtrace_indexer import BuildConfig, ModelFile, TripleTable, build, open_index
from kgtrace_indexer.models.conve_network import BIAS
from kgtrace_store import Vocabulary

Umls = tuple[ModelFile, Vocabulary, TripleTable]
SMALL = BuildConfig(loss="bce", dim=8, landmarks=64)


@pytest.mark.parametrize("sample_rate", [1.0, 0.2])
def test_entities_and_relations_without_a_training_triple(umls: Umls, tmp_path: Path, sample_rate: float) -> None:
    """Each is named once, by its label; one that occurs, but in no triple of the sample, is not."""
    model, vocabulary, table = umls
    entity, relation = 100, int(table.ids[0, 1])
    kept = np.flatnonzero((table.ids[:, [0, 2]] != entity).all(1) & (table.ids[:, 1] != relation))[::20]
    few = TripleTable(table.ids[kept], table.train_index[kept], 0)
    build(tmp_path, model, vocabulary, few, replace(SMALL, sample_rate=sample_rate))
    known, (other, absent) = few.ids[0].astype(np.int64), (int(few.ids[0, 1]), relation)
    head = int(known[0])
    asked = np.array([known, [entity, other, entity], [head, absent, entity], [head, absent, head]])
    noted = f"entity {vocabulary.entities[entity]!r} occurs in no training triple: none says anything of it"
    without = f"relation {vocabulary.relations[relation]!r} occurs in no training triple: none says anything of it"
    for exact in (False, True):
        found = open_index(tmp_path, device="cpu").query(asked, exact=exact).attributions
        assert [each.notes for each in found] == [[], [noted], [noted, without], [without]]


@pytest.mark.parametrize("score", ["tracin", "preconditioned"])
@pytest.mark.parametrize("bias", [60.0, 200.0], ids=["tiny", "zero"])
def test_a_loss_that_is_flat(umls: Umls, tmp_path: Path, score: str, bias: float) -> None:
    """Influences on a saturated triple are certified zeros, or nearly so, with a remark; others have none."""
    model, vocabulary, table = umls
    biases = model.tensors[BIAS].clone()
    tail = int(table.ids[0, 2])
    biases[tail] = bias
    few = TripleTable(table.ids[::20], table.train_index[::20], 0)
    build(tmp_path, replace(model, tensors={**model.tensors, BIAS: biases}), vocabulary, few, SMALL)
    asked = np.array([[*few.ids[1, :2], tail], [*few.ids[1, :2], few.ids[0, 0]]], np.int64)
    flat, steep = open_index(tmp_path, device="cpu").query(asked, score=score).attributions
    assert flat.certified
    assert abs(flat.influence).max() < 1e-20 < abs(steep.influence).max()
    assert [note.split(" for ")[0] for note in flat.notes] == ["the gradient of the loss bce vanishes in float32"]
    assert steep.notes == []
    assert torch.isfinite(torch.tensor(flat.cosine)).all()
