"""Near and far training triples: a breadth-first search by hand, and exact scans, against what a query names."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from kgtrace_indexer import Attributor, Restriction, open_index
from kgtrace_indexer.index.training_set import TrainingSet, touching
from kgtrace_store.errors import BadRequest


@pytest.fixture(scope="module")
def attributor(umls_index: Path) -> Attributor:
    return open_index(umls_index, device="cpu")


def distances(triples: list[tuple[int, int, int]], head: int, tail: int) -> dict[int, int]:
    """How many training triples away from head or tail each entity is, one at a time."""
    found = {head: 0, tail: 0}
    queue = [head, tail]
    for entity in queue:
        for a, _, b in triples:
            for here, there in ((a, b), (b, a)):
                if here == entity and there not in found:
                    found[there] = found[here] + 1
                    queue.append(there)
    return found


def training_set(triples: list[tuple[int, int, int]]) -> TrainingSet:
    ids = np.array(triples, np.int32).reshape(-1, 3)
    nothing = np.zeros(len(ids), np.float32)
    return TrainingSet(ids, np.arange(len(ids)), nothing, {"tracin": nothing}, ids)


@given(
    st.lists(st.tuples(st.integers(0, 11), st.integers(0, 2), st.integers(0, 11)), max_size=25),
    st.integers(0, 11),
    st.integers(0, 11),
    st.integers(1, 6),
)
@settings(deadline=None, max_examples=300)
def test_hops_are_counted_as_by_hand(
    triples: list[tuple[int, int, int]], head: int, tail: int, within_hops: int
) -> None:
    """A training triple is within N hops when one of its entities is at most N − 1 training triples away."""
    training = training_set(triples)
    away = distances(triples, head, tail)
    reached = training.reached(np.array([head, 0, tail]), within_hops - 1, 12)
    near = touching(training.triples, reached)
    assert reached.tolist() == [away.get(entity, 99) < within_hops for entity in range(12)]
    assert near.tolist() == [min(away.get(a, 99), away.get(b, 99)) < within_hops for a, _, b in triples]


@pytest.mark.parametrize("order", ["proponents", "absolute"])
def test_answers_within_hops_are_the_exact_ones(attributor: Attributor, order: str) -> None:
    """Each test triple gets the certified best of its own neighbourhood, whatever the others asked with it."""
    tests = np.array([[3, 5, 9], [100, 2, 7], [0, 11, 0]])
    influences = attributor.exact_influences(tests, np.arange(len(attributor)))
    values = np.abs(influences) if order == "absolute" else influences
    columns = attributor.training.triples[:, [0, 2]]
    for exact in (False, True):
        answer = attributor.query(tests, top_k=7, order=order, exact=exact, restriction=Restriction(within_hops=1))
        for i, found in enumerate(answer.attributions):
            near = np.isin(columns, tests[i, [0, 2]]).any(1)
            best = np.sort(values[near, i])[::-1][:7]
            chosen = np.abs(found.influence) if order == "absolute" else found.influence
            assert found.certified
            assert found.candidates <= near.sum()
            assert np.isin(found.triples[:, [0, 2]], tests[i, [0, 2]]).any(1).all()
            np.testing.assert_allclose(chosen, best, rtol=1e-4, atol=1e-6)


def test_fields_and_hops_restrict_together(attributor: Attributor) -> None:
    """Only training triples that are near and have the relation are named, by search and by scan."""
    test = np.array([[3, 5, 9]])
    relation = int(attributor.training.triples[np.isin(attributor.training.triples[:, 0], [3, 9]), 1][0])
    restriction = Restriction(must={"relation": [relation]}, within_hops=1)
    named = []
    for exact in (False, True):
        (found,) = attributor.query(test, top_k=5, exact=exact, restriction=restriction).attributions
        assert len(found.triples)
        assert (found.triples[:, 1] == relation).all()
        assert np.isin(found.triples[:, [0, 2]], [3, 9]).any(1).all()
        named.append(found.influence)
    np.testing.assert_allclose(*named, rtol=1e-4, atol=1e-6)


def test_everything_is_within_enough_hops(attributor: Attributor) -> None:
    """A neighbourhood that is the whole graph restricts nothing."""
    test = np.array([[3, 5, 9]])
    (everywhere,) = attributor.query(test).attributions
    (near,) = attributor.query(test, restriction=Restriction(within_hops=1000)).attributions
    np.testing.assert_array_equal(near.train_index, everywhere.train_index)


def test_no_hops_are_no_neighbourhood(attributor: Attributor) -> None:
    """0 is refused."""
    with pytest.raises(BadRequest, match="within_hops is 0, must be at least 1"):
        attributor.query(np.array([[3, 5, 9]]), restriction=Restriction(within_hops=0))
