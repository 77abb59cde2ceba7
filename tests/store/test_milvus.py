"""Milvus keeps the contract of search back ends, and holds what it was sent."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from kgtrace_store import milvus
from kgtrace_store.errors import MissingExtra, SearchUnavailable
from kgtrace_store.milvus import ALIAS, Entry, Milvus, MilvusLists
from kgtrace_store.search import ExactSearch, FilteringIndex, SearchIndex
from tests.milvus_server import milvus_server
from tests.store.contract import SearchIndexContract

NUMBERS = count()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Milvus]:
    """A connection to a server."""
    with milvus_server(tmp_path_factory.mktemp("milvus")) as uri:
        yield Milvus(uri)


def triples(n: int) -> np.ndarray:
    """Distinguishable ones."""
    rng = np.random.default_rng(0)
    return rng.integers(0, (20, 4, 20), (n, 3)).astype(np.int32)


def hold(server: Milvus, vectors: np.ndarray) -> SearchIndex:
    """Vectors as a generation of their own."""
    return server.hold(f"test-{next(NUMBERS)}", np.array_split(vectors, 3), triples(len(vectors)), vectors.shape[1])


class TestMilvusSearch(SearchIndexContract):
    """As it is."""

    @pytest.fixture(autouse=True)
    def _server(self, server: Milvus) -> None:
        self.server = server

    def build(self, vectors: np.ndarray) -> SearchIndex:
        return hold(self.server, vectors)


class TestMilvusSearchInWindows(TestMilvusSearch):
    """With more hits than Milvus returns at a time."""

    @pytest.fixture(autouse=True)
    def _most(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(milvus, "_MOST", 9)
        monkeypatch.setattr(milvus, "_ENTITIES", 50)


@pytest.mark.parametrize("most", [16_384, 7])
def test_filters_are_pushed_down(server: Milvus, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Milvus looks at allowed training triples alone; ids stay as they are."""
    monkeypatch.setattr(milvus, "_MOST", most)
    rng = np.random.default_rng(1)
    vectors, query = rng.standard_normal((200, 8)).astype(np.float32), rng.standard_normal((2, 8)).astype(np.float32)
    index = hold(server, vectors)
    assert isinstance(index, FilteringIndex)
    known = triples(200)
    must, must_not = {"relation": {1, 3}, "head": set(range(12))}, {"tail": {4, 5}}
    rows = np.flatnonzero(np.isin(known[:, 1], [1, 3]) & (known[:, 0] < 12) & ~np.isin(known[:, 2], [4, 5]))
    narrowed, oracle = index.where(must, must_not, len(rows)), ExactSearch(vectors[rows])
    assert narrowed.ntotal == len(rows) > 20
    for k in (5, 20, 300):
        (scores, ids), (wanted_scores, wanted) = narrowed.search(query, k), oracle.search(query, k)
        np.testing.assert_array_equal(ids, np.where(wanted < 0, wanted, rows[wanted]))
        np.testing.assert_allclose(scores, wanted_scores, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(
        np.sort(narrowed.range_search(query[0], 0.5)[1]), rows[vectors[rows] @ query[0] >= 0.5]
    )


def test_what_is_held_is_not_sent_again(server: Milvus, monkeypatch: pytest.MonkeyPatch) -> None:
    """But what was interrupted is."""
    vectors = np.random.default_rng(2).standard_normal((60, 8)).astype(np.float32)

    def blocks(end: int) -> Iterator[np.ndarray]:
        yield vectors[:end]
        if end < len(vectors):
            raise ConnectionError("the network is gone")

    with pytest.raises(ConnectionError):
        server.hold("again", blocks(25), triples(60), 8)
    index = server.hold("again", blocks(60), triples(60), 8)
    assert sorted(index.range_search(vectors[0], -np.inf)[1]) == list(range(60))
    assert server.hold("again", iter(()), triples(60), 8).ntotal == 60


def test_rows_that_are_gone_are_noticed(server: Milvus) -> None:
    """An answer from the others would pass for certified."""
    index = server.hold("short", [np.eye(6, dtype=np.float32)], triples(6), 6)
    server._client.delete("kgtrace_short", ids=[2])
    with pytest.raises(SearchUnavailable, match="Milvus found 5 entities of kgtrace_short, there are at least 6"):
        index.search(np.ones((1, 6), np.float32), 8)


def lists(server: Milvus, generation: str, blocks: Iterable[Entry], count: int) -> MilvusLists:
    """Lists over 60 training triples."""
    return server.hold_lists(generation, 0, blocks, count, triples(60), 8)


def entries(rng: np.random.Generator, sizes: Sequence[int]) -> list[Entry]:
    """Lists of some sizes."""
    return [
        (np.full(size, row), rng.permutation(60)[:size], rng.standard_normal((size, 8)).astype(np.float32))
        for row, size in enumerate(sizes)
    ]


@pytest.mark.parametrize("most", [16_384, 5])
def test_lists_are_searched_one_by_one(server: Milvus, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """With filters and without, for several queries, and where Milvus returns few hits at a time."""
    monkeypatch.setattr(milvus, "_MOST", most)
    monkeypatch.setattr(milvus, "_ENTITIES", 16)
    rng = np.random.default_rng(3)
    blocks, queries = entries(rng, [0, 40, 3, 60]), rng.standard_normal((4, 8)).astype(np.float32)
    held = lists(server, f"lists-{most}", blocks, 103)
    heads = triples(60)[:, 0]
    for row in (1, 2, 3):
        _, own, vectors = blocks[row]
        for must, chosen in (({}, np.ones(60, bool)), ({"head": range(9)}, heads < 9)):
            some = np.flatnonzero(chosen[own])
            one = held.where(must, {}).of(row, len(some))
            oracle = ExactSearch(vectors[some])
            (scores, ids), (wanted_scores, wanted) = one.search(queries, 12), oracle.search(queries, 12)
            np.testing.assert_array_equal(ids, np.where(wanted < 0, wanted, row * 60 + np.append(own[some], 0)[wanted]))
            np.testing.assert_allclose(scores, wanted_scores, rtol=1e-5, atol=1e-6)
            query, scores, ids = one.above(queries, 0.5)
            products = vectors[some] @ queries.T
            assert sorted(zip(ids.tolist(), query.tolist(), strict=True)) == sorted(
                (int(row * 60 + own[some[i]]), int(q)) for i, q in np.argwhere(products > 0.5)
            )
            np.testing.assert_allclose(np.sort(scores), np.sort(products[products > 0.5]), rtol=1e-5)


def test_lists_are_sent_until_all_are_there(server: Milvus) -> None:
    """After an interruption again, then never more; a number that is not theirs is an error."""
    blocks = entries(np.random.default_rng(4), [20, 30])

    def broken() -> Iterator[Entry]:
        yield blocks[0]
        raise ConnectionError("the network is gone")

    with pytest.raises(ConnectionError):
        lists(server, "parts", broken(), 50)
    assert len(lists(server, "parts", iter(blocks), 50).of(1, 30).above(np.zeros((1, 8), np.float32), -1.0)[0]) == 30
    assert lists(server, "parts", iter(()), 50).of(0, 20).ntotal == 20
    with pytest.raises(SearchUnavailable, match="holds 50 entities in kgtrace_parts_rows_0, 51 were sent"):
        lists(server, "parts", iter(blocks), 51)
    server._client.delete("kgtrace_parts_rows_0", filter="row == 1 and id >= 100")
    with pytest.raises(SearchUnavailable, match=r"Milvus found \d+ entities of kgtrace_parts_rows_0, there are"):
        lists(server, "parts", iter(blocks), 50).of(1, 31).search(np.ones((1, 8), np.float32), 31)


def test_the_alias_switches_in_one_step(server: Milvus) -> None:
    """From one generation to another, and back."""
    vectors = np.eye(4, dtype=np.float32)
    for generation, factor in (("20260101T000000Z-aaaaaa", 1), ("20260102T000000Z-bbbbbb", 2)):
        server.hold(generation, [factor * vectors], triples(4), 4)
        server.switch(generation)
        (hits,) = server._client.search(ALIAS, [[1.0, 0, 0, 0]], limit=1)
        assert hits[0]["distance"] == factor
    server.switch("20260101T000000Z-aaaaaa")
    assert server._client.describe_alias(ALIAS)["collection_name"] == "kgtrace_20260101T000000Z_aaaaaa"


def test_dropped_generations_are_gone(server: Milvus) -> None:
    """Those that were never there do no harm."""
    server.hold("old", [np.eye(4, dtype=np.float32)], triples(4), 4)
    lists(server, "old", entries(np.random.default_rng(5), [4]), 4)
    server.hold("older", [np.eye(4, dtype=np.float32)], triples(4), 4)
    server.drop(["old", "never-there"])
    assert [name for name in server._client.list_collections() if name.startswith("kgtrace_old")] == ["kgtrace_older"]


def test_a_server_that_is_gone_is_named(tmp_path: Path) -> None:
    """Where it was, and what the client says; the same for an address that is none."""
    with milvus_server(tmp_path) as uri:
        index = Milvus(uri).hold("x", [np.eye(4, dtype=np.float32)], triples(4), 4)
    with pytest.raises(SearchUnavailable, match=rf"Milvus at {uri}: "):
        index.search(np.ones((1, 4), np.float32), 1)
    with pytest.raises(SearchUnavailable, match=rf"Milvus at {uri}: "):
        Milvus(uri)
    with pytest.raises(SearchUnavailable, match="Milvus at nonsense: uri: nonsense is illegal"):
        Milvus("nonsense")


def test_without_the_client_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not an ImportError of some module."""
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(MissingExtra, match=r"pip install 'kgtrace\[scale\]'"):
        Milvus("http://127.0.0.1:19530")
