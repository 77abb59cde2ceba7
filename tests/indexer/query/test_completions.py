"""Predictions against scores by hand; rankings of training triples against sorting all of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from kgtrace_indexer import (
    Attributor,
    BuildConfig,
    ModelFile,
    Restriction,
    TripleTable,
    build,
    open_index,
)
from kgtrace_indexer.index.training_set import TrainingSet
from kgtrace_indexer.query.completions import complete
from kgtrace_store import Vocabulary
from kgtrace_store.errors import BadRequest
from tests.indexer.oracle import gradient, pykeen_model

Umls = tuple[ModelFile, Vocabulary, TripleTable]


@given(
    st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=1, max_size=12),
    st.sets(st.integers(0, 11)),
    st.integers(1, 13),
    st.booleans(),
)
@settings(deadline=None)
def test_completions_are_those_of_a_sorted_list(
    scores: list[float], known: set[int], top_k: int, filtered: bool
) -> None:
    """Highest score first, equal ones by entity; a rank counts others that make no training triple, equal ones half."""
    known = {entity for entity in known if entity < len(scores)}
    found = complete(
        np.array([3, 1, 0]), 2, torch.tensor(scores), np.array(sorted(known), np.int32), top_k=top_k, filtered=filtered
    )
    expected = sorted((-score, entity) for entity, score in enumerate(scores) if not filtered or entity not in known)
    assert found.entities.tolist() == [entity for _, entity in expected[:top_k]]
    assert found.scores.tolist() == [-score for score, _ in expected[:top_k]]
    assert found.triples.tolist() == [[3, 1, entity] for entity in found.entities]
    assert found.in_training.tolist() == [entity in known for entity in found.entities]
    for entity, score, rank in zip(found.entities, found.scores, found.ranks, strict=True):
        others = [other for i, other in enumerate(scores) if i not in known and i != entity]
        best, worst = 1 + sum(other > score for other in others), 1 + sum(other >= score for other in others)
        assert rank == (best + worst) / 2


@pytest.fixture(scope="module")
def attributor(umls_index: Path) -> Attributor:
    return open_index(umls_index, device="cpu")


@pytest.mark.parametrize("direction", ["tail", "head"])
def test_predictions_are_what_queries_say_of_the_same_triples(attributor: Attributor, direction: Any) -> None:
    """Score, rank and whether it is known are the same as when the complete triple is explained."""
    questions = np.asarray(attributor.training.triples[[0, 700]], np.int64)
    for found in attributor.complete(questions, top_k=2, direction=direction):
        explained = attributor.query(found.triples, top_k=1, direction=direction).attributions
        np.testing.assert_allclose(found.scores, [one.score for one in explained], rtol=1e-5)
        assert found.ranks.tolist() == [one.rank for one in explained]
        assert found.in_training.tolist() == [one.in_training for one in explained]
        assert (np.diff(found.scores) <= 0).all()


@pytest.mark.parametrize("direction", ["tail", "head"])
def test_known_facts_can_be_left_out(attributor: Attributor, direction: Any) -> None:
    """Filtered predictions are the others, in the same order."""
    question = np.asarray(attributor.training.triples[:1], np.int64)
    entities = len(attributor.vocabulary.entities)
    (every,) = attributor.complete(question, top_k=entities, direction=direction)
    (others,) = attributor.complete(question, top_k=entities, direction=direction, filtered=True)
    assert every.in_training.any()
    assert len(every.entities) == entities
    assert others.entities.tolist() == every.entities[~every.in_training].tolist()


def test_wrong_questions_are_refused(attributor: Attributor) -> None:
    """As of a query."""
    with pytest.raises(BadRequest, match="top_k is 0"):
        attributor.complete(np.array([[0, 0, 0]]), top_k=0)


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.5, 3.0]), st.integers(0, 2)), max_size=20),
    st.integers(1, 22),
    st.sampled_from(["descending", "ascending"]),
    st.none() | st.integers(0, 2),
    st.randoms(use_true_random=False),
)
@settings(deadline=None)
def test_self_influences_are_ranked_as_by_sorting_all(
    stored: list[tuple[float, int]], top_k: int, order: Any, relation: int | None, random: Any
) -> None:
    """Equal ones come in the order of the rows as read, wherever they are stored."""
    rows = list(range(len(stored)))
    random.shuffle(rows)
    triples = np.array([[0, r, 0] for _, r in stored], np.int32).reshape(-1, 3)
    values = np.array([v for v, _ in stored], np.float32)
    training = TrainingSet(triples, np.array(rows, np.int64), np.ones_like(values), {"tracin": values}, triples)
    restriction = Restriction() if relation is None else Restriction(must={"relation": [relation]})
    found, count = training.by_self_influence("tracin", top_k, order, restriction)
    sign = -1 if order == "descending" else 1
    expected = sorted(
        (sign * v, row, at)
        for at, (row, (v, r)) in enumerate(zip(rows, stored, strict=True))
        if relation is None or r == relation
    )
    assert found.tolist() == [at for _, _, at in expected[:top_k]]
    assert count == len(expected)


def test_stored_self_influences_are_the_norms_of_gradients(
    attributor: Attributor, umls: Umls, umls_folder: Path, tmp_path: Path
) -> None:
    """What is ranked is the squared norm of each training triple's gradient under bce, TracIn's loss."""
    found = attributor.training.self_influence["tracin"]
    rows = attributor.training.by_self_influence("tracin", 5, "descending", Restriction())[0]
    assert found[rows[0]] == found.max()
    assert (np.diff(found[rows]) <= 0).all()
    model = pykeen_model(umls_folder)
    grads = [gradient(model, triple, ["tail", "head"]) for triple in attributor.training.triples[rows]]
    np.testing.assert_allclose(found[rows], [float(g @ g) for g in grads], rtol=1e-4)
    build(tmp_path, *umls, BuildConfig(loss="bce", projection="none"))
    bce = open_index(tmp_path, device="cpu")
    np.testing.assert_allclose(found, bce.training.self_influence["tracin"], rtol=1e-4)
    assert attributor.loss("tracin") == bce.loss("tracin") == "bce"
    assert (attributor.training.squared_norm["preconditioned"] > found).all()  # slopes of removal are larger
