"""Gauss–Newton blocks of embedding rows, against second derivatives of what was trained."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks.truth import whole
from benchmarks.truth.curvature import Curvature
from benchmarks.truth.training import KnownTails, tail_scores
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

from tests.benchmarks.test_truth import RECIPE, graph

__all__ = ["graph"]  # a fixture


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("table", ["relation_representations", "entity_representations"])
def test_they_are_second_derivatives_where_scores_are_linear(
    graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str, softmax: bool
) -> None:
    """As ComplEx's are in a row of the relation table, and in one of the entity table but for its uses together."""
    monkeypatch.setattr(whole, "FOLDER", tmp_path)
    monkeypatch.setitem(whole.PROBLEMS, "X", ("X", replace(RECIPE, model="ComplEx", softmax=softmax, epochs=2)))
    trained = whole.Whole("X", graph)
    module = trained.module.double()
    weight = getattr(module, table)[0]._embeddings.weight
    pairs = KnownTails.of(graph.train).pairs
    row = int(pairs[0, 1]) if table == "relation_representations" else 5

    def loss(moved: Tensor, uses: Tensor) -> Tensor:
        """Of pairs (m, 2); labels do not matter, as they are linear in the scores."""
        changed = torch.cat([weight[:row].detach(), moved[None], weight[row + 1 :].detach()])
        monkeypatch.setitem(getattr(module, table)[0]._embeddings._parameters, "weight", changed)
        scores = tail_scores(module, *uses.T)
        monkeypatch.setitem(getattr(module, table)[0]._embeddings._parameters, "weight", weight)
        if softmax:
            return scores.logsumexp(1).sum()
        return cross_entropy(scores, torch.zeros_like(scores), reduction="sum")

    uses = pairs if table == "relation_representations" else pairs[pairs[:, 0] != row]  # a row that is h and e has both
    wanted = torch.autograd.functional.hessian(lambda moved: loss(moved, uses), weight[row].detach())
    found = Curvature(trained, uses).blocks[f"{table}.0._embeddings.weight"][row]
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)
