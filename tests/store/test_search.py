"""Both search back ends keep the contract; FAISS also keeps it on disk."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from kgtrace_store import search
from kgtrace_store.errors import CorruptGeneration, InputError, MissingExtra, NonFinite, StorageFailed
from kgtrace_store.search import ExactSearch, FaissSearch, SearchIndex, search_threads, set_search_threads
from kgtrace_store.sharded_search import ShardedSearch
from tests.store.contract import SearchIndexContract

SMALL = st.floats(-100, 100, width=16)


def blocks(vectors: np.ndarray, rows: int = 64) -> Iterator[np.ndarray]:
    return (vectors[i : i + rows] for i in range(0, len(vectors), rows))


def in_half(vectors: np.ndarray) -> np.ndarray:
    return (vectors.view(np.uint32) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def faiss_index(vectors: np.ndarray) -> FaissSearch:
    return FaissSearch.build(blocks(vectors), *vectors.shape)


class TestExactSearch(SearchIndexContract):
    """The oracle."""

    def build(self, vectors: np.ndarray) -> SearchIndex:
        return ExactSearch(vectors)


class TestFaissSearch(SearchIndexContract):
    """FAISS, as built."""

    def build(self, vectors: np.ndarray) -> SearchIndex:
        return faiss_index(vectors)


class TestFaissSearchInHalf(SearchIndexContract):
    """FAISS with vectors that bfloat16 holds without loss, written and mapped."""

    @pytest.fixture
    def vectors(self) -> np.ndarray:
        """(200, 7) float32, norms that differ a lot."""
        rng = np.random.default_rng(0)
        return in_half((rng.standard_normal((200, 7)) * rng.lognormal(sigma=2, size=(200, 1))).astype(np.float32))

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path

    def build(self, vectors: np.ndarray) -> SearchIndex:
        FaissSearch.build(blocks(vectors), *vectors.shape, half=True).write(self.folder / "search.faiss")
        return FaissSearch.read(self.folder / "search.faiss")


class TestFaissSearchOnDisk(SearchIndexContract):
    """FAISS, written and mapped."""

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path

    def build(self, vectors: np.ndarray) -> SearchIndex:
        faiss_index(vectors).write(self.folder / "search.faiss")
        return FaissSearch.read(self.folder / "search.faiss")


class TestShardedSearch(SearchIndexContract):
    """Shards of different sizes, one of them empty, side by side."""

    threads = 2

    @pytest.fixture(autouse=True)
    def _threads(self) -> Iterator[None]:
        before = search_threads()
        set_search_threads(self.threads)
        yield
        set_search_threads(before)

    def build(self, vectors: np.ndarray) -> SearchIndex:
        return ShardedSearch([faiss_index(each) for each in np.split(vectors, [10, 10, 83])])


class TestShardedSearchInOneThread(TestShardedSearch):
    """The same, one shard after the other."""

    threads = 1


def test_equal_scores_of_shards_come_in_the_order_of_ids() -> None:
    """As one index gives them."""
    vectors = np.ones((9, 2), np.float32)
    index = ShardedSearch([ExactSearch(each) for each in np.split(vectors, 3)])
    np.testing.assert_array_equal(index.search(np.ones((1, 2), np.float32), 5)[1], [range(5)])


@settings(max_examples=60)
@given(st.data())
def test_faiss_agrees_with_the_oracle(data: st.DataObject) -> None:
    """Scores agree for any vectors, ties and zeros included; ids have the scores they are listed with."""
    n, d, k = data.draw(st.tuples(st.integers(0, 12), st.integers(1, 5), st.integers(1, 15)))
    vectors = data.draw(hnp.arrays(np.float32, (n, d), elements=SMALL))
    queries = data.draw(hnp.arrays(np.float32, (3, d), elements=SMALL))
    exact_scores, _ = ExactSearch(vectors).search(queries, k)
    scores, ids = faiss_index(vectors).search(queries, k)
    np.testing.assert_allclose(scores, exact_scores, rtol=1e-4, atol=1e-2)
    for row in range(3):
        hits = ids[row][: min(n, k)]
        assert len(set(hits.tolist())) == len(hits)
        np.testing.assert_allclose(vectors[hits] @ queries[row], scores[row][: len(hits)], rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(
    ("count", "dim", "message"),
    [
        (201, 7, "expected 201 vectors, found 200"),
        (100, 7, "expected 100 vectors, found at least 128"),
        (200, 8, r"expected blocks of shape \(m, 8\), found \(64, 7\)"),
    ],
)
def test_blocks_that_do_not_fit_are_refused(count: int, dim: int, message: str) -> None:
    """The message holds what was announced and what came."""
    with pytest.raises(InputError, match=message):
        FaissSearch.build(blocks(np.ones((200, 7), np.float32)), count, dim)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_vectors_are_refused(bad: float) -> None:
    """The message names the row, counted over all blocks."""
    vectors = np.ones((200, 7), np.float32)
    vectors[130, 2] = bad
    with pytest.raises(NonFinite, match="vector 130 "):
        faiss_index(vectors)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    """Truncated, empty, foreign and missing files do not open as an index."""
    path = tmp_path / "search.faiss"
    faiss_index(np.ones((50, 7), np.float32)).write(path)
    data = path.read_bytes()
    for damaged in (data[:-1], data[:100], data[:20], b"", b"hello world" * 100):
        path.write_bytes(damaged)
        with pytest.raises(CorruptGeneration, match="not a whole FAISS index"):
            FaissSearch.read(path)
    path.unlink()
    with pytest.raises(CorruptGeneration, match="is missing"):
        FaissSearch.read(path)


def test_other_kinds_of_index_are_refused(tmp_path: Path) -> None:
    """An index by distance would answer a different question."""
    faiss = search.load_faiss()
    faiss.write_index(faiss.IndexFlatL2(3), str(tmp_path / "l2"))
    with pytest.raises(CorruptGeneration, match="IndexFlatL2, expected IndexFlatIP, or Index"):
        FaissSearch.read(tmp_path / "l2")


def test_a_full_disk_is_named() -> None:
    """The message holds the path and the reason of the operating system."""
    with pytest.raises(StorageFailed, match=r"cannot write /dev/full: No space left on device \(needed 1400 bytes"):
        faiss_index(np.ones((50, 7), np.float32)).write(Path("/dev/full"))


def test_missing_faiss_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without FAISS everything else works, and searching names the extra."""
    monkeypatch.setitem(sys.modules, "faiss", None)
    search.load_faiss.cache_clear()
    try:
        with pytest.raises(MissingExtra, match=r"kgtrace\[cpu\]"):
            faiss_index(np.ones((1, 1), np.float32))
    finally:
        search.load_faiss.cache_clear()


def test_threads_move_the_blas_threshold() -> None:
    """Batches take the matrix product as soon as it pays for the number of threads."""
    faiss = search.load_faiss()
    threads = faiss.omp_get_max_threads()
    try:
        search.set_search_threads(3)
        assert faiss.omp_get_max_threads() == 3
        assert faiss.cvar.distance_compute_blas_threshold == 2400
    finally:
        search.set_search_threads(threads)
