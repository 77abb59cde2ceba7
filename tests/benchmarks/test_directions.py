"""P of one direction, against dense linear algebra, and what a default index says where both count alike."""

from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.truth.directions import directed
from benchmarks.truth.graphs import Graph
from benchmarks.truth.scores import influences

from kgtrace_indexer import ModelFile
from kgtrace_indexer.gradients.losses import removal
from kgtrace_indexer.index.preconditioner import AUTO_DAMPING
from kgtrace_indexer.models.protocol import scoring_model
from tests.benchmarks.test_truth import graph, model, trained

__all__ = ["graph", "model", "trained"]  # fixtures


@pytest.mark.parametrize("outcome", ["logit", "probability"])
def test_where_both_directions_count_alike_it_is_the_index(graph: Graph, model: ModelFile, outcome: Any) -> None:
    """Of either outcome."""
    found = directed(model, graph, graph.test[:3], outcome, other=1.0, moment=1.0)
    options: dict[str, Any] = {"directions": "both", "damping": AUTO_DAMPING, "outcome": outcome}
    wanted = influences(model, graph, graph.test[:3], **options).of
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


def test_it_is_the_dense_formula(graph: Graph, model: ModelFile) -> None:
    """F of the tails' gradients, a half of the heads'."""
    network, squares = scoring_model(model, torch.device("cpu")), dict[str, float]()

    def rows(triples: np.ndarray, direction: str) -> dict[str, torch.Tensor]:
        """Gradients (n, rows, d) of all tables."""
        h, r, t = (torch.from_numpy(column) for column in triples.T)
        ids = (h, 2 * r, t) if direction == "tail" else (t, 2 * r + 1, h)
        with torch.inference_mode():
            terms = network.terms(*ids, per_triple=1, loss=removal, selection=network.select(["all"]))
        found = {}
        squares[direction] = sum(
            float(use.grad.double().square().sum()) for uses in terms.rows.values() for use in uses
        )
        for table, uses in terms.rows.items():
            dense = torch.zeros(len(triples), len(model.tensors[table]), uses[0].grad.shape[1], dtype=torch.float64)
            for use in uses:
                dense[torch.arange(len(triples)), use.index] += use.grad.double()
            found[table] = dense
        return found

    own, other = rows(graph.train, "tail"), rows(graph.train, "head")
    own_squares, test = squares["tail"], rows(graph.test[:3], "tail")
    sigma = AUTO_DAMPING * own_squares / len(graph.train)  # a row that is read twice counts each read
    wanted = torch.zeros(len(graph.train), 3, dtype=torch.float64)
    for table, grad in own.items():
        for row, asked in enumerate(test[table].unbind(1)):
            g = grad[:, row]
            system = g.T @ g + sigma * torch.eye(g.shape[1], dtype=torch.float64)
            wanted += (g + other[table][:, row] / 2) @ (sigma * torch.linalg.solve(system, asked.T))
    found = directed(model, graph, graph.test[:3], "logit")
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))
