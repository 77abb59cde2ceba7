"""How many threads compute a query, and a scan."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kgtrace_indexer import open_index
from kgtrace_indexer.models.featurizer import Featurizer
from kgtrace_store.search import search_threads, set_search_threads


@pytest.fixture
def _two_threads() -> Iterator[None]:
    """Let the caller compute on two threads, of torch and of FAISS."""
    before = torch.get_num_threads(), search_threads()
    torch.set_num_threads(2)
    set_search_threads(2)
    yield
    torch.set_num_threads(before[0])
    set_search_threads(before[1])


@pytest.mark.usefixtures("_two_threads")
def test_queries_compute_on_one_thread_and_scans_on_all(umls_index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A query and a completion limit themselves; a scan uses what its caller may use; all restore the limits."""
    attributor = open_index(umls_index)
    seen: list[tuple[int, int]] = []
    terms, scores = Featurizer.test_terms, Featurizer.candidate_scores

    def noted(compute: Callable[..., Any]) -> Callable[..., Any]:
        def computed(*args: Any) -> Any:
            seen.append((torch.get_num_threads(), search_threads()))
            return compute(*args)

        return computed

    monkeypatch.setattr(Featurizer, "test_terms", noted(terms))
    monkeypatch.setattr(Featurizer, "candidate_scores", noted(scores))
    triples = np.asarray(attributor.training.triples[:2], np.int64)
    attributor.query(triples)
    attributor.complete(triples)
    assert seen == [(1, 1)] * 3
    seen.clear()
    attributor.query(triples.repeat(16, 0))
    assert seen == [(1, 1)] * 4  # two halves, side by side
    seen.clear()
    attributor.query(triples, exact=True)
    attributor.aggregate(triples[0], "relation")
    assert seen == [(2, 2)] * 3
    with pytest.raises(IndexError):
        attributor.query(np.array([[10**6, 0, 0]]))
    assert (torch.get_num_threads(), search_threads()) == (2, 2)
