"""Reasons of training triples: each kind by example, paths against all paths, hubs and inverses by their samples."""

import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from kgtrace_indexer import open_index
from kgtrace_indexer.answers import Ids, Reason
from kgtrace_indexer.index import neighbours
from kgtrace_indexer.index.neighbours import Neighbours, graph_of
from kgtrace_indexer.index.training_set import TrainingSet, in_order
from kgtrace_indexer.query.reasons import Reasons
from kgtrace_store import layout
from kgtrace_store.arrays import open_arrays, write_part
from kgtrace_store.errors import CorruptGeneration

CITY_OF, CAPITAL, HAS_CAPITAL, SPEAKS = range(4)
PREDICTION = (0, CAPITAL, 1)


def reasons(*triples: Ids) -> Reasons:
    ids = np.array(triples, np.int32).reshape(-1, 3)
    ids = ids[in_order(ids)]
    none = np.zeros(len(ids), np.float32)
    training = TrainingSet(ids, np.arange(len(ids)), {"tracin": none}, {"tracin": none}, ids)
    return Reasons(training, lambda: graph(ids))


def graph(ids: np.ndarray) -> Neighbours:
    return Neighbours(ids, graph_of(ids))


@pytest.mark.parametrize(
    ("fact", "others", "name"),
    [
        (PREDICTION, [], "itself"),
        ((1, HAS_CAPITAL, 0), [(3, HAS_CAPITAL, 2), (2, CAPITAL, 3), PREDICTION], "inverse"),
        ((1, HAS_CAPITAL, 0), [(3, HAS_CAPITAL, 2), PREDICTION], "same-pair"),  # one reversed pair proves nothing
        (  # two of five are not half
            (1, HAS_CAPITAL, 0),
            [*((i, HAS_CAPITAL, 9) for i in range(2, 6)), (9, CAPITAL, 2), (9, CAPITAL, 3)],
            "same-pair",
        ),
        ((0, CITY_OF, 1), [], "same-pair"),
        ((0, CAPITAL, 2), [(1, SPEAKS, 2)], "path"),
        ((0, CAPITAL, 2), [(2, SPEAKS, 3), (3, SPEAKS, 1)], "same-head-relation"),
        ((2, CAPITAL, 1), [(2, SPEAKS, 3), (3, SPEAKS, 0)], "same-relation-tail"),
        ((2, CITY_OF, 0), [(2, SPEAKS, 3), (3, SPEAKS, 1)], "path"),
        ((2, CITY_OF, 3), [(3, SPEAKS, 0), (2, SPEAKS, 1)], "path"),
        ((2, CITY_OF, 0), [(2, SPEAKS, 3)], "shares-head"),
        ((1, CAPITAL, 2), [], "shares-tail"),
        ((0, CITY_OF, 0), [(0, SPEAKS, 2), (2, SPEAKS, 1)], "shares-head"),  # no path leads through an entity twice
        ((2, CAPITAL, 3), [(3, SPEAKS, 0)], "same-relation"),
        ((2, CITY_OF, 3), [(3, SPEAKS, 0)], "none"),
        ((7, CITY_OF, 8), [], "none"),
    ],
)  # fmt: skip
def test_each_reason(fact: Ids, others: list[Ids], name: str) -> None:
    """The first that holds, in the order that the documentation gives."""
    assert reasons(fact, *others).of(PREDICTION, fact).name == name


def test_an_inverse_says_how_much_of_it_is_reversed() -> None:
    """Three of four of its triples are."""
    pairs = [(i, HAS_CAPITAL, i + 10) for i in range(1, 5)]
    back = [(tail, CAPITAL, head) for head, _, tail in pairs[:3]]
    assert reasons(*pairs, *back).of((11, CAPITAL, 1), pairs[0]) == Reason("inverse", share=0.75)


def test_a_symmetric_relation_is_its_own_inverse() -> None:
    """Married people are married to one another."""
    couples = [(i, SPEAKS, i + 10) for i in range(4)]
    found = reasons(*couples, *((tail, SPEAKS, head) for head, _, tail in couples))
    assert found.of((10, SPEAKS, 0), couples[0]) == Reason("inverse", share=1.0)


def test_the_share_of_a_large_relation_is_measured_on_a_sample() -> None:
    """Of 3,000 triples every third is looked at; all of these are reversed, the others are not."""
    pairs = [(i, HAS_CAPITAL, 5000) for i in range(3000)]
    found = reasons(*pairs, *((5000, CAPITAL, i) for i in range(0, 3000, 3)))
    assert found.reversed_share(HAS_CAPITAL, CAPITAL) == 1.0


triples = st.tuples(st.integers(0, 5), st.integers(0, 2), st.integers(0, 5))


@given(st.lists(triples, min_size=1, max_size=14, unique=True), triples)
@settings(deadline=None, max_examples=400)
def test_a_path_is_named_where_there_is_one(known: list[Ids], prediction: Ids) -> None:
    """Against all paths without a repeated entity: each that is named is one of them, and of the shortest."""
    found = reasons(*known)
    for fact in known:
        reason = found.of(prediction, fact)
        paths = [path for path in simple_paths(known, prediction) if fact in path]
        shortest = min(map(len, paths), default=None)
        if reason.name == "path":
            assert reason.path in paths
            assert len(reason.path) == shortest
        elif reason.name in ("shares-head", "shares-tail", "same-relation", "none"):
            assert shortest is None
        elif reason.name in ("same-head-relation", "same-relation-tail"):
            assert shortest != 2


def simple_paths(known: list[Ids], prediction: Ids) -> list[tuple[Ids, ...]]:
    """Every path of two or three triples from head to tail, by trying all."""
    head, _, tail = prediction
    ways = [((), (head,))]
    paths = []
    for _ in range(3):
        ways = [
            ((*steps, fact), (*entities, end))
            for steps, entities in ways
            for fact in known
            for start, end in {(fact[0], fact[2]), (fact[2], fact[0])}
            if start == entities[-1] and end not in entities
        ]
        paths += [steps for steps, entities in ways if entities[-1] == tail and len(steps) > 1]
        ways = [way for way in ways if way[1][-1] != tail]
    return paths


def test_a_path_goes_by_the_rarest_entity() -> None:
    """Of two ways on, the one through an entity of few triples says more than that through a hub."""
    hub, rare = 4, 5
    crowd = [(hub, SPEAKS, i) for i in range(10, 20)]
    found = reasons((0, SPEAKS, 2), (2, SPEAKS, hub), (hub, SPEAKS, 1), (2, SPEAKS, rare), (rare, SPEAKS, 1), *crowd)
    path = found.of(PREDICTION, (0, SPEAKS, 2)).path
    assert path == ((0, SPEAKS, 2), (2, SPEAKS, rare), (rare, SPEAKS, 1))


def test_hubs_are_intersected_on_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the shorter list no more than a bounded number is compared, the smaller one whole where it is short."""
    monkeypatch.setattr(neighbours, "_MOST", 10)
    both, first, second = np.arange(100, 200), 1, 2
    edges = np.array([(end, 0, entity) for end in (first, second) for entity in both], np.int32)
    hubs = graph(edges)
    assert hubs.common(first, second).tolist() == list(range(100, 200, 10))
    assert hubs.common(first, 150).tolist() == []
    few = graph(np.concatenate([edges, np.array([(3, 0, i) for i in range(191, 200)], np.int32)]))
    assert few.common(3, first).tolist() == list(range(191, 200))


def test_an_index_holds_the_graph(umls_index: Path, tmp_path: Path) -> None:
    """As it would be made; an older index without it gives the same reasons, a graph of other triples is refused."""
    root = Path(shutil.copytree(umls_index, tmp_path / "index"))
    attributor = open_index(root, device="cpu")
    (attribution,) = attributor.query(np.array([[3, 5, 9]]), top_k=50).attributions
    path = attributor.files.folder / layout.GRAPH
    written, made = open_arrays(path), graph_of(attributor.training.known)
    assert written.keys() == made.keys()
    for name, array in made.items():
        np.testing.assert_array_equal(written[name], array)
    facts = [(h, r, t) for h, r, t in attribution.triples.tolist()]
    found = [attributor.reasons.of(attribution.triple, fact) for fact in facts]
    assert "path" in {reason.name for reason in found}
    path.unlink()
    older = open_index(root, device="cpu", verify=False).reasons
    assert [older.of(attribution.triple, fact) for fact in facts] == found
    write_part(path, graph_of(attributor.training.known[1:]))
    with pytest.raises(CorruptGeneration, match="graph of 5216 training triples has arrays of"):
        open_index(root, device="cpu", verify=False).reasons.prepare()
    write_part(path, {"begin": made["begin"]})
    with pytest.raises(CorruptGeneration, match="lacks 'neighbour'"):
        open_index(root, device="cpu", verify=False).reasons.prepare()


def test_the_graph_of_a_cluster_of_triples() -> None:
    """Degrees count places; a triple from one entity to the other goes before one back."""
    cluster = graph(np.array([(2, 0, 1), (1, 1, 2), (1, 1, 3)], np.int32))
    assert cluster.degree(np.array([0, 1, 2, 3, 9])).tolist() == [0, 3, 2, 1, 0]
    assert [cluster.between(*pair) for pair in pairwise((1, 2, 1, 3, 2))] == [(1, 1, 2), (2, 0, 1), (1, 1, 3), None]
    assert cluster.between(9, 1) is None


@given(st.lists(triples, max_size=30), st.lists(triples, min_size=1, max_size=10), st.integers(0, 3))
def test_triples_are_looked_up_by_bisection(known: list[Ids], asked: list[Ids], relation: int) -> None:
    """As in a set of them."""
    training = reasons(*known)._training
    heads, _, tails = np.array(asked).T
    expected = [(head, relation, tail) in known for head, _, tail in asked]
    assert training.holds(heads, relation, tails).tolist() == expected
