"""Search by matrix products keeps the contract of all search back ends, whatever the size of its blocks."""

from pathlib import Path

import numpy as np
import pytest
import torch

from kgtrace_indexer.index import device_search
from kgtrace_indexer.index.device_search import TorchSearch, range_searches
from kgtrace_store.search import FaissSearch, SearchIndex
from tests.store.contract import SearchIndexContract

CPU = torch.device("cpu")


class TestTorchSearch(SearchIndexContract):
    """All vectors in one block."""

    def build(self, vectors: np.ndarray) -> SearchIndex:
        return TorchSearch.of(FaissSearch.build([vectors], *vectors.shape), CPU)


class TestTorchSearchInBlocks(TestTorchSearch):
    """A few vectors at a time."""

    @pytest.fixture(autouse=True)
    def _blocks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(device_search, "piece_floats", lambda device: 64)


def test_it_holds_what_the_index_on_disk_holds(tmp_path: Path) -> None:
    """Vectors rounded to bfloat16 have the scores that FAISS gives them."""
    rng = np.random.default_rng(0)
    vectors, query = rng.standard_normal((300, 8)).astype(np.float32), rng.standard_normal(8).astype(np.float32)
    stored = FaissSearch.build([vectors], 300, 8, half=True)
    there = TorchSearch.of(stored, CPU)
    np.testing.assert_array_equal(there.search(query[None], 20)[1], stored.search(query[None], 20)[1])
    np.testing.assert_array_equal(
        np.sort(there.range_search(query, 0.5)[1]), np.sort(stored.range_search(query, 0.5)[1])
    )


@pytest.mark.parametrize("floats", [1, 400, 900, 1 << 20])
@pytest.mark.parametrize("kind", [FaissSearch, TorchSearch])
def test_successive_searches_that_belong_together_are_not_torn_apart(
    kind: type, floats: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is searched at a time; every search finds what it finds alone."""
    monkeypatch.setattr(device_search, "piece_floats", lambda device: floats)
    rng = np.random.default_rng(0)
    vectors, queries = (rng.standard_normal((count, 8)).astype(np.float32) for count in (100, 6))
    index = FaissSearch.build([vectors], 100, 8)
    least = np.linspace(-1, 2, 6)
    wanted = [np.sort(index.range_search(query, each)[1]).tolist() for query, each in zip(queries, least, strict=True)]
    found: dict[int, list[int]] = {}
    pieces = range_searches(index if kind is FaissSearch else TorchSearch.of(index, CPU), queries, least, 2)
    for of, ids in pieces:
        numbers = np.unique(of).tolist()
        assert not {number // 2 for number in numbers} & {number // 2 for number in found}
        found |= {number: np.sort(ids[of == number]).tolist() for number in numbers}
    assert [found.get(number, []) for number in range(6)] == wanted


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestTorchSearchOnGpu(TestTorchSearch):
    """The same on a GPU."""

    def build(self, vectors: np.ndarray) -> SearchIndex:
        return TorchSearch.of(FaissSearch.build([vectors], *vectors.shape), torch.device("cuda"))
