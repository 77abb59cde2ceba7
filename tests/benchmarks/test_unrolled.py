"""Derivatives through training, against training again."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from benchmarks.truth.graphs import Graph
from benchmarks.truth.retraining import outcome
from benchmarks.truth.training import train
from benchmarks.truth.unrolled import Unrolled

from tests.benchmarks.test_truth import RECIPE, graph

__all__ = ["graph"]  # a fixture


@pytest.mark.parametrize("softmax", [False, True])
def test_they_are_what_a_little_weight_changes(graph: Graph, softmax: bool) -> None:
    """The training is that of the benchmark; some triples' weights are moved either way, and it is trained again."""
    recipe = replace(RECIPE, model="ComplEx", softmax=softmax, epochs=2)
    unrolled = Unrolled(graph, recipe, seed=3)
    wanted = outcome(train(graph, graph.train, recipe, seed=3).model, recipe, graph, graph.test)[:2]
    np.testing.assert_allclose(unrolled.outcomes(unrolled.parameters, graph.test), wanted, rtol=1e-4, atol=1e-4)

    found, size = unrolled.derivatives(graph.test), 1e-5
    for row in (0, 17, 59):
        around = []
        for change in (size, -size):
            weights = torch.ones(len(graph.train), dtype=torch.float64)
            weights[row] += change
            moved = Unrolled(graph, recipe, seed=3, weights=weights)
            around.append(moved.outcomes(moved.parameters, graph.test).numpy())
        slope = (around[0] - around[1]) / (2 * size)
        np.testing.assert_allclose(found[:, row], slope, rtol=1e-3, atol=1e-3 * np.abs(found).max())


def test_other_models_are_refused(graph: Graph) -> None:
    with pytest.raises(ValueError, match="training of ConvE"):
        Unrolled(graph, RECIPE, seed=0)
