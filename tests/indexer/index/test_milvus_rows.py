"""Lists of rows in Milvus bound what the inverted files bound."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kgtrace_indexer.index.files import Files
from kgtrace_indexer.index.inverted import Entries
from kgtrace_indexer.index.milvus_rows import MilvusRows
from kgtrace_store import IndexRoot
from kgtrace_store.milvus import Milvus
from tests.milvus_server import milvus_server

PAIRS = 40
RELATIONS = range(20)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Milvus]:
    """A connection to a server."""
    with milvus_server(tmp_path_factory.mktemp("milvus")) as uri:
        yield Milvus(uri)


def of_pair(entries: Entries, pair: int) -> dict[int, float]:
    """The bounds of a pair by training triple, which are there once each."""
    chosen = entries.pair == pair
    bounds = dict(zip(entries.triple[chosen].tolist(), entries.upper[chosen].tolist(), strict=True))
    assert len(bounds) == chosen.sum()
    return bounds


@pytest.mark.parametrize("filtered", [False, True])
def test_bounds_and_frontiers(server: Milvus, umls_index: Path, filtered: bool) -> None:
    """Nothing exact is above its bound, nor what is missing above the frontier; bounds are those of FAISS."""
    files = Files.open(IndexRoot(umls_index).open().path)
    triples, lists, rng = files.training_set().triples, files.row_lists(), np.random.default_rng(0)
    mask = np.isin(triples[:, 1], RELATIONS) if filtered else None
    for number, (table, pieces) in enumerate(files.inverted_files().items()):
        (file,), held = pieces, MilvusRows.hold(server, "bounds", number, pieces, triples)
        row = rng.integers(0, len(file.scale), PAIRS)
        owner, exact = lists.padded(table, row)
        here = (owner >= 0) & (mask is None or mask[owner])
        grad = rng.standard_normal((PAIRS, exact.shape[2])) * 10.0 ** rng.integers(-6, 4, (PAIRS, 1))
        grad[3] = 0
        part = np.einsum("ped,pd->pe", exact, grad)  # (PAIRS, entries)
        slack = 1e-4 * np.linalg.norm(grad, axis=1) * np.linalg.norm(exact, axis=2).max(1) + 1e-25
        radius = np.where(np.arange(PAIRS) % 2, 0.5, 0.01) * np.abs(part).max(1) + 1e-20
        assert held.longest(row) == file.longest(row) == (owner >= 0).sum(1).max()
        np.testing.assert_array_equal(file.lengths(row, mask), here.sum(1))
        search = held.where({"relation": RELATIONS} if filtered else {}, {})
        best, frontier = search.best(row, grad, 10, mask)
        above, radii = search.above(row, grad, radius, mask)
        every, _ = file.best(row, grad, 1 + file.longest(row), mask)
        np.testing.assert_array_equal(np.isinf(frontier), here.sum(1) <= 10)
        for pair in range(PAIRS):
            bounds = of_pair(every, pair)
            assert len(of_pair(best, pair)) == min(10, len(bounds))
            for entries, limit in ((best, frontier[pair]), (above, radii[pair])):
                named = of_pair(entries, pair)
                assert named == pytest.approx({i: bounds[i] for i in named}, rel=1e-4, abs=slack[pair])
                assert max((bounds[i] for i in bounds.keys() - named), default=-np.inf) <= limit + slack[pair]
                for i, influence in zip(owner[pair][here[pair]].tolist(), part[pair][here[pair]], strict=True):
                    assert influence <= named.get(i, limit) + 1e-8 * slack[pair]
            if grad[pair].any():
                assert min(of_pair(above, pair).values(), default=np.inf) >= radii[pair] - slack[pair]
