"""What every search index has to do, as a class of tests to subclass."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import pytest

from kgtrace_store.errors import BadRequest
from kgtrace_store.search import NO_HIT, SearchIndex


class SearchIndexContract(ABC):
    """Subclass as ``TestMySearch`` and implement :meth:`build`."""

    @abstractmethod
    def build(self, vectors: np.ndarray) -> SearchIndex:
        """An index over vectors (n, dim) float32."""

    @pytest.fixture
    def vectors(self) -> np.ndarray:
        """(200, 7) float32, with norms that differ a lot, as those of gradients do."""
        rng = np.random.default_rng(0)
        return (rng.standard_normal((200, 7)) * rng.lognormal(sigma=2, size=(200, 1))).astype(np.float32)

    @pytest.fixture
    def queries(self) -> np.ndarray:
        """(5, 7) float32."""
        return np.random.default_rng(1).standard_normal((5, 7)).astype(np.float32)

    def test_size(self, vectors: np.ndarray) -> None:
        """An index knows how many vectors it holds and how long they are."""
        index = self.build(vectors)
        assert (index.ntotal, index.dim) == vectors.shape

    @pytest.mark.parametrize("k", [1, 10, 200])
    def test_search_finds_the_largest_inner_products(self, vectors: np.ndarray, queries: np.ndarray, k: int) -> None:
        """The hits are those of a full sort in float64, in descending order."""
        scores, ids = self.build(vectors).search(queries, k)
        wanted = queries.astype(np.float64) @ vectors.astype(np.float64).T  # (5, 200)
        order = np.argsort(-wanted, axis=1)[:, :k]
        assert scores.shape == ids.shape == (5, k)
        assert [scores.dtype.name, ids.dtype.name] == ["float32", "int64"]
        np.testing.assert_array_equal(ids, order)
        np.testing.assert_allclose(scores, np.take_along_axis(wanted, order, axis=1), rtol=1e-4, atol=1e-4)

    def test_batches_agree_with_single_queries(self, vectors: np.ndarray) -> None:
        """A query finds the same alone and among hundreds, where other code paths are taken."""
        queries = np.random.default_rng(2).standard_normal((400, 7)).astype(np.float32)
        index = self.build(vectors)
        scores, ids = index.search(queries, 5)
        for i in (0, 17, 399):
            alone_scores, alone_ids = index.search(queries[i : i + 1], 5)
            np.testing.assert_array_equal(alone_ids[0], ids[i])
            np.testing.assert_allclose(alone_scores[0], scores[i], rtol=1e-4, atol=1e-4)

    def test_short_results_are_padded(self, vectors: np.ndarray, queries: np.ndarray) -> None:
        """Places without a hit hold minus infinity and an id that is none."""
        scores, ids = self.build(vectors[:3]).search(queries, 5)
        assert np.isfinite(scores[:, :3]).all()
        np.testing.assert_array_equal(np.sort(ids[:, :3], axis=1), np.tile(np.arange(3), (5, 1)))
        assert np.isneginf(scores[:, 3:]).all()
        assert (ids[:, 3:] == NO_HIT).all()

    def test_empty_index(self, queries: np.ndarray) -> None:
        """An index without vectors answers with padding only."""
        index = self.build(np.empty((0, 7), np.float32))
        scores, ids = index.search(queries, 2)
        assert np.isneginf(scores).all()
        assert (ids == NO_HIT).all()
        assert [len(a) for a in index.range_search(queries[0], -1e30)] == [0, 0]

    def test_no_queries(self, vectors: np.ndarray) -> None:
        """An empty batch has an empty answer."""
        scores, ids = self.build(vectors).search(np.empty((0, 7), np.float32), 4)
        assert scores.shape == ids.shape == (0, 4)

    def test_range_search_finds_all_above(self, vectors: np.ndarray, queries: np.ndarray) -> None:
        """Each vector above the threshold is found once, with its score."""
        query = queries[0]
        wanted = vectors.astype(np.float64) @ query.astype(np.float64)  # (200,)
        threshold = float(np.sort(wanted)[-21:-19].mean())  # between the 20th and the 21st
        scores, ids = self.build(vectors).range_search(query, threshold)
        assert [scores.dtype.name, ids.dtype.name] == ["float32", "int64"]
        np.testing.assert_array_equal(np.sort(ids), np.flatnonzero(wanted >= threshold))
        np.testing.assert_allclose(scores, wanted[ids], rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("value", [3.0, 0.0, -3.0])
    def test_range_search_includes_the_threshold(self, value: float) -> None:
        """A score that equals the threshold counts; the next larger threshold excludes it."""
        index = self.build(np.array([[value], [value - 1], [value + 1]], np.float32))
        query = np.ones(1, np.float32)
        assert sorted(index.range_search(query, value)[1]) == [0, 2]
        assert sorted(index.range_search(query, float(np.nextafter(value, np.inf)))[1]) == [2]

    @pytest.mark.parametrize(("threshold", "found"), [(-np.inf, 200), (-1e300, 200), (1e300, 0), (np.inf, 0)])
    def test_range_search_accepts_extreme_thresholds(
        self, vectors: np.ndarray, queries: np.ndarray, threshold: float, found: int
    ) -> None:
        """Thresholds beyond float32 select everything or nothing."""
        assert len(self.build(vectors).range_search(queries[0], threshold)[1]) == found

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_non_finite_queries_are_refused(self, vectors: np.ndarray, queries: np.ndarray, bad: float) -> None:
        """NaN and infinity have no neighbours."""
        index = self.build(vectors)
        queries[2, 3] = bad
        with pytest.raises(BadRequest, match="NaN or infinity"):
            index.search(queries, 1)
        with pytest.raises(BadRequest, match="NaN or infinity"):
            index.range_search(queries[2], 0.0)

    def test_nan_thresholds_are_refused(self, vectors: np.ndarray, queries: np.ndarray) -> None:
        """Nothing is at least NaN."""
        with pytest.raises(BadRequest, match="threshold is NaN"):
            self.build(vectors).range_search(queries[0], np.nan)

    def test_wrong_dimensions_are_refused(self, vectors: np.ndarray) -> None:
        """The message holds the dimension of the query and that of the index."""
        index = self.build(vectors)
        with pytest.raises(BadRequest, match=r"\(2, 6\).*\(b, 7\)"):
            index.search(np.zeros((2, 6), np.float32), 1)
        with pytest.raises(BadRequest, match=r"\(8,\).*\(7,\)"):
            index.range_search(np.zeros(8, np.float32), 0.0)

    @pytest.mark.parametrize("k", [0, -1])
    def test_k_below_one_is_refused(self, vectors: np.ndarray, queries: np.ndarray, k: int) -> None:
        """Asking for nothing is a mistake."""
        with pytest.raises(BadRequest, match=f"k is {k}"):
            self.build(vectors).search(queries, k)
