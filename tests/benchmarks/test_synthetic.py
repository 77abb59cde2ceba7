"""Synthetic graphs for benchmarks: reproducible, without repetition, with hubs."""

import numpy as np
import pytest
from benchmarks.synthetic import Graph, draw, train

ENTITIES = 2000


@pytest.fixture(scope="module")
def graph() -> Graph:
    """12,000 triples."""
    return draw(12_000, ENTITIES, seed=0)


def test_triples_are_different_and_within_bounds(graph: Graph) -> None:
    """As many triples as asked for, none of them twice, with ids of the graph's entities and relations."""
    assert graph.triples.shape == (12_000, 3)
    assert len(np.unique(graph.triples, axis=0)) == 12_000
    assert graph.triples.min() >= 0
    assert (graph.triples.max(0) < [graph.entities, graph.relations, graph.entities]).all()


def test_a_seed_fixes_the_graph(graph: Graph) -> None:
    """The same seed gives the same triples in the same order, another one others."""
    np.testing.assert_array_equal(draw(12_000, ENTITIES, seed=0).triples, graph.triples)
    assert (draw(12_000, ENTITIES, seed=1).triples != graph.triples).any()


def test_degrees_have_a_heavy_tail(graph: Graph) -> None:
    """The hundredth of the entities that most triples have as tail takes far more than a hundredth; relations too."""
    tails = np.sort(np.bincount(graph.triples[:, 2], minlength=ENTITIES))[::-1]
    relations = np.sort(np.bincount(graph.triples[:, 1], minlength=graph.relations))[::-1]
    assert tails[: ENTITIES // 100].sum() > 0.1 * tails.sum()
    assert np.median(tails) < tails.mean()
    assert relations[: graph.relations // 100].sum() > 0.1 * relations.sum()


def test_training_is_reproducible_and_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    """A seed fixes the model; its tables have the graph's sizes and hold finite numbers."""
    monkeypatch.setattr("benchmarks.synthetic._LEAST_TRAINED", 1)
    graph = draw(600, 100, seed=0)
    first, second = train(graph, seed=0), train(graph, seed=0)
    assert first["entity_representations.0._embeddings.weight"].shape[0] == graph.entities
    assert first["relation_representations.0._embeddings.weight"].shape[0] == graph.relations
    for name, tensor in first.items():
        assert tensor.isfinite().all(), name
        assert tensor.equal(second[name]), name
